//! The table that namespace tests run over: engine × transport × family × topology; and, below,
//! the whole matrix of the contract.

pub mod cell;
pub mod compare;
mod objects;
pub mod run;
pub mod seen;
pub mod table;
pub mod world;

use std::fmt;

use anyhow::{Context as _, Result};

use crate::{
    cluster::{Family, Place, Topology},
    peer::{Peer, Reply, Sock},
};

/// Which engine serves the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The client is in the node's cgroup.
    Socket,
    /// The client is outside the node's cgroup.
    Packet,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The engine.
    pub engine: Engine,
    /// The transport protocol.
    pub transport: Transport,
    /// The address family.
    pub family: Family,
}

impl Engine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Socket, Self::Packet];

    /// Where the client runs for this engine to serve it.
    pub fn place(self) -> Place {
        match self {
            Self::Socket => Place::InCgroup,
            Self::Packet => Place::Outside,
        }
    }
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl Case {
    /// Every case; a topology is a cluster of its own and runs all of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Engine::ALL.into_iter().flat_map(|engine| {
            Transport::ALL.into_iter().flat_map(move |transport| {
                Family::ALL.into_iter().map(move |family| Self { engine, transport, family })
            })
        })
    }

    /// The cases of one transport protocol.
    pub fn of(transport: Transport) -> impl Iterator<Item = Self> {
        Self::all().filter(move |case| case.transport == transport)
    }

    /// A connected socket of this transport protocol.
    pub fn connect(self, client: &mut Peer, to: std::net::SocketAddr) -> Result<Sock> {
        match self.transport {
            Transport::Tcp => client.tcp_connect(to),
            Transport::Udp => client.udp_connected(to),
        }
        .with_context(|| format!("{self}: connect to {to}"))
    }

    /// One request on a fresh socket: where does a new flow go?
    pub fn once(self, client: &mut Peer, to: std::net::SocketAddr) -> Result<Reply> {
        match self.transport {
            Transport::Tcp => client.tcp_once(to),
            Transport::Udp => client.udp_once(to),
        }
        .with_context(|| format!("{self}: ask {to}"))
    }
}

/// Both topologies.
pub const TOPOLOGIES: [Topology; 2] = [Topology::Bridge, Topology::Routed];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, transport, family } = self;
        write!(f, "{engine:?} engine, {transport:?}, {family}")
    }
}
