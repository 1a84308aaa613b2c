//! Endpoints of a slice, packed: a cluster has many.

use std::fmt;
use std::net::IpAddr;

use super::Family;

/// An endpoint of an EndpointSlice.
///
/// What other nodes it may be on is not kept: contract E-13 only asks whether it is on this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address, of the family of its slice; never loopback, link-local, multicast or unspecified.
    pub addr: IpAddr,
    /// Conditions, place, and what hints say of this node.
    pub conditions: Conditions,
    /// Which of its slice's [`super::Slice::zone_sets`] its hints name, from 1; 0 without zone hints
    /// (E-14). Zones are kept as they are, because the zone of this node may change (T-11).
    pub zones: u8,
}

/// The endpoints of a slice, all of one family: 6 bytes for one of IPv4, 18 for one of IPv6.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints(ByFamily);

#[derive(Clone, PartialEq, Eq)]
enum ByFamily {
    V4(Box<[Packed<4>]>),
    V6(Box<[Packed<16>]>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed<const N: usize> {
    addr: [u8; N],
    conditions: Conditions,
    zones: u8,
}

const _: () = assert!(size_of::<Packed<4>>() == 6 && size_of::<Packed<16>>() == 18);

impl Endpoints {
    /// The endpoints of `family` among these.
    pub fn new(family: Family, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let endpoints = endpoints.into_iter();
        Self(match family {
            Family::V4 => ByFamily::V4(endpoints.filter_map(pack_v4).collect()),
            Family::V6 => ByFamily::V6(endpoints.filter_map(pack_v6).collect()),
        })
    }

    /// Their family.
    pub fn family(&self) -> Family {
        match self.0 {
            ByFamily::V4(_) => Family::V4,
            ByFamily::V6(_) => Family::V6,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            ByFamily::V4(endpoints) => endpoints.len(),
            ByFamily::V6(endpoints) => endpoints.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in the order of the slice.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, v6) = match &self.0 {
            ByFamily::V4(endpoints) => (&endpoints[..], &[][..]),
            ByFamily::V6(endpoints) => (&[][..], &endpoints[..]),
        };
        v4.iter().map(unpack).chain(v6.iter().map(unpack))
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn pack_v4(Endpoint { addr, conditions, zones }: Endpoint) -> Option<Packed<4>> {
    match addr {
        IpAddr::V4(v4) => Some(Packed { addr: v4.octets(), conditions, zones }),
        IpAddr::V6(_) => None,
    }
}

fn pack_v6(Endpoint { addr, conditions, zones }: Endpoint) -> Option<Packed<16>> {
    match addr {
        IpAddr::V6(v6) => Some(Packed { addr: v6.octets(), conditions, zones }),
        IpAddr::V4(_) => None,
    }
}

fn unpack<const N: usize>(packed: &Packed<N>) -> Endpoint
where
    IpAddr: From<[u8; N]>,
{
    let &Packed { addr, conditions, zones } = packed;
    Endpoint { addr: addr.into(), conditions, zones }
}

/// Conditions of an endpoint (E-12), whether it is on this node (E-13), and what hints say of this
/// node (E-14), as bits. The order of values is that of preference among records of the same
/// address and port that both terminate, or both do not (E-15).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conditions(u8);

impl Conditions {
    /// `ready`; absent means true.
    pub const READY: Self = Self(1 << 7);
    /// `serving`; absent means true.
    pub const SERVING: Self = Self(1 << 6);
    /// `terminating`; absent means false.
    pub const TERMINATING: Self = Self(1 << 5);
    /// `nodeName` is this node's name.
    pub const LOCAL: Self = Self(1 << 4);
    /// Hints name nodes.
    pub const FOR_NODES: Self = Self(1 << 3);
    /// Hints name this node.
    pub const FOR_THIS_NODE: Self = Self(1 << 2);
    /// Hints name zones. Worked out from [`Endpoint::zones`] where endpoints are joined.
    pub const FOR_ZONES: Self = Self(1 << 1);
    /// Hints name this node's zone, likewise.
    pub const FOR_THIS_ZONE: Self = Self(1);

    /// These, and `other` if `on`.
    #[must_use]
    pub const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { self }
    }

    /// Whether all of `other` hold.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The last resort: it terminates, but serves still (T-2).
    pub const fn drains(self) -> bool {
        self.has(Self(Self::SERVING.0 | Self::TERMINATING.0))
    }

    /// Whether new connections may go there at all (T-5).
    pub const fn counts(self) -> bool {
        self.has(Self::READY) || self.drains()
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::READY, "ready"),
            (Self::SERVING, "serving"),
            (Self::TERMINATING, "terminating"),
            (Self::LOCAL, "local"),
            (Self::FOR_NODES, "for-nodes"),
            (Self::FOR_THIS_NODE, "for-this-node"),
            (Self::FOR_ZONES, "for-zones"),
            (Self::FOR_THIS_ZONE, "for-this-zone"),
        ];
        f.debug_set().entries(names.iter().filter(|(c, _)| self.has(*c)).map(|(_, n)| n)).finish()
    }
}
