//! Interfaces: what arrives by them, and under which address packets leave by them.

use super::{Ip, Mix};

/// What an interface is. Bits from 8 on are for tools: what became of XDP there.
pub struct InterfaceFlags;

impl InterfaceFlags {
    /// An uplink or an overlay: what arrives by it comes from outside the node.
    pub const OFF_NODE: u32 = 1;
    /// What arrives by it was sent by a pod of this node, to a local detector that goes by interfaces
    /// (contract 4.3).
    pub const LOCAL_POD: u32 = 1 << 1;
    /// An XDP program may send packets out of it.
    pub const XDP: u32 = 1 << 2;
    /// Its packets have no Ethernet header.
    pub const L3: u32 = 1 << 3;
    /// Pods of this node are behind it: it is the port of one, or the bridge of such a port.
    pub const PODS: u32 = 1 << 4;
}

/// What decisions on a packet need to know of its interface: [`InterfaceFlags`] in the low half, the
/// group in the high one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceWord(pub u64);

impl InterfaceWord {
    /// That of an interface whose value is being replaced again and again: what arrives by it is not
    /// trusted as a pod's.
    pub const TORN: Self = Self::new(InterfaceFlags::OFF_NODE, 0);

    /// A word.
    #[inline(always)]
    pub const fn new(flags: u32, group: u32) -> Self {
        Self(flags as u64 | ((group as u64) << 32))
    }

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags as u64 != 0
    }

    /// Index of its master, or its own.
    #[inline(always)]
    pub const fn group(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Elements of `SOURCES`, a word each: a tick in the high half, and in the low one the mix of a source from
/// outside that is no pod's of this node, as its routes said in that tick. A power of two.
pub const SOURCES: u32 = 1 << 12;

/// Addresses of each family that an interface has for SNAT.
pub const SNAT_ADDRESSES: usize = 4;

/// Which of an interface's addresses serves at a turn: where it has not as many, the first two do in turn,
/// or the only one. Zeros if it has none; `at` tells those at an index below [`SNAT_ADDRESSES`].
#[inline(always)]
pub fn address_in_turn<const N: usize>(turn: u32, at: impl Fn(usize) -> Ip<N>) -> Ip<N> {
    let turn = turn as usize;
    for index in [turn & (SNAT_ADDRESSES - 1), turn & (SNAT_ADDRESSES / 2 - 1)] {
        let ip = at(index);
        if ip != [0; N] {
            return ip;
        }
    }
    at(0)
}

const _: () = assert!(SNAT_ADDRESSES == 4);

/// Value of `INTERFACES`, by interface index: 96 bytes. Read for new flows only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// See [`InterfaceFlags`].
    pub flags: u32,
    /// Index of its master, or its own: packets may leave by any interface of a group.
    pub group: u32,
    /// IPv4 addresses for packets that leave by it, network order; 0 ends the list.
    pub v4: [u32; SNAT_ADDRESSES],
    /// The same for IPv6.
    pub v6: [[u32; 4]; SNAT_ADDRESSES],
    /// Largest IP packet that it sends, in bytes.
    pub mtu: u32,
    /// [`Interface::tag_for`] its index and all of the above.
    pub tag: u32,
}

const _: () = assert!(size_of::<Interface>() == 96);

impl Interface {
    /// The tag of these contents for an interface: a value torn by its replacement is not believed.
    #[inline(always)]
    pub fn tag_for(&self, ifindex: u32) -> u32 {
        let mut mix = Self::mix(ifindex, self.flags, self.group, self.mtu).ip(&self.v4);
        for ip in &self.v6 {
            mix = mix.ip(ip);
        }
        mix.tag()
    }

    /// What [`Interface::tag_for`] begins with; the addresses follow, IPv4 first.
    #[inline(always)]
    pub fn mix(ifindex: u32, flags: u32, group: u32, mtu: u32) -> Mix {
        let pair = |low: u32, high: u32| (low as u64) | ((high as u64) << 32);
        Mix::new().word(pair(ifindex, flags)).word(pair(group, mtu))
    }

    /// Whether the value is whole and of that interface.
    #[inline(always)]
    pub fn is_for(&self, ifindex: u32) -> bool {
        self.tag == self.tag_for(ifindex)
    }
}
