//! The decision at each hook of the packet engine.
//!
//! At ingress a packet of a known flow is translated as its record says. Otherwise it is looked up
//! as a frontend, and if it begins a connection, a backend is chosen and both records are made. At
//! egress only records count: a packet without one is not a reply to anything of ours.
//!
//! Where a packet of no Service goes, only loads stand in its way: at ingress a bit set of VIPs, at
//! egress notes whether the interface ever had a flow, and any flow a backend of this address. In
//! the kernel this first half is a program of its own, which goes on with that of the second half.
//! The steps behind are functions of their own
//! in the kernel too: their frames then use the same part of the stack, and the verifier, which
//! forgets at each of them by which path it came, follows each once.

use crate::abi::{AddressFlags, Counter, Flow, FlowKind, FrontendKey, V4, V6, proto};
use crate::flow::{answers_another, create, ended, idle, other_idle, promote, touch};
use crate::packet::Packet;
use crate::parse::{
    Header, Headers, Ipv, Link, Network, Shape, destination_of, headers, network, source_of,
};
use crate::rewrite::{apply, swap_ethernet};
use crate::select::{address_flags, choose_for, destination, scope_on_node, still_serves, widen};
use crate::tables::{FlowRef, FlowTable, FlowTables, FrontendTables, RouteTables, ServiceTables};
use crate::verdict::{NoBackend, Verdict};
use crate::{fragment, icmp};

/// With what a decision goes on, where the first half does not end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// [`translate_ingress`] or [`translate_egress`].
    Translate,
    /// [`icmp::at_hook`].
    Icmp,
    /// [`fragment::ingress`] or [`fragment::egress`].
    Fragment,
}

/// A packet that arrives from an interface.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    match look_at_ingress(packet, tables, link) {
        Err(verdict) => verdict,
        Ok(Next::Translate) => translate_ingress(packet, tables, link),
        Ok(Next::Icmp) => icmp::at_hook(packet, tables, link, FlowKind::INGRESS),
        Ok(Next::Fragment) => fragment::ingress(packet, tables, link),
    }
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
    match look_at_ingress(packet, tables, link) {
        Err(verdict) => verdict,
        // What this takes from the hook is still to be written.
        Ok(Next::Translate | Next::Icmp | Next::Fragment) => Verdict::Left,
    }
}

/// A packet that leaves by an interface.
#[inline(always)]
pub fn egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    match look_at_egress(packet, tables, link) {
        Err(verdict) => verdict,
        Ok(Next::Translate) => translate_egress(packet, tables, link),
        Ok(Next::Icmp) => icmp::at_hook(packet, tables, link, FlowKind::EGRESS),
        Ok(Next::Fragment) => fragment::egress(packet, tables, link),
    }
}

/// The first half of [`ingress`]: where a packet of no Service ends. It writes nothing: a program
/// that may write to packets pays for a copy of each that somebody else holds too, whether it
/// writes or not.
#[inline(always)]
pub fn look_at_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Next, Verdict>
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    packet.make_reachable();
    let (may_be, shape) = match network(packet, link)? {
        Network::V4(l3) => {
            let ip = destination_of::<V4, P>(packet, l3).ok_or(Verdict::Unparsed)?;
            (FrontendTables::<V4>::may_be_vip(tables, &ip), Ipv::<V4>::shape(packet, l3))
        }
        Network::V6(l3) => {
            let ip = destination_of::<V6, P>(packet, l3).ok_or(Verdict::Unparsed)?;
            (FrontendTables::<V6>::may_be_vip(tables, &ip), Ipv::<V6>::shape(packet, l3))
        }
    };
    if may_be { next(shape) } else { Err(Verdict::NotService) }
}

/// The first half of [`egress`].
#[inline(always)]
pub fn look_at_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Next, Verdict>
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    if !FlowTables::<V4>::has_flows(tables) {
        return Err(Verdict::NotService);
    }
    packet.make_reachable();
    let (may_be, shape) = match network(packet, link)? {
        Network::V4(l3) => {
            let ip = source_of::<V4, P>(packet, l3).ok_or(Verdict::Unparsed)?;
            (FlowTables::<V4>::has_flows_to(tables, &ip), Ipv::<V4>::shape(packet, l3))
        }
        Network::V6(l3) => {
            let ip = source_of::<V6, P>(packet, l3).ok_or(Verdict::Unparsed)?;
            (FlowTables::<V6>::has_flows_to(tables, &ip), Ipv::<V6>::shape(packet, l3))
        }
    };
    // An error comes from any router on the way.
    if may_be || shape == Some(Shape::Icmp) { next(shape) } else { Err(Verdict::NotService) }
}

#[inline(always)]
fn next(shape: Option<Shape>) -> Result<Next, Verdict> {
    match shape {
        Some(Shape::Whole) => Ok(Next::Translate),
        Some(Shape::Icmp) => Ok(Next::Icmp),
        Some(Shape::Fragment) => Ok(Next::Fragment),
        None => Err(Verdict::Unparsed),
    }
}

/// The second half of [`ingress`], for a packet that the first one let through.
#[inline(always)]
pub fn translate_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
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

/// The second half of [`egress`].
#[inline(always)]
pub fn translate_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
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
fn ingress_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, link: Link) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let mut parsed = match headers(packet, l3, FlowKind::INGRESS) {
        Ok(parsed) => parsed,
        Err(verdict) => return verdict,
    };
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
    let parsed = match headers(packet, l3, FlowKind::EGRESS) {
        Ok(parsed) => parsed,
        Err(verdict) => return verdict,
    };
    // The pod may use an ended flow's port for a connection to that backend itself, which passed
    // here as foreign: its answer is not a reply to the VIP.
    if parsed.accepts() {
        forget_ended(tables, &parsed);
    }
    match returning(packet, tables, &parsed, false) {
        Some(verdict) => verdict,
        None if other_idle(tables, &parsed.key) => Verdict::NotService,
        None => returning(packet, tables, &parsed, true).unwrap_or(Verdict::NotService),
    }
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
    let now = tables.now();
    if flow.flags & Flow::<N>::REPLY == 0 {
        // Whether a SYN begins another connection takes more looking.
        if headers.opens() {
            return None;
        }
        if headers.key.proto == proto::UDP {
            // So does whether the other direction was idle for as long.
            if idle(now, &headers.key, &flow) {
                return None;
            }
            // A UDP flow whose backend no longer serves gets another (U-2).
            if !still_serves(tables, flow.backend, flow.generation) {
                // Removed, so that a flow that finds no other backend is counted once.
                tables.count(Counter::FlowMoved);
                tables.remove_flow(FlowTable::Main, &headers.key);
                return None;
            }
        }
    }
    if touch(&record, &flow, headers, now) {
        // The flow may have outlived the interface on which it was made.
        tables.note_flows(&flow.dst, flow.ifindex != 0);
    }
    Some(translate(packet, headers, &flow, link))
}

/// A packet that arrives and is no matter of course: it follows a SYN, is one, begins a UDP or SCTP
/// flow or wakes one, or is not ours.
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
    if headers.key.proto == proto::UDP
        && found(tables, headers, FlowTable::Main, &mut flow)
        && still_serves(tables, flow.backend, flow.generation)
        && !other_idle(tables, &headers.key)
    {
        return translate_apart(packet, headers, &flow, link);
    }
    if headers.opens()
        && found(tables, headers, FlowTable::Main, &mut flow)
        && !begins_another(tables, headers, FlowTable::Main, &flow)
    {
        return translate_apart(packet, headers, &flow, link);
    }
    if headers.is_tcp()
        && found(tables, headers, FlowTable::HalfOpen, &mut flow)
        && !begins_another(tables, headers, FlowTable::HalfOpen, &flow)
    {
        if flow.flags & Flow::<N>::REPLY == 0 && !headers.opens() {
            promote(tables, &mut headers.key, &mut flow);
        }
        return translate_apart(packet, headers, &flow, link);
    }
    // Another CPU may have promoted the flow between the two lookups.
    if headers.is_tcp() && !headers.opens() && found(tables, headers, FlowTable::Main, &mut flow) {
        return translate_apart(packet, headers, &flow, link);
    }
    if let Some(verdict) = fresh(tables, headers, &mut flow) {
        return verdict;
    }
    tables.note_flows(&flow.dst, flow.ifindex != 0);
    if let Some(verdict) = create(tables, &mut headers.key, &mut flow) {
        return verdict;
    }
    translate_apart(packet, headers, &flow, link)
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

/// Fills in the record of a TCP packet's flow, if there is one. A SYN leaves it with its state from
/// before.
#[inline(never)]
fn found<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    table: FlowTable,
    flow: &mut Flow<N>,
) -> bool {
    let Some(record) = tables.flow(table, &headers.key) else { return false };
    *flow = record.read();
    if !flow.is_for(&headers.key) {
        return false;
    }
    touch(&record, flow, headers, tables.now());
    if !headers.opens() {
        flow.live = record.live().0;
    }
    true
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

/// A packet without a record: fills in where its flow goes, or tells why it does not begin one.
#[inline(never)]
fn fresh<const N: usize, T: FlowTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    flow: &mut Flow<N>,
) -> Option<Verdict> {
    let key = &headers.key;
    let frontend = FrontendKey::new(key.dst, key.dport, key.proto);
    let Some(found) = destination(tables, &frontend, || false) else {
        return Some(Verdict::NotService);
    };
    if headers.is_tcp() && !headers.opens() {
        // To an address of the node it may answer a connection that the node made from that very
        // port, and if not, the node resets it.
        let of_node = address_flags(tables, &key.dst) & AddressFlags::NODE != 0;
        return Some(if of_node { Verdict::NotService } else { Verdict::NoFlow });
    }
    let scope = scope_on_node(tables, found);
    let choice = match choose_for(tables, found.id, scope, || widen(&key.src)) {
        Ok(choice) => choice,
        Err(NoBackend::Reject) => return Some(Verdict::NoBackend),
        Err(NoBackend::Drop) => return Some(Verdict::NoLocalBackend),
    };
    flow.dst = choice.ip();
    flow.dport = choice.port;
    flow.backend = choice.id;
    flow.generation = choice.generation;
    None
}

/// A packet that leaves and may be a reply. `None`: its direction of a UDP flow was idle for long, and
/// only the other one can tell whether it lives, unless `lives` says so.
#[inline(never)]
fn returning<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    lives: bool,
) -> Option<Verdict>
where
    P: Packet,
    T: FlowTables<N>,
{
    let record = match tables.flow(FlowTable::Main, &headers.key) {
        Some(record) => record,
        // Until the client's second packet only the half-open table knows the flow.
        None if headers.is_tcp() => match tables.flow(FlowTable::HalfOpen, &headers.key) {
            Some(record) => record,
            None => return Some(Verdict::NotService),
        },
        None => return Some(Verdict::NotService),
    };
    let flow = record.read();
    let now = tables.now();
    if !flow.is_for(&headers.key) {
        return Some(Verdict::NotService);
    }
    if !lives && idle(now, &headers.key, &flow) {
        return None;
    }
    touch(&record, &flow, headers, now);
    Some(translate(packet, headers, &flow, Link::None))
}

/// Removes the records that an accepting packet would meet, if their flow is not what it accepts.
#[inline(never)]
fn forget_ended<const N: usize, T: FlowTables<N>>(tables: &T, headers: &Headers<N>) -> u32 {
    let mut removed = 0;
    for table in [FlowTable::Main, FlowTable::HalfOpen] {
        let Some(record) = tables.flow(table, &headers.key) else { continue };
        let flow = record.read();
        if flow.is_for(&headers.key) && answers_another(tables, table, &headers.key, &flow) {
            tables.remove_flow(table, &headers.key);
            removed |= 1;
        }
    }
    removed
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
