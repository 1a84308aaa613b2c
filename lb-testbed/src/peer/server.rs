//! The echo server within a peer process: answers each line (TCP) or datagram (UDP) with a
//! [`Reply`], and mirrors bulk data.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use super::wire::Reply;

/// What a client sends before bulk data: this, the number of bytes, a line feed.
pub(super) const BULK: &str = "BULK ";
/// The longest line that is a request.
const MAX_LINE: u64 = 64 * 1024;

/// Listens on TCP and UDP at `addr`; serves until the process ends.
pub(super) fn serve(name: &str, addr: SocketAddr) -> io::Result<()> {
    let tcp = TcpListener::bind(addr)?;
    let udp = UdpSocket::bind(addr)?;
    let for_tcp = name.to_owned();
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let name = for_tcp.clone();
            // A failing connection is the client's to notice; the next one is served all the same.
            thread::spawn(move || drop(serve_tcp(&name, &stream)));
        }
    });
    let for_udp = name.to_owned();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            // ICMP errors for earlier replies arrive here as errors and are no reason to stop.
            let Ok((size, client)) = udp.recv_from(&mut buffer) else { continue };
            let data = String::from_utf8_lossy(&buffer[..size]).into_owned();
            if let Ok(reply) = reply(&for_udp, client, addr, data) {
                drop(udp.send_to(&reply, client));
            }
        }
    });
    Ok(())
}

fn serve_tcp(name: &str, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (client, local) = (stream.peer_addr()?, stream.local_addr()?);
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if input.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request = line.trim_end_matches('\n');
        if let Some(bytes) = request.strip_prefix(BULK).and_then(|n| n.parse().ok()) {
            mirror(&mut input, &mut output, bytes)?;
            continue;
        }
        let mut answer = reply(name, client, local, request.to_owned())?;
        answer.push(b'\n');
        output.write_all(&answer)?;
    }
}

/// Sends back as many bytes as it gets, while it gets them.
fn mirror(input: &mut impl Read, output: &mut impl Write, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let size = input.read(&mut buffer[..part])?;
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        output.write_all(&buffer[..size])?;
        left -= size as u64;
    }
    Ok(())
}

fn reply(name: &str, client: SocketAddr, local: SocketAddr, data: String) -> io::Result<Vec<u8>> {
    let reply = Reply { server: name.to_owned(), client, local, data };
    serde_json::to_vec(&reply).map_err(io::Error::other)
}
