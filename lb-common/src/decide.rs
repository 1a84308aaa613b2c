//! The decision at each hook of the packet engine.
//!
//! At ingress a packet of a known flow is translated as its record says. Otherwise it is looked up
//! as a frontend, and if it begins a connection, a backend is chosen and both records are made. At
//! egress only records count: a packet without one is not a reply to anything of ours.
//!
//! Where a packet of no Service goes, the first half ([`crate::look`]) ends it. The usual packet of an
//! established flow is next ([`crate::established`]), without any function of its own. The steps behind
//! are such in the kernel too: their frames then use the same part of the stack, and the verifier, which
//! forgets at each of them by which path it came, follows each once.

use crate::abi::{Counter, Flow, FlowKey, FlowKind, Live, V4, V6};
use crate::established::{Rest, translate};
use crate::first::first;
use crate::flow::{answers_another, ends, idle, other_idle, tend, touch};
use crate::look::{Next, answers_are_foreign, look_at_egress, look_at_ingress};
use crate::origin::{Side, applies, side};
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv, Link, Network, headers, network, tcp};
use crate::passing::passing;
use crate::stray::unless_stray;
use crate::tables::{FlowRef, FlowTable, Insert, RouteTables, ServiceTables};
use crate::verdict::Verdict;
use crate::{established, forward, fragment, icmp};

/// A packet that arrives from an interface.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match look_at_ingress(packet, tables, link) {
        Err(verdict) => verdict,
        Ok(Next::Translate) => translate_ingress(packet, tables, link),
        Ok(Next::Icmp) => icmp::at_hook(packet, tables, link, FlowKind::INGRESS),
        Ok(Next::Fragment) => fragment::ingress(packet, tables, link),
    }
}

/// What may be done with a packet where it is met.
pub trait Stage: Copy {
    /// Only what is certain, and nothing that others do as well: the packet comes to the other stage
    /// too, unless it is sent on.
    const EARLY: bool;
}

/// At XDP.
#[derive(Clone, Copy)]
pub struct Early;

/// At tc.
#[derive(Clone, Copy)]
pub struct Final;

impl Stage for Early {
    const EARLY: bool = true;
}

impl Stage for Final {
    const EARLY: bool = false;
}

/// A packet that leaves by an interface.
#[inline(always)]
pub fn egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match look_at_egress(packet, tables, link) {
        Err(verdict) => verdict,
        Ok(Next::Translate) => translate_egress(packet, tables, link),
        Ok(Next::Icmp) => icmp::at_hook(packet, tables, link, FlowKind::EGRESS),
        Ok(Next::Fragment) => fragment::egress(packet, tables, link),
    }
}

/// The second half of [`ingress`], for a packet that the first one let through.
#[inline(always)]
pub fn translate_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match established_ingress(packet, tables, link) {
        Ok(verdict) => verdict,
        Err(Rest::Forward) => rest_ingress(packet, tables, link),
        Err(Rest::Begin) => begin_ingress(packet, tables, link),
    }
}

/// [`translate_ingress`] of the usual packet of an established flow.
#[inline(always)]
pub fn established_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Verdict, Rest>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => established::arriving::<V4, P, T>(packet, tables, l3, link)?,
        Ok(Network::V6(l3)) => established::arriving::<V6, P, T>(packet, tables, l3, link)?,
        Err(_) => return Err(Rest::Begin),
    };
    Ok(counted(tables, verdict))
}

/// [`translate_ingress`] without regard to the usual packet.
#[inline(always)]
pub fn rest_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match forward_ingress(packet, tables, link) {
        Some(verdict) => verdict,
        None => begin_ingress(packet, tables, link),
    }
}

/// [`translate_ingress`] of a packet whose record is that of a flow that is sent on, or of an answer to
/// the node. `None`: it has none, or one that does not tell all.
#[inline(always)]
pub fn forward_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => forward_ip::<V4, P, T>(packet, tables, l3)?,
        Ok(Network::V6(l3)) => forward_ip::<V6, P, T>(packet, tables, l3)?,
        Err(_) => return None,
    };
    Some(counted(tables, verdict))
}

/// [`translate_ingress`] of a packet that begins a flow, follows one that did, or is none of ours.
#[inline(always)]
pub fn begin_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => begin_ip::<V4, P, T>(packet, tables, l3, link),
        Ok(Network::V6(l3)) => begin_ip::<V6, P, T>(packet, tables, l3, link),
        Err(verdict) => verdict,
    };
    counted(tables, unless_stray(packet, tables, link, verdict))
}

/// The second half of [`egress`].
#[inline(always)]
pub fn translate_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match established_egress(packet, tables, link) {
        Some(verdict) => verdict,
        None => begin_egress(packet, tables, link),
    }
}

/// [`translate_egress`] of the usual packet of an established flow, and of what is none of ours.
#[inline(always)]
pub fn established_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => established::leaving::<V4, P, T>(packet, tables, l3)?,
        Ok(Network::V6(l3)) => established::leaving::<V6, P, T>(packet, tables, l3)?,
        Err(_) => return None,
    };
    Some(counted(tables, verdict))
}

/// [`translate_egress`] without regard to the usual packet: one that accepts a connection, or follows
/// that, of a flow that was idle or came in by another interface, or with a question of the node itself.
#[inline(always)]
pub fn begin_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => egress_ip::<V4, P, T>(packet, tables, l3),
        Ok(Network::V6(l3)) => egress_ip::<V6, P, T>(packet, tables, l3),
        Err(verdict) => verdict,
    };
    counted(tables, verdict)
}

/// The one place where drops are counted.
#[inline(always)]
pub(crate) fn counted<T: ServiceTables>(tables: &T, verdict: Verdict) -> Verdict {
    if let Some(counter) = verdict.drop_counter() {
        tables.count(counter);
    }
    verdict
}

#[inline(always)]
fn forward_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut headers = headers(packet, l3, FlowKind::INGRESS).ok()?;
    let record = tables.flow(FlowTable::Main, &headers.key)?;
    if record.flags() & (Flow::<N>::FORWARDED | Flow::<N>::FOREIGN) == 0 {
        return None;
    }
    passing(Final, packet, tables, &mut headers, record)
}

#[inline(always)]
fn begin_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    match headers(packet, l3, FlowKind::INGRESS) {
        Ok(mut parsed) => first(Final, packet, tables, &mut parsed, link),
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn egress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut parsed = match headers(packet, l3, FlowKind::EGRESS) {
        Ok(parsed) => parsed,
        Err(verdict) => return verdict,
    };
    // The pod may use an ended flow's port for a connection to that backend itself, which passed
    // here as foreign: its answer is not a reply to the VIP.
    if parsed.accepts() {
        forget_ended(tables, &parsed);
    }
    let verdict = match returning(packet, tables, &mut parsed, false) {
        Some(verdict) => verdict,
        None if other_idle(tables, &parsed.key) => Verdict::NotService,
        None => returning(packet, tables, &mut parsed, true).unwrap_or(Verdict::NotService),
    };
    if verdict == Verdict::Left {
        return forward::back(packet, tables, &parsed);
    }
    let key = &parsed.key;
    if verdict == Verdict::NotService && answers_are_foreign(tables, key.proto, key.sport, &key.src)
    {
        leave_answers_alone(tables, key);
    }
    verdict
}

/// Notes that answers to a packet of this node are its own.
#[inline(never)]
fn leave_answers_alone<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>) -> u32 {
    let now = tables.now();
    let key = key.turned(FlowKind::INGRESS);
    if let Some(record) = tables.flow(FlowTable::Main, &key) {
        let old = record.read();
        // A record of a Service's flow is never replaced: what leaves here may be its own reply, which
        // was translated where it passed before.
        if old.flags & Flow::<N>::FOREIGN == 0 {
            return 0;
        }
        if !idle(now, &key, &old) {
            if Live(old.live).seen() != now {
                record.set_live(Live::new(now, 0));
            }
            return 0;
        }
    }
    let mut flow = Flow::empty();
    flow.live = Live::new(now, 0).0;
    flow.flags = Flow::<N>::FOREIGN;
    flow.tag = flow.tag_for(&key);
    let noted = tables.insert_flow(FlowTable::Main, &key, &flow, true) == Insert::Done;
    if noted {
        tables.count(Counter::FlowForeign);
    }
    noted as u32
}

/// A packet that leaves and may be a reply. `None`: its direction of a UDP flow was idle for long, and
/// only the other one can tell whether it lives, unless `lives` says so. [`Verdict::Left`]: its flow came
/// in by another interface.
#[inline(never)]
fn returning<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    lives: bool,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut established = true;
    let record = match tables.flow(FlowTable::Main, &headers.key) {
        Some(record) => record,
        // Until the client's second packet only the half-open table knows the flow. What comes before the
        // answer to its SYN is of another connection, one without a VIP.
        None if headers.is_tcp() => match tables.flow(FlowTable::HalfOpen, &headers.key) {
            Some(record)
                if headers.accepts()
                    || headers.tcp_flags & tcp::RST != 0
                    || record.live().state() & Live::ANSWERED != 0 =>
            {
                established = false;
                record
            }
            _ => return Some(Verdict::NotService),
        },
        None => return Some(Verdict::NotService),
    };
    let mut flow = record.read();
    let now = tables.now();
    if !flow.is_for(&headers.key) {
        return Some(Verdict::NotService);
    }
    let side = side(tables, &flow);
    if side == Side::Wrong {
        return Some(Verdict::NotService);
    }
    if !lives && idle(now, &headers.key, &flow) {
        return None;
    }
    if touch(&record, &flow, headers, now) && established {
        flow.live = record.live().0;
        let end = ends(headers);
        // Where another flow has the client's key, a late reply harms nobody.
        tend(tables, &mut headers.key, &mut flow, end);
    }
    if side == Side::Other {
        return Some(Verdict::Left);
    }
    Some(translate(packet, headers, &flow, Link::None))
}

/// Removes the records that an accepting packet would meet, if their flow is not what it accepts.
#[inline(never)]
fn forget_ended<const N: usize, T: RouteTables<N>>(tables: &T, headers: &Headers<N>) -> u32 {
    let mut removed = 0;
    for table in [FlowTable::Main, FlowTable::HalfOpen] {
        let Some(record) = tables.flow(table, &headers.key) else { continue };
        let flow = record.read();
        if flow.is_for(&headers.key)
            && applies(tables, &flow)
            && answers_another(tables, table, &headers.key, &flow)
        {
            tables.remove_flow(table, &headers.key);
            removed |= 1;
        }
    }
    removed
}
