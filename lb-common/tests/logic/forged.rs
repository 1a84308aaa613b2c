//! Packets that claim to come from elsewhere, and records that others made: neither touches a flow.

use lb_common::{
    abi::{FrontendFlags, Interface, InterfaceFlags},
    host::HostRoute,
    tables::RouteStatus,
    verdict::Verdict,
};
use lb_testbed::packet::Packet;

use crate::outside_setup::{MTU, Outside, POD, SECOND, UPLINK, node, route};
use crate::setup::{
    ACK, FIN_ACK, Hook, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, World, at,
    packet, records,
};

/// Another pod's interface.
const OTHER_POD: u32 = 8;

/// A node whose pod, the client, is at [`POD`].
fn with_pod(net: Net, protocol: Protocol) -> Outside {
    let outside = Outside::new(net, protocol).here();
    route(outside.tables(), net.client, 0, RouteStatus::Found, POD);
    outside
}

#[track_caller]
fn leaves(outside: &Outside, ifindex: u32, packet: &Packet) -> Verdict {
    outside.tables().set_interface(ifindex);
    outside.world.egress(packet).0
}

fn asks_tcp(outside: &Outside) -> bool {
    outside.protocol.number() == 6
}

/// V-10, C-4: the kernel refuses such sources after the programs; a record must not come of them.
#[test]
fn sources_of_this_node_do_not_come_from_off_it() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = with_pod(net, protocol);
            for source in [net.client, node(net)[0], node(net)[1]] {
                let asks = packet(protocol, at(source, SPORT), outside.vip(), SYN);
                for uplink in [UPLINK, SECOND] {
                    assert_eq!(outside.arrives(uplink, &asks).0, Verdict::NotService, "{source}");
                    assert_eq!(outside.early(uplink, &asks).0, Verdict::Left, "{source}");
                }
            }
            assert_eq!(records(&outside.world), (0, 0));
            // The pod itself.
            assert_eq!(outside.arrives(POD, &outside.asks(SYN)).0, Verdict::Translated);
        }
    }
}

/// The routes are asked once in a tick whether a source from outside is a pod's; one that is gets no further
/// by asking again, nor by what another source was told.
#[test]
fn sources_are_asked_for_once_in_a_tick() {
    for net in NETS {
        let outside = with_pod(net, Protocol::Udp);
        let forged = outside.asks(ACK);
        let begins = |port: u16| {
            let before = outside.tables().asked_routes().len();
            let asks = packet(Protocol::Udp, at(net.foreign, port), outside.vip(), ACK);
            assert_eq!(outside.arrives(UPLINK, &asks).0, Verdict::Translated);
            assert_eq!(outside.arrives(UPLINK, &forged).0, Verdict::NotService);
            // The forged one asks each time.
            outside.tables().asked_routes().len() - before - 1
        };
        assert_eq!(begins(1), 1);
        assert_eq!(begins(2), 0);
        outside.tables().advance(1);
        assert_eq!(begins(3), 1);
        assert_eq!(begins(4), 0);
    }
}

/// Pods and the uplink may be ports of one bridge: its route tells nothing.
#[test]
fn a_bridge_may_lead_to_both_pods_and_the_network() {
    const BRIDGE: u32 = 9;
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp).here();
        let port =
            Interface { flags: InterfaceFlags::OFF_NODE, group: BRIDGE, ..Interface::default() };
        let bridge = Interface { flags: InterfaceFlags::PODS, group: BRIDGE, ..port };
        outside.tables().set_host_interface(UPLINK, port);
        outside.tables().set_host_interface(BRIDGE, bridge);
        route(outside.tables(), net.client, 0, RouteStatus::Found, BRIDGE);
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::Translated);
        let answer = packet(Protocol::Tcp, outside.pod(), outside.client(), SYN_ACK);
        assert_eq!(leaves(&outside, UPLINK, &answer), Verdict::Translated);
        assert_eq!(outside.arrives(UPLINK, &outside.asks(ACK)).0, Verdict::Translated);
    }
}

/// A pod that claims to be a client off the node gets a record of its own at most: the client's packets
/// are judged as if it was not there.
#[test]
fn a_record_that_a_pod_forged_does_not_catch_the_client() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = Outside::new(net, protocol);
            let (verdict, _) = outside.arrives(POD, &outside.asks(SYN));
            assert_eq!(verdict, Verdict::Translated, "its source is kept, whoever it is");
            let source = outside.sent_on(&outside.asks(SYN));
            outside.answered(source, SYN_ACK);
            assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
            // Nor does the forger get into the client's flow.
            assert_eq!(outside.arrives(POD, &outside.asks(ACK)).0, Verdict::NotService);
            outside.answered(source, ACK);
            assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
        }
    }
}

/// Neither from off the node nor from another pod.
#[test]
fn nobody_else_gets_into_a_pods_flow() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = with_pod(net, protocol);
            let answer = packet(protocol, outside.pod(), outside.client(), SYN_ACK);
            for flags in [SYN, ACK] {
                assert_eq!(outside.arrives(POD, &outside.asks(flags)).0, Verdict::Translated);
                assert_eq!(leaves(&outside, POD, &answer), Verdict::Translated);
                let before = records(&outside.world);
                for other in [UPLINK, SECOND, OTHER_POD] {
                    for flags in [ACK, SYN] {
                        let (verdict, _) = outside.arrives(other, &outside.asks(flags));
                        // A reset goes back to where the packet came from, and tells nothing.
                        let refused = flags == ACK && other != OTHER_POD && asks_tcp(&outside);
                        let expected = if refused { Verdict::NoFlow } else { Verdict::NotService };
                        assert_eq!(verdict, expected, "{other}");
                    }
                    // What leaves there is for somebody else.
                    assert_eq!(leaves(&outside, other, &answer), Verdict::NotService, "{other}");
                }
                assert_eq!(records(&outside.world), before);
            }
        }
    }
}

/// What leaves to a pod is no reply to a client off the node.
#[test]
fn replies_to_clients_off_the_node_do_not_leave_to_pods() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp).here();
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::Translated);
        let answer = packet(Protocol::Udp, outside.pod(), outside.client(), ACK);
        assert_eq!(leaves(&outside, POD, &answer), Verdict::NotService);
        assert_eq!(leaves(&outside, UPLINK, &answer), Verdict::Translated);
        assert_eq!(leaves(&outside, SECOND, &answer), Verdict::Forwarded);
    }
}

/// Both directions of a pod's flow to itself are met at its own interface, and nowhere else.
#[test]
fn a_hairpin_is_met_at_the_pods_own_interface() {
    for net in NETS {
        let vip = at(net.vip, PORT);
        let (client, server) = (at(net.client, SPORT), at(net.client, TARGET));
        let (world, _) = World::with_backends(net, Protocol::Udp, &[server]);
        let uplink = Interface { flags: InterfaceFlags::OFF_NODE, ..Interface::default() };
        world.tables.set_host_interface(UPLINK, uplink);
        world.tables.set_interface(POD);
        let ask = packet(Protocol::Udp, client, vip, ACK);
        let answer = packet(Protocol::Udp, server, at(net.vip, SPORT), ACK);
        assert_eq!(world.ingress(&ask).0, Verdict::Reflected);
        for other in [OTHER_POD, UPLINK] {
            world.tables.set_interface(other);
            assert_eq!(world.ingress(&answer).0, Verdict::NotService, "{other}");
        }
        world.tables.set_interface(POD);
        assert_eq!(world.ingress(&answer).0, Verdict::Reflected);
    }
}

/// The pod's interface was made anew, under another index, or the address is another pod's by now.
#[test]
fn a_pods_flow_goes_on_by_the_interface_that_its_address_is_at() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let (world, _) = World::single(net, protocol);
            let (client, vip) = (at(net.client, SPORT), at(net.vip, PORT));
            let pod = at(net.pod, TARGET);
            world.tables.set_interface(3);
            let answer = packet(protocol, pod, client, SYN_ACK);
            for flags in [SYN, ACK] {
                assert_eq!(world.sent_to(&packet(protocol, client, vip, flags)), pod);
                world.answers_as(&answer, vip);
            }
            world.tables.set_interface(4);
            let goes_on = packet(protocol, client, vip, ACK);
            assert_eq!(world.ingress(&goes_on).0, Verdict::NotService, "not known to be there");
            let there = HostRoute { status: RouteStatus::Found, egress: 4, mtu: MTU };
            world.tables.add_route(client.ip(), 0, there);
            assert_eq!(world.sent_to(&goes_on), pod);
            world.answers_as(&answer, vip);
            assert_eq!(records(&world), (2, 0));
            // Where it was, it is no longer.
            world.tables.set_interface(3);
            assert_eq!(world.ingress(&goes_on).0, Verdict::NotService);
            assert_eq!(
                world.run(Hook::Egress, &answer.build(), lb_common::parse::Link::Ethernet).0,
                Verdict::NotService
            );
        }
    }
}

/// V-5: where a source range lets a client through, its record does not let others.
#[test]
fn v_5_a_record_lets_nobody_else_through() {
    for net in NETS {
        let flags = FrontendFlags::EXTERNAL | FrontendFlags::RANGES;
        let outside = Outside::with_flags(net, Protocol::Udp, flags).here();
        route(outside.tables(), net.client, 0, RouteStatus::Found, POD);
        outside.tables().add_source_range(outside.id, outside.client().ip(), 24);
        assert_eq!(outside.arrives(POD, &outside.asks(ACK)).0, Verdict::Translated);
        assert_eq!(outside.arrives(UPLINK, &outside.asks(ACK)).0, Verdict::NotService);
    }
}

/// Production case 65: who knows no more than addresses and ports sends the end of a connection, and a SYN
/// after it. The connection goes on; so does a new one that really has the tuple, at its backend.
#[test]
fn case_65_a_forged_end_and_a_forged_syn_cut_nothing() {
    for net in NETS {
        for end in [FIN_ACK, RST] {
            let (world, _, ends) = crate::setup::of_two(net, Protocol::Tcp);
            world.tables.push_random(0);
            let backend = world.connect(ends.client, ends.vip);
            let send = |flags| world.sent_to(&packet(Protocol::Tcp, ends.client, ends.vip, flags));
            for flags in [end, SYN, ACK, SYN, ACK] {
                world.tables.push_random(u32::MAX);
                assert_eq!(send(flags), backend, "{flags:?} after {end:?}");
                let answer = packet(Protocol::Tcp, backend, ends.client, ACK);
                world.answers_as(&answer, ends.vip);
            }
        }
    }
}

/// A flood of SYNs, each with the segment that would follow the answer: nobody answered, and the main
/// table is not filled.
#[test]
fn what_nobody_answered_stays_half_open() {
    for net in NETS {
        for flags in [ACK, RST, FIN_ACK] {
            let outside = Outside::new(net, Protocol::Tcp);
            let source = outside.sent_on(&outside.asks(SYN));
            assert_eq!(outside.sent_on(&outside.asks(flags)), source);
            assert_eq!(records(&outside.world), (0, 2), "{flags:?}");
        }
        let outside = Outside::new(net, Protocol::Tcp);
        let source = outside.sent_on(&outside.asks(SYN));
        outside.answered(source, SYN_ACK);
        outside.sent_on(&outside.asks(ACK));
        assert_eq!(records(&outside.world), (2, 0));
    }
}

/// A forged SYN to the VIP from a port that the client uses for a connection to the backend itself: that
/// one's packets stay as they are.
#[test]
fn a_half_open_flow_does_not_touch_a_direct_connection() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp).here();
        assert_eq!(outside.arrives(UPLINK, &outside.asks(SYN)).0, Verdict::Translated);
        let back = |flags| packet(Protocol::Tcp, outside.pod(), outside.client(), flags);
        for flags in [ACK, FIN_ACK] {
            assert_eq!(leaves(&outside, UPLINK, &back(flags)), Verdict::NotService);
        }
        assert_eq!(leaves(&outside, UPLINK, &back(SYN_ACK)), Verdict::Translated);
        assert_eq!(leaves(&outside, UPLINK, &back(ACK)), Verdict::Translated, "of the flow now");
    }
}
