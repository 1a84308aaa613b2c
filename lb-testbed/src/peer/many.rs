//! Thousands of connections at once within a peer process, all of them used in turn.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::sys;

/// What a client sends on each connection: its number.
const QUESTION: usize = 8;
/// What comes back: the number, and the client's port as the server sees it.
const ANSWER: usize = QUESTION + 2;
/// Descriptors besides those of connections.
const OTHERS: u64 = 100;

/// Accepts `count` connections at `addr`; then answers on each of them in the order in which they
/// came, round by round, until one of them ends.
pub(super) fn serve(addr: SocketAddr, count: usize) -> io::Result<()> {
    sys::packet::allow_open_files(count as u64 + OTHERS)?;
    let listener = TcpListener::bind(addr)?;
    thread::spawn(move || -> io::Result<()> {
        let mut streams = Vec::with_capacity(count);
        while streams.len() < count {
            let (stream, client) = listener.accept()?;
            stream.set_nodelay(true)?;
            streams.push((stream, client.port()));
        }
        loop {
            for (stream, port) in &mut streams {
                let mut answer = [0; ANSWER];
                stream.read_exact(&mut answer[..QUESTION])?;
                answer[QUESTION..].copy_from_slice(&port.to_be_bytes());
                stream.write_all(&answer)?;
            }
        }
    });
    Ok(())
}

/// Opens `count` connections, one after the other.
pub(super) fn connect(
    to: SocketAddr,
    count: usize,
    timeout: Duration,
) -> io::Result<Vec<TcpStream>> {
    sys::packet::allow_open_files(count as u64 + OTHERS)?;
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

/// Asks on each connection, then waits for every answer; how many ports the server told of.
pub(super) fn ask(streams: &mut [TcpStream]) -> io::Result<usize> {
    for (number, stream) in (0_u64..).zip(streams.iter_mut()) {
        stream.write_all(&number.to_be_bytes())?;
    }
    let mut ports = BTreeSet::new();
    for (number, stream) in (0_u64..).zip(streams) {
        let mut answer = [0; ANSWER];
        stream
            .read_exact(&mut answer)
            .map_err(|error| io::Error::new(error.kind(), format!("answer {number}: {error}")))?;
        if answer[..QUESTION] != number.to_be_bytes() {
            return Err(io::Error::other(format!("connection {number} got {answer:?}")));
        }
        ports.insert([answer[QUESTION], answer[QUESTION + 1]]);
    }
    Ok(ports.len())
}
