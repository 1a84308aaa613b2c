//! Fragments at the hooks of the packet engine (contract C-7): the first one of a datagram has the
//! ports and is decided like any packet; those that follow are sent after it.
//!
//! One that comes before the first is dropped if it is for a VIP, because a program cannot keep it
//! until then; others pass, as they are nobody's that is known here.

use crate::abi::{
    AddressFlags, Flow, FlowKey, FlowKind, FragmentKey, FragmentRecord, Ip, V4, V6, proto,
};
use crate::csum::{Diff, updated};
use crate::decide::counted;
use crate::packet::Packet;
use crate::parse::{Header, Ipv, Link, Network, destination_of, headers, network, source_of};
use crate::rewrite::swap_ethernet;
use crate::tables::{FlowRef, FlowTable, FlowTables};
use crate::verdict::Verdict;

/// A fragment, or an IPv6 packet with extension headers, that may concern us; `kind` is the hook's.
/// `None`: it has ports, and [`crate::decide`]'s second half goes on.
#[inline(always)]
pub fn follow<P, T>(packet: &mut P, tables: &T, link: Link, kind: u8) -> Option<Verdict>
where
    P: Packet,
    T: FlowTables<V4> + FlowTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => part::<V4, P, T>(packet, tables, l3, link, kind),
        Ok(Network::V6(l3)) => part::<V6, P, T>(packet, tables, l3, link, kind),
        Err(verdict) => Some(verdict),
    };
    verdict.map(|verdict| counted(tables, verdict))
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
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(part) = Ipv::<N>::fragment(packet, l3) else { return Some(Verdict::Unparsed) };
    if part.whole {
        return None;
    }
    let which = Which { id: part.id, kind, proto: part.proto };
    if part.first {
        // Whether it will be translated or not: without a flow nobody asks for the note.
        let noted = note::<N, P, T>(packet, tables, l3, which.id, which.rest());
        return if noted { None } else { Some(Verdict::Unparsed) };
    }
    let verdict = later::<N, P, T>(packet, tables, l3, which.id, which.rest());
    let back = verdict == Verdict::Reflected && link == Link::Ethernet;
    Some(if back && swap_ethernet(packet).is_none() { Verdict::Rewrite } else { verdict })
}

/// What tells a datagram from others between the same addresses. In two words, because a function of
/// the kernel's takes five arguments.
struct Which {
    id: u32,
    kind: u8,
    proto: u8,
}

impl Which {
    #[inline(always)]
    const fn rest(&self) -> u32 {
        ((self.kind as u32) << 8) | self.proto as u32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bytes of a word")]
    const fn new(id: u32, rest: u32) -> Self {
        Self { id, kind: (rest >> 8) as u8, proto: rest as u8 }
    }

    #[inline(always)]
    fn key<const N: usize, P: Packet>(&self, packet: &P, l3: usize) -> Option<FragmentKey<N>>
    where
        Ipv<N>: Header<N>,
    {
        let src = source_of::<N, P>(packet, l3)?;
        let dst = destination_of::<N, P>(packet, l3)?;
        Some(FragmentKey { src, dst, id: self.id, proto: self.proto, kind: self.kind, pad: 0 })
    }
}

/// Notes the ports of a first fragment for those that follow; `false` if it has none that we can
/// read. Where the table refuses, these are dropped or pass as nobody's, and are counted there.
#[inline(never)]
fn note<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, id: u32, rest: u32) -> bool
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let which = Which::new(id, rest);
    let Ok(headers) = headers::<N, P>(packet, l3, which.kind) else { return false };
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

/// A fragment without ports: goes where the first one went.
#[inline(never)]
fn later<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, id: u32, rest: u32) -> Verdict
where
    P: Packet,
    T: FlowTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let Some(key) = Which::new(id, rest).key::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let mut flow = Flow::empty();
    if !flow_of(tables, &key, &mut flow) {
        return unknown(tables, &key);
    }
    if addresses(packet, l3, &key.src, &key.dst, &flow).is_none() {
        return Verdict::Rewrite;
    }
    if flow.flags & Flow::<N>::HAIRPIN == 0 { Verdict::Translated } else { Verdict::Reflected }
}

/// Fills in the record of the flow that a datagram belongs to.
#[inline(never)]
fn flow_of<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FragmentKey<N>,
    flow: &mut Flow<N>,
) -> bool {
    let Some(record) = tables.fragment(key) else { return false };
    if record.tag != record.tag_for(key) {
        return false;
    }
    let flow_key = FlowKey {
        src: key.src,
        dst: key.dst,
        sport: record.sport,
        dport: record.dport,
        proto: (record.proto & 0xff) as u8,
        kind: key.kind,
        pad: 0,
    };
    for table in [FlowTable::Main, FlowTable::HalfOpen] {
        if let Some(found) = tables.flow(table, &flow_key) {
            *flow = found.read();
            if flow.is_for(&flow_key) {
                return true;
            }
        }
        if flow_key.proto != proto::TCP {
            return false;
        }
    }
    false
}

/// A fragment of a datagram that is not known. To a VIP it cannot go anywhere (departure e of the
/// design); an address that only shares its bit of the filter, or is the node's, is none.
#[inline(never)]
fn unknown<const N: usize, T: FlowTables<N>>(tables: &T, key: &FragmentKey<N>) -> Verdict {
    if key.kind != FlowKind::INGRESS {
        return Verdict::Fragment;
    }
    let flags = tables.address(&key.dst).map_or(0, |word| word.flags_for(&key.dst));
    let vip = flags & (AddressFlags::CLUSTER_IP | AddressFlags::VIP) != 0;
    let node = flags & (AddressFlags::NODE | AddressFlags::LOOPBACK) != 0;
    if vip && !node { Verdict::EarlyFragment } else { Verdict::Fragment }
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
