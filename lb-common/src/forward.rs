//! How is a packet sent on by the programs themselves?
//!
//! The route is asked for before anything is written: what cannot go there stays as it is.

use crate::abi::{AddressFlags, Counter, Flow, FlowKey, InterfaceFlags, proto};
use crate::decide::Stage;
use crate::flow::recorded_anywhere;
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv};
use crate::rewrite::apply;
use crate::select::address_flags;
use crate::tables::{NodeTables, RouteStatus, RouteTables};
use crate::verdict::Verdict;

/// A packet of a flow that is sent on, either way.
#[inline(always)]
pub(crate) fn send<const N: usize, S: Stage, P, T>(
    _: S,
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let status = way(tables, &headers.key, flow, length(packet, headers));
    sent::<N, S, P, T>(packet, tables, headers, flow, status)
}

/// Where the first packet of a flow that is to be sent on would go. A backend whose address is the
/// node's own is here, whatever its object says: the flow is not sent on then.
#[inline(always)]
pub(crate) fn begin<const N: usize, P, T>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    flow: &mut Flow<N>,
) -> RouteStatus
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let status = way(tables, &headers.key, flow, length(packet, headers));
    if status != RouteStatus::Local {
        return status;
    }
    if address_flags(tables, &flow.dst) & AddressFlags::HOST == 0 {
        return RouteStatus::NoRoute;
    }
    flow.flags &= !Flow::<N>::FORWARDED;
    if flow.is_pods() {
        flow.ifindex = Flow::<N>::POD | tables.arrival();
    }
    status
}

/// A packet whose route is known. The stage is told by its type only: newer verifiers count each
/// parameter that type information names, and five fit into registers.
#[inline(never)]
pub(crate) fn sent<const N: usize, S: Stage, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
    status: RouteStatus,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    if S::EARLY && (status != RouteStatus::Found || !leaves_early(tables)) {
        if matches!(status, RouteStatus::Found | RouteStatus::NoNeighbour) {
            tables.count(Counter::XdpLeft);
        }
        return Verdict::Left;
    }
    if status == RouteStatus::Local {
        // Who it goes to has moved here.
        let made = apply(packet, headers, flow).is_some();
        return if made { Verdict::Translated } else { Verdict::Rewrite };
    }
    if let Some(verdict) = refused::<N, P>(status, packet, headers.l3()) {
        return verdict;
    }
    // At XDP nothing was written when this fails: the checksum comes first, and lies last.
    if apply(packet, headers, flow).is_none()
        || Ipv::<N>::pass_router(packet, headers.l3()).is_none()
    {
        return Verdict::Rewrite;
    }
    Verdict::Forwarded
}

/// Why a packet cannot be sent on; its route is known, and it is untouched.
#[inline(always)]
pub(crate) fn refused<const N: usize, P: Packet>(
    status: RouteStatus,
    packet: &P,
    l3: usize,
) -> Option<Verdict>
where
    Ipv<N>: Header<N>,
{
    match status {
        RouteStatus::Found | RouteStatus::NoNeighbour => {}
        RouteStatus::TooBig => return Some(Verdict::TooBig),
        RouteStatus::NoRoute | RouteStatus::Local => return Some(Verdict::NoRoute),
    }
    match Ipv::<N>::hops(packet, l3) {
        Some(2..) => None,
        Some(_) => Some(Verdict::TimeExceeded),
        None => Some(Verdict::Unparsed),
    }
}

/// A reply that would leave by another interface than the flow came in by: sent out of that one, if a
/// route leads there. It has passed this node's routing already.
#[inline(never)]
pub(crate) fn back<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(flow) = recorded_anywhere(tables, &headers.key) else { return Verdict::NotService };
    let flow = &flow;
    let status = out_of(tables, flow, length(packet, headers));
    if apply(packet, headers, flow).is_none() {
        return Verdict::Rewrite;
    }
    if matches!(status, RouteStatus::Found | RouteStatus::NoNeighbour) {
        Verdict::Forwarded
    } else {
        Verdict::Translated
    }
}

/// The route of a flow's packets in one direction: the client's before they get another source, the
/// replies out of where the client's came in, if that is possible.
#[inline(never)]
pub(crate) fn way<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &Flow<N>,
    length: u32,
) -> RouteStatus {
    if flow.flags & Flow::<N>::REPLY == 0 {
        return tables.route(&key.src, &flow.dst, flow.interface(), false, length);
    }
    let status = out_of(tables, flow, length);
    if matches!(status, RouteStatus::Local | RouteStatus::NoRoute) {
        return tables.route(&flow.src, &flow.dst, tables.arrival(), false, length);
    }
    status
}

/// The route of a reply out of the interface that its flow came in by. Policy routes often go by that
/// interface's own address, which a VIP is not: then it is asked what would become of a packet that
/// came from there with that source. (Asked for what leaves, the kernel minds no rule about sources in
/// IPv6, and may name another interface.)
#[inline(always)]
fn out_of<const N: usize, T: RouteTables<N>>(
    tables: &T,
    flow: &Flow<N>,
    length: u32,
) -> RouteStatus {
    let status = tables.route(&flow.src, &flow.dst, flow.interface(), true, length);
    let nowhere = matches!(status, RouteStatus::Local | RouteStatus::NoRoute);
    if !nowhere && tables.egress() == flow.interface() {
        return status;
    }
    let own = tables.snat_address(flow.interface(), 0);
    tables.route(&own, &flow.dst, flow.interface(), false, length)
}

/// Whether XDP may send a packet out of the interface that its route leads to.
#[inline(always)]
fn leaves_early<T: NodeTables>(tables: &T) -> bool {
    let egress = tables.egress();
    egress == tables.arrival()
        || tables.interface(egress).is_some_and(|interface| interface.has(InterfaceFlags::XDP))
}

/// Bytes of the IP packet, or of each one that it will be cut into; 0: whatever fits.
#[inline(always)]
fn length<const N: usize, P: Packet>(packet: &P, headers: &Headers<N>) -> u32
where
    Ipv<N>: Header<N>,
{
    let segment = packet.segment();
    if segment == 0 {
        return Ipv::<N>::length(packet, headers.l3()).unwrap_or(0);
    }
    let transport = if headers.key.proto == proto::TCP {
        let words = packet.u16(headers.l4().wrapping_add(12)).unwrap_or(0);
        (u16::from_be(words) >> 12 << 2) as u32
    } else {
        8
    };
    let before = short(headers.l4().wrapping_sub(headers.l3()));
    before.wrapping_add(transport).wrapping_add(segment)
}

/// The distance of two headers of one packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
const fn short(length: usize) -> u32 {
    (length & 0xffff) as u32
}
