//! The decision at each hook of the packet engine.
//!
//! At ingress a packet of a known flow is translated as its record says. Otherwise it is looked up
//! as a frontend, and if it begins a connection, a backend is chosen and both records are made. At
//! egress only records count: a packet without one is not a reply to anything of ours.
//!
//! Where a packet of no Service goes, the first half ([`crate::look`]) ends it. The steps behind are
//! functions of their own in the kernel too: their frames then use the same part of the stack, and the
//! verifier, which forgets at each of them by which path it came, follows each once.

use crate::abi::{Counter, Flow, FlowKey, FlowKind, Live, V4, V6, proto};
use crate::first::first;
use crate::flow::{Tended, answers_another, ends, idle, other_idle, tend, touch};
use crate::look::{Next, answers_are_foreign, look_at_egress, look_at_ingress, look_ip};
use crate::origin::{Side, applies, side};
use crate::packet::Packet;
use crate::parse::{ETHERNET, Header, Headers, Ipv, Link, Network, headers, network, tcp};
use crate::rewrite::{apply, swap_ethernet};
use crate::select::still_serves;
use crate::stray::unless_stray;
use crate::tables::{FlowRef, FlowTable, Insert, RouteTables, ServiceTables};
use crate::verdict::Verdict;
use crate::{forward, fragment, icmp};

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

/// A packet that arrives and is met as early as can be, at XDP. [`Verdict::Forwarded`]: it is one of a
/// flow that is sent on, and was rewritten; the route is the one that was found last
/// ([`crate::tables::NodeTables::egress`]). Anything else: it is untouched, and goes on to [`ingress`],
/// which finds the record that may have been made.
#[inline(always)]
pub fn early<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3) | Network::V6(l3)) if l3 != ETHERNET => Verdict::Left,
        Ok(Network::V4(l3)) => early_ip::<V4, P, T>(packet, tables, l3, link),
        Ok(Network::V6(l3)) => early_ip::<V6, P, T>(packet, tables, l3, link),
        Err(verdict) => verdict,
    };
    if verdict == Verdict::Forwarded { verdict } else { Verdict::Left }
}

#[inline(always)]
fn early_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    match look_ip::<N, P, T>(packet, tables, l3) {
        Ok(Next::Translate) => {}
        _ => return Verdict::Left,
    }
    let Ok(mut parsed) = headers(packet, l3, FlowKind::INGRESS) else { return Verdict::Left };
    match recorded(Early, packet, tables, &mut parsed, link) {
        Some(verdict) => verdict,
        None => first(Early, packet, tables, &mut parsed, link),
    }
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
        Some(verdict) => verdict,
        None => begin_ingress(packet, tables, link),
    }
}

/// [`translate_ingress`] of a packet with a record that stands. `None`: it takes more looking, which is
/// for [`begin_ingress`], and is untouched.
#[inline(always)]
pub fn established_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => established_ip::<V4, P, T>(packet, tables, l3, link)?,
        Ok(Network::V6(l3)) => established_ip::<V6, P, T>(packet, tables, l3, link)?,
        Err(_) => return None,
    };
    Some(counted(tables, verdict))
}

/// [`translate_ingress`] of a packet without one. In the kernel this is a program of its own: what few
/// packets need is most of the code, and the usual packet is not to pay for it.
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
fn established_ip<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut parsed = headers(packet, l3, FlowKind::INGRESS).ok()?;
    recorded(Final, packet, tables, &mut parsed, link)
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

/// A packet that arrives and has a record in the main table. `None`: it has none, or that does not tell
/// all.
#[inline(always)]
fn recorded<const N: usize, S: Stage, P, T>(
    stage: S,
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    link: Link,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let record = tables.flow(FlowTable::Main, &headers.key)?;
    if record.flags() & (Flow::<N>::FORWARDED | Flow::<N>::FOREIGN) == 0 {
        if S::EARLY {
            return Some(Verdict::Left);
        }
        return known(packet, tables, headers, record, link);
    }
    match forward::again::<N, S, P, T>(packet, tables, headers, &record) {
        None => passing(stage, packet, tables, headers, record),
        sent => sent,
    }
}

#[inline(always)]
fn egress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let parsed = match headers(packet, l3, FlowKind::EGRESS) {
        Ok(parsed) => parsed,
        Err(verdict) => return verdict,
    };
    // The pod may use an ended flow's port for a connection to that backend itself, which passed
    // here as foreign: its answer is not a reply to the VIP.
    if parsed.accepts() {
        forget_ended(tables, &parsed);
    }
    let verdict = match returning(packet, tables, &parsed, false) {
        Some(verdict) => verdict,
        None if other_idle(tables, &parsed.key) => Verdict::NotService,
        None => returning(packet, tables, &parsed, true).unwrap_or(Verdict::NotService),
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

/// A packet that arrives, of a flow in the main table.
#[inline(never)]
#[expect(clippy::needless_pass_by_value, reason = "the kernel's is a pointer in a register")]
fn known<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    record: T::Ref,
    link: Link,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let flow = record.read();
    if !flow.is_for(&headers.key) || !applies(tables, &flow) {
        return None;
    }
    let now = tables.now();
    if flow.flags & Flow::<N>::REPLY == 0 && !stands(tables, headers, &flow, now) {
        return None;
    }
    if touch(&record, &flow, headers, now) {
        // The flow may have outlived the interface on which it was made.
        tables.note_flows(&flow.dst, !flow.is_pods());
    }
    Some(translate(packet, headers, &flow, link))
}

/// Whether a client's packet belongs to its flow's record without a further look.
#[inline(always)]
fn stands<const N: usize, T: RouteTables<N>>(
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

/// A packet that only passes this node: of a flow that is sent on, or an answer to what the node itself
/// has asked.
#[inline(never)]
#[expect(clippy::needless_pass_by_value, reason = "the kernel's is a pointer in a register")]
fn passing<const N: usize, S: Stage, P, T>(
    stage: S,
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    record: T::Ref,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut flow = Flow::empty();
    match pass(tables, headers, &record, &mut flow) {
        Passage::Looked => return None,
        Passage::Foreign => return Some(Verdict::NotService),
        Passage::Again => {}
        Passage::First => {
            let end = ends(headers);
            let tended = tend(tables, &mut headers.key, &mut flow, end);
            // Its source port is another flow's by now (production case 38). A late reply harms nobody.
            if tended == Tended::Taken && flow.flags & Flow::<N>::REPLY == 0 {
                tables.remove_flow(FlowTable::Main, &headers.key);
                let tcp = headers.is_tcp();
                return Some(if tcp { Verdict::NoFlow } else { Verdict::NoPort });
            }
        }
    }
    Some(forward::send(stage, packet, tables, headers, &flow, Some(&record)))
}

/// How a packet that only passes is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    /// Its record does not tell: it takes more looking.
    Looked,
    /// It is an answer to what the node has asked.
    Foreign,
    /// It is sent on; the first one of its direction in this tick, or one that changes its flow's state.
    First,
    /// It is sent on.
    Again,
}

/// Fills in the record of a packet that only passes, and notes that it did.
#[inline(never)]
fn pass<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    record: &T::Ref,
    flow: &mut Flow<N>,
) -> Passage {
    *flow = record.read();
    if !flow.is_for(&headers.key) || !applies(tables, flow) {
        return Passage::Looked;
    }
    let now = tables.now();
    if flow.flags & Flow::<N>::FOREIGN != 0 {
        if idle(now, &headers.key, flow) {
            return Passage::Looked;
        }
        touch(record, flow, headers, now);
        return Passage::Foreign;
    }
    if flow.flags & Flow::<N>::REPLY == 0 && !stands(tables, headers, flow, now) {
        return Passage::Looked;
    }
    if touch(record, flow, headers, now) { Passage::First } else { Passage::Again }
}

/// A packet that leaves and may be a reply. `None`: its direction of a UDP flow was idle for long, and
/// only the other one can tell whether it lives, unless `lives` says so. [`Verdict::Left`]: its flow came
/// in by another interface.
#[inline(never)]
fn returning<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    lives: bool,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
    Ipv<N>: Header<N>,
{
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
                record
            }
            _ => return Some(Verdict::NotService),
        },
        None => return Some(Verdict::NotService),
    };
    let flow = record.read();
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
    touch(&record, &flow, headers, now);
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
