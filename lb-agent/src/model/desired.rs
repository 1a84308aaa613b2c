//! What policy hands to plan: for each service port, its frontends and the endpoints that matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Cidr;

/// Transport protocol of a service port (contract section 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// IP family; the two are independent (contract G-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Identity of a service port (contract S-7) in one family: namespace, Service name, port *name*,
/// protocol. The port number is an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub service: Arc<str>,
    /// Name of the port, empty for an unnamed one (E-9).
    pub port: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

/// One address and port at which a service port is reached, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The VIP, canonical, of the family of its key; of a [`FrontendKind::NodePort`] the unspecified
    /// address of that family, because it is reached at every eligible address of the node (C-2).
    pub addr: IpAddr,
    /// The port, never 0.
    pub port: u16,
    /// What it is to the Service.
    pub kind: FrontendKind,
}

impl Frontend {
    /// The frontend of a clusterIP.
    pub const fn cluster_ip(addr: IpAddr, port: u16) -> Self {
        Self { addr, port, kind: FrontendKind::ClusterIp }
    }

    /// The frontend of a node port in `family`.
    pub const fn node_port(family: Family, port: u16) -> Self {
        let addr = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { addr, port, kind: FrontendKind::NodePort }
    }
}

/// What a frontend is to its Service. All but the clusterIP are external: `externalTrafficPolicy`
/// governs them, whoever asks (T-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress` (S-9).
    LoadBalancer,
    /// `spec.ports[].nodePort` (S-14).
    NodePort,
}

impl FrontendKind {
    /// Whether `externalTrafficPolicy` governs it.
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

/// An endpoint that a service port may send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Address, of the family of its key; never loopback, link-local, multicast or unspecified.
    pub addr: IpAddr,
    /// Port, host order, never 0.
    pub port: u16,
    /// [`lb_common::abi::BackendFlags`]: membership of the sets and conditions.
    pub flags: u16,
}

/// Everything plan needs to know of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    /// Creation time of the Service in unix seconds, `i64::MAX` if unknown: the oldest Service
    /// wins an address that two claim, then the smaller namespace and name (contract S-15).
    pub created_s: i64,
    /// Its frontends, sorted, without duplicates.
    pub frontends: Vec<Frontend>,
    /// Its endpoints, sorted by (address, port), without duplicates (E-15, E-17): those in a set,
    /// and those that only keep what they have (serving, U-4).
    pub backends: Vec<DesiredBackend>,
    /// `internalTrafficPolicy: Local` (S-10): clients of the clusterIP use the local set.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local` as far as it is effective (S-10): clients from outside this
    /// node use the local set of external frontends; those on it the cluster set (V-9, V-10).
    pub external_local: bool,
    /// An empty local set drops, whichever policy led to it, because others serve elsewhere (V-4,
    /// V-8); else it rejects.
    pub drop_when_no_local: bool,
    /// Session affinity timeout in seconds, 1 to 86,400, if it has affinity.
    pub affinity_timeout_s: Option<u32>,
    /// Who may use the addresses of its load balancer, of the family of its key, sorted, none within
    /// another; where there is none, everybody.
    pub source_ranges: Arc<[Cidr]>,
}
