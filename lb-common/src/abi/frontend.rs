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

/// Value of `FRONTENDS4` and `FRONTENDS6`: service port id in the low half, key tag in the high one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendWord(pub u64);

impl FrontendWord {
    /// The word to store under `key`.
    #[inline(always)]
    pub fn new<const N: usize>(key: &FrontendKey<N>, id: ServicePortId) -> Self {
        Self(((key.tag() as u64) << 32) | id as u64)
    }

    /// The service port id, if the word belongs to `key`: a preallocated hash may return the value
    /// of another key whose element was reused while it was read.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "two halves of one word")]
    pub fn id_for<const N: usize>(self, key: &FrontendKey<N>) -> Option<ServicePortId> {
        if (self.0 >> 32) as u32 == key.tag() { Some(self.0 as u32) } else { None }
    }

    /// The service port id without a check, for user space, which reads a map that only it writes.
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn id(self) -> ServicePortId {
        self.0 as u32
    }
}
