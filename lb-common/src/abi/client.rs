//! Clients: which backend a client of a service port with session affinity has, and what is known of
//! a client before it has an address.

use super::{BackendId, ServicePortId};

/// Key of `AFFINITY`, 20 bytes: each service port and each client has one backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The service port.
    pub service_port: ServicePortId,
    /// The client's address, IPv4 in the first word and zeros behind it; or [`client_of_cookie`].
    pub client: [u32; 4],
}

const _: () = assert!(size_of::<AffinityKey>() == 20);

/// Value of `AFFINITY`, 16 bytes. It counts while it is younger than the timeout and the backend is
/// still the service port's, of that generation and in the set at hand: a record torn by
/// the reuse of its element is caught by that or names a backend that may be chosen anyway.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityRecord {
    /// The backend.
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// When a connection was last sent to it, in seconds of the monotonic clock.
    pub seen_s: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<AffinityRecord>() == 16);

/// A client of which only the network namespace is known. No unicast address looks like it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
pub const fn client_of_cookie(cookie: u64) -> [u32; 4] {
    [cookie as u32, (cookie >> 32) as u32, u32::MAX, u32::MAX]
}

/// What is known of a network namespace.
pub struct NetnsFlags;

impl NetnsFlags {
    /// The socket engine leaves its sockets alone: it redirects its own traffic, as service meshes
    /// do, and whoever does that wants to see the VIP.
    pub const BYPASS: u32 = 1;
}

/// Value of `NETNS`, 24 bytes, by the cookie of a network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsRecord {
    /// Its IPv4 address, network order; 0 if unknown.
    pub v4: u32,
    /// See [`NetnsFlags`].
    pub flags: u32,
    /// Its IPv6 address, network order; zeros if unknown.
    pub v6: [u32; 4],
}

const _: () = assert!(size_of::<NetnsRecord>() == 24);

/// Number of elements of `BYPASS_CGROUPS`.
pub const BYPASS_CGROUPS: u32 = 8;

/// Element of `BYPASS_CGROUPS`: sockets of processes in or below this cgroup are left alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BypassCgroup {
    /// The cgroup's id; 0 ends the list.
    pub id: u64,
    /// Its depth below the root of the hierarchy, which is 0.
    pub level: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<BypassCgroup>() == 16);
