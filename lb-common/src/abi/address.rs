//! Addresses that mean something by themselves, whatever the port; and the ranges that Services get
//! theirs from.

use super::{Ip, Mix};

/// What an address is.
pub struct AddressFlags;

impl AddressFlags {
    /// The clusterIP of a Service: ports that it does not define are rejected (V-12).
    pub const CLUSTER_IP: u32 = 1;
    /// An address of this node on which `NodePort`s are served (C-2, N-1).
    pub const NODE: u32 = 1 << 1;
    /// The same for sockets of the node's own network namespace only: a loopback address means
    /// another machine in every other one.
    pub const LOOPBACK: u32 = 1 << 2;
    /// A load balancer VIP or an externalIP.
    pub const VIP: u32 = 1 << 3;

    /// An address of one of this node's interfaces, loopback aside.
    pub const HOST: u32 = 1 << 4;

    /// Whether an address with these flags is a Service's and not the node's own as well, whose
    /// business is then the node's (C-4).
    #[inline(always)]
    pub const fn is_services_alone(flags: u32) -> bool {
        flags & (Self::CLUSTER_IP | Self::VIP) != 0
            && flags & (Self::NODE | Self::LOOPBACK | Self::HOST) == 0
    }
}

/// Value of `ADDRESSES4` and `ADDRESSES6`: [`AddressFlags`] in the low half, tag of the address in
/// the high one, for the same reason as in [`super::FrontendWord`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressWord(pub u64);

impl AddressWord {
    /// The word to store under `ip`.
    #[inline(always)]
    pub fn new<const N: usize>(ip: &Ip<N>, flags: u32) -> Self {
        Self(((Mix::new().ip(ip).tag() as u64) << 32) | flags as u64)
    }

    /// The flags, if the word belongs to `ip`; none otherwise.
    #[inline(always)]
    pub fn flags_for<const N: usize>(self, ip: &Ip<N>) -> u32 {
        if self.0 >> 32 == Mix::new().ip(ip).tag() as u64 { self.flags() } else { 0 }
    }

    /// The flags without a check, for user space.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn flags(self) -> u32 {
        self.0 as u32
    }
}

/// Number of elements of `SERVICE_CIDRS4` and `SERVICE_CIDRS6`.
pub const SERVICE_CIDRS: u32 = 16;

/// Number of elements of `LOCAL_CIDRS4` and `LOCAL_CIDRS6`.
pub const LOCAL_CIDRS: u32 = 4;

/// Element of `SERVICE_CIDRS4` and `SERVICE_CIDRS6`, a range of `ServiceCIDR` objects (V-13), and of
/// `LOCAL_CIDRS4` and `LOCAL_CIDRS6`, a range of pods' addresses (contract 4.3): 8 or 32 bytes,
/// network order. A zero mask ends the list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr<const N: usize> {
    /// First address.
    pub addr: Ip<N>,
    /// Netmask.
    pub mask: Ip<N>,
}

impl<const N: usize> ServiceCidr<N> {
    /// Whether an address lies in it.
    #[inline(always)]
    pub fn holds(&self, ip: &Ip<N>) -> bool {
        let mut differs = 0;
        for ((ip, mask), addr) in ip.iter().zip(&self.mask).zip(&self.addr) {
            differs |= (ip & mask) ^ addr;
        }
        differs == 0
    }
}

const _: () = assert!(size_of::<ServiceCidr<1>>() == 8 && size_of::<ServiceCidr<4>>() == 32);
