//! Continuous traffic within a peer process: what a change or a restart must not disturb.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::wire::{LoadKind, Reply, Stats};
use crate::sys;

/// Between two requests of a load: enough of them to notice a gap, and a machine with two cores
/// still has time for what is under test.
const PAUSE: Duration = Duration::from_millis(2);
/// Failures kept in words.
const KEPT_FAILURES: usize = 10;

/// A load that runs on a thread of its own.
#[derive(Debug)]
pub(super) struct Load {
    stats: Arc<Mutex<Stats>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One client of a load; `None` until it is connected.
enum Client {
    Tcp(Option<BufReader<TcpStream>>),
    Udp(Option<UdpSocket>),
}

impl Load {
    pub(super) fn start(to: SocketAddr, kind: LoadKind, timeout: Duration) -> Self {
        let (stats, stop) = <(Arc<Mutex<Stats>>, Arc<AtomicBool>)>::default();
        let (for_stats, for_stop) = (Arc::clone(&stats), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut client = Client::new(kind);
            let mut number = 0_u64;
            while !for_stop.load(Ordering::Relaxed) {
                number += 1;
                let result = client.request(to, kind, timeout, number);
                if result.is_err() {
                    client = Client::new(kind);
                }
                let mut stats = for_stats.lock().unwrap_or_else(PoisonError::into_inner);
                stats.note(result, number);
                stats.elapsed_ns = nanos(start);
                drop(stats);
                thread::park_timeout(PAUSE);
            }
        });
        Self { stats, stop, thread: Some(thread) }
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn stop(mut self) -> Stats {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            let mut stats = self.stats();
            stats.failed += 1;
            stats.failures.push("the load's thread panicked".into());
            return stats;
        }
        self.stats()
    }
}

/// `count` times connect, request, reply, close; resets instead of FIN, so that no number of runs
/// uses up the ports.
pub(super) fn crr(to: SocketAddr, count: u32, timeout: Duration) -> Stats {
    let mut stats = Stats::default();
    let start = Instant::now();
    for number in 0..u64::from(count) {
        let mut client = Client::Tcp(None);
        let result = client.request(to, LoadKind::TcpEstablished, timeout, number);
        let reset = match &client {
            Client::Tcp(Some(stream)) => sys::reset_on_close(stream.get_ref()),
            _ => Ok(()),
        };
        stats.note(reset.and(result), number);
    }
    stats.elapsed_ns = nanos(start);
    stats
}

impl Client {
    fn new(kind: LoadKind) -> Self {
        match kind {
            LoadKind::TcpConnections | LoadKind::TcpEstablished => Self::Tcp(None),
            LoadKind::UdpConnected | LoadKind::UdpUnconnected | LoadKind::UdpSockets => {
                Self::Udp(None)
            }
        }
    }

    /// One request; the name of the server that answered.
    fn request(
        &mut self,
        to: SocketAddr,
        kind: LoadKind,
        timeout: Duration,
        number: u64,
    ) -> io::Result<String> {
        let data = format!("request {number}");
        match self {
            Self::Tcp(slot) => {
                if slot.is_none() {
                    let stream = sys::tcp_connect(None, to, timeout)?;
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(timeout))?;
                    *slot = Some(BufReader::new(stream));
                }
                let Some(stream) = slot else { return Err(io::ErrorKind::NotConnected.into()) };
                stream.get_mut().write_all(format!("{data}\n").as_bytes())?;
                let mut line = String::new();
                if stream.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if kind == LoadKind::TcpConnections {
                    *slot = None;
                }
                server_of(&line, &data)
            }
            Self::Udp(slot) => {
                if slot.is_none() || kind == LoadKind::UdpSockets {
                    let socket = UdpSocket::bind(any(to))?;
                    socket.set_read_timeout(Some(timeout))?;
                    if kind == LoadKind::UdpConnected {
                        socket.connect(to)?;
                    }
                    *slot = Some(socket);
                }
                let Some(socket) = slot else { return Err(io::ErrorKind::NotConnected.into()) };
                if kind == LoadKind::UdpConnected {
                    socket.send(data.as_bytes())?;
                } else {
                    socket.send_to(data.as_bytes(), to)?;
                }
                let mut buffer = [0; 2048];
                let (size, from) = socket.recv_from(&mut buffer)?;
                if from != to {
                    return Err(io::Error::other(format!("reply from {from}, sent to {to}")));
                }
                server_of(&String::from_utf8_lossy(&buffer[..size]), &data)
            }
        }
    }
}

impl Stats {
    fn note(&mut self, result: io::Result<String>, number: u64) {
        match result {
            Ok(server) => {
                self.answered += 1;
                *self.by_server.entry(server).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < KEPT_FAILURES {
                    self.failures.push(format!("request {number}: {error}"));
                }
            }
        }
    }
}

/// The unspecified address of the family of `to`, any port.
pub(super) fn any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn server_of(reply: &str, data: &str) -> io::Result<String> {
    let reply: Reply = serde_json::from_str(reply).map_err(io::Error::other)?;
    if reply.data == data {
        Ok(reply.server)
    } else {
        Err(io::Error::other(format!("sent {data:?}, got {:?}", reply.data)))
    }
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
