//! A cluster with clients outside and Services that they reach in every way: what tests of traffic
//! from outside begin with.
//!
//! | place | role |
//! |---|---|
//! | client 0, client 1 | clients outside, behind a router that sends VIPs to node-0 |
//! | node-0 | the entry node; server `host` |
//! | node-0, pod 0 | server `here` |
//! | node-0, pod 1 | a client |
//! | node-1 | server `other-host` |
//! | node-1, pod 0 | server `there` |
//! | node-1, pod 1 | a client |
//!
//! Each exposed Service has a cluster IP, a `NodePort`, an address of a load balancer and an externalIP
//! in both families, port 80 on TCP and UDP, and target port 8080.

mod service;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::abi::{self, Counter};
use serde_json::{Value, json};

pub use self::service::{Exposed, Exposure, Way};
use crate::{
    address::{node_v4, node_v6, pod_net_v4, pod_net_v6},
    agent::{Agent, AgentSpec, SYNC_WITHIN, Source},
    cluster::{At, Cluster, Family, Place, Spec},
    manifest::{Endpoint, EndpointSlice, Manifest, Node, Service},
    matrix::{Case, Engine, Transport},
    peer::{self, Peer},
    rig::{self, IN_FORCE_WITHIN},
    wait,
};

/// A client outside.
pub const OUTSIDE: At = At::Client(0);
/// Another one.
pub const SECOND: At = At::Client(1);
/// The node that outside clients' packets for Services come to.
pub const ENTRY: At = At::Node(0);
/// Another node.
pub const OTHER: At = At::Node(1);
/// A server on the entry node.
pub const HERE: At = At::Pod(0, 0);
/// A client on the entry node.
pub const NEIGHBOUR: At = At::Pod(0, 1);
/// A server on another node.
pub const THERE: At = At::Pod(1, 0);
/// A client on another node.
pub const STRANGER: At = At::Pod(1, 1);
/// The port of every Service.
pub const PORT: u16 = 80;
/// The port that servers listen on.
pub const TARGET: u16 = 8080;
/// The port of the kubelet.
pub const KUBELET: u16 = 10_250;
/// The `NodePort` of the first Service; the others follow.
pub const FIRST_NODE_PORT: u16 = 30_100;
/// Addresses of load balancers.
pub const LOAD_BALANCERS: [&str; 2] = ["203.0.113.0/24", "2001:db8:8::/64"];
/// externalIPs.
pub const EXTERNAL_IPS: [&str; 2] = ["198.51.100.0/24", "2001:db8:7::/64"];
/// Cluster IPs.
pub const CLUSTER_IPS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// Sooner than a client sends its SYN again (one second, RFC 6298): it was told, and did not give up.
pub const AT_ONCE: Duration = Duration::from_millis(900);
/// How long a client waits for what does not come.
pub const SILENCE: Duration = Duration::from_millis(250);
/// How long it takes to see what a packet did.
pub const SOON: Duration = Duration::from_secs(5);

/// TCP and UDP in both families, of clients that no socket engine sees.
pub fn cases() -> impl Iterator<Item = Case> {
    Case::all().filter(|case| case.engine == Engine::Packet)
}

/// What a client is told about what it asks for: an error number, if any comes before it gives up.
pub fn told(
    client: &mut Peer,
    case: Case,
    to: SocketAddr,
    patience: Duration,
) -> Result<Option<i32>> {
    let result = match case.transport {
        Transport::Tcp => client.tcp_connect_from(None, to, patience).map(drop),
        Transport::Udp => {
            // What comes back for a datagram is told by the next call.
            let sock = client.udp_connected(to)?;
            client.ask_within(&sock, "hello", patience).map(drop)
        }
    };
    let Err(error) = result else { bail!("{case}: {to} answers") };
    let errno = peer::errno(&error);
    Ok(errno.filter(|errno| ![libc::ETIMEDOUT, libc::EAGAIN].contains(errno)))
}

/// Cluster, state, servers and agents.
#[derive(Debug)]
pub struct NorthSouth {
    // Dropped in this order: agents and servers before the cluster that they run in.
    /// One agent per node, once started.
    pub agents: Vec<Agent>,
    /// The servers.
    pub servers: Vec<Peer>,
    /// The objects that agents were given last.
    pub manifest: Manifest,
    /// The cluster.
    pub cluster: Cluster,
    /// The file with the objects.
    pub path: PathBuf,
    count: u16,
}

impl NorthSouth {
    /// Builds the cluster, with two clients at least, and starts the servers.
    pub fn new(spec: Spec) -> Result<Self> {
        let cluster = Cluster::build(Spec { clients: spec.clients.max(2), ..spec })?;
        for ranges in [LOAD_BALANCERS, EXTERNAL_IPS, CLUSTER_IPS] {
            cluster.route_to_node(&ranges, 0)?;
        }
        let mut servers = vec![(HERE, "here"), (ENTRY, "host")];
        if spec.nodes > 1 {
            servers.extend([(THERE, "there"), (OTHER, "other-host")]);
        }
        let servers = servers
            .into_iter()
            .map(|(at, name)| cluster.serve(at, name, TARGET))
            .collect::<Result<_>>()?;
        let mut manifest = Manifest::new();
        for node in 0..cluster.nodes().len() {
            let addresses = [node_v4(node).into(), node_v6(node).into()];
            let ranges = [pod_net_v4(node), pod_net_v6(node)];
            let node = Node::new(&cluster.nodes()[node].name, &addresses);
            let mut node = Value::from(node.pod_cidrs(&[&ranges[0], &ranges[1]]));
            node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = KUBELET.into();
            manifest.set(node);
        }
        let path = cluster.scratch().join("state.json");
        Ok(Self { agents: Vec::new(), servers, manifest, cluster, path, count: 0 })
    }

    /// Adds a Service; agents see it once [`NorthSouth::write`] or [`NorthSouth::start`] is called.
    pub fn expose(&mut self, exposure: &Exposure) -> Exposed {
        let service = Exposed(self.count);
        self.count += 1;
        self.change(service, exposure);
        service
    }

    /// Replaces a Service and its endpoints.
    pub fn change(&mut self, service: Exposed, exposure: &Exposure) {
        let object = self.object(service, exposure);
        self.manifest.set(object);
        for (kind, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
            let name = format!("{}-{}", service.name(), kind.to_lowercase());
            let mut slice = EndpointSlice::new("default", &name, &service.name(), kind)
                .port("tcp", "TCP", exposure.target_port())
                .port("udp", "UDP", exposure.target_port());
            for &at in &exposure.endpoints {
                let mut endpoint = Endpoint::ready(self.cluster.address(at, family));
                if let At::Pod(node, _) | At::Node(node) = at {
                    endpoint = endpoint.node(&self.cluster.nodes()[node].name);
                }
                slice = slice.endpoint(endpoint);
            }
            self.manifest.set(slice);
        }
    }

    /// A Service as an object, for tests that change more of it.
    pub fn object(&self, service: Exposed, exposure: &Exposure) -> Value {
        let both = |of: fn(Exposed, Family) -> IpAddr| {
            Family::ALL.map(|family| of(service, family).to_string())
        };
        let vips = Family::ALL.map(|family| service.cluster_ip(family));
        let mut object = Value::from(
            Service::new("default", &service.name(), &vips)
                .port("tcp", "TCP", PORT, exposure.target_port())
                .port("udp", "UDP", PORT, exposure.target_port())
                .spec("type", "LoadBalancer")
                .spec("externalTrafficPolicy", if exposure.local { "Local" } else { "Cluster" })
                .spec("externalIPs", json!(both(Exposed::external_ip)))
                .spec("sessionAffinity", if exposure.affinity { "ClientIP" } else { "None" }),
        );
        if !exposure.ranges.is_empty() {
            object["spec"]["loadBalancerSourceRanges"] = json!(exposure.ranges);
        }
        for port in 0..2 {
            object["spec"]["ports"][port]["nodePort"] = service.node_port().into();
        }
        let ingress = both(Exposed::load_balancer).map(|ip| json!({ "ip": ip }));
        object["status"]["loadBalancer"]["ingress"] = json!(ingress);
        object
    }

    /// Writes the objects; running agents follow.
    pub fn write(&self) -> Result<()> {
        self.manifest.write(&self.path)
    }

    /// Writes the objects and starts the agent of the entry node, with these flags besides. What other
    /// nodes get from it they could get from any client, and need no agent for.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        self.start_on(1, flags)
    }

    /// As [`NorthSouth::start`], on every node.
    pub fn start_everywhere(&mut self, flags: &[&str]) -> Result<()> {
        self.start_on(self.cluster.nodes().len(), flags)
    }

    fn start_on(&mut self, nodes: usize, flags: &[&str]) -> Result<()> {
        self.write()?;
        for node in 0..nodes {
            let spec = rig::with_small_maps(self.agent(node, flags)?);
            self.agents.push(spec.start_unsynced()?);
        }
        self.agents.iter().try_for_each(|agent| agent.wait_synced(SYNC_WITHIN))
    }

    /// How to start the agent of a node, without any sizes of maps.
    pub fn agent(&self, node: usize, flags: &[&str]) -> Result<AgentSpec> {
        let spec = self.cluster.agent(node, Source::Manifests(self.path.clone()))?;
        Ok(flags.iter().fold(spec, AgentSpec::arg))
    }

    /// A process at a place: in its node's cgroup if it has one.
    pub fn peer(&self, at: At) -> Result<Peer> {
        self.cluster.peer(at, Place::InCgroup)
    }

    /// What a client outside asks for.
    pub fn to(&self, service: Exposed, way: Way, family: Family) -> SocketAddr {
        match way {
            Way::NodePort => (self.cluster.address(ENTRY, family), service.node_port()).into(),
            Way::LoadBalancer => (service.load_balancer(family), PORT).into(),
            Way::ExternalIp => (service.external_ip(family), PORT).into(),
        }
    }

    /// Gives a Service other endpoints or policies, and waits until every agent has exactly these of
    /// the places in the table as its backends.
    pub fn change_and_wait(&mut self, service: Exposed, exposure: &Exposure) -> Result<()> {
        self.change(service, exposure);
        self.write()?;
        let places = [HERE, THERE, ENTRY, OTHER];
        let addresses = |wanted: bool| -> Vec<IpAddr> {
            let places = places.iter().filter(|at| exposure.endpoints.contains(at) == wanted);
            places.flat_map(|at| self.cluster.addresses(*at)).collect()
        };
        let (present, absent) = (addresses(true), addresses(false));
        for agent in &self.agents {
            let mut last = String::new();
            let name = format!("default/{}", service.name());
            wait::until(&format!("the backends of {name}"), IN_FORCE_WITHIN, || {
                last = agent
                    .command("services", &["--output", "json"])
                    .unwrap_or_else(|error| format!("{error:#}"));
                let shown = |ip: &IpAddr| rig::is_backend(&last, &name, *ip);
                present.iter().all(|ip| shown(ip) == Some(true))
                    && absent.iter().all(|ip| shown(ip) == Some(false))
            })
            .with_context(|| format!("services said: {last}"))?;
        }
        Ok(())
    }

    /// How far a node's counter has come, over all CPUs.
    pub fn counter(&self, node: usize, counter: Counter) -> Result<u64> {
        let folder = self.cluster.nodes()[node].bpffs.join(format!("v{}", abi::ABI_VERSION));
        let pin = folder.join(abi::map::COUNTERS);
        let map = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }

    /// All counters of a node that are not zero, for messages of failing tests.
    pub fn counters(&self, node: usize) -> Result<BTreeMap<&'static str, u64>> {
        let mut all = BTreeMap::new();
        for &counter in Counter::ALL {
            let value = self.counter(node, counter)?;
            if value > 0 {
                all.insert(counter.name(), value);
            }
        }
        Ok(all)
    }

    /// Waits until a counter of a node has gone up by so much.
    pub fn wait_counted(&self, node: usize, counter: Counter, before: u64, by: u64) -> Result<()> {
        let what = format!("{} to go up from {before} by {by}", counter.name());
        wait::until(&what, SOON, || self.counter(node, counter).is_ok_and(|now| now >= before + by))
            .with_context(|| format!("counters: {:?}", self.counters(node)))
    }

    /// The status of a node's agent, healthy or not.
    pub fn status(&self, node: usize) -> Result<Value> {
        let (_, text) = self.agents[node].command_any("status", &["--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("understand {text}"))
    }
}
