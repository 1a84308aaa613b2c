//! Clusters for property tests. Names, addresses and ports are few, so that Services and slices
//! meet, collide and follow each other.

mod address;
mod service;
mod slice;

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*, sample::select};

pub use address::{Owner, address, destination_ports, destinations};

use super::cluster::{Config, Family, HEADLESS, Labels, Node, PROXY_NAME, Policy, Protocol};
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
    (select(vec![NODE, NODE, NODE, OTHER_NODE]), zone).prop_map(|(name, zone)| {
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
    })
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

fn config() -> impl Strategy<Value = Config> {
    let addresses = select(vec![
        vec![],
        vec!["primary"],
        vec!["all"],
        vec!["192.168.1.0/24"],
        vec!["primary", "localhost"],
        vec!["127.0.0.0/8", "fd00:192:1::/48"],
    ]);
    (addresses, proptest::bool::weighted(0.9)).prop_map(|(addresses, external_ips)| Config {
        node_port_addresses: addresses.into_iter().map(str::to_owned).collect(),
        external_ips,
        guarded_load_balancers: false,
        ..Config::default()
    })
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
