//! A node that only forwards, and the world at the other end of its one link: what XDP is tried on
//! without a cluster.
//!
//! ```text
//!   node: eth0 172.18.0.10, fd00:172:18::10
//!     |
//!   world: eth0 172.18.0.1, fd00:172:18::1 (router and client)
//!               172.18.0.50, fd00:172:18::50 (a backend on "another node", port 8080)
//! ```
//!
//! The Service `web` has the `NodePort` 30080 on TCP and UDP, in both families.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::abi::{self, Counter};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, AgentSpec, SYNC_WITHIN, Source},
    bpffs::Bpffs,
    cgroup::Cgroup,
    manifest::{Endpoint, EndpointSlice, Manifest, Node, Service},
    netns::Netns,
    peer::Peer,
    rig::with_small_maps,
    scratch::Scratch,
    testrun, wait,
};

/// The node's addresses.
pub const NODE: [&str; 2] = ["172.18.0.10", "fd00:172:18::10"];
/// The addresses of router and client.
pub const ROUTER: [&str; 2] = ["172.18.0.1", "fd00:172:18::1"];
/// The backend's addresses.
pub const BACKEND: [&str; 2] = ["172.18.0.50", "fd00:172:18::50"];
/// The port of the Service on the node.
pub const NODE_PORT: u16 = 30_080;
const TARGET: u16 = 8080;
/// How long XDP may take to be settled: neighbours are waited for, on an emulated machine too.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// A node with its world.
#[derive(Debug)]
pub struct OneArmed {
    // Dropped in this order: processes before what they run in.
    agent: Option<Agent>,
    client: Peer,
    _backend: Peer,
    /// The node.
    pub node: Netns,
    /// All else.
    pub world: Netns,
    cgroup: Cgroup,
    _outside: Cgroup,
    bpffs: Bpffs,
    scratch: Scratch,
    fit: Option<OwnedFd>,
}

/// Makes a veth fit for what XDP does at its other end, as long as the result lives: it fills in
/// checksums itself, puts packets together, and has an XDP program, without which the kernel leaves
/// what XDP sends back lying (`veth_xdp_flush`).
pub fn fit_for_xdp(netns: &Netns, interface: &str) -> Result<OwnedFd> {
    netns.offload_checksums(interface, false)?;
    netns.aggregate(interface, true)?;
    let index = netns.ifindex(interface)?;
    // XDP_PASS
    let program = testrun::load_empty(testrun::Kind::Xdp, 2, 0)?;
    netns.run(|| testrun::attach_xdp(program.as_fd(), index))?
}

impl OneArmed {
    /// With a pair of veths between them, whose outer end is [fit](fit_for_xdp) for XDP at the inner one.
    pub fn by_veth() -> Result<Self> {
        let mut fit = None;
        let mut rig = Self::new(|node, world| {
            node.ip(&format!("link add eth0 type veth peer name eth0 netns {}", world.name()))?;
            fit = Some(fit_for_xdp(world, "eth0")?);
            Ok(())
        })?;
        rig.fit = fit;
        Ok(rig)
    }

    /// `plug` puts an interface `eth0` into each of the two.
    pub fn new(plug: impl FnOnce(&Netns, &Netns) -> Result<()>) -> Result<Self> {
        let (node, world) = (Netns::new()?, Netns::new()?);
        let (cgroup, outside) = (Cgroup::new()?, Cgroup::new()?);
        node.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        plug(&node, &world)?;
        for (netns, addresses) in [(&node, vec![NODE]), (&world, vec![ROUTER, BACKEND])] {
            let lines = addresses.iter().map(|[v4, v6]| {
                format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n")
            });
            netns.ip(&format!("{}link set eth0 up", lines.collect::<String>()))?;
        }
        let [v4, v6] = ROUTER;
        node.ip(&format!("route add default via {v4}\nroute add ::/0 via {v6}"))?;
        let mut backend = Peer::start("backend", &world, &outside)?;
        backend.serve("backend", &sockets(BACKEND, TARGET)?)?;
        let client = Peer::start("client", &world, &outside)?;
        Ok(Self {
            agent: None,
            client,
            _backend: backend,
            node,
            world,
            cgroup,
            _outside: outside,
            bpffs: Bpffs::new()?,
            scratch: Scratch::new()?,
            fit: None,
        })
    }

    /// Starts the node's agent with these flags besides.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        let path = self.scratch.path().join("state.json");
        manifest()?.write(&path)?;
        let spec = AgentSpec::new("node-0", Source::Manifests(path))?
            .netns(&self.node.path())
            .cgroup(self.cgroup.path())
            .bpffs(&self.folder());
        let spec = flags.iter().fold(with_small_maps(spec), AgentSpec::arg);
        let agent = spec.start_unsynced()?;
        agent.wait_synced(SYNC_WITHIN)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The agent.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the agent is not started")
    }

    fn folder(&self) -> PathBuf {
        self.bpffs.path().join("node")
    }

    /// The agent's status, healthy or not.
    pub fn status(&self) -> Result<Value> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        let (_, text) = agent.command_any("status", &["--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("understand {text}"))
    }

    /// Waits until XDP on an interface is as wanted; what `status` says of it then.
    pub fn wait_xdp(&self, interface: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = String::from("nothing");
        let found = wait::until_some("XDP to be settled", SETTLED_WITHIN, || {
            let status = self.status();
            let xdp = status.as_ref().ok().map(|status| xdp_of(status, interface));
            last = format!("{xdp:?}, {:?}", status.as_ref().err());
            xdp.filter(|xdp| wanted(xdp))
        });
        found.with_context(|| format!("status said of {interface}: {last}"))
    }

    /// The same of XDP that runs and was probed: it runs before the agent has noted what it found.
    pub fn wait_xdp_probed(&self, interface: &str) -> Result<Value> {
        self.wait_xdp(interface, |xdp| {
            let probed = xdp["state"].as_str().is_some_and(|state| state.contains("proven"));
            probed && xdp["runs"] == true
        })
    }

    /// How often XDP was demoted.
    pub fn demotions(&self) -> Result<u64> {
        self.status()?["xdp_demotions"].as_u64().context("status counts demotions")
    }

    /// How far a counter has come, over all CPUs.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let folder = self.folder().join(format!("v{}", abi::ABI_VERSION));
        let map = MapData::from_pin(folder.join(abi::map::COUNTERS)).context("open COUNTERS")?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }

    /// A connection and a datagram to the node's port in each family: the backend answers both, and
    /// sees the node.
    pub fn exchange(&mut self) -> Result<()> {
        let result = self.try_exchange();
        result.with_context(|| format!("counters: {:?}", self.counters()))
    }

    /// All counters that are not zero.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let all = Counter::ALL.iter().map(|&counter| Ok((counter.name(), self.counter(counter)?)));
        let all: Vec<_> = all.collect::<Result<_>>()?;
        Ok(all.into_iter().filter(|(_, value)| *value > 0).collect())
    }

    fn try_exchange(&mut self) -> Result<()> {
        let nodes = sockets(NODE, NODE_PORT)?;
        for to in nodes {
            for reply in [
                self.client.tcp_once(to).with_context(|| format!("connect to {to}"))?,
                self.client.udp_once(to).with_context(|| format!("a datagram to {to}"))?,
            ] {
                ensure!(reply.server == "backend", "{to}: {} answered", reply.server);
                ensure!(reply.client.ip() == to.ip(), "{to}: the backend saw {}", reply.client);
            }
        }
        Ok(())
    }

    /// The client, for more.
    pub fn client(&mut self) -> &mut Peer {
        &mut self.client
    }
}

/// What a status says of XDP on an interface; null if nothing.
pub fn xdp_of(status: &Value, interface: &str) -> Value {
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    interfaces
        .filter(|one| one["name"] == interface)
        .map(|one| one["xdp"].clone())
        .next()
        .unwrap_or_default()
}

/// Waits until XDP runs in the driver of an agent's interface: it is proven after the agent is in
/// sync, and what fails falls back to tc.
pub fn wait_for_native_xdp(agent: &Agent, interface: &str) -> Result<()> {
    let mut last = String::new();
    wait::until("XDP to run", SETTLED_WITHIN, || {
        last = match agent.command_any("status", &["--output", "json"]) {
            Ok((_, text)) => text,
            Err(error) => format!("{error:#}"),
        };
        let status: Value = serde_json::from_str(&last).unwrap_or_default();
        let xdp = xdp_of(&status, interface);
        xdp["runs"] == true && xdp["mode"] == "native"
    })
    .with_context(|| format!("status said {last}"))
}

fn sockets(addresses: [&str; 2], port: u16) -> Result<Vec<SocketAddr>> {
    let each = addresses.iter().map(|text| Ok(SocketAddr::new(text.parse::<IpAddr>()?, port)));
    each.collect()
}

fn manifest() -> Result<Manifest> {
    let ip = |text: &str| text.parse::<IpAddr>();
    let mut manifest = Manifest::new();
    manifest.set(Node::new("node-0", &[ip(NODE[0])?, ip(NODE[1])?]));
    manifest.set(Node::new("node-1", &[ip(BACKEND[0])?, ip(BACKEND[1])?]));
    let mut service = Value::from(
        Service::new("default", "web", &[ip("10.96.0.10")?, ip("fd00:10:96::10")?])
            .port("tcp", "TCP", 80, TARGET)
            .port("udp", "UDP", 80, TARGET)
            .spec("type", "NodePort"),
    );
    for port in 0..2 {
        service["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
    }
    manifest.set(service);
    for (kind, backend) in [("IPv4", BACKEND[0]), ("IPv6", BACKEND[1])] {
        let slice =
            EndpointSlice::new("default", &format!("web-{kind}").to_lowercase(), "web", kind)
                .port("tcp", "TCP", TARGET)
                .port("udp", "UDP", TARGET)
                .endpoint(Endpoint::ready(ip(backend)?).node("node-1"));
        manifest.set(slice);
    }
    Ok(manifest)
}
