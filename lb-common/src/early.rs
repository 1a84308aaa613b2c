//! The decision at XDP: the usual packet of a flow that is sent on; and behind it, in the kernel as
//! programs of their own, what else may be sent on.
//!
//! [`Verdict::Forwarded`]: the packet was rewritten; the route is the one that was found last
//! ([`crate::tables::NodeTables::egress`]). [`Verdict::Left`]: it is untouched, and goes on to
//! [`crate::decide::ingress`], which finds the record that may have been made.

use crate::abi::{Flow, FlowKind, V4, V6};
use crate::decide::Early;
use crate::established::Rest;
use crate::first::first;
use crate::forward;
use crate::look::{Next, look_ip};
use crate::packet::Packet;
use crate::parse::{ETHERNET, Header, Headers, Ipv, Link, Network, network, plain_headers};
use crate::passing::passing;
use crate::tables::{FlowRef, FlowTable, RouteTables};
use crate::verdict::Verdict;

/// A packet that arrives.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match established(packet, tables, link) {
        Ok(verdict) => verdict,
        Err(Rest::Begin) => begin(packet, tables, link),
        Err(Rest::Forward) => self::forward(packet, tables, link),
    }
}

/// A packet that is no Service's, or whose record says all. Otherwise it is untouched so far.
#[inline(always)]
pub fn established<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Verdict, Rest>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match network(packet, link) {
        Ok(Network::V4(l3) | Network::V6(l3)) if l3 != ETHERNET => Ok(Verdict::Left),
        Ok(Network::V4(l3)) => established_ip::<V4, P, T>(packet, tables, l3),
        Ok(Network::V6(l3)) => established_ip::<V6, P, T>(packet, tables, l3),
        Err(_) => Ok(Verdict::Left),
    }
}

#[inline(always)]
fn established_ip<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
) -> Result<Verdict, Rest>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    // What has extension headers is not the usual packet.
    let Ok(Next::Translate) = look_ip::<N, P, T>(packet, tables, l3) else {
        return Ok(Verdict::Left);
    };
    let Ok(headers) = read(packet, l3) else { return Ok(Verdict::Left) };
    let Some(record) = tables.flow(FlowTable::Main, &headers.key) else { return Err(Rest::Begin) };
    if record.flags() & Flow::<N>::FORWARDED == 0 {
        return Ok(Verdict::Left);
    }
    let sent = forward::again::<N, Early, P, T>(packet, tables, &headers, &record);
    sent.map(sent_or_left).ok_or(Rest::Forward)
}

/// A packet without a record.
#[inline(always)]
pub fn begin<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => begin_ip::<V4, P, T>(packet, tables, l3, link),
        Ok(Network::V6(l3)) => begin_ip::<V6, P, T>(packet, tables, l3, link),
        Err(_) => Verdict::Left,
    };
    sent_or_left(verdict)
}

#[inline(always)]
fn begin_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    match read(packet, l3) {
        Ok(mut headers) => first(Early, packet, tables, &mut headers, link),
        Err(verdict) => verdict,
    }
}

/// A packet of a flow that is sent on, whose record does not say all. One whose record does not stand is
/// tc's to look at: there are few.
#[inline(always)]
pub fn forward<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => forward_ip::<V4, P, T>(packet, tables, l3),
        Ok(Network::V6(l3)) => forward_ip::<V6, P, T>(packet, tables, l3),
        Err(_) => Verdict::Left,
    };
    sent_or_left(verdict)
}

#[inline(always)]
fn forward_ip<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Ok(mut headers) = read(packet, l3) else { return Verdict::Left };
    match tables.flow(FlowTable::Main, &headers.key) {
        Some(record) if record.flags() & Flow::<N>::FORWARDED != 0 => {
            passing(Early, packet, tables, &mut headers, record).unwrap_or(Verdict::Left)
        }
        _ => Verdict::Left,
    }
}

#[inline(always)]
fn read<const N: usize, P: Packet>(packet: &P, l3: usize) -> Result<Headers<N>, Verdict>
where
    Ipv<N>: Header<N>,
{
    plain_headers(packet, l3, FlowKind::INGRESS)
}

#[inline(always)]
fn sent_or_left(verdict: Verdict) -> Verdict {
    if verdict == Verdict::Forwarded { verdict } else { Verdict::Left }
}
