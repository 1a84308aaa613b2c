//! What a destination means to a client on the node: clusterIP, external address, NodePort or
//! nothing; which policy governs it; and which sockets are left alone.

use std::net::SocketAddr;

use lb_common::{
    abi::{
        AddressFlags, Counter, FactsFlags, FactsWord, FrontendFlags, NetnsFlags, NetnsRecord,
        Scope, ServicePortId, SetWord,
    },
    host::{HostTables, OfFamily},
    socket::{self, Outcome},
    verdict::Verdict,
};

use crate::{
    connected::address,
    setup::{
        ACK, FIN_ACK, Hook, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, World, at,
        packet, readdressed,
    },
};

const EXTERNAL: u8 = FrontendFlags::EXTERNAL;
const NODE_PORT: u16 = 30_080;
/// The namespace of the node, and one of a pod.
const NODE: u64 = 1;
const POD: u64 = 2;

/// What tests of one family need, and where its loopback and unspecified addresses are.
struct Place {
    net: Net,
    node: &'static str,
    loopback: &'static str,
    unspecified: &'static str,
}

const PLACES: [Place; 2] = [
    Place { net: NETS[0], node: "172.18.0.10", loopback: "127.0.0.1", unspecified: "0.0.0.0" },
    Place { net: NETS[1], node: "fd00:172:18::10", loopback: "::1", unspecified: "::" },
];

/// One Service with a clusterIP, an external address, and a NodePort at the node's address. Its
/// cluster set holds `pod` and `pod2`, its local set `pod2`.
fn exposed(place: &Place, protocol: Protocol) -> (World, ServicePortId) {
    let net = place.net;
    let (world, id) =
        World::with_backends(net, protocol, &[at(net.pod, TARGET), at(net.pod2, TARGET)]);
    let number = protocol.number();
    world.tables.add_frontend_with(id, number, at(net.foreign, PORT), EXTERNAL);
    world.tables.add_frontend_with(id, number, at(place.unspecified, NODE_PORT), EXTERNAL);
    world.tables.set_address(place.node.parse().unwrap(), AddressFlags::NODE);
    let [_, near] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
    world.tables.set_backends(id, Scope::Local, &[near]);
    (world, id)
}

fn connect<const N: usize>(world: &World, protocol: Protocol, to: SocketAddr) -> Outcome<N>
where
    HostTables: OfFamily<N>,
{
    socket::connect(&world.tables, protocol.number(), &address::<N>(to))
}

/// A connection in packets from a fresh port.
fn open(world: &World, net: Net, protocol: Protocol, to: SocketAddr) -> Verdict {
    let port = u16::try_from(world.tables.costs().lookups % 20_000).unwrap() + 10_000;
    world.ingress(&packet(protocol, at(net.client, port), to, SYN)).0
}

fn for_both_engines<const N: usize>(
    world: &World,
    place: &Place,
    protocol: Protocol,
    to: SocketAddr,
    expected: Expected,
) where
    HostTables: OfFamily<N>,
{
    let choices: &[(u32, &str)] = match expected {
        Expected::Cluster => &[(0, place.net.pod), (u32::MAX, place.net.pod2)],
        Expected::Local => &[(0, place.net.pod2), (u32::MAX, place.net.pod2)],
        Expected::Refused | Expected::Dropped | Expected::NotOurs => &[],
    };
    for (random, pod) in choices {
        world.tables.push_random(*random);
        let backend = at(pod, TARGET);
        let outcome = connect::<N>(world, protocol, to);
        assert_eq!(outcome, Outcome::Translated(address(backend)), "{to}");
        world.tables.push_random(*random);
        let port = 1 + u16::try_from(world.tables.costs().lookups % 60_000).unwrap();
        let first = packet(protocol, at(place.net.client, port), to, SYN);
        assert_eq!(world.sent_to(&first), backend, "{to}");
    }
    let (outcome, verdict) = match expected {
        Expected::Cluster | Expected::Local => return,
        Expected::Refused => (Outcome::Reject, Verdict::NoBackend),
        Expected::Dropped => (Outcome::Drop, Verdict::NoLocalBackend),
        Expected::NotOurs => (Outcome::Pass, Verdict::NotService),
    };
    assert_eq!(connect::<N>(world, protocol, to), outcome, "{to}");
    assert_eq!(open(world, place.net, protocol, to), verdict, "{to}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Cluster,
    Local,
    Refused,
    Dropped,
    NotOurs,
}

fn policies<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    let net = place.net;
    let outside = [at(net.foreign, PORT), at(place.node, NODE_PORT)];
    let inside = at(net.vip, PORT);
    for protocol in Protocol::BOTH {
        for internal in [false, true] {
            for external in [false, true] {
                let (world, id) = exposed(place, protocol);
                let mut flags = FactsFlags::PRESENT;
                flags |= if internal { FactsFlags::INTERNAL_LOCAL } else { 0 };
                flags |= if external { FactsFlags::EXTERNAL_LOCAL } else { 0 };
                world.tables.set_facts(id, FactsWord::new(flags, 0));
                let here = if internal { Expected::Local } else { Expected::Cluster };
                let all = |inner: Expected, outer: Expected| {
                    for_both_engines::<N>(&world, place, protocol, inside, inner);
                    for to in outside {
                        for_both_engines::<N>(&world, place, protocol, to, outer);
                    }
                };
                // V-1, V-2, V-7, V-9, V-10, V-f: an external destination means every backend.
                all(here, Expected::Cluster);
                // V-4, V-c: nobody here.
                world.tables.set_empty(id, Scope::Local, SetWord::DROP);
                all(if internal { Expected::Dropped } else { here }, Expected::Cluster);
                // V-3, V-6, V-j: nobody at all.
                world.tables.set_empty(id, Scope::Local, SetWord::REJECT);
                world.tables.set_empty(id, Scope::Cluster, SetWord::REJECT);
                all(Expected::Refused, Expected::Refused);
                world.tables.delete_service_port(id);
                all(Expected::NotOurs, Expected::NotOurs);
            }
        }
    }
}

#[test]
fn v_6_v_7_v_9_v_10_v_c_v_g_each_destination_has_its_own_policy() {
    policies::<1>(&PLACES[0]);
    policies::<4>(&PLACES[1]);
}

fn lookup_order<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    let net = place.net;
    for protocol in Protocol::BOTH {
        let (world, _) = exposed(place, protocol);
        let ours = |to, expected| for_both_engines::<N>(&world, place, protocol, to, expected);
        let node_port = at(place.node, NODE_PORT);
        ours(node_port, Expected::Cluster);
        // V-11: another node's address, a pod's, and one of the node that does not count.
        for other in [net.client, net.pod, net.vip2] {
            ours(at(other, NODE_PORT), Expected::NotOurs);
        }
        ours(at(place.node, NODE_PORT + 1), Expected::NotOurs);
        // C-4: the node has an address that is a VIP too, and somebody claims the very same port of
        // it: the address and port counts first.
        let exact = world.tables.add_service_port(protocol.number(), &[], &[]);
        world.tables.add_frontend_with(exact, protocol.number(), node_port, EXTERNAL);
        ours(node_port, Expected::Refused);
        world.tables.delete_service_port(exact);
        ours(node_port, Expected::Cluster);
        // N-4: the address goes, and comes back.
        world.tables.set_address(place.node.parse().unwrap(), 0);
        ours(node_port, Expected::NotOurs);
        world.tables.set_address(place.node.parse().unwrap(), AddressFlags::CLUSTER_IP);
        ours(node_port, Expected::NotOurs);
        world.tables.set_address(place.node.parse().unwrap(), AddressFlags::NODE);
        ours(node_port, Expected::Cluster);
    }
}

#[test]
fn c_2_c_4_v_11_n_4_a_node_port_is_looked_up_last_and_at_this_nodes_addresses_only() {
    lookup_order::<1>(&PLACES[0]);
    lookup_order::<4>(&PLACES[1]);
}

fn nowhere<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    for protocol in Protocol::BOTH {
        let (world, _) = exposed(place, protocol);
        for netns in [NODE, POD] {
            world.tables.set_netns(netns);
            let to = at(place.unspecified, NODE_PORT);
            for_both_engines::<N>(&world, place, protocol, to, Expected::NotOurs);
        }
    }
}

/// To a socket the unspecified address is itself, whatever NodePorts there are.
#[test]
fn c_2_the_unspecified_address_is_no_node_port() {
    nowhere::<1>(&PLACES[0]);
    nowhere::<4>(&PLACES[1]);
}

fn loopback<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    for protocol in Protocol::BOTH {
        let (world, _) = exposed(place, protocol);
        let to = at(place.loopback, NODE_PORT);
        for netns in [NODE, POD] {
            world.tables.set_netns(netns);
            for_both_engines::<N>(&world, place, protocol, to, Expected::NotOurs);
        }
        world.tables.set_address(place.loopback.parse().unwrap(), AddressFlags::LOOPBACK);
        world.tables.set_netns(POD);
        // A pod's own loopback; and no packet with such a destination ever is for a NodePort.
        for_both_engines::<N>(&world, place, protocol, to, Expected::NotOurs);
        world.tables.set_netns(NODE);
        world.tables.push_random(0);
        let backend = at(place.net.pod, TARGET);
        let outcome = connect::<N>(&world, protocol, to);
        assert_eq!(outcome, Outcome::Translated(address(backend)));
        let seen = socket::getpeername(&world.tables, &address::<N>(backend));
        assert_eq!(seen, Some(address::<N>(to)));
        assert_eq!(open(&world, place.net, protocol, to), Verdict::NotService);
    }
}

#[test]
fn n_6_n_7_cve_2020_8558_loopback_is_for_sockets_of_the_node_alone() {
    loopback::<1>(&PLACES[0]);
    loopback::<4>(&PLACES[1]);
}

fn protocols<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    let net = place.net;
    let (world, _) = exposed(place, Protocol::Tcp);
    let node_port = at(place.node, NODE_PORT);
    for_both_engines::<N>(&world, place, Protocol::Udp, node_port, Expected::NotOurs);
    let udp = world.tables.add_service_port(17, &[], &[at(net.client, 53)]);
    world.tables.add_frontend_with(udp, 17, at(place.unspecified, NODE_PORT), EXTERNAL);
    for_both_engines::<N>(&world, place, Protocol::Tcp, node_port, Expected::Cluster);
    let outcome = connect::<N>(&world, Protocol::Udp, node_port);
    assert_eq!(outcome, Outcome::Translated(address(at(net.client, 53))));
}

#[test]
fn n_9_one_number_belongs_to_another_service_for_each_protocol() {
    protocols::<1>(&PLACES[0]);
    protocols::<4>(&PLACES[1]);
}

/// V-9: a pod's way to an external destination leaves its source alone, there and back.
#[test]
fn m_4_m_a_a_pod_keeps_its_source_to_an_external_destination() {
    for place in &PLACES {
        let net = place.net;
        for protocol in Protocol::BOTH {
            for to in [at(net.foreign, PORT), at(place.node, NODE_PORT)] {
                let (world, id) = exposed(place, protocol);
                let flags = FactsFlags::PRESENT | FactsFlags::EXTERNAL_LOCAL;
                world.tables.set_facts(id, FactsWord::new(flags, 0));
                let (client, pod) = (at(net.client, SPORT), at(net.pod, TARGET));
                world.tables.push_random(0);
                let first = packet(protocol, client, to, SYN);
                world.becomes(Hook::Ingress, &first, &readdressed(&first, client, pod));
                world.answers_as(&packet(protocol, pod, client, crate::setup::SYN_ACK), to);
            }
        }
    }
}

fn left_alone<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    type Arrange = fn(&HostTables);
    let arrangements: [Arrange; 3] = [
        |tables| tables.set_node_only(true),
        |tables| {
            tables.know_netns(
                POD,
                NetnsRecord { flags: NetnsFlags::BYPASS, ..NetnsRecord::default() },
            );
        },
        |tables| tables.set_cgroup_bypassed(true),
    ];
    let net = place.net;
    for protocol in Protocol::BOTH {
        for arrange in arrangements {
            let (world, _) = exposed(place, protocol);
            world.tables.set_netns(POD);
            arrange(&world.tables);
            for to in [at(net.vip, PORT), at(net.foreign, PORT), at(place.node, NODE_PORT)] {
                assert_eq!(connect::<N>(&world, protocol, to), Outcome::Pass);
                if protocol == Protocol::Udp {
                    let sent = socket::sendmsg(&world.tables, &address::<N>(to));
                    assert_eq!(sent, Outcome::Pass);
                }
                // Its packets have the VIP as destination, and the packet engine takes them.
                assert_eq!(open(&world, net, protocol, to), Verdict::Translated);
            }
            let calls = if protocol == Protocol::Udp { 6 } else { 3 };
            assert_eq!(world.count(Counter::SocketBypassed), calls);
            assert_eq!(world.count(Counter::SocketTranslated), 0);
            // What is no Service's is none of it.
            let foreign = at(net.client, PORT);
            assert_eq!(connect::<N>(&world, protocol, foreign), Outcome::Pass);
            assert_eq!(world.count(Counter::SocketBypassed), calls);
        }
        // A socket of the node itself, where only pods' are left alone.
        let (world, _) = exposed(place, protocol);
        arrangements[0](&world.tables);
        arrangements[1](&world.tables);
        world.tables.set_netns(NODE);
        let served = connect::<N>(&world, protocol, at(net.vip, PORT));
        assert!(matches!(served, Outcome::Translated(_)), "{served:?}");
    }
}

#[test]
fn sockets_that_are_left_alone_are_served_in_packets() {
    left_alone::<1>(&PLACES[0]);
    left_alone::<4>(&PLACES[1]);
}

fn torn_addresses<const N: usize>(place: &Place)
where
    HostTables: OfFamily<N>,
{
    let to = at(place.node, NODE_PORT);
    let (world, _) = exposed(place, Protocol::Tcp);
    world.tables.tear_addresses::<N>(1);
    assert_eq!(open(&world, place.net, Protocol::Tcp, to), Verdict::Translated, "one retry");
    world.tables.tear_addresses::<N>(2);
    assert_eq!(open(&world, place.net, Protocol::Tcp, to), Verdict::NotService);
}

#[test]
fn c2_a_node_port_is_found_though_its_address_reads_as_another() {
    torn_addresses::<1>(&PLACES[0]);
    torn_addresses::<4>(&PLACES[1]);
}

/// A connection that the node made to a pod, from a port that is a `NodePort` or an external one of its
/// own address: the pod's answers are no business of the Service (C-6).
#[test]
fn c6_answers_to_the_node_are_not_taken_for_packets_to_its_node_port() {
    for place in PLACES {
        let (world, id) = exposed(&place, Protocol::Tcp);
        let external = at(place.node, PORT);
        world.tables.add_frontend_with(id, Protocol::Tcp.number(), external, EXTERNAL);
        let pod = at(place.net.client, SPORT);
        for from in [at(place.node, NODE_PORT), external] {
            for flags in [SYN_ACK, ACK, FIN_ACK, RST] {
                let answer = packet(Protocol::Tcp, pod, from, flags);
                assert_eq!(world.ingress(&answer).0, Verdict::NotService, "{from}");
            }
        }
        // To an address that is nobody else's, such a packet goes nowhere.
        let lost = packet(Protocol::Tcp, pod, at(place.net.vip, PORT), ACK);
        assert_eq!(world.ingress(&lost).0, Verdict::NoFlow);
    }
}
