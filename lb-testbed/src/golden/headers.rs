//! Headers of every shape around the same flow.

use lb_common::{abi::Counter, verdict::Verdict};

use super::{
    Case, Hook,
    lives::{back, named, single, there},
};
use crate::{
    packet::{Packet, checksum},
    traffic::{
        ACK, NETS, Net, PORT, Protocol, SPORT, SYN, SYN_ACK, V4, V6, at, packet, readdressed,
    },
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            for tags in 1..=2 {
                let name = format!("{tags} VLAN tags");
                cases.push(shaped(net, protocol, &name, move |packet| {
                    (0..tags).fold(packet, Packet::vlan)
                }));
            }
            cases.push(shaped(net, protocol, "a tag of a provider", |mut packet| {
                packet.vlans = vec![(0x88a8, 5), (0x8100, 6)];
                packet
            }));
            cases.push(shaped(net, protocol, "no payload", |packet| packet.payload(&[])));
        }
        cases.push(shaped(net, Protocol::Tcp, "TCP options", |packet| {
            packet.tcp_options(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0])
        }));
        cases.extend([without_checksum(net), checksum_of_zero(net), sctp(net)]);
    }
    for protocol in Protocol::BOTH {
        for words in [1, 10] {
            let name = format!("{words} words of options");
            cases.push(shaped(V4, protocol, &name, move |packet| {
                packet.options(&vec![1; words * 4])
            }));
        }
        for kinds in [&[0][..], &[60], &[0, 60, 43, 60]] {
            let name = format!("extension headers {kinds:?}");
            let case = shaped(V6, protocol, &name, move |packet| {
                kinds.iter().fold(packet, |packet, kind| packet.extension(*kind, &[0; 14]))
            });
            cases.push(case);
        }
    }
    cases
}

/// A whole flow whose packets all have a shape.
fn shaped(net: Net, protocol: Protocol, name: &str, shape: impl Fn(Packet) -> Packet) -> Case {
    let mut case = single(named(net, protocol, name), net, protocol);
    for (index, flags) in [SYN, SYN_ACK, ACK, ACK, ACK].into_iter().enumerate() {
        let from_client = index % 2 == 0;
        let (from, to) =
            if from_client { there(net, protocol, flags) } else { back(net, protocol, flags) };
        let hook = if from_client { Hook::Ingress } else { Hook::Egress };
        case = case.becomes(hook, &shape(from), &shape(to));
        if index == 0 {
            case = case.counted(Counter::FlowCreated);
        } else if index > 2 {
            case = case.established();
        }
    }
    case
}

fn without_checksum(net: Net) -> Case {
    let bare = |(mut from, mut to): (Packet, Packet)| {
        for packet in [&mut from, &mut to] {
            if let crate::packet::Upper::Udp { checksum, .. } = &mut packet.upper {
                *checksum = false;
            }
        }
        (from, to)
    };
    let case = single(named(net, Protocol::Udp, "no checksum"), net, Protocol::Udp);
    let (first, first_there) = bare(there(net, Protocol::Udp, SYN));
    let (answer, answer_back) = bare(back(net, Protocol::Udp, ACK));
    case.becomes(Hook::Ingress, &first, &first_there)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &answer, &answer_back)
        .established()
}

/// A checksum that becomes zero is sent as all ones (RFC 768).
fn checksum_of_zero(net: Net) -> Case {
    let (from, to) = there(net, Protocol::Udp, SYN);
    let with = |payload: u16, packet: &Packet| packet.clone().payload(&payload.to_be_bytes());
    let upper = |packet: &Packet| {
        let bytes = packet.clone().without_ethernet().build();
        let header = if packet.src.is_ipv4() { 20 } else { 40 };
        bytes.get(header..).unwrap_or_default().to_vec()
    };
    // One of the 65,536 payloads makes the sum zero.
    let payload = (0..=u16::MAX).find(|payload| {
        let bytes = upper(&with(*payload, &to));
        bytes.get(6..8) == Some(&[0xff, 0xff])
            && checksum::ones_sum(&checksum::with_pseudo_header(to.src, to.dst, 17, &bytes))
                == 0xffff
    });
    let payload = payload.unwrap_or_default();
    let (from, to) = (with(payload, &from), with(payload, &to));
    single(named(net, Protocol::Udp, "a checksum that becomes zero"), net, Protocol::Udp)
        .becomes(Hook::Ingress, &from, &to)
        .counted(Counter::FlowCreated)
}

fn sctp(net: Net) -> Case {
    let (client, vip, pod) = (at(net.client, SPORT), at(net.vip, PORT), at(net.pod, PORT));
    let from = packet(Protocol::Sctp, client, vip, SYN);
    let answer = packet(Protocol::Sctp, pod, client, SYN);
    let other_port = packet(Protocol::Sctp, client, at(net.vip2, PORT), SYN);
    named(net, Protocol::Sctp, "the same port, and another one")
        .change(move |tables| {
            tables.add_service_port(132, &[vip], &[pod]);
            tables.add_service_port(132, &[at(net.vip2, PORT)], &[at(net.pod, PORT + 1)]);
        })
        .becomes(Hook::Ingress, &from, &readdressed(&from, client, pod))
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &answer, &readdressed(&answer, vip, client))
        .established()
        .becomes(Hook::Ingress, &from, &readdressed(&from, client, pod))
        .established()
        .stays(Hook::Ingress, &other_port, Verdict::SctpPort)
}
