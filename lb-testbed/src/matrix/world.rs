//! The cluster of the contract's matrix: the same objects for the oracle, for agents and for real
//! sockets.
//!
//! | place | role |
//! |---|---|
//! | node-0 | clients: a process, a pod in the host network; server `node` |
//! | node-0, pod 0 | client; server `self` |
//! | node-0, pod 1 | server `here` |
//! | node-0, pod 2 | server `term` |
//! | node-1 | server `node2` |
//! | node-1, pod 0 | server `else` |
//!
//! Each policy × place of endpoints is a Service of both families, with addresses of every kind.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{
    Engine,
    cell::{Backends, Column, Destination, Row, Who},
};
use crate::{
    address::{node_v4, node_v6, pod_net_v4, pod_net_v6},
    agent::{Agent, SYNC_WITHIN, Source},
    cgroup::Cgroup,
    cluster::{At, Cluster, Family, Place, Spec, Topology},
    manifest::Manifest,
    oracle::{
        self, View,
        cluster::{
            AddressType, Endpoint, Ingress, Labels, Node, Policy, Protocol, SERVICE_NAME, Service,
            ServicePort, ServiceType, Slice, SlicePort,
        },
        render,
    },
    peer::{Close, Peer},
    rig,
};

const CLIENT: At = At::Pod(0, 0);
const HERE: At = At::Pod(0, 1);
const TERMINATING: At = At::Pod(0, 2);
const ELSEWHERE: At = At::Pod(1, 0);
const HOST: At = At::Node(0);
const OTHER_HOST: At = At::Node(1);
const SERVERS: [(&str, At); 6] = [
    ("self", CLIENT),
    ("here", HERE),
    ("term", TERMINATING),
    ("else", ELSEWHERE),
    ("node", HOST),
    ("node2", OTHER_HOST),
];
/// The port of every Service.
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const FIRST_NODE_PORT: u16 = 30_100;
const FIRST_DAY_S: i64 = render::FIRST_DAY_S;

/// Everything that runs.
#[derive(Debug)]
pub struct World {
    // Dropped in this order: agents and sockets before the cluster that they run in.
    _agents: Vec<Agent>,
    _servers: Vec<Peer>,
    clients: Vec<Client>,
    /// What the oracle knows of all this.
    pub view: View,
    services: Vec<(Policy, Backends)>,
    _host_pod: Cgroup,
    cluster: Cluster,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Who it is.
    pub who: Who,
    /// Which engine serves it.
    pub engine: Engine,
    /// Its process.
    pub peer: Peer,
    /// As whom each server sees it when it asks there directly.
    direct: BTreeMap<SocketAddr, IpAddr>,
}

impl World {
    /// Builds it, and waits until everything is in force.
    pub fn new(topology: Topology) -> Result<Self> {
        let mut cluster =
            Cluster::build(Spec { nodes: 2, pods_per_node: 1, topology, ..Spec::default() })?;
        for _ in 0..2 {
            cluster.add_pod(0)?;
        }
        let (objects, services) = objects(&cluster);
        let path = cluster.scratch().join("state.json");
        manifest(&objects).write(&path)?;
        let agents = agents(&cluster, &path)?;
        let servers = SERVERS
            .iter()
            .map(|(name, at)| cluster.serve(*at, name, TARGET))
            .collect::<Result<_>>()?;
        let host_pod = cluster.nodes()[0].cgroup.child("host-pod")?;
        let clients = [
            (Who::Pod, Engine::Socket, cluster.peer(CLIENT, Place::InCgroup)?),
            (Who::Pod, Engine::Packet, cluster.peer(CLIENT, Place::Outside)?),
            (Who::Process, Engine::Socket, cluster.peer(HOST, Place::InCgroup)?),
            (
                Who::HostPod,
                Engine::Socket,
                Peer::start("pod in the host network", cluster.netns(HOST), &host_pod)?,
            ),
        ];
        let clients = clients
            .into_iter()
            .map(|(who, engine, peer)| Client::new(who, engine, peer, &cluster))
            .collect::<Result<_>>()?;
        agents.iter().try_for_each(|agent| agent.wait_synced(SYNC_WITHIN))?;
        let view = View::new(&objects, &cluster.nodes()[0].name);
        Ok(Self {
            _agents: agents,
            _servers: servers,
            clients,
            view,
            services,
            _host_pod: host_pod,
            cluster,
        })
    }

    /// The clients of the world, and where the drop counters of their node are pinned.
    pub fn clients(&mut self) -> (&mut [Client], PathBuf) {
        let folder =
            self.cluster.nodes()[0].bpffs.join(format!("v{}", lb_common::abi::ABI_VERSION));
        (&mut self.clients, folder.join(lb_common::abi::map::COUNTERS))
    }

    /// The client of a row as the oracle knows it.
    pub fn asker(&self, row: Row) -> oracle::Client {
        oracle::Client::new(row.who.place(), self.cluster.address(row.who.at(), row.family))
    }

    /// What a row asks for in a column.
    pub fn destination(&self, row: Row, column: Column) -> SocketAddr {
        // For the node's own sockets the node itself is who asks.
        let backends = match column.backends {
            Backends::Itself if row.who != Who::Pod => Backends::HostHere,
            other => other,
        };
        let wanted = (column.policy, backends);
        let index = self.services.iter().position(|service| *service == wanted).unwrap_or_default();
        let node = self.cluster.address(HOST, row.family);
        match column.destination {
            Destination::NodePort => SocketAddr::new(node, node_port(index)),
            other => SocketAddr::new(address(index, row.family, other), PORT),
        }
    }

    /// Whose address it is: the name of the server there.
    pub fn server(&self, at: SocketAddr) -> &'static str {
        let mut all = SERVERS.iter();
        let found = all.find(|(_, place)| self.cluster.addresses(*place).contains(&at.ip()));
        found.map_or("?", |(name, _)| name)
    }
}

impl Client {
    fn new(who: Who, engine: Engine, mut peer: Peer, cluster: &Cluster) -> Result<Self> {
        let mut direct = BTreeMap::new();
        for (name, at) in SERVERS {
            for ip in cluster.addresses(at) {
                let server = SocketAddr::new(ip, TARGET);
                let what = || format!("{who:?} asks {name} at {server} directly");
                let sock = peer.tcp_connect(server).with_context(what)?;
                let reply = peer.ask(&sock, "direct").with_context(what)?;
                peer.close(sock.id, Close::Reset)?;
                direct.insert(server, reply.client.ip());
            }
        }
        Ok(Self { who, engine, peer, direct })
    }

    /// The source that a server sees, if it is that of a direct connection.
    pub fn source(&self, server: SocketAddr, seen: IpAddr) -> oracle::Source {
        if self.direct.get(&server) == Some(&seen) {
            oracle::Source::Kept
        } else {
            oracle::Source::Rewritten
        }
    }
}

fn agents(cluster: &Cluster, state: &std::path::Path) -> Result<Vec<Agent>> {
    (0..cluster.nodes().len())
        .map(|node| {
            let spec = cluster.agent(node, Source::Manifests(state.to_owned()))?;
            rig::with_small_maps(spec).start_unsynced()
        })
        .collect()
}

/// All objects, and which Service is for what.
fn objects(cluster: &Cluster) -> (oracle::Cluster, Vec<(Policy, Backends)>) {
    let mut objects = oracle::Cluster::default();
    let mut services = Vec::new();
    for policy in [Policy::Cluster, Policy::Local] {
        for backends in Backends::ALL {
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
        Backends::HostHere => vec![(HOST, false)],
        Backends::HostElsewhere => vec![(OTHER_HOST, false)],
        Backends::Terminating => vec![(TERMINATING, true)],
        Backends::TerminatingAndElsewhere => vec![(TERMINATING, true), (ELSEWHERE, false)],
        Backends::Nowhere => Vec::new(),
    }
}

fn manifest(objects: &oracle::Cluster) -> Manifest {
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
    let ingress = |ip| Ingress { ip, hostname: String::new(), mode: None };
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

fn node_port(index: usize) -> u16 {
    FIRST_NODE_PORT + small(index)
}

/// An address of a Service; every address is of one Service only.
fn address(index: usize, family: Family, kind: Destination) -> IpAddr {
    let host = small(index) + 1;
    let (v4, v6) = match kind {
        Destination::ClusterIp | Destination::NodePort => ([10, 96, 1], [0xfd00, 0x10, 0x96, 1]),
        Destination::LoadBalancer => ([203, 0, 113], [0x2001, 0xdb8, 8, 0]),
        Destination::ExternalIp => ([198, 51, 100], [0x2001, 0xdb8, 7, 0]),
    };
    match family {
        Family::V4 => [v4[0], v4[1], v4[2], u8::try_from(host).unwrap_or(u8::MAX)].into(),
        Family::V6 => [v6[0], v6[1], v6[2], v6[3], 0, 0, 0, host].into(),
    }
}

/// Services are counted in two digits.
fn small(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX / 2)
}
