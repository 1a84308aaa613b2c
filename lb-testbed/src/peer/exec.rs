//! The inside of a peer process: obeys commands from standard input until that ends.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    load::{self, Load},
    many, server,
    wire::{Answer, Close, Command, LoadId, SocketId},
};
use crate::sys;

/// Reads commands and writes answers until the test closes its end.
pub fn obey() -> Result<()> {
    let mut peer = Peer::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.context("read a command")?;
        let command: Command =
            serde_json::from_str(&line).with_context(|| format!("understand {line:?}"))?;
        let answer = peer.execute(&command).unwrap_or_else(|error| Answer::Failed {
            what: format!("{command:?}: {error}"),
            errno: error.raw_os_error(),
        });
        serde_json::to_writer(&mut output, &answer).context("write an answer")?;
        output.write_all(b"\n").context("write an answer")?;
        output.flush().context("write an answer")?;
    }
    Ok(())
}

#[derive(Default)]
struct Peer {
    sockets: HashMap<SocketId, Socket>,
    loads: HashMap<LoadId, Load>,
    many: Vec<TcpStream>,
    next: u32,
}

enum Socket {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Peer {
    fn execute(&mut self, command: &Command) -> io::Result<Answer> {
        match *command {
            Command::Serve { ref name, ref addrs } => {
                addrs.iter().try_for_each(|addr| server::serve(name, *addr))?;
                Ok(Answer::Done)
            }
            Command::TcpConnect { to, from, timeout_ms } => {
                let stream = sys::tcp_connect(from, to, Duration::from_millis(timeout_ms))?;
                stream.set_nodelay(true)?;
                self.add(Socket::Tcp(BufReader::new(stream)))
            }
            Command::TcpConnectBeside { sock, to, timeout_ms } => {
                let Socket::Tcp(other) = self.socket(sock)? else {
                    return Err(io::Error::other(format!("socket {sock} is not TCP")));
                };
                let timeout = Duration::from_millis(timeout_ms);
                let stream = sys::tcp_connect_beside(other.get_ref(), to, timeout)?;
                stream.set_nodelay(true)?;
                self.add(Socket::Tcp(BufReader::new(stream)))
            }
            Command::UdpOpen { from } => self.add(Socket::Udp(UdpSocket::bind(from)?)),
            Command::UdpConnect { sock, to } => {
                self.udp(sock)?.connect(to)?;
                self.names(sock)
            }
            Command::Send { sock, ref data } => {
                match self.socket(sock)? {
                    Socket::Tcp(stream) => stream.get_mut().write_all(data.as_bytes())?,
                    Socket::Udp(socket) => drop(socket.send(data.as_bytes())?),
                }
                Ok(Answer::Done)
            }
            Command::SendTo { sock, to, ref data } => {
                self.udp(sock)?.send_to(data.as_bytes(), to)?;
                Ok(Answer::Done)
            }
            Command::Receive { sock, timeout_ms } => self.receive(sock, timeout_ms),
            Command::Bulk { sock, bytes, timeout_ms } => self.bulk(sock, bytes, timeout_ms),
            Command::Names { sock } => self.names(sock),
            Command::Close { sock, how } => self.close(sock, how),
            Command::LoadStart { to, kind, timeout_ms } => {
                let load = self.fresh();
                let started = Load::start(to, kind, Duration::from_millis(timeout_ms));
                self.loads.insert(load, started);
                Ok(Answer::Load { load })
            }
            Command::LoadStats { load } => {
                self.loads.get(&load).map(|load| Answer::Stats(load.stats())).ok_or_else(unknown)
            }
            Command::LoadStop { load } => {
                self.loads.remove(&load).map(|load| Answer::Stats(load.stop())).ok_or_else(unknown)
            }
            Command::ServeMany { addr } => many::serve(addr).map(|()| Answer::Done),
            Command::ConnectMany { to, count, timeout_ms } => {
                self.many = many::connect(to, count, Duration::from_millis(timeout_ms))?;
                Ok(Answer::Done)
            }
            Command::AskMany => many::ask(&mut self.many).map(|seen| Answer::Clients { seen }),
            Command::Crr { to, count, timeout_ms } => {
                Ok(Answer::Stats(load::crr(to, count, Duration::from_millis(timeout_ms))))
            }
        }
    }

    fn receive(&mut self, sock: SocketId, timeout_ms: u64) -> io::Result<Answer> {
        let timeout = Some(Duration::from_millis(timeout_ms.max(1)));
        match self.socket(sock)? {
            Socket::Tcp(stream) => {
                stream.get_ref().set_read_timeout(timeout)?;
                let mut data = String::new();
                if stream.read_line(&mut data)? == 0 {
                    return Ok(Answer::End);
                }
                Ok(Answer::Data { data: data.trim_end_matches('\n').to_owned(), from: None })
            }
            Socket::Udp(socket) => {
                socket.set_read_timeout(timeout)?;
                let mut buffer = vec![0; 65_536];
                let (size, from) = socket.recv_from(&mut buffer)?;
                let data = String::from_utf8_lossy(&buffer[..size]).into_owned();
                Ok(Answer::Data { data, from: Some(from) })
            }
        }
    }

    fn bulk(&mut self, sock: SocketId, bytes: u64, timeout_ms: u64) -> io::Result<Answer> {
        let Socket::Tcp(stream) = self.socket(sock)? else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let timeout = Some(Duration::from_millis(timeout_ms.max(1)));
        stream.get_ref().set_read_timeout(timeout)?;
        stream.get_ref().set_write_timeout(timeout)?;
        let mut output = stream.get_ref().try_clone()?;
        let sender = thread::spawn(move || -> io::Result<()> {
            output.write_all(format!("{}{bytes}\n", server::BULK).as_bytes())?;
            let mut buffer = vec![0; 65_536];
            for_each_part(bytes, &mut buffer, |part, at| {
                part.iter_mut().zip(at..).for_each(|(byte, at)| *byte = pattern(at));
                output.write_all(part)
            })
        });
        let mut buffer = vec![0; 65_536];
        let received = for_each_part(bytes, &mut buffer, |part, at| {
            stream.read_exact(part)?;
            match part.iter().zip(at..).find(|(byte, at)| **byte != pattern(*at)) {
                None => Ok(()),
                Some((_, at)) => Err(io::Error::other(format!("wrong byte at {at}"))),
            }
        });
        if received.is_err() {
            // The sender would wait for its own deadline.
            stream.get_ref().shutdown(Shutdown::Both)?;
        }
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("sender panicked")));
        received.and(sent).map(|()| Answer::Done)
    }

    fn names(&mut self, sock: SocketId) -> io::Result<Answer> {
        Ok(match self.socket(sock)? {
            Socket::Tcp(stream) => Answer::Socket {
                sock,
                local: stream.get_ref().local_addr()?,
                remote: Some(stream.get_ref().peer_addr()?),
                is_tcp: true,
            },
            Socket::Udp(socket) => Answer::Socket {
                sock,
                local: socket.local_addr()?,
                remote: socket.peer_addr().ok(),
                is_tcp: false,
            },
        })
    }

    fn close(&mut self, sock: SocketId, how: Close) -> io::Result<Answer> {
        match (how, self.socket(sock)?) {
            (Close::Write, Socket::Tcp(stream)) => {
                stream.get_ref().shutdown(Shutdown::Write)?;
                return Ok(Answer::Done);
            }
            (Close::Reset, Socket::Tcp(stream)) => sys::reset_on_close(stream.get_ref())?,
            _ => {}
        }
        self.sockets.remove(&sock);
        Ok(Answer::Done)
    }

    fn add(&mut self, socket: Socket) -> io::Result<Answer> {
        let sock = self.fresh();
        self.sockets.insert(sock, socket);
        self.names(sock)
    }

    fn socket(&mut self, sock: SocketId) -> io::Result<&mut Socket> {
        self.sockets.get_mut(&sock).ok_or_else(unknown)
    }

    fn udp(&mut self, sock: SocketId) -> io::Result<&UdpSocket> {
        match self.socket(sock)? {
            Socket::Udp(socket) => Ok(socket),
            Socket::Tcp(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

/// Calls `work` for one buffer full after the other, with the position of its first byte.
fn for_each_part(
    bytes: u64,
    buffer: &mut [u8],
    mut work: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let size = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(buffer.len());
        work(&mut buffer[..size], at)?;
        at += size as u64;
    }
    Ok(())
}

/// The byte of bulk data at a position; the prime period matches no buffer or segment size.
fn pattern(at: u64) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no socket or load of this number")
}

/// A UDP socket's wildcard address of the family of `to`.
pub(super) fn any(to: SocketAddr) -> SocketAddr {
    load::any(to)
}
