//! Golden packets: what must become of each, at which hook, after what.
//!
//! A case is a script of packets and changes of the tables. The expected packets are built field by
//! field, not computed from the input. The same cases run through `lb_common::decide` on the host
//! ([`Case::on_host`]) and through the kernel programs (`tests/golden.rs`).

mod bad;
mod destinations;
mod fragments;
mod headers;
mod icmp;
mod lives;
mod refusals;

use anyhow::{Result, ensure};
use lb_common::{
    abi::Counter,
    decide, early, guard,
    host::{Costs, HostPacket, HostTables},
    parse,
    refuse::{self, Reason},
    tables::NodeTables as _,
    verdict::Verdict,
};

use crate::packet::{self, Link, Packet};

/// A hook of the packet engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive from the interface.
    Ingress,
    /// Packets that leave by it.
    Egress,
    /// Packets that leave by an uplink or an overlay.
    Uplink,
}

/// One packet and what must become of it.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Where it is seen.
    pub hook: Hook,
    /// What it begins with.
    pub link: Link,
    /// Its bytes.
    pub input: Vec<u8>,
    /// What happens to it.
    pub verdict: Verdict,
    /// Its bytes afterwards.
    pub output: Vec<u8>,
    /// What is counted.
    pub counts: Vec<Counter>,
    /// The output is the answer to what is refused.
    pub answered: bool,
    /// Belongs to a flow that both sides know: it may cost no map update.
    pub established: bool,
}

/// A change of the tables between packets, as the agent makes it.
pub type Change = Box<dyn Fn(&HostTables)>;

/// A step of a case.
pub enum Step {
    /// A packet.
    Shot(Shot),
    /// A change.
    Change(Change),
}

/// A script with a name.
pub struct Case {
    /// What it shows.
    pub name: String,
    /// What happens, in order; it begins with empty tables.
    pub steps: Vec<Step>,
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = lives::cases();
    cases.extend(headers::cases());
    cases.extend(bad::cases());
    cases.extend(destinations::cases());
    cases.extend(icmp::cases());
    cases.extend(fragments::cases());
    cases.extend(refusals::cases());
    cases
}

/// What the packets of established flows cost, over all cases.
pub fn established_costs() -> Result<Costs> {
    let mut sum = Costs::default();
    for case in cases() {
        let costs = case.on_host()?;
        sum.map_updates += costs.map_updates;
        sum.lookups += costs.lookups;
        sum.value_stores += costs.value_stores;
        sum.coarse_clock_reads += costs.coarse_clock_reads;
        sum.precise_clock_reads += costs.precise_clock_reads;
    }
    Ok(sum)
}

impl Case {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new() }
    }

    fn change(mut self, change: impl Fn(&HostTables) + 'static) -> Self {
        self.steps.push(Step::Change(Box::new(change)));
        self
    }

    fn bytes(
        mut self,
        hook: Hook,
        link: Link,
        input: Vec<u8>,
        verdict: Verdict,
        output: Vec<u8>,
    ) -> Self {
        // Every drop has a counter of its own, and nothing else counts by itself.
        let counts = verdict.drop_counter().into_iter().collect();
        let (answered, established) = (false, false);
        let shot = Shot { hook, link, input, verdict, output, counts, answered, established };
        self.steps.push(Step::Shot(shot));
        self
    }

    /// A packet that is translated to another one.
    fn becomes(self, hook: Hook, input: &Packet, output: &Packet) -> Self {
        self.bytes(hook, input.link, input.build(), Verdict::Translated, output.build())
    }

    /// A packet that is translated and sent back.
    fn reflected(self, input: &Packet, output: &Packet) -> Self {
        self.bytes(Hook::Ingress, input.link, input.build(), Verdict::Reflected, output.build())
    }

    /// A packet that passes or is dropped, for this reason.
    fn stays(self, hook: Hook, input: &Packet, verdict: Verdict) -> Self {
        let bytes = input.build();
        self.bytes(hook, input.link, bytes.clone(), verdict, bytes)
    }

    /// A packet that is dropped, and whose sender is told.
    fn refused(self, hook: Hook, input: &Packet, verdict: Verdict, answer: &Packet) -> Self {
        let case = self.bytes(hook, input.link, input.build(), verdict, answer.build());
        case.answered()
    }

    /// The same in bytes, with an Ethernet header.
    fn refused_bytes(self, hook: Hook, input: Vec<u8>, verdict: Verdict, answer: Vec<u8>) -> Self {
        self.bytes(hook, Link::Ethernet, input, verdict, answer).answered()
    }

    /// A packet whose sender would be told, if that were allowed.
    fn unanswered(self, hook: Hook, input: &Packet, verdict: Verdict) -> Self {
        self.stays(hook, input, verdict).counted(Counter::RefusalUnanswered)
    }

    fn answered(mut self) -> Self {
        if let Some(Step::Shot(shot)) = self.steps.last_mut() {
            shot.answered = true;
        }
        self.counted(Counter::RefusalAnswered)
    }

    /// The last packet is counted as this too.
    fn counted(mut self, counter: Counter) -> Self {
        if let Some(Step::Shot(shot)) = self.steps.last_mut() {
            shot.counts.push(counter);
        }
        self
    }

    /// The last packet belongs to an established flow.
    fn established(mut self) -> Self {
        if let Some(Step::Shot(shot)) = self.steps.last_mut() {
            shot.established = true;
        }
        self
    }

    /// Runs the case through the decisions on the host; returns what its established packets cost.
    pub fn on_host(&self) -> Result<Costs> {
        let tables = HostTables::new();
        let mut established = Costs::default();
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Change(change) => change(&tables),
                Step::Shot(shot) => {
                    tables.reset_costs();
                    let before = tables.counters();
                    let (verdict, output) = shot.on_host(&tables);
                    shot.check(&format!("{}, step {index}", self.name), verdict, &output)?;
                    let counts = difference(&before, &tables.counters());
                    shot.check_counts(&format!("{}, step {index}", self.name), &counts)?;
                    if shot.established {
                        let costs = tables.costs();
                        established.map_updates += costs.map_updates;
                        established.lookups += costs.lookups;
                        established.value_stores += costs.value_stores;
                        established.coarse_clock_reads += costs.coarse_clock_reads;
                        established.precise_clock_reads += costs.precise_clock_reads;
                    }
                }
            }
        }
        Ok(established)
    }
}

impl Shot {
    /// What the decision on the host does to the packet.
    #[must_use]
    pub fn on_host(&self, tables: &HostTables) -> (Verdict, Vec<u8>) {
        let mut packet = HostPacket(self.input.clone());
        let link = match self.link {
            Link::Ethernet => parse::Link::Ethernet,
            Link::None => parse::Link::None,
        };
        let verdict = match self.hook {
            Hook::Ingress => decide::ingress(&mut packet, tables, link),
            Hook::Egress => decide::egress(&mut packet, tables, link),
            Hook::Uplink => {
                let suspect = guard::suspects(&mut packet, tables, link);
                let verdict = if suspect { guard::leaving(&packet, tables, link) } else { None };
                verdict.unwrap_or_else(|| decide::egress(&mut packet, tables, link))
            }
        };
        if verdict.is_reject() {
            // The counters say what became of it.
            let reason = Reason::for_verdict(verdict, || tables.mtu());
            let _counted = refuse::answer(&mut packet, tables, link, reason);
        }
        (verdict, packet.0)
    }

    /// What the early decision, at XDP, does to it, before [`Shot::on_host`] sees it.
    #[must_use]
    pub fn early_on_host(&self, tables: &HostTables) -> (Verdict, Vec<u8>) {
        let mut packet = HostPacket(self.input.clone());
        let verdict = early::ingress(&mut packet, tables, parse::Link::Ethernet);
        (verdict, packet.0)
    }

    /// Fails, with both packets in words, unless verdict and bytes are the expected ones.
    pub fn check(&self, what: &str, verdict: Verdict, output: &[u8]) -> Result<()> {
        let expected = self.verdict;
        ensure!(verdict == expected, "{what}: {verdict:?} instead of {expected:?}");
        self.check_bytes(what, output)
    }

    /// Fails, with both packets in words, unless the bytes are the expected ones.
    pub fn check_bytes(&self, what: &str, output: &[u8]) -> Result<()> {
        let diff = packet::diff(&self.output, output, self.link);
        ensure!(diff.is_empty(), "{what}, {:?}: {diff}", self.hook);
        Ok(())
    }

    /// Fails unless exactly the expected counters went up, by one each.
    pub fn check_counts(&self, what: &str, counts: &[(Counter, u64)]) -> Result<()> {
        let mut expected: Vec<_> = self.counts.iter().map(|counter| (*counter, 1)).collect();
        expected.sort_by_key(|(counter, _)| *counter as u32);
        ensure!(counts == expected, "{what}: counted {counts:?} instead of {expected:?}");
        Ok(())
    }
}

/// By how much each counter went up, in the order of their numbers.
#[must_use]
pub fn difference(before: &[(Counter, u64)], after: &[(Counter, u64)]) -> Vec<(Counter, u64)> {
    let value = |of: &[(Counter, u64)], counter| {
        of.iter().find(|(other, _)| *other == counter).map_or(0, |(_, count)| *count)
    };
    let all = Counter::ALL
        .iter()
        .map(|counter| (*counter, value(after, *counter) - value(before, *counter)));
    all.filter(|(_, more)| *more > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_host_decides_as_every_case_says() {
        for case in cases() {
            case.on_host().unwrap();
        }
    }

    #[test]
    fn established_packets_update_no_map_and_read_no_precise_clock() {
        let costs = established_costs().unwrap();
        assert_eq!((costs.map_updates, costs.precise_clock_reads), (0, 0));
        assert!(costs.lookups > 50, "no established packets: {costs:?}");
    }

    #[test]
    fn cases_have_names_of_their_own() {
        let cases = cases();
        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn a_wrong_expectation_fails() {
        let mut case = cases().swap_remove(0);
        let shot = case.steps.iter_mut().find_map(|step| match step {
            Step::Shot(shot) => Some(shot),
            Step::Change(_) => None,
        });
        let shot = shot.unwrap();
        shot.output[30] ^= 1;
        assert!(case.on_host().is_err());
    }
}
