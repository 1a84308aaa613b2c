//! What production has shown of the life of TCP connections: resets that are none, tuples that are
//! used again, ports that are given away too early, tables that are full.

use std::{collections::HashMap, net::SocketAddr};

use lb_common::{
    abi::{BackendFlags, Counter, Scope},
    host::{Capacities, WhenFull},
    verdict::Verdict,
};

use crate::setup::{
    ACK, Ends, FIN_ACK, Hook, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, World, at, ends,
    ends_in, of_two, packet, records, tcp, udp,
};

/// The next choice among any number of backends is the first one, or the last one.
const FIRST: u32 = 0;
const LAST: u32 = u32::MAX;

/// Ticks after which a connection that ended is over for good, and after which one is that did not.
const CLOSED: u32 = 470;
const ABANDONED: u32 = 337_501;

/// A segment of an established connection, at the hook where its sender's packets pass.
fn segment(
    world: &World,
    hook: Hook,
    ends: &Ends,
    backend: SocketAddr,
    flags: lb_testbed::packet::TcpFlags,
) {
    match hook {
        Hook::Ingress => assert_eq!(world.sent_to(&tcp(ends.client, ends.vip, flags)), backend),
        Hook::Egress => world.answers_as(&tcp(backend, ends.client, flags), ends.vip),
    }
}

/// The connection's last packets, the backend's first.
fn finish(world: &World, ends: &Ends, backend: SocketAddr) {
    segment(world, Hook::Egress, ends, backend, FIN_ACK);
    segment(world, Hook::Ingress, ends, backend, FIN_ACK);
    segment(world, Hook::Egress, ends, backend, ACK);
}

/// Production case 65: a reset outside of the window, which its receiver ignores, took the flow's
/// entry away. Here a flow survives any number of them from either side.
#[test]
fn case_65_resets_that_are_ignored_take_nothing_away() {
    for net in NETS {
        let (world, _, ends) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        let backend = world.connect(ends.client, ends.vip);
        for hook in [Hook::Ingress, Hook::Egress] {
            for _ in 0..20 {
                segment(&world, hook, &ends, backend, RST);
                for both in [Hook::Ingress, Hook::Egress] {
                    segment(&world, both, &ends, backend, ACK);
                }
            }
        }
        // Hours of silence later it is still the same connection.
        world.tables.advance(100_000);
        segment(&world, Hook::Ingress, &ends, backend, ACK);
        segment(&world, Hook::Egress, &ends, backend, ACK);
        assert_eq!(world.count(Counter::FlowCreated), 1);
        assert_eq!(records(&world), (2, 0));
    }
}

/// Production case 65, its other half: a reset that ended the connection frees its tuple, whichever side
/// sent it.
#[test]
fn case_65_a_real_reset_frees_the_tuple_in_either_direction() {
    for net in NETS {
        for hook in [Hook::Ingress, Hook::Egress] {
            let (world, _, ends) = of_two(net, Protocol::Tcp);
            for round in 1..20 {
                world.tables.push_random(if round % 2 == 0 { FIRST } else { LAST });
                let backend = world.connect(ends.client, ends.vip);
                assert_eq!(backend, if round % 2 == 0 { ends.first } else { ends.last });
                segment(&world, hook, &ends, backend, RST);
                assert_eq!(world.count(Counter::FlowCreated), round, "{hook:?}");
                // That of a client may be forged: the backend has its say for a while.
                if hook == Hook::Ingress {
                    world.tables.advance(CLOSED);
                }
            }
            assert_eq!(world.count(Counter::FlowReported), 0, "its source port is free as well");
        }
    }
}

/// The same for what another Service's flow needs: the tuple at the backend. Until the time of
/// closing is over the other flow gets a source port of its own, afterwards none is needed.
#[test]
fn case_65_a_reset_connection_does_not_take_its_backends_tuple_for_long() {
    for net in NETS {
        for (idle, source_port_changed) in [(CLOSED - 10, 1), (CLOSED, 0)] {
            let ends = ends_in(net);
            let (world, _) = World::single(net, Protocol::Tcp);
            let other_vip = at(net.vip2, PORT);
            world.tables.add_service_port(6, &[other_vip], &[ends.first]);
            world.connect(ends.client, ends.vip);
            segment(&world, Hook::Egress, &ends, ends.first, RST);
            world.tables.advance(idle);
            assert_eq!(world.sent_to(&tcp(ends.client, other_vip, SYN)), ends.first);
            let changed = world.count(Counter::FlowReported);
            assert_eq!(changed, source_port_changed, "{idle} ticks later");
        }
    }
}

/// Production case 66: the tuple of a connection that has just ended is opened again while one side
/// still waits for late segments of the old one. Here it is a new connection each time, whoever
/// ended the old one and how far the end had got.
#[test]
fn case_66_a_tuple_is_opened_again_right_after_its_end() {
    let ends_of_connections: [&[(Hook, lb_testbed::packet::TcpFlags)]; 4] = [
        &[(Hook::Ingress, FIN_ACK), (Hook::Egress, FIN_ACK), (Hook::Ingress, ACK)],
        &[(Hook::Egress, FIN_ACK), (Hook::Ingress, FIN_ACK), (Hook::Egress, ACK)],
        &[(Hook::Egress, FIN_ACK), (Hook::Ingress, ACK), (Hook::Ingress, RST)],
        &[(Hook::Egress, RST)],
    ];
    for net in NETS {
        for end in ends_of_connections {
            let (world, _, ends) = of_two(net, Protocol::Tcp);
            for round in 0..40_u64 {
                let backend = world.connect(ends.client, ends.vip);
                for (hook, flags) in end {
                    segment(&world, *hook, &ends, backend, *flags);
                }
                assert_eq!(world.count(Counter::FlowCreated), round + 1, "{end:?}");
                // A second, as clients wait before they use a port again.
                world.tables.advance(4);
            }
            assert_eq!(world.count(Counter::FlowReported), 0);
            // One forward record, and a reply record for each backend.
            let (main, half_open) = records(&world);
            assert!(main <= 3 && half_open == 0, "one connection at a time: {main}, {half_open}");
        }
    }
}

/// Production case 66, the client's first segment is repeated: what the old connection left never
/// answers for the new one, and the new one is never taken for ended.
#[test]
fn case_66_late_segments_of_the_old_connection_do_not_end_the_new_one() {
    for net in NETS {
        let (world, _, ends) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        let old = world.connect(ends.client, ends.vip);
        finish(&world, &ends, old);
        world.tables.push_random(LAST);
        let new = world.connect(ends.client, ends.vip);
        assert_eq!((old, new), (ends.first, ends.last));
        // The old backend repeats its end: its packet has the VIP's address, and nothing else.
        world.answers_as(&tcp(old, ends.client, FIN_ACK), ends.vip);
        for _ in 0..3 {
            world.tables.push_random(FIRST);
            assert_eq!(world.sent_to(&tcp(ends.client, ends.vip, SYN)), new, "a repeated SYN");
            segment(&world, Hook::Egress, &ends, new, SYN_ACK);
            segment(&world, Hook::Ingress, &ends, new, ACK);
        }
    }
}

/// Production case 67: a source port that is used again hours later led to a backend that was
/// terminating by then. Here the second connection goes where new ones go.
#[test]
fn case_67_a_port_used_again_after_hours_does_not_lead_to_a_terminating_backend() {
    for net in NETS {
        let (world, id, ends) = of_two(net, Protocol::Tcp);
        world.tables.push_random(FIRST);
        assert_eq!(world.connect(ends.client, ends.vip), ends.first);
        finish(&world, &ends, ends.first);
        world.tables.advance(50_000);
        let [draining, stays] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
        // Scaled down: it terminates, and still serves what it has.
        world.tables.set_backends(id, Scope::Cluster, &[stays]);
        world.tables.set_flags(draining, BackendFlags::TERMINATING);
        world.tables.clear_flags(draining, BackendFlags::READY | BackendFlags::IN_CLUSTER);
        assert_eq!(world.connect(ends.client, ends.vip), ends.last);
    }
}

/// Production case 68: connections were refused because the tuple's old entry named a backend that
/// was gone, although others were there. Here the entry of a connection that never got to its end
/// names a dead backend, and the client's next attempt reaches a living one.
#[test]
fn case_68_the_entry_of_a_dead_backend_refuses_nobody() {
    for net in NETS {
        for half_open in [false, true] {
            let (world, id, ends) = of_two(net, Protocol::Tcp);
            world.tables.push_random(FIRST);
            if half_open {
                world.sent_to(&tcp(ends.client, ends.vip, SYN));
            } else {
                world.connect(ends.client, ends.vip);
            }
            let [gone, stays] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
            world.tables.set_backends(id, Scope::Cluster, &[stays]);
            world.tables.clear_flags(gone, u16::MAX);
            for _ in 0..3 {
                assert_eq!(world.connect(ends.client, ends.vip), ends.last, "{half_open}");
                finish(&world, &ends, ends.last);
            }
            // Its id is another's by now, of another Service.
            let other = world.tables.add_service_port(6, &[at(net.vip2, PORT)], &[]);
            world.tables.reuse_backend(gone, other, at(net.foreign, PORT));
            assert_eq!(world.connect(ends.client, ends.vip), ends.last, "{half_open}");
        }
    }
}

/// A flow to the second Service, which is answered under a source port of its own.
fn changed_port(world: &World, net: Net, vip: SocketAddr) -> u16 {
    let (verdict, bytes) = world.ingress(&tcp(at(net.client, SPORT), vip, SYN));
    assert_eq!(verdict, Verdict::Translated);
    ends(&bytes).0.port()
}

/// Production case 69: a port for source translation was given to another client while the server
/// still waited for late segments of the one before. Here it stays taken for two minutes after the
/// end of its connection, and as long as the connection lives when nobody ended it.
#[test]
fn case_69_a_changed_source_port_is_not_given_away_while_the_server_waits() {
    for net in NETS {
        for (ended, free_after) in [(true, CLOSED), (false, ABANDONED)] {
            let pod = ends_in(net).first;
            let (world, _) = World::single(net, Protocol::Tcp);
            let vips: Vec<_> = (0..3).map(|n| at(net.vip2, PORT + n)).collect();
            for vip in &vips {
                world.tables.add_service_port(6, &[*vip], &[pod]);
            }
            // Holds the client's own port.
            world.connect(at(net.client, SPORT), at(net.vip, PORT));
            let port = changed_port(&world, net, vips[0]);
            assert!((1_024..30_000).contains(&port));
            let client = at(net.client, SPORT);
            let answer = |flags| tcp(pod, at(net.client, port), flags);
            let expected = |flags| crate::setup::readdressed(&answer(flags), vips[0], client);
            let back = |flags| world.becomes(Hook::Egress, &answer(flags), &expected(flags));
            back(SYN_ACK);
            world.sent_to(&tcp(client, vips[0], ACK));
            if ended {
                back(FIN_ACK);
                world.sent_to(&tcp(client, vips[0], FIN_ACK));
            }
            // The client's pod is gone; its address and its port are another's. The port that the
            // server remembers is asked for first.
            world.tables.advance(free_after - 10);
            world.connect(at(net.client, SPORT), at(net.vip, PORT));
            let other = changed_port(&world, net, vips[1]);
            assert_ne!(other, port, "ended: {ended}");
            world.tables.advance(10);
            assert_eq!(changed_port(&world, net, vips[2]), port, "ended: {ended}");
        }
    }
}

/// Production case 71: a full connection table cut administrators, the API server and kubelet off.
/// Here what is no Service's passes without an entry, at both hooks, and so does what has one.
#[test]
fn case_71_full_tables_cut_nothing_that_is_not_ours() {
    for net in NETS {
        for when_full in [WhenFull::Refuse, WhenFull::Evict] {
            let (world, _, ends) = of_two(net, Protocol::Tcp);
            world.tables.add_service_port(17, &[ends.vip], &[ends.first]);
            let backend = world.connect(ends.client, ends.vip);
            let few = Capacities { flows: 2, half_open: 2, when_full, ..Capacities::default() };
            world.tables.set_capacities(few);
            for port in 1..200 {
                let refused = when_full == WhenFull::Refuse && port > 1;
                let verdict = world.ingress(&tcp(at(net.client, port), ends.vip, SYN)).0;
                assert_eq!(verdict == Verdict::TableFull, refused, "{port}: {verdict:?}");
            }
            // The established connection.
            segment(&world, Hook::Ingress, &ends, backend, ACK);
            segment(&world, Hook::Egress, &ends, backend, ACK);
            // SSH to the node, the API server's answers, kubelet's probes of the backends.
            for (from, to) in [
                (at(net.foreign, 50_000), at(net.client, 22)),
                (at(net.foreign, 6443), at(net.client, 50_001)),
                (at(net.foreign, 50_002), ends.first),
            ] {
                for hook in [Hook::Ingress, Hook::Egress] {
                    for (from, to) in [(from, to), (to, from)] {
                        for other in [tcp(from, to, SYN), tcp(from, to, ACK), udp(from, to)] {
                            let (verdict, _) =
                                world.run(hook, &other.build(), lb_common::parse::Link::Ethernet);
                            assert_eq!(verdict, Verdict::NotService, "{hook:?} {from} {to}");
                        }
                    }
                }
            }
            // Bytes on the wire are unchanged: `World::run` has compared them.
            if when_full == WhenFull::Refuse {
                // A flow that ended makes room for none but its own tuple.
                finish(&world, &ends, backend);
                let again = world.sent_to(&tcp(ends.client, at(net.vip, PORT), ACK));
                assert_eq!(again, backend);
            }
        }
    }
}

/// Production case 72: after a Service had grown, clients that use their ports again stayed with the
/// backends they had. Here each connection is chosen for anew, and the new backend gets its share.
#[test]
fn case_72_ports_that_are_used_again_are_spread_over_a_grown_service() {
    for net in NETS {
        let pod = |n: u16| at(net.pod, 9_000 + n);
        let (world, id) = World::with_backends(net, Protocol::Tcp, &[pod(0), pod(1), pod(2)]);
        world.tables.seed(72);
        let vip = at(net.vip, PORT);
        let round = |world: &World| {
            let mut seen: HashMap<SocketAddr, u32> = HashMap::new();
            for port in 10_000..10_800 {
                let client = at(net.client, port);
                let backend = world.connect(client, vip);
                *seen.entry(backend).or_default() += 1;
                let ends = Ends { client, vip, first: backend, last: backend };
                finish(world, &ends, backend);
            }
            seen
        };
        assert_eq!(round(&world).len(), 3);
        let mut all = world.tables.backends_of(id, Scope::Cluster);
        all.push(world.tables.add_backend(id, pod(3)));
        world.tables.set_backends(id, Scope::Cluster, &all);
        let seen = round(&world);
        // 200 of 800 each; 140 is five standard deviations away.
        for n in 0..4 {
            let share = seen.get(&pod(n)).copied().unwrap_or(0);
            assert!((140..260).contains(&share), "backend {n}: {share} of 800");
        }
        let other = packet(Protocol::Tcp, at(net.client, 9_999), vip, SYN);
        assert_eq!(world.ingress(&other).0, Verdict::Translated);
    }
}
