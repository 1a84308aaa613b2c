//! Flow tables that are full, torn or half evicted, and what the rest costs.

use std::net::SocketAddr;

use lb_common::{
    abi::{Counter, Flow},
    host::{Capacities, HostTables, OfFamily, WhenFull},
    tables::{FlowTable, FlowTables},
    verdict::Verdict,
};

use crate::setup::{
    ACK, Ends, NETS, Net, Protocol, SYN, SYN_ACK, World, at, ends_in, of_two, packet, records, tcp,
    udp,
};

#[test]
fn a_flood_of_syns_cannot_evict_an_established_flow() {
    for net in NETS {
        let (world, _, Ends { client, vip, .. }) = of_two(net, Protocol::Tcp);
        let few = Capacities { flows: 4, half_open: 16, ..Capacities::default() };
        world.tables.set_capacities(few);
        let backend = world.connect(client, vip);
        for port in 1..1000 {
            world.ingress(&tcp(at(net.foreign, port), vip, SYN));
        }
        assert_eq!(records(&world), (2, 16));
        assert_eq!(world.sent_to(&tcp(client, vip, ACK)), backend);
        world.answers_as(&tcp(backend, client, ACK), vip);
    }
}

#[test]
fn full_tables_are_counted() {
    for net in NETS {
        let Ends { client, vip, first: pod, .. } = ends_in(net);
        let full = |flows, half_open| Capacities {
            flows,
            half_open,
            when_full: WhenFull::Refuse,
            ..Capacities::default()
        };
        for room in [0, 1] {
            let (world, _) = World::single(net, Protocol::Udp);
            world.tables.set_capacities(full(room, 8));
            assert_eq!(world.ingress(&udp(client, vip)).0, Verdict::TableFull);
            assert_eq!(world.count(Counter::FlowTableFull), 1);
            let (world, _) = World::single(net, Protocol::Tcp);
            world.tables.set_capacities(full(8, room));
            assert_eq!(world.ingress(&tcp(client, vip, SYN)).0, Verdict::TableFull);
            assert_eq!(world.count(Counter::FlowTableFull), 1);
            let foreign = tcp(at(net.foreign, 22), client, ACK);
            assert_eq!(world.ingress(&foreign).0, Verdict::NotService, "not ours to cut");
        }
        // The main table refuses: the connection goes on half-open.
        for room in [0, 1] {
            let (world, _) = World::single(net, Protocol::Tcp);
            world.tables.set_capacities(full(room, 8));
            assert_eq!(world.connect(client, vip), pod);
            world.answers_as(&tcp(pod, client, ACK), vip);
            assert_eq!(world.sent_to(&tcp(client, vip, ACK)), pod);
            assert_eq!(world.count(Counter::FlowTableFull), 2);
        }
    }
}

/// Any single field of a record that another flow's reuse may have torn.
fn tears<const N: usize>() -> Vec<fn(&mut Flow<N>)> {
    vec![
        |flow| flow.src[0] ^= 1,
        |flow| flow.dst[N - 1] ^= 1 << 31,
        |flow| flow.sport ^= 1,
        |flow| flow.dport ^= 0x100,
        |flow| flow.flags ^= Flow::<N>::HAIRPIN,
        // Replies do without the backend, whose id may change while the flow goes on.
        |flow| flow.backend ^= u32::from(flow.flags & Flow::<N>::REPLY == 0),
        |flow| flow.generation ^= u32::from(flow.flags & Flow::<N>::REPLY == 0),
        |flow| flow.tag ^= 2,
        |flow| *flow = Flow::empty(),
    ]
}

fn torn_records_are_not_applied<const N: usize>(net: Net)
where
    HostTables: OfFamily<N> + FlowTables<N>,
{
    let Ends { client, vip, first: pod, .. } = ends_in(net);
    for tear in tears::<N>() {
        for half_open in [false, true] {
            let (world, _) = World::single(net, Protocol::Tcp);
            let table = if half_open { FlowTable::HalfOpen } else { FlowTable::Main };
            if half_open {
                world.sent_to(&tcp(client, vip, SYN));
            } else {
                world.connect(client, vip);
            }
            for (key, _) in world.tables.flows::<N>(table) {
                world.tables.tamper(table, &key, tear);
            }
            assert_eq!(world.ingress(&tcp(client, vip, ACK)).0, Verdict::NoFlow);
            let reply = tcp(pod, client, ACK);
            let torn = world.tables.flows::<N>(table).iter().all(|(key, flow)| !flow.is_for(key));
            if torn {
                assert_eq!(world.egress(&reply), (Verdict::NotService, reply.build()));
            }
            // A SYN makes whole ones again, if need be with another source port.
            assert_eq!(world.sent_to(&tcp(client, vip, SYN)), pod);
        }
    }
}

#[test]
fn a_torn_record_is_never_applied() {
    torn_records_are_not_applied::<1>(NETS[0]);
    torn_records_are_not_applied::<4>(NETS[1]);
}

fn either_half_may_be_evicted<const N: usize>(net: Net)
where
    HostTables: OfFamily<N>,
{
    let Ends { client, vip, first: pod, .. } = ends_in(net);
    for reply in [false, true] {
        for table in [FlowTable::Main, FlowTable::HalfOpen] {
            let (world, _) = World::single(net, Protocol::Tcp);
            match table {
                FlowTable::Main => assert_eq!(world.connect(client, vip), pod),
                FlowTable::HalfOpen => assert_eq!(world.sent_to(&tcp(client, vip, SYN)), pod),
            }
            let flows = world.tables.flows::<N>(table);
            let is_reply = |flow: &Flow<N>| flow.flags & Flow::<N>::REPLY != 0;
            let (key, _) = flows.iter().find(|(_, flow)| is_reply(flow) == reply).unwrap();
            world.tables.evict(table, key);
            assert_eq!(world.connect(client, vip), pod, "{table:?}, reply: {reply}");
        }
    }
}

#[test]
fn a_syn_replaces_what_eviction_left_of_a_flow() {
    either_half_may_be_evicted::<1>(NETS[0]);
    either_half_may_be_evicted::<4>(NETS[1]);
}

#[test]
fn established_packets_update_no_map_and_store_once_in_a_tick_and_direction() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let Ends { client, vip, first: pod, .. } = ends_in(net);
            let (world, _) = World::single(net, protocol);
            world.ingress(&packet(protocol, client, vip, SYN));
            world.egress(&packet(protocol, pod, client, SYN_ACK));
            world.ingress(&packet(protocol, client, vip, ACK));
            let ask = || world.ingress(&packet(protocol, client, vip, ACK));
            let answer = || world.egress(&packet(protocol, pod, client, ACK));
            for tick in 0..4 {
                world.tables.advance(1);
                world.tables.reset_costs();
                // Either direction looks after both records.
                drop(if tick % 2 == 0 { ask() } else { answer() });
                let costs = world.tables.costs();
                assert_eq!((costs.map_updates, costs.precise_clock_reads), (0, 0));
                assert_eq!(costs.value_stores, 2);
                world.tables.reset_costs();
                for _ in 0..10 {
                    ask();
                    answer();
                }
                let costs = world.tables.costs();
                assert_eq!((costs.map_updates, costs.precise_clock_reads), (0, 0));
                assert_eq!(costs.value_stores, 0);
                assert_eq!(costs.lookups, 10 * 2, "one for each packet");
                assert_eq!(costs.coarse_clock_reads, 10 * 2);
            }
        }
    }
}

/// Removes one half of the only flow.
fn evict_half(tables: &HostTables, reply: bool) {
    fn of<const N: usize>(tables: &HostTables, reply: bool)
    where
        HostTables: OfFamily<N>,
    {
        for (key, flow) in tables.flows::<N>(FlowTable::Main) {
            if (flow.flags & Flow::<N>::REPLY != 0) == reply {
                tables.evict::<N>(FlowTable::Main, &key);
            }
        }
    }
    of::<1>(tables, reply);
    of::<4>(tables, reply);
}

/// Contract 3.6: a reply must never reach the client from the pod's address (production case 28).
#[test]
fn an_evicted_half_is_made_anew_by_the_other_direction() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let Ends { client, vip, first: pod, .. } = ends_in(net);
            let (world, _) = World::single(net, protocol);
            world.sent_to(&packet(protocol, client, vip, SYN));
            world.answers_as(&packet(protocol, pod, client, SYN_ACK), vip);
            world.sent_to(&packet(protocol, client, vip, ACK));
            // The reply record goes: the client's next packet in another tick brings it back.
            world.tables.advance(1);
            evict_half(&world.tables, true);
            assert_eq!(world.sent_to(&packet(protocol, client, vip, ACK)), pod);
            world.answers_as(&packet(protocol, pod, client, ACK), vip);
            // The other one goes.
            world.tables.advance(1);
            evict_half(&world.tables, false);
            world.answers_as(&packet(protocol, pod, client, ACK), vip);
            assert_eq!(world.sent_to(&packet(protocol, client, vip, ACK)), pod);
            let counts = [Counter::FlowCreated, Counter::DropNoFlow].map(|of| world.count(of));
            assert_eq!(counts, [1, 0], "{net:?}, {protocol:?}: the same flow");
        }
    }
}

/// While one half was gone, another flow got its key.
#[test]
fn a_flow_whose_reply_key_is_another_ones_is_over() {
    for net in NETS {
        let Ends { client, vip, first: pod, .. } = ends_in(net);
        let (world, _) = World::single(net, Protocol::Tcp);
        let other = SocketAddr::new(vip.ip(), vip.port() + 1);
        world.tables.add_service_port(Protocol::Tcp.number(), &[other], &[pod]);
        world.connect(client, vip);
        evict_half(&world.tables, true);
        // The same client port, to the same pod by another Service.
        assert_eq!(world.connect(client, other), pod);
        world.tables.advance(1);
        assert_eq!(world.ingress(&tcp(client, vip, ACK)).0, Verdict::NoFlow);
        world.answers_as(&tcp(pod, client, ACK), other);
        assert_eq!(world.sent_to(&tcp(client, other, ACK)), pod);
    }
}
