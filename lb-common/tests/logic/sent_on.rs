//! The life of a flow that is sent on: its ports, its end, its records, and packets that do not fit.

use std::{collections::HashSet, net::SocketAddr};

use lb_common::{
    abi::{BackendFlags, Counter, FlowKey, FlowKind, Live, Scope},
    host::{Capacities, HostTables, OfFamily, WhenFull},
    packet::SlicePacket,
    parse::Link,
    refuse::{self, Reason, Refusal},
    tables::FlowTable,
    verdict::Verdict,
};
use lb_testbed::packet::{self as built, Packet};
use proptest::prelude::*;

use crate::outside_setup::{MTU, Outside, SECOND, UPLINK, node};
use crate::setup::{
    ACK, FIN_ACK, NETS, Net, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, V4, at, packet,
    readdressed, records, udp,
};

/// Cases 36 to 38: 25,000 connections of one client through one node to one backend, each from a port
/// of its own.
#[test]
fn case_36_one_client_never_competes_with_itself() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let mut sources = HashSet::new();
        for port in 30_000..55_000 {
            let source = outside.sent_on(&udp(at(net.client, port), outside.vip()));
            assert_eq!(source.ip(), at(node(net)[0], 0).ip());
            assert!(sources.insert(source), "{source} twice");
        }
    }
}

/// Case 39: where the ports of the first address are used up, the second one's serve.
#[test]
fn case_39_a_second_address_takes_what_the_first_cannot() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        outside.tables().set_snat_ports(2_000, 4);
        let sources: Vec<_> = (0..8)
            .map(|n| outside.sent_on(&udp(at(net.client, SPORT + n), outside.vip())))
            .collect();
        let all: HashSet<_> = sources.iter().collect();
        assert_eq!(all.len(), 8, "{sources:?}");
        let second = at(node(net)[1], 0).ip();
        assert_eq!(sources.iter().filter(|source| source.ip() == second).count(), 4);
        let more = udp(at(net.client, SPORT + 9), outside.vip());
        assert_eq!(outside.arrives(UPLINK, &more).0, Verdict::NoPort);
        assert_eq!(outside.world.count(Counter::DropNoPort), 1);
        // What nobody used for as long as a flow is kept is free again.
        outside.tables().advance(705);
        outside.sent_on(&more);
    }
}

/// The ports of clients are random: none is turned away while half of the ports of two
/// addresses are free, and few until three quarters are taken.
#[test]
fn case_39_all_addresses_are_used_alike() {
    let outside = Outside::new(V4, Protocol::Udp);
    let each = 2_000;
    outside.tables().set_snat_ports(2_000, each);
    let mut state = 1_u32;
    let mut random = || {
        // Numerical Recipes' generator; its low bits are poor.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut denied = [0; 3];
    for number in 0..3 * u32::from(each) / 2 {
        let [a, b, c, d] = random().to_be_bytes();
        let client = SocketAddr::from(([100, a ^ b, c, d], 1_024 + (random() & 0x7fff) as u16));
        let (verdict, _) = outside.arrives(UPLINK, &udp(client, outside.vip()));
        denied[number as usize / 1_000] += u32::from(verdict == Verdict::NoPort);
    }
    assert!(denied[..2] == [0, 0] && denied[2] < 10, "{denied:?}");
}

/// Connections that nobody answers: their ports go to others after 10 s at the shortest tick, and who
/// asks again begins anew.
#[test]
fn half_open_flows_are_given_up_soon() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        outside.tables().set_snat_ports(2_000, 1);
        let asks = |n| packet(Protocol::Tcp, at(net.client, SPORT + n), outside.vip(), SYN);
        let first = outside.sent_on(&asks(0));
        let second = outside.sent_on(&asks(1));
        assert_eq!(first.port(), second.port());
        outside.tables().advance(39);
        // An answer tells that somebody is there.
        let answer = |source| packet(Protocol::Tcp, outside.pod(), source, SYN_ACK);
        assert_eq!(outside.arrives(SECOND, &answer(second)).0, Verdict::Forwarded);
        assert_eq!(outside.arrives(UPLINK, &asks(2)).0, Verdict::NoPort);
        outside.tables().advance(1);
        assert_eq!(outside.sent_on(&asks(2)), first);
        assert_eq!(outside.arrives(UPLINK, &asks(3)).0, Verdict::NoPort);
        // The first client's record is still there, and its port is not its own any more.
        assert_eq!(outside.arrives(UPLINK, &asks(0)).0, Verdict::NoPort);
        let (verdict, bytes) = outside.arrives(SECOND, &answer(first));
        assert_eq!(verdict, Verdict::Forwarded);
        assert_eq!(crate::setup::destination(&bytes).port(), SPORT + 2);
    }
}

/// U-2, U-4: a UDP flow moves with its next packet, and late answers still find the client.
#[test]
fn u_2_a_datagram_flow_moves_to_a_backend_that_serves() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let before = outside.sent_on(&outside.asks(ACK));
        let other = outside.tables().add_backend(outside.id, at(net.pod2, TARGET));
        outside.tables().clear_flags(outside.backend, BackendFlags::SERVING);
        outside.tables().set_backends(outside.id, Scope::Cluster, &[other]);
        let (verdict, bytes) = outside.arrives(UPLINK, &outside.asks(ACK));
        assert_eq!(verdict, Verdict::Forwarded);
        let (source, to) = crate::setup::ends(&bytes);
        assert_eq!(to, at(net.pod2, TARGET));
        assert_eq!(outside.world.count(Counter::FlowMoved), 1);
        let answer = udp(to, source);
        let (verdict, bytes) = outside.arrives(SECOND, &answer);
        assert_eq!(verdict, Verdict::Forwarded);
        assert_eq!(crate::setup::ends(&bytes), (outside.vip(), outside.client()));
        outside.answered(before, ACK);
    }
}

/// F-1: whatever happens to its Service, a connection goes on; a SYN after its end begins another.
#[test]
fn f_1_a_connection_goes_on_and_its_tuple_is_used_again_after_its_end() {
    for net in NETS {
        for end in [FIN_ACK, RST] {
            let outside = Outside::new(net, Protocol::Tcp);
            let source = outside.sent_on(&outside.asks(SYN));
            outside.answered(source, SYN_ACK);
            outside.sent_on(&outside.asks(ACK));
            let other = outside.tables().add_backend(outside.id, at(net.pod2, TARGET));
            outside.tables().clear_flags(outside.backend, BackendFlags::SERVING);
            outside.tables().set_backends(outside.id, Scope::Cluster, &[other]);
            assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
            outside.answered(source, ACK);
            outside.sent_on(&outside.asks(end));
            let (verdict, bytes) = outside.arrives(UPLINK, &outside.asks(SYN));
            assert_eq!(verdict, Verdict::Forwarded);
            assert_eq!(crate::setup::destination(&bytes), at(net.pod2, TARGET));
        }
    }
}

/// The table gave up one half: the other one's next packet a few ticks later brings it back.
#[test]
fn an_evicted_half_is_made_anew() {
    fn evict<const N: usize>(tables: &HostTables, reply: bool)
    where
        HostTables: OfFamily<N>,
    {
        for (key, flow) in tables.flows::<N>(FlowTable::Main) {
            if (flow.flags & lb_common::abi::Flow::<N>::REPLY != 0) == reply {
                tables.evict::<N>(FlowTable::Main, &key);
            }
        }
    }
    for net in NETS {
        for protocol in Protocol::BOTH {
            for reply in [true, false] {
                let outside = Outside::new(net, protocol);
                let source = outside.sent_on(&outside.asks(SYN));
                outside.answered(source, SYN_ACK);
                outside.sent_on(&outside.asks(ACK));
                evict::<1>(outside.tables(), reply);
                evict::<4>(outside.tables(), reply);
                let goes = || {
                    if reply {
                        assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
                    } else {
                        outside.answered(source, ACK);
                    }
                };
                goes();
                assert_eq!(records(&outside.world).0, 1, "not in the same tick");
                outside.tables().advance(Live::SPAN);
                goes();
                assert_eq!(records(&outside.world).0, 2);
                outside.answered(source, ACK);
                assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
            }
        }
    }
}

/// One direction alone keeps the flow, and so its port: nobody else gets it.
#[test]
fn a_port_is_not_given_away_while_either_direction_is_in_use() {
    let outside = Outside::new(V4, Protocol::Udp);
    outside.tables().set_snat_ports(2_000, 1);
    let source = outside.sent_on(&outside.asks(ACK));
    for _ in 0..3 {
        outside.tables().advance(600);
        outside.sent_on(&outside.asks(ACK));
    }
    let other = udp(at(V4.client, SPORT + 1), outside.vip());
    assert_ne!(outside.sent_on(&other), source, "the second address, and not the port");
    let third = udp(at(V4.client, SPORT + 2), outside.vip());
    assert_eq!(outside.arrives(UPLINK, &third).0, Verdict::NoPort);
}

/// A flood of SYNs evicts only what is half open.
#[test]
fn a_flood_of_syns_leaves_established_flows_alone() {
    let outside = Outside::new(V4, Protocol::Tcp);
    let capacities =
        Capacities { half_open: 16, when_full: WhenFull::Evict, ..Capacities::default() };
    outside.tables().set_capacities(capacities);
    let source = outside.sent_on(&outside.asks(SYN));
    outside.answered(source, SYN_ACK);
    outside.sent_on(&outside.asks(ACK));
    for port in 1..500 {
        outside.sent_on(&packet(Protocol::Tcp, at(V4.foreign, port), outside.vip(), SYN));
    }
    outside.answered(source, ACK);
    assert_eq!(outside.sent_on(&outside.asks(ACK)), source);
    assert!(records(&outside.world).1 <= 16);
}

/// Case 66: a packet that is too long is told so, whichever way it goes; the size is the route's.
#[test]
fn case_66_who_sends_too_much_is_told_what_fits() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let source = outside.sent_on(&outside.asks(ACK));
        let long = outside.asks(ACK).payload(&[7; 1_400]);
        let (verdict, _) = outside.arrives(UPLINK, &long);
        assert_eq!(verdict, Verdict::TooBig);
        assert_eq!(told(&outside, &long, verdict), Some(MTU));
        let answer = udp(outside.pod(), source).payload(&[7; 1_400]);
        assert_eq!(outside.arrives(SECOND, &answer).0, Verdict::TooBig);
        assert_eq!(outside.world.count(Counter::PacketTooBig), 2);
        // The last router that may pass it on is this one.
        let last = outside.asks(ACK).ttl(1);
        let (verdict, _) = outside.arrives(UPLINK, &last);
        assert_eq!(verdict, Verdict::TimeExceeded);
        assert_eq!(told(&outside, &last, verdict), Some(0));
    }
}

/// What the sender of a refused packet is told: the word behind the checksum.
fn told(outside: &Outside, packet: &Packet, verdict: Verdict) -> Option<u32> {
    use lb_common::tables::NodeTables as _;
    let mut answer = lb_common::host::HostPacket(packet.build());
    let reason = Reason::for_verdict(verdict, || outside.tables().mtu());
    let refusal = refuse::answer(&mut answer, outside.tables(), Link::Ethernet, reason);
    assert_eq!(refusal, Refusal::Answered);
    built::checksums_ok(&answer.0, built::Link::Ethernet).unwrap();
    let v4 = outside.client().is_ipv4();
    let icmp = answer.0.get(14 + if v4 { 20 } else { 40 }..)?;
    let kinds = match (reason, v4) {
        (Reason::TooBig(_), true) => [3, 4],
        (Reason::TooBig(_), false) => [2, 0],
        (_, true) => [11, 0],
        (_, false) => [3, 0],
    };
    assert_eq!(icmp.get(..2)?, kinds);
    Some(u32::from_be_bytes(icmp.get(4..8)?.try_into().ok()?))
}

proptest! {
    #[test]
    fn a_reason_survives_its_word(mtu in any::<u16>()) {
        for reason in [Reason::Port, Reason::TimeExceeded, Reason::TooBig(mtu)] {
            prop_assert_eq!(Reason::of(reason.word()), reason);
        }
    }
}

fn error(from: &str, to: &str, v4: bool, about: &Packet) -> Packet {
    let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
    let quoted = 8 + if v4 { 20 } else { 40 };
    Packet::new(from, to).icmp_error(kind, code, [0, 0, 5, 0], about, quoted)
}

/// C-7: errors find who sent what they are about, on either side, with the translation undone.
#[test]
fn c_7_icmp_errors_are_sent_on_to_who_sent_the_packet() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let outside = Outside::new(net, protocol);
            let v4 = outside.client().is_ipv4();
            let asks = outside.asks(SYN);
            let source = outside.sent_on(&asks);
            let sent = readdressed(&asks, source, outside.pod()).ttl(63);
            // A router on the way to the backend: the client hears of it, from the VIP.
            let (verdict, bytes) =
                outside.arrives(SECOND, &error(net.foreign, &source.ip().to_string(), v4, &sent));
            assert_eq!(verdict, Verdict::Forwarded);
            let vip = outside.vip().ip().to_string();
            let seen = error(&vip, net.client, v4, &asks.clone().ttl(63)).ttl(63);
            let diff = built::diff(&seen.build(), &bytes, built::Link::Ethernet);
            assert!(diff.is_empty(), "{diff}");
            // A router on the way to the client: the backend hears of it, from this node.
            let answer = packet(protocol, outside.pod(), source, SYN_ACK);
            let back = readdressed(&answer, outside.vip(), outside.client()).ttl(63);
            let (verdict, bytes) = outside.arrives(UPLINK, &error(net.foreign, net.vip, v4, &back));
            assert_eq!(verdict, Verdict::Forwarded);
            let own = source.ip().to_string();
            let seen = error(&own, net.pod, v4, &answer.clone().ttl(63)).ttl(63);
            let diff = built::diff(&seen.build(), &bytes, built::Link::Ethernet);
            assert!(diff.is_empty(), "{diff}");
            assert_eq!(outside.world.count(Counter::IcmpTranslated), 2);
        }
    }
}

/// C-7: in order, every piece goes where the first one went, both ways.
#[test]
fn c_7_fragments_are_sent_on_after_the_first_one() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        let asks = outside.asks(ACK).payload(&[7; 300]);
        let mut source = None;
        for piece in asks.fragments(80) {
            let (verdict, bytes) = run(&outside, UPLINK, &piece);
            assert_eq!(verdict, Verdict::Forwarded);
            source = source.or_else(|| Some(crate::setup::ends(&bytes).0));
            assert_eq!(
                built::parse(&bytes, built::Link::Ethernet).unwrap().dst,
                outside.pod().ip()
            );
        }
        let answer = udp(outside.pod(), source.unwrap()).payload(&[9; 300]);
        let expected = readdressed(&answer, outside.vip(), outside.client()).ttl(63);
        for (piece, expected) in answer.fragments(80).into_iter().zip(expected.fragments(80)) {
            assert_eq!(run(&outside, SECOND, &piece), (Verdict::Forwarded, expected));
        }
    }
}

fn run(outside: &Outside, ifindex: u32, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    outside.tables().set_interface(ifindex);
    let mut after = bytes.to_vec();
    let verdict =
        lb_common::decide::ingress(&mut SlicePacket(&mut after), outside.tables(), Link::Ethernet);
    (verdict, after)
}

/// SCTP's checksum covers its ports: the client keeps its own, if nobody else has it.
#[test]
fn sctp_keeps_its_port() {
    let outside = Outside::new(V4, Protocol::Sctp);
    let backend = outside.tables().add_backend(outside.id, at(V4.pod, outside.vip().port()));
    outside.tables().set_backends(outside.id, Scope::Cluster, &[backend]);
    let source = outside.sent_on(&outside.asks(SYN));
    assert_eq!(source.port(), SPORT);
    let other = packet(Protocol::Sctp, at(V4.foreign, SPORT), outside.vip(), SYN);
    assert_eq!(outside.sent_on(&other).port(), SPORT, "under the second address");
    let third = packet(Protocol::Sctp, at(V4.pod2, SPORT), outside.vip(), SYN);
    assert_eq!(outside.arrives(UPLINK, &third).0, Verdict::NoPort);
}

/// Records of flows that are sent on are met where packets arrive, both of them.
#[test]
fn both_records_apply_where_packets_arrive() {
    fn kinds<const N: usize>(outside: &Outside, _: Net) -> Vec<u8>
    where
        HostTables: OfFamily<N>,
    {
        let flows = outside.tables().flows::<N>(FlowTable::Main);
        flows.into_iter().map(|(FlowKey { kind, .. }, _)| kind).collect()
    }
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        outside.sent_on(&outside.asks(ACK));
        let mut kinds4 = kinds::<1>(&outside, net);
        kinds4.extend(kinds::<4>(&outside, net));
        assert_eq!(kinds4, [FlowKind::INGRESS; 2]);
    }
}
