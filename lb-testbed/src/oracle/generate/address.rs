//! Who has which address in generated clusters.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{NODE_PORTS, PORTS, TARGETS};
use crate::oracle::{Client, Place, cluster::Family};

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A clusterIP, 0 to 6; 9 is never given to a Service.
    ClusterIp(u8),
    /// An externalIP.
    External(u8),
    /// A load balancer's.
    Balancer(u8),
    /// This node's: 0 is its primary address.
    Node(u8),
    /// The other node's.
    OtherNode,
    /// A pod of this node.
    Pod(u8),
    /// A pod of the other node.
    OtherPod(u8),
    /// This machine's, by every machine.
    Loopback,
    /// Nobody's here, in one of two networks.
    Foreign(u8),
}

/// The interfaces of the node by which packets arrive. Pods of this node are behind the first two.
pub mod link {
    use crate::oracle::Link;

    /// Leads to a pod, and is a port of a bridge.
    pub const BRIDGED: Link = Link { name: "veth9", bridge: Some("cni0") };
    /// Leads to a pod by a route.
    pub const ROUTED: Link = Link { name: "cali1", bridge: None };
    /// An uplink.
    pub const UPLINK: Link = Link { name: "eth0", bridge: None };
    /// The other uplink, with the node's second address.
    pub const UPLINK2: Link = Link { name: "eth1", bridge: None };
    /// Leads to pods of other nodes, encapsulated.
    pub const OVERLAY: Link = Link { name: "vxlan0", bridge: None };
    /// The bridge, to which routing sends what goes to its ports.
    pub const BRIDGE: Link = Link { name: "cni0", bridge: None };
    /// All but the bridge.
    pub const ALL: [Link; 5] = [BRIDGED, ROUTED, UPLINK, UPLINK2, OVERLAY];
}

/// The address of somebody in a family.
pub fn address(family: Family, owner: Owner) -> IpAddr {
    let (v4, v6, last) = match owner {
        Owner::ClusterIp(n) => ([10, 96, 0], [0xfd00, 0x10, 0x96], n),
        Owner::External(n) => ([192, 0, 2], [0x2001, 0xdb8, 1], n),
        Owner::Balancer(n) => ([203, 0, 113], [0x2001, 0xdb8, 2], n),
        Owner::Node(n) => ([192, 168, n], [0xfd00, 0x192, n.into()], 1),
        Owner::OtherNode => ([192, 168, 0], [0xfd00, 0x192, 0], 2),
        Owner::Pod(n) => ([10, 244, 1], [0xfd00, 0x10, 0x2441], n),
        Owner::OtherPod(n) => ([10, 244, 2], [0xfd00, 0x10, 0x2442], n),
        Owner::Loopback => ([127, 0, 0], [0, 0, 0], 1),
        Owner::Foreign(n) => ([198, 51, 100 + n], [0x2001, 0xdb8, 3 + u16::from(n)], 1),
    };
    match family {
        Family::V4 => Ipv4Addr::new(v4[0], v4[1], v4[2], last).into(),
        Family::V6 => Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, last.into()).into(),
    }
}

/// Clients of every kind: pods of this node and of the other one, processes of this node, what is
/// outside, and what has, or claims to have, an address of the node or of a load balancer. One pod of
/// each node may be an endpoint itself: hairpin.
pub fn clients(family: Family) -> Vec<Client> {
    let at = |place, owner| Client::new(place, address(family, owner));
    let off_node = |owner, link| at(Place::Elsewhere, owner).by(link);
    vec![
        at(Place::Pod, Owner::Pod(9)).by(link::BRIDGED),
        at(Place::Pod, Owner::Pod(1)).by(link::ROUTED),
        at(Place::Host, Owner::Node(0)),
        off_node(Owner::OtherPod(1), link::OVERLAY),
        off_node(Owner::OtherPod(9), link::UPLINK),
        off_node(Owner::Foreign(0), link::UPLINK),
        off_node(Owner::Foreign(1), link::UPLINK2),
        off_node(Owner::Node(0), link::UPLINK2),
        off_node(Owner::Balancer(0), link::UPLINK),
    ]
}

/// Every address that a client may ask for, of Services and around them.
pub fn destinations(family: Family) -> Vec<IpAddr> {
    let few = 0..3;
    let owners = (0..7)
        .chain([9])
        .map(Owner::ClusterIp)
        .chain(few.clone().map(Owner::External))
        .chain(few.clone().map(Owner::Balancer))
        .chain([Owner::Node(0), Owner::Node(1), Owner::OtherNode, Owner::Loopback])
        .chain([Owner::Foreign(0), Owner::Pod(1), Owner::OtherPod(1)]);
    owners.map(|owner| address(family, owner)).collect()
}

/// Every port that a client may ask for.
pub fn destination_ports() -> Vec<u16> {
    let mut ports: Vec<u16> = PORTS.into_iter().chain(TARGETS).chain(NODE_PORTS).collect();
    ports.push(1);
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// An address as text, in every way that the API lets pass.
pub(super) fn spelled(family: Family, owner: Owner) -> impl Strategy<Value = String> {
    let ip = address(family, owner);
    prop_oneof![
        9 => Just(ip.to_string()),
        1 => Just(match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                format!("{a:03}.{b:03}.{c:03}.{d:03}")
            }
            IpAddr::V6(ip) => ip.to_string().to_uppercase(),
        }),
        1 => Just(match ip {
            IpAddr::V4(ip) => format!("::ffff:{ip}"),
            IpAddr::V6(ip) => {
                ip.segments().map(|segment| format!("{segment:04x}")).join(":")
            }
        }),
    ]
}
