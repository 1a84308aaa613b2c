//! Keys that two flows claim: a record goes or stays, and no packet gets into another's connection.

use lb_common::{
    abi::{BackendFlags, Counter, Flow, Live, Scope},
    host::{HostTables, OfFamily},
    tables::{FlowTable, RouteStatus},
    verdict::Verdict,
};

use crate::outside_setup::{Outside, SECOND, UPLINK, node, route};
use crate::setup::{
    ACK, FIN_ACK, Hook, NETS, Protocol, RST, SPORT, SYN, SYN_ACK, V4, at, packet, records, udp,
};

/// The table gives up the records of one direction.
fn evict(tables: &HostTables, table: FlowTable, reply: bool) {
    fn of<const N: usize>(tables: &HostTables, table: FlowTable, reply: bool)
    where
        HostTables: OfFamily<N>,
    {
        for (key, flow) in tables.flows::<N>(table) {
            if (flow.flags & Flow::<N>::REPLY != 0) == reply {
                tables.evict::<N>(table, &key);
            }
        }
    }
    of::<1>(tables, table, reply);
    of::<4>(tables, table, reply);
}

/// One port for SNAT, so that the next client gets it as soon as nobody has it.
fn with_one_port(protocol: Protocol) -> Outside {
    let outside = Outside::new(V4, protocol);
    outside.tables().set_snat_ports(2_000, 1);
    let addresses = outside.tables().host_interfaces();
    for (index, mut interface) in addresses {
        interface.v4[1] = 0;
        outside.tables().set_host_interface(index, interface);
    }
    outside
}

/// Production case 38: the half-open table gave up one client's reply record, and another client got
/// its port. The first one's next packet ends its flow, and not the other's.
#[test]
fn case_38_a_half_open_flow_does_not_take_an_established_ones_port() {
    let outside = with_one_port(Protocol::Tcp);
    route(outside.tables(), V4.foreign, UPLINK, RouteStatus::Found, UPLINK);
    let source = outside.sent_on(&outside.asks(SYN));
    evict(outside.tables(), FlowTable::HalfOpen, true);
    let other = |flags| packet(Protocol::Tcp, at(V4.foreign, SPORT), outside.vip(), flags);
    assert_eq!(outside.sent_on(&other(SYN)), source);
    let answer = |flags| packet(Protocol::Tcp, outside.pod(), source, flags);
    assert_eq!(outside.arrives(SECOND, &answer(SYN_ACK)).0, Verdict::Forwarded);
    assert_eq!(outside.sent_on(&other(ACK)), source);
    assert_eq!(outside.arrives(UPLINK, &outside.asks(ACK)).0, Verdict::NoFlow);
    let (verdict, bytes) = outside.arrives(SECOND, &answer(ACK));
    assert_eq!(verdict, Verdict::Forwarded);
    assert_eq!(crate::setup::ends(&bytes).1, at(V4.foreign, SPORT));
    assert_eq!(outside.sent_on(&other(ACK)), source);
}

/// Production case 38, once both are established: who lost the port is not heard in the other's flow.
#[test]
fn case_38_a_flow_whose_port_is_anothers_ends() {
    for protocol in Protocol::BOTH {
        let outside = with_one_port(protocol);
        let source = outside.sent_on(&outside.asks(SYN));
        outside.answered(source, SYN_ACK);
        outside.sent_on(&outside.asks(ACK));
        evict(outside.tables(), FlowTable::Main, true);
        let other = |flags| packet(protocol, at(V4.foreign, SPORT), outside.vip(), flags);
        assert_eq!(outside.sent_on(&other(SYN)), source);
        assert_eq!(outside.sent_on(&other(ACK)), source);
        outside.tables().advance(Live::SPAN);
        let expected = if protocol == Protocol::Tcp { Verdict::NoFlow } else { Verdict::NoPort };
        for flags in [ACK, RST] {
            assert_eq!(outside.arrives(UPLINK, &outside.asks(flags)).0, expected);
        }
        assert_eq!(outside.sent_on(&other(ACK)), source);
    }
}

/// Production case 66: a late segment of the backend that had the tuple before does not bring its flow
/// back while the new one is half-open.
#[test]
fn case_66_a_late_segment_does_not_hide_the_new_connection() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let source = outside.sent_on(&outside.asks(SYN));
        outside.answered(source, SYN_ACK);
        outside.sent_on(&outside.asks(ACK));
        outside.sent_on(&outside.asks(FIN_ACK));
        // Drained: the tuple's next connection goes to another backend.
        let other = outside.tables().add_backend(outside.id, at(net.pod2, 8080));
        outside.tables().clear_flags(outside.backend, BackendFlags::SERVING);
        outside.tables().set_backends(outside.id, Scope::Cluster, &[other]);
        let there = |flags| {
            let (verdict, bytes) = outside.arrives(UPLINK, &outside.asks(flags));
            assert_eq!(verdict, Verdict::Forwarded);
            crate::setup::destination(&bytes)
        };
        assert_eq!(there(SYN), at(net.pod2, 8080));
        outside.tables().advance(1);
        for flags in [ACK, FIN_ACK] {
            outside.answered(source, flags);
        }
        assert_eq!(there(ACK), at(net.pod2, 8080));
    }
}

/// What ended, or has no backend any more, is not brought back by what is still under way.
#[test]
fn u_2_the_dead_stay_dead() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let source = outside.sent_on(&outside.asks(ACK));
        outside.tables().set_backends(outside.id, Scope::Cluster, &[]);
        outside.tables().clear_flags(outside.backend, BackendFlags::SERVING);
        for _ in 0..3 {
            assert_eq!(outside.arrives(UPLINK, &outside.asks(ACK)).0, Verdict::NoBackend);
            outside.tables().advance(1);
            outside.answered(source, ACK);
        }
        assert_eq!(outside.world.count(Counter::FlowMoved), 1, "once for the flow");

        let outside = Outside::new(net, Protocol::Tcp);
        let source = outside.sent_on(&outside.asks(SYN));
        outside.answered(source, SYN_ACK);
        outside.sent_on(&outside.asks(ACK));
        evict(outside.tables(), FlowTable::Main, false);
        for flags in [RST, FIN_ACK] {
            outside.tables().advance(1);
            outside.answered(source, flags);
        }
        assert_eq!(records(&outside.world), (1, 0));
    }
}

/// Production case 35: what leaves as the node's own from a `NodePort` may be a translated reply. The
/// flow's record stays.
#[test]
fn case_35_the_record_of_a_services_flow_is_not_replaced() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let any = if net.vip.contains(':') { "::" } else { "0.0.0.0" };
        let flags = lb_common::abi::FrontendFlags::EXTERNAL;
        outside.tables().add_frontend_with(outside.id, 17, at(any, 30_080), flags);
        let own = at(node(net)[0], 30_080);
        outside.sent_on(&udp(outside.client(), own));
        outside.tables().advance(1_000);
        let reply = udp(own, outside.client());
        let link = lb_common::parse::Link::Ethernet;
        assert_eq!(outside.world.run(Hook::Egress, &reply.build(), link).0, Verdict::NotService);
        assert_eq!(outside.world.count(Counter::FlowForeign), 0);
    }
}
