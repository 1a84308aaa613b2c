//! The real kernel programs against the oracle: a sample of the generated clusters is copied into
//! the programs' maps, and packets of pods to every frontend, and to some addresses that are none,
//! are run through them. Needs root and nothing else.

use std::{cell::RefCell, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::Counter;
use lb_object::Settings;
use lb_testbed::{
    oracle::{
        Engine, Place, Source, View,
        cluster::{Family, Protocol},
        generate::{NODE, history},
    },
    packet::{self, Link, Parsed, TcpFlags},
    require,
    testrun::kernel::Kernel,
    traffic::{self, ACK, SYN, SYN_ACK},
};
use proptest::test_runner::TestCaseError;

use super::{
    compare::{Question, at_the_engine, frontends, questions},
    decide::{Became, transport},
    pipeline::Agent,
    run::{self, Tally, Weight},
};

/// Rules that decide for a pod's packet.
const MET: [&str; 10] = ["V-1", "V-2", "V-3", "V-4", "V-6", "V-7", "V-9", "V-12", "V-13", "C-6"];
/// Of what is no frontend, one question of so many is asked.
const ONE_OF: usize = 97;
/// The program where packets leave the node.
const UPLINK: &str = "tc_uplink_egress";
/// What tc programs return: `TC_ACT_SHOT`, `TC_ACT_REDIRECT`, `TC_ACT_UNSPEC`.
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const NEXT: i32 = -1;

/// C-2, V-1 to V-4, V-6, V-7, V-9, V-12, V-13, M-1, M-8 with the departures, in the kernel itself: what
/// becomes of a pod's first packet, and of the answer to it.
#[test]
fn kernel_programs_agree_with_the_contract() -> Result<()> {
    if !require::bpf_or_skip("kernel_programs_agree_with_the_contract") {
        return Ok(());
    }
    let mut kernel = Kernel::prepare(&Settings::probe())?;
    for program in ["tc_ingress", "tc_egress", UPLINK] {
        kernel.load(program)?;
    }
    kernel.fill_program_array()?;
    let programs = RefCell::new(Programs { kernel, sport: 1024 });
    run::check("kernel", Weight::Usual, &MET, history(4), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            let view = View::new(&cluster, NODE);
            tally.add(&programs.borrow_mut().compare(&agent, &view)?);
        }
        Ok(tally)
    });
    Ok(())
}

struct Programs {
    kernel: Kernel,
    sport: u16,
}

impl Programs {
    fn compare(&mut self, agent: &Agent, view: &View) -> Result<Tally, TestCaseError> {
        self.kernel.reset().and_then(|()| self.kernel.fill(&agent.tables)).map_err(fail)?;
        let captured = frontends(view);
        let mut tally = Tally::default();
        for (index, question) in Family::BOTH.into_iter().flat_map(questions).enumerate() {
            let is_frontend = captured.contains_key(&(question.to, question.protocol));
            // The turn goes round with the port that was used last, so that all get theirs.
            let turn = (index + usize::from(self.sport)) % ONE_OF == 0;
            let leaves = question.ways().any(|way| way.engine() == Engine::Packet);
            if question.place != Place::Pod || !leaves || !(is_frontend || turn) {
                continue;
            }
            let client = question.client();
            let expected = view.expect(Engine::Packet, &client, question.to, question.protocol);
            let allowed = at_the_engine(&expected, &question);
            let became = self
                .first(&question)
                .map_err(|error| TestCaseError::fail(format!("{question:?}: {error:#}")))?;
            // A packet that is sent on to where it goes anyway looks like one that nobody touched.
            let itself = Became::To(question.to, Source::Kept);
            let unchanged = became == Became::Untouched && allowed.contains(&itself);
            if !unchanged && !allowed.contains(&became) {
                let text =
                    format!("{question:?} became {became:?}: the contract expects {expected}");
                return Err(TestCaseError::fail(text));
            }
            tally.add(&Tally::of(1));
            tally.met(expected.rule);
        }
        Ok(tally)
    }

    /// What becomes of the first packet of a flow; its answer goes the way back.
    fn first(&mut self, question: &Question) -> Result<Became> {
        self.sport = self.sport.checked_add(1).unwrap_or(1024);
        let from = SocketAddr::new(question.ip, self.sport);
        let sent = traffic::packet(transport(question.protocol), from, question.to, SYN).build();
        let before = self.kernel.counters()?;
        let mut ran = self.kernel.run("tc_ingress", &sent)?;
        if ran.verdict.cast_signed() == NEXT && ran.data == sent {
            // What nobody takes leaves the node.
            ran = self.kernel.run(UPLINK, &sent)?;
        }
        let parsed = packet::parse(&ran.data, Link::Ethernet).context("what is left of it")?;
        packet::checksums_ok(&ran.data, Link::Ethernet)?;
        match ran.verdict.cast_signed() {
            NEXT if ran.data == sent => Ok(Became::Untouched),
            SHOT => self.why_dropped(&before),
            REDIRECT if is_error(&ran.data, &parsed) => {
                ensure!(parsed.dst == from.ip(), "the error goes to {}", parsed.dst);
                Ok(Became::Rejected)
            }
            action @ (NEXT | REDIRECT) => {
                let (source, backend) = ends(&parsed)?;
                let hairpin = backend.ip() == from.ip();
                ensure!(hairpin == (action == REDIRECT), "returned {action} to {backend}");
                self.answer(question, from, source, backend)?;
                let kept = if source == from { Source::Kept } else { Source::Rewritten };
                Ok(Became::To(backend, kept))
            }
            other => bail!("returned {other}"),
        }
    }

    /// The backend's answer: the client sees the address that it asked for.
    fn answer(
        &self,
        question: &Question,
        client: SocketAddr,
        source: SocketAddr,
        backend: SocketAddr,
    ) -> Result<()> {
        let flags = if question.protocol == Protocol::Tcp { SYN_ACK } else { ACK };
        let sent = traffic::packet(transport(question.protocol), backend, source, flags).build();
        // A hairpin's answer arrives where its packets do.
        let hairpin = backend.ip() == client.ip();
        let (program, action) =
            if hairpin { ("tc_ingress", REDIRECT) } else { ("tc_egress", NEXT) };
        let ran = self.kernel.run(program, &sent).context("the answer")?;
        let parsed =
            packet::parse(&ran.data, Link::Ethernet).context("what is left of the answer")?;
        packet::checksums_ok(&ran.data, Link::Ethernet).context("the answer")?;
        let returned = ran.verdict.cast_signed();
        ensure!(returned == action, "{program} returned {returned} for the answer");
        let seen = ends(&parsed)?;
        ensure!(seen == (question.to, client), "the answer goes from and to {seen:?}");
        Ok(())
    }

    fn why_dropped(&self, before: &[(Counter, u64)]) -> Result<Became> {
        let after = self.kernel.counters()?;
        let counted = |counter: Counter| {
            let of = |all: &[(Counter, u64)]| {
                all.iter().find(|(other, _)| *other == counter).map_or(0, |(_, count)| *count)
            };
            of(&after) > of(before)
        };
        for (counter, became) in [
            (Counter::DropNoBackend, Became::Rejected),
            (Counter::DropUndefinedPort, Became::Rejected),
            (Counter::DropNoLocalBackend, Became::Dropped),
            (Counter::DropUnallocated, Became::Dropped),
            (Counter::DropSctpPort, Became::SctpPort),
        ] {
            if counted(counter) {
                return Ok(became);
            }
        }
        bail!("dropped, and counted as none of what may happen: {before:?}, {after:?}")
    }
}

/// Whether a packet is an answer that tells its receiver that nobody is there.
fn is_error(bytes: &[u8], parsed: &Parsed) -> bool {
    match parsed.protocol {
        packet::protocol::ICMP | packet::protocol::ICMPV6 => true,
        packet::protocol::TCP => {
            bytes.get(parsed.upper_at + 13).is_some_and(|flags| flags & TcpFlags::RST.0 != 0)
        }
        _ => false,
    }
}

fn ends(parsed: &Parsed) -> Result<(SocketAddr, SocketAddr)> {
    let [sport, dport] = parsed.ports.context("ports")?;
    Ok((SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport)))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn fail(error: anyhow::Error) -> TestCaseError {
    TestCaseError::fail(format!("{error:#}"))
}
