//! From a frontend to a backend: which service port, which of its sets, which backend of the set.

use crate::abi::{
    Backend, BackendFlags, BackendId, BackendWord, Counter, FactsFlags, FrontendKey, Ip, Scope,
    ServicePortId,
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

/// The service port of a frontend. A preallocated hash may answer with the value of another key
/// whose element was reused meanwhile: the tag tells, and one retry follows.
#[inline(always)]
pub fn service_port<const N: usize, T: FrontendTables<N>>(
    tables: &T,
    key: &FrontendKey<N>,
) -> Option<ServicePortId> {
    if let Some(id) = tables.frontend(key)?.id_for(key) {
        return Some(id);
    }
    let id = tables.frontend(key)?.id_for(key);
    if id.is_none() {
        tables.count(Counter::TornRead);
    }
    id
}

/// The scope that traffic to a clusterIP of this service port uses (T-13).
#[inline(always)]
pub fn internal_scope<T: ServiceTables>(tables: &T, id: ServicePortId) -> Scope {
    if tables.facts(id).flags() & FactsFlags::INTERNAL_LOCAL == 0 {
        Scope::Cluster
    } else {
        Scope::Local
    }
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
