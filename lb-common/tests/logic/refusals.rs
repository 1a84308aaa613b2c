//! Answers to refused packets (V-a, case 70), and who gets none: held against a packet reader that
//! shares nothing with what is tested.

use lb_common::{
    abi::{Counter, REFUSALS_PER_TICK},
    host::{HostPacket, HostTables},
    parse::Link,
    refuse::{self, Reason, Refusal},
};
use lb_testbed::packet::{self, Packet, TcpFlags, Upper, protocol};
use proptest::prelude::*;

use crate::setup::{NETS, Protocol, SYN, at, packet};

/// Any packet that the decisions may refuse.
fn any_packet() -> impl Strategy<Value = Packet> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let numbers = (any::<[u16; 2]>(), any::<u8>(), any::<[u32; 2]>(), any::<[u8; 2]>());
    let shape = (proptest::collection::vec(any::<u8>(), 0..200), 0_usize..4, any::<bool>());
    (any::<bool>(), protocol, numbers, shape).prop_map(
        |(
            v6,
            protocol,
            ([sport, dport], flags, [seq, ack], [tos, ttl]),
            (payload, extra, bare),
        )| {
            let net = NETS[usize::from(v6)];
            let mut made = packet(protocol, at(net.client, sport), at(net.vip, dport), SYN);
            if let Upper::Tcp { flags: set, seq: s, ack: a, .. } = &mut made.upper {
                (*set, *s, *a) = (TcpFlags(flags), seq, ack);
            }
            for _ in 0..extra * usize::from(v6) {
                made = made.extension(60, &[0; 6]);
            }
            if !v6 {
                made = made.options(&vec![1; extra * 4]);
            }
            let made = Packet { tos, ttl, ..made }.payload(&payload);
            if bare { made.without_ethernet() } else { made }
        },
    )
}

fn link_of(packet: &Packet) -> Link {
    match packet.link {
        packet::Link::Ethernet => Link::Ethernet,
        packet::Link::None => Link::None,
    }
}

fn answer(refused: &Packet) -> (Refusal, Vec<u8>) {
    let mut bytes = HostPacket(refused.build());
    let refusal = refuse::answer(&mut bytes, &HostTables::new(), link_of(refused), Reason::Port);
    (refusal, bytes.0)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

proptest! {
    #[test]
    fn v_a_every_answer_is_well_formed_and_its_receiver_believes_it(refused in any_packet()) {
        let (refusal, bytes) = answer(&refused);
        let sent = packet::parse(&refused.build(), refused.link).unwrap();
        if let Upper::Tcp { flags, .. } = refused.upper && flags.0 & TcpFlags::RST.0 != 0 {
            prop_assert_eq!(refusal, Refusal::Silent);
            prop_assert_eq!(bytes, refused.build());
            return Ok(());
        }
        prop_assert_eq!(refusal, Refusal::Answered);
        packet::checksums_ok(&bytes, refused.link).unwrap();
        let got = packet::parse(&bytes, refused.link).unwrap();
        prop_assert_eq!((got.src, got.dst), (refused.dst, refused.src));
        prop_assert_eq!(got.macs, sent.macs.map(|[to, from]| [from, to]));
        prop_assert_eq!((got.ttl, got.extensions.len(), got.end), (64, 0, bytes.len()));
        let upper = &bytes[got.upper_at..];
        if let Upper::Tcp { ports: [sport, dport], flags, seq, ack, .. } = refused.upper {
            prop_assert_eq!(got.ports, Some([dport, sport]));
            prop_assert_eq!(upper.len(), 20);
            let (reset, acknowledged) = (upper[13] & TcpFlags::RST.0, upper[13] & TcpFlags::ACK.0);
            prop_assert_ne!(reset, 0);
            if flags.0 & TcpFlags::ACK.0 != 0 {
                prop_assert_eq!((word(upper, 4), acknowledged), (ack, 0));
            } else {
                // What a SYN is answered with has to acknowledge it (RFC 9293 section 3.10.7.3).
                let marks = u32::from(flags.0 & 1) + u32::from(flags.0 >> 1 & 1);
                let next = seq.wrapping_add(u32::try_from(refused.payload.len()).unwrap() + marks);
                prop_assert_eq!((word(upper, 4), word(upper, 8)), (0, next));
                prop_assert_ne!(acknowledged, 0);
            }
            return Ok(());
        }
        let v4 = refused.src.is_ipv4();
        let expected = if v4 { (protocol::ICMP, [3, 3]) } else { (protocol::ICMPV6, [1, 4]) };
        prop_assert_eq!((got.protocol, [upper[0], upper[1]]), expected);
        prop_assert_eq!(word(upper, 4), 0);
        let quoted = packet::parse(&upper[8..], packet::Link::None).unwrap();
        prop_assert_eq!((quoted.src, quoted.dst), (refused.src, refused.dst));
        prop_assert_eq!((quoted.ttl, quoted.tos), (refused.ttl, refused.tos));
        prop_assert_eq!((quoted.protocol, quoted.ports), (sent.protocol, sent.ports));
        let transport = |parsed: &packet::Parsed| parsed.claimed - (parsed.upper_at - parsed.ip_at);
        prop_assert_eq!(transport(&quoted), transport(&sent), "its length is that of the datagram");
    }

    #[test]
    fn no_cut_packet_is_answered_with_more_than_it_had(refused in any_packet(), keep in 0_usize..120) {
        let mut whole = refused.build();
        whole.truncate(keep);
        let (mut bytes, tables) = (HostPacket(whole.clone()), HostTables::new());
        let refusal = refuse::answer(&mut bytes, &tables, link_of(&refused), Reason::Port);
        match refusal {
            Refusal::Answered => {
                packet::checksums_ok(&bytes.0, refused.link).unwrap();
                prop_assert_eq!(tables.counter(Counter::RefusalAnswered), 1);
            }
            Refusal::Silent => prop_assert_eq!(tables.counter(Counter::RefusalUnanswered), 1),
        }
    }
}

#[test]
fn a_flood_is_answered_so_often_and_no_more() {
    let tables = HostTables::new();
    let refused = packet(Protocol::Tcp, at(NETS[0].client, 1), at(NETS[0].vip, 2), SYN);
    for tick in 1..=2 {
        for number in 0..REFUSALS_PER_TICK + 5 {
            let mut bytes = HostPacket(refused.build());
            let told = refuse::answer(&mut bytes, &tables, Link::Ethernet, Reason::Port)
                == Refusal::Answered;
            assert_eq!(told, number < REFUSALS_PER_TICK);
            assert!(told || bytes.0 == refused.build(), "left as it was");
        }
        assert_eq!(tables.counter(Counter::RefusalAnswered), u64::from(REFUSALS_PER_TICK) * tick);
        assert_eq!(tables.counter(Counter::RefusalSuppressed), 5 * tick);
        tables.advance(1);
    }
}
