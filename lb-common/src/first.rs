//! A packet that arrives and is no matter of course: is its flow known after all, and if not, does it
//! begin one?

use crate::abi::{Flow, proto};
use crate::begin::{begin, frontend};
use crate::decide::Stage;
use crate::established::translate;
use crate::flow::{
    Tended, create, ended, ends, idle, is_answered, other_idle, promote, tend, touch,
};
use crate::look::may_begin;
use crate::origin::{Met, applies, is_forged, settle};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, Link};
use crate::select::still_serves;
use crate::tables::{FlowRef, FlowTable, FlowTables, RouteStatus, RouteTables};
use crate::verdict::Verdict;
use crate::{forward, hop};

/// A packet that arrives and is no matter of course: it follows a SYN, is one, begins a UDP or SCTP
/// flow or wakes one, or is not ours.
#[inline(never)]
pub(crate) fn first<const N: usize, S: Stage, P, T>(
    stage: S,
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    link: Link,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut flow = Flow::empty();
    let met = look_up::<N, S, T>(tables, headers, &mut flow);
    if met == Met::Forged {
        return Verdict::NotService;
    }
    if met != Met::Nothing {
        let left = S::EARLY && flow.flags & Flow::<N>::FORWARDED == 0;
        if met == Met::Begun && !left && !promote(tables, &mut headers.key, &mut flow) {
            return Verdict::NoFlow;
        }
        return go_on(stage, packet, tables, headers, &flow, link);
    }
    // Whatever was found is forgotten: the verifier follows what comes next once.
    flow = Flow::empty();
    if !may_begin(tables, &headers.key) {
        return Verdict::NotService;
    }
    let frontend = frontend(tables, &headers.key);
    if frontend != 0 && (headers.opens() || !headers.is_tcp()) && is_forged(tables, &headers.key) {
        return Verdict::NotService;
    }
    if let Some(verdict) = begin(packet, tables, headers, &mut flow, frontend) {
        return verdict;
    }
    if flow.flags & Flow::<N>::FORWARDED != 0 {
        match forward::begin(packet, tables, headers, &mut flow) {
            RouteStatus::TooBig => return Verdict::TooBig,
            RouteStatus::NoRoute => return Verdict::NoRoute,
            RouteStatus::Found | RouteStatus::NoNeighbour | RouteStatus::Local => {}
        }
    }
    if flow.flags & Flow::<N>::FORWARDED == 0 {
        tables.note_flows(&flow.dst, !flow.is_pods());
    }
    if let Some(verdict) = create(tables, &mut headers.key, &mut flow) {
        return verdict;
    }
    if flow.flags & Flow::<N>::FORWARDED != 0 {
        // Not asked for again, and not kept: the verifier would follow all of the above for each.
        if tables.neighbour_known() {
            hop::settle(tables, flow.tag, S::EARLY);
        }
        let status = forward::now_known(tables);
        return forward::sent::<N, S, P, T>(packet, tables, headers, &flow, status);
    }
    go_on(stage, packet, tables, headers, &flow, link)
}

/// A packet whose flow has a record goes where that says.
#[inline(always)]
fn go_on<const N: usize, S: Stage, P, T>(
    stage: S,
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    if flow.flags & Flow::<N>::FORWARDED != 0 {
        return forward::send(stage, packet, tables, headers, flow, None);
    }
    if S::EARLY {
        return Verdict::Left;
    }
    translate_apart(packet, headers, flow, link)
}

/// [`translate`] as a function of its own, whose frame ends before others begin.
#[inline(never)]
fn translate_apart<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict
where
    Ipv<N>: Header<N>,
{
    translate(packet, headers, flow, link)
}

/// Looks after both halves of a flow that is not sent on and has a packet. `false`: the other direction's
/// key is another flow's by now, and this one is over.
#[inline(always)]
fn look_after<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &mut Headers<N>,
    flow: &mut Flow<N>,
) -> bool {
    if headers.opens() || flow.flags & (Flow::<N>::FORWARDED | Flow::<N>::FOREIGN) != 0 {
        return true;
    }
    // The flow may have outlived the interface on which it was made.
    tables.note_flows(&flow.dst, !flow.is_pods());
    let end = ends(headers);
    let tended = tend(tables, &mut headers.key, flow, end);
    // A late reply harms nobody.
    if tended != Tended::Taken || flow.flags & Flow::<N>::REPLY != 0 {
        return true;
    }
    tables.remove_flow(FlowTable::Main, &headers.key);
    false
}

/// Looks for the flow of a packet that is no matter of course; the least likely is left to tc.
#[inline(always)]
fn look_up<const N: usize, S: Stage, T: RouteTables<N>>(
    tables: &T,
    headers: &mut Headers<N>,
    flow: &mut Flow<N>,
) -> Met {
    let of_main = headers.key.proto == proto::UDP || headers.opens();
    let mut met = Met::Nothing;
    // Who has a record there does not come here at XDP.
    if of_main && !S::EARLY {
        met = meets(tables, headers, FlowTable::Main, flow);
        if met == Met::Flow
            && idle(tables.now(), &headers.key, flow)
            && other_idle(tables, &headers.key)
        {
            met = Met::Nothing;
        }
    }
    let mut is_main = met == Met::Flow;
    if met != Met::Flow && headers.is_tcp() {
        let half_open = meets(tables, headers, FlowTable::HalfOpen, flow);
        if half_open != Met::Nothing {
            met = half_open;
        }
    }
    // Another CPU may have promoted the flow between the two lookups.
    if met == Met::Nothing && !of_main && !S::EARLY {
        met = meets(tables, headers, FlowTable::Main, flow);
        is_main = met == Met::Flow;
    }
    if is_main && !S::EARLY && !look_after(tables, headers, flow) {
        return Met::Nothing;
    }
    if met == Met::Elsewhere { settle(tables, &mut headers.key, flow) } else { met }
}

/// Fills in the record of a packet's flow, if it has one and does not begin another.
#[inline(always)]
fn meets<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    table: FlowTable,
    flow: &mut Flow<N>,
) -> Met {
    let met = found(tables, headers, table, flow);
    if met != Met::Flow {
        return met;
    }
    let another = if headers.key.proto == proto::UDP {
        !still_serves(tables, flow.backend, flow.generation)
    } else {
        begins_another(tables, headers, table, flow)
    };
    if another {
        return Met::Nothing;
    }
    let begun = table == FlowTable::HalfOpen
        && flow.flags & Flow::<N>::REPLY == 0
        && !headers.opens()
        && is_answered(tables, &headers.key, flow);
    if begun { Met::Begun } else { Met::Flow }
}

/// Fills in the record of a packet's flow, if there is one; but for TCP that opens nothing, with its word
/// from before.
#[inline(never)]
fn found<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    table: FlowTable,
    flow: &mut Flow<N>,
) -> Met {
    let Some(record) = tables.flow(table, &headers.key) else { return Met::Nothing };
    *flow = record.read();
    if !flow.is_for(&headers.key) {
        return Met::Nothing;
    }
    if !applies(tables, flow) {
        return Met::Elsewhere;
    }
    touch(&record, flow, headers, tables.now());
    if headers.is_tcp() && !headers.opens() {
        flow.live = record.live().0;
    }
    Met::Flow
}

/// Whether a TCP packet with a record begins another connection: an established flow is never
/// retargeted (F-1), and only a SYN may begin one. The old record is removed then.
#[inline(never)]
fn begins_another<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    table: FlowTable,
    flow: &Flow<N>,
) -> bool {
    // A hairpin flow's replies are met here too; only the client's packets say what becomes of it.
    let another = flow.flags & Flow::<N>::REPLY == 0
        && headers.opens()
        && (!still_serves(tables, flow.backend, flow.generation)
            || ended(tables, table, &headers.key, flow));
    if another {
        tables.remove_flow(table, &headers.key);
    }
    another
}
