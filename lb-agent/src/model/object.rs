//! The objects themselves. All text is shared ([`Arc<str>`]), all addresses are canonical.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Cidr, Endpoints, Family, Protocol};

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
    /// What it has beside clusterIPs and node ports; most Services have nothing of it.
    pub external: Option<Box<External>>,
}

// A cluster has tens of thousands of each.
const _: () = assert!(size_of::<Service>() <= 104 && size_of::<ServicePort>() <= 24);
const _: () = assert!(size_of::<Slice>() <= 112);

impl Service {
    /// `externalTrafficPolicy: Local`, where it is effective (S-10).
    pub fn external_local(&self) -> bool {
        self.external.as_ref().is_some_and(|external| external.local)
    }

    /// `spec.externalIPs` of a family.
    pub fn external_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        of_family(self.external.as_ref().map(|external| &*external.ips), family)
    }

    /// Load balancer addresses of a family that packets arrive with (S-9).
    pub fn load_balancer_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        of_family(self.external.as_ref().map(|external| &*external.load_balancer_ips), family)
    }

    /// Who may use the load balancer's addresses of a family: if there is any range, those in one
    /// of them; else everybody.
    pub fn source_ranges(&self, family: Family) -> impl Iterator<Item = Cidr> {
        let all = self.external.as_ref().map_or(&[][..], |external| &external.source_ranges);
        all.iter().copied().filter(move |range| range.family() == family)
    }

    /// Where the number of local endpoints is to be told (S-11).
    pub fn health_check_node_port(&self) -> Option<u16> {
        let port = self.external.as_ref().map(|external| external.health_check_node_port);
        port.filter(|port| *port != 0)
    }
}

fn of_family(addresses: Option<&[IpAddr]>, family: Family) -> impl Iterator<Item = IpAddr> {
    let all = addresses.unwrap_or_default().iter().copied();
    all.filter(move |addr| Family::of(*addr) == family)
}

/// How a Service is reached beside its clusterIPs and node ports, of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// `externalTrafficPolicy: Local`, where it is effective (S-10).
    pub local: bool,
    /// `spec.externalIPs`, sorted; none where they are switched off.
    pub ips: Box<[IpAddr]>,
    /// Addresses of `status.loadBalancer.ingress` of mode `VIP`, sorted (S-9).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges`, sorted.
    pub source_ranges: Box<[Cidr]>,
    /// `spec.healthCheckNodePort` where it is used (S-11), else 0.
    pub health_check_node_port: u16,
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

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether `addr` is one of them.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.of(Family::of(addr)) == Some(addr)
    }
}

/// A port of a Service; name and protocol are its identity (S-7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, empty for an unnamed one.
    pub name: Arc<str>,
    /// Number, host order, never 0.
    pub port: u16,
    /// `nodePort`, 0 for none (S-14).
    pub node_port: u16,
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
    /// Its ports; each endpoint serves all of them (E-8).
    pub ports: Box<[SlicePort]>,
    /// Its endpoints, all of one family.
    pub endpoints: Endpoints,
    /// The sets of zones that its endpoints' hints name; see [`super::Endpoint::zones`].
    pub zone_sets: Box<[ZoneSet]>,
}

/// Zones that hints name, sorted (E-14).
pub type ZoneSet = Box<[Arc<str>]>;

impl Slice {
    /// Family of all of its endpoints.
    pub fn family(&self) -> Family {
        self.endpoints.family()
    }

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
