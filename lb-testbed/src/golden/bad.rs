//! Packets that are cut, contradict themselves, or have no ports that we may touch.

use lb_common::{abi::Counter, verdict::Verdict};

use super::{
    Case, Hook,
    lives::{begun, goes_on, named, single, there},
};
use crate::{
    packet::{Link, Packet},
    traffic::{ACK, NETS, Net, Protocol, SYN, V4, V6, at},
};

const ETHERNET: usize = 14;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            cases.extend([cut_before_the_ports(net, protocol), cut_payload(net, protocol)]);
        }
        cases.extend([cut_within_the_checksum(net), three_tags(net), other_protocols(net)]);
    }
    cases.extend([contradictions(), extensions(), not_ip()]);
    cases
}

fn ip_header(net: Net) -> usize {
    if net.vip.contains(':') { 40 } else { 20 }
}

fn cut(case: Case, packet: &Packet, length: usize, verdict: Verdict) -> Case {
    let mut bytes = packet.build();
    bytes.truncate(length);
    case.bytes(Hook::Ingress, Link::Ethernet, bytes.clone(), verdict, bytes)
}

/// Nothing is known of these: they pass. Shorter than an Ethernet header the kernel runs nothing.
fn cut_before_the_ports(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "cut before the ports"), net, protocol);
    let mut case = begun(case, net, protocol);
    let (packet, _) = there(net, protocol, ACK);
    let transport = ETHERNET + ip_header(net);
    for length in [ETHERNET, ETHERNET + 1, transport - 1, transport, transport + 3] {
        case = cut(case, &packet, length, Verdict::Unparsed);
    }
    goes_on(case, net, protocol)
}

/// What is missing behind the headers is nobody's business here.
fn cut_payload(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "cut within the payload"), net, protocol);
    let case = begun(case, net, protocol);
    let (from, to) = there(net, protocol, ACK);
    let (mut from, mut to) = (from.build(), to.build());
    let length = from.len() - 20;
    from.truncate(length);
    to.truncate(length);
    case.bytes(Hook::Ingress, Link::Ethernet, from, Verdict::Translated, to).established()
}

/// Ports and flags are there, the checksum is not: it cannot be translated, so it is dropped.
fn cut_within_the_checksum(net: Net) -> Case {
    let transport = ETHERNET + ip_header(net);
    let case = single(named(net, Protocol::Tcp, "cut within the checksum"), net, Protocol::Tcp);
    let (packet, _) = there(net, Protocol::Tcp, SYN);
    let case = cut(case, &packet, transport + 17, Verdict::Rewrite).counted(Counter::FlowCreated);
    let (packet, _) = there(net, Protocol::Tcp, ACK);
    cut(case, &packet, transport + 13, Verdict::Unparsed)
}

fn three_tags(net: Net) -> Case {
    let case = single(named(net, Protocol::Tcp, "three VLAN tags"), net, Protocol::Tcp);
    let (packet, _) = there(net, Protocol::Tcp, SYN);
    case.stays(Hook::Ingress, &packet.vlan(1).vlan(2).vlan(3), Verdict::Unparsed)
}

fn other_protocols(net: Net) -> Case {
    let packet = Packet::new(net.client, net.vip);
    let mut case = single(named(net, Protocol::Tcp, "other protocols"), net, Protocol::Tcp);
    case = begun(case, net, Protocol::Tcp);
    for other in [packet.clone().other(47).payload(&[0; 40]), packet.other(50).payload(&[0; 40])] {
        // From the backend, of whose address egress knows by now, and from somebody else.
        let from = |ip: &str| Packet { src: at(ip, 0).ip(), ..other.clone() };
        case = case
            .stays(Hook::Ingress, &other, Verdict::NotTransport)
            .stays(Hook::Egress, &from(net.pod), Verdict::NotTransport)
            .stays(Hook::Egress, &from(net.pod2), Verdict::NotService);
    }
    case
}

fn contradictions() -> Case {
    let mut case = single(named(V4, Protocol::Tcp, "contradictions"), V4, Protocol::Tcp);
    let good = there(V4, Protocol::Tcp, SYN).0.build();
    // Another version, a header of 16 bytes, a length within the header, no room for TCP.
    for (at, value) in [(0, 0x65), (0, 0x44), (3, 19), (3, 39)] {
        let mut bytes = good.clone();
        // The high byte of the length is 0.
        bytes[ETHERNET + at] = value;
        case = case.bytes(Hook::Ingress, Link::Ethernet, bytes.clone(), Verdict::Unparsed, bytes);
    }
    case
}

fn extensions() -> Case {
    let mut case = single(named(V6, Protocol::Tcp, "extensions too far"), V6, Protocol::Tcp);
    let (syn, _) = there(V6, Protocol::Tcp, SYN);
    let five = (0..5).fold(syn.clone(), |packet, _| packet.extension(60, &[0; 6]));
    for (packet, verdict) in [
        (five, Verdict::Unparsed),
        (syn.clone().extension(60, &[0; 1022]), Verdict::Unparsed),
        (syn.clone().extension(51, &[0; 10]), Verdict::NotTransport),
        // Segments left.
        (syn.extension(43, &[0, 1, 0, 0, 0, 0]), Verdict::NotTransport),
    ] {
        case = case.stays(Hook::Ingress, &packet, verdict);
    }
    case
}

fn not_ip() -> Case {
    let case = single(named(V4, Protocol::Tcp, "not IP"), V4, Protocol::Tcp);
    let mut case = begun(case, V4, Protocol::Tcp);
    for ethertype in [0x0806_u16, 0x88cc, 0x0026, 0x8847] {
        let mut bytes = there(V4, Protocol::Tcp, ACK).0.build();
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        for hook in [Hook::Ingress, Hook::Egress] {
            let output = bytes.clone();
            let input = bytes.clone();
            case = case.bytes(hook, Link::Ethernet, input, Verdict::NotTransport, output);
        }
    }
    case
}
