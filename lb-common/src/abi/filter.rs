//! The VIP filter: one load tells most packets that they are no Service's.
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

/// Number of elements of `FLOW_PORTS`.
pub const FLOW_PORTS: u32 = 1 << 12;

/// Element of `FLOW_PORTS` of an interface: not 0 once a flow was made on it. Two interfaces may
/// share one.
#[inline(always)]
pub const fn flow_port(ifindex: u32) -> u32 {
    ifindex & (FLOW_PORTS - 1)
}
