//! Datagrams in pieces.

use lb_common::{
    abi::{AddressFlags, Counter},
    verdict::Verdict,
};

use super::{
    Case, Hook,
    lives::{back, begun, goes_on, named, single, there},
};
use crate::{
    packet::{Link, Packet},
    traffic::{ACK, NETS, Net, PORT, Protocol, SPORT, SYN, TARGET, at, packet, readdressed},
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            cases.extend([
                in_order(net, protocol),
                backwards(net, protocol),
                foreign(net, protocol),
            ]);
        }
        cases.extend([first_of_a_flow(net), behind_an_option(net)]);
        cases.extend([hairpin(net)]);
    }
    cases
}

fn large(packet: &Packet) -> Packet {
    packet.clone().payload(&[7; 200])
}

/// Every piece goes where the first one went, in both directions.
fn in_order(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "fragments in order"), net, protocol);
    let mut case = begun(case, net, protocol);
    for (hook, (from, to)) in [
        (Hook::Ingress, there(net, protocol, ACK)),
        (Hook::Egress, back(net, protocol, ACK)),
        (Hook::Ingress, there(net, protocol, ACK)),
    ] {
        for (input, output) in pieces(&large(&from), &large(&to)) {
            case = case.bytes(hook, Link::Ethernet, input, Verdict::Translated, output);
        }
    }
    goes_on(case, net, protocol)
}

fn pieces(from: &Packet, to: &Packet) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + use<> {
    from.fragments(80).into_iter().zip(to.fragments(80))
}

/// Pieces before the first one: to a VIP they are dropped and counted, elsewhere they pass.
fn backwards(net: Net, protocol: Protocol) -> Case {
    let (vip, vip2) = (at(net.vip, 0).ip(), at(net.vip2, 0).ip());
    let case = single(named(net, protocol, "fragments before the first"), net, protocol);
    let mut case = case.change(move |tables| {
        tables.set_address(vip, AddressFlags::CLUSTER_IP);
        tables.set_address(vip2, AddressFlags::NODE);
    });
    case = begun(case, net, protocol);
    let (from, to) = there(net, protocol, ACK);
    let mut parts: Vec<_> = pieces(&large(&from), &large(&to)).collect();
    parts.reverse();
    let last = parts.len() - 1;
    for (index, (input, output)) in parts.into_iter().enumerate() {
        let (verdict, output) = if index == last {
            (Verdict::Translated, output)
        } else {
            (Verdict::EarlyFragment, input.clone())
        };
        case = case.bytes(Hook::Ingress, Link::Ethernet, input, verdict, output);
    }
    // What the backend sends may be no answer, and the node's own address is the node's business.
    let (answer, _) = back(net, protocol, ACK);
    let node = packet(protocol, at(net.client, SPORT), at(net.vip2, PORT), ACK);
    for (hook, other) in [(Hook::Egress, answer), (Hook::Ingress, node)] {
        for piece in large(&other).fragments(80).into_iter().skip(1) {
            case = case.bytes(hook, Link::Ethernet, piece.clone(), Verdict::Fragment, piece);
        }
    }
    case
}

/// Datagrams of nobody's.
fn foreign(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "foreign fragments"), net, protocol);
    let mut case = begun(case, net, protocol);
    let other = packet(protocol, at(net.client, SPORT), at(net.foreign, PORT), ACK);
    for piece in large(&other).fragments(80) {
        case = case.bytes(Hook::Ingress, Link::Ethernet, piece.clone(), Verdict::NotService, piece);
    }
    case
}

/// A flow that begins with a datagram in pieces, as a large request by UDP.
fn first_of_a_flow(net: Net) -> Case {
    let case = named(net, Protocol::Udp, "a flow begins in fragments");
    let mut case = single(case, net, Protocol::Udp);
    let (from, to) = there(net, Protocol::Udp, SYN);
    for (index, (input, output)) in pieces(&large(&from), &large(&to)).enumerate() {
        case = case.bytes(Hook::Ingress, Link::Ethernet, input, Verdict::Translated, output);
        if index == 0 {
            case = case.counted(Counter::FlowCreated);
        }
    }
    goes_on(case, net, Protocol::Udp)
}

/// IPv4 options, or an extension header before that of the fragment.
fn behind_an_option(net: Net) -> Case {
    let shape = |packet: Packet| {
        if packet.src.is_ipv4() { packet.options(&[1; 8]) } else { packet.extension(60, &[0; 6]) }
    };
    let case = named(net, Protocol::Udp, "fragments behind options");
    let mut case = begun(single(case, net, Protocol::Udp), net, Protocol::Udp);
    let (from, to) = there(net, Protocol::Udp, ACK);
    for (input, output) in pieces(&shape(large(&from)), &shape(large(&to))) {
        case = case.bytes(Hook::Ingress, Link::Ethernet, input, Verdict::Translated, output);
    }
    case
}

/// A pod sends a large datagram to itself.
fn hairpin(net: Net) -> Case {
    let (client, vip) = (at(net.client, SPORT), at(net.vip, PORT));
    let backend = at(net.client, TARGET);
    let from = large(&packet(Protocol::Udp, client, vip, SYN));
    let mut to = readdressed(&from, at(net.vip, SPORT), backend);
    to.macs.swap(0, 1);
    let mut case = named(net, Protocol::Udp, "a hairpin in fragments").change(move |tables| {
        tables.add_service_port(17, &[vip], &[backend]);
    });
    for (index, (input, output)) in pieces(&from, &to).enumerate() {
        case = case.bytes(Hook::Ingress, Link::Ethernet, input, Verdict::Reflected, output);
        if index == 0 {
            case = case.counted(Counter::FlowCreated);
        }
    }
    case
}
