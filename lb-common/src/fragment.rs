//! Fragments at the hooks of the packet engine (contract C-7): the first one of a datagram has the
//! ports and is decided like any packet; those that follow are sent after it.
//!
//! One that comes before the first is dropped if it is for a VIP, because a program cannot keep it
//! until then; others pass, as they are nobody's that is known here.

use crate::abi::{
    AddressFlags, Flow, FlowKey, FlowKind, FragmentKey, FragmentRecord, Ip, V4, V6, proto,
};
use crate::csum::{Diff, updated};
use crate::decide::{begin_egress, counted, rest_ingress};
use crate::flow::recorded_anywhere;
use crate::forward::{goes, gone, led};
use crate::packet::Packet;
use crate::parse::{
    Header, Ipv, Link, Network, Part, destination_of, headers, join_ports, network, source_of,
    split_ports,
};
use crate::rewrite::swap_ethernet;
use crate::select::address_flags;
use crate::stray::{hidden, unless_stray};
use crate::tables::{FlowRef, FlowTable, RouteTables};
use crate::verdict::Verdict;

/// A fragment, or an IPv6 packet with extension headers, that arrives and may concern us.
#[inline(always)]
pub fn ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match without_ports(packet, tables, link, FlowKind::INGRESS) {
        Some(verdict) => verdict,
        None => rest_ingress(packet, tables, link),
    }
}

/// The same for one that leaves.
#[inline(always)]
pub fn egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    match without_ports(packet, tables, link, FlowKind::EGRESS) {
        Some(verdict) => verdict,
        None => begin_egress(packet, tables, link),
    }
}

/// The part of [`ingress`] or [`egress`], as `kind` says, for what has no ports. `None`: it has, and goes
/// on as any other packet; the ports of a first fragment are noted, for those that follow.
#[inline(always)]
pub fn without_ports<P, T>(packet: &mut P, tables: &T, link: Link, kind: u8) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let mut verdict = follow(packet, tables, link, kind)?;
    if kind == FlowKind::INGRESS {
        verdict = unless_stray(packet, tables, link, verdict);
    }
    Some(counted(tables, verdict))
}

/// `kind` is the hook's. `None`: it has ports. A function of its own, for the sake of the stack.
#[inline(never)]
fn follow<P, T>(packet: &mut P, tables: &T, link: Link, kind: u8) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    // The verifier follows what comes once for all numbers of tags.
    match network(packet, link) {
        Ok(Network::V4(l3)) => part::<V4, P, T>(packet, tables, hidden(tables, l3), link, kind),
        Ok(Network::V6(l3)) => part::<V6, P, T>(packet, tables, hidden(tables, l3), link, kind),
        Err(verdict) => Some(verdict),
    }
}

#[inline(always)]
fn part<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
    kind: u8,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(part) = Ipv::<N>::fragment(packet, l3) else { return Some(Verdict::Unparsed) };
    if part.whole {
        return None;
    }
    let which = Which::new(part, kind);
    if part.first {
        // Whether it will be translated or not: without a flow nobody asks for the note.
        let noted = note::<N, P, T>(packet, tables, l3, which);
        return if noted { None } else { Some(Verdict::Unparsed) };
    }
    // One after the other, so that their frames use the same part of the stack.
    let ports = ports_of::<N, P, T>(packet, tables, l3, which);
    let mut verdict = Verdict::Fragment;
    if ports != 0 {
        verdict = leave::<N, P, T>(packet, tables, l3, ports);
        if goes(verdict) {
            let led = tables.forget(verdict as u32);
            let made = later::<N, P, T>(packet, tables, l3, ports);
            verdict =
                if made == Verdict::Translated { gone::<N, P>(packet, l3, led) } else { made };
        }
    }
    if verdict == Verdict::Fragment {
        verdict = unknown::<N, P, T>(packet, tables, l3, kind);
    }
    let back = verdict == Verdict::Reflected && link == Link::Ethernet;
    Some(if back && swap_ethernet(packet).is_none() { Verdict::Rewrite } else { verdict })
}

/// What tells a datagram from others between the same addresses, in one word.
#[derive(Clone, Copy)]
struct Which(u64);

impl Which {
    #[inline(always)]
    const fn new(part: Part, kind: u8) -> Self {
        Self(part.id as u64 | (part.proto as u64) << 32 | (kind as u64) << 40)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte of the word")]
    const fn kind(self) -> u8 {
        (self.0 >> 40) as u8
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of the word")]
    fn key<const N: usize, P: Packet>(self, packet: &P, l3: usize) -> Option<FragmentKey<N>>
    where
        Ipv<N>: Header<N>,
    {
        let src = source_of::<N, P>(packet, l3)?;
        let dst = destination_of::<N, P>(packet, l3)?;
        let (id, proto) = (self.0 as u32, (self.0 >> 32) as u8);
        Some(FragmentKey { src, dst, id, proto, kind: self.kind(), pad: 0 })
    }
}

/// Notes the ports of a first fragment for those that follow; `false` if it has none that we can
/// read. Where the table refuses, these are dropped or pass as nobody's, and are counted there.
#[inline(never)]
fn note<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, which: Which) -> bool
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let Ok(headers) = headers::<N, P>(packet, l3, which.kind()) else { return false };
    let Some(key) = which.key::<N, P>(packet, l3) else { return false };
    let mut record = FragmentRecord {
        sport: headers.key.sport,
        dport: headers.key.dport,
        proto: headers.key.proto as u32,
        tag: 0,
        pad: 0,
    };
    record.tag = record.tag_for(&key);
    tables.set_fragment(&key, &record);
    true
}

/// The ports, protocol and hook of the flow that a fragment without ports belongs to, in one word; 0 if
/// its datagram is not known.
#[inline(never)]
fn ports_of<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, which: Which) -> u64
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(key) = which.key::<N, P>(packet, l3 & 0xff) else { return 0 };
    let Some(record) = tables.fragment(&key) else { return 0 };
    if record.tag != record.tag_for(&key) {
        return 0;
    }
    join_ports(record.sport, record.dport) as u64
        | ((record.proto & 0xff) as u64) << 32
        | (which.kind() as u64) << 40
}

/// Where a fragment without ports goes ([`led`]).
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
fn leave<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, ports: u64) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let (sport, dport) = split_ports(ports as u32);
    let Some(src) = source_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let Some(dst) = destination_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let (proto, kind) = ((ports >> 32) as u8, (ports >> 40) as u8);
    let key = FlowKey { src, dst, sport, dport, proto, kind, pad: 0 };
    let record = match tables.flow(FlowTable::Main, &key) {
        Some(record) => record,
        None => match tables.flow(FlowTable::HalfOpen, &key) {
            Some(record) if key.proto == proto::TCP => record,
            _ => return Verdict::Fragment,
        },
    };
    // Checked by `later`, which comes next: a route of another flow is of no use then.
    let flow = record.read();
    let length = Ipv::<N>::length(packet, l3).unwrap_or(0);
    led(packet, tables, l3, (&key, &flow), length)
}

/// A fragment without ports gets its addresses: [`Verdict::Translated`] if so.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
fn later<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, ports: u64) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let (sport, dport) = split_ports(ports as u32);
    let Some(src) = source_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let Some(dst) = destination_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let (proto, kind) = ((ports >> 32) as u8, (ports >> 40) as u8);
    let key = FlowKey { src, dst, sport, dport, proto, kind, pad: 0 };
    let Some(flow) = recorded_anywhere(tables, &key) else { return Verdict::Fragment };
    if addresses(packet, l3, &key.src, &key.dst, &flow).is_none() {
        return Verdict::Rewrite;
    }
    Verdict::Translated
}

/// A fragment of a datagram that is not known. To a VIP it cannot go anywhere (departure e of the
/// design); an address that only shares its bit of the filter, or is the node's, is none.
#[inline(never)]
fn unknown<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, kind: u8) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    if kind != FlowKind::INGRESS {
        return Verdict::Fragment;
    }
    let Some(dst) = destination_of::<N, P>(packet, l3 & 0xff) else { return Verdict::Unparsed };
    if AddressFlags::is_services_alone(address_flags(tables, &dst)) {
        Verdict::EarlyFragment
    } else {
        Verdict::Fragment
    }
}

/// Replaces the addresses of a packet that has no transport header. What keeps a sum of all bytes
/// adjusts it where no header checksum makes up for the change.
#[inline(always)]
fn addresses<const N: usize, P: Packet>(
    packet: &mut P,
    l3: usize,
    src: &Ip<N>,
    dst: &Ip<N>,
    flow: &Flow<N>,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    let change = Diff::default().words(src, &flow.src).words(dst, &flow.dst).sum();
    let at = l3.wrapping_add(Ipv::<N>::ADDRESSES);
    if N == V4 {
        let sum = l3.wrapping_add(10);
        packet.set_u16(sum, updated(packet.u16(sum)?, change))?;
    } else {
        packet.note_change(change);
    }
    packet.set_words(at, &flow.src)?;
    packet.set_words(at.wrapping_add(size_of::<Ip<N>>()), &flow.dst)
}
