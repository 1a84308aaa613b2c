//! Session affinity: who is one client, how long it has its backend, and what takes it away.

use std::{collections::HashSet, net::SocketAddr};

use lb_common::{
    abi::{
        BackendFlags, Counter, FactsFlags, FactsWord, FrontendFlags, NetnsRecord, Scope,
        ServicePortId, SetWord,
    },
    host::{Capacities, HostTables, OfFamily},
    socket::{self, Address, Outcome},
    verdict::Verdict,
};

use crate::{
    connected::address,
    setup::{NETS, Net, PORT, Protocol, SYN, World, at, ip, packet, tcp},
};

const TIMEOUT_S: u32 = 100;
const STICKY: u32 = FactsFlags::PRESENT | FactsFlags::AFFINITY;

fn pod(net: Net, n: u16) -> SocketAddr {
    at(net.pod, 9_000 + n)
}

/// A sticky Service of `count` backends at `vip`.
fn sticky(net: Net, protocol: Protocol, count: u16) -> (World, ServicePortId) {
    let pods: Vec<_> = (0..count).map(|n| pod(net, n)).collect();
    let (world, id) = World::with_backends(net, protocol, &pods);
    world.tables.set_facts(id, FactsWord::new(STICKY, TIMEOUT_S));
    (world, id)
}

/// Where a new connection from a client's port goes, in packets.
fn new_connection(world: &World, net: Net, port: u16) -> SocketAddr {
    world.sent_to(&tcp(at(net.client, port), at(net.vip, PORT), SYN))
}

/// Where a socket of that namespace is connected to; each is a socket of its own.
fn connects<const N: usize>(world: &World, netns: u64, to: SocketAddr) -> Address<N>
where
    HostTables: OfFamily<N>,
{
    world.tables.set_netns(netns);
    world.tables.set_cookie(1_000 + world.tables.costs().lookups);
    match socket::connect(&world.tables, 6, &address::<N>(to)) {
        Outcome::Translated(backend) => backend,
        other => panic!("{other:?}"),
    }
}

/// Makes the next choice among all backends the last of them, whatever it would have been.
fn next_is_last(world: &World) {
    world.tables.clear_random();
    world.tables.push_random(u32::MAX);
}

#[test]
fn a_2_a_9_all_connections_of_a_client_go_to_one_backend() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let (world, _) = sticky(net, protocol, 8);
            let mut seen = HashSet::new();
            for client in 0..100_u16 {
                let from = if net.vip.contains(':') {
                    format!("fd00:10:244:7::{client:x}")
                } else {
                    format!("10.244.7.{client}")
                };
                let to = |port| {
                    let first = packet(protocol, at(&from, port), at(net.vip, PORT), SYN);
                    world.sent_to(&first)
                };
                let backend = to(1);
                for port in 2..17 {
                    assert_eq!(to(port), backend, "client {client}, port {port}");
                }
                seen.insert(backend);
            }
            // Clients are spread: the chance that one of eight is never chosen is 13 in a million.
            assert_eq!(seen.len(), 8);
        }
    }
}

#[test]
fn a_2_every_frontend_of_a_service_port_shares_it_and_other_service_ports_do_not() {
    for net in NETS {
        let (world, id) = sticky(net, Protocol::Tcp, 50);
        let external = at(net.foreign, PORT);
        world.tables.add_frontend_with(id, 6, external, FrontendFlags::EXTERNAL);
        let other_port = at(net.vip, PORT + 1);
        let pods: Vec<_> = (0..50).map(|n| pod(net, n)).collect();
        let other = world.tables.add_service_port(6, &[other_port], &pods);
        world.tables.set_facts(other, FactsWord::new(STICKY, TIMEOUT_S));
        world.tables.push_random(0);
        let backend = new_connection(&world, net, 1);
        assert_eq!(backend, pod(net, 0));
        next_is_last(&world);
        assert_eq!(world.sent_to(&tcp(at(net.client, 2), external, SYN)), backend);
        // The number that was not asked for is the other service port's choice.
        assert_eq!(world.sent_to(&tcp(at(net.client, 3), other_port, SYN)), pod(net, 49));
        assert_eq!(world.tables.affinities().len(), 2);
    }
}

fn both_engines<const N: usize>(net: Net)
where
    HostTables: OfFamily<N>,
{
    let (world, _) = sticky(net, Protocol::Tcp, 50);
    let vip = at(net.vip, PORT);
    let mut record = NetnsRecord::default();
    let client: [u32; N] = ip(net.client);
    if N == 1 {
        record.v4 = client[0];
    } else {
        record.v6 = client.to_vec().try_into().unwrap();
    }
    world.tables.know_netns(77, record);
    let backend = connects::<N>(&world, 77, vip);
    for port in 1..20 {
        let in_packets = new_connection(&world, net, port);
        assert_eq!(address::<N>(in_packets), backend);
    }
    assert_eq!(world.tables.affinities().len(), 1);

    // A client whose address nobody knows is known by its namespace, and is no other's.
    next_is_last(&world);
    let unknown = connects::<N>(&world, 78, vip);
    assert_eq!(unknown, address::<N>(pod(net, 49)));
    world.tables.push_random(1 << 31);
    let another = connects::<N>(&world, 79, vip);
    assert_ne!(another, unknown);
    for _ in 0..20 {
        assert_eq!(connects::<N>(&world, 78, vip), unknown);
        assert_eq!(connects::<N>(&world, 79, vip), another);
        assert_eq!(connects::<N>(&world, 77, vip), backend);
    }
}

#[test]
fn a_2_both_engines_know_a_client_by_its_address() {
    both_engines::<1>(NETS[0]);
    both_engines::<4>(NETS[1]);
}

#[test]
fn a_3_nodes_choose_by_themselves() {
    let net = NETS[0];
    let nodes = [0, u32::MAX].map(|random| {
        let (world, _) = sticky(net, Protocol::Tcp, 8);
        world.tables.push_random(random);
        new_connection(&world, net, 1)
    });
    assert_eq!(nodes, [pod(net, 0), pod(net, 7)]);
}

#[test]
fn a_4_the_time_runs_from_the_last_new_connection() {
    for net in NETS {
        let (world, _) = sticky(net, Protocol::Tcp, 8);
        world.tables.push_random(0);
        assert_eq!(new_connection(&world, net, 1), pod(net, 0));
        for port in 2..10 {
            world.tables.advance_seconds(TIMEOUT_S - 1);
            next_is_last(&world);
            assert_eq!(new_connection(&world, net, port), pod(net, 0), "{port}");
        }
        // Packets of a connection that goes on do not count as new ones.
        world.connect(at(net.client, 10), at(net.vip, PORT));
        for _ in 0..10 {
            world.tables.advance_seconds(TIMEOUT_S / 10);
            let same = tcp(at(net.client, 10), at(net.vip, PORT), crate::setup::ACK);
            assert_eq!(world.sent_to(&same), pod(net, 0));
        }
        next_is_last(&world);
        assert_eq!(new_connection(&world, net, 11), pod(net, 7));
        // And that one is kept again.
        world.tables.push_random(0);
        assert_eq!(new_connection(&world, net, 12), pod(net, 7));
    }
}

#[test]
fn a_5_a_backend_that_left_the_set_is_not_used() {
    for net in NETS {
        let (world, id) = sticky(net, Protocol::Tcp, 3);
        let all = world.tables.backends_of(id, Scope::Cluster);
        world.tables.push_random(0);
        assert_eq!(new_connection(&world, net, 1), pod(net, 0));
        // Not ready any more.
        world.tables.clear_flags(all[0], BackendFlags::IN_CLUSTER);
        world.tables.set_backends(id, Scope::Cluster, &all[1..]);
        next_is_last(&world);
        assert_eq!(new_connection(&world, net, 2), pod(net, 2));
        // It is back, and the client stays with what it has now.
        world.tables.set_flags(all[0], BackendFlags::IN_CLUSTER);
        world.tables.set_backends(id, Scope::Cluster, &all);
        world.tables.push_random(0);
        assert_eq!(new_connection(&world, net, 3), pod(net, 2));
        // Its id is another endpoint's.
        world.tables.clear_random();
        world.tables.reuse_backend(all[2], id, pod(net, 9));
        world.tables.push_random(0);
        assert_eq!(new_connection(&world, net, 4), pod(net, 0));
        // Or gone for good.
        world.tables.clear_flags(all[0], u16::MAX);
        world.tables.set_backends(id, Scope::Cluster, &[all[1]]);
        assert_eq!(new_connection(&world, net, 5), pod(net, 1));
    }
}

#[test]
fn a_5_a_backend_of_another_service_port_is_never_used() {
    let net = NETS[0];
    let (world, _) = sticky(net, Protocol::Tcp, 3);
    let other = world.tables.add_service_port(6, &[], &[pod(net, 9)]);
    new_connection(&world, net, 1);
    let [(key, record)] = world.tables.affinities()[..] else { panic!() };
    let foreign = world.tables.backends_of(other, Scope::Cluster)[0];
    // As a torn read could show it: all but the service port fits.
    for generation in 0..100 {
        let torn = lb_common::abi::AffinityRecord { backend: foreign, generation, ..record };
        world.tables.put_affinity(key, torn);
        assert_ne!(
            new_connection(&world, net, 2 + u16::try_from(generation).unwrap()),
            pod(net, 9)
        );
    }
}

/// One record for each client: the last choice counts, where kube-proxy would have kept one for each
/// list.
#[test]
fn a_5_a_6_each_policy_uses_members_of_its_own_set() {
    for net in NETS {
        let (world, id) = sticky(net, Protocol::Tcp, 4);
        world.tables.set_facts(id, FactsWord::new(STICKY | FactsFlags::INTERNAL_LOCAL, TIMEOUT_S));
        let all = world.tables.backends_of(id, Scope::Cluster);
        world.tables.set_backends(id, Scope::Local, &all[3..]);
        for backend in &all[..3] {
            world.tables.clear_flags(*backend, BackendFlags::IN_LOCAL);
        }
        let external = at(net.foreign, PORT);
        world.tables.add_frontend_with(id, 6, external, FrontendFlags::EXTERNAL);
        world.tables.push_random(0);
        let outside = |port| world.sent_to(&tcp(at(net.client, port), external, SYN));
        assert_eq!(outside(1), pod(net, 0));
        // The clusterIP's policy is Local: a backend elsewhere does not count.
        assert_eq!(new_connection(&world, net, 2), pod(net, 3));
        // The local one is in the other set too.
        world.tables.push_random(0);
        assert_eq!(outside(3), pod(net, 3));
        world.tables.clear_random();
        world.tables.set_empty(id, Scope::Local, SetWord::DROP);
        world.tables.clear_flags(all[3], BackendFlags::IN_LOCAL);
        let refused = world.ingress(&tcp(at(net.client, 4), at(net.vip, PORT), SYN));
        assert_eq!(refused.0, Verdict::NoLocalBackend);
    }
}

#[test]
fn a_7_it_is_switched_on_and_off_and_its_time_changes_on_a_live_service() {
    for net in NETS {
        let (world, id) = sticky(net, Protocol::Tcp, 2);
        let facts = |flags, timeout| world.tables.set_facts(id, FactsWord::new(flags, timeout));
        facts(FactsFlags::PRESENT, 0);
        for (port, random, expected) in [(1, 0, 0), (2, u32::MAX, 1), (3, 0, 0)] {
            world.tables.push_random(random);
            assert_eq!(new_connection(&world, net, port), pod(net, expected));
        }
        assert_eq!(world.tables.affinities(), []);
        facts(STICKY, TIMEOUT_S);
        for (port, random) in [(4, 0), (5, u32::MAX), (6, u32::MAX)] {
            world.tables.clear_random();
            world.tables.push_random(random);
            assert_eq!(new_connection(&world, net, port), pod(net, 0));
        }
        // A shorter time counts for what is there already.
        facts(STICKY, 10);
        world.tables.advance_seconds(10);
        next_is_last(&world);
        assert_eq!(new_connection(&world, net, 7), pod(net, 1));
        facts(FactsFlags::PRESENT, 0);
        for (port, random, expected) in [(8, 0, 0), (9, u32::MAX, 1)] {
            world.tables.push_random(random);
            assert_eq!(new_connection(&world, net, port), pod(net, expected));
        }
    }
}

#[test]
fn a_9_after_the_timeout_another_backend_answers_at_last() {
    for net in NETS {
        let (world, _) = sticky(net, Protocol::Tcp, 3);
        let mut seen = HashSet::new();
        for round in 0..50 {
            let backend = new_connection(&world, net, 1 + 2 * round);
            assert_eq!(new_connection(&world, net, 2 + 2 * round), backend);
            seen.insert(backend);
            world.tables.advance_seconds(TIMEOUT_S);
        }
        assert_eq!(seen.len(), 3);
    }
}

#[test]
fn a_11_clients_behind_one_address_are_one_client() {
    for net in NETS {
        let (world, _) = sticky(net, Protocol::Tcp, 50);
        let backends: HashSet<_> = (1..200).map(|port| new_connection(&world, net, port)).collect();
        assert_eq!(backends.len(), 1);
        assert_eq!(world.tables.affinities().len(), 1);
    }
}

#[test]
fn a_full_table_is_counted_and_connections_go_on() {
    let net = NETS[0];
    let (world, _) = sticky(net, Protocol::Tcp, 8);
    world.tables.set_capacities(Capacities { affinity: 1, ..Capacities::default() });
    let backend = new_connection(&world, net, 1);
    for port in 1..20 {
        let other = tcp(at(net.foreign, port), at(net.vip, PORT), SYN);
        assert_eq!(world.ingress(&other).0, Verdict::Translated);
        assert_eq!(new_connection(&world, net, 1 + port), backend, "the old client keeps its own");
    }
    assert_eq!(world.count(Counter::AffinityUnrecorded), 19);
}

#[test]
fn a_refused_client_leaves_no_record() {
    for net in NETS {
        let (world, id) = sticky(net, Protocol::Udp, 1);
        world.tables.set_backends(id, Scope::Cluster, &[]);
        let first = packet(Protocol::Udp, at(net.client, 1), at(net.vip, PORT), SYN);
        // A record could only lead to a backend that is in no set.
        assert_eq!(world.ingress(&first).0, Verdict::NoBackend);
        assert_eq!(world.tables.affinities(), []);
    }
}
