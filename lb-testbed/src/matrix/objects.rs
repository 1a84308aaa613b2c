//! The objects of the contract's matrix: a Service for each policy and place of endpoints, the same
//! for the oracle, for agents and for an API server.

use std::net::IpAddr;

use super::{
    cell::{Backends, Destination},
    world::{CLIENT, ELSEWHERE, HERE, HOST, OTHER_HOST, PORT, REMOTE, TARGET, TERMINATING},
};
use crate::{
    address::{node_v4, node_v6, pod_net_v4, pod_net_v6},
    cluster::{At, Cluster, Family},
    manifest::Manifest,
    oracle::{
        self,
        cluster::{
            AddressType, Endpoint, Ingress, IpMode, Labels, Node, Policy, Protocol, SERVICE_NAME,
            Service, ServicePort, ServiceType, Slice, SlicePort,
        },
        render,
    },
};

const FIRST_NODE_PORT: u16 = 30_100;
const FIRST_DAY_S: i64 = render::FIRST_DAY_S;

/// All objects, and which Service is for what.
pub(super) fn objects(cluster: &Cluster) -> (oracle::Cluster, Vec<(Policy, Backends)>) {
    let mut objects = oracle::Cluster::default();
    let mut services = Vec::new();
    for policy in [Policy::Cluster, Policy::Local] {
        for backends in Backends::ALL.into_iter().chain([Backends::RemotePod]) {
            let index = services.len();
            services.push((policy, backends));
            objects.services.push(service(index, policy));
            let endpoints = endpoints(backends);
            for family in Family::ALL {
                objects.slices.push(slice(cluster, index, family, &endpoints));
            }
        }
    }
    objects.nodes = (0..cluster.nodes().len()).map(|node| self::node(cluster, node)).collect();
    (objects, services)
}

/// The endpoints of a Service, and whether each terminates.
fn endpoints(backends: Backends) -> Vec<(At, bool)> {
    match backends {
        Backends::Here => vec![(HERE, false)],
        Backends::Elsewhere => vec![(ELSEWHERE, false)],
        Backends::Itself => vec![(CLIENT, false)],
        Backends::RemotePod => vec![(REMOTE, false)],
        Backends::HostHere => vec![(HOST, false)],
        Backends::HostElsewhere => vec![(OTHER_HOST, false)],
        Backends::Terminating => vec![(TERMINATING, true)],
        Backends::TerminatingAndElsewhere => vec![(TERMINATING, true), (ELSEWHERE, false)],
        Backends::Nowhere => Vec::new(),
    }
}

pub(super) fn manifest(objects: &oracle::Cluster) -> Manifest {
    let mut manifest = Manifest::new();
    for service in &objects.services {
        manifest.set(render::service(service));
    }
    for slice in &objects.slices {
        manifest.set(render::slice(slice));
    }
    for node in &objects.nodes {
        manifest.set(render::node(node));
    }
    manifest
}

fn service(index: usize, policy: Policy) -> Service {
    let addresses = |kind| Family::ALL.map(|family| address(index, family, kind).to_string());
    let cluster_ips = addresses(Destination::ClusterIp);
    let port = |name: &str, protocol| ServicePort {
        name: name.into(),
        protocol,
        port: PORT,
        node_port: node_port(index),
        target: TARGET,
    };
    let ingress = |ip| Ingress { ip, hostname: String::new(), mode: Some(IpMode::Vip) };
    Service {
        namespace: "default".into(),
        name: name(index),
        created_s: FIRST_DAY_S,
        labels: Labels::new(),
        kind: ServiceType::LoadBalancer,
        cluster_ip: cluster_ips[0].clone(),
        cluster_ips: cluster_ips.into(),
        families: oracle::cluster::Family::BOTH.into(),
        ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
        external_ips: addresses(Destination::ExternalIp).into(),
        ingress: addresses(Destination::LoadBalancer).map(ingress).into(),
        source_ranges: Vec::new(),
        internal: Some(policy),
        external: Some(policy),
        affinity_s: None,
        publish_not_ready: false,
    }
}

fn slice(cluster: &Cluster, index: usize, family: Family, endpoints: &[(At, bool)]) -> Slice {
    let of_oracle = match family {
        Family::V4 => oracle::cluster::Family::V4,
        Family::V6 => oracle::cluster::Family::V6,
    };
    let port =
        |name: &str, protocol| SlicePort { name: Some(name.into()), protocol, port: Some(TARGET) };
    let endpoint = |&(at, terminating): &(At, bool)| {
        let (At::Pod(node, _) | At::Node(node)) = at else { return Endpoint::default() };
        Endpoint {
            addresses: vec![cluster.address(at, family).to_string()],
            ready: Some(!terminating),
            serving: Some(true),
            terminating: Some(terminating),
            node: Some(cluster.nodes()[node].name.clone()),
            ..Endpoint::default()
        }
    };
    Slice {
        namespace: "default".into(),
        name: format!("{}-{}", name(index), of_oracle.name().to_lowercase()),
        labels: Labels::from([(SERVICE_NAME.into(), name(index))]),
        address_type: AddressType::Ip(of_oracle),
        ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn node(cluster: &Cluster, node: usize) -> Node {
    let addresses: [IpAddr; 2] = [node_v4(node).into(), node_v6(node).into()];
    Node {
        name: cluster.nodes()[node].name.clone(),
        addresses: addresses.map(|ip| ip.to_string()).into(),
        pod_cidrs: vec![pod_net_v4(node), pod_net_v6(node)],
        kubelet_port: 10_250,
        interfaces: addresses.into(),
        ..Node::default()
    }
}

fn name(index: usize) -> String {
    format!("service-{index}")
}

pub(super) fn node_port(index: usize) -> u16 {
    FIRST_NODE_PORT + small(index)
}

/// An address of a Service; every address is of one Service only.
pub(super) fn address(index: usize, family: Family, kind: Destination) -> IpAddr {
    let host = small(index) + 1;
    let (v4, v6) = match kind {
        Destination::ClusterIp | Destination::NodePort => ([10, 96, 1], [0xfd00, 0x10, 0x96]),
        Destination::LoadBalancer => ([203, 0, 113], [0x2001, 0xdb8, 8]),
        Destination::ExternalIp => ([198, 51, 100], [0x2001, 0xdb8, 7]),
    };
    match family {
        Family::V4 => [v4[0], v4[1], v4[2], u8::try_from(host).unwrap_or(u8::MAX)].into(),
        // The first addresses of a ServiceCIDR are the API server's own.
        Family::V6 => [v6[0], v6[1], v6[2], 0, 0, 0, 0, 0x100 + host].into(),
    }
}

/// Services are counted in two digits.
fn small(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX / 2)
}
