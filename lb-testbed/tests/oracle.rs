//! The agent and the packet logic against the oracle: generated clusters and histories of events go
//! through `convert`, `model`, `policy`, `plan` and `diff` into maps in memory, and on these the
//! decisions of both engines are asked about every client, address, port and protocol.
//!
//! `MILLRACE_ORACLE_CASES` sets the number of histories that each property is tried on (default
//! 150), `MILLRACE_ORACLE_SEED` the seed, which is printed with the number of decisions compared
//! (`--nocapture` shows both). Shrunk failures are kept beside the test, and tried first ever after.

#[path = "oracle/affinity.rs"]
mod affinity;
#[path = "oracle/compare.rs"]
mod compare;
#[path = "oracle/decide.rs"]
mod decide;
#[path = "oracle/flows.rs"]
mod flows;
#[path = "oracle/meaning.rs"]
mod meaning;
#[path = "oracle/node.rs"]
mod node;
#[path = "oracle/pipeline.rs"]
mod pipeline;
#[path = "oracle/properties.rs"]
mod properties;
#[path = "oracle/read.rs"]
mod read;
#[path = "oracle/run.rs"]
mod run;
#[path = "oracle/sample.rs"]
mod sample;
#[path = "oracle/sources.rs"]
mod sources;
#[path = "oracle/udp.rs"]
mod udp;
#[path = "oracle/whole_loop.rs"]
mod whole_loop;

use affinity::Memory;
use compare::Asked;
use decide::Decider;
use lb_testbed::oracle::{
    View,
    generate::{NODE, history},
};
use pipeline::Agent;
use run::{Tally, Weight};
use udp::Senders;
use whole_loop::Loop;

/// Rules that decide about new connections.
const MET: [&str; 13] =
    ["V-1", "V-2", "V-3", "V-4", "V-5", "V-6", "V-7", "V-8", "V-9", "V-10", "V-12", "V-13", "C-6"];

/// S-1 to S-16, E-1 to E-21, T-1 to T-13, N-1 to N-7, X-1 to X-3: after every burst the tables hold
/// what the oracle captures, with the same endpoints.
#[test]
fn tables_agree_with_the_contract_after_every_burst() {
    run::check("tables", Weight::Usual, &[], history(8), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            tally.add(&compare::tables(&agent.meaning(), &View::new(&cluster, NODE))?);
        }
        Ok(tally)
    });
}

/// The same by way of the agent's loop, with the machine's interfaces (G-2, N-4, T-11).
#[test]
fn the_loop_programs_what_the_contract_says() {
    run::check("loop", Weight::Usual, &[], history(6), |mut history| {
        // Until it knows the Node it may ask for, a loop keeps what an earlier one found out.
        history.config.interfaces.clear();
        let mut agent = Loop::new(&history);
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            tally.add(&compare::tables(&agent.meaning(), &View::new(&cluster, NODE))?);
        }
        Ok(tally)
    });
}

/// C-2, V-1 to V-13, R-1 to R-6, M-1 to M-10, 4.3 with the departures: what both engines decide for
/// every kind of source and every destination.
#[test]
fn decisions_agree_with_the_contract() {
    run::check("decisions", Weight::Usual, &MET, history(4), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut tally = Tally::default();
        for (index, (burst, cluster)) in history.steps().enumerate() {
            agent.take(burst);
            let last = index + 1 == history.bursts.len();
            let asked = if last { Asked::Everything } else { Asked::Frontends };
            tally.add(&compare::decisions(&agent, &View::new(&cluster, NODE), asked)?);
        }
        Ok(tally)
    });
}

/// a client goes where its entry says, by every frontend and both engines, until its
/// time is over or its endpoint is gone.
#[test]
fn affinity_agrees_with_the_contract() {
    run::check("affinity", Weight::Usual, &["A-4"], history(4), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut memory = Memory::default();
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            memory.walk(&agent, &View::new(&cluster, NODE), &mut tally)?;
        }
        Ok(tally)
    });
}

/// U-2, U-4, U-6, U-7: what keeps sending stays with an endpoint that serves, whatever else changes,
/// and moves on from one that does not.
#[test]
fn udp_flows_agree_with_the_contract() {
    let rules = ["stays", "moves", "tries again"];
    run::check("udp", Weight::Usual, &rules, history(6), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut senders = Senders::default();
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            let view = View::new(&cluster, NODE);
            let decider = Decider::new(&agent);
            senders.go_on(&decider, &view, &mut tally)?;
            senders.begin(&decider, &view);
        }
        Ok(tally)
    });
}
