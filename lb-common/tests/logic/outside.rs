//! Who comes from outside, which backends they get, and under which source (contract 3.2 to 4.3).

use std::net::SocketAddr;

use lb_common::{
    abi::{AddressFlags, BackendFlags, Counter, FrontendFlags, Scope},
    host::HostRoute,
    parse::Link,
    socket::{Address, Outcome, connect},
    tables::{LocalMode, NodeTables as _, RouteStatus},
    verdict::Verdict,
};
use lb_testbed::packet::{self as built, Packet};

use crate::outside_setup::{MTU, Outside, POD, SECOND, UPLINK, node, route};
use crate::setup::{
    ACK, FIN_ACK, Hook, NETS, PORT, Protocol, SPORT, SYN, SYN_ACK, V4, at, ip, packet, readdressed,
    records, udp,
};

#[test]
fn v_7_m_2_a_flow_to_another_node_is_sent_on_under_an_address_of_this_one() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = Outside::new(net, protocol);
            let source = outside.sent_on(&outside.asks(SYN));
            assert_eq!(source.ip(), at(node(net)[0], 0).ip());
            assert!((1_024..30_000).contains(&source.port()), "{source}");
            assert_eq!(outside.world.count(Counter::FlowForwarded), 1);
            outside.answered(source, SYN_ACK);
            assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
            outside.tables().reset_costs();
            for _ in 0..3 {
                assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
                outside.answered(source, ACK);
            }
            let costs = outside.tables().costs();
            assert_eq!((costs.map_updates, costs.precise_clock_reads), (0, 0));
            assert_eq!(records(&outside.world), (2, 0));
        }
    }
}

/// Departure a of the design: kube-proxy masquerades where the policy is Cluster (M-2).
#[test]
fn m_3_a_backend_on_this_node_sees_its_client() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = Outside::new(net, protocol).here();
            let asks = outside.asks(SYN);
            let (verdict, bytes) = outside.arrives(UPLINK, &asks);
            assert_eq!(verdict, Verdict::Translated);
            let expected = readdressed(&asks, outside.client(), outside.pod());
            assert_eq!(bytes, expected.build());
            let answer = packet(protocol, outside.pod(), outside.client(), SYN_ACK);
            outside.world.becomes(
                Hook::Egress,
                &answer,
                &readdressed(&answer, outside.vip(), outside.client()),
            );
        }
    }
}

/// With two uplinks a reply leaves where its flow came in, whatever the routes of the node say.
#[test]
fn a_reply_that_would_leave_elsewhere_leaves_where_its_flow_came_in() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp).here();
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::Translated);
        let answer = packet(Protocol::Tcp, outside.pod(), outside.client(), SYN_ACK);
        let expected = readdressed(&answer, outside.vip(), outside.client()).build();
        outside.tables().set_interface(SECOND);
        assert_eq!(outside.world.egress(&answer), (Verdict::Forwarded, expected.clone()));
        let (_, to, over, out, _) = *outside.tables().asked_routes().last().unwrap();
        assert_eq!((to, over, out), (outside.client().ip(), UPLINK, true));
        // Where no route leads out of it, by the other one.
        for out in [0, UPLINK] {
            route(outside.tables(), net.client, out, RouteStatus::NoRoute, 0);
        }
        assert_eq!(outside.world.egress(&answer), (Verdict::Translated, expected.clone()));
        // Ports of one bond are one way.
        let bond = lb_common::abi::Interface {
            flags: lb_common::abi::InterfaceFlags::OFF_NODE,
            group: UPLINK,
            ..Default::default()
        };
        outside.tables().set_host_interface(SECOND, bond);
        route(outside.tables(), net.client, UPLINK, RouteStatus::Found, UPLINK);
        assert_eq!(outside.world.egress(&answer), (Verdict::Translated, expected));
    }
}

/// And so do the later fragments of a reply, and errors about what the client sent.
#[test]
fn what_belongs_to_a_reply_leaves_where_its_flow_came_in() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp).here();
        let asks = outside.asks(ACK);
        assert_eq!(outside.arrives(UPLINK, &asks).0, Verdict::Translated);
        let answer = packet(Protocol::Udp, outside.pod(), outside.client(), ACK);
        let back = readdressed(&answer, outside.vip(), outside.client());
        let payload = [7; 300];
        let v6 = net.vip.contains(':');
        let (kind, quoted) = if v6 { (1, 48) } else { (3, 28) };
        let sent = readdressed(&asks, outside.client(), outside.pod());
        let error = |from, about: &Packet| {
            let error = Packet::new(from, outside.client().ip());
            error.icmp_error(kind, 1, [0; 4], about, quoted).build()
        };
        let mut leaving = answer.payload(&payload).fragments(80);
        let mut expected = back.payload(&payload).fragments(80);
        leaving.push(error(outside.pod().ip(), &sent));
        expected.push(error(outside.vip().ip(), &asks));
        let at = |ifindex, bytes: &[u8]| {
            outside.tables().set_interface(ifindex);
            outside.world.run(Hook::Egress, bytes, Link::Ethernet)
        };
        for (leaving, expected) in leaving.iter().zip(&expected) {
            let wanted = [(UPLINK, Verdict::Translated), (SECOND, Verdict::Forwarded)];
            for (ifindex, wanted) in wanted {
                let (verdict, bytes) = at(ifindex, leaving);
                assert_eq!(verdict, wanted);
                let diff = built::diff(expected, &bytes, built::Link::Ethernet);
                assert!(diff.is_empty(), "{diff}");
            }
            let (_, to, over, out, _) = *outside.tables().asked_routes().last().unwrap();
            assert_eq!((to, over, out), (outside.client().ip(), UPLINK, true));
        }
        // Where no route leads out of it, by the other one.
        for out in [0, UPLINK] {
            route(outside.tables(), net.client, out, RouteStatus::NoRoute, 0);
        }
        for leaving in &leaving {
            assert_eq!(at(SECOND, leaving).0, Verdict::Translated);
        }
    }
}

#[test]
fn v_5_a_source_outside_of_all_ranges_is_dropped() {
    for net in NETS {
        let flags = FrontendFlags::EXTERNAL | FrontendFlags::RANGES;
        let outside = Outside::with_flags(net, Protocol::Tcp, flags).here();
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::SourceRange);
        outside.tables().add_source_range(outside.id, at(net.foreign, 0).ip(), 24);
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::SourceRange);
        outside.tables().add_source_range(outside.id, outside.client().ip(), 24);
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::Translated);
        assert_eq!(outside.world.count(Counter::DropSourceRange), 2);
    }
}

/// At a socket, where its address is known; where it is not, its packets tell.
#[test]
fn v_5_sockets_are_refused_where_their_address_is_known() {
    let flags = FrontendFlags::EXTERNAL | FrontendFlags::RANGES;
    let outside = Outside::with_flags(V4, Protocol::Tcp, flags);
    let tables = outside.tables();
    let vip = Address::<1> { ip: ip(V4.vip), port: PORT.to_be() };
    tables.set_netns(9);
    assert_eq!(connect(tables, 6, &vip), Outcome::Pass);
    let [v4] = ip::<1>(V4.client);
    let record = lb_common::abi::NetnsRecord { v4, ..Default::default() };
    tables.know_netns(9, record);
    assert_eq!(connect(tables, 6, &vip), Outcome::Drop);
    tables.add_source_range(outside.id, at(V4.client, 0).ip(), 32);
    assert!(matches!(connect(tables, 6, &vip), Outcome::Translated(_)));
}

#[test]
fn v_8_v_9_v_10_the_local_policy_binds_only_who_is_not_on_this_node() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp).local_policy();
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::NoLocalBackend);
        // V-9, M-4: a pod of this node, its source kept.
        let (verdict, bytes) = outside.arrives(POD, &outside.asks(SYN));
        assert_eq!(verdict, Verdict::Translated);
        assert_eq!(crate::setup::ends(&bytes), (outside.client(), outside.pod()));
        // V-d: nobody knows who is a pod.
        outside.tables().set_local_mode(LocalMode::None);
        let other = packet(Protocol::Tcp, at(net.pod2, SPORT), outside.vip(), SYN);
        assert_eq!(outside.arrives(POD, &other).0, Verdict::NoLocalBackend);
        // V-10: an address of this node; it does not come from off it.
        let own = packet(Protocol::Tcp, at(node(net)[0], SPORT), outside.vip(), SYN);
        assert_eq!(outside.arrives(POD, &own).0, Verdict::Translated);
        assert_eq!(outside.arrives(UPLINK, &own).0, Verdict::NotService);
        // V-6: nobody anywhere.
        outside.tables().set_backends(outside.id, Scope::Local, &[]);
        let another = packet(Protocol::Tcp, at(net.foreign, SPORT), outside.vip(), SYN);
        assert_eq!(outside.arrives(UPLINK, &another).0, Verdict::NoBackend);
    }
}

/// Contract 4.3: whether the source of a pod's packet to a clusterIP is kept.
#[test]
fn m_6_m_7_m_8_m_9_who_is_masqueraded_to_a_cluster_ip() {
    use LocalMode::{Interface, None, Range};
    let asked = |mode, all, range: bool, here: bool| {
        let mut outside = Outside::with_flags(V4, Protocol::Udp, 0);
        if here {
            outside = outside.here();
        }
        outside.tables().set_local_mode(mode);
        outside.tables().set_masquerade_all(all);
        if range {
            outside.tables().add_local_cidr(at(V4.client, 0).ip(), 24);
        }
        let by = |ifindex, source: &str| {
            let asks = udp(at(source, SPORT), outside.vip());
            let (verdict, bytes) = outside.arrives(ifindex, &asks);
            let kept = crate::setup::ends(&bytes).0.ip() == asks.src;
            assert_eq!(verdict == Verdict::Translated, kept, "{verdict:?}");
            kept
        };
        (by(POD, V4.client), by(POD, V4.foreign), by(UPLINK, V4.pod2))
    };
    // M-8: a pod's is kept; M-7: not who comes from outside.
    assert_eq!(asked(Interface, false, false, false), (true, true, false));
    assert_eq!(asked(Range, false, true, false), (true, false, false));
    // M-9: without a range of the family there is no detector.
    assert_eq!(asked(Range, false, false, false), (true, true, false));
    assert_eq!(asked(None, false, false, false), (true, true, false));
    // M-6.
    assert_eq!(asked(Interface, true, false, false), (false, false, false));
    // A backend here sees who asks (departure of the design), unless all are masqueraded.
    assert_eq!(asked(Range, false, true, true), (true, true, true));
    assert_eq!(asked(None, true, false, true), (false, false, false));
}

/// M-10, C-6: what is no Service's goes on as it came; and a VIP that nobody has never loops (V-12).
#[test]
fn v_12_an_unknown_port_of_a_vip_is_refused_where_it_comes_from_outside() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let other = packet(Protocol::Tcp, outside.client(), at(net.vip, PORT + 1), SYN);
        assert_eq!(outside.arrives(UPLINK, &other).0, Verdict::UndefinedPort);
        assert_eq!(outside.arrives(POD, &other).0, Verdict::NotService);
        // C-4: an address of the node's own is the node's business.
        let flags = AddressFlags::VIP | AddressFlags::HOST;
        outside.tables().set_address(outside.vip().ip(), flags);
        assert_eq!(outside.arrives(UPLINK, &other).0, Verdict::NotService);
        let foreign = packet(Protocol::Tcp, outside.client(), at(net.foreign, 443), SYN);
        assert_eq!(outside.arrives(UPLINK, &foreign).0, Verdict::NotService);
    }
}

/// Case 70: the client believes the reset of a packet without a record.
#[test]
fn case_70_tcp_in_the_middle_without_a_record_is_refused() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        for flags in [ACK, FIN_ACK, SYN_ACK] {
            assert_eq!(outside.arrives(UPLINK, &outside.asks(flags)).0, Verdict::NoFlow);
        }
    }
}

/// Contract section 12: nobody outside has such an address; the kernel refuses these itself.
#[test]
fn sources_that_nobody_has_are_left_to_the_kernel() {
    let outside = Outside::new(V4, Protocol::Udp);
    for source in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.7"] {
        let asks = udp(at(source, SPORT), outside.vip());
        assert_eq!(outside.arrives(UPLINK, &asks).0, Verdict::NotService, "{source}");
    }
    // A VLAN of others; its own interface would see the packet without the tag.
    let tagged = outside.asks(SYN).vlan(7);
    assert_eq!(outside.arrives(UPLINK, &tagged).0, Verdict::NotService);
}

/// N-1, C-2: only addresses of the node that serve `NodePort`s, and only their ports.
#[test]
fn n_1_n_9_node_ports_are_looked_up_at_the_nodes_addresses_only() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let any = if net.vip.contains(':') { "::" } else { "0.0.0.0" };
        let tables = outside.tables();
        tables.add_frontend_with(outside.id, 17, at(any, 30_080), FrontendFlags::EXTERNAL);
        let to = |address, port| udp(outside.client(), at(address, port));
        outside.sent_on(&to(node(net)[0], 30_080));
        for (address, port) in [(node(net)[0], 30_081), (net.foreign, 30_080)] {
            let (verdict, _) = outside.arrives(UPLINK, &to(address, port));
            assert_eq!(verdict, Verdict::NotService, "{address} {port}");
        }
        // N-9: the same number of another protocol is another Service's.
        let tcp = packet(Protocol::Tcp, outside.client(), at(node(net)[0], 30_080), SYN);
        assert_eq!(outside.arrives(UPLINK, &tcp).0, Verdict::NotService);
        // V-11, N-2: an address that serves no `NodePort`s.
        tables.set_address(at(node(net)[1], 0).ip(), AddressFlags::HOST);
        let (verdict, _) = outside.arrives(UPLINK, &to(node(net)[1], 30_080));
        assert_eq!(verdict, Verdict::NotService);
    }
}

/// What comes to the node's own ports among those for SNAT, as to the kubelet, pays for the lookup of a
/// record and for no more.
#[test]
fn c_6_the_nodes_own_ports_cost_no_lookup_of_a_frontend() {
    for net in NETS {
        for (protocol, most) in [(Protocol::Tcp, 3), (Protocol::Udp, 2)] {
            let outside = Outside::new(net, protocol);
            for flags in [SYN, ACK] {
                let own = at(node(net)[0], 10_250);
                let asks = packet(protocol, outside.client(), own, flags);
                outside.tables().reset_costs();
                assert_eq!(outside.arrives(UPLINK, &asks).0, Verdict::NotService);
                let lookups = outside.tables().costs().lookups;
                assert!(lookups <= most, "{protocol:?} {flags:?}: {lookups}");
            }
        }
    }
}

/// Case 35: a process of the node asks from a port that is a `NodePort` too, and hears the answer.
#[test]
fn case_35_answers_to_the_nodes_own_questions_are_its_own() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let any = if net.vip.contains(':') { "::" } else { "0.0.0.0" };
        let tables = outside.tables();
        tables.add_frontend_with(outside.id, 17, at(any, 30_080), FrontendFlags::EXTERNAL);
        let (own, other) = (at(node(net)[0], 30_080), at(net.foreign, 53));
        for (ifindex, peer) in [(UPLINK, other), (POD, at(net.pod2, 53))] {
            tables.set_interface(ifindex);
            assert_eq!(outside.world.egress(&udp(own, peer)).0, Verdict::NotService);
            assert_eq!(outside.arrives(ifindex, &udp(peer, own)).0, Verdict::NotService);
        }
        assert_eq!(outside.world.count(Counter::FlowForeign), 2);
        // What passes through the node is nobody's own: a reply that was sent on leaves no note.
        tables.set_own(false);
        tables.set_interface(UPLINK);
        let client = outside.client();
        assert_eq!(outside.world.egress(&udp(own, client)).0, Verdict::NotService);
        outside.sent_on(&udp(client, own));
        // After a while anybody may ask the NodePort from there.
        tables.advance(1_000);
        let (verdict, _) = outside.arrives(UPLINK, &udp(other, own));
        assert_eq!(verdict, Verdict::Forwarded);
    }
}

/// A backend whose address the node has itself is here, whatever its object says.
#[test]
fn a_backend_at_an_address_of_this_node_is_here() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let own = at(node(net)[1], 8080);
        let backend = outside.tables().add_backend(outside.id, own);
        outside.tables().set_backends(outside.id, Scope::Cluster, &[backend]);
        let (verdict, bytes) = outside.arrives(UPLINK, &outside.asks(SYN));
        assert_eq!(verdict, Verdict::Translated);
        assert_eq!(crate::setup::ends(&bytes), (outside.client(), own));
        // No route at all is another matter.
        let lost = outside.tables().add_backend(outside.id, at(net.foreign, 1));
        outside.tables().set_backends(outside.id, Scope::Cluster, &[lost]);
        let other = packet(Protocol::Tcp, at(net.client, SPORT + 1), outside.vip(), SYN);
        assert_eq!(outside.arrives(UPLINK, &other).0, Verdict::NoRoute);
        assert_eq!(outside.world.count(Counter::DropNoRoute), 1);
    }
}

#[test]
fn xdp_sends_on_and_leaves_all_else_as_it_came() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = Outside::new(net, protocol);
            outside.tables().add_route(
                outside.pod().ip(),
                0,
                HostRoute { status: RouteStatus::Found, egress: UPLINK, mtu: MTU },
            );
            outside.tables().keep_neighbours();
            let (verdict, bytes) = outside.early(UPLINK, &outside.asks(SYN));
            assert_eq!(verdict, Verdict::Forwarded);
            let (source, to) = crate::setup::ends(&bytes);
            assert_eq!(to, outside.pod());
            built::checksums_ok(&bytes, built::Link::Ethernet).unwrap();
            let answer = packet(protocol, outside.pod(), source, SYN_ACK);
            assert_eq!(outside.early(UPLINK, &answer).0, Verdict::Forwarded);
            for _ in 0..2 {
                assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
            }
            // The tag would leave with it.
            assert_eq!(outside.early(UPLINK, &outside.asks(ACK).vlan(7)).0, Verdict::Left);
            // An egress without XDP, or a neighbour that is still to be asked for, is tc's.
            for (status, egress) in
                [(RouteStatus::Found, SECOND), (RouteStatus::NoNeighbour, UPLINK)]
            {
                route(outside.tables(), net.pod, 0, status, egress);
                // Until then the flow goes where it went.
                assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
                outside.tables().advance(1);
                assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Left);
                assert_eq!(outside.arrives(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
                route(outside.tables(), net.pod, 0, RouteStatus::Found, UPLINK);
                outside.tables().advance(1);
                assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
            }
            assert_eq!(outside.world.count(Counter::XdpLeft), 2);
            let short = outside.asks(ACK).ttl(1);
            assert_eq!(outside.early(UPLINK, &short).0, Verdict::Left);
        }
    }
}

/// The kernel looks after the neighbours of its own packets only: it gets one every few ticks, and XDP
/// leaves its packets to tc until it did.
#[test]
fn the_kernel_looks_after_neighbours_of_what_is_sent_on() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let tables = outside.tables();
        route(tables, net.pod, 0, RouteStatus::Found, UPLINK);
        let by_kernel = |packet: &built::Packet| {
            assert_eq!(outside.arrives(UPLINK, packet).0, Verdict::Forwarded);
            !tables.neighbour_known()
        };
        assert!(by_kernel(&outside.asks(SYN)));
        assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
        let mut looked_after = 0;
        for _ in 0..27 {
            tables.advance(1);
            let early = outside.early(UPLINK, &outside.asks(ACK)).0;
            let late = by_kernel(&outside.asks(ACK));
            assert_eq!(early == Verdict::Left, late);
            looked_after += u32::from(late);
            // The next one in the same tick goes by what is noted.
            assert!(!by_kernel(&outside.asks(ACK)));
            assert_eq!(outside.early(UPLINK, &outside.asks(ACK)).0, Verdict::Forwarded);
        }
        assert_eq!(looked_after, 3);
        // Another next hop at another interface is another neighbour.
        tables.advance(1);
        route(tables, net.pod, 0, RouteStatus::Found, SECOND);
        assert!(by_kernel(&outside.asks(ACK)));
        assert!(!by_kernel(&outside.asks(ACK)));
    }
}

/// A bond is made of the uplink, or a card is replaced: what was sent on goes on by what is there.
#[test]
fn f_1_a_flow_that_is_sent_on_outlives_the_interface_it_came_in_by() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let source = outside.sent_on(&outside.asks(SYN));
        outside.tables().lose_interface(UPLINK);
        route(outside.tables(), net.pod, 0, RouteStatus::Found, SECOND);
        route(outside.tables(), net.client, 0, RouteStatus::Found, SECOND);
        let answer = packet(Protocol::Tcp, outside.pod(), source, SYN_ACK);
        assert_eq!(outside.arrives(SECOND, &answer).0, Verdict::Forwarded);
        assert_eq!(outside.arrives(SECOND, &outside.asks(ACK)).0, Verdict::Forwarded);
    }
}

/// The backend that XDP chose is the one that tc sends to.
#[test]
fn xdp_notes_a_flow_for_a_backend_here_and_tc_follows_it() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp).here();
        assert_eq!(outside.early(UPLINK, &outside.asks(SYN)).0, Verdict::Left);
        assert_eq!(records(&outside.world), (0, 2));
        outside.tables().set_flags(outside.backend, BackendFlags::LOCAL);
        let other: SocketAddr = at(net.pod2, 9);
        let backend = outside.tables().add_backend(outside.id, other);
        outside.tables().set_backends(outside.id, Scope::Cluster, &[backend]);
        let (verdict, bytes) = outside.arrives(UPLINK, &outside.asks(SYN));
        assert_eq!(verdict, Verdict::Translated);
        assert_eq!(crate::setup::destination(&bytes), outside.pod());
        assert_eq!(outside.world.count(Counter::FlowCreated), 1);
    }
}
