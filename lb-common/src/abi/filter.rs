//! Filters: one load tells most packets that they are no Service's.
//!
//! A bit set, indexed by a hash of the destination address. The agent sets the bits of every VIP
//! before its frontends; none is cleared while the maps live, because flows of a deleted Service
//! go on. A bit set by another address only costs the lookups that it would have saved.

use super::{Ip, Mix};

/// Number of 64-bit words of `VIP_FILTER`: 2^20 bits, 128 KiB.
pub const FILTER_WORDS: u32 = 1 << 14;

/// Index of the word and mask of the bit of an address.
#[inline(always)]
pub fn filter_bit<const N: usize>(ip: &Ip<N>) -> (u32, u64) {
    let hash = Mix::new().ip(ip).tag() >> 1;
    ((hash >> 6) & (FILTER_WORDS - 1), 1 << (hash & 63))
}

/// Number of elements of `FLOW_SOURCES`: 2^16 flags, 64 KiB.
pub const FLOW_SOURCES: u32 = 1 << 10;
/// Flags in an element: each a byte, because two CPUs that store to one word at once would lose one.
pub const FLOW_SOURCE_FLAGS: usize = 64;

/// Element and place of the flag of a backend's address: not 0 once a flow was made to it. Two
/// addresses may share one.
#[inline(always)]
pub fn flow_source<const N: usize>(ip: &Ip<N>) -> (u32, usize) {
    let hash = Mix::new().ip(ip).tag() >> 1;
    ((hash >> 6) & (FLOW_SOURCES - 1), (hash & 63) as usize)
}

/// Number of elements of `FLOW_PORTS`.
pub const FLOW_PORTS: u32 = 1 << 12;

/// Element of `FLOW_PORTS` of an interface: not 0 once a flow was made on it. Two interfaces may
/// share one.
#[inline(always)]
pub const fn flow_port(ifindex: u32) -> u32 {
    ifindex & (FLOW_PORTS - 1)
}
