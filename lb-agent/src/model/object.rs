//! The objects themselves. All text is shared ([`Arc<str>`]), all addresses are canonical.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Family, Protocol};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, never empty.
    pub namespace: Arc<str>,
    /// Name, never empty.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace`/`name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service that counts: one with a clusterIP, not an `ExternalName`, not another proxy's
/// (contract S-1 to S-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Creation time in unix seconds, `i64::MAX` if unknown (S-15).
    pub created_s: i64,
    /// The clusterIP of each family; without one the Service does not exist in it (S-5, S-6).
    pub cluster_ips: ClusterIps,
    /// Its ports, no two of the same name and protocol, no two of the same number and protocol.
    pub ports: Box<[ServicePort]>,
    /// `internalTrafficPolicy: Local` (S-10).
    pub internal_local: bool,
    /// Timeout of `sessionAffinity: ClientIP` in seconds, 1 to 86,400 (A-1, S-13).
    pub affinity_timeout_s: Option<u32>,
}

/// At most one clusterIP per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterIps {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl ClusterIps {
    /// The clusterIP of `family`.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// A port of a Service; name and protocol are its identity (S-7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, empty for an unnamed one.
    pub name: Arc<str>,
    /// Number, host order, never 0.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// An EndpointSlice that counts: of an IP family and labelled with a Service (E-2, E-3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Name of the Service it belongs to, in its own namespace.
    pub service: Arc<str>,
    /// Family of all of its endpoints.
    pub family: Family,
    /// Its ports; each endpoint serves all of them (E-8).
    pub ports: Box<[SlicePort]>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
}

impl Slice {
    /// The Service it belongs to.
    pub fn service_key(&self) -> ObjectKey {
        ObjectKey { namespace: self.key.namespace.clone(), name: self.service.clone() }
    }
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; matches that of a Service port (E-9).
    pub name: Arc<str>,
    /// Number, host order, never 0.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// An endpoint of an EndpointSlice: 18 bytes, because a cluster has many.
///
/// What other nodes it may be on is not kept: contract E-13 only asks whether it is on this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address, of the family of its slice; never loopback, link-local, multicast or unspecified.
    pub addr: IpAddr,
    /// Conditions and place.
    pub conditions: Conditions,
}

const _: () = assert!(size_of::<Endpoint>() <= 18);

/// Conditions of an endpoint (E-12) and whether it is on this node (E-13), as bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conditions(u8);

impl Conditions {
    /// `nodeName` is this node's name.
    pub const LOCAL: Self = Self(1);
    /// `terminating`; absent means false.
    pub const TERMINATING: Self = Self(1 << 1);
    /// `serving`; absent means true.
    pub const SERVING: Self = Self(1 << 2);
    /// `ready`; absent means true.
    pub const READY: Self = Self(1 << 3);

    /// These, and `other` if `on`.
    #[must_use]
    pub const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { self }
    }

    /// Whether all of `other` hold.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::READY, "ready"),
            (Self::SERVING, "serving"),
            (Self::TERMINATING, "terminating"),
            (Self::LOCAL, "local"),
        ];
        f.debug_set().entries(names.iter().filter(|(c, _)| self.has(*c)).map(|(_, n)| n)).finish()
    }
}

/// What is used of the Node object of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, empty without one (T-10).
    pub zone: Arc<str>,
    /// Addresses of type `InternalIP` and `ExternalIP`, canonical.
    pub addresses: Box<[IpAddr]>,
    /// It has a deletion timestamp, or is gone (H-4).
    pub deleting: bool,
    /// It has the taint `ToBeDeletedByClusterAutoscaler` (H-4).
    pub removal_planned: bool,
}
