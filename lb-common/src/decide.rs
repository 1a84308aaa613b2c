//! The decision at each hook of the packet engine.
//!
//! At ingress a packet of a known flow is translated as its record says. Otherwise it is looked up
//! as a frontend, and if it begins a connection, a backend is chosen and both records are made. At
//! egress only records count: a packet without one is not a reply to anything of ours.

use crate::abi::{Counter, Flow, FlowKind, FrontendKey, V4, V6, proto};
use crate::flow::{create, ended, promote, touch};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, Link, Network, headers, network};
use crate::rewrite::{apply, swap_ethernet};
use crate::select::{choose, internal_scope, service_port, still_serves};
use crate::tables::{FlowRef, FlowTable, FlowTables};
use crate::verdict::{DropReason, NoBackend, PassReason, Verdict};

/// A packet that arrives from an interface.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    finish::<T>(
        tables,
        match network(packet, link) {
            Ok(Network::V4(l3)) => ingress_ip::<V4, P, T>(packet, tables, l3, link),
            Ok(Network::V6(l3)) => ingress_ip::<V6, P, T>(packet, tables, l3, link),
            Err(reason) => Verdict::Pass(reason),
        },
    )
}

/// A packet that leaves by an interface.
#[inline(always)]
pub fn egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    finish::<T>(
        tables,
        match network(packet, link) {
            Ok(Network::V4(l3)) => egress_ip::<V4, P, T>(packet, tables, l3),
            Ok(Network::V6(l3)) => egress_ip::<V6, P, T>(packet, tables, l3),
            Err(reason) => Verdict::Pass(reason),
        },
    )
}

/// The one place where drops are counted.
#[inline(always)]
fn finish<T: FlowTables<V4>>(tables: &T, verdict: Verdict) -> Verdict {
    if let Verdict::Drop(reason) = verdict {
        tables.count(reason.counter());
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
    let headers = match headers::<N, P>(packet, l3, FlowKind::INGRESS) {
        Ok(headers) => headers,
        Err(reason) => return Verdict::Pass(reason),
    };
    if let Some(record) = tables.flow(FlowTable::Main, &headers.key) {
        let flow = record.read();
        if flow.is_for(&headers.key) {
            match standing(tables, &headers, &flow) {
                Standing::Goes => {
                    touch(tables, &record, &flow, &headers);
                    return translate(packet, &headers, &flow, link);
                }
                Standing::Moves => tables.count(Counter::FlowMoved),
                Standing::Over => {}
            }
            tables.remove_flow(FlowTable::Main, &headers.key);
        }
    }
    match first(tables, &headers) {
        Ok(flow) => translate(packet, &headers, &flow, link),
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn egress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let headers = match headers::<N, P>(packet, l3, FlowKind::EGRESS) {
        Ok(headers) => headers,
        Err(reason) => return Verdict::Pass(reason),
    };
    let record = match tables.flow(FlowTable::Main, &headers.key) {
        Some(record) => record,
        // Until the client's second packet only the half-open table knows the flow.
        None if headers.is_tcp() => match tables.flow(FlowTable::HalfOpen, &headers.key) {
            Some(record) => record,
            None => return Verdict::Pass(PassReason::NotService),
        },
        None => return Verdict::Pass(PassReason::NotService),
    };
    let flow = record.read();
    if !flow.is_for(&headers.key) {
        return Verdict::Pass(PassReason::NotService);
    }
    touch(tables, &record, &flow, &headers);
    translate(packet, &headers, &flow, Link::None)
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
    // An established TCP flow is never retargeted (F-1); only a SYN may begin another.
    if headers.opens()
        && (ended(tables, &headers.key, flow)
            || !still_serves(tables, flow.backend, flow.generation))
    {
        return Standing::Over;
    }
    Standing::Goes
}

/// A packet without a record in the main table: a half-open connection, a new one, or not ours.
#[inline(always)]
fn first<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
) -> Result<Flow<N>, Verdict> {
    let key = &headers.key;
    if headers.is_tcp()
        && let Some(record) = tables.flow(FlowTable::HalfOpen, key)
    {
        let flow = record.read();
        if flow.is_for(key) {
            if !headers.opens() {
                promote(tables, key, &flow);
                return Ok(flow);
            }
            if still_serves(tables, flow.backend, flow.generation) {
                return Ok(flow);
            }
        }
    }
    let frontend = FrontendKey::new(key.dst, key.dport, key.proto);
    let Some(id) = service_port(tables, &frontend) else {
        return Err(Verdict::Pass(PassReason::NotService));
    };
    if headers.is_tcp() && !headers.opens() {
        return Err(Verdict::Drop(DropReason::NoFlow));
    }
    let choice = choose(tables, id, internal_scope(tables, id)).map_err(|none| {
        Verdict::Drop(match none {
            NoBackend::Reject => DropReason::NoBackend,
            NoBackend::Drop => DropReason::NoLocalBackend,
        })
    })?;
    create(tables, key, &choice).map_err(Verdict::Drop)
}

#[inline(always)]
fn translate<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    link: Link,
) -> Verdict {
    let hairpin = flow.flags & Flow::<N>::HAIRPIN != 0;
    if apply(packet, headers, flow).is_none() {
        return Verdict::Drop(DropReason::Rewrite);
    }
    if !hairpin {
        return Verdict::Translated;
    }
    if link == Link::Ethernet && swap_ethernet(packet).is_none() {
        return Verdict::Drop(DropReason::Rewrite);
    }
    Verdict::Reflected
}
