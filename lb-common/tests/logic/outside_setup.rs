//! A node with two uplinks, its Services reached from outside, and a backend on another node.

use std::net::SocketAddr;

use lb_common::{
    abi::{
        AddressFlags, BackendFlags, BackendId, FactsFlags, FactsWord, FrontendFlags, Interface,
        InterfaceFlags, Scope, SetWord,
    },
    early,
    host::{HostRoute, HostTables, Words, words},
    packet::SlicePacket,
    parse::Link,
    tables::RouteStatus,
    verdict::Verdict,
};
use lb_testbed::packet::{self as built, Packet};

use crate::setup::{Net, PORT, Protocol, SPORT, TARGET, World, at, packet, readdressed};

/// A pod's interface.
pub(crate) const POD: u32 = 5;
/// What is known of it.
const POD_FLAGS: u32 = InterfaceFlags::LOCAL_POD | InterfaceFlags::PODS;
/// Where clients are.
pub(crate) const UPLINK: u32 = 6;
/// Where the other node is.
pub(crate) const SECOND: u32 = 7;
/// Bytes that fit the second uplink.
pub(crate) const MTU: u32 = 1_400;

/// The node's addresses of a family: two for what leaves by the second uplink.
pub(crate) fn node(net: Net) -> [&'static str; 2] {
    if net.vip.contains(':') {
        ["fd00:172:18::2", "fd00:172:18::3"]
    } else {
        ["172.18.0.2", "172.18.0.3"]
    }
}

/// A node, and one Service with an external address.
pub(crate) struct Outside {
    pub(crate) world: World,
    pub(crate) net: Net,
    pub(crate) protocol: Protocol,
    pub(crate) id: u32,
    pub(crate) backend: BackendId,
}

impl Outside {
    /// The backend is on another node.
    pub(crate) fn new(net: Net, protocol: Protocol) -> Self {
        Self::with_flags(net, protocol, FrontendFlags::EXTERNAL)
    }

    pub(crate) fn with_flags(net: Net, protocol: Protocol, flags: u8) -> Self {
        let world = World::default();
        let tables = &world.tables;
        describe(tables, net);
        let id = tables.add_service_port(protocol.number(), &[], &[at(net.pod, TARGET)]);
        let vip = at(net.vip, PORT);
        tables.add_frontend_with(id, protocol.number(), vip, flags);
        let kind = if flags & FrontendFlags::EXTERNAL == 0 {
            AddressFlags::CLUSTER_IP
        } else {
            AddressFlags::VIP
        };
        tables.set_address(vip.ip(), kind);
        let backend = tables.backends_of(id, Scope::Cluster)[0];
        tables.set_interface(UPLINK);
        Self { world, net, protocol, id, backend }
    }

    pub(crate) fn tables(&self) -> &HostTables {
        &self.world.tables
    }

    /// The backend is on this node.
    pub(crate) fn here(self) -> Self {
        self.tables().set_flags(self.backend, BackendFlags::LOCAL);
        self
    }

    /// External destinations use the local set, of which nobody is.
    pub(crate) fn local_policy(self) -> Self {
        let flags = FactsFlags::PRESENT | FactsFlags::EXTERNAL_LOCAL;
        self.tables().set_facts(self.id, FactsWord::new(flags, 0));
        self.tables().set_empty(self.id, Scope::Local, SetWord::DROP);
        self
    }

    pub(crate) fn client(&self) -> SocketAddr {
        at(self.net.client, SPORT)
    }

    pub(crate) fn vip(&self) -> SocketAddr {
        at(self.net.vip, PORT)
    }

    pub(crate) fn pod(&self) -> SocketAddr {
        at(self.net.pod, TARGET)
    }

    /// A packet of the client to the VIP.
    pub(crate) fn asks(&self, flags: built::TcpFlags) -> Packet {
        packet(self.protocol, self.client(), self.vip(), flags)
    }

    /// What becomes of a packet that arrives by an interface.
    pub(crate) fn arrives(&self, ifindex: u32, packet: &Packet) -> (Verdict, Vec<u8>) {
        self.tables().set_interface(ifindex);
        let (verdict, bytes) = self.world.ingress(packet);
        if verdict == Verdict::Forwarded {
            built::checksums_ok(&bytes, built::Link::Ethernet).unwrap();
        }
        (verdict, bytes)
    }

    /// The packet is sent on to the backend; under which source?
    #[track_caller]
    pub(crate) fn sent_on(&self, packet: &Packet) -> SocketAddr {
        let (verdict, bytes) = self.arrives(UPLINK, packet);
        assert_eq!(verdict, Verdict::Forwarded);
        let (source, to) = crate::setup::ends(&bytes);
        let mut expected = readdressed(packet, source, to);
        expected.ttl -= 1;
        let diff = built::diff(&expected.build(), &bytes, built::Link::Ethernet);
        assert!(diff.is_empty(), "{diff}");
        source
    }

    /// The backend's answer is sent on to the client, from the VIP.
    #[track_caller]
    pub(crate) fn answered(&self, source: SocketAddr, flags: built::TcpFlags) {
        let answer = packet(self.protocol, self.pod(), source, flags);
        let (verdict, bytes) = self.arrives(SECOND, &answer);
        assert_eq!(verdict, Verdict::Forwarded);
        let mut expected = readdressed(&answer, self.vip(), self.client());
        expected.ttl -= 1;
        let diff = built::diff(&expected.build(), &bytes, built::Link::Ethernet);
        assert!(diff.is_empty(), "{diff}");
    }

    /// The same packet at XDP.
    pub(crate) fn early(&self, ifindex: u32, packet: &Packet) -> (Verdict, Vec<u8>) {
        self.tables().set_interface(ifindex);
        let before = packet.build();
        let mut bytes = before.clone();
        let verdict = early::ingress(&mut SlicePacket(&mut bytes), self.tables(), Link::Ethernet);
        assert!(verdict.drop_counter().is_none(), "{verdict:?}");
        if verdict != Verdict::Forwarded {
            assert_eq!(bytes, before, "{verdict:?}");
        }
        (verdict, bytes)
    }
}

/// Interfaces, addresses and routes.
fn describe(tables: &HostTables, net: Net) {
    let interface = |flags, group, addresses: &[&str]| {
        let mut value = Interface { flags, group, mtu: MTU, ..Interface::default() };
        for (index, address) in addresses.iter().enumerate() {
            match words(at(address, 0).ip()) {
                Words::V4([ip]) => value.v4[index] = ip,
                Words::V6(ip) => value.v6[index] = ip,
            }
        }
        value
    };
    let addresses = node(net);
    tables.set_host_interface(POD, interface(POD_FLAGS, POD, &addresses[..1]));
    tables.set_host_interface(UPLINK, interface(InterfaceFlags::OFF_NODE, UPLINK, &addresses[..1]));
    tables.set_host_interface(SECOND, interface(InterfaceFlags::OFF_NODE, SECOND, &addresses));
    for address in addresses {
        tables.set_address(at(address, 0).ip(), AddressFlags::HOST | AddressFlags::NODE);
    }
    // Nobody here has a VIP: back to the router.
    route(tables, net.vip, 0, RouteStatus::Found, UPLINK);
    route(tables, net.pod, 0, RouteStatus::Found, SECOND);
    route(tables, net.pod2, 0, RouteStatus::Found, SECOND);
    for out in [0, UPLINK] {
        route(tables, net.client, out, RouteStatus::Found, UPLINK);
    }
}

/// Packets to an address go there.
pub(crate) fn route(tables: &HostTables, to: &str, out: u32, status: RouteStatus, egress: u32) {
    tables.add_route(at(to, 0).ip(), out, HostRoute { status, egress, mtu: MTU });
}
