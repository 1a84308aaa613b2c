//! What a test and its peer process say to each other: one JSON object per line, one answer per
//! command.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

/// Number of a socket within its peer process.
pub type SocketId = u32;
/// Number of a load within its peer process.
pub type LoadId = u32;

/// One command to a peer. Every command that can wait has a deadline.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Command {
    /// Listens on TCP and UDP at each address and answers as `name`.
    Serve { name: String, addrs: Vec<SocketAddr> },
    /// Opens a TCP connection.
    TcpConnect { to: SocketAddr, from: Option<SocketAddr>, timeout_ms: u64 },
    /// The same by a socket that the engine has the same place for as for `sock`.
    TcpConnectBeside { sock: SocketId, to: SocketAddr, timeout_ms: u64 },
    /// Opens a UDP socket bound to `from`; port 0 lets the kernel choose.
    UdpOpen { from: SocketAddr },
    /// Connects a UDP socket.
    UdpConnect { sock: SocketId, to: SocketAddr },
    /// Sends on a connected socket.
    Send { sock: SocketId, data: String },
    /// Sends a datagram.
    SendTo { sock: SocketId, to: SocketAddr, data: String },
    /// Receives a line (TCP) or a datagram (UDP).
    Receive { sock: SocketId, timeout_ms: u64 },
    /// Sends `bytes` bytes over TCP and gets as many back, all of them checked.
    Bulk { sock: SocketId, bytes: u64, timeout_ms: u64 },
    /// getsockname and getpeername.
    Names { sock: SocketId },
    /// Closes a socket.
    Close { sock: SocketId, how: Close },
    /// Starts sending requests from a thread of its own until stopped.
    LoadStart { to: SocketAddr, kind: LoadKind, timeout_ms: u64 },
    /// What a load has done so far.
    LoadStats { load: LoadId },
    /// Stops a load, and says what it has done.
    LoadStop { load: LoadId },
    /// `count` times connect, request, reply, close, as fast as one thread can.
    Crr { to: SocketAddr, count: u32, timeout_ms: u64 },
    /// Answers on any number of connections at an address that others may listen at as well.
    ServeMany { addr: SocketAddr },
    /// Opens that many connections.
    ConnectMany { to: SocketAddr, count: usize, timeout_ms: u64 },
    /// Asks on all of them, and waits for all answers.
    AskMany,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Close {
    /// As `close()` does: FIN for TCP.
    Graceful,
    /// RST for TCP.
    Reset,
    /// The writing direction only; the socket stays.
    Write,
}

/// What a load does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadKind {
    /// A new TCP connection with one request each time.
    TcpConnections,
    /// Requests on one TCP connection.
    TcpEstablished,
    /// Requests on one connected UDP socket.
    UdpConnected,
    /// Requests from one unconnected UDP socket, the reply's source checked.
    UdpUnconnected,
    /// A new unconnected UDP socket each time.
    UdpSockets,
}

/// A peer's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Answer {
    /// Done, nothing to tell.
    Done,
    /// The names of a socket, as getsockname and getpeername tell them.
    Socket { sock: SocketId, local: SocketAddr, remote: Option<SocketAddr>, is_tcp: bool },
    /// What was received; `from` is the source that recvfrom tells.
    Data { data: String, from: Option<SocketAddr> },
    /// TCP: the other side has closed.
    End,
    /// A load was started.
    Load { load: LoadId },
    /// What a load has done.
    Stats(Stats),
    /// As whom the server of many connections sees their clients.
    Clients { seen: BTreeSet<SocketAddr> },
    /// It failed.
    Failed { what: String, errno: Option<i32> },
}

/// What a load has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests answered rightly.
    pub answered: u64,
    /// Requests failed or answered wrongly.
    pub failed: u64,
    /// Answers per server name.
    pub by_server: BTreeMap<String, u64>,
    /// The first few failures, in words.
    pub failures: Vec<String>,
    /// From the first request to the last, nanoseconds.
    pub elapsed_ns: u64,
}

/// What an echo server answers to each line or datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The server's name.
    pub server: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
    /// The server's own address of this connection; for UDP the address it is bound to.
    pub local: SocketAddr,
    /// What was sent.
    pub data: String,
}
