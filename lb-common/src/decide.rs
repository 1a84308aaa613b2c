//! The decision at each hook of the packet engine.
//!
//! At ingress a packet of a known flow is translated as its record says. Otherwise it is looked up
//! as a frontend, and if it begins a connection, a backend is chosen and both records are made. At
//! egress only records count: a packet without one is not a reply to anything of ours.
//!
//! Where a packet of no Service goes, only loads stand in its way: at ingress a bit set of VIPs, at
//! egress a note whether the interface ever had a flow. The steps behind are functions of their own
//! in the kernel too: their frames then use the same part of the stack, and the verifier, which
//! forgets at each of them by which path it came, follows each once.

use crate::abi::{Counter, Flow, FlowKind, FrontendKey, V4, V6, proto};
use crate::flow::{create, ended, promote, touch};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, Link, Network, headers, network};
use crate::rewrite::{apply, swap_ethernet};
use crate::select::{choose, internal_scope, service_port, still_serves};
use crate::tables::{FlowRef, FlowTable, FlowTables, ServiceTables};
use crate::verdict::{NoBackend, Verdict};

/// A packet that arrives from an interface.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => ingress_ip::<V4, P, T>(packet, tables, l3, link),
        Ok(Network::V6(l3)) => ingress_ip::<V6, P, T>(packet, tables, l3, link),
        Err(verdict) => verdict,
    };
    counted(tables, verdict)
}

/// A packet that leaves by an interface.
#[inline(always)]
pub fn egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    if !FlowTables::<V4>::has_flows(tables) {
        return Verdict::NotService;
    }
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => egress_ip::<V4, P, T>(packet, tables, l3),
        Ok(Network::V6(l3)) => egress_ip::<V6, P, T>(packet, tables, l3),
        Err(verdict) => verdict,
    };
    counted(tables, verdict)
}

/// The one place where drops are counted.
#[inline(always)]
fn counted<T: ServiceTables>(tables: &T, verdict: Verdict) -> Verdict {
    if let Some(counter) = verdict.drop_counter() {
        tables.count(counter);
    }
    verdict
}

#[inline(always)]
fn ingress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let mut parsed = Headers::<N>::empty();
    if let Err(verdict) = headers(packet, l3, FlowKind::INGRESS, &mut parsed) {
        return verdict;
    }
    if !tables.may_be_vip(&parsed.key.dst) {
        return Verdict::NotService;
    }
    match known(packet, tables, &parsed, link) {
        Some(verdict) => verdict,
        None => first(packet, tables, &mut parsed, link),
    }
}

#[inline(always)]
fn egress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let mut parsed = Headers::<N>::empty();
    if let Err(verdict) = headers(packet, l3, FlowKind::EGRESS, &mut parsed) {
        return verdict;
    }
    returning(packet, tables, &parsed)
}

/// A packet that arrives, of a flow in the main table.
#[inline(never)]
fn known<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    link: Link,
) -> Option<Verdict>
where
    P: Packet,
    T: FlowTables<N>,
{
    let record = tables.flow(FlowTable::Main, &headers.key)?;
    let flow = record.read();
    if !flow.is_for(&headers.key) {
        return None;
    }
    match standing(tables, headers, &flow) {
        Standing::Goes => {
            touch(tables, &record, &flow, headers);
            return Some(translate(packet, headers, &flow, link));
        }
        Standing::Moves => tables.count(Counter::FlowMoved),
        Standing::Over => {}
    }
    tables.remove_flow(FlowTable::Main, &headers.key);
    None
}

/// What a known flow's record is worth for this packet.
enum Standing {
    /// It says where the packet goes.
    Goes,
    /// UDP: its backend no longer serves (U-2), another takes over.
    Moves,
    /// The connection ended, or its backend is gone, and this begins a new one.
    Over,
}

#[inline(always)]
fn standing<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Standing {
    if flow.flags & Flow::<N>::REPLY != 0 {
        return Standing::Goes;
    }
    if headers.key.proto == proto::UDP {
        return if still_serves(tables, flow.backend, flow.generation) {
            Standing::Goes
        } else {
            Standing::Moves
        };
    }
    if begins_another(tables, FlowTable::Main, headers, flow) {
        Standing::Over
    } else {
        Standing::Goes
    }
}

/// Whether this packet of a forward TCP record begins another connection. An established flow is
/// never retargeted (F-1); only a SYN may begin another.
#[inline(always)]
fn begins_another<const N: usize, T: FlowTables<N>>(
    tables: &T,
    table: FlowTable,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> bool {
    headers.opens()
        && (ended(tables, table, &headers.key, flow)
            || !still_serves(tables, flow.backend, flow.generation))
}

/// A packet that arrives and has no record in the main table: it follows a SYN, begins a flow, or
/// is not ours.
#[inline(never)]
fn first<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    link: Link,
) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
{
    let mut flow = Flow::empty();
    if headers.is_tcp() && half_open(tables, headers, &mut flow) {
        if flow.flags & Flow::<N>::REPLY == 0 && !headers.opens() {
            promote(tables, &mut headers.key, &mut flow);
        }
        return translate_apart(packet, headers, &flow, link);
    }
    match fresh(tables, headers, &mut flow) {
        Ok(()) => translate_apart(packet, headers, &flow, link),
        Err(verdict) => verdict,
    }
}

/// [`translate`] as a function of its own, whose frame ends before others begin.
#[inline(never)]
fn translate_apart<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict {
    translate(packet, headers, flow, link)
}

/// A TCP packet of a flow whose SYN was seen, but nothing since: fills in its record.
#[inline(never)]
fn half_open<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    flow: &mut Flow<N>,
) -> bool {
    let Some(record) = tables.flow(FlowTable::HalfOpen, &headers.key) else { return false };
    *flow = record.read();
    if !flow.is_for(&headers.key) {
        return false;
    }
    // A hairpin flow's replies are met here too; only the client's packets say what becomes of it.
    if flow.flags & Flow::<N>::REPLY == 0
        && begins_another(tables, FlowTable::HalfOpen, headers, flow)
    {
        return false;
    }
    touch(tables, &record, flow, headers);
    flow.live = record.live().0;
    true
}

/// A packet without a record: it begins a connection, or is not ours.
#[inline(always)]
fn fresh<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &mut Headers<N>,
    flow: &mut Flow<N>,
) -> Result<(), Verdict> {
    let key = &headers.key;
    let Some(id) = service_port(tables, &FrontendKey::new(key.dst, key.dport, key.proto)) else {
        return Err(Verdict::NotService);
    };
    if headers.is_tcp() && !headers.opens() {
        return Err(Verdict::NoFlow);
    }
    match choose(tables, id, internal_scope(tables, id)) {
        Ok(choice) => {
            tables.note_flows();
            create(tables, &mut headers.key, &choice, flow)
        }
        Err(NoBackend::Reject) => Err(Verdict::NoBackend),
        Err(NoBackend::Drop) => Err(Verdict::NoLocalBackend),
    }
}

/// A packet that leaves and may be a reply.
#[inline(always)]
fn returning<const N: usize, P, T>(packet: &mut P, tables: &T, headers: &Headers<N>) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
{
    let record = match tables.flow(FlowTable::Main, &headers.key) {
        Some(record) => record,
        // Until the client's second packet only the half-open table knows the flow.
        None if headers.is_tcp() => match tables.flow(FlowTable::HalfOpen, &headers.key) {
            Some(record) => record,
            None => return Verdict::NotService,
        },
        None => return Verdict::NotService,
    };
    let flow = record.read();
    if !flow.is_for(&headers.key) {
        return Verdict::NotService;
    }
    touch(tables, &record, &flow, headers);
    translate(packet, headers, &flow, Link::None)
}

#[inline(always)]
fn translate<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict {
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
