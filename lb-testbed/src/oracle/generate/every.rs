//! Small clusters that together have every combination of policies, places of endpoints and
//! settings, for questions that chance would seldom ask.

use super::address::{Owner, address};
use super::{NODE, OTHER_NODE, detectors, node_at, node_port_addresses};
use crate::oracle::cluster::{
    AddressType, Cluster, Config, Detector, Endpoint, Family, Ingress, Labels, Policy, Protocol,
    SERVICE_NAME, Service, ServicePort, ServiceType, Slice, SlicePort,
};
use crate::oracle::render::FIRST_DAY_S;

/// Where the endpoints of a Service are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// Nowhere.
    None,
    /// A pod of this node.
    Here,
    /// A pod of another node.
    There,
    /// One of each.
    Both,
    /// A process of this node.
    HostHere,
    /// A process of another node.
    HostThere,
    /// One of this node that terminates, and one of another that is ready.
    DrainingHere,
    /// One of each, and neither serves.
    Idle,
}

impl Endpoints {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Here,
        Self::There,
        Self::Both,
        Self::HostHere,
        Self::HostThere,
        Self::DrainingHere,
        Self::Idle,
    ];

    /// Who, where, and whether it is ready and serves.
    fn all(self) -> Vec<(Owner, &'static str, bool, bool)> {
        let here = (Owner::Pod(1), NODE, true, true);
        let there = (Owner::OtherPod(1), OTHER_NODE, true, true);
        match self {
            Self::None => vec![],
            Self::Here => vec![here],
            Self::There => vec![there],
            Self::Both => vec![here, there],
            Self::HostHere => vec![(Owner::Node(0), NODE, true, true)],
            Self::HostThere => vec![(Owner::OtherNode, OTHER_NODE, true, true)],
            Self::DrainingHere => vec![(Owner::Pod(1), NODE, false, true), there],
            Self::Idle => vec![
                (Owner::Pod(1), NODE, false, false),
                (Owner::OtherPod(1), OTHER_NODE, false, false),
            ],
        }
    }
}

/// The port of every Service of these clusters.
pub const PORT: u16 = 80;
/// A port that none of them has.
pub const UNKNOWN: u16 = 81;

/// The nodePort of a Service.
pub fn node_port(service: usize) -> u16 {
    30_000 + small(service)
}

/// The clusterIP, externalIP and load balancer's address of a Service in a family.
pub fn addresses(family: Family, service: usize) -> [std::net::IpAddr; 3] {
    let n = u8::try_from(service).unwrap_or(u8::MAX);
    [Owner::ClusterIp(n), Owner::External(n), Owner::Balancer(n)]
        .map(|owner| address(family, owner))
}

/// Ranges of clients: none, ones for a stranger, for nobody, for the node, for everybody.
const RANGES: [&[&str]; 6] = [
    &[],
    &["198.51.100.0/24", "2001:db8:3::/48"],
    &["198.51.100.0/32", "nonsense", "2001:db8:ffff::/48"],
    &["192.168.0.0/24", "fd00:192::/64", "198.51.100.1/32"],
    &["0.0.0.0/0", "2001:db8:3::1/128", "2001:db8::/32"],
    &["2001:db8:3::/48"],
];

/// Every detector, with and without `masqueradeAll`, and every kind of `nodePortAddresses`.
fn configs() -> Vec<Config> {
    let with = |detector: &Detector, masquerade_all| Config {
        detector: detector.clone(),
        masquerade_all,
        ..Config::default()
    };
    let mut all: Vec<Config> = detectors()
        .iter()
        .flat_map(|detector| [with(detector, false), with(detector, true)])
        .collect();
    all.extend(
        node_port_addresses()
            .into_iter()
            .map(|node_port_addresses| Config { node_port_addresses, ..Config::default() }),
    );
    all
}

/// All of these clusters, each with a Service for each of [`Endpoints::ALL`].
pub fn clusters() -> impl Iterator<Item = Cluster> {
    let policies = [Policy::Cluster, Policy::Local];
    let both = policies.into_iter().flat_map(move |i| policies.map(|e| (i, e)));
    let all = both.flat_map(|policies| configs().into_iter().map(move |config| (policies, config)));
    all.enumerate().map(|(turn, (policies, config))| Cluster {
        services: (0..Endpoints::ALL.len())
            .map(|index| service(index, policies, RANGES[(turn + index) % RANGES.len()]))
            .collect(),
        slices: Endpoints::ALL
            .iter()
            .enumerate()
            .flat_map(|(index, e)| slices(index, *e))
            .collect(),
        nodes: [NODE, OTHER_NODE].map(|name| node_at(name, Some("zone-1"))).into(),
        service_cidrs: vec!["10.96.0.0/16".into(), "fd00:10:96::/112".into()],
        config,
    })
}

fn service(index: usize, (internal, external): (Policy, Policy), ranges: &[&str]) -> Service {
    let texts = Family::BOTH.map(|family| addresses(family, index).map(|ip| ip.to_string()));
    let of = |kind: usize| texts.each_ref().map(|text| text[kind].clone());
    let [first, _] = of(0);
    let port = |protocol: Protocol| ServicePort {
        name: protocol.name().to_lowercase(),
        protocol,
        port: PORT,
        node_port: node_port(index),
        target: 0,
    };
    Service {
        namespace: "default".into(),
        name: format!("s{index}"),
        created_s: FIRST_DAY_S,
        labels: Labels::new(),
        kind: ServiceType::LoadBalancer,
        cluster_ip: first,
        cluster_ips: of(0).into(),
        families: Family::BOTH.into(),
        ports: Protocol::ALL.map(port).into(),
        external_ips: of(1).into(),
        ingress: of(2).map(|ip| Ingress { ip, hostname: String::new(), mode: None }).into(),
        source_ranges: ranges.iter().map(|&range| range.to_owned()).collect(),
        internal: Some(internal),
        external: Some(external),
        affinity_s: None,
        publish_not_ready: false,
    }
}

/// Endpoints listen at 8080, those of SCTP at the Service's own port.
fn slices(index: usize, endpoints: Endpoints) -> [Slice; 2] {
    Family::BOTH.map(|family| {
        let port = |protocol: Protocol| SlicePort {
            name: Some(protocol.name().to_lowercase()),
            protocol,
            port: Some(if protocol == Protocol::Sctp { PORT } else { 8080 }),
        };
        let one = |(owner, node, ready, serving): (Owner, &str, bool, bool)| Endpoint {
            addresses: vec![address(family, owner).to_string()],
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(serving && !ready),
            node: Some(node.to_owned()),
            ..Endpoint::default()
        };
        Slice {
            namespace: "default".into(),
            name: format!("s{index}-{}", family.name().to_lowercase()),
            labels: Labels::from([(SERVICE_NAME.into(), format!("s{index}"))]),
            address_type: AddressType::Ip(family),
            ports: Protocol::ALL.map(port).into(),
            endpoints: endpoints.all().into_iter().map(one).collect(),
        }
    })
}

fn small(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
