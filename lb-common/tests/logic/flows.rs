//! The life of flows: what begins one, what ends it, what it survives.

use lb_common::{
    abi::{BackendFlags, Counter, Scope, SetWord},
    parse::Link,
    verdict::Verdict,
};
use lb_testbed::packet::Packet;

use crate::setup::{
    ACK, Ends, FIN_ACK, Hook, NETS, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, V4, World,
    at, destination, ends_in, of_two, packet, readdressed, records, tcp, udp,
};

/// The next choice among any number of backends is the first one, or the last one.
const FIRST: u32 = 0;
const LAST: u32 = u32::MAX;

#[test]
fn a_connection_is_half_open_until_its_clients_second_packet() {
    for net in NETS {
        let (world, _, Ends { client, vip, first, .. }) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first);
        assert_eq!(records(&world), (0, 2));
        world.answers_as(&tcp(first, client, SYN_ACK), vip);
        assert_eq!(records(&world), (0, 2), "a server alone promotes nothing");
        assert_eq!(world.sent_to(&tcp(client, vip, ACK)), first);
        assert_eq!(records(&world), (2, 0));
        world.answers_as(&tcp(first, client, ACK), vip);
        assert_eq!(world.count(Counter::FlowCreated), 1);
    }
}

#[test]
fn a_repeated_syn_goes_to_the_same_backend() {
    for net in NETS {
        let (world, _, Ends { client, vip, first, .. }) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        for _ in 0..5 {
            assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first);
            world.tables.push_random(LAST);
        }
        // Also when the client's ACK overtook it.
        world.sent_to(&tcp(client, vip, ACK));
        assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first);
        assert_eq!(world.count(Counter::FlowCreated), 1);
    }
}

#[test]
fn a_syn_after_the_end_of_a_connection_chooses_anew() {
    for net in NETS {
        for (hook, flags, at_once) in [
            (Hook::Ingress, FIN_ACK, false),
            (Hook::Egress, FIN_ACK, false),
            (Hook::Ingress, RST, false),
            (Hook::Egress, RST, true),
        ] {
            let (world, _, Ends { client, vip, first, last }) = of_two(net, Protocol::Tcp);
            world.tables.push_random(FIRST);
            assert_eq!(world.connect(client, vip), first);
            match hook {
                Hook::Ingress => assert_eq!(world.sent_to(&tcp(client, vip, flags)), first),
                Hook::Egress => world.answers_as(&tcp(first, client, flags), vip),
            }
            // What is still under way goes where it went.
            if flags == FIN_ACK {
                assert_eq!(world.sent_to(&tcp(client, vip, ACK)), first);
            }
            // What one side alone said may be forged, but for a reset by the backend.
            if !at_once {
                assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first, "{hook:?} {flags:?}");
                if flags == RST {
                    assert_eq!(world.sent_to(&tcp(client, vip, RST)), first);
                }
                world.tables.advance(470);
            }
            world.tables.push_random(LAST);
            assert_eq!(world.connect(client, vip), last, "{hook:?} {flags:?}");
            assert_eq!(world.sent_to(&tcp(client, vip, ACK)), last);
        }
    }
}

#[test]
fn a_fixed_source_port_is_used_again_and_again() {
    for net in NETS {
        let (world, _, Ends { client, vip, .. }) = of_two(net, Protocol::Tcp);
        for _ in 0..50 {
            let backend = world.connect(client, vip);
            world.sent_to(&tcp(client, vip, FIN_ACK));
            world.answers_as(&tcp(backend, client, FIN_ACK), vip);
            world.sent_to(&tcp(client, vip, ACK));
        }
        assert_eq!(world.count(Counter::FlowCreated), 50);
        assert_eq!(world.count(Counter::FlowReported), 0);
    }
}

#[test]
fn a_reset_that_is_followed_by_more_was_none() {
    for net in NETS {
        for hook in [Hook::Ingress, Hook::Egress] {
            let (world, _, Ends { client, vip, first, .. }) = of_two(net, Protocol::Tcp);
            world.tables.push_random(FIRST);
            world.connect(client, vip);
            for flags in [RST, ACK] {
                match hook {
                    Hook::Ingress => assert_eq!(world.sent_to(&tcp(client, vip, flags)), first),
                    Hook::Egress => world.answers_as(&tcp(first, client, flags), vip),
                }
            }
            world.tables.push_random(LAST);
            assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first, "{hook:?}: still established");
        }
    }
}

#[test]
fn a_backend_deleted_between_two_connections_of_one_tuple_is_not_asked_again() {
    for net in NETS {
        for syn_only in [false, true] {
            let (world, id, Ends { client, vip, first, last }) = of_two(net, Protocol::Tcp);
            world.tables.push_random(FIRST);
            if syn_only {
                assert_eq!(world.sent_to(&tcp(client, vip, SYN)), first);
            } else {
                assert_eq!(world.connect(client, vip), first);
            }
            let [gone, stays] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
            world.tables.set_backends(id, Scope::Cluster, &[stays]);
            world.tables.clear_flags(gone, BackendFlags::PRESENT | BackendFlags::SERVING);
            assert_eq!(world.connect(client, vip), last, "SYN only: {syn_only}");
        }
    }
}

#[test]
fn a_syn_that_was_answered_by_a_reset_may_be_sent_elsewhere() {
    for net in NETS {
        let (world, _, Ends { client, vip, first, last }) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        world.sent_to(&tcp(client, vip, SYN));
        world.answers_as(&tcp(first, client, RST), vip);
        world.tables.push_random(LAST);
        assert_eq!(world.connect(client, vip), last);
    }
}

#[test]
fn an_established_connection_survives_its_backend_and_its_service() {
    for net in NETS {
        let (world, id, Ends { client, vip, first, last }) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        assert_eq!(world.connect(client, vip), first);
        let goes_on = || {
            assert_eq!(world.sent_to(&tcp(client, vip, ACK)), first);
            world.answers_as(&tcp(first, client, ACK), vip);
        };
        let [gone, stays] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
        world.tables.set_backends(id, Scope::Cluster, &[stays]);
        goes_on();
        world.tables.clear_flags(gone, u16::MAX);
        goes_on();
        world.tables.reuse_backend(gone, id, last);
        goes_on();
        world.tables.delete_service_port(id);
        goes_on();
        assert_eq!(world.ingress(&tcp(at(net.client, 1), vip, SYN)).0, Verdict::NotService);
    }
}

#[test]
fn a_udp_flow_stays_while_the_set_grows_and_moves_when_its_backend_stops_serving() {
    for net in NETS {
        let Ends { client, vip, first, last } = ends_in(net);
        let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        let old = world.tables.backends_of(id, Scope::Cluster)[0];
        let new = world.tables.add_backend(id, last);
        world.tables.set_backends(id, Scope::Cluster, &[old, new]);
        for _ in 0..20 {
            assert_eq!(world.sent_to(&udp(client, vip)), first);
        }
        // Out of every set, but still serving (U-4).
        world.tables.set_backends(id, Scope::Cluster, &[new]);
        world.tables.clear_flags(old, BackendFlags::READY | BackendFlags::IN_CLUSTER);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        world.tables.clear_flags(old, BackendFlags::SERVING);
        assert_eq!(world.sent_to(&udp(client, vip)), last);
        assert_eq!(world.count(Counter::FlowMoved), 1);
        world.answers_as(&udp(last, client), vip);
        // A late answer of the old backend still comes from the VIP.
        world.answers_as(&udp(first, client), vip);
    }
}

#[test]
fn a_udp_flow_moves_when_its_backends_id_is_anothers() {
    for net in NETS {
        let Ends { client, vip, first, last } = ends_in(net);
        let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        let backend = world.tables.backends_of(id, Scope::Cluster)[0];
        world.tables.reuse_backend(backend, id, last);
        assert_eq!(world.sent_to(&udp(client, vip)), last);
    }
}

#[test]
fn a_udp_flow_ends_with_its_last_backend_and_with_its_service() {
    for net in NETS {
        let Ends { client, vip, first, .. } = ends_in(net);
        let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
        world.sent_to(&udp(client, vip));
        let backend = world.tables.backends_of(id, Scope::Cluster)[0];
        world.tables.set_backends(id, Scope::Cluster, &[]);
        world.tables.clear_flags(backend, BackendFlags::SERVING);
        for _ in 0..3 {
            assert_eq!(world.ingress(&udp(client, vip)).0, Verdict::NoBackend);
        }
        assert_eq!(world.count(Counter::FlowMoved), 1, "once for the flow, not for each packet");
        let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
        world.sent_to(&udp(client, vip));
        world.tables.delete_service_port(id);
        assert_eq!(world.ingress(&udp(client, vip)).0, Verdict::NotService);
    }
}

#[test]
fn one_client_port_to_two_vips_with_a_shared_backend() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let Ends { client, vip, first: pod, .. } = ends_in(net);
            let other_vip = at(net.vip2, PORT);
            let (world, _) = World::single(net, protocol);
            world.tables.add_service_port(protocol.number(), &[other_vip], &[pod]);
            let there = packet(protocol, client, vip, SYN);
            world.becomes(Hook::Ingress, &there, &readdressed(&there, client, pod));
            // The second flow gets a source port of its own, off NodePorts and ephemeral ports.
            let (verdict, bytes) = world.ingress(&packet(protocol, client, other_vip, SYN));
            assert_eq!(verdict, Verdict::Translated);
            let (changed, to) = crate::setup::ends(&bytes);
            assert_eq!((changed.ip(), to), (client.ip(), pod));
            assert!((1_024..30_000).contains(&changed.port()), "{changed}");
            assert_eq!(world.count(Counter::FlowReported), 1);
            world.answers_as(&packet(protocol, pod, client, SYN_ACK), vip);
            let reply = packet(protocol, pod, changed, SYN_ACK);
            world.becomes(Hook::Egress, &reply, &readdressed(&reply, other_vip, client));
        }
        let (world, _) = World::with_backends(net, Protocol::Sctp, &[at(net.pod, PORT)]);
        let (client, other_vip) = (at(net.client, SPORT), at(net.vip2, PORT));
        world.tables.add_service_port(132, &[other_vip], &[at(net.pod, PORT)]);
        world.sent_to(&packet(Protocol::Sctp, client, at(net.vip, PORT), SYN));
        let second = packet(Protocol::Sctp, client, other_vip, SYN);
        assert_eq!(world.ingress(&second).0, Verdict::NoPort, "its ports cannot change");
    }
}

#[test]
fn no_free_source_port_is_a_counted_drop() {
    let (world, _) = World::single(V4, Protocol::Udp);
    let Ends { client, first: pod, .. } = ends_in(V4);
    // The client's own port, and the only other one.
    world.tables.set_snat_ports(2_000, 1);
    for n in 0..3_u16 {
        let vip = at(&format!("10.96.1.{n}"), PORT);
        world.tables.add_service_port(17, &[vip], &[pod]);
        let (verdict, _) = world.ingress(&udp(client, vip));
        assert_eq!(verdict, if n < 2 { Verdict::Translated } else { Verdict::NoPort });
    }
    assert_eq!(world.count(Counter::DropNoPort), 1);
}

/// What an ended connection left must not hide the reply record of a new one.
#[test]
fn the_remains_of_an_old_connection_do_not_mislead_replies_to_a_new_one() {
    for net in NETS {
        let Ends { client, vip, first: pod, .. } = ends_in(net);
        let other_vip = at(net.vip2, PORT);
        let (world, _) = World::single(net, Protocol::Tcp);
        world.tables.add_service_port(6, &[other_vip], &[pod]);
        world.connect(client, vip);
        world.sent_to(&tcp(client, vip, FIN_ACK));
        world.answers_as(&tcp(pod, client, FIN_ACK), vip);
        // Until then its port is still taken.
        world.tables.advance(10_000);
        assert_eq!(world.connect(client, other_vip), pod);
        world.answers_as(&tcp(pod, client, ACK), other_vip);
        assert_eq!(world.count(Counter::FlowReported), 0);
    }
}

/// The pod uses the port of a connection that ended for one to the pod itself.
#[test]
fn an_ended_connection_does_not_take_the_answer_to_a_direct_one() {
    for net in NETS {
        let Ends { client, vip, first: pod, .. } = ends_in(net);
        for end in [FIN_ACK, RST] {
            let (world, _) = World::single(net, Protocol::Tcp);
            world.connect(client, vip);
            let answer = tcp(pod, client, SYN_ACK);
            // Repeated because the first was lost: still the VIP's.
            world.answers_as(&answer, vip);
            world.sent_to(&tcp(client, vip, end));
            if end == FIN_ACK {
                // The backend still waits for the handshake's last packet: not an end yet.
                world.answers_as(&answer, vip);
                world.answers_as(&tcp(pod, client, FIN_ACK), vip);
            }
            assert_eq!(world.ingress(&tcp(client, pod, SYN)).0, Verdict::NotService);
            assert_eq!(world.egress(&answer).0, Verdict::NotService);
            assert_eq!(world.egress(&tcp(pod, client, ACK)).0, Verdict::NotService);
        }
    }
}

/// As netfilter forgets it: what comes then is no reply, and chooses anew.
#[test]
fn a_udp_flow_is_forgotten_when_it_was_idle_for_minutes() {
    for net in NETS {
        let (world, _, Ends { client, vip, first, last }) = of_two(net, Protocol::Udp);
        world.tables.push_random(FIRST);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        // Either direction keeps both alive.
        for _ in 0..3 {
            world.tables.advance(700);
            world.answers_as(&udp(first, client), vip);
        }
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        for _ in 0..3 {
            world.tables.advance(700);
            assert_eq!(world.sent_to(&udp(client, vip)), first);
        }
        world.answers_as(&udp(first, client), vip);
        world.tables.advance(710);
        assert_eq!(world.egress(&udp(first, client)).0, Verdict::NotService);
        world.tables.push_random(LAST);
        assert_eq!(world.sent_to(&udp(client, vip)), last);
    }
}

/// An endpoint that comes back has another id or generation; its flows keep their ports.
#[test]
fn an_endpoint_that_comes_back_gets_its_flow_back_unchanged() {
    for net in NETS {
        let (world, id, Ends { client, vip, first, .. }) = of_two(net, Protocol::Udp);
        world.tables.push_random(FIRST);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        let [old, other] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
        world.tables.clear_flags(old, u16::MAX);
        let new = world.tables.add_backend(id, first);
        world.tables.set_backends(id, Scope::Cluster, &[new, other]);
        world.tables.push_random(FIRST);
        assert_eq!(world.sent_to(&udp(client, vip)), first);
        world.answers_as(&udp(first, client), vip);
        assert_eq!(world.count(Counter::FlowReported), 0);
    }
}

/// Segments of more than 64 KiB kept as one packet say no length (BIG TCP).
#[test]
fn a_packet_without_a_length_is_as_long_as_it_is() {
    for net in NETS {
        let Ends { client, vip, first: pod, .. } = ends_in(net);
        let (world, _) = World::single(net, Protocol::Tcp);
        world.connect(client, vip);
        let mut bytes = tcp(client, vip, ACK).build();
        let length = if client.is_ipv4() { 14 + 2 } else { 14 + 4 };
        bytes[length..length + 2].fill(0);
        let (verdict, after) = world.run(Hook::Ingress, &bytes, Link::Ethernet);
        assert_eq!((verdict, destination(&after)), (Verdict::Translated, pod));
    }
}

#[test]
fn a_live_flow_keeps_its_reply_tuple_whatever_the_clock_says() {
    let Ends { client, vip, first: pod, .. } = ends_in(V4);
    let other_vip = at(V4.vip2, PORT);
    let (world, _) = World::single(V4, Protocol::Udp);
    world.tables.add_service_port(17, &[other_vip], &[pod]);
    world.tables.set_now(5_000);
    world.sent_to(&udp(client, vip));
    // Another CPU that is a tick behind.
    world.tables.set_now(4_999);
    world.ingress(&udp(client, other_vip));
    assert_eq!(world.count(Counter::FlowReported), 1);
    world.answers_as(&udp(pod, client), vip);
}

#[test]
fn a_pod_that_reaches_itself() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let vip = at(net.vip, PORT);
            let (client, server) = (at(net.client, SPORT), at(net.client, TARGET));
            let (world, _) = World::with_backends(net, protocol, &[server]);
            let reflected = |from: &Packet, src, dst| {
                let (verdict, bytes) = world.ingress(from);
                let mut expected = readdressed(from, src, dst);
                expected.macs.swap(0, 1);
                assert_eq!(verdict, Verdict::Reflected);
                assert_eq!(bytes, expected.build());
            };
            reflected(&packet(protocol, client, vip, SYN), at(net.vip, SPORT), server);
            let back = at(net.vip, SPORT);
            reflected(&packet(protocol, server, back, SYN_ACK), vip, client);
            if protocol == Protocol::Tcp {
                assert_eq!(records(&world), (0, 2), "its own answer promotes nothing");
            }
            reflected(&packet(protocol, client, vip, ACK), back, server);
            reflected(&packet(protocol, server, back, ACK), vip, client);
            assert_eq!(records(&world), (2, 0));
            // Its end is seen as any other's.
            if protocol == Protocol::Tcp {
                reflected(&packet(protocol, client, vip, FIN_ACK), back, server);
                reflected(&packet(protocol, server, back, FIN_ACK), vip, client);
                reflected(&packet(protocol, client, vip, SYN), back, server);
                assert_eq!(world.count(Counter::FlowCreated), 2);
            }
        }
    }
}

#[test]
fn tcp_in_the_middle_without_a_record_is_dropped_and_never_guessed() {
    for net in NETS {
        let (world, _, Ends { client, vip, .. }) = of_two(net, Protocol::Tcp);
        for flags in [ACK, FIN_ACK, RST, SYN_ACK] {
            assert_eq!(world.ingress(&tcp(client, vip, flags)).0, Verdict::NoFlow);
        }
        assert_eq!(records(&world), (0, 0));
        assert_eq!(world.count(Counter::DropNoFlow), 4);
    }
}

#[test]
fn no_backend_anywhere_and_no_backend_here() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let opening = packet(protocol, at(net.client, SPORT), at(net.vip, PORT), SYN);
            let (world, id) = World::with_backends(net, protocol, &[]);
            assert_eq!(world.ingress(&opening).0, Verdict::NoBackend);
            world.tables.set_empty(id, Scope::Cluster, SetWord::DROP);
            assert_eq!(world.ingress(&opening).0, Verdict::NoLocalBackend);
            assert_eq!(records(&world), (0, 0));
            assert_eq!(world.count(Counter::DropNoBackend), 1);
            assert_eq!(world.count(Counter::DropNoLocalBackend), 1);
        }
    }
}
