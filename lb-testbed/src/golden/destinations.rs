//! Destinations that are no clusterIP: NodePorts at addresses of the node, external addresses under
//! a policy of their own.

use lb_common::{
    abi::{AddressFlags, Counter, FactsFlags, FactsWord, FrontendFlags, Scope, SetWord},
    verdict::Verdict,
};

use super::{Case, Hook, lives::named, refusals::answer_to};
use crate::traffic::{
    ACK, NETS, Net, PORT, Protocol, SPORT, SYN, SYN_ACK, TARGET, at, packet, readdressed,
};

const NODE_PORT: u16 = 30_080;

/// Addresses of a family that packets to a node may have: its own, its loopback one, and the one
/// under which NodePorts are stored.
struct Node {
    own: &'static str,
    loopback: &'static str,
    unspecified: &'static str,
}

fn node(net: Net) -> Node {
    if net.vip.contains(':') {
        Node { own: "fd00:172:18::10", loopback: "::1", unspecified: "::" }
    } else {
        Node { own: "172.18.0.10", loopback: "127.0.0.1", unspecified: "0.0.0.0" }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            cases.extend([node_port(net, protocol), external(net, protocol)]);
        }
    }
    cases
}

/// A Service with a NodePort and an external address beside its clusterIP. Nobody serves it here.
fn exposed(what: &str, net: Net, protocol: Protocol) -> Case {
    named(net, protocol, what).change(move |tables| {
        let (number, node) = (protocol.number(), node(net));
        let id = tables.add_service_port(number, &[at(net.vip, PORT)], &[at(net.pod, TARGET)]);
        let external = [at(node.unspecified, NODE_PORT), at(net.foreign, PORT)];
        for frontend in external {
            tables.add_frontend_with(id, number, frontend, FrontendFlags::EXTERNAL);
        }
        for (address, flags) in
            [(node.own, AddressFlags::NODE), (node.loopback, AddressFlags::LOOPBACK)]
        {
            tables.set_address(at(address, 0).ip(), flags);
        }
        let flags = FactsFlags::PRESENT | FactsFlags::INTERNAL_LOCAL | FactsFlags::EXTERNAL_LOCAL;
        tables.set_facts(id, FactsWord::new(flags, 0));
        tables.set_empty(id, Scope::Local, SetWord::DROP);
    })
}

/// A flow to the backend by this destination, and back.
fn reaches(case: Case, net: Net, protocol: Protocol, to: (&str, u16)) -> Case {
    let (client, pod, to) = (at(net.client, SPORT), at(net.pod, TARGET), at(to.0, to.1));
    let there = |flags| {
        let from = packet(protocol, client, to, flags);
        let translated = readdressed(&from, client, pod);
        (from, translated)
    };
    let answer = packet(protocol, pod, client, SYN_ACK);
    let ((first, first_there), (next, next_there)) = (there(SYN), there(ACK));
    case.becomes(Hook::Ingress, &first, &first_there)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &answer, &readdressed(&answer, to, client))
        .becomes(Hook::Ingress, &next, &next_there)
}

/// C-2, V-9, V-11, M-4, and CVE-2020-8558 for packets.
fn node_port(net: Net, protocol: Protocol) -> Case {
    let node = node(net);
    let mut case = exposed("a NodePort at the node's own address only", net, protocol);
    for (address, port) in [
        (node.loopback, NODE_PORT),
        (net.foreign, NODE_PORT),
        (net.vip, NODE_PORT),
        (node.own, NODE_PORT + 1),
    ] {
        let other = packet(protocol, at(net.client, SPORT), at(address, port), SYN);
        case = case.stays(Hook::Ingress, &other, Verdict::NotService);
    }
    case = reaches(case, net, protocol, (node.own, NODE_PORT));
    // The node loses the address; what goes on goes on, and nothing new begins.
    let again = packet(protocol, at(net.client, SPORT + 1), at(node.own, NODE_PORT), SYN);
    case.change(move |tables| tables.set_address(at(node.own, 0).ip(), 0)).stays(
        Hook::Ingress,
        &again,
        Verdict::NotService,
    )
}

/// T-13, V-4, V-9, V-c: the clusterIP's policy finds nobody here, the external destination is not
/// bound by it.
fn external(net: Net, protocol: Protocol) -> Case {
    let inside = packet(protocol, at(net.client, SPORT), at(net.vip, PORT), SYN);
    let case = exposed("an external address under Local policies", net, protocol).stays(
        Hook::Ingress,
        &inside,
        Verdict::NoLocalBackend,
    );
    let case = reaches(case, net, protocol, (net.foreign, PORT));
    let refused = packet(protocol, at(net.client, SPORT + 1), at(net.foreign, PORT), SYN);
    let answer = answer_to(&refused);
    case.change(|tables| tables.set_empty(1, Scope::Cluster, SetWord::REJECT)).refused(
        Hook::Ingress,
        &refused,
        Verdict::NoBackend,
        &answer,
    )
}
