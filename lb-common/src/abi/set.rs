//! Sets: which backends a service port has, committed by one 64-bit store; and its static facts.

use super::ServicePortId;

/// Scopes of a service port: index of its set word is `id * SCOPES + scope`.
pub const SCOPES: u32 = 2;

/// Which of a service port's sets (contract section 2).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The `cluster` list.
    Cluster = 0,
    /// The `local` list, for traffic under a Local policy.
    Local = 1,
}

impl Scope {
    /// Index of the set word in `SETS`.
    #[inline(always)]
    pub const fn index(self, id: ServicePortId) -> u32 {
        id.wrapping_mul(SCOPES).wrapping_add(self as u32)
    }
}

/// Element of `SETS`: bits 0..32 first slot, 32..52 count, 52..58 size class of the Maglev table
/// (0: none), 62 what an empty set means.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetWord(pub u64);

impl SetWord {
    /// Largest number of backends in one set.
    pub const MAX_COUNT: u32 = (1 << 20) - 1;
    const DROP_WHEN_EMPTY: u64 = 1 << 62;

    /// An empty set: new connections are rejected (V-3, V-6).
    pub const REJECT: Self = Self(0);
    /// An empty set: new connections are dropped, because others serve elsewhere (V-4, V-8).
    pub const DROP: Self = Self(Self::DROP_WHEN_EMPTY);

    /// A set of `count` backends whose ids lie in `SLOTS` from `first` on.
    #[inline(always)]
    pub const fn new(first: u32, count: u32) -> Self {
        Self(first as u64 | ((count as u64 & Self::MAX_COUNT as u64) << 32))
    }

    /// Index of the first slot.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn first(self) -> u32 {
        self.0 as u32
    }

    /// Number of backends.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_COUNT
    }

    /// Whether an empty set drops instead of rejecting.
    #[inline(always)]
    pub const fn drops_when_empty(self) -> bool {
        self.0 & Self::DROP_WHEN_EMPTY != 0
    }
}

/// Bits of a facts word.
pub struct FactsFlags;

impl FactsFlags {
    /// The service port exists.
    pub const PRESENT: u32 = 1;
    /// Traffic to the clusterIP uses the local set (`internalTrafficPolicy: Local`).
    pub const INTERNAL_LOCAL: u32 = 1 << 1;
    /// `sessionAffinity: ClientIP`; the timeout is in the word.
    pub const AFFINITY: u32 = 1 << 2;
    /// External destinations use the local set (`externalTrafficPolicy: Local`), except for clients
    /// on this node (V-8 to V-10).
    pub const EXTERNAL_LOCAL: u32 = 1 << 3;
}

/// Element of `FACTS`: flags in the low half, affinity timeout in seconds in the high one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FactsWord(pub u64);

impl FactsWord {
    /// A word; `affinity_timeout_s` is 0 without affinity.
    pub const fn new(flags: u32, affinity_timeout_s: u32) -> Self {
        Self(flags as u64 | ((affinity_timeout_s as u64) << 32))
    }

    /// The flags, see [`FactsFlags`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn flags(self) -> u32 {
        self.0 as u32
    }

    /// The affinity timeout in seconds.
    #[inline(always)]
    pub const fn affinity_timeout_s(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
