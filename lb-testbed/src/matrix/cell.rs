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
    /// The `NodePort` at the address of the client's node.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// An externalIP.
    ExternalIp,
}

/// Where the endpoints of a Service are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backends {
    /// A pod of the client's node.
    Here,
    /// A pod of another node.
    Elsewhere,
    /// The client itself.
    Itself,
    /// The client's node itself.
    HostHere,
    /// Another node itself.
    HostElsewhere,
    /// A pod of the client's node that terminates, but serves still.
    Terminating,
    /// The same, and a pod of another node that stays.
    TerminatingAndElsewhere,
    /// Nowhere.
    Nowhere,
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
        }
    }

    /// The same in the cluster of namespaces.
    pub fn at(self) -> At {
        match self {
            Self::Pod => At::Pod(0, 0),
            Self::Process | Self::HostPod => At::Node(0),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Process => "process",
            Self::HostPod => "host pod",
        }
    }
}

impl Row {
    /// Every row. Packets of the node's own sockets are nobody's to translate, so only pods have
    /// the packet engine.
    pub fn all() -> Vec<Self> {
        let clients = [
            (Who::Pod, Engine::Socket),
            (Who::Pod, Engine::Packet),
            (Who::Process, Engine::Socket),
            (Who::HostPod, Engine::Socket),
        ];
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
}

impl Destination {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::ClusterIp, Self::NodePort, Self::LoadBalancer, Self::ExternalIp];
}

impl Backends {
    /// All of them.
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
            Self::Itself => "self",
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
