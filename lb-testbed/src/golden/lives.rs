//! Flows from their first packet to their last. One backend in each set, because the kernel's
//! choice among several is random.

use lb_common::{
    abi::{BackendFlags, Counter, Scope, SetWord},
    verdict::Verdict,
};

use super::{Case, Hook, refusals::answer_to};
use crate::{
    packet::{Packet, TcpFlags},
    traffic::{
        ACK, FIN_ACK, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, at, packet,
        readdressed,
    },
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for protocol in Protocol::BOTH {
            cases.extend([
                whole_life(net, protocol),
                hairpin(net, protocol),
                without_ethernet(net, protocol),
                hairpin_without_ethernet(net, protocol),
                foreign(net, protocol),
                no_backend(net, protocol),
                deleted_service(net, protocol),
                moved_backend(net, protocol),
            ]);
        }
        cases.extend([
            middle(net),
            ended(net, Hook::Ingress, FIN_ACK),
            ended(net, Hook::Egress, FIN_ACK),
            ended(net, Hook::Ingress, RST),
            ended(net, Hook::Egress, RST),
            refused(net),
            false_reset(net),
            repeated_syn(net),
        ]);
    }
    cases
}

/// Names a case.
pub(super) fn named(net: Net, protocol: Protocol, what: &str) -> Case {
    let family = if net.vip.contains(':') { "IPv6" } else { "IPv4" };
    Case::new(format!("{protocol:?} over {family}: {what}"))
}

/// Service port 1: one VIP, one backend.
pub(super) fn single(case: Case, net: Net, protocol: Protocol) -> Case {
    case.change(move |tables| {
        tables.add_service_port(protocol.number(), &[at(net.vip, PORT)], &[at(net.pod, TARGET)]);
    })
}

/// A client's packet to the VIP, and what the pod gets.
pub(super) fn there(net: Net, protocol: Protocol, flags: TcpFlags) -> (Packet, Packet) {
    let from = packet(protocol, at(net.client, SPORT), at(net.vip, PORT), flags);
    let to = readdressed(&from, at(net.client, SPORT), at(net.pod, TARGET));
    (from, to)
}

/// The pod's answer, and what the client gets.
pub(super) fn back(net: Net, protocol: Protocol, flags: TcpFlags) -> (Packet, Packet) {
    let from = packet(protocol, at(net.pod, TARGET), at(net.client, SPORT), flags);
    let to = readdressed(&from, at(net.vip, PORT), at(net.client, SPORT));
    (from, to)
}

/// The first three packets of a flow.
pub(super) fn begun(case: Case, net: Net, protocol: Protocol) -> Case {
    let (first, first_there) = there(net, protocol, SYN);
    let (second, second_back) = back(net, protocol, SYN_ACK);
    let (third, third_there) = there(net, protocol, ACK);
    case.becomes(Hook::Ingress, &first, &first_there)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &second, &second_back)
        .becomes(Hook::Ingress, &third, &third_there)
}

/// A packet each way of an established flow.
pub(super) fn goes_on(case: Case, net: Net, protocol: Protocol) -> Case {
    let (from, to) = there(net, protocol, ACK);
    let (answer, answer_back) = back(net, protocol, ACK);
    case.becomes(Hook::Ingress, &from, &to)
        .established()
        .becomes(Hook::Egress, &answer, &answer_back)
        .established()
}

fn whole_life(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "a whole life"), net, protocol);
    let case = begun(case, net, protocol);
    goes_on(goes_on(case, net, protocol), net, protocol)
}

fn hairpin(net: Net, protocol: Protocol) -> Case {
    reflections(named(net, protocol, "a pod reaches itself"), net, protocol, false)
}

fn hairpin_without_ethernet(net: Net, protocol: Protocol) -> Case {
    let case = named(net, protocol, "a pod reaches itself, no Ethernet header");
    reflections(case, net, protocol, true)
}

fn reflections(case: Case, net: Net, protocol: Protocol, bare: bool) -> Case {
    let vip = at(net.vip, PORT);
    let (client, server) = (at(net.client, SPORT), at(net.client, TARGET));
    let back_to = at(net.vip, SPORT);
    let mut case = case.change(move |tables| {
        tables.add_service_port(protocol.number(), &[vip], &[server]);
    });
    for (index, flags) in [SYN, SYN_ACK, ACK, ACK, ACK, ACK].into_iter().enumerate() {
        let from_client = index % 2 == 0;
        let (mut from, mut to) = if from_client {
            let from = packet(protocol, client, vip, flags);
            (from.clone(), readdressed(&from, back_to, server))
        } else {
            let from = packet(protocol, server, back_to, flags);
            (from.clone(), readdressed(&from, vip, client))
        };
        if bare {
            (from, to) = (from.without_ethernet(), to.without_ethernet());
        } else {
            to.macs.swap(0, 1);
        }
        case = case.reflected(&from, &to);
        if index == 0 {
            case = case.counted(Counter::FlowCreated);
        } else if index > 2 {
            case = case.established();
        }
    }
    case
}

fn without_ethernet(net: Net, protocol: Protocol) -> Case {
    let mut case = single(named(net, protocol, "no Ethernet header"), net, protocol);
    for (index, flags) in [SYN, SYN_ACK, ACK, ACK, ACK].into_iter().enumerate() {
        let from_client = index % 2 == 0;
        let (from, to) =
            if from_client { there(net, protocol, flags) } else { back(net, protocol, flags) };
        let hook = if from_client { Hook::Ingress } else { Hook::Egress };
        case = case.becomes(hook, &from.without_ethernet(), &to.without_ethernet());
        if index == 0 {
            case = case.counted(Counter::FlowCreated);
        } else if index > 2 {
            case = case.established();
        }
    }
    case
}

fn foreign(net: Net, protocol: Protocol) -> Case {
    let (client, foreign) = (at(net.client, SPORT), at(net.foreign, 443));
    let mut case = single(named(net, protocol, "foreign traffic"), net, protocol);
    // Where no flow was made, and where one was.
    for round in 0..2 {
        for (from, to) in [(client, foreign), (foreign, client)] {
            for flags in [SYN, ACK] {
                let other = packet(protocol, from, to, flags);
                case = case.stays(Hook::Ingress, &other, Verdict::NotService).stays(
                    Hook::Egress,
                    &other,
                    Verdict::NotService,
                );
            }
        }
        let other_port = packet(protocol, client, at(net.vip, PORT + 1), SYN);
        case = case.stays(Hook::Ingress, &other_port, Verdict::NotService);
        if round == 0 {
            case = begun(case, net, protocol);
        }
    }
    case
}

fn no_backend(net: Net, protocol: Protocol) -> Case {
    let (opening, _) = there(net, protocol, SYN);
    single(named(net, protocol, "no backend"), net, protocol)
        .change(|tables| tables.set_backends(1, Scope::Cluster, &[]))
        .refused(Hook::Ingress, &opening, Verdict::NoBackend, &answer_to(&opening))
        .change(|tables| tables.set_empty(1, Scope::Cluster, SetWord::DROP))
        .stays(Hook::Ingress, &opening, Verdict::NoLocalBackend)
}

/// F-1 and U-7: TCP goes on, UDP ends.
fn deleted_service(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "its Service is deleted"), net, protocol);
    let case = begun(case, net, protocol).change(|tables| tables.delete_service_port(1));
    if protocol == Protocol::Tcp {
        let (opening, _) = there(net, protocol, SYN);
        return goes_on(case, net, protocol).stays(Hook::Ingress, &opening, Verdict::NotService);
    }
    let (next, _) = there(net, protocol, ACK);
    case.stays(Hook::Ingress, &next, Verdict::NotService).counted(Counter::FlowMoved)
}

/// F-1 and U-2: TCP stays with its backend until it begins anew, UDP moves.
fn moved_backend(net: Net, protocol: Protocol) -> Case {
    let case = single(named(net, protocol, "another backend takes over"), net, protocol);
    let case = begun(case, net, protocol).change(move |tables| {
        let new = tables.add_backend(1, at(net.pod2, TARGET));
        tables.set_backends(1, Scope::Cluster, &[new]);
    });
    // Out of the set, and still serving.
    let case = goes_on(case, net, protocol)
        .change(|tables| tables.clear_flags(1, BackendFlags::PRESENT | BackendFlags::SERVING));
    let other = |flags| {
        let (from, _) = there(net, protocol, flags);
        let to = readdressed(&from, at(net.client, SPORT), at(net.pod2, TARGET));
        (from, to)
    };
    let answer = packet(protocol, at(net.pod2, TARGET), at(net.client, SPORT), SYN_ACK);
    let answer_back = readdressed(&answer, at(net.vip, PORT), at(net.client, SPORT));
    if protocol == Protocol::Tcp {
        let (opening, opening_there) = other(SYN);
        return goes_on(case, net, protocol)
            .becomes(Hook::Ingress, &opening, &opening_there)
            .counted(Counter::FlowCreated)
            .becomes(Hook::Egress, &answer, &answer_back);
    }
    let (late, late_back) = back(net, protocol, ACK);
    let (next, next_there) = other(ACK);
    case.becomes(Hook::Ingress, &next, &next_there)
        .counted(Counter::FlowMoved)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &answer, &answer_back)
        .established()
        .becomes(Hook::Egress, &late, &late_back)
}

fn middle(net: Net) -> Case {
    let mut case = single(named(net, Protocol::Tcp, "no record"), net, Protocol::Tcp);
    for flags in [ACK, FIN_ACK, SYN_ACK] {
        let (stray, _) = there(net, Protocol::Tcp, flags);
        case = case.refused(Hook::Ingress, &stray, Verdict::NoFlow, &answer_to(&stray));
    }
    let (answer, _) = back(net, Protocol::Tcp, ACK);
    case.stays(Hook::Egress, &answer, Verdict::NotService)
}

/// After its end the same tuple is another connection.
fn ended(net: Net, hook: Hook, flags: TcpFlags) -> Case {
    let name = format!("begun again after flags {:#x} at {hook:?}", flags.0);
    let case = single(named(net, Protocol::Tcp, &name), net, Protocol::Tcp);
    let case = begun(case, net, Protocol::Tcp);
    let (from, to) = match hook {
        Hook::Ingress => there(net, Protocol::Tcp, flags),
        Hook::Egress | Hook::Uplink => back(net, Protocol::Tcp, flags),
    };
    let mut case = case.becomes(hook, &from, &to).established();
    // What one side alone says may be forged, but for a reset by the backend.
    if hook == Hook::Ingress {
        let (from, to) = back(net, Protocol::Tcp, flags);
        case = case.becomes(Hook::Egress, &from, &to).established();
    } else if flags != RST {
        let (from, to) = there(net, Protocol::Tcp, flags);
        case = case.becomes(Hook::Ingress, &from, &to).established();
    }
    goes_on(begun(case, net, Protocol::Tcp), net, Protocol::Tcp)
}

fn refused(net: Net) -> Case {
    let case = single(named(net, Protocol::Tcp, "refused by the backend"), net, Protocol::Tcp);
    let (opening, opening_there) = there(net, Protocol::Tcp, SYN);
    let (reset, reset_back) = back(net, Protocol::Tcp, RST);
    let case = case
        .becomes(Hook::Ingress, &opening, &opening_there)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Egress, &reset, &reset_back);
    begun(case, net, Protocol::Tcp)
}

fn false_reset(net: Net) -> Case {
    let case = single(named(net, Protocol::Tcp, "a reset out of window"), net, Protocol::Tcp);
    let (reset, reset_there) = there(net, Protocol::Tcp, RST);
    let (opening, opening_there) = there(net, Protocol::Tcp, SYN);
    let case =
        begun(case, net, Protocol::Tcp).becomes(Hook::Ingress, &reset, &reset_there).established();
    // Counts as no new flow: the old one went on.
    goes_on(case, net, Protocol::Tcp).becomes(Hook::Ingress, &opening, &opening_there)
}

fn repeated_syn(net: Net) -> Case {
    let (opening, opening_there) = there(net, Protocol::Tcp, SYN);
    single(named(net, Protocol::Tcp, "a repeated SYN"), net, Protocol::Tcp)
        .becomes(Hook::Ingress, &opening, &opening_there)
        .counted(Counter::FlowCreated)
        .becomes(Hook::Ingress, &opening, &opening_there)
        .becomes(Hook::Ingress, &opening, &opening_there)
}
