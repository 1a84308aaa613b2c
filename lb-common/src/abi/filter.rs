//! Filters: one load tells most packets that they are no Service's.
//!
//! Two bits for each hash of a destination address: whether it may be a VIP, and whether it may be an
//! address of this node, where only some ports are ours ([`node_port_place`]). The agent sets them
//! before anything that they stand for; none is cleared while the maps live, because flows of a
//! deleted Service go on. A bit set by another address only costs the lookups that it would have
//! saved.

use super::{Ip, Mix, proto};

/// Number of 64-bit words of `VIP_FILTER`: 2^19 pairs of bits, 128 KiB.
pub const FILTER_WORDS: u32 = 1 << 14;
/// The bit of an address that may be a VIP: whatever the port, its packets are looked up.
pub const FILTER_VIP: u32 = 1;
/// The bit of an address that may be this node's: packets to a `NodePort`, or to a port that SNAT
/// uses, are looked up.
pub const FILTER_NODE: u32 = 2;

/// Index of the word, and by how many bits to shift it down, for the pair of bits of an address.
#[inline(always)]
pub fn filter_place<const N: usize>(ip: &Ip<N>) -> (u32, u32) {
    let hash = Mix::new().ip(ip).tag() >> 1;
    ((hash >> 5) & (FILTER_WORDS - 1), (hash & 31) << 1)
}

/// Number of 64-bit words of `NODE_PORTS`: a bit for each port of TCP, UDP and SCTP.
pub const NODE_PORT_WORDS: u32 = 3 << 10;

/// Index of the word and mask of the bit of a port, in host order; none for other protocols.
#[inline(always)]
pub const fn node_port_place(protocol: u8, port: u16) -> Option<(u32, u64)> {
    let first = match protocol {
        proto::TCP => 0,
        proto::UDP => 1 << 10,
        proto::SCTP => 2 << 10,
        _ => return None,
    };
    Some((first + ((port as u32) >> 6), 1 << (port & 63)))
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
