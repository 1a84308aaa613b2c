//! Programs that look things up while the agent writes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{FactsFlags, FactsWord, FrontendFlags, Scope};

use super::guards::clients;
use super::model::{Model, place};
use crate::datapath::fake::Fake;
use crate::plan::FrontKey;

/// A kernel program somewhere on its way, which nothing but a grace period waits for.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) front: Option<FrontKey>,
    id: u32,
    external: bool,
    /// On whose behalf it asks a guarded frontend; gone once it has.
    client: Option<IpAddr>,
    /// That client was let in by everything that was desired since it set out.
    is_welcome: bool,
    facts: Option<FactsWord>,
    set: Option<lb_common::abi::SetWord>,
    backend: Option<u32>,
    /// Who owned the frontend since it set out.
    owners: BTreeSet<usize>,
    /// What it may reach: everything that was theirs since it set out.
    allowed: Vec<(IpAddr, u16)>,
}

impl Reader {
    pub(super) fn allow(&mut self, front: FrontKey, before: &Model, after: &Model) {
        let owners = [before.owner(&front), after.owner(&front)].into_iter().flatten();
        self.owners.extend(owners.map(|(port, _)| port));
        if let Some(client) = self.client {
            let in_both = [before, after].iter().all(|m| m.lets_in(&front, client) != Some(false));
            self.is_welcome &= in_both;
        }
        for &port in &self.owners {
            self.allowed.extend(before.backends(port).chain(after.backends(port)));
        }
    }

    /// Makes one load; true when it is done.
    pub(super) fn advance(&mut self, fake: &Fake, pick: u8) -> bool {
        let pick = usize::from(pick);
        let Some(front) = self.front else {
            let Some((front, word)) = fake.frontends.iter().nth(pick % 12) else { return true };
            self.front = Some(*front);
            let found = front.found(*word).unwrap();
            self.id = found.id;
            self.external = found.flags & FrontendFlags::EXTERNAL != 0;
            if found.flags & FrontendFlags::RANGES != 0 {
                self.client = Some(clients(front.family())[pick % 5]);
                self.is_welcome = true;
            }
            return false;
        };
        if let Some(client) = self.client.take() {
            let mut ranges = fake.source_ranges.iter().filter(|held| held.id == self.id);
            let lets_in = ranges.any(|held| held.range.contains(client));
            assert!(lets_in || !self.is_welcome, "{front} keeps {client} out");
            return !lets_in;
        }
        let Some(facts) = self.facts else {
            self.facts = Some(fake.facts[self.id as usize]);
            return false;
        };
        let Some(set) = self.set else {
            let local = !self.external && facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
            let scope = if local { Scope::Local } else { Scope::Cluster };
            let set = fake.sets[scope.index(self.id) as usize];
            self.set = Some(set);
            return set.count() == 0;
        };
        let Some(id) = self.backend else {
            let slot = set.first() as usize + pick % set.count() as usize;
            self.backend = Some(fake.slots[slot]);
            return false;
        };
        let backend = fake.backends[id as usize];
        assert!(self.allowed.contains(&place(&backend)), "{front} reached {:?}", place(&backend));
        assert_eq!(backend.service_port, self.id);
        true
    }
}
