//! Clusters for property tests. Names, addresses and ports are few, so that Services and slices
//! meet, collide and follow each other.

mod address;
pub mod every;
mod service;
mod slice;

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*, sample::select};

pub use address::{Owner, address, clients, destination_ports, destinations, link};

use super::cluster::{
    Config, Detector, Family, HEADLESS, Labels, Node, PROXY_NAME, Policy, Protocol,
};
use super::history::{Event, History};

/// The node that decides.
pub const NODE: &str = "node-a";
const OTHER_NODE: &str = "node-b";
const NAMESPACES: [&str; 2] = ["default", "other"];
const SERVICES: [&str; 3] = ["a", "b", "kubernetes"];
const SLICES: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];
const PORT_NAMES: [&str; 3] = ["", "web", "dns"];
/// Ports of Services.
pub const PORTS: [u16; 3] = [53, 80, 443];
/// Ports of endpoints.
pub const TARGETS: [u16; 3] = [80, 8080, 9090];
/// nodePorts.
pub const NODE_PORTS: [u16; 3] = [30_000, 30_001, 30_002];

fn node() -> impl Strategy<Value = Node> {
    let zone = select(vec![None, Some("zone-1"), Some("zone-2")]);
    (select(vec![NODE, NODE, NODE, OTHER_NODE]), zone).prop_map(|(name, zone)| node_at(name, zone))
}

/// A node of that name, with the addresses of its interfaces.
fn node_at(name: &str, zone: Option<&str>) -> Node {
    let own = |family| {
        if name == NODE {
            vec![Owner::Loopback, Owner::Node(0), Owner::Node(1)]
        } else {
            vec![Owner::Loopback, Owner::OtherNode]
        }
        .into_iter()
        .map(move |owner| address(family, owner))
    };
    let interfaces: Vec<IpAddr> = Family::BOTH.into_iter().flat_map(own).collect();
    Node {
        name: name.into(),
        zone: zone.map(str::to_owned),
        addresses: [interfaces[1], interfaces[interfaces.len() / 2 + 1]]
            .map(|ip| ip.to_string())
            .into(),
        pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:10:2441::/64".into()],
        kubelet_port: 443,
        interfaces,
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => service::service().prop_map(|service| Event::Service(Box::new(service))),
        18 => slice::slice().prop_map(Event::Slice),
        2 => node().prop_map(Event::Node),
        1 => (namespace(), text(&SERVICES)).prop_map(|(ns, name)| Event::NoService(ns, name)),
        2 => (namespace(), text(&SLICES)).prop_map(|(ns, name)| Event::NoSlice(ns, name)),
        1 => text(&[NODE, OTHER_NODE]).prop_map(Event::NoNode),
    ]
}

/// `nodePortAddresses` of every kind (N-1 to N-7).
pub fn node_port_addresses() -> Vec<Vec<String>> {
    let lists: [&[&str]; 8] = [
        &[],
        &["primary"],
        &["all"],
        &["192.168.1.0/24"],
        &["primary", "localhost"],
        &["127.0.0.0/8", "fd00:192:1::/48"],
        &["0.0.0.0/0", "fd00:192::1/128"],
        &["198.51.100.0/24", "2001:db8:3::/48"],
    ];
    lists.map(|list| list.iter().map(|&entry| entry.to_owned()).collect()).into()
}

/// Local detectors of every kind, with what is not to be taken for anything among their ranges
/// (section 4.3).
pub fn detectors() -> Vec<Detector> {
    let ranges =
        |texts: &[&str]| Detector::ClusterCidr(texts.iter().map(|&text| text.to_owned()).collect());
    vec![
        Detector::Interface,
        Detector::Bridge("cni0".into()),
        Detector::Prefix("cali".into()),
        Detector::Prefix("cni".into()),
        // All pods, of other nodes too (V-e).
        ranges(&["10.244.0.0/16", "fd00:10:2440::/44"]),
        // The first range of each family counts.
        ranges(&["10.244.1.0/24", "10.244.2.0/24", "fd00:10:2442::/48", "fd00:10:2441::/48"]),
        // No detector for the other family.
        ranges(&["fd00:10:2441::/48"]),
        Detector::NodeCidr,
        Detector::Missing,
    ]
}

fn config() -> impl Strategy<Value = Config> {
    // Usually nothing is said of it.
    let detector = prop_oneof![1 => Just(Detector::Interface), 2 => select(detectors())];
    let addresses = select(node_port_addresses());
    let external_ips = proptest::bool::weighted(0.9);
    let masquerade_all = proptest::bool::weighted(0.2);
    (addresses, external_ips, masquerade_all, detector).prop_map(
        |(node_port_addresses, external_ips, masquerade_all, detector)| Config {
            node_port_addresses,
            masquerade_all,
            detector,
            external_ips,
            interfaces: node_at(NODE, None).interfaces,
        },
    )
}

/// Histories: many objects at first, then up to `bursts` bursts of changes.
pub fn history(bursts: usize) -> impl Strategy<Value = History> {
    let cidrs = vec!["10.96.0.0/16".to_owned(), "fd00:10:96::/112".to_owned()];
    let all = (vec(event(), 0..32), vec(vec(event(), 1..6), 0..=bursts));
    (config(), all, any::<bool>()).prop_map(move |(config, (first, later), watched)| {
        let service_cidrs = if watched { cidrs.clone() } else { Vec::new() };
        let bursts = std::iter::once(first).chain(later).collect();
        History { config, service_cidrs, bursts }
    })
}

fn family() -> impl Strategy<Value = Family> {
    select(Family::BOTH.as_slice())
}

fn policy() -> impl Strategy<Value = Option<Policy>> {
    select(vec![None, Some(Policy::Cluster), Some(Policy::Local)])
}

fn text(all: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(all).prop_map(str::to_owned)
}

/// Most objects are in one namespace.
fn namespace() -> impl Strategy<Value = String> {
    select(vec![NAMESPACES[0], NAMESPACES[0], NAMESPACES[0], NAMESPACES[1]]).prop_map(str::to_owned)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![5 => Just(Protocol::Tcp), 4 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

/// Labels that take an object away from the proxy, now and then (S-1, S-2, E-5).
fn labels() -> impl Strategy<Value = Labels> {
    let label = |name: &'static str| {
        select(vec!["", "other"]).prop_map(move |v| Labels::from([(name.into(), v.into())]))
    };
    prop_oneof![
        30 => Just(Labels::new()),
        4 => Just(Labels::from([("app".into(), "x".into())])),
        1 => label(PROXY_NAME),
        1 => label(HEADLESS),
    ]
}
