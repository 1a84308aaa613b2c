//! What is known of which network namespace, and what of it do programs have to know?

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use lb_common::abi::{NetnsFlags, NetnsRecord};

use super::look::Seen;
use super::scan::{self, Found};
use super::visit::Place;
use crate::datapath::Scope;

/// A namespace is young for so long: addresses come, and whoever prepares a pod makes its rules.
pub(super) const YOUNG: Duration = Duration::from_mins(1);
/// A young namespace is looked at again after this.
pub(super) const LOOK_YOUNG: Duration = Duration::from_secs(1);
/// Any other after this.
const LOOK_OLD: Duration = Duration::from_mins(1);

/// All namespaces of the node, by inode.
#[derive(Debug)]
pub(super) struct Ledger {
    own: u64,
    scope: Scope,
    known: BTreeMap<u64, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    pid: u32,
    first: Instant,
    looked: Option<Instant>,
    seen: Option<Seen>,
}

impl Known {
    fn is_young(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.first) < YOUNG
    }
}

impl Ledger {
    /// Nothing is known; `own` is the node's namespace.
    pub(super) fn new(own: u64, scope: Scope) -> Self {
        Self { own, scope, known: BTreeMap::new() }
    }

    /// Takes up which namespaces there are. True if there are new ones.
    pub(super) fn found(&mut self, found: &Found, now: Instant) -> bool {
        let is_there = |inode: &u64| *inode == self.own || found.namespaces.contains_key(inode);
        self.known.retain(|inode, _| is_there(inode));
        let before = self.known.len();
        let own = (self.own, std::process::id());
        let others = found.namespaces.iter().map(|(inode, pid)| (*inode, *pid));
        for (inode, pid) in others.filter(|(inode, _)| *inode != own.0).chain([own]) {
            let fresh = Known { pid, first: now, looked: None, seen: None };
            let known = self.known.entry(inode).or_insert(fresh);
            // Inodes are used again: with another process, it may be another namespace.
            if known.pid != pid {
                *known = Known { pid, looked: None, ..*known };
            }
        }
        self.known.len() > before
    }

    /// The namespaces to look at now.
    pub(super) fn due(&self, now: Instant) -> Vec<Place> {
        let is_due = |known: &Known| {
            known.looked.is_none_or(|looked| {
                let pause = if known.is_young(now) { LOOK_YOUNG } else { LOOK_OLD };
                now.saturating_duration_since(looked) >= pause
            })
        };
        let due = self.known.iter().filter(|(inode, known)| {
            (self.scope == Scope::All || **inode == self.own) && is_due(known)
        });
        due.map(|(inode, known)| self.place(*inode, known.pid)).collect()
    }

    /// Whether a namespace is young that is looked at.
    pub(super) fn has_young(&self, now: Instant) -> bool {
        self.scope == Scope::All && self.known.values().any(|known| known.is_young(now))
    }

    /// All namespaces.
    pub(super) fn places(&self) -> Vec<Place> {
        self.known.iter().map(|(inode, known)| self.place(*inode, known.pid)).collect()
    }

    /// Takes up what was seen in one. What could not be looked at stays as it was.
    pub(super) fn seen(&mut self, place: &Place, result: io::Result<Seen>, now: Instant) {
        let own = self.own;
        let Some(known) = self.known.get_mut(&place.inode) else { return };
        known.looked = Some(now);
        match result {
            Ok(mut seen) => {
                // Of the same namespace: an inode may be another one's by now.
                let before = known.seen.filter(|before| before.cookie == seen.cookie);
                seen.rules = seen.rules.or_else(|| before?.rules);
                known.seen = Some(seen);
                let changed = before.and_then(|seen| seen.redirect()) != seen.redirect();
                if changed && place.inode != own {
                    log_redirect(place.inode, known.pid, &seen);
                }
            }
            // It has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(netns = place.inode, pid = known.pid, %error, "cannot be looked at");
            }
        }
    }

    /// What `NETNS` has to hold.
    pub(super) fn records(&self) -> BTreeMap<u64, NetnsRecord> {
        let each = self.known.iter().filter_map(|(inode, known)| {
            let seen = known.seen?;
            let flags = if self.is_bypassed(*inode) { NetnsFlags::BYPASS } else { 0 };
            Some((seen.cookie, seen.record(flags)))
        });
        each.collect()
    }

    /// Whether the socket engine serves this namespace.
    pub(super) fn is_served(&self, inode: u64) -> bool {
        match self.scope {
            Scope::Off => false,
            Scope::Host => inode == self.own,
            Scope::All => !self.is_bypassed(inode),
        }
    }

    /// Whether this is the node's namespace.
    pub(super) fn is_own(&self, inode: u64) -> bool {
        inode == self.own
    }

    /// The packet engine serves pods; for the node's own sockets there is nobody else.
    fn is_bypassed(&self, inode: u64) -> bool {
        let redirect = self.known.get(&inode).and_then(|known| known.seen?.redirect());
        inode != self.own && redirect.is_some()
    }

    fn place(&self, inode: u64, pid: u32) -> Place {
        Place { inode, pid: (inode != self.own).then_some(pid) }
    }
}

fn log_redirect(netns: u64, pid: u32, seen: &Seen) {
    let process = scan::process_name(pid);
    if let Some(why) = seen.redirect() {
        tracing::info!(netns, pid, process, %why, "bypassed: the packet engine serves its sockets");
    } else {
        tracing::info!(netns, pid, process, "no longer bypassed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::look::Rules;
    use crate::namespaces::redirect::Redirect;

    const OWN: u64 = 1;

    fn found(namespaces: &[(u64, u32)]) -> Found {
        Found { namespaces: namespaces.iter().copied().collect(), ..Found::default() }
    }

    fn seen(cookie: u64, rules: Option<Rules>) -> Seen {
        Seen { cookie, v4: Some([10, 0, 0, 7].into()), v6: None, rules }
    }

    fn inodes(places: &[Place]) -> Vec<u64> {
        places.iter().map(|place| place.inode).collect()
    }

    #[test]
    fn a_namespace_is_looked_at_when_it_is_new_often_while_young_and_rarely_later() {
        let start = Instant::now();
        let mut ledger = Ledger::new(OWN, Scope::All);
        assert!(ledger.found(&found(&[(OWN, 1), (2, 20)]), start));
        assert!(!ledger.found(&found(&[(OWN, 1), (2, 20)]), start));
        assert_eq!(inodes(&ledger.due(start)), [1, 2]);
        for place in ledger.due(start) {
            ledger.seen(&place, Ok(seen(100 + place.inode, None)), start);
        }
        assert_eq!(ledger.due(start), []);
        assert_eq!(inodes(&ledger.due(start + LOOK_YOUNG)), [1, 2]);
        let old = start + YOUNG;
        for place in ledger.due(old) {
            ledger.seen(&place, Err(io::ErrorKind::TimedOut.into()), old);
        }
        assert_eq!(ledger.records().len(), 2, "what was known stays known");
        assert_eq!(ledger.due(old + LOOK_YOUNG), []);
        assert_eq!(inodes(&ledger.due(old + LOOK_OLD)), [1, 2]);
        assert!(!ledger.has_young(old));
        // Only new ones are entered, and those whose process is another one.
        assert!(ledger.found(&found(&[(2, 21), (3, 30)]), old));
        assert_eq!(inodes(&ledger.due(old)), [2, 3]);
        assert!(ledger.has_young(old));
        assert!(!ledger.found(&found(&[(3, 30)]), old));
        assert_eq!(ledger.records().keys().copied().collect::<Vec<_>>(), [101], "2 is gone");
    }

    #[test]
    fn a_pod_that_redirects_is_bypassed_and_the_node_never() {
        let now = Instant::now();
        let mut ledger = Ledger::new(OWN, Scope::All);
        ledger.found(&found(&[(2, 20), (3, 30)]), now);
        let redirect = Some(Rules::Redirect(Redirect::Nftables));
        let rules = [None, redirect, redirect, Some(Rules::None)];
        for place in ledger.due(now) {
            let at = usize::try_from(place.inode).unwrap();
            assert_eq!(place.pid.is_none(), place.inode == OWN);
            ledger.seen(&place, Ok(seen(place.inode, rules[at])), now);
        }
        let flags: Vec<_> = ledger.records().values().map(|record| record.flags).collect();
        assert_eq!(flags, [0, NetnsFlags::BYPASS, 0]);
        let served = [1, 2, 3].map(|inode| ledger.is_served(inode));
        assert_eq!(served, [true, false, true]);
        let place = Place { inode: 2, pid: Some(20) };
        ledger.seen(&place, Ok(seen(2, None)), now);
        assert!(!ledger.is_served(2), "its rules could not be read this time");
        ledger.seen(&place, Ok(seen(2, Some(Rules::None))), now);
        assert!(ledger.is_served(2), "its rules are gone");
        ledger.seen(&place, Ok(seen(2, redirect)), now);
        ledger.seen(&place, Ok(seen(99, None)), now);
        assert!(ledger.is_served(2), "another namespace has its inode");
        ledger.seen(&place, Ok(seen(2, None)), now);
        assert_eq!(ledger.records()[&2].flags, 0);
        assert_eq!(ledger.records()[&2].v4.to_ne_bytes(), [10, 0, 0, 7]);
    }

    #[test]
    fn with_the_host_alone_no_other_namespace_is_looked_at() {
        let now = Instant::now();
        for (scope, own) in [(Scope::Host, true), (Scope::Off, false)] {
            let mut ledger = Ledger::new(OWN, scope);
            ledger.found(&found(&[(2, 20)]), now);
            assert_eq!(inodes(&ledger.due(now)), [OWN]);
            assert_eq!(inodes(&ledger.places()), [1, 2], "sockets are looked for everywhere");
            assert_eq!((ledger.is_served(OWN), ledger.is_served(2)), (own, false));
            assert!(!ledger.has_young(now));
        }
    }
}
