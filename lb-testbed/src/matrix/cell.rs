//! The axes of the contract's matrix: who asks for what, under which policy, and where are the
//! endpoints?

use std::fmt;

use super::{Engine, Transport};
use crate::{
    cluster::{At, Family},
    oracle::{self, cluster::Policy},
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod with a network namespace of its own.
    Pod,
    /// A process of the node.
    Process,
    /// A pod in the node's network namespace: a process in a cgroup of its own.
    HostPod,
    /// A pod of another node, one that has no proxy.
    RemotePod,
    /// A machine outside of the cluster, behind a router.
    Outside,
}

/// Who makes Services out of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxy {
    /// Millrace, which meets packets from outside at tc.
    Millrace,
    /// Millrace, which meets them at XDP.
    MillraceXdp,
    /// kube-proxy in nftables mode.
    KubeProxy,
}

/// A row: a client and how it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Who asks.
    pub who: Who,
    /// Which engine serves it.
    pub engine: Engine,
    /// The transport protocol.
    pub transport: Transport,
    /// The address family.
    pub family: Family,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// A clusterIP.
    ClusterIp,
    /// The `NodePort` at the address of node-0, which is the client's where it is on one with a proxy.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// An externalIP.
    ExternalIp,
}

/// Where the endpoints of a Service are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backends {
    /// A pod of node-0.
    Here,
    /// A pod of another node.
    Elsewhere,
    /// The client itself.
    Itself,
    /// node-0 itself.
    HostHere,
    /// Another node itself.
    HostElsewhere,
    /// A pod of node-0 that terminates, but serves still.
    Terminating,
    /// The same, and a pod of another node that stays.
    TerminatingAndElsewhere,
    /// Nowhere.
    Nowhere,
    /// The client itself where that is a pod of another node; no column of its own.
    RemotePod,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// What is asked for.
    pub destination: Destination,
    /// The policy of both kinds of traffic.
    pub policy: Policy,
    /// Where the endpoints are.
    pub backends: Backends,
}

impl Who {
    /// Where it is.
    pub fn place(self) -> oracle::Place {
        match self {
            Self::Pod => oracle::Place::Pod,
            Self::Process | Self::HostPod => oracle::Place::Host,
            Self::RemotePod | Self::Outside => oracle::Place::Elsewhere,
        }
    }

    /// Whether it is off the node that is asked.
    pub fn is_elsewhere(self) -> bool {
        self.place() == oracle::Place::Elsewhere
    }

    /// The same in the cluster of namespaces.
    pub fn at(self) -> At {
        match self {
            Self::Pod => At::Pod(0, 0),
            Self::Process | Self::HostPod => At::Node(0),
            Self::RemotePod => At::Pod(2, 0),
            Self::Outside => At::Client(0),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Process => "process",
            Self::HostPod => "host pod",
            Self::RemotePod => "pod off",
            Self::Outside => "outside",
        }
    }
}

impl Row {
    /// The rows of a proxy.
    ///
    /// Packets of the node's own sockets are nobody's to translate, so only pods have both engines.
    /// XDP changes nothing for who is on the node, and kube-proxy knows no engines.
    pub fn of(proxy: Proxy) -> Vec<Self> {
        let inside = [
            (Who::Pod, Engine::Socket),
            (Who::Pod, Engine::Packet),
            (Who::Process, Engine::Socket),
            (Who::HostPod, Engine::Socket),
        ];
        let off = [(Who::RemotePod, Engine::Packet), (Who::Outside, Engine::Packet)];
        let clients: Vec<_> = match proxy {
            Proxy::Millrace => inside.into_iter().chain(off).collect(),
            Proxy::MillraceXdp => off.into(),
            Proxy::KubeProxy => inside.into_iter().skip(1).take(2).chain(off).collect(),
        };
        let mut rows = Vec::new();
        for (who, engine) in clients {
            for transport in Transport::ALL {
                for family in Family::ALL {
                    rows.push(Self { who, engine, transport, family });
                }
            }
        }
        rows
    }

    /// Whether there is such a cell: who is outside of the cluster is no endpoint.
    pub fn meets(self, column: Column) -> bool {
        !(self.who == Who::Outside && column.backends == Backends::Itself)
    }
}

impl Proxy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Millrace, Self::MillraceXdp, Self::KubeProxy];
}

impl Destination {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::ClusterIp, Self::NodePort, Self::LoadBalancer, Self::ExternalIp];
}

impl Backends {
    /// Each is a column.
    pub const ALL: [Self; 8] = [
        Self::Here,
        Self::Elsewhere,
        Self::Itself,
        Self::HostHere,
        Self::HostElsewhere,
        Self::Terminating,
        Self::TerminatingAndElsewhere,
        Self::Nowhere,
    ];

    /// The head of its column.
    pub fn head(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Elsewhere => "else",
            Self::Itself | Self::RemotePod => "self",
            Self::HostHere => "node",
            Self::HostElsewhere => "node2",
            Self::Terminating => "term",
            Self::TerminatingAndElsewhere => "t+els",
            Self::Nowhere => "none",
        }
    }
}

impl Column {
    /// The columns of a destination.
    pub fn of(destination: Destination) -> Vec<Self> {
        let mut columns = Vec::new();
        for policy in [Policy::Cluster, Policy::Local] {
            for backends in Backends::ALL {
                columns.push(Self { destination, policy, backends });
            }
        }
        columns
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Millrace => "Millrace",
            Self::MillraceXdp => "Millrace, XDP at the uplink",
            Self::KubeProxy => "kube-proxy",
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = if self.engine == Engine::Socket { "socket" } else { "packet" };
        let transport = if self.transport == Transport::Tcp { "TCP" } else { "UDP" };
        write!(f, "{:<8} {engine} {transport} {}", self.who.name(), self.family)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "load balancer IP",
            Self::ExternalIp => "externalIP",
        })
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, policy, backends } = self;
        write!(f, "{destination}, policy {}, backends {backends:?}", policy.name())
    }
}
