//! Where do a flow's packets come from?
//!
//! A source address is easily forged. A record counts only for packets that come from where its flow
//! lives, or leave to there: a pod's at the pod's own interface, that of a client off the node at those
//! that lead off it.

use crate::abi::{AddressFlags, Flow, FlowKey, InterfaceFlags, InterfaceWord, Mix, SOURCES};
use crate::flow::turn;
use crate::select::address_flags;
use crate::tables::{FlowTable, NodeTables, RouteStatus, RouteTables};

/// An interface of which nothing is known leads to a pod: the agent tells of the others before it
/// attaches programs to them.
const POD: InterfaceWord = InterfaceWord::new(InterfaceFlags::LOCAL_POD | InterfaceFlags::PODS, 0);

/// The interface at hand, as seen from a flow.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Its client's.
    Own,
    /// Another one that leads off the node, where its client is.
    Other,
    /// Its packets are not met there.
    Wrong,
}

/// What was found under a packet's key.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Nothing that counts.
    Nothing,
    /// Its flow.
    Flow,
    /// Its flow, whose records are to be made in the main table: it is not half-open any more, or the
    /// interface was made anew.
    Begun,
    /// A flow that lives elsewhere.
    Elsewhere,
    /// The same, and so does the source: it is forged.
    Forged,
}

/// What the interface at hand is; a function of its own, for the sake of the stack.
#[inline(never)]
pub(crate) fn arrival<T: NodeTables>(tables: &T) -> u64 {
    tables.interface(tables.arrival()).unwrap_or(POD).0
}

/// The interface by which packets leave that are to leave where others arrived.
#[inline(always)]
pub(crate) const fn group(ifindex: u32, interface: InterfaceWord) -> u32 {
    let group = interface.group();
    if group == 0 { ifindex } else { group }
}

/// [`Flow::ifindex`] of a flow whose client's packets arrive by the interface at hand. What is sent on
/// asks for routes by it, so there it is the bridge and not its port.
#[inline(always)]
pub(crate) fn origin(ifindex: u32, interface: InterfaceWord, forwarded: bool) -> u32 {
    if interface.has(InterfaceFlags::OFF_NODE) {
        group(ifindex, interface)
    } else if forwarded {
        Flow::<1>::POD | group(ifindex, interface)
    } else {
        Flow::<1>::POD | ifindex
    }
}

/// Whether a record counts at the interface at hand.
#[inline(always)]
pub(crate) fn applies<const N: usize, T: NodeTables>(tables: &T, flow: &Flow<N>) -> bool {
    applies_at(tables, flow, |ifindex| side_of(tables, ifindex))
}

/// The same for the usual packet, without a function of its own.
#[inline(always)]
pub(crate) fn applies_at_once<const N: usize, T: NodeTables>(tables: &T, flow: &Flow<N>) -> bool {
    applies_at(tables, flow, |ifindex| seen_from(tables, ifindex))
}

#[inline(always)]
fn applies_at<const N: usize, T: NodeTables>(
    tables: &T,
    flow: &Flow<N>,
    side_of: impl FnOnce(u32) -> Side,
) -> bool {
    // Replies to what is sent on come from wherever the backend is, and so do answers to the node.
    let reply = Flow::<N>::FORWARDED | Flow::<N>::REPLY;
    flow.interface() == tables.arrival()
        || flow.flags & Flow::<N>::FOREIGN != 0
        || flow.flags & reply == reply
        || side_of(flow.ifindex) != Side::Wrong
}

/// The interface at hand, where a packet leaves that may be a reply.
#[inline(always)]
pub(crate) fn side<const N: usize, T: NodeTables>(tables: &T, flow: &Flow<N>) -> Side {
    if flow.interface() == tables.arrival() { Side::Own } else { side_of(tables, flow.ifindex) }
}

/// The same for the usual packet, without a function of its own.
#[inline(always)]
pub(crate) fn side_at_once<const N: usize, T: NodeTables>(tables: &T, flow: &Flow<N>) -> Side {
    if flow.interface() == tables.arrival() { Side::Own } else { seen_from(tables, flow.ifindex) }
}

/// The same where it is not the very interface that the flow names.
#[inline(never)]
fn side_of<T: NodeTables>(tables: &T, ifindex: u32) -> Side {
    seen_from(tables, ifindex)
}

#[inline(always)]
fn seen_from<T: NodeTables>(tables: &T, ifindex: u32) -> Side {
    let here = tables.arrival();
    let interface = tables.interface_unchecked(here).unwrap_or(POD);
    let pods = ifindex & Flow::<1>::POD != 0;
    // Who asks what would become of a packet may not know by which of the pods' ports it came.
    if pods == interface.has(InterfaceFlags::OFF_NODE) || (here == 0 && !pods) {
        Side::Wrong
    } else if here == 0 || group(here, interface) == ifindex & !Flow::<1>::POD {
        Side::Own
    } else if pods {
        Side::Wrong
    } else {
        Side::Other
    }
}

/// Whether a packet from off the node claims to come from one of this node's addresses or pods. The
/// kernel's own check of sources comes only after the programs.
#[inline(never)]
pub(crate) fn is_forged<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>) -> bool {
    let interface = InterfaceWord(arrival(tables));
    if !interface.has(InterfaceFlags::OFF_NODE) {
        return false;
    }
    if address_flags(tables, &key.src) & AddressFlags::HOST != 0 {
        return true;
    }
    let (place, whose) = from_outside(tables, key);
    if tables.source_known(place) == whose {
        return false;
    }
    let forged = leads_to_pods(tables, key, interface);
    if !forged {
        tables.set_source_known(place, whose);
    }
    forged
}

/// Where it is noted, and as what, that the routes were asked about a packet's source in this tick, and that
/// it is no pod's of this node.
#[inline(always)]
fn from_outside<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>) -> (u32, u64) {
    // Nobody else knows the seed, so nobody can choose a source that passes for another one.
    let first = (tables.seed() as u64) << 32 | tables.arrival() as u64;
    let mix = Mix::new().word(first).ip(&key.src).ip(&key.dst);
    let place = mix.tag() & (SOURCES - 1);
    (place, (tables.now() as u64) << 32 | mix.word(first).tag() as u64)
}

/// Whether the node's route to a packet's source leads to pods of its own.
#[inline(always)]
fn leads_to_pods<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    interface: InterfaceWord,
) -> bool {
    let here = group(tables.arrival(), interface);
    match tables.route(&key.dst, &key.src, here, false, 0) {
        // Where no route leads back, nobody hears the answer.
        RouteStatus::Local | RouteStatus::NoRoute => false,
        RouteStatus::Found | RouteStatus::NoNeighbour | RouteStatus::TooBig => {
            let egress = tables.egress();
            // Pods may be on the very bridge that the uplink is a port of.
            egress != here
                && tables.interface(egress).is_some_and(|it| it.has(InterfaceFlags::PODS))
        }
    }
}

/// Whether the route to a packet's source leads to the pod's interface at hand.
#[inline(always)]
fn is_pod_here<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    interface: InterfaceWord,
) -> bool {
    let here = group(tables.arrival(), interface);
    match tables.route(&key.dst, &key.src, here, false, 0) {
        RouteStatus::Local | RouteStatus::NoRoute => false,
        RouteStatus::Found | RouteStatus::NoNeighbour | RouteStatus::TooBig => {
            let egress = tables.egress();
            egress == here || egress == tables.arrival()
        }
    }
}

/// A pod's packet met only a record that does not count at its interface. If that is where the route to
/// its source leads, then either the interface was made anew, and the flow goes on by this one, or the
/// address is another's by now, or a forger made the record: it goes.
#[inline(never)]
pub(crate) fn settle<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
) -> Met {
    let interface = InterfaceWord(arrival(tables));
    if interface.has(InterfaceFlags::OFF_NODE) || flow.flags & Flow::<N>::REPLY != 0 {
        // Where such a packet begins a flow, its source is looked at.
        return Met::Nothing;
    }
    if !is_pod_here(tables, key, interface) {
        return Met::Forged;
    }
    let pods = flow.is_pods();
    flow.ifindex = origin(tables.arrival(), interface, flow.flags & Flow::<N>::FORWARDED != 0);
    tables.note_flows(&flow.dst, false);
    for _ in 0..2 {
        tables.remove_flow(FlowTable::Main, key);
        tables.remove_flow(FlowTable::HalfOpen, key);
        turn(key, flow);
    }
    if pods { Met::Begun } else { Met::Nothing }
}
