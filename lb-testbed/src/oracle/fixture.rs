//! A small cluster for the oracle's own tests, changed by each of them.

use std::{collections::BTreeSet, net::SocketAddr};

use super::cluster::{
    AddressType, Cluster, Config, Endpoint, Family, Ingress, Labels, Node, Policy, Protocol,
    SERVICE_NAME, Service, ServicePort, ServiceType, Slice, SlicePort,
};
use super::services::View;
use super::verdict::{Client, Engine, Expectation, Link, Place};

pub(super) const CLUSTER_IP: &str = "10.96.0.1";
pub(super) const EXTERNAL_IP: &str = "192.0.2.1";
pub(super) const BALANCER: &str = "203.0.113.1";
pub(super) const NODE_IP: &str = "192.168.0.1";
/// A pod of this node.
pub(super) const HERE: &str = "10.244.1.1";
/// A pod of another node.
pub(super) const THERE: &str = "10.244.2.1";

/// `default/a`: type LoadBalancer, port 80/TCP named web, nodePort 30000, with all kinds of
/// addresses.
pub(super) fn service() -> Service {
    Service {
        namespace: "default".into(),
        name: "a".into(),
        created_s: 5,
        labels: Labels::new(),
        kind: ServiceType::LoadBalancer,
        cluster_ip: CLUSTER_IP.into(),
        cluster_ips: vec![CLUSTER_IP.into()],
        families: vec![Family::V4],
        ports: vec![ServicePort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 30_000,
            target: 1,
        }],
        external_ips: vec![EXTERNAL_IP.into()],
        ingress: vec![Ingress { ip: BALANCER.into(), hostname: String::new(), mode: None }],
        source_ranges: Vec::new(),
        internal: None,
        external: None,
        affinity_s: None,
        publish_not_ready: false,
    }
}

/// A slice of `default/a` for its port, at 8080.
pub(super) fn slice(name: &str, endpoints: &[Endpoint]) -> Slice {
    Slice {
        namespace: "default".into(),
        name: name.into(),
        labels: Labels::from([(SERVICE_NAME.into(), "a".into())]),
        address_type: AddressType::Ip(Family::V4),
        ports: vec![SlicePort {
            name: Some("web".into()),
            protocol: Protocol::Tcp,
            port: Some(8080),
        }],
        endpoints: endpoints.to_vec(),
    }
}

/// An endpoint with these conditions, as letters: `r`eady, `s`erving, `t`erminating; absent
/// letters are false.
pub(super) fn endpoint(ip: &str, node: &str, conditions: &str) -> Endpoint {
    let condition = |letter| Some(conditions.contains(letter));
    Endpoint {
        addresses: vec![ip.into()],
        ready: condition('r'),
        serving: condition('s'),
        terminating: condition('t'),
        node: (!node.is_empty()).then(|| node.to_owned()),
        ..Endpoint::default()
    }
}

/// The Service, with a ready endpoint on this node (`node-a`, zone-1) and one on another.
pub(super) fn cluster() -> Cluster {
    let endpoints = [endpoint(HERE, "node-a", "rs"), endpoint(THERE, "node-b", "rs")];
    Cluster {
        services: vec![service()],
        slices: vec![slice("a-1", &endpoints)],
        nodes: vec![Node {
            name: "node-a".into(),
            zone: Some("zone-1".into()),
            addresses: vec![NODE_IP.into()],
            pod_cidrs: vec!["10.244.1.0/24".into()],
            kubelet_port: 10_250,
            interfaces: ["127.0.0.1", NODE_IP].iter().map(|ip| ip.parse().unwrap()).collect(),
        }],
        service_cidrs: vec!["10.96.0.0/16".into()],
        config: Config::default(),
    }
}

/// The same under these policies, internal and external.
pub(super) fn with_policies(internal: Policy, external: Policy) -> Cluster {
    let mut cluster = cluster();
    cluster.services[0].internal = Some(internal);
    cluster.services[0].external = Some(external);
    cluster
}

/// The same with these endpoints only.
pub(super) fn with_endpoints(endpoints: &[Endpoint]) -> Cluster {
    Cluster { slices: vec![slice("a-1", endpoints)], ..cluster() }
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The address of an endpoint at 8080.
pub(super) fn pods(ips: &[&str]) -> BTreeSet<SocketAddr> {
    ips.iter().map(|ip| at(&format!("{ip}:8080"))).collect()
}

pub(super) fn pod() -> Client {
    Client::new(Place::Pod, "10.244.1.9".parse().unwrap())
        .by(Link { name: "veth9", bridge: Some("cni0") })
}

pub(super) fn host() -> Client {
    Client::new(Place::Host, NODE_IP.parse().unwrap())
}

pub(super) fn outside() -> Client {
    Client::new(Place::Elsewhere, "198.51.100.1".parse().unwrap())
        .by(Link { name: "eth0", bridge: None })
}

/// A pod of another node, by the overlay.
pub(super) fn other_pod() -> Client {
    Client::new(Place::Elsewhere, "10.244.2.9".parse().unwrap())
        .by(Link { name: "vxlan0", bridge: None })
}

/// What becomes of a TCP connection on `node-a`.
pub(super) fn ask(cluster: &Cluster, engine: Engine, client: &Client, to: &str) -> Expectation {
    View::new(cluster, "node-a").expect(engine, client, at(to), Protocol::Tcp)
}

/// The same in words, by the contract alone.
pub(super) fn told(cluster: &Cluster, client: &Client, to: &str) -> String {
    ask(cluster, Engine::Contract, client, to).to_string()
}
