//! From a frontend to a backend: which service port, which of its sets, which backend of the set.

use crate::abi::{
    AddressFlags, AffinityKey, AffinityRecord, Backend, BackendFlags, BackendId, BackendWord,
    Counter, FactsFlags, Found, FrontendFlags, FrontendKey, Ip, Scope, ServiceCidr, ServicePortId,
};
use crate::tables::{FrontendTables, ServiceTables};
use crate::verdict::NoBackend;

/// A backend chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its id.
    pub id: BackendId,
    /// Its address, network order; IPv4 in the first word.
    pub addr: [u32; 4],
    /// Its port, network order.
    pub port: u16,
    /// Its generation.
    pub generation: u32,
}

impl Choice {
    /// The address in the width of its family.
    #[inline(always)]
    pub fn ip<const N: usize>(&self) -> Ip<N> {
        narrow(&self.addr)
    }
}

/// An address of four words in the width of its family.
#[inline(always)]
pub fn narrow<const N: usize>(addr: &[u32; 4]) -> Ip<N> {
    let mut ip = [0; N];
    for (to, from) in ip.iter_mut().zip(addr) {
        *to = *from;
    }
    ip
}

/// An address of a family in four words, zeros behind it.
#[inline(always)]
pub fn widen<const N: usize>(ip: &Ip<N>) -> [u32; 4] {
    let mut addr = [0; 4];
    for (to, from) in addr.iter_mut().zip(ip) {
        *to = *from;
    }
    addr
}

/// What a frontend leads to. A preallocated hash may answer with the value of another key whose
/// element was reused meanwhile: the tag tells, and one retry follows.
#[inline(always)]
pub fn frontend<const N: usize, T: FrontendTables<N>>(
    tables: &T,
    key: &FrontendKey<N>,
) -> Option<Found> {
    if let Some(found) = tables.frontend(key)?.found(key) {
        return Some(found);
    }
    let found = tables.frontend(key)?.found(key);
    if found.is_none() {
        tables.count(Counter::TornRead);
    }
    found
}

/// The frontend that a destination means: an address and port, or else a `NodePort` if it is an
/// address of this node (C-2). `in_node` tells whether the sender is in the node's own network
/// namespace, whose loopback addresses are the node's too.
#[inline(always)]
pub fn destination<const N: usize, T: FrontendTables<N>>(
    tables: &T,
    key: &FrontendKey<N>,
    in_node: impl FnOnce() -> bool,
) -> Option<Found> {
    // To a socket the unspecified address is its own host; here it stands for NodePorts.
    if key.addr.iter().all(|word| *word == 0) {
        return None;
    }
    if let Some(found) = frontend(tables, key) {
        return Some(found);
    }
    let flags = address_flags(tables, &key.addr);
    if flags & AddressFlags::NODE == 0 && !(flags & AddressFlags::LOOPBACK != 0 && in_node()) {
        return None;
    }
    frontend(tables, &FrontendKey::new([0; N], key.port, key.proto))
}

/// What an address is (see [`AddressFlags`]), with one retry as for a frontend; 0 if it is nothing.
#[inline(always)]
pub(crate) fn address_flags<const N: usize, T: FrontendTables<N>>(tables: &T, ip: &Ip<N>) -> u32 {
    let Some(word) = tables.address(ip) else { return 0 };
    match word.flags_for(ip) {
        0 => tables.address(ip).map_or(0, |word| word.flags_for(ip)),
        flags => flags,
    }
}

/// The scope that a client on this node gets: an external destination means every backend to it,
/// whatever the external policy (V-9, V-10, V-c); for a clusterIP the internal one counts (T-13).
#[inline(always)]
pub fn scope_on_node<T: ServiceTables>(tables: &T, found: Found) -> Scope {
    let local = found.flags & FrontendFlags::EXTERNAL == 0
        && tables.facts(found.id).flags() & FactsFlags::INTERNAL_LOCAL != 0;
    if local { Scope::Local } else { Scope::Cluster }
}

/// Chooses a backend for a new connection of a client: the one that it had, where the service port
/// has session affinity, else any.
#[inline(always)]
pub fn choose_for<T: ServiceTables>(
    tables: &T,
    id: ServicePortId,
    scope: Scope,
    client: impl FnOnce() -> [u32; 4],
) -> Result<Choice, NoBackend> {
    let facts = tables.facts(id);
    if facts.flags() & FactsFlags::AFFINITY == 0 {
        return choose(tables, id, scope);
    }
    let key = AffinityKey { service_port: id, client: client() };
    let timeout_s = facts.affinity_timeout_s();
    let held = held_backend(tables, &key, member_of(scope), timeout_s);
    let choice = match tables.backend(held) {
        Some(backend) => chosen(held, &backend),
        None => choose(tables, id, scope)?,
    };
    hold_backend(tables, &key, choice.id, choice.generation);
    Ok(choice)
}

/// The flag of a backend that is in the set of a scope.
#[inline(always)]
const fn member_of(scope: Scope) -> u32 {
    match scope {
        Scope::Cluster => BackendFlags::IN_CLUSTER as u32,
        Scope::Local => BackendFlags::IN_LOCAL as u32,
    }
}

/// The backend that a client has, if it may go on using it; else 0.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "a flag of 16 bits")]
fn held_backend<T: ServiceTables>(
    tables: &T,
    key: &AffinityKey,
    member: u32,
    timeout_s: u32,
) -> BackendId {
    let Some(record) = tables.affinity(key) else { return 0 };
    if tables.seconds().saturating_sub(record.seen_s) >= timeout_s {
        return 0;
    }
    let Some(backend) = tables.backend(record.backend) else { return 0 };
    let word = BackendWord(backend.word);
    let usable = word.generation() == record.generation
        && word.has(BackendFlags::PRESENT | member as u16)
        && backend.service_port == key.service_port;
    if usable { record.backend } else { 0 }
}

/// Notes the backend of a client; its time runs from the last new connection.
#[inline(never)]
fn hold_backend<T: ServiceTables>(
    tables: &T,
    key: &AffinityKey,
    backend: BackendId,
    generation: u32,
) -> bool {
    let record = AffinityRecord { backend, generation, seen_s: tables.seconds(), pad: 0 };
    let held = tables.set_affinity(key, &record);
    if !held {
        tables.count(Counter::AffinityUnrecorded);
    }
    held
}

/// Chooses a backend, each with the same probability.
#[inline(always)]
pub fn choose<T: ServiceTables>(
    tables: &T,
    id: ServicePortId,
    scope: Scope,
) -> Result<Choice, NoBackend> {
    let set = tables.set(scope.index(id));
    let count = set.count();
    if count == 0 {
        return Err(if set.drops_when_empty() { NoBackend::Drop } else { NoBackend::Reject });
    }
    let slot = set.first().wrapping_add(scaled(tables.random(), count));
    let backend_id = tables.slot(slot);
    // A committed set only holds ids of live backends; 0 is what an index out of range reads as.
    let Some(backend) = tables.backend(backend_id) else { return Err(NoBackend::Reject) };
    Ok(chosen(backend_id, &backend))
}

/// Whether a remembered backend may keep what it has: still the same one, and serving (U-4).
#[inline(always)]
pub fn still_serves<T: ServiceTables>(tables: &T, id: BackendId, generation: u32) -> bool {
    let word = tables.backend_word(id);
    word.generation() == generation && word.has(BackendFlags::PRESENT | BackendFlags::SERVING)
}

#[inline(always)]
fn chosen(id: BackendId, backend: &Backend) -> Choice {
    let word = BackendWord(backend.word);
    Choice { id, addr: backend.addr, port: word.port(), generation: word.generation() }
}

/// Scales a random number to 0..count without a division, which the verifier cannot follow.
#[inline(always)]
const fn scaled(random: u32, count: u32) -> u32 {
    ((random as u64).wrapping_mul(count as u64) >> 32) as u32
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In one of the ranges.
    Inside,
    /// In none.
    Outside,
    /// There is no range of this family.
    Unknown,
}

/// Whether an address lies in one of at most `count` ranges; a zero mask ends the list.
#[inline(always)]
pub(crate) fn place_of<const N: usize>(
    ip: &Ip<N>,
    count: u32,
    range: impl Fn(u32) -> Option<ServiceCidr<N>>,
) -> Place {
    let mut place = Place::Unknown;
    for index in 0..count {
        let Some(range) = range(index) else { return place };
        if range.mask.first() == Some(&0) {
            return place;
        }
        if range.holds(ip) {
            return Place::Inside;
        }
        place = Place::Outside;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_scaled_random_number_stays_below_the_count(random in any::<u32>(), count in 1u32..1_000_000) {
            prop_assert!(scaled(random, count) < count);
        }
    }

    #[test]
    fn scaling_reaches_every_index() {
        let count = 7;
        for index in 0..count {
            let random = ((u64::from(index) << 32).div_ceil(u64::from(count))) as u32;
            assert_eq!(scaled(random, count), index);
        }
    }
}
