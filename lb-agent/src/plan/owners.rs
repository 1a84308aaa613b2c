//! Who owns a frontend that several service ports claim?
//!
//! The oldest Service, then the smaller key (contract S-15); those that could not be programmed at
//! all are passed over. When an owner goes, the next takes over.

use std::collections::BTreeSet;

use lb_common::abi::ServicePortId;

use super::report::Report;
use super::table::{Batch, FrontKey, FrontendChange};
use super::{Planner, Port, PortIndex, Work};

#[derive(Debug, Default)]
pub(super) struct Front {
    /// Who wants it, the strongest claim first.
    pub(super) claims: Vec<PortIndex>,
    pub(super) owner: Option<PortIndex>,
    /// What its word in the map says; 0: it is in no map.
    pub(super) programmed: ServicePortId,
}

impl Planner {
    pub(super) fn claim(&mut self, front: FrontKey, index: PortIndex) {
        let rank = |ports: &[Option<Port>], index: PortIndex| {
            let port = ports.get(index as usize).and_then(Option::as_ref);
            port.map(|port| {
                (port.desired.as_ref().map_or(i64::MAX, |d| d.created_s), port.key.clone())
            })
        };
        let claims = &mut self.fronts.entry(front).or_default().claims;
        if claims.is_empty() {
            claims.push(index);
            return;
        }
        let own = rank(&self.ports, index);
        let at = claims.partition_point(|&other| rank(&self.ports, other) < own);
        claims.insert(at, index);
    }

    pub(super) fn unclaim(&mut self, front: FrontKey, index: PortIndex) {
        if let Some(entry) = self.fronts.get_mut(&front) {
            entry.claims.retain(|&other| other != index);
        }
    }

    /// Gives each frontend to the strongest claim. Those that lose their owner go first, so that
    /// their place is free for others.
    pub(super) fn settle(&mut self, touched: BTreeSet<FrontKey>, work: &mut Work) {
        let mut gain = Vec::new();
        for front in touched {
            let Some(entry) = self.fronts.get(&front) else { continue };
            let owner = entry.owner;
            let able = |&&index: &&PortIndex| self.port(index).is_some_and(|port| !port.barred);
            let next = entry.claims.iter().find(able).copied();
            if next == owner {
                if next.is_none() {
                    self.unplaced.remove(&front);
                }
                continue;
            }
            self.set_owner(front, None, work);
            if let Some(next) = next {
                gain.push((front, next, owner.is_some()));
            } else {
                self.unplaced.remove(&front);
            }
        }
        // Moved ones keep their place; only then do new ones get one.
        gain.sort_by_key(|&(front, _, moved)| (!moved, front));
        for (front, next, _) in gain {
            let family = usize::from(matches!(front, FrontKey::V6(_)));
            if self.owned[family] < self.capacity.frontends {
                self.unplaced.remove(&front);
                self.set_owner(front, Some(next), work);
            } else {
                self.unplaced.insert(front);
                work.dirty.insert(next);
            }
        }
    }

    pub(super) fn set_owner(&mut self, front: FrontKey, owner: Option<PortIndex>, work: &mut Work) {
        let family = usize::from(matches!(front, FrontKey::V6(_)));
        let Some(entry) = self.fronts.get_mut(&front) else { return };
        let before = std::mem::replace(&mut entry.owner, owner);
        if let Some(before) = before {
            self.owned[family] -= 1;
            work.dirty.insert(before);
            if let Some(port) = self.port_mut(before) {
                port.owned.remove(&front);
            }
        }
        if let Some(owner) = owner {
            self.owned[family] += 1;
            work.dirty.insert(owner);
            if let Some(port) = self.port_mut(owner) {
                port.owned.insert(front);
            }
        }
    }

    pub(super) fn frontend_change(&mut self, front: FrontKey, batch: &mut Batch) {
        let Some(entry) = self.fronts.get(&front) else { return };
        let owner = entry.owner.and_then(|owner| self.port(owner));
        let id = owner.and_then(|port| port.table.as_ref()).map_or(0, |table| table.id);
        let Some(entry) = self.fronts.get_mut(&front) else { return };
        if entry.programmed != id {
            entry.programmed = id;
            batch.frontends.push(match id {
                0 => FrontendChange::Delete(front),
                id => FrontendChange::Put(front, id),
            });
        }
        if entry.claims.is_empty() && entry.owner.is_none() {
            self.fronts.remove(&front);
        }
    }

    pub(super) fn conflict(&mut self, front: FrontKey, batch: &mut Batch) {
        let claims = self.fronts.get(&front).map_or(&[][..], |entry| &entry.claims);
        if claims.len() < 2 {
            self.conflicts.remove(&front);
            return;
        }
        let claims = claims.to_vec();
        let owner = self.fronts.get(&front).and_then(|entry| entry.owner);
        if self.conflicts.get(&front) == Some(&claims) {
            return;
        }
        let key = |index: PortIndex| self.port(index).map(|port| port.key.clone());
        if let Some(winner) = owner.and_then(key) {
            let others = claims.iter().filter(|&&index| Some(index) != owner);
            let losers = others.filter_map(|&index| key(index)).collect();
            let winner = Box::new(winner);
            batch.reports.push(Report::Conflict { frontend: front, winner, losers });
        }
        self.conflicts.insert(front, claims);
    }
}
