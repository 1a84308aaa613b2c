//! Fragments: the ports that the first one of a datagram had, for those that follow without.

use super::{Ip, Mix};

/// Key of `FRAGMENTS4` and `FRAGMENTS6`: what all fragments of a datagram share, before translation
/// (RFC 791 section 3.2, RFC 8200 section 4.5). 16 or 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<const N: usize> {
    /// Source address.
    pub src: Ip<N>,
    /// Destination address.
    pub dst: Ip<N>,
    /// Identification, as it lies in the packet; IPv4 has 16 bits of it.
    pub id: u32,
    /// IP protocol number; 0 for IPv6, where only the first fragment has to tell.
    pub proto: u8,
    /// See [`super::FlowKind`].
    pub kind: u8,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<FragmentKey<1>>() == 16 && size_of::<FragmentKey<4>>() == 40);

/// Value of `FRAGMENTS4` and `FRAGMENTS6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRecord {
    /// Source port, network order.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol number of the transport.
    pub proto: u32,
    /// [`FragmentRecord::tag_for`]: an element may be reused while it is read.
    pub tag: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<FragmentRecord>() == 16);

impl FragmentRecord {
    /// The tag of a record with these contents under `key`.
    #[inline(always)]
    pub fn tag_for<const N: usize>(&self, key: &FragmentKey<N>) -> u32 {
        let ports = ((self.sport as u64) << 16) | self.dport as u64;
        Mix::new()
            .ip(&key.src)
            .ip(&key.dst)
            .word(key.id as u64 | ((key.proto as u64) << 32) | ((key.kind as u64) << 40))
            .word(ports | ((self.proto as u64) << 32))
            .tag()
    }
}
