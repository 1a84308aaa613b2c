//! Backends: where a connection goes. An id belongs to one (service port, endpoint).

use super::ServicePortId;

/// Dense id of a backend; 0 is none.
pub type BackendId = u32;

/// Bits of a backend's flags.
pub struct BackendFlags;

impl BackendFlags {
    /// The entry is in use.
    pub const PRESENT: u16 = 1;
    /// A UDP flow may stay on it: it is serving (contract U-4), or ready all the same (E-20).
    pub const SERVING: u16 = 1 << 1;
    /// Member of the cluster set.
    pub const IN_CLUSTER: u16 = 1 << 2;
    /// Member of the local set.
    pub const IN_LOCAL: u16 = 1 << 3;
    /// On this node (contract E-13).
    pub const LOCAL: u16 = 1 << 4;
    /// Terminating.
    pub const TERMINATING: u16 = 1 << 5;
    /// Ready.
    pub const READY: u16 = 1 << 6;
    /// The address is IPv6.
    pub const IPV6: u16 = 1 << 7;
}

/// The part of a backend that changes while it is visible, and what must be read with it: port
/// (network order) in bits 0..16, flags in 16..32, generation in 32..64.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BackendWord(pub u64);

#[expect(clippy::cast_possible_truncation, reason = "fields of one word")]
impl BackendWord {
    /// A word; `port` in network order.
    pub const fn new(port: u16, flags: u16, generation: u32) -> Self {
        Self(port as u64 | ((flags as u64) << 16) | ((generation as u64) << 32))
    }

    /// The port, network order.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }

    /// The flags, see [`BackendFlags`].
    #[inline(always)]
    pub const fn flags(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(self, flags: u16) -> bool {
        self.flags() & flags == flags
    }

    /// Counts the uses of this id, so that a record can tell that the id was given to another.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Element of `BACKENDS`, 32 bytes. Everything but [`Backend::word`]'s flags is fixed while the id
/// can be reached; an id is reused only after a grace period.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend {
    /// Address, network order; IPv4 in the first word, zeros behind it.
    pub addr: [u32; 4],
    /// Port, flags, generation; see [`BackendWord`].
    pub word: u64,
    /// The service port it belongs to.
    pub service_port: ServicePortId,
    /// Interned zone, 0 for none; for tools.
    pub zone: u16,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<Backend>() == 32 && align_of::<Backend>() == 8);
