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
//! | node-2, without a proxy, pod 0 | client; server `off` |
//! | outside, behind a router | client |
//!
//! Who is off these nodes reaches every Service by way of node-0.
//! Each policy × place of endpoints is a Service of both families, with addresses of every kind.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{
    Engine,
    cell::{Backends, Column, Destination, Proxy, Row, Who},
    objects::{address, manifest, node_port, objects},
};
use crate::{
    agent::{Agent, AgentSpec, SYNC_WITHIN, Source},
    apiserver::{self, ApiServer},
    cgroup::Cgroup,
    cluster::{At, Cluster, Family, Place, Spec, Topology},
    kube_proxy::{self, KubeProxy, Rules},
    manifest::Manifest,
    one_armed::{fit_for_xdp, wait_for_native_xdp},
    oracle::{self, View, cluster::Policy},
    peer::{Close, Peer},
    rig,
};

pub(super) const CLIENT: At = At::Pod(0, 0);
pub(super) const HERE: At = At::Pod(0, 1);
pub(super) const TERMINATING: At = At::Pod(0, 2);
pub(super) const ELSEWHERE: At = At::Pod(1, 0);
pub(super) const HOST: At = At::Node(0);
pub(super) const OTHER_HOST: At = At::Node(1);
pub(super) const REMOTE: At = At::Pod(2, 0);
const NODES: usize = 3;
const UPLINK: &str = "eth0";
/// Where addresses of Services are from.
const RANGES: [&str; 6] = [
    "10.96.0.0/16",
    "203.0.113.0/24",
    "198.51.100.0/24",
    "fd00:10:96::/112",
    "2001:db8:8::/64",
    "2001:db8:7::/64",
];
const SERVERS: [(&str, At); 7] = [
    ("self", CLIENT),
    ("here", HERE),
    ("term", TERMINATING),
    ("else", ELSEWHERE),
    ("node", HOST),
    ("node2", OTHER_HOST),
    ("off", REMOTE),
];
/// The port of every Service.
pub(super) const PORT: u16 = 80;
pub(super) const TARGET: u16 = 8080;

/// Everything that runs.
#[derive(Debug)]
pub struct World {
    // Dropped in this order: who is in the cluster before the cluster.
    serving: Option<Serving>,
    /// What makes the other ends of uplinks fit for XDP.
    fit: Vec<OwnedFd>,
    plane: Option<ApiServer>,
    _servers: Vec<Peer>,
    clients: Vec<Client>,
    /// What the oracle knows of all this.
    pub view: View,
    services: Vec<(Policy, Backends)>,
    manifest: Manifest,
    _host_pod: Cgroup,
    cluster: Cluster,
}

/// Whoever makes Services out of what there is.
#[derive(Debug)]
enum Serving {
    Millrace(Vec<Agent>),
    KubeProxy(KubeProxy),
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
    /// As whom each server sees it when it asks there directly; who is off the node has one address
    /// in each family.
    direct: BTreeMap<SocketAddr, IpAddr>,
    own: [IpAddr; 2],
}

impl World {
    /// Builds it; nobody makes Services yet.
    pub fn new(topology: Topology) -> Result<Self> {
        let spec = Spec { nodes: 3, pods_per_node: 1, topology, clients: 1, ..Spec::default() };
        let mut cluster = Cluster::build(spec)?;
        for _ in 0..2 {
            cluster.add_pod(0)?;
        }
        lead_to_node_0(&cluster)?;
        // Every refusal is of interest, however many there are in a second.
        let limits = [("net.ipv4.icmp_ratelimit", "0"), ("net.ipv6.icmp.ratelimit", "0")];
        cluster.netns(HOST).sysctls(&limits)?;
        let (objects, services) = objects(&cluster);
        let manifest = manifest(&objects);
        let servers = SERVERS
            .iter()
            .map(|(name, at)| cluster.serve(*at, name, TARGET))
            .collect::<Result<_>>()?;
        let host_pod = cluster.nodes()[0].cgroup.child("host-pod")?;
        let peer = |who: Who, place| cluster.peer(who.at(), place);
        let clients = [
            (Who::Pod, Engine::Socket, peer(Who::Pod, Place::InCgroup)?),
            (Who::Pod, Engine::Packet, peer(Who::Pod, Place::Outside)?),
            (Who::Process, Engine::Socket, peer(Who::Process, Place::InCgroup)?),
            (
                Who::HostPod,
                Engine::Socket,
                Peer::start("pod in the host network", cluster.netns(HOST), &host_pod)?,
            ),
            (Who::RemotePod, Engine::Packet, peer(Who::RemotePod, Place::InCgroup)?),
            (Who::Outside, Engine::Packet, peer(Who::Outside, Place::Outside)?),
        ];
        let clients = clients
            .into_iter()
            .map(|(who, engine, peer)| Client::new(who, engine, peer, &cluster))
            .collect::<Result<_>>()?;
        let view = View::new(&objects, &cluster.nodes()[0].name);
        Ok(Self {
            serving: None,
            fit: Vec::new(),
            plane: None,
            _servers: servers,
            clients,
            view,
            services,
            manifest,
            _host_pod: host_pod,
            cluster,
        })
    }

    /// Has a proxy take over from the one before, of which nothing is left; all is in force then.
    pub fn serve(&mut self, proxy: Proxy) -> Result<()> {
        match self.serving.take() {
            Some(Serving::Millrace(agents)) => {
                for mut agent in agents {
                    agent.stop()?;
                    agent.command("cleanup", &[])?;
                }
            }
            Some(Serving::KubeProxy(proxy)) => {
                drop(proxy);
                Rules::remove(&self.cluster.nodes()[0].netns)?;
            }
            None => {}
        }
        self.fit.clear();
        self.serving = Some(match proxy {
            Proxy::Millrace => Serving::Millrace(self.agents(&[])?),
            Proxy::MillraceXdp => {
                let fit = (0..NODES)
                    .map(|node| fit_for_xdp(self.cluster.fabric(), &format!("n{node}")))
                    .collect::<Result<_>>()?;
                self.fit = fit;
                let agents = self.agents(&["--xdp", "native", "--xdp-interfaces", UPLINK])?;
                agents.iter().try_for_each(|agent| wait_for_native_xdp(agent, UPLINK))?;
                Serving::Millrace(agents)
            }
            Proxy::KubeProxy => {
                if self.plane.is_none() {
                    let assets = apiserver::assets().context("KUBEBUILDER_ASSETS is not set")?;
                    let address = self.cluster.address(At::Fabric, Family::V4);
                    let plane = ApiServer::start_in(&assets, self.cluster.fabric(), address)?;
                    kube_proxy::publish(&plane, &self.manifest)?;
                    self.plane = Some(plane);
                }
                let node = &self.cluster.nodes()[0];
                if self.cluster.spec().topology == Topology::Bridge {
                    // Without that no bridge gives a packet back to the port that it came by, which
                    // kube-proxy leaves to the plugin that makes pods.
                    let ports = node
                        .pods
                        .iter()
                        .map(|pod| format!("link set dev {} hairpin on\n", pod.host_interface));
                    node.netns.bridge(&ports.collect::<String>())?;
                }
                let plane = self.plane.as_ref().context("an API server")?;
                Serving::KubeProxy(KubeProxy::start(plane, node)?)
            }
        });
        Ok(())
    }

    /// The clients of the world, and where the drop counters of node-0 are pinned.
    pub fn clients(&mut self) -> (&mut [Client], Option<PathBuf>) {
        let folder =
            self.cluster.nodes()[0].bpffs.join(format!("v{}", lb_common::abi::ABI_VERSION));
        let counters = folder.join(lb_common::abi::map::COUNTERS);
        let has_counters = matches!(self.serving, Some(Serving::Millrace(_)));
        (&mut self.clients, has_counters.then_some(counters))
    }

    /// The client of a row as the oracle knows it.
    pub fn asker(&self, row: Row) -> oracle::Client {
        oracle::Client::new(row.who.place(), self.cluster.address(row.who.at(), row.family))
    }

    /// What a row asks for in a column.
    pub fn destination(&self, row: Row, column: Column) -> SocketAddr {
        let backends = match (column.backends, row.who) {
            // For the node's own sockets the node itself is who asks.
            (Backends::Itself, Who::Process | Who::HostPod) => Backends::HostHere,
            (Backends::Itself, Who::RemotePod) => Backends::RemotePod,
            (other, _) => other,
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

    /// On node-0 and on node-1; node-2 has no proxy.
    fn agents(&self, args: &[&str]) -> Result<Vec<Agent>> {
        let path = self.cluster.scratch().join("state.json");
        self.manifest.write(&path)?;
        let agents: Vec<Agent> = (0..NODES - 1)
            .map(|node| {
                let spec = self.cluster.agent(node, Source::Manifests(path.clone()))?;
                let spec = args.iter().fold(rig::with_small_maps(spec), AgentSpec::arg);
                spec.start_unsynced()
            })
            .collect::<Result<_>>()?;
        agents.iter().try_for_each(|agent| agent.wait_synced(SYNC_WITHIN))?;
        Ok(agents)
    }
}

impl Client {
    fn new(who: Who, engine: Engine, mut peer: Peer, cluster: &Cluster) -> Result<Self> {
        let mut direct = BTreeMap::new();
        let servers = SERVERS.iter().filter(|_| !who.is_elsewhere());
        for (name, at) in servers {
            for ip in cluster.addresses(*at) {
                let server = SocketAddr::new(ip, TARGET);
                let what = || format!("{who:?} asks {name} at {server} directly");
                let sock = peer.tcp_connect(server).with_context(what)?;
                let reply = peer.ask(&sock, "direct").with_context(what)?;
                peer.close(sock.id, Close::Reset)?;
                direct.insert(server, reply.client.ip());
            }
        }
        Ok(Self { who, engine, peer, direct, own: cluster.addresses(who.at()) })
    }

    /// The source that a server sees, if it is that of a direct connection.
    pub fn source(&self, server: SocketAddr, seen: IpAddr) -> oracle::Source {
        let kept = self.direct.get(&server).map_or(self.own.contains(&seen), |ip| *ip == seen);
        if kept { oracle::Source::Kept } else { oracle::Source::Rewritten }
    }
}

/// Has everybody who is off the nodes with a proxy send to node-0 what is for a Service.
fn lead_to_node_0(cluster: &Cluster) -> Result<()> {
    cluster.route_to_node(&RANGES, 0)?;
    let [v4, v6] = cluster.addresses(HOST);
    let lines: Vec<String> = RANGES
        .iter()
        .map(|range| format!("route add {range} via {}", if range.contains(':') { v6 } else { v4 }))
        .collect();
    cluster.netns(At::Node(2)).ip(&lines.join("\n"))
}
