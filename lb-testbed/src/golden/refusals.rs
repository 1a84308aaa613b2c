//! What is refused, and what its sender is told (V-3, V-6, V-12, V-13, V-a).

use lb_common::{
    abi::{AddressFlags, Scope, SetWord},
    verdict::Verdict,
};

use super::{
    Case, Hook,
    lives::{named, single, there},
};
use crate::{
    packet::{Packet, TcpFlags, Upper, checksum, protocol},
    traffic::{ACK, FIN_ACK, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, at, packet},
};

/// Clients of whose packets the BPF test run sees the family without an Ethernet header: it looks
/// for it where these have a part of their address.
const BARE: [&str; 2] = ["8.0.1.10", "fd00:10:86dd:1::a"];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            cases.extend([shapes(net, protocol), bare(net, protocol), hosts_only(net, protocol)]);
            cases.extend([undefined_port(net, protocol), unknown_ranges(net, protocol)]);
        }
        cases.extend([segments(net), first_fragment(net), unallocated(net)]);
    }
    cases
}

/// What the sender of a packet is told.
pub(super) fn answer_to(refused: &Packet) -> Packet {
    let mut answer = Packet { options: Vec::new(), extensions: Vec::new(), ..refused.clone() };
    (answer.src, answer.dst) = (refused.dst, refused.src);
    answer.macs.swap(0, 1);
    (answer.ttl, answer.tos, answer.id, answer.dont_fragment) = (64, 0, 0, true);
    let Upper::Tcp { ports: [sport, dport], flags, seq, ack, .. } = refused.upper else {
        return unreachable(answer, refused);
    };
    let (seq, ack, set) = if flags.0 & TcpFlags::ACK.0 != 0 {
        (ack, 0, TcpFlags::RST)
    } else {
        let marks = [TcpFlags::SYN, TcpFlags::FIN].iter().filter(|mark| flags.0 & mark.0 != 0);
        let length = u32::try_from(refused.payload.len() + marks.count()).unwrap_or_default();
        (0, seq.wrapping_add(length), TcpFlags::RST | TcpFlags::ACK)
    };
    // By hand: no window.
    let mut header: Vec<u8> = [dport, sport].into_iter().flat_map(u16::to_be_bytes).collect();
    header.extend([seq, ack].into_iter().flat_map(u32::to_be_bytes));
    header.extend([0x50, set.0, 0, 0, 0, 0, 0, 0]);
    let whole = checksum::with_pseudo_header(answer.src, answer.dst, protocol::TCP, &header);
    header[16..18].copy_from_slice(&checksum::internet(&whole).to_be_bytes());
    answer.other(protocol::TCP).payload(&header)
}

fn unreachable(answer: Packet, refused: &Packet) -> Packet {
    let (kind, code, length) = if refused.src.is_ipv4() { (3, 3, 28) } else { (1, 4, 48) };
    let quoted = Packet { options: Vec::new(), extensions: Vec::new(), ..refused.clone() };
    answer.icmp_error(kind, code, [0; 4], &quoted, length)
}

/// Service port 1 without a backend.
fn empty(case: Case, net: Net, protocol: Protocol) -> Case {
    single(case, net, protocol).change(|tables| tables.set_backends(1, Scope::Cluster, &[]))
}

/// Options and extension headers are left out; short packets grow, long ones shrink.
fn shapes(net: Net, protocol: Protocol) -> Case {
    let mut case = empty(named(net, protocol, "refused, in every shape"), net, protocol);
    let (opening, _) = there(net, protocol, SYN);
    let opening = opening.ttl(3);
    let mut shapes = vec![
        opening.clone(),
        opening.clone().payload(&[]),
        opening.clone().payload(&[7; 1400]),
        Packet { tos: 0xb9, id: 77, ..opening.clone() },
    ];
    if opening.src.is_ipv4() {
        shapes.push(Packet { dont_fragment: true, ..opening.clone() });
        shapes.extend([4, 40].map(|length| opening.clone().options(&vec![1; length])));
    } else {
        shapes.push(opening.clone().extension(60, &[0; 6]));
        shapes.push(opening.clone().extension(0, &[0; 14]).extension(43, &[0; 6]));
    }
    if protocol == Protocol::Tcp {
        shapes.push(opening.clone().tcp_options(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4]));
    }
    for shape in shapes {
        let verdict = Verdict::NoBackend;
        // What Service it was does not matter, once it is refused.
        case = case.refused(Hook::Ingress, &shape, verdict, &answer_to(&shape));
    }
    // V-4: silence, so that somebody else may answer.
    case.change(|tables| tables.set_empty(1, Scope::Cluster, SetWord::DROP)).stays(
        Hook::Ingress,
        &opening,
        Verdict::NoLocalBackend,
    )
}

fn bare(net: Net, protocol: Protocol) -> Case {
    let case = empty(named(net, protocol, "refused, no Ethernet header"), net, protocol);
    let client = BARE[usize::from(net.client.contains(':'))];
    let refused = packet(protocol, at(client, SPORT), at(net.vip, PORT), SYN).without_ethernet();
    let case = case.refused(Hook::Ingress, &refused, Verdict::NoBackend, &answer_to(&refused));
    // The same on its way out, to a port that the Service does not have.
    let case = case.change(move |tables| {
        tables.set_address(at(net.vip, 0).ip(), AddressFlags::CLUSTER_IP);
    });
    let refused =
        packet(protocol, at(client, SPORT), at(net.vip, PORT + 1), SYN).without_ethernet();
    case.refused(Hook::Uplink, &refused, Verdict::UndefinedPort, &answer_to(&refused))
}

/// Nothing is told to many, to nobody, or about what came to many.
fn hosts_only(net: Net, protocol: Protocol) -> Case {
    let mut case = empty(named(net, protocol, "refused, and nobody to tell"), net, protocol);
    let sources: &[&str] = if net.client.contains(':') {
        &["ff02::1", "::", "::1"]
    } else {
        &["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1"]
    };
    for source in sources {
        let refused = packet(protocol, at(source, SPORT), at(net.vip, PORT), SYN);
        case = case.unanswered(Hook::Ingress, &refused, Verdict::NoBackend);
    }
    let (opening, _) = there(net, protocol, SYN);
    for group in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
        let refused = Packet { macs: [group, opening.macs[1]], ..opening.clone() };
        case = case.unanswered(Hook::Ingress, &refused, Verdict::NoBackend);
    }
    case.unanswered(Hook::Ingress, &opening.vlan(5), Verdict::NoBackend)
}

/// Case 70, RFC 9293 section 3.5.2: each gets the reset that its sender believes.
fn segments(net: Net) -> Case {
    let mut case = single(named(net, Protocol::Tcp, "stray segments"), net, Protocol::Tcp);
    let fin = TcpFlags::FIN;
    for flags in [ACK, FIN_ACK, SYN_ACK, fin, TcpFlags::PSH, TcpFlags(0), SYN | fin | ACK] {
        let (stray, _) = there(net, Protocol::Tcp, flags);
        case = case.refused(Hook::Ingress, &stray, Verdict::NoFlow, &answer_to(&stray));
    }
    for flags in [RST, RST | ACK] {
        let (stray, _) = there(net, Protocol::Tcp, flags);
        case = case.unanswered(Hook::Ingress, &stray, Verdict::NoFlow);
    }
    case
}

fn first_fragment(net: Net) -> Case {
    let case = empty(named(net, Protocol::Udp, "a refused fragment"), net, Protocol::Udp);
    let (datagram, _) = there(net, Protocol::Udp, SYN);
    let datagram = datagram.payload(&[7; 200]);
    let first = datagram.fragments(80).swap_remove(0);
    // The quote says of what datagram it is a part, where the IP header itself does.
    let answer = answer_to(&datagram);
    let Upper::Icmp { kind, code, rest } = answer.upper else { return case };
    let header = if datagram.src.is_ipv4() { 20 } else { 40 };
    let mut quote: Vec<u8> = first[14..14 + header].to_vec();
    let transport = if datagram.src.is_ipv4() {
        14 + header
    } else {
        // Without the fragment header.
        let length = u16::from_be_bytes([quote[4], quote[5]]) - 8;
        quote[4..6].copy_from_slice(&length.to_be_bytes());
        quote[6] = protocol::UDP;
        14 + header + 8
    };
    quote.extend(&first[transport..transport + 8]);
    let answer = answer.icmp(kind, code, rest).payload(&quote);
    case.refused_bytes(Hook::Ingress, first, Verdict::NoBackend, answer.build())
}

fn echo(net: Net, to: &str) -> Packet {
    let packet = Packet::new(net.client, to);
    let kind = if packet.src.is_ipv4() { 8 } else { 128 };
    packet.icmp(kind, 0, [0, 1, 0, 1]).payload(b"ping")
}

/// V-12 and V-i: of what leaves the node, a clusterIP is nobody's; the rest is.
fn undefined_port(net: Net, protocol: Protocol) -> Case {
    let (prefix, client) = (if net.vip.contains(':') { 112 } else { 16 }, at(net.client, SPORT));
    let case = single(named(net, protocol, "a port that no Service has"), net, protocol);
    let mut case = case.change(move |tables| {
        tables.set_address(at(net.vip, 0).ip(), AddressFlags::CLUSTER_IP);
        tables.set_address(at(net.vip2, 0).ip(), AddressFlags::VIP);
        tables.add_service_cidr(at(net.pod, 0).ip(), prefix);
        tables.add_service_cidr(at(net.vip, 0).ip(), prefix);
    });
    for port in [PORT, PORT + 1] {
        let refused = packet(protocol, client, at(net.vip, port), SYN);
        let answer = answer_to(&refused);
        case = case.refused(Hook::Uplink, &refused, Verdict::UndefinedPort, &answer);
    }
    for other in [at(net.vip2, PORT), at(net.foreign, PORT)] {
        let passes = packet(protocol, client, other, SYN);
        case = case.stays(Hook::Uplink, &passes, Verdict::NotService);
    }
    // What Services do not know is not theirs to refuse; and elsewhere nothing is.
    let elsewhere = packet(protocol, client, at(net.vip, PORT + 1), SYN);
    case.stays(Hook::Uplink, &echo(net, net.vip), Verdict::NotService)
        .stays(Hook::Egress, &elsewhere, Verdict::NotService)
        .stays(Hook::Ingress, &elsewhere, Verdict::NotService)
}

/// Where no `ServiceCIDR` is known, clusterIPs are.
fn unknown_ranges(net: Net, protocol: Protocol) -> Case {
    let case =
        single(named(net, protocol, "a port that no Service has, ranges unknown"), net, protocol);
    let case = case.change(move |tables| {
        tables.set_address(at(net.vip, 0).ip(), AddressFlags::CLUSTER_IP);
    });
    let client = at(net.client, SPORT);
    let refused = packet(protocol, client, at(net.vip, PORT + 1), SYN);
    let passes = packet(protocol, client, at(net.vip2, PORT), SYN);
    case.refused(Hook::Uplink, &refused, Verdict::UndefinedPort, &answer_to(&refused)).stays(
        Hook::Uplink,
        &passes,
        Verdict::NotService,
    )
}

/// V-13: dropped without a word, whatever it is.
fn unallocated(net: Net) -> Case {
    let prefix = if net.vip.contains(':') { 112 } else { 16 };
    let mut case =
        single(named(net, Protocol::Tcp, "an address of no Service"), net, Protocol::Tcp);
    case = case.change(move |tables| {
        tables.set_address(at(net.vip, 0).ip(), AddressFlags::CLUSTER_IP);
        tables.add_service_cidr(at(net.vip, 0).ip(), prefix);
    });
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let dropped = packet(protocol, at(net.client, SPORT), at(net.vip2, PORT), SYN);
        case = case.stays(Hook::Uplink, &dropped, Verdict::Unallocated);
    }
    case = case.stays(Hook::Uplink, &echo(net, net.vip2), Verdict::Unallocated);
    // Its first address is in the range, the one before is not.
    let (first, before) = if prefix == 16 {
        ("10.96.0.0", "10.95.255.255")
    } else {
        ("fd00:10:96::", "fd00:10:95::ffff")
    };
    case.stays(Hook::Uplink, &echo(net, first), Verdict::Unallocated).stays(
        Hook::Uplink,
        &echo(net, before),
        Verdict::NotService,
    )
}
