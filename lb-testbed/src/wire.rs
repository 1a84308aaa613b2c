//! The packets on an interface, as they are: seen, counted, and sent without a socket's help.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    netns::Netns,
    packet::{self, Link, Packet, Parsed},
    sys::packet as sys,
    wait,
};

/// An interface of a namespace.
#[derive(Debug)]
pub struct Wire {
    socket: File,
    macs: [[u8; 6]; 2],
}

/// A packet that was seen.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its headers.
    pub parsed: Parsed,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Wire {
    /// Looks at an interface. `next` is the hardware address that packets are sent to: that of the
    /// neighbour on the other end, or of the router.
    pub fn open(netns: &Netns, interface: &str, next: [u8; 6]) -> Result<Self> {
        let index = netns.ifindex(interface)?;
        let socket = netns
            .run(|| sys::open(index))?
            .with_context(|| format!("open {interface} for packets"))?;
        Ok(Self { socket: socket.into(), macs: [next, netns.mac(interface)?] })
    }

    /// Sends a packet, with the hardware addresses of this interface and its neighbour.
    pub fn send(&mut self, packet: &Packet) -> Result<()> {
        let packet = Packet { link: Link::Ethernet, macs: self.macs, ..packet.clone() };
        self.send_bytes(&packet.build())
    }

    /// Sends the fragments of a packet in this order.
    pub fn send_fragments(&mut self, packet: &Packet, size: usize, order: &[usize]) -> Result<()> {
        let packet = Packet { link: Link::Ethernet, macs: self.macs, ..packet.clone() };
        let all = packet.fragments(size);
        order.iter().filter_map(|at| all.get(*at)).try_for_each(|bytes| self.send_bytes(bytes))
    }

    /// Sends a frame as it is.
    pub fn send_bytes(&mut self, frame: &[u8]) -> Result<()> {
        loop {
            match self.socket.write(frame) {
                Ok(_) => return Ok(()),
                // The interface's queue is full; the other CPU empties it.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("send a frame"),
            }
        }
    }

    /// Forgets what was seen so far.
    pub fn clear(&mut self) -> Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }

    /// All IP packets that were seen and not told yet, in both directions.
    pub fn seen(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(bytes) = self.next()? {
            if let Ok(parsed) = packet::parse(&bytes, Link::Ethernet) {
                frames.push(Frame { parsed, bytes });
            }
        }
        Ok(frames)
    }

    /// Waits for a packet that something can be made of; others are forgotten.
    pub fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&Frame) -> Option<T>,
    ) -> Result<T> {
        let mut others = Vec::new();
        let result = wait::until_some(what, deadline, || {
            let frames = match self.seen() {
                Ok(frames) => frames,
                Err(error) => return Some(Err(error)),
            };
            let found = frames.iter().find_map(&mut wanted);
            others.extend(
                frames.into_iter().map(|frame| packet::describe(&frame.bytes, Link::Ethernet)),
            );
            found.map(Ok)
        });
        let last = others.len().saturating_sub(10);
        result.with_context(|| format!("last seen:\n{}", others[last..].join("\n")))?
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 65_536];
        match self.socket.read(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                Ok(Some(buffer))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("receive a frame"),
        }
    }
}
