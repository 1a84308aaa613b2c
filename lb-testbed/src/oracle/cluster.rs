//! A cluster as the API knows it: objects with all fields that the contract names, as text where the
//! API has text, so that reading it is part of what is decided.

use std::{collections::BTreeMap, fmt, net::IpAddr};

/// Label that hands a Service and its slices to another proxy (S-1, E-5).
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label that takes a Service or a slice away from every proxy (S-2, E-5).
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of a slice that names its Service (E-3).
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a Node that names its zone (T-10).
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// IP family; the two have nothing to do with each other (G-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Transport protocol (section 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All endpoints.
    Cluster,
    /// Endpoints of this node.
    Local,
}

impl Policy {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
}

impl ServiceType {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Creation time, seconds since 1970.
    pub created_s: i64,
    /// Labels.
    pub labels: Labels,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIP`: an address, `None` or empty.
    pub cluster_ip: String,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<String>,
    /// `spec.ipFamilies`; may be empty (S-5).
    pub families: Vec<Family>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<String>,
    /// `status.loadBalancer.ingress`.
    pub ingress: Vec<Ingress>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<String>,
    /// `spec.internalTrafficPolicy`.
    pub internal: Option<Policy>,
    /// `spec.externalTrafficPolicy`.
    pub external: Option<Policy>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds (S-13).
    pub affinity_s: Option<u32>,
    /// `spec.publishNotReadyAddresses`, which no proxy reads (S-12, E-20).
    pub publish_not_ready: bool,
}

/// An entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Name, empty for an unnamed one.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
    /// `nodePort`, 0 for none (S-14).
    pub node_port: u16,
    /// `targetPort`, which no proxy reads (S-12).
    pub target: u16,
}

/// An entry of `status.loadBalancer.ingress` (S-9).
#[derive(Clone, Debug, PartialEq)]
pub struct Ingress {
    /// `ip`, may be empty.
    pub ip: String,
    /// `hostname`, may be empty.
    pub hostname: String,
    /// `ipMode`.
    pub mode: Option<IpMode>,
}

/// `ipMode` of a load balancer's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpMode {
    /// Packets arrive with this address.
    Vip,
    /// Packets arrive with a node's or a pod's address.
    Proxy,
}

/// `addressType` of a slice (E-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// Addresses of a family.
    Ip(Family),
    /// Names.
    Fqdn,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels, [`SERVICE_NAME`] among them.
    pub labels: Labels,
    /// `addressType`.
    pub address_type: AddressType,
    /// `ports`.
    pub ports: Vec<SlicePort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice (E-8).
#[derive(Clone, Debug, PartialEq)]
pub struct SlicePort {
    /// Name; absent and empty are different.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number; absent means all ports, which no proxy implements.
    pub port: Option<u16>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    /// Addresses, of which the first counts (E-11).
    pub addresses: Vec<String>,
    /// `conditions.ready`.
    pub ready: Option<bool>,
    /// `conditions.serving`.
    pub serving: Option<bool>,
    /// `conditions.terminating`.
    pub terminating: Option<bool>,
    /// `nodeName` (E-13).
    pub node: Option<String>,
    /// `zone`, which no proxy reads (E-14).
    pub zone: Option<String>,
    /// `hints.forZones[].name` (E-14).
    pub for_zones: Vec<String>,
    /// `hints.forNodes[].name` (E-14).
    pub for_nodes: Vec<String>,
}

/// A Node, and what the machine itself knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Label [`ZONE`].
    pub zone: Option<String>,
    /// `status.addresses` of type `InternalIP`.
    pub addresses: Vec<String>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// Port of the kubelet, 0 if it is not told: `status.daemonEndpoints`.
    pub kubelet_port: u16,
    /// The addresses of the machine's interfaces, `lo` among them: no API object has these.
    pub interfaces: Vec<IpAddr>,
}

/// How a pod of this node is told from everybody else (section 4.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Detector {
    /// By the interface that leads to it, whatever its name: Millrace's own way.
    #[default]
    Interface,
    /// By an interface that this bridge holds: `BridgeInterface`.
    Bridge(String),
    /// By an interface whose name, or that of the bridge that holds it, begins so, because routing
    /// knows the bridge only: `InterfaceNamePrefix`.
    Prefix(String),
    /// By these address ranges, the first of each family: `ClusterCIDR`.
    ClusterCidr(Vec<String>),
    /// By the Node's `podCIDRs`: `NodeCIDR`.
    NodeCidr,
    /// Not at all (V-d, M-9).
    Missing,
}

/// What the proxy is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `nodePortAddresses`: ranges, `primary`, `localhost`, `all`; empty is `primary` (N-3).
    pub node_port_addresses: Vec<String>,
    /// `masqueradeAll` (M-6).
    pub masquerade_all: bool,
    /// The local detector.
    pub detector: Detector,
    /// Whether externalIPs count.
    pub external_ips: bool,
    /// The addresses of the machine's interfaces, before anybody has told of its Node.
    pub interfaces: Vec<IpAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_port_addresses: Vec::new(),
            masquerade_all: false,
            detector: Detector::Interface,
            external_ips: true,
            interfaces: Vec::new(),
        }
    }
}

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices.
    pub slices: Vec<Slice>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// The ranges of all `ServiceCIDR` objects (V-13).
    pub service_cidrs: Vec<String>,
    /// What the proxy is told.
    pub config: Config,
}

impl Cluster {
    /// The Node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl Slice {
    /// The Service that it names (E-3).
    pub fn service(&self) -> &str {
        self.labels.get(SERVICE_NAME).map_or("", String::as_str)
    }
}
