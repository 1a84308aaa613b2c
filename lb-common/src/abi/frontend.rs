//! Frontends: the address, port and protocol that we match, and the service port they belong to.

use super::{Ip, Mix};

/// Dense id of a service port (one entry of `spec.ports` of one Service in one IP family); 0 is none.
pub type ServicePortId = u32;

/// Key of `FRONTENDS4` and `FRONTENDS6`: 8 or 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<const N: usize> {
    /// The VIP, network order.
    pub addr: Ip<N>,
    /// Its port, network order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

const _: () = assert!(size_of::<FrontendKey<1>>() == 8 && size_of::<FrontendKey<4>>() == 20);

impl<const N: usize> FrontendKey<N> {
    /// A key; `port` in network order.
    #[inline(always)]
    pub const fn new(addr: Ip<N>, port: u16, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }

    /// The tag that the word of this key carries.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        Mix::new().ip(&self.addr).word(((self.port as u64) << 8) | self.proto as u64).tag()
    }
}

/// Bits that a frontend's word carries besides the service port.
pub struct FrontendFlags;

impl FrontendFlags {
    /// An external destination (externalIP, load balancer VIP, `NodePort`): governed by
    /// `externalTrafficPolicy`. Without it a clusterIP, governed by `internalTrafficPolicy` (T-13).
    pub const EXTERNAL: u8 = 1;
    /// Only sources in `SOURCE_RANGES4` or `SOURCE_RANGES6` are let through (V-5, R-1 to R-4).
    pub const RANGES: u8 = 1 << 1;
}

/// Key of `SOURCE_RANGES4` and `SOURCE_RANGES6` (longest prefix match): 12 or 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRangeKey<const N: usize> {
    /// Bits that count, from the service port on: 32 and the prefix of the range.
    pub prefix: u32,
    /// The service port, big endian.
    pub service_port: u32,
    /// The first address of the range, network order.
    pub addr: Ip<N>,
}

const _: () = assert!(size_of::<SourceRangeKey<1>>() == 12 && size_of::<SourceRangeKey<4>>() == 24);

impl<const N: usize> SourceRangeKey<N> {
    /// The key under which a source is looked up.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "at most 160")]
    pub const fn of(id: ServicePortId, addr: Ip<N>) -> Self {
        Self { prefix: 32 + 32 * N as u32, service_port: id.to_be(), addr }
    }
}

/// What a frontend leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The service port.
    pub id: ServicePortId,
    /// See [`FrontendFlags`].
    pub flags: u8,
}

/// Value of `FRONTENDS4` and `FRONTENDS6`: service port id in bits 0..24, [`FrontendFlags`] in
/// 24..32, key tag in the high half.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendWord(pub u64);

impl FrontendWord {
    /// Largest service port id that a word can hold.
    pub const MAX_ID: ServicePortId = (1 << 24) - 1;

    /// The word to store under `key`.
    #[inline(always)]
    pub fn new<const N: usize>(key: &FrontendKey<N>, id: ServicePortId, flags: u8) -> Self {
        let low = (id & Self::MAX_ID) | ((flags as u32) << 24);
        Self(((key.tag() as u64) << 32) | low as u64)
    }

    /// What it leads to, if the word belongs to `key`: a preallocated hash may return the value of
    /// another key whose element was reused while it was read.
    #[inline(always)]
    pub fn found<const N: usize>(self, key: &FrontendKey<N>) -> Option<Found> {
        if self.0 >> 32 == key.tag() as u64 {
            Some(Found { id: self.id(), flags: self.flags() })
        } else {
            None
        }
    }

    /// The service port id without a check, for user space, which reads a map that only it writes.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn id(self) -> ServicePortId {
        self.0 as u32 & Self::MAX_ID
    }

    /// The flags, see [`FrontendFlags`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte of the low half")]
    pub const fn flags(self) -> u8 {
        (self.0 >> 24) as u8
    }
}
