//! The usual packet of an established flow: its record stands, and tells all that is to be done with it.
//!
//! Nothing here is a function of its own in the kernel: each return from one costs as much as a lookup
//! there, and a program without any may go on with another on every kernel.

use crate::abi::{Counter, Flow, FlowKind, Live, proto};
use crate::decide::Final;
use crate::flow::{idle, touch};
use crate::forward;
use crate::look::answers_are_foreign;
use crate::origin::{Side, applies_at_once, side_at_once};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, Link, plain_headers};
use crate::rewrite::{apply, swap_ethernet};
use crate::select::still_serves;
use crate::tables::{FlowRef, FlowTable, RouteTables};
use crate::verdict::Verdict;

/// What decides on a packet that is not the usual one of an established flow; it is untouched so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// [`crate::decide::forward_ingress`]: its record may be that of a flow that is sent on.
    Forward,
    /// [`crate::decide::begin_ingress`] or [`crate::decide::begin_egress`].
    Begin,
}

/// A packet that arrives.
#[inline(always)]
pub(crate) fn arriving<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
) -> Result<Verdict, Rest>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Ok(headers) = plain_headers(packet, l3, FlowKind::INGRESS) else {
        return Err(Rest::Forward);
    };
    let Some(record) = tables.flow(FlowTable::Main, &headers.key) else { return Err(Rest::Begin) };
    if record.flags() & (Flow::<N>::FORWARDED | Flow::<N>::FOREIGN) == 0 {
        return known(packet, tables, &headers, &record, link).ok_or(Rest::Begin);
    }
    forward::again::<N, Final, P, T>(packet, tables, &headers, &record).ok_or(Rest::Forward)
}

/// A packet that leaves and may be a reply. `None`: that takes more looking, and it is untouched.
#[inline(always)]
pub(crate) fn leaving<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let headers = plain_headers(packet, l3, FlowKind::EGRESS).ok()?;
    if headers.accepts() {
        return None;
    }
    let key = &headers.key;
    let Some(record) = tables.flow(FlowTable::Main, key) else {
        let more = if headers.is_tcp() {
            tables.flow(FlowTable::HalfOpen, key).is_some()
        } else {
            answers_are_foreign(tables, key.proto, key.sport, &key.src)
        };
        return if more { None } else { Some(Verdict::NotService) };
    };
    let flow = record.read();
    let now = tables.now();
    if !flow.is_for(key)
        || side_at_once(tables, &flow) != Side::Own
        || is_first(&flow, now)
        || idle(now, key, &flow)
    {
        return None;
    }
    touch(&record, &flow, &headers, now);
    Some(translate(packet, &headers, &flow, Link::None))
}

/// A packet that arrives, of a flow in the main table.
#[inline(always)]
fn known<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    record: &T::Ref,
    link: Link,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let flow = record.read();
    if !flow.is_for(&headers.key) || !applies_at_once(tables, &flow) {
        return None;
    }
    let now = tables.now();
    if is_first(&flow, now)
        || (flow.flags & Flow::<N>::REPLY == 0 && !stands(tables, headers, &flow, now))
    {
        return None;
    }
    touch(record, &flow, headers, now);
    Some(translate(packet, headers, &flow, link))
}

/// Whether a packet is the first one of its direction in this tick: with it, the other direction's record
/// is looked after.
#[inline(always)]
fn is_first<const N: usize>(flow: &Flow<N>, now: u32) -> bool {
    Live(flow.live).seen() != now
}

/// Whether a client's packet belongs to its flow's record without a further look.
#[inline(always)]
pub(crate) fn stands<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
    now: u32,
) -> bool {
    // Whether a SYN begins another connection takes more looking.
    if headers.opens() {
        return false;
    }
    if headers.key.proto == proto::UDP {
        // So does whether the other direction was idle for as long.
        if idle(now, &headers.key, flow) {
            return false;
        }
        // A UDP flow whose backend no longer serves gets another (U-2).
        if !still_serves(tables, flow.backend, flow.generation) {
            // Removed, so that a flow that finds no other backend is counted once.
            tables.count(Counter::FlowMoved);
            tables.remove_flow(FlowTable::Main, &headers.key);
            return false;
        }
    }
    true
}

/// Writes a packet of a flow that is not sent on.
#[inline(always)]
pub(crate) fn translate<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict
where
    Ipv<N>: Header<N>,
{
    if apply(packet, headers, flow).is_none() {
        return Verdict::Rewrite;
    }
    if flow.flags & Flow::<N>::HAIRPIN == 0 {
        return Verdict::Translated;
    }
    if link == Link::Ethernet && swap_ethernet(packet).is_none() {
        return Verdict::Rewrite;
    }
    Verdict::Reflected
}
