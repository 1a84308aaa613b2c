//! Thousands of connections at once within a peer process, all of them used in turn.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use crate::sys;

/// What a client sends on each connection: its number.
const QUESTION: usize = 8;
/// What comes back: the number, and the client's address (IPv4 within IPv6) and port as the server sees
/// them.
const ANSWER: usize = QUESTION + 18;
/// How long a server rests that had nothing to do.
const REST: Duration = Duration::from_millis(2);

/// Listens at `addr` beside others that do so as well, and answers on all connections there are.
pub(super) fn serve(addr: SocketAddr) -> io::Result<()> {
    sys::packet::allow_open_files()?;
    let listener = sys::tcp_listen_shared(addr)?;
    let (accepted, arrivals) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if accepted.send(stream).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || answer(&arrivals));
    Ok(())
}

/// Looks at each connection in turn, over and over.
fn answer(arrivals: &Receiver<TcpStream>) {
    let mut streams: Vec<TcpStream> = Vec::new();
    loop {
        let before = streams.len();
        streams.extend(arrivals.try_iter().filter(|stream| {
            stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).is_ok()
        }));
        let mut is_idle = before == streams.len();
        streams.retain(|stream| match answer_one(stream) {
            Ok(()) => {
                is_idle = false;
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        if is_idle {
            thread::park_timeout(REST);
        }
    }
}

fn answer_one(mut stream: &TcpStream) -> io::Result<()> {
    let mut answer = [0; ANSWER];
    // A question is one segment.
    stream.read_exact(&mut answer[..QUESTION])?;
    let client = stream.peer_addr()?;
    let ip = match client.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    answer[QUESTION..ANSWER - 2].copy_from_slice(&ip.octets());
    answer[ANSWER - 2..].copy_from_slice(&client.port().to_be_bytes());
    stream.write_all(&answer)
}

/// Opens `count` connections, one after the other.
pub(super) fn connect(
    to: SocketAddr,
    count: usize,
    timeout: Duration,
) -> io::Result<Vec<TcpStream>> {
    sys::packet::allow_open_files()?;
    let connect = |number: usize| {
        let stream = sys::tcp_connect(None, to, timeout).map_err(|error| {
            io::Error::new(error.kind(), format!("connection {number}: {error}"))
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(stream)
    };
    (0..count).map(connect).collect()
}

/// Asks on each connection, then waits for every answer; as whom the server sees their clients.
pub(super) fn ask(streams: &mut [TcpStream]) -> io::Result<BTreeSet<SocketAddr>> {
    for (number, stream) in (0_u64..).zip(streams.iter_mut()) {
        stream.write_all(&number.to_be_bytes())?;
    }
    let mut clients = BTreeSet::new();
    for (number, stream) in (0_u64..).zip(streams) {
        let mut answer = [0; ANSWER];
        stream
            .read_exact(&mut answer)
            .map_err(|error| io::Error::new(error.kind(), format!("answer {number}: {error}")))?;
        if answer[..QUESTION] != number.to_be_bytes() {
            return Err(io::Error::other(format!("connection {number} got {answer:?}")));
        }
        let (ip, port) = answer[QUESTION..].split_at(16);
        let ip: [u8; 16] = ip.try_into().unwrap_or_default();
        let port = u16::from_be_bytes(port.try_into().unwrap_or_default());
        clients.insert(SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port));
    }
    Ok(clients)
}
