//! How is a packet sent on by the programs themselves?
//!
//! The route is asked for before anything is written: what cannot go there stays as it is.

use crate::abi::{AddressFlags, Counter, Flow, FlowKey, FlowKind, Live, proto};
use crate::decide::Stage;
use crate::flow::recorded_anywhere;
use crate::hop;
use crate::origin::{Side, side};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, short, tcp};
use crate::rewrite::{apply, apply_routed};
use crate::select::{address_flags, still_serves};
use crate::tables::{FlowRef, NodeTables, RouteStatus, RouteTables};
use crate::verdict::Verdict;

/// The usual packet of a flow that is sent on: the record says where, and only its time changes. `None`: it
/// takes more looking, and is untouched.
#[inline(always)]
pub(crate) fn again<const N: usize, S: Stage, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    record: &T::Ref,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let flow = record.read();
    let live = Live(flow.live);
    let now = tables.now();
    let usual = live.is_recent(now, flow.tag)
        && live.state() & !Live::ANSWERED == 0
        && headers.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
        && flow.flags & Flow::<N>::FORWARDED != 0
        && flow.is_for(&headers.key);
    if !usual {
        return None;
    }
    if live.seen() != now {
        record.set_live(live.seen_at(now));
    }
    // As a first look would have it (U-2).
    let asks = headers.key.proto == proto::UDP && flow.flags & Flow::<N>::REPLY == 0;
    if asks && !still_serves(tables, flow.backend, flow.generation) {
        return None;
    }
    let length = length(packet, headers);
    if !hop::take(tables, live, flow.tag, length, S::EARLY)
        || (S::EARLY && !leaves_whole(packet, tables, headers, length))
        || !matches!(Ipv::<N>::hops(packet, headers.l3()), Some(2..))
    {
        return None;
    }
    Some(written(packet, headers, &flow))
}

/// A packet of a flow that is sent on, either way; its record is to remember the next hop.
#[inline(always)]
pub(crate) fn send<const N: usize, S: Stage, P, T>(
    _: S,
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
    record: Option<&T::Ref>,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut status = way(tables, &headers.key, flow, length(packet, headers));
    if status == RouteStatus::Found {
        let name = hop::settle(tables, flow.tag, S::EARLY);
        if let Some(record) = record
            && name != 0
        {
            record.set_live(record.live().with_hop(name));
        }
        status = now_known(tables);
    }
    sent::<N, S, P, T>(packet, tables, headers, flow, status)
}

/// What a route comes to that was found.
#[inline(always)]
pub(crate) fn now_known<T: NodeTables>(tables: &T) -> RouteStatus {
    if tables.neighbour_known() { RouteStatus::Found } else { RouteStatus::NoNeighbour }
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
    let may_leave = || {
        hop::leaves_early(tables, tables.egress())
            && leaves_whole(packet, tables, headers, length(packet, headers))
    };
    if S::EARLY && (status != RouteStatus::Found || !may_leave()) {
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
    written(packet, headers, flow)
}

/// A packet as it is sent on. At XDP nothing was written when this fails: the checksum comes first, and
/// lies last.
#[inline(always)]
fn written<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Verdict
where
    Ipv<N>: Header<N>,
{
    let made = apply_routed(packet, headers, flow).is_some();
    if made { Verdict::Forwarded } else { Verdict::Rewrite }
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

/// Where what belongs to a flow and is no whole packet of it goes, as a later fragment or an error: for
/// [`gone`], once it is rewritten. Anything that [`goes`] denies ends it.
#[inline(always)]
pub(crate) fn led<const N: usize, P, T>(
    packet: &P,
    tables: &T,
    l3: usize,
    (key, flow): (&FlowKey<N>, &Flow<N>),
    length: u32,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    if flow.flags & Flow::<N>::FORWARDED != 0 {
        let status = way(tables, key, flow, length);
        return refused::<N, P>(status, packet, l3).unwrap_or(Verdict::Forwarded);
    }
    if flow.flags & Flow::<N>::HAIRPIN != 0 {
        return Verdict::Reflected;
    }
    if key.kind == FlowKind::EGRESS && elsewhere(tables, flow, length) {
        return Verdict::Left;
    }
    Verdict::Translated
}

/// Whether what leaves by the interface at hand has to leave by another one, and can.
#[inline(never)]
fn elsewhere<const N: usize, T: RouteTables<N>>(tables: &T, flow: &Flow<N>, length: u32) -> bool {
    side(tables, flow) == Side::Other
        && matches!(out_of(tables, flow, length), RouteStatus::Found | RouteStatus::NoNeighbour)
}

/// Whether what [`led`] tells is a way.
#[inline(always)]
pub(crate) const fn goes(led: Verdict) -> bool {
    matches!(led, Verdict::Forwarded | Verdict::Left | Verdict::Translated | Verdict::Reflected)
}

/// What becomes of a packet that is rewritten and goes where [`led`] told, as a number: the verifier
/// follows what lies between once only if it does not know it.
#[inline(always)]
pub(crate) fn gone<const N: usize, P: Packet>(packet: &mut P, l3: usize, led: u32) -> Verdict
where
    Ipv<N>: Header<N>,
{
    if led == Verdict::Forwarded as u32 {
        let passed = Ipv::<N>::pass_router(packet, l3 & 0xff).is_some();
        return if passed { Verdict::Forwarded } else { Verdict::Rewrite };
    }
    if led == Verdict::Left as u32 {
        // It has passed this node's routing already.
        return Verdict::Forwarded;
    }
    if led == Verdict::Reflected as u32 { Verdict::Reflected } else { Verdict::Translated }
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
    let asks = flow.flags & Flow::<N>::REPLY == 0;
    // A client's packet goes by its own source's rules, a reply by those of whom it seems to come from.
    let from = if asks { &key.src } else { &flow.src };
    let status = if asks {
        tables.route(from, &flow.dst, flow.interface(), false, length)
    } else {
        out_of(tables, flow, length)
    };
    // The flow may outlive the interface that it came in by.
    if matches!(status, RouteStatus::Local | RouteStatus::NoRoute) {
        return tables.route(from, &flow.dst, tables.arrival(), false, length);
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

/// Whether XDP may send all of a packet: what lies in several buffers goes back out of its own interface
/// only, as others may drop it without a word.
#[inline(always)]
fn leaves_whole<const N: usize, P: Packet, T: NodeTables>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    length: u32,
) -> bool {
    tables.egress() == tables.arrival()
        || packet.is_linear_until(headers.l3().wrapping_add(length as usize))
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
