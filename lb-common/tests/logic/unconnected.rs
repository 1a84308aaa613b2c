//! The socket engine for unconnected UDP sockets: sendmsg, recvmsg, release.

use std::{collections::HashSet, net::SocketAddr};

use lb_common::{
    abi::{BackendFlags, Counter, Scope, SetWord, SocketLink, proto},
    host::{Capacities, HostTables},
    socket::{self, Address, Outcome},
    tables::{FrontendTables, SocketTables as _},
};

use crate::{
    connected::address,
    setup::{NETS, Net, PORT, Protocol, TARGET, V4, World, at},
};

fn send<const N: usize>(world: &World, to: SocketAddr) -> Outcome<N>
where
    HostTables: FrontendTables<N>,
{
    socket::sendmsg(&world.tables, &address::<N>(to))
}

fn from<const N: usize>(world: &World, at: SocketAddr) -> Option<Address<N>> {
    socket::recvmsg(&world.tables, &address::<N>(at))
}

fn translated<const N: usize>(to: SocketAddr) -> Outcome<N> {
    Outcome::Translated(address(to))
}

struct Ends {
    vip: SocketAddr,
    first: SocketAddr,
    last: SocketAddr,
}

fn ends(net: Net) -> Ends {
    Ends { vip: at(net.vip, PORT), first: at(net.pod, TARGET), last: at(net.pod2, TARGET) }
}

fn sticks_and_moves<const N: usize>(net: Net)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, first, last } = ends(net);
    let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
    assert_eq!(send::<N>(&world, vip), translated(first));
    assert_eq!(from(&world, first), Some(address::<N>(vip)));
    assert_eq!(from::<N>(&world, last), None);

    // The set grows: every datagram of this socket stays, and others are spread.
    let old = world.tables.backends_of(id, Scope::Cluster)[0];
    let new = world.tables.add_backend(id, last);
    world.tables.set_backends(id, Scope::Cluster, &[old, new]);
    world.tables.reset_costs();
    for _ in 0..50 {
        assert_eq!(send::<N>(&world, vip), translated(first));
    }
    assert_eq!(world.tables.costs().map_updates, 0);
    let mut chosen = HashSet::new();
    for cookie in 100..150 {
        world.tables.set_cookie(cookie);
        let Outcome::Translated(Address { ip, .. }) = send::<N>(&world, vip) else { panic!() };
        chosen.insert(ip);
        socket::release(&world.tables, proto::UDP);
    }
    assert_eq!(chosen.len(), 2);
    world.tables.set_cookie(1);

    // Out of the set but serving: stays (U-4). Not serving: moves.
    world.tables.set_backends(id, Scope::Cluster, &[new]);
    assert_eq!(send::<N>(&world, vip), translated(first));
    world.tables.clear_flags(old, BackendFlags::SERVING);
    assert_eq!(send::<N>(&world, vip), translated(last));
    assert_eq!(send::<N>(&world, vip), translated(last));
    assert_eq!(from(&world, last), Some(address::<N>(vip)));
    assert_eq!(from(&world, first), Some(address::<N>(vip)), "a late answer");

    // Its id is another endpoint's by now.
    world.tables.reuse_backend(new, id, first);
    assert_eq!(send::<N>(&world, vip), translated(first));
}

#[test]
fn one_socket_stays_with_one_backend_while_that_serves() {
    sticks_and_moves::<1>(NETS[0]);
    sticks_and_moves::<4>(NETS[1]);
}

fn named_while_connected<const N: usize>(net: Net)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, first, last } = ends(net);
    let (world, id) = World::with_backends(net, Protocol::Udp, &[first, last]);
    world.tables.push_random(0);
    let to = address::<N>(vip);
    assert_eq!(socket::connect(&world.tables, Protocol::Udp.number(), &to), translated(first));
    for _ in 0..3 {
        world.tables.push_random(u32::MAX);
        assert_eq!(send::<N>(&world, vip), translated(first), "the only one that it hears");
    }
    assert_eq!(world.tables.peers(), vec![]);
    assert_eq!(from(&world, first), Some(address::<N>(vip)));
    // Another frontend of the same Service is another matter, and so is a backend that is gone.
    world.tables.add_frontend_with(id, Protocol::Udp.number(), at(net.vip2, PORT), 0);
    assert_eq!(send::<N>(&world, at(net.vip2, PORT)), translated(last));
    let gone = world.tables.backends_of(id, Scope::Cluster)[0];
    world.tables.clear_flags(gone, BackendFlags::SERVING);
    assert_eq!(send::<N>(&world, vip), translated(last));
}

#[test]
fn a_connected_socket_that_names_its_vip_stays_with_its_backend() {
    named_while_connected::<1>(NETS[0]);
    named_while_connected::<4>(NETS[1]);
}

fn refused_then_gone<const N: usize>(net: Net)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, first, .. } = ends(net);
    let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
    send::<N>(&world, vip);
    let backend = world.tables.backends_of(id, Scope::Cluster)[0];
    world.tables.set_backends(id, Scope::Cluster, &[]);
    world.tables.clear_flags(backend, BackendFlags::SERVING);
    assert_eq!(send::<N>(&world, vip), Outcome::Reject);
    world.tables.set_empty(id, Scope::Cluster, SetWord::DROP);
    assert_eq!(send::<N>(&world, vip), Outcome::Drop);
    world.tables.delete_service_port(id);
    assert_eq!(send::<N>(&world, vip), Outcome::Pass);
    assert_eq!(send::<N>(&world, at(net.foreign, PORT)), Outcome::Pass);
}

#[test]
fn datagrams_without_backends_are_refused() {
    refused_then_gone::<1>(NETS[0]);
    refused_then_gone::<4>(NETS[1]);
}

fn two_vips<const N: usize>(net: Net)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, first, last } = ends(net);
    let other_vip = at(net.vip2, PORT);
    let (world, _) = World::with_backends(net, Protocol::Udp, &[first]);
    world.tables.add_service_port(17, &[other_vip], &[last]);
    send::<N>(&world, vip);
    send::<N>(&world, other_vip);
    assert_eq!(from(&world, first), Some(address::<N>(vip)));
    assert_eq!(from(&world, last), Some(address::<N>(other_vip)));
    // Others on the node are asked for nothing.
    world.tables.set_cookie(2);
    assert_eq!(from::<N>(&world, first), None);
}

#[test]
fn one_socket_talks_to_two_vips() {
    two_vips::<1>(NETS[0]);
    two_vips::<4>(NETS[1]);
}

#[test]
fn release_removes_every_peer_of_its_socket_and_no_other() {
    let world = World::default();
    let vips: Vec<_> = (0..30).map(|n| at("10.96.7.1", 1000 + n)).collect();
    for (n, vip) in vips.iter().enumerate() {
        let pod = at(&format!("10.244.9.{n}"), TARGET);
        world.tables.add_service_port(17, &[*vip], &[pod]);
    }
    for cookie in [1, 2] {
        world.tables.set_cookie(cookie);
        for vip in vips.iter().chain(&vips) {
            assert!(matches!(send::<1>(&world, *vip), Outcome::Translated(_)));
        }
    }
    let peers = || -> Vec<u64> { world.tables.peers().iter().map(|(key, _)| key.cookie).collect() };
    assert_eq!(peers().len(), 2 * 2 * vips.len());
    socket::release(&world.tables, proto::UDP);
    assert!(peers().iter().all(|cookie| *cookie == 1), "the other socket's stay");
    assert_eq!(peers().len(), 2 * vips.len());
    world.tables.set_cookie(1);
    socket::release(&world.tables, proto::UDP);
    assert_eq!(peers(), Vec::<u64>::new());
    // Neither a second release nor that of a socket without any does harm.
    socket::release(&world.tables, proto::UDP);
    world.tables.set_cookie(3);
    socket::release(&world.tables, proto::UDP);
}

#[test]
fn a_socket_of_both_families_is_released_whole() {
    let world = World::default();
    for net in NETS {
        world.tables.add_service_port(17, &[at(net.vip, PORT)], &[at(net.pod, TARGET)]);
    }
    send::<1>(&world, at(NETS[0].vip, PORT));
    send::<4>(&world, at(NETS[1].vip, PORT));
    let families: HashSet<_> =
        world.tables.peers().iter().map(|(key, _)| key.link.family).collect();
    assert_eq!(families, HashSet::from([4, 6]));
    socket::release(&world.tables, proto::UDP);
    assert!(world.tables.peers().is_empty());
}

#[test]
fn a_full_table_is_counted_and_the_datagram_goes_on() {
    let Ends { vip, first, .. } = ends(V4);
    for room in 0..=2 {
        let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
        world.tables.set_netns(world.tables.node_netns());
        world.tables.set_capacities(Capacities { peers: room, ..Capacities::default() });
        assert_eq!(send::<1>(&world, vip), translated(first));
        assert_eq!(world.count(Counter::SocketUnrecorded), u64::from(room < 2), "room {room}");
        // The answer's record comes first: with room for one, the VIP is seen.
        assert_eq!(from::<1>(&world, first).is_some(), room >= 1);
        socket::release(&world.tables, proto::UDP);
        assert!(world.tables.peers().is_empty(), "room {room}");
    }
    let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
    world.tables.set_netns(world.tables.node_netns());
    world.tables.set_capacities(Capacities { sockets: 0, ..Capacities::default() });
    assert_eq!(send::<1>(&world, vip), translated(first));
    assert_eq!(world.count(Counter::SocketUnrecorded), 1);
    assert!(world.tables.peers().is_empty(), "what no release would find is not kept");
}

/// A pod whose datagrams cannot be remembered has the packet engine, which needs no record of its
/// socket: the VIP stays what it sees, whoever has filled the table.
#[test]
fn a_full_table_leaves_datagrams_of_pods_to_the_packet_engine() {
    let Ends { vip, first, .. } = ends(V4);
    let full = [
        Capacities { peers: 0, ..Capacities::default() },
        Capacities { peers: 1, ..Capacities::default() },
        Capacities { sockets: 0, ..Capacities::default() },
    ];
    for (n, capacities) in full.into_iter().enumerate() {
        let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
        world.tables.set_capacities(capacities);
        assert_eq!(send::<1>(&world, vip), Outcome::Pass, "{n}");
        let counted = [Counter::SocketUnrecorded, Counter::SocketTranslated];
        assert_eq!(counted.map(|counter| world.count(counter)), [1, 0], "{n}");
        assert_eq!(from::<1>(&world, vip), None, "{n}: the answer comes from the VIP as it is");
        // There is room again.
        world.tables.set_capacities(Capacities::default());
        assert_eq!(send::<1>(&world, vip), translated(first), "{n}");
        assert_eq!(from(&world, first), Some(address::<1>(vip)), "{n}");
        socket::release(&world.tables, proto::UDP);
        assert!(world.tables.peers().is_empty(), "{n}");
    }
}

/// Nobody but the socket engine serves the node's own processes: no pod takes their room.
#[test]
fn pods_that_fill_the_tables_take_no_room_of_the_node() {
    let Ends { vip, first, .. } = ends(V4);
    let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
    let node = world.tables.node_netns();
    let pod = node + 1;
    world.tables.set_capacities(Capacities { peers: 4, sockets: 2, ..Capacities::default() });
    world.tables.set_netns(pod);
    let outcomes = (10..15).map(|cookie| {
        world.tables.set_cookie(cookie);
        send::<1>(&world, vip)
    });
    let full = [translated(first), translated(first), Outcome::Pass, Outcome::Pass, Outcome::Pass];
    assert!(outcomes.eq(full));

    world.tables.set_netns(node);
    let connected = || socket::connect(&world.tables, proto::UDP, &address::<1>(vip));
    for (cookie, call) in [(20, &connected as &dyn Fn() -> _), (21, &|| send::<1>(&world, vip))] {
        world.tables.set_cookie(cookie);
        assert_eq!(call(), translated(first));
        assert_eq!(from(&world, first), Some(address::<1>(vip)), "{cookie}");
    }
    assert_eq!(world.count(Counter::SocketUnrecorded), 3);

    // Nor does the node take theirs, and each is released from its own tables.
    for (netns, cookie) in [(node, 20), (node, 21), (pod, 10), (pod, 11)] {
        world.tables.set_netns(netns);
        world.tables.set_cookie(cookie);
        socket::release(&world.tables, proto::UDP);
    }
    assert_eq!(world.tables.peers(), vec![]);
    world.tables.set_netns(pod);
    world.tables.set_cookie(14);
    assert_eq!(send::<1>(&world, vip), translated(first));
}

/// Where the kernel does not tell namespaces apart, all sockets share the pods' tables.
#[test]
fn sockets_of_unknown_namespaces_share_tables() {
    let Ends { vip, first, .. } = ends(V4);
    let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
    world.tables.set_node_netns(0);
    world.tables.set_netns(0);
    world.tables.set_capacities(Capacities { sockets: 1, ..Capacities::default() });
    for (cookie, unrecorded) in [(1, 0), (2, 1)] {
        world.tables.set_cookie(cookie);
        assert_eq!(send::<1>(&world, vip), translated(first));
        assert_eq!(world.count(Counter::SocketUnrecorded), unrecorded);
    }
}

#[test]
fn a_socket_that_connects_after_sending_is_released_whole() {
    let Ends { vip, first, .. } = ends(V4);
    let (world, _) = World::with_backends(V4, Protocol::Udp, &[first]);
    send::<1>(&world, vip);
    let connected = socket::connect(&world.tables, 17, &address::<1>(vip));
    assert_eq!(connected, translated(first));
    assert_eq!(world.tables.peers().len(), 2);
    let kinds: HashSet<_> = world.tables.peers().iter().map(|(key, _)| key.link.kind).collect();
    assert_eq!(kinds, HashSet::from([SocketLink::FORWARD, SocketLink::REVERSE]));
    socket::release(&world.tables, proto::UDP);
    assert!(world.tables.peers().is_empty());
}

/// One socket must not fill the table, and its records must be found when it goes.
#[test]
fn a_socket_of_many_peers_begins_anew() {
    let world = World::default();
    for n in 1..=200 {
        let (vip, pod) = (at(&format!("10.96.1.{n}"), PORT), at(&format!("10.244.5.{n}"), TARGET));
        world.tables.add_service_port(17, &[vip], &[pod]);
        assert_eq!(send::<1>(&world, vip), translated::<1>(pod));
        assert!(world.tables.peers().len() <= 64, "{n}");
        assert!(from::<1>(&world, pod).is_some(), "{n}: its answer is the VIP's");
    }
    socket::release(&world.tables, proto::UDP);
    assert_eq!(world.tables.peers(), []);
    assert_eq!(world.count(Counter::SocketUnrecorded), 0);
}
