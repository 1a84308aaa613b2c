//! Clients that come back to service ports with session affinity (section 5), while time passes and
//! the cluster changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_testbed::oracle::{
    Client, View,
    cluster::{Family, Protocol},
    endpoints::PortId,
    generate::clients,
};
use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    compare::{self, Question, at_the_engine},
    decide::{Decider, Way},
    pipeline::Agent,
    run::Tally,
};

/// Seconds that pass before each round: timeouts are 10 s and 3 h, and run from the last connection
///
const PAUSES_S: [u32; 4] = [0, 6, 6, 11];

/// What the agent's tables should remember.
#[derive(Default)]
pub(crate) struct Memory {
    /// By service port and client. Millrace keeps one endpoint of each: where A-6 has two, the
    /// later one.
    entries: BTreeMap<(PortId, IpAddr), Entry>,
    now_s: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    at: SocketAddr,
    seen_s: u32,
    /// Nothing happened meanwhile after which the contract leaves open whether it counts: that its
    /// endpoint was away, or affinity off.
    sure: bool,
}

impl Memory {
    /// Every client asks for every frontend in every way, a few times.
    pub(crate) fn walk(
        &mut self,
        agent: &Agent,
        view: &View,
        tally: &mut Tally,
    ) -> Result<(), TestCaseError> {
        let decider = Decider::new(agent);
        self.forget_what_was_away(view);
        for pause_s in PAUSES_S {
            agent.tables.advance_seconds(pause_s);
            self.now_s += pause_s;
            for ((to, protocol), (_, index)) in compare::frontends(view) {
                for client in clients(Family::of(to.ip())) {
                    let question = Question::of(&client, to, protocol);
                    for way in question.ways().filter(|way| *way != Way::Leave) {
                        self.ask(
                            &decider,
                            view,
                            way,
                            client.clone(),
                            (to, protocol),
                            index,
                            tally,
                        )?;
                    }
                }
            }
        }
        tally.compared += decider.decisions.get();
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a question and who asks it")]
    fn ask(
        &mut self,
        decider: &Decider<'_>,
        view: &View,
        way: Way,
        mut client: Client,
        (to, protocol): (SocketAddr, Protocol),
        index: usize,
        tally: &mut Tally,
    ) -> Result<(), TestCaseError> {
        let port = &view.ports[index];
        let question = Question::of(&client, to, protocol);
        let key = (port.id.clone(), client.ip);
        let entry = self.entries.get(&key).copied();
        let live = entry.filter(|entry| {
            port.affinity_s.is_some_and(|timeout_s| self.now_s - entry.seen_s < timeout_s)
        });
        let fresh = view.expect(way.engine(), &client, to, protocol);
        client.affinity = live.iter().map(|entry| entry.at).collect();
        let sticky = view.expect(way.engine(), &client, to, protocol);
        let mut allowed = at_the_engine(&sticky, &question);
        if live.is_some_and(|entry| !entry.sure) {
            allowed.extend(at_the_engine(&fresh, &question));
        } else if fresh.endpoints().len() > 1 && sticky.endpoints().len() == 1 {
            tally.met("A-4");
        }
        let random = self.now_s.wrapping_add(1).wrapping_mul(0x9e37_79b9) ^ u32::from(to.port());
        let became = decider.once(way, &client, to, protocol, random);
        prop_assert!(
            allowed.contains(&became),
            "{:?} of {:?} with {:?} became {:?}: the contract expects {}",
            way,
            question,
            client.affinity,
            became,
            sticky
        );
        match (became.endpoint(), port.affinity_s) {
            (Some(at), Some(_)) => {
                let entry = Entry { at, seen_s: self.now_s, sure: true };
                self.entries.insert(key, entry);
            }
            _ => {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.sure = false;
                }
            }
        }
        Ok(())
    }

    /// Entries of service ports that nobody can ask for now, and of endpoints that are gone.
    fn forget_what_was_away(&mut self, view: &View) {
        let asked: BTreeSet<usize> =
            compare::frontends(view).values().map(|(_, port)| *port).collect();
        let asked: BTreeMap<&PortId, usize> =
            asked.into_iter().map(|index| (&view.ports[index].id, index)).collect();
        for ((id, _), entry) in &mut self.entries {
            let port = asked.get(id).map(|index| &view.ports[*index]);
            entry.sure &= port.is_some_and(|port| port.lists.keeps_flows().contains(&entry.at));
        }
    }
}
