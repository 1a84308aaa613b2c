//! The socket engine for connected sockets: connect, getpeername, recvmsg.

use std::net::SocketAddr;

use lb_common::{
    abi::{BackendFlags, Counter, FactsFlags, FactsWord, Scope, SetWord, proto},
    host::{Capacities, HostTables},
    socket::{self, Address, Outcome},
    tables::FrontendTables,
};

use crate::setup::{NETS, PORT, Protocol, TARGET, V4, V6, World, at, ip};

pub(crate) fn address<const N: usize>(at: SocketAddr) -> Address<N> {
    Address { ip: ip(&at.ip().to_string()), port: at.port().to_be() }
}

fn connect<const N: usize>(world: &World, protocol: Protocol, to: SocketAddr) -> Outcome<N>
where
    HostTables: FrontendTables<N>,
{
    socket::connect(&world.tables, protocol.number(), &address::<N>(to))
}

fn peer<const N: usize>(world: &World, at: SocketAddr) -> Option<Address<N>> {
    socket::getpeername(&world.tables, &address::<N>(at))
}

fn from<const N: usize>(world: &World, at: SocketAddr) -> Option<Address<N>> {
    socket::recvmsg(&world.tables, &address::<N>(at))
}

fn a_connection<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let net = NETS[family];
    let (vip, pod, foreign) = (at(net.vip, PORT), at(net.pod, TARGET), at(net.foreign, TARGET));
    for protocol in Protocol::BOTH {
        let (world, _) = World::single(net, protocol);
        assert_eq!(peer::<N>(&world, pod), None, "nothing is known of a fresh socket");
        let translated = Outcome::Translated(address::<N>(pod));
        assert_eq!(connect::<N>(&world, protocol, vip), translated);
        // The application keeps seeing what it asked for; other peers stay what they are.
        assert_eq!(peer(&world, pod), Some(address::<N>(vip)));
        assert_eq!(from(&world, pod), Some(address::<N>(vip)));
        assert_eq!(peer::<N>(&world, foreign), None);
        assert_eq!(from::<N>(&world, foreign), None);
        assert_eq!(peer::<N>(&world, at(net.pod, TARGET + 1)), None);
        // Another socket knows nothing of it.
        world.tables.set_cookie(2);
        assert_eq!(peer::<N>(&world, pod), None);
        world.tables.set_cookie(1);
        assert_eq!(world.count(Counter::SocketTranslated), 1);
        assert_eq!(world.tables.peers(), vec![], "a connected socket takes no room in the hash");

        // The same socket connects elsewhere: the VIP is forgotten, also for the old peer.
        assert_eq!(connect::<N>(&world, protocol, foreign), Outcome::Pass);
        assert_eq!(peer::<N>(&world, foreign), None);
        assert_eq!(peer::<N>(&world, pod), None);
        assert_eq!(connect::<N>(&world, protocol, vip), translated);
        assert_eq!(peer(&world, pod), Some(address::<N>(vip)));
    }
}

#[test]
fn a_connected_socket_sees_the_vip() {
    a_connection::<1>(0);
    a_connection::<4>(1);
}

fn refusals<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let net = NETS[family];
    let (vip, pod) = (at(net.vip, PORT), at(net.pod, TARGET));
    for protocol in Protocol::BOTH {
        let (world, id) = World::single(net, protocol);
        connect::<N>(&world, protocol, vip);
        let backend = world.tables.backends_of(id, Scope::Cluster);
        world.tables.set_backends(id, Scope::Cluster, &[]);
        assert_eq!(connect::<N>(&world, protocol, vip), Outcome::Reject);
        let still = Some(address::<N>(vip));
        assert_eq!(peer(&world, pod), still, "refused, UDP is connected as it was");
        world.tables.set_empty(id, Scope::Cluster, SetWord::DROP);
        assert_eq!(connect::<N>(&world, protocol, vip), Outcome::Drop);
        assert_eq!(world.count(Counter::SocketRejected), 1);
        assert_eq!(world.count(Counter::SocketDropped), 1);
        // The local set is another one.
        let flags = FactsFlags::PRESENT | FactsFlags::INTERNAL_LOCAL;
        world.tables.set_facts(id, FactsWord::new(flags, 0));
        world.tables.set_backends(id, Scope::Local, &backend);
        let translated = Outcome::Translated(address::<N>(pod));
        assert_eq!(connect::<N>(&world, protocol, vip), translated);
        world.tables.delete_service_port(id);
        assert_eq!(connect::<N>(&world, protocol, vip), Outcome::Pass);
    }
}

#[test]
fn a_connection_without_backends_is_refused() {
    refusals::<1>(0);
    refusals::<4>(1);
}

#[test]
fn an_unknown_protocol_and_port_pass() {
    let (world, _) = World::single(V4, Protocol::Tcp);
    assert_eq!(connect::<1>(&world, Protocol::Udp, at(V4.vip, PORT)), Outcome::Pass);
    assert_eq!(connect::<1>(&world, Protocol::Tcp, at(V4.vip, PORT + 1)), Outcome::Pass);
    assert_eq!(world.tables.costs().map_updates, 0);
}

#[test]
fn each_connection_chooses_anew() {
    let backends = [at(V6.pod, TARGET), at(V6.pod2, TARGET)];
    let (world, _) = World::with_backends(V6, Protocol::Udp, &backends);
    for (random, backend) in [(0, backends[0]), (u32::MAX, backends[1]), (0, backends[0])] {
        world.tables.push_random(random);
        let outcome = connect::<4>(&world, Protocol::Udp, at(V6.vip, PORT));
        assert_eq!(outcome, Outcome::Translated(address(backend)));
        assert_eq!(from(&world, backend), Some(address::<4>(at(V6.vip, PORT))));
    }
}

#[test]
fn a_connected_socket_sees_the_vip_after_its_backend_has_gone() {
    let (world, id) = World::single(V4, Protocol::Tcp);
    connect::<1>(&world, Protocol::Tcp, at(V4.vip, PORT));
    let backend = world.tables.backends_of(id, Scope::Cluster)[0];
    world.tables.clear_flags(backend, BackendFlags::PRESENT | BackendFlags::SERVING);
    world.tables.delete_service_port(id);
    assert_eq!(peer(&world, at(V4.pod, TARGET)), Some(address::<1>(at(V4.vip, PORT))));
}

#[test]
fn no_memory_for_a_record_is_counted_and_the_connection_goes_on() {
    let (world, _) = World::single(V4, Protocol::Tcp);
    world.tables.set_capacities(Capacities { sockets: 1, ..Capacities::default() });
    connect::<1>(&world, Protocol::Tcp, at(V4.vip, PORT));
    assert_eq!(world.count(Counter::SocketUnrecorded), 0);
    world.tables.set_cookie(2);
    let outcome = connect::<1>(&world, Protocol::Tcp, at(V4.vip, PORT));
    assert_eq!(outcome, Outcome::Translated(address(at(V4.pod, TARGET))));
    assert_eq!(world.count(Counter::SocketUnrecorded), 1);
    assert_eq!(world.count(Counter::SocketTranslated), 2);
    assert_eq!(peer::<1>(&world, at(V4.pod, TARGET)), None, "the backend shows");
}

/// Datagrams of a pod that cannot be remembered are left to the packet engine; those of the node
/// itself have nobody else, nor have those of anybody where the kernel does not tell who is who.
#[test]
fn no_room_for_a_udp_socket_of_a_pod_leaves_it_to_the_packet_engine() {
    let vip = at(V4.vip, PORT);
    let translated = Outcome::Translated(address(at(V4.pod, TARGET)));
    for (netns, node_netns, outcome) in
        [(2, 1, Outcome::Pass), (1, 1, translated), (2, 0, translated), (0, 0, translated)]
    {
        let (world, _) = World::single(V4, Protocol::Udp);
        world.tables.set_node_netns(node_netns);
        world.tables.set_netns(netns);
        world.tables.set_capacities(Capacities { sockets: 0, ..Capacities::default() });
        assert_eq!(connect::<1>(&world, Protocol::Udp, vip), outcome, "{netns}, {node_netns}");
        assert_eq!(world.count(Counter::SocketUnrecorded), 1);
        assert_eq!(world.count(Counter::SocketTranslated), u64::from(outcome != Outcome::Pass));
        assert_eq!(peer::<1>(&world, at(V4.pod, TARGET)), None);
    }
}

/// `connect` to `AF_UNSPEC` ends the connection of a UDP socket, and no hook hears of it.
#[test]
fn a_disconnected_socket_sees_its_senders_as_they_are() {
    let (vip, pod, other) = (at(V4.vip, PORT), at(V4.pod, TARGET), at(V4.pod2, TARGET));
    let (world, _) = World::with_backends(V4, Protocol::Udp, &[pod, other]);
    world.tables.push_random(0);
    connect::<1>(&world, Protocol::Udp, vip);
    assert_eq!(from(&world, pod), Some(address::<1>(vip)));
    world.tables.disconnect();
    assert_eq!(from::<1>(&world, pod), None, "it is asked directly now");
    // It names the VIP: a choice of its own, which has nothing to do with the connection.
    world.tables.push_random(u32::MAX);
    let sent = socket::sendmsg(&world.tables, &address::<1>(vip));
    assert_eq!(sent, Outcome::Translated(address(other)));
    assert_eq!(from(&world, other), Some(address::<1>(vip)));
    world.tables.push_random(0);
    connect::<1>(&world, Protocol::Udp, vip);
    assert_eq!(from(&world, pod), Some(address::<1>(vip)), "connected again");
    socket::release(&world.tables, proto::UDP);
    assert!(world.tables.peers().is_empty());
}

#[test]
fn mapped_addresses_are_ipv4() {
    let plain = ip::<1>("10.96.0.10");
    let wide = ip::<4>("::ffff:10.96.0.10");
    assert_eq!(socket::mapped(plain), wide);
    assert_eq!(socket::unmapped(&wide), Some(plain));
    for other in ["::10.96.0.10", "::1", "::", "fd00::ffff:a60:a", "64:ff9b::a60:a", "::fffe:a60:a"]
    {
        assert_eq!(socket::unmapped(&ip::<4>(other)), None, "{other}");
    }
    // A socket of IPv6 that connects to a mapped address is found again as IPv4.
    let (world, _) = World::single(V4, Protocol::Tcp);
    let inner = socket::unmapped(&ip::<4>(&format!("::ffff:{}", V4.vip))).unwrap();
    let to = Address { ip: inner, port: PORT.to_be() };
    let Outcome::Translated(pod) = socket::connect(&world.tables, 6, &to) else { panic!() };
    assert_eq!(socket::mapped(pod.ip), ip::<4>(&format!("::ffff:{}", V4.pod)));
    assert_eq!(socket::getpeername(&world.tables, &pod), Some(to));
}
