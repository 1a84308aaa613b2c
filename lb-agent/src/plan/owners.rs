//! Who owns a frontend that several service ports claim?
//!
//! One whose clusterIP it is: nobody may take traffic to another Service's clusterIP to himself by
//! an externalIP (contract section 12). Then the oldest Service, then the smaller key (S-15); those
//! that could not be programmed at all are passed over. When an owner goes, the next takes over.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lb_common::abi::FrontendWord;

use super::address::family_index;
use super::report::Report;
use super::table::{Batch, FrontKey, FrontendChange};
use super::{Planner, Port, PortIndex, Work, self_test};
use crate::model::{DesiredPort, FrontendKind, PortKey, Protocol};

/// The part of a map that is kept from externalIPs and load balancer addresses is one of so many:
/// one user who claims a thousand of them must not keep the clusterIPs of all others out.
const NOT_CLAIMED: u32 = 4;

/// A service port that wants a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) index: PortIndex,
    pub(super) kind: FrontendKind,
}

#[derive(Debug, Default)]
pub(super) struct Front {
    /// Who wants it, the strongest claim first.
    pub(super) claims: Vec<Claim>,
    pub(super) owner: Option<Claim>,
    /// Its word in the map, if it is there.
    pub(super) programmed: Option<FrontendWord>,
}

/// What a service port claims: each frontend once, as a clusterIP if it is that among others.
pub(super) fn claimed(
    desired: Option<&DesiredPort>,
    protocol: Protocol,
) -> BTreeMap<FrontKey, FrontendKind> {
    let mut claims = BTreeMap::new();
    for &frontend in desired.iter().flat_map(|desired| &desired.frontends) {
        let kind = claims.entry(FrontKey::new(frontend, protocol)).or_insert(frontend.kind);
        *kind = frontend.kind.min(*kind);
    }
    claims
}

/// Claims in order: the smallest is the strongest.
fn rank(ports: &[Option<Port>], claim: Claim) -> Option<(bool, i64, &PortKey)> {
    let port = ports.get(claim.index as usize).and_then(Option::as_ref)?;
    let created_s = port.desired.as_ref().map_or(i64::MAX, |desired| desired.created_s);
    Some((claim.kind.is_external(), created_s, &port.key))
}

impl Planner {
    pub(super) fn claim(&mut self, front: FrontKey, claim: Claim) {
        let claims = &mut self.fronts.entry(front).or_default().claims;
        let own = rank(&self.ports, claim);
        let at = claims.partition_point(|&other| rank(&self.ports, other) < own);
        claims.insert(at, claim);
    }

    pub(super) fn unclaim(&mut self, front: FrontKey, index: PortIndex) {
        if let Some(entry) = self.fronts.get_mut(&front) {
            entry.claims.retain(|other| other.index != index);
        }
    }

    /// Gives each frontend to the strongest claim. Those that lose their owner go first, so that
    /// their place is free for others.
    pub(super) fn settle(&mut self, touched: BTreeSet<FrontKey>, work: &mut Work) {
        let mut gain = Vec::new();
        for front in touched {
            let Some(entry) = self.fronts.get(&front) else { continue };
            let owner = entry.owner;
            let next = self.next_owner(entry);
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
        // Moved ones keep their place; only then do new ones get one, claimed addresses last.
        gain.sort_by_key(|&(front, next, moved)| (!moved, self.is_claimed(next), front));
        for (front, next, moved) in gain {
            if self.has_room(&front, next, moved) {
                self.unplaced.remove(&front);
                self.set_owner(front, Some(next), work);
            } else {
                self.unplaced.insert(front);
                work.dirty.insert(next.index);
            }
        }
    }

    /// Whether a frontend that has no place could get one in the map, or needs none any more.
    pub(super) fn may_be_placed(&self, front: &FrontKey) -> bool {
        let Some(entry) = self.fronts.get(front) else { return false };
        self.next_owner(entry).is_none_or(|next| self.has_room(front, next, false))
    }

    fn next_owner(&self, entry: &Front) -> Option<Claim> {
        let able = |claim: &&Claim| self.port(claim.index).is_some_and(|port| !port.barred);
        entry.claims.iter().find(able).copied()
    }

    /// Whether one more frontend of the same family fits in its map. Claimed addresses leave a part
    /// of it to others, but for those that only move.
    fn has_room(&self, front: &FrontKey, next: Claim, moved: bool) -> bool {
        let capacity = self.capacity.frontends;
        let leave = if self.is_claimed(next) && !moved { capacity / NOT_CLAIMED } else { 0 };
        self.owned[family_index(&front.addr())] < capacity - leave
    }

    /// Whether it is at an address that whoever wrote the Service has chosen: nobody but him counts
    /// how many there are. The cluster hands out clusterIPs and node ports.
    fn is_claimed(&self, claim: Claim) -> bool {
        let chosen = matches!(claim.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer);
        chosen && self.has_address(claim.index)
    }

    fn set_owner(&mut self, front: FrontKey, owner: Option<Claim>, work: &mut Work) {
        let family = family_index(&front.addr());
        let Some(entry) = self.fronts.get_mut(&front) else { return };
        let before = std::mem::replace(&mut entry.owner, owner);
        if let Some(before) = before {
            self.owned[family] -= 1;
            if self.has_address(before.index) {
                self.addresses.release(&front, before.kind);
            }
            work.dirty.insert(before.index);
            if let Some(port) = self.port_mut(before.index) {
                port.owned.remove(&front);
            }
        }
        if let Some(owner) = owner {
            self.owned[family] += 1;
            if self.has_address(owner.index) {
                self.addresses.hold(&front, owner.kind);
            }
            work.dirty.insert(owner.index);
            if let Some(port) = self.port_mut(owner.index) {
                port.owned.insert(front);
            }
        }
    }

    /// Whether a service port makes something of its addresses. The self-test does not: whoever uses
    /// that address in spite of what it is for reaches all of its other ports.
    fn has_address(&self, index: PortIndex) -> bool {
        self.port(index).is_some_and(|port| !self_test::is(&port.key))
    }

    pub(super) fn frontend_change(&mut self, front: FrontKey, batch: &mut Batch) {
        let Some(owner) = self.fronts.get(&front).map(|entry| entry.owner) else { return };
        let word = owner.and_then(|owner| {
            let table = self.port(owner.index)?.table.as_ref()?;
            Some(front.guarded_word(table.id, owner.kind, table.is_guarded))
        });
        let Some(entry) = self.fronts.get_mut(&front) else { return };
        if entry.programmed != word {
            entry.programmed = word;
            batch.frontends.push(match word {
                None => FrontendChange::Delete(front),
                Some(word) => FrontendChange::Put(front, word),
            });
        }
        if entry.claims.is_empty() && entry.owner.is_none() {
            self.fronts.remove(&front);
        }
    }

    pub(super) fn conflict(&mut self, front: FrontKey, batch: &mut Batch) {
        let entry = self.fronts.get(&front);
        let claims = entry.map_or(&[][..], |entry| &entry.claims);
        if claims.len() < 2 {
            self.conflicts.remove(&front);
            return;
        }
        let claims: Vec<PortIndex> = claims.iter().map(|claim| claim.index).collect();
        let owner = entry.and_then(|entry| entry.owner).map(|owner| owner.index);
        let told = self.conflicts.get(&front);
        if told == Some(&claims) {
            return;
        }
        // Of those that were told, only who has to know of another winner is told again.
        let told: HashSet<PortIndex> = match told {
            Some(told) if told.first() == claims.first() => told.iter().copied().collect(),
            _ => HashSet::new(),
        };
        let key = |index: PortIndex| self.port(index).map(|port| port.key.clone());
        let losers = claims.iter().filter(|&index| Some(*index) != owner && !told.contains(index));
        let losers: Vec<_> = losers.filter_map(|&index| key(index)).collect();
        if let Some(winner) = owner.and_then(key)
            && !losers.is_empty()
        {
            let winner = Box::new(winner);
            batch.reports.push(Report::Conflict { frontend: front, winner, losers });
        }
        self.conflicts.insert(front, claims);
    }
}
