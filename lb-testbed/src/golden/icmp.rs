//! ICMP about flows, and pings of VIPs.

use lb_common::{
    abi::{AddressFlags, Counter},
    verdict::Verdict,
};

use super::{
    Case, Hook,
    lives::{back, begun, goes_on, named, single, there},
};
use crate::{
    packet::Packet,
    traffic::{ACK, NETS, Net, PORT, Protocol, SPORT, TARGET, at, packet, readdressed},
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            cases.extend([
                from_a_router(net, protocol),
                from_the_backend(net, protocol),
                from_the_client(net, protocol),
                about_others(net, protocol),
                cut_short(net, protocol),
                about_a_hairpin(net, protocol),
            ]);
        }
        cases.extend([pings(net), shaped(net)]);
    }
    cases
}

fn is_v4(net: Net) -> bool {
    !net.vip.contains(':')
}

/// Type and code of "packet too big", with the MTU where each family has it.
fn too_big(net: Net) -> (u8, u8, [u8; 4]) {
    if is_v4(net) { (3, 4, [0, 0, 0x05, 0x14]) } else { (2, 0, [0, 0, 0x05, 0x14]) }
}

fn port_unreachable(net: Net) -> (u8, u8, [u8; 4]) {
    if is_v4(net) { (3, 3, [0; 4]) } else { (1, 4, [0; 4]) }
}

fn error(
    from: &str,
    to: &str,
    (kind, code, rest): (u8, u8, [u8; 4]),
    about: &Packet,
    bytes: usize,
) -> Packet {
    Packet::new(from, to).icmp_error(kind, code, rest, about, bytes)
}

/// The IP header and the first `more` bytes behind it.
fn quote(net: Net, more: usize) -> usize {
    more + if is_v4(net) { 20 } else { 40 }
}

/// A router on the way to the backend asks the client for smaller packets: path MTU discovery.
fn from_a_router(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "a router wants smaller packets"), net, protocol);
    let mut case = begun(case, net, protocol);
    let (sent, translated) = there(net, protocol, ACK);
    for more in [8, 20, 47] {
        case = case
            .becomes(
                Hook::Egress,
                &error(net.foreign, net.client, too_big(net), &translated, quote(net, more)),
                &error(net.foreign, net.client, too_big(net), &sent, quote(net, more)),
            )
            .counted(Counter::IcmpTranslated);
    }
    goes_on(case, net, protocol)
}

/// The backend itself sends the error: to the client it comes from the VIP.
fn from_the_backend(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "an error of the backend"), net, protocol);
    let case = begun(case, net, protocol);
    let (sent, translated) = there(net, protocol, ACK);
    let unreachable = port_unreachable(net);
    case.becomes(
        Hook::Egress,
        &error(net.pod, net.client, unreachable, &translated, quote(net, 8)),
        &error(net.vip, net.client, unreachable, &sent, quote(net, 8)),
    )
    .counted(Counter::IcmpTranslated)
}

/// The client complains about an answer, which to it came from the VIP.
fn from_the_client(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "an error of the client"), net, protocol);
    let case = begun(case, net, protocol);
    let (answer, seen) = back(net, protocol, ACK);
    let unreachable = port_unreachable(net);
    case.becomes(
        Hook::Ingress,
        &error(net.client, net.vip, unreachable, &seen, quote(net, 8)),
        &error(net.client, net.pod, unreachable, &answer, quote(net, 8)),
    )
    .counted(Counter::IcmpTranslated)
}

/// Errors about flows that are not known, and other messages, stay as they are.
fn about_others(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "errors about other packets"), net, protocol);
    let case = begun(case, net, protocol);
    let other = packet(protocol, at(net.client, SPORT + 1), at(net.pod, TARGET), ACK);
    let ((_, translated), (_, seen)) = (there(net, protocol, ACK), back(net, protocol, ACK));
    let other_vip = at(net.vip2, 0).ip();
    let case = case.change(move |tables| tables.set_address(other_vip, AddressFlags::CLUSTER_IP));
    let tunnel = Packet::new(net.client, net.pod).other(47).payload(&[0; 40]);
    let to_big = too_big(net);
    let redirect = if is_v4(net) { (5, 1, [10, 0, 0, 1]) } else { (137, 0, [0; 4]) };
    case.stays(
        Hook::Egress,
        &error(net.foreign, net.client, to_big, &other, quote(net, 8)),
        Verdict::NotService,
    )
    .stays(
        Hook::Egress,
        &error(net.foreign, net.client, to_big, &tunnel, quote(net, 8)),
        Verdict::NotTransport,
    )
    // To somebody who did not send what is quoted: nobody's error is made of a forged one.
    .stays(
        Hook::Egress,
        &error(net.pod, net.foreign, to_big, &translated, quote(net, 8)),
        Verdict::NotService,
    )
    .stays(
        Hook::Ingress,
        &error(net.client, net.vip2, to_big, &seen, quote(net, 8)),
        Verdict::NotService,
    )
    .stays(
        Hook::Egress,
        &error(net.foreign, net.client, redirect, &other, quote(net, 8)),
        Verdict::NotTransport,
    )
}

/// A quote that ends before the ports says nothing.
fn cut_short(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "a quote without ports"), net, protocol);
    let mut case = begun(case, net, protocol);
    let (_, translated) = there(net, protocol, ACK);
    for more in [0, 3] {
        case = case.stays(
            Hook::Egress,
            &error(net.foreign, net.client, too_big(net), &translated, quote(net, more)),
            Verdict::NotTransport,
        );
    }
    case
}

/// Client and backend are one pod: the error goes back to it, too.
fn about_a_hairpin(net: Net, protocol: Protocol) -> Case {
    let (client, vip) = (at(net.client, SPORT), at(net.vip, PORT));
    let backend = at(net.client, TARGET);
    let sent = packet(protocol, client, vip, crate::traffic::SYN);
    let translated = readdressed(&sent, at(net.vip, SPORT), backend);
    let unreachable = port_unreachable(net);
    named(net, protocol, "an error about a hairpin")
        .change(move |tables| {
            tables.add_service_port(protocol.number(), &[vip], &[backend]);
        })
        .reflected(&sent, &turned(&translated))
        .counted(Counter::FlowCreated)
        .reflected(
            &error(net.client, net.vip, unreachable, &translated, quote(net, 8)),
            &turned(&error(net.vip, net.client, unreachable, &sent, quote(net, 8))),
        )
        .counted(Counter::IcmpTranslated)
}

/// The same packet with its Ethernet addresses swapped.
fn turned(packet: &Packet) -> Packet {
    let mut other = packet.clone();
    other.macs.swap(0, 1);
    other
}

fn pings(net: Net) -> Case {
    let (request, reply) = if is_v4(net) { (8, 0) } else { (128, 129) };
    let ping = |from: &str, to: &str, kind| {
        Packet::new(from, to).icmp(kind, 0, [0, 7, 0, 1]).payload(b"payload of a ping")
    };
    let vip = at(net.vip, 0).ip();
    let node = at(net.vip2, 0).ip();
    named(net, Protocol::Udp, "pings of a VIP")
        .change(move |tables| {
            tables.set_address(vip, AddressFlags::CLUSTER_IP);
            // A load balancer's address that is the node's as well (C-4).
            tables.set_address(node, AddressFlags::VIP | AddressFlags::NODE);
        })
        .reflected(&ping(net.client, net.vip, request), &turned(&ping(net.vip, net.client, reply)))
        .counted(Counter::EchoAnswered)
        .stays(Hook::Ingress, &ping(net.client, net.vip2, request), Verdict::NotService)
        .stays(Hook::Ingress, &ping(net.client, net.vip, reply), Verdict::NotTransport)
        .stays(Hook::Ingress, &ping(net.client, net.foreign, request), Verdict::NotService)
}

/// Tags before the error, and options in its header and in the quoted one.
fn shaped(net: Net) -> Case {
    let case = single(named(net, Protocol::Udp, "errors of other shapes"), net, Protocol::Udp);
    let mut case = begun(case, net, Protocol::Udp);
    let (sent, translated) = there(net, Protocol::Udp, ACK);
    let both = |shape: &dyn Fn(Packet) -> Packet, inner: &dyn Fn(Packet) -> Packet, more| {
        [&translated, &sent].map(|about| {
            let about = inner(about.clone());
            shape(error(net.foreign, net.client, too_big(net), &about, quote(net, more)))
        })
    };
    let options = |packet: Packet| if is_v4(net) { packet.options(&[1; 8]) } else { packet };
    let same = |packet: Packet| packet;
    let inner = if is_v4(net) { 16 } else { 8 };
    for [from, to] in [
        both(&|packet| packet.vlan(5), &same, 8),
        both(&options, &same, 8),
        both(&same, &options, inner),
        both(&|packet| options(packet).vlan(5).vlan(6), &options, inner),
    ] {
        case = case.becomes(Hook::Egress, &from, &to).counted(Counter::IcmpTranslated);
    }
    case
}
