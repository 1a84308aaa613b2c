//! A cluster with agents on real state: what most namespace tests begin with.
//!
//! | pod | role |
//! |---|---|
//! | node-0, pod 0 | client |
//! | node-0, pod 1 | server `near` |
//! | node-1, pod 0 | server `far` |
//! | node-1, pod 1 | server `spare`, in no endpoint list at first |
//!
//! The Service `web` has a cluster IP of each family, port 80 on TCP and UDP, target port 8080 and
//! the endpoints of `near` and `far`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    address::{node_v4, node_v6, pod_net_v4, pod_net_v6},
    agent::{Agent, AgentSpec, Source},
    cluster::{At, Cluster, Family, Spec, Topology},
    manifest::{Manifest, Node},
    matrix::Engine,
    peer::Peer,
    wait,
};

/// How long a change may take to be in force.
pub const IN_FORCE_WITHIN: Duration = Duration::from_secs(15);
/// The client's pod.
pub const CLIENT: At = At::Pod(0, 0);
/// The pod of the server `near`.
pub const NEAR: At = At::Pod(0, 1);
/// The pod of the server `far`.
pub const FAR: At = At::Pod(1, 0);
/// The pod of the server `spare`.
pub const SPARE: At = At::Pod(1, 1);
/// The port of `web`.
pub const PORT: u16 = 80;
/// The port that servers listen on.
pub const TARGET: u16 = 8080;

/// Cluster, state and agents.
#[derive(Debug)]
pub struct Rig {
    // Dropped in this order: agents and servers before the cluster that they run in.
    /// One agent per node.
    pub agents: Vec<Agent>,
    /// The servers, in the order of the table above.
    pub servers: Vec<Peer>,
    /// The objects that agents were given last.
    pub manifest: Manifest,
    /// The cluster.
    pub cluster: Cluster,
    path: PathBuf,
}

impl Rig {
    /// Builds the cluster, starts servers and agents, waits until they are in sync.
    pub fn new(topology: Topology) -> Result<Self> {
        let mut rig = Self::without_agents(topology)?;
        rig.start_agents()?;
        Ok(rig)
    }

    /// The same without agents; the manifest is written.
    pub fn without_agents(topology: Topology) -> Result<Self> {
        let cluster = Cluster::build(Spec { topology, ..Spec::default() })?;
        let servers = [(NEAR, "near"), (FAR, "far"), (SPARE, "spare")]
            .into_iter()
            .map(|(at, name)| cluster.serve(at, name, TARGET))
            .collect::<Result<_>>()?;
        let path = cluster.scratch().join("state.json");
        let mut manifest = Manifest::new();
        for node in 0..cluster.nodes().len() {
            let addresses = [node_v4(node).into(), node_v6(node).into()];
            let object = Node::new(&cluster.nodes()[node].name, &addresses);
            manifest.set(object.pod_cidrs(&[&pod_net_v4(node), &pod_net_v6(node)]));
        }
        let mut rig = Self { agents: Vec::new(), servers, manifest, cluster, path };
        let endpoints = rig.addresses(&[NEAR, FAR]);
        let vips = Family::ALL.map(|family| rig.vip(family).ip());
        rig.manifest.publish("web", &vips, PORT, TARGET, &endpoints);
        rig.manifest.write(&rig.path)?;
        Ok(rig)
    }

    /// Starts an agent on every node.
    pub fn start_agents(&mut self) -> Result<()> {
        for node in 0..self.cluster.nodes().len() {
            let spec = self.agent(node, Source::Manifests(self.path.clone()))?;
            self.agents.push(spec.start_unsynced()?);
        }
        self.agents.iter().try_for_each(|agent| agent.wait_synced(crate::agent::SYNC_WITHIN))
    }

    /// How to start the agent of a node.
    pub fn agent(&self, node: usize, source: Source) -> Result<AgentSpec> {
        Ok(with_small_maps(self.cluster.agent(node, source)?))
    }

    /// `web` in a family.
    pub fn vip(&self, family: Family) -> SocketAddr {
        Self::cluster_ip(family)
    }

    /// The cluster IP of `web` and its port.
    pub fn cluster_ip(family: Family) -> SocketAddr {
        match family {
            Family::V4 => (Ipv4Addr::new(10, 96, 0, 10), PORT).into(),
            Family::V6 => (Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10), PORT).into(),
        }
    }

    /// Both addresses of each of these places.
    pub fn addresses(&self, places: &[At]) -> Vec<IpAddr> {
        places.iter().flat_map(|at| self.cluster.addresses(*at)).collect()
    }

    /// A process in the client's pod, served by `engine`.
    pub fn client(&self, engine: Engine) -> Result<Peer> {
        self.cluster.peer(CLIENT, engine.place())
    }

    /// Gives `web` other endpoints, and waits until every agent has them in force.
    pub fn set_endpoints(&mut self, places: &[At]) -> Result<()> {
        self.change_endpoints(places)?;
        self.wait_endpoints(places)
    }

    /// Waits until, of the pods in the table above, `web` has exactly these as backends.
    pub fn wait_endpoints(&self, places: &[At]) -> Result<()> {
        let all = [NEAR, FAR, SPARE, CLIENT];
        let others: Vec<At> = all.into_iter().filter(|at| !places.contains(at)).collect();
        self.wait_backends("default/web", &self.addresses(places), &self.addresses(&others))
    }

    /// Gives `web` other endpoints; agents follow when they see the file change.
    pub fn change_endpoints(&mut self, places: &[At]) -> Result<()> {
        let endpoints = self.addresses(places);
        self.manifest.endpoints("web", TARGET, &endpoints);
        self.write()
    }

    /// Writes the manifest; the agents watch it.
    pub fn write(&self) -> Result<()> {
        self.manifest.write(&self.path)
    }

    /// Waits until every agent shows all of `present` among the backends of a Service, and none of
    /// `absent`.
    pub fn wait_backends(
        &self,
        service: &str,
        present: &[IpAddr],
        absent: &[IpAddr],
    ) -> Result<()> {
        for agent in &self.agents {
            let mut last = String::new();
            wait::until(&format!("the new backends of {service}"), IN_FORCE_WITHIN, || {
                last = agent
                    .command("services", &["--output", "json"])
                    .unwrap_or_else(|error| format!("{error:#}"));
                let shown = |address: &IpAddr| is_backend(&last, service, *address);
                present.iter().all(|address| shown(address) == Some(true))
                    && absent.iter().all(|address| shown(address) == Some(false))
            })
            .with_context(|| {
                format!("wanted {present:?}, not {absent:?}; services said: {last}")
            })?;
        }
        Ok(())
    }
}

/// An agent with maps no larger than tests need: the kernel clears and accounts for every byte, for
/// every agent.
pub fn with_small_maps(spec: AgentSpec) -> AgentSpec {
    let sizes = [
        ("--max-service-ports", "1024"),
        ("--max-frontends", "1024"),
        ("--max-backends", "4096"),
        ("--max-slots", "8192"),
        ("--max-flows", "32768"),
        ("--max-half-open-flows", "8192"),
        ("--max-socket-peers", "4096"),
    ];
    sizes.iter().fold(spec, |spec, (flag, size)| spec.arg(flag).arg(size))
}

/// Whether the output of `services --output json` shows an address as backend of a Service; `None`
/// when it cannot be read.
pub(crate) fn is_backend(output: &str, service: &str, address: IpAddr) -> Option<bool> {
    let output: serde_json::Value = serde_json::from_str(output).ok()?;
    let frontends = output.as_array().or_else(|| output.get("frontends")?.as_array())?;
    let address = address.to_string();
    Some(frontends.iter().any(|frontend| {
        let text = frontend.to_string();
        text.contains(service) && frontend["backends"].to_string().contains(&address)
    }))
}
