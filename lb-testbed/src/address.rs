//! Who has which address in a test cluster. Numbers of nodes and pods are single digits; the
//! picture is in [`crate::cluster`].

use std::net::{Ipv4Addr, Ipv6Addr};

/// Pod addresses of a node, IPv4.
pub fn pod_net_v4(node: usize) -> String {
    format!("10.244.{node}.0/24")
}

/// Pod addresses of a node, IPv6.
pub fn pod_net_v6(node: usize) -> String {
    format!("fd00:10:244:{node:x}::/64")
}

/// The IPv4 address of a node on the fabric.
pub fn node_v4(node: usize) -> Ipv4Addr {
    fabric_v4(10 + small(node))
}

/// The IPv6 address of a node on the fabric.
pub fn node_v6(node: usize) -> Ipv6Addr {
    fabric_v6(0x10 + u16::from(small(node)))
}

/// The IPv4 address of a pod.
pub fn pod_v4(node: usize, pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, small(node), 10 + small(pod))
}

/// The IPv6 address of a pod.
pub fn pod_v6(node: usize, pod: usize) -> Ipv6Addr {
    let net = u16::from(small(node));
    Ipv6Addr::new(0xfd00, 0x10, 0x244, net, 0, 0, 0, 0x10 + u16::from(small(pod)))
}

/// The gateway of a node's pods, IPv4.
pub(crate) fn gateway_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, small(node), 1)
}

/// The gateway of a node's pods, IPv6.
pub(crate) fn gateway_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(small(node)), 0, 0, 0, 1)
}

/// A host on the fabric, IPv4.
pub(crate) fn fabric_v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, host)
}

/// A host on the fabric, IPv6.
pub(crate) fn fabric_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, host)
}

/// A host on the network of second uplinks, IPv4.
pub fn second_v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 19, 0, host)
}

/// A host on the network of second uplinks, IPv6.
pub fn second_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x19, 0, 0, 0, 0, host)
}

/// The IPv4 address of a client outside of the cluster.
pub fn client_v4(client: usize) -> Ipv4Addr {
    client_net_v4(10 + small(client))
}

/// The IPv6 address of a client outside of the cluster.
pub fn client_v6(client: usize) -> Ipv6Addr {
    client_net_v6(0x10 + u16::from(small(client)))
}

/// A host on the network of clients outside, IPv4.
pub(crate) fn client_net_v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

/// A host on the network of clients outside, IPv6.
pub(crate) fn client_net_v6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, host)
}

/// The address of a node on the overlay, IPv4.
pub(crate) fn overlay_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, small(node), 0)
}

/// The address of a node on the overlay, IPv6; the first of the range is every router's.
pub(crate) fn overlay_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(small(node)), 0, 0, 0, 0xff00)
}

/// Nodes and pods are counted in single digits; more than an address byte holds is a bug in the
/// test, found by the duplicate address that follows.
fn small(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
