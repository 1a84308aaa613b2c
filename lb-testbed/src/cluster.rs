//! A small cluster out of network namespaces: nodes on a common network, pods on nodes, dual stack.
//!
//! ```text
//!            fabric: bridge 172.18.0.1, fd00:172:18::1
//!           /                                        \
//!   node-0 eth0 172.18.0.10, …::10            node-1 eth0 172.18.0.11, …::11
//!   pods 10.244.0.0/24, fd00:10:244:0::/64    pods 10.244.1.0/24, fd00:10:244:1::/64
//! ```
//!
//! Pods hang on a bridge that is their gateway, or on a veth each with routes (as the ptp plugin
//! does). Service addresses are in 10.96.0.0/16 and `fd00:10:96::/112`; without Millrace they follow
//! the default routes to the fabric, which forwards nothing unless there are clients outside:
//! 192.0.2.10 and up, `2001:db8:2::10` and up, behind the fabric as their router ([`outside`]).
//! Nodes may reach each other's pods by way of an [`overlay`], and have more than one [`uplink`].

pub mod outside;
pub mod overlay;
pub mod uplink;
mod wire;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    address::{client_v4, client_v6, fabric_v4, fabric_v6, node_v4, node_v6, pod_v4, pod_v6},
    agent::{AgentSpec, Source},
    bpffs::Bpffs,
    cgroup::Cgroup,
    cluster::{overlay::Overlay, uplink::Uplink},
    netns::Netns,
    peer::Peer,
    scratch::Scratch,
};

/// How pods are attached to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// A bridge on the node holds the gateway address; pods of a node share a link.
    Bridge,
    /// Each pod has a veth with the gateway address on it, and a host route.
    Routed,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Number of nodes.
    pub nodes: u8,
    /// Pods on each node at the beginning.
    pub pods_per_node: u8,
    /// How pods are attached.
    pub topology: Topology,
    /// How nodes are attached to the fabric.
    pub uplink: Uplink,
    /// How nodes reach each other's pods.
    pub overlay: Overlay,
    /// Clients behind the fabric; with any, it forwards as a router does.
    pub clients: u8,
}

/// A place in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A pod: node number, pod number.
    Pod(usize, usize),
    /// A node itself, as a pod in the host network is.
    Node(usize),
    /// Outside the cluster, on the network of the nodes.
    Fabric,
    /// Outside the cluster, behind the fabric: client number.
    Client(usize),
}

/// Which cgroup a process runs in, and so which engine can serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node's cgroup: the socket engine sees its sockets.
    InCgroup,
    /// Another cgroup: only the packet engine can serve it, as with gVisor or a VM.
    Outside,
}

/// A running cluster; everything is removed on drop.
#[derive(Debug)]
pub struct Cluster {
    spec: Spec,
    // Before the namespaces whose packets it carries.
    tunnel: Option<overlay::Tunnel>,
    nodes: Vec<Node>,
    clients: Vec<Netns>,
    fabric: Netns,
    outside: Cgroup,
    // Last of the cgroups: it is the parent of the others, and kills what is left in any.
    cgroup: Cgroup,
    bpffs: Bpffs,
    scratch: Scratch,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// `node-0` and so on.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its cgroup: processes of the node and its pods that the socket engine sees.
    pub cgroup: Cgroup,
    /// Its folder in the BPF file system.
    pub bpffs: PathBuf,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace; the interface inside is `eth0`.
    pub netns: Netns,
    /// Its host-side interface.
    pub host_interface: String,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            nodes: 2,
            pods_per_node: 2,
            topology: Topology::Bridge,
            uplink: Uplink::One,
            overlay: Overlay::None,
            clients: 0,
        }
    }
}

impl Cluster {
    /// Builds a cluster.
    pub fn build(spec: Spec) -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let mut cluster = Self {
            spec,
            tunnel: None,
            nodes: Vec::new(),
            clients: Vec::new(),
            fabric: Netns::new()?,
            outside: cgroup.child("outside")?,
            cgroup,
            bpffs: Bpffs::new()?,
            scratch: Scratch::new()?,
        };
        cluster.fabric.plain_bridges()?;
        cluster.fabric.ip(&wire::bridge("br0", fabric_v4(1), fabric_v6(1)))?;
        for index in 0..usize::from(spec.nodes) {
            cluster.add_node(index).with_context(|| format!("make node {index}"))?;
            for _ in 0..spec.pods_per_node {
                cluster.add_pod(index)?;
            }
        }
        cluster.join_pods().context("join the pods of all nodes")?;
        cluster.add_clients().context("make clients outside")?;
        Ok(cluster)
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What it was built from.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// The network outside the nodes.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// A cgroup of the cluster that is no node's.
    pub fn outside(&self) -> &Cgroup {
        &self.outside
    }

    /// The parent of all cgroups of the cluster.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A folder for the test's files.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The namespace of a place.
    pub fn netns(&self, at: At) -> &Netns {
        match at {
            At::Pod(node, pod) => &self.nodes[node].pods[pod].netns,
            At::Node(node) => &self.nodes[node].netns,
            At::Fabric => &self.fabric,
            At::Client(client) => &self.clients[client],
        }
    }

    /// The address of a place.
    pub fn address(&self, at: At, family: Family) -> IpAddr {
        match (at, family) {
            (At::Pod(node, pod), Family::V4) => pod_v4(node, pod).into(),
            (At::Pod(node, pod), Family::V6) => pod_v6(node, pod).into(),
            (At::Node(node), Family::V4) => node_v4(node).into(),
            (At::Node(node), Family::V6) => node_v6(node).into(),
            (At::Fabric, Family::V4) => fabric_v4(1).into(),
            (At::Fabric, Family::V6) => fabric_v6(1).into(),
            (At::Client(client), Family::V4) => client_v4(client).into(),
            (At::Client(client), Family::V6) => client_v6(client).into(),
        }
    }

    /// Both addresses of a place, IPv4 first.
    pub fn addresses(&self, at: At) -> [IpAddr; 2] {
        [self.address(at, Family::V4), self.address(at, Family::V6)]
    }

    /// Starts a process that holds sockets at a place. Who is outside is in no node's cgroup.
    pub fn peer(&self, at: At, place: Place) -> Result<Peer> {
        let cgroup = match (at, place) {
            (At::Pod(node, _) | At::Node(node), Place::InCgroup) => &self.nodes[node].cgroup,
            (_, Place::Outside) | (At::Fabric | At::Client(_), _) => &self.outside,
        };
        Peer::start(&format!("peer at {at:?}, {place:?}"), self.netns(at), cgroup)
    }

    /// Starts an echo server in the node's cgroup: both families, TCP and UDP, answering as `name`.
    pub fn serve(&self, at: At, name: &str, port: u16) -> Result<Peer> {
        self.serve_in(at, Place::InCgroup, name, port)
    }

    /// As [`Cluster::serve`], with the choice of cgroup.
    pub fn serve_in(&self, at: At, place: Place, name: &str, port: u16) -> Result<Peer> {
        let mut peer = self.peer(at, place)?;
        let addrs = self.addresses(at).map(|ip| SocketAddr::new(ip, port));
        peer.serve(name, &addrs).with_context(|| format!("serve at {at:?}"))?;
        Ok(peer)
    }

    /// Runs code in the namespace of a place, outside every node's cgroup.
    pub fn run<T: Send>(&self, at: At, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns(at).run(work)
    }

    /// How to start the agent of a node.
    pub fn agent(&self, node: usize, source: Source) -> Result<AgentSpec> {
        let node = &self.nodes[node];
        AgentSpec::new(&node.name, source)?
            .netns(&node.netns.path())
            .cgroup(node.cgroup.path())
            .bpffs(&node.bpffs)
            .runs_in(&self.outside)
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Routed => "routed",
        })
    }
}
