//! What policy hands to plan: for each service port, its frontends and the endpoints that matter.

use std::net::IpAddr;
use std::sync::Arc;

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
    /// The VIP, canonical, of the family of its key.
    pub addr: IpAddr,
    /// The port, never 0.
    pub port: u16,
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
    /// `internalTrafficPolicy: Local` (S-10).
    pub internal_local: bool,
    /// An empty local set drops, because others serve elsewhere (V-4, V-8); else it rejects.
    pub drop_when_no_local: bool,
    /// Session affinity timeout in seconds, 1 to 86,400, if it has affinity.
    pub affinity_timeout_s: Option<u32>,
}
