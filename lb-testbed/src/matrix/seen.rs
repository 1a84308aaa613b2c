//! What becomes of a real connection of the contract's matrix?

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::abi::Counter;

use super::{Transport, cell::Row, world::Client};
use crate::{
    oracle::{Expectation, Source, Verdict, verdict},
    peer::{self, Close, Reply, STEP, Sock},
};

/// How long a client waits for an answer that nobody will give.
const SILENCE: Duration = Duration::from_millis(200);
/// How long it waits to be refused: less than it takes to send a SYN again.
const AT_ONCE: Duration = Duration::from_millis(400);

/// What the client and the backend saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// This backend answered, and saw this source.
    To(SocketAddr, Source),
    /// ECONNREFUSED: at the socket, by RST or by port unreachable.
    Refused,
    /// ECONNREFUSED, but not for the first packet. Over a virtual cable the answer to a SYN can come
    /// while the socket is still sending it, and an ICMP error is not heeded then.
    RefusedLate,
    /// EHOSTUNREACH.
    Unreachable,
    /// EPERM.
    NotPermitted,
    /// No answer, and the packet engine counted what it dropped.
    Dropped,
    /// No answer, and the packet engine dropped nothing.
    Silent,
    /// None of these.
    Otherwise(String),
}

/// The packet engine's counters of a node; kube-proxy has none.
pub struct Drops(Option<PerCpuArray<MapData, u64>>);

impl Drops {
    /// Opens the pinned counters, where there are any.
    pub fn open(pin: Option<&Path>) -> Result<Self> {
        let Some(pin) = pin else { return Ok(Self(None)) };
        let map = MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
        Ok(Self(Some(PerCpuArray::try_from(Map::PerCpuArray(map))?)))
    }

    /// Packets dropped because a service port has no backend, or none here.
    fn count(&self) -> Result<u64> {
        let Some(counters) = &self.0 else { return Ok(0) };
        let mut sum = 0;
        for counter in [Counter::DropNoBackend, Counter::DropNoLocalBackend] {
            sum += counters.get(&(counter as u32), 0)?.iter().sum::<u64>();
        }
        Ok(sum)
    }
}

/// How long is worth waiting? Less when nothing works anyway.
#[derive(Debug, Default)]
pub struct Patience {
    in_vain: u32,
}

impl Patience {
    fn of(&self, expected: &Expectation) -> Duration {
        match expected.verdict {
            Verdict::Translate(_) if self.in_vain < 3 => STEP,
            Verdict::Translate(_) | Verdict::Reject => AT_ONCE,
            Verdict::Drop | Verdict::PassUntouched => SILENCE,
        }
    }
}

impl Seen {
    /// Whether it is what the oracle expects.
    pub fn agrees_with(&self, expected: &Expectation) -> bool {
        let socket = expected.engine == verdict::Engine::Socket;
        match (&expected.verdict, self) {
            (Verdict::Translate(endpoints), Self::To(at, source)) => {
                endpoints.get(at) == Some(source)
            }
            (Verdict::Reject, Self::Refused) | (Verdict::PassUntouched, Self::Silent) => true,
            (Verdict::Drop, Self::Unreachable) => socket,
            (Verdict::Drop, Self::Dropped) => !socket,
            _ => false,
        }
    }
}

/// Asks as the row says.
pub fn ask(
    client: &mut Client,
    drops: &Drops,
    patience: &mut Patience,
    row: Row,
    to: SocketAddr,
    expected: &Expectation,
) -> Result<Seen> {
    let mut seen = ask_within(client, drops, patience.of(expected), row, to, expected)?;
    let by_icmp = expected.engine == verdict::Engine::Contract && row.transport == Transport::Tcp;
    if by_icmp && expected.verdict == Verdict::Reject && seen == Seen::Silent {
        seen = match ask_within(client, drops, STEP, row, to, expected)? {
            Seen::Refused => Seen::RefusedLate,
            other => other,
        };
    }
    if matches!((&expected.verdict, &seen), (Verdict::Translate(_), Seen::Silent)) {
        patience.in_vain += 1;
    }
    Ok(seen)
}

fn ask_within(
    client: &mut Client,
    drops: &Drops,
    patience: Duration,
    row: Row,
    to: SocketAddr,
    expected: &Expectation,
) -> Result<Seen> {
    let before = drops.count()?;
    let connected = match row.transport {
        Transport::Tcp => client.peer.tcp_connect_from(None, to, patience),
        Transport::Udp => client.peer.udp_connected(to),
    };
    let seen = match connected {
        Ok(sock) => exchange(client, &sock, to, patience)?,
        Err(error) => failed(&error),
    };
    let seen = match seen {
        Seen::Silent if drops.count()? > before => Seen::Dropped,
        other => other,
    };
    let by_socket = expected.engine == verdict::Engine::Socket;
    if row.transport != Transport::Udp || !by_socket {
        return Ok(seen);
    }
    // Unconnected sockets have a hook of their own.
    let unconnected = unconnected(client, to, patience)?;
    if unconnected == seen {
        return Ok(seen);
    }
    Ok(Seen::Otherwise(format!("connected {seen:?}, unconnected {unconnected:?}")))
}

/// One request and its reply on a connected socket, which is closed then.
fn exchange(client: &mut Client, sock: &Sock, to: SocketAddr, patience: Duration) -> Result<Seen> {
    let answer = client.peer.ask_within(sock, "matrix", patience);
    let seen = judge(client, answer, sock.remote, to);
    client.peer.close(sock.id, Close::Reset)?;
    Ok(seen)
}

fn unconnected(client: &mut Client, to: SocketAddr, patience: Duration) -> Result<Seen> {
    let sock = client.peer.udp_open(to)?;
    let answer = client.peer.ask_to(sock.id, to, "matrix", patience);
    let seen = judge(client, answer, Some(to), to);
    client.peer.close(sock.id, Close::Reset)?;
    Ok(seen)
}

/// The client must see nobody but whom it asked, at getpeername and as the source of datagrams.
fn judge(
    client: &Client,
    answer: Result<(Reply, Option<SocketAddr>)>,
    peer: Option<SocketAddr>,
    to: SocketAddr,
) -> Seen {
    match answer {
        Ok(_) if peer != Some(to) => Seen::Otherwise(format!("connected to {peer:?}")),
        Ok((_, Some(from))) if from != to => Seen::Otherwise(format!("answered by {from}")),
        Ok((reply, _)) => Seen::To(reply.local, client.source(reply.local, reply.client.ip())),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Seen {
    match peer::errno(error) {
        Some(libc::ECONNREFUSED) => Seen::Refused,
        Some(libc::EHOSTUNREACH) => Seen::Unreachable,
        Some(libc::EPERM) => Seen::NotPermitted,
        // The deadline of a connect, and that of a receive.
        Some(libc::ETIMEDOUT | libc::EAGAIN) => Seen::Silent,
        _ => Seen::Otherwise(format!("{error:#}")),
    }
}
