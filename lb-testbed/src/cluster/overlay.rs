//! How nodes reach each other's pods: by routes, or inside of packets between the nodes.
//!
//! | overlay | interface | link header | MTU |
//! |---|---|---|---|
//! | none | the uplink | | 1500 |
//! | vxlan | vxlan0, as flannel sets it up | Ethernet | 1450 |
//! | tunnel | tun0, as `WireGuard` or ipip | none | 1420 |
//!
//! A node's address in the overlay is the first of its pods' range. Pods keep an MTU of 1500, so that
//! what is too large is told by the nodes.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use super::Cluster;
use crate::{
    address::{node_v4, overlay_v4, overlay_v6, pod_net_v4, pod_net_v6},
    sys,
};

/// How nodes reach each other's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// By routes: the fabric carries packets of pods as they are.
    None,
    /// VXLAN.
    Vxlan,
    /// A device without link headers.
    Tunnel,
}

/// What carries packets from one node's tun0 to another's; ends on drop.
#[derive(Debug)]
pub(super) struct Tunnel {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Overlay {
    /// The interface that leads to other nodes' pods.
    pub fn interface(self) -> &'static str {
        match self {
            Self::None => "eth0",
            Self::Vxlan => "vxlan0",
            Self::Tunnel => "tun0",
        }
    }

    /// What fits through it.
    pub fn mtu(self) -> usize {
        match self {
            Self::None => 1500,
            Self::Vxlan => 1450,
            Self::Tunnel => 1420,
        }
    }
}

impl Cluster {
    /// The address of a node on its overlay.
    pub fn overlay_address(&self, node: usize, family: super::Family) -> IpAddr {
        match family {
            super::Family::V4 => overlay_v4(node).into(),
            super::Family::V6 => overlay_v6(node).into(),
        }
    }

    /// Makes the overlay between all nodes.
    pub(super) fn join_pods(&mut self) -> Result<()> {
        match self.spec.overlay {
            Overlay::None => Ok(()),
            Overlay::Vxlan => (0..self.nodes.len()).try_for_each(|node| self.join_by_vxlan(node)),
            Overlay::Tunnel => self.join_by_tunnel(),
        }
    }

    fn join_by_vxlan(&self, node: usize) -> Result<()> {
        let (own4, own6) = (overlay_v4(node), overlay_v6(node));
        let mut ip = format!(
            "link add vxlan0 address {} type vxlan id 1 local {} dstport 8472 nolearning\n\
             addr add {own4}/32 dev vxlan0\n\
             addr add {own6}/128 dev vxlan0 nodad\n\
             link set vxlan0 mtu {} up\n",
            mac(node),
            node_v4(node),
            Overlay::Vxlan.mtu()
        );
        let mut bridge = String::new();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let (via4, via6, mac) = (overlay_v4(other), overlay_v6(other), mac(other));
            let (net4, net6) = (pod_net_v4(other), pod_net_v6(other));
            writeln!(
                ip,
                "neigh add {via4} lladdr {mac} dev vxlan0 nud permanent\n\
                 neigh add {via6} lladdr {mac} dev vxlan0 nud permanent\n\
                 route add {net4} via {via4} dev vxlan0 onlink\n\
                 route add {net6} via {via6} dev vxlan0 onlink"
            )?;
            writeln!(bridge, "fdb append {mac} dev vxlan0 dst {} self", node_v4(other))?;
        }
        let netns = &self.nodes[node].netns;
        netns.ip(&ip)?;
        netns.bridge(&bridge)
    }

    fn join_by_tunnel(&mut self) -> Result<()> {
        let mut devices = Vec::new();
        for node in 0..self.nodes.len() {
            let netns = &self.nodes[node].netns;
            devices.push(netns.run(|| sys::open_tun("tun0"))?.context("open /dev/net/tun")?);
            let mut lines = format!(
                "addr add {}/32 dev tun0\n\
                 addr add {}/128 dev tun0 nodad\n\
                 link set tun0 mtu {} up\n",
                overlay_v4(node),
                overlay_v6(node),
                Overlay::Tunnel.mtu()
            );
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                let (net4, net6) = (pod_net_v4(other), pod_net_v6(other));
                writeln!(lines, "route add {net4} dev tun0\nroute add {net6} dev tun0")?;
            }
            netns.ip(&lines)?;
        }
        let (stop, stopped) = UnixStream::pair().context("make a pair of sockets")?;
        let thread = thread::spawn(move || carry(&devices, &stopped));
        self.tunnel = Some(Tunnel { stop, thread: Some(thread) });
        Ok(())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // It only fails when the thread has ended, which is what is wanted.
        drop(self.stop.write_all(b"x"));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Carries each packet to the node whose pods have its destination, until told to stop.
fn carry(devices: &[File], stopped: &UnixStream) {
    let mut waiting: Vec<BorrowedFd<'_>> = vec![stopped.as_fd()];
    waiting.extend(devices.iter().map(File::as_fd));
    let mut buffer = vec![0; 65_536];
    while let Ok(ready) = sys::wait_readable(&waiting) {
        if ready.first() == Some(&true) {
            return;
        }
        for (device, _) in devices.iter().zip(ready.iter().skip(1)).filter(|(_, ready)| **ready) {
            let mut device = device;
            // A device that was removed with its namespace has nothing more to say.
            let size = match device.read(&mut buffer) {
                Ok(size) => size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            };
            let packet = &buffer[..size];
            if let Some(mut to) = node_of(packet).and_then(|node| devices.get(node)) {
                // A full queue drops, as any link does.
                drop(to.write(packet));
            }
        }
    }
}

/// The node whose pods have the destination of a packet.
fn node_of(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => {
            let [10, 244, node, _] = *packet.get(16..)?.first_chunk::<4>()? else { return None };
            Some(usize::from(node))
        }
        6 => {
            let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).segments();
            ([to[0], to[1], to[2]] == [0xfd00, 0x10, 0x244]).then_some(usize::from(to[3]))
        }
        _ => None,
    }
}

fn mac(node: usize) -> String {
    format!("02:00:00:00:01:{node:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    #[test]
    fn a_packet_goes_to_the_node_of_its_destination() {
        for (to, node) in [
            ("10.244.2.10", Some(2)),
            ("10.245.2.10", None),
            ("fd00:10:244:3::10", Some(3)),
            ("fd00:10:245:3::10", None),
        ] {
            let from = if to.contains(':') { "fd00::1" } else { "10.0.0.1" };
            let packet = Packet::new(from, to).without_ethernet().build();
            assert_eq!(node_of(&packet), node, "{to}");
        }
        assert_eq!(node_of(&[127, 0, 0, 1]), None);
    }
}
