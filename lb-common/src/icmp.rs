//! ICMP at the hooks of the packet engine: errors about translated packets find who sent these, and a
//! VIP answers pings.
//!
//! An error quotes the packet that it is about, as it was when it came to grief: after translation.
//! Turned around, the quote is the key of the record for the other direction, which says how to turn
//! the quote into what its sender knows. That is how a client behind a VIP learns of a smaller MTU
//! (contract C-7).

use crate::abi::{
    AddressFlags, Counter, Flow, FlowKey, FlowKind, InterfaceFlags, InterfaceWord, Ip, V4, V6,
    proto,
};
use crate::begin::{beyond, what_is};
use crate::csum::{Diff, adjusted, updated};
use crate::decide::counted;
use crate::flow::{recorded, recorded_anywhere};
use crate::forward::{goes, gone, led};
use crate::origin::arrival;
use crate::packet::{ChecksumChange, Packet};
use crate::parse::{
    Header, Ipv, Link, MAX_L4, Network, destination_of, join_ports, network, source_of, split_ports,
};
use crate::rewrite::swap_ethernet;
use crate::stray::{circles, hidden};
use crate::tables::RouteTables;
use crate::verdict::Verdict;

/// Bytes of an ICMP message before what it quotes.
const QUOTE: usize = 8;
/// How many routers a packet may still pass that has passed none.
const HOPS_ON_LINK: u8 = 255;

/// An ICMP packet that arrives and may concern a VIP, or that leaves by an interface with flows; `kind`
/// tells which hook it is at ([`FlowKind`]).
#[inline(always)]
pub fn at_hook<P, T>(packet: &mut P, tables: &T, link: Link, kind: u8) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    // The verifier follows what comes once for all numbers of tags.
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => message::<V4, P, T>(packet, tables, hidden(tables, l3), link, kind),
        Ok(Network::V6(l3)) => message::<V6, P, T>(packet, tables, hidden(tables, l3), link, kind),
        Err(verdict) => verdict,
    };
    counted(tables, verdict)
}

#[inline(always)]
fn message<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
    kind: u8,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let verdict = judge::<N, P, T>(packet, tables, l3, link, kind);
    // A router's own questions about its neighbours are answered by who answers for the VIP; they come
    // from this very link (RFC 4861 section 7.1).
    let of_link = N == V6 && Ipv::<N>::hops(packet, l3 & 0xff) == Some(HOPS_ON_LINK);
    let left = matches!(verdict, Verdict::NotTransport | Verdict::Unparsed | Verdict::NotService);
    if kind == FlowKind::INGRESS && left && !of_link && circles::<N, P, T>(packet, tables, l3) {
        return Verdict::UndefinedPort;
    }
    verdict
}

#[inline(always)]
fn judge<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
    kind: u8,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(at) = Ipv::<N>::icmp(packet, l3) else { return Verdict::Unparsed };
    // Both type and code: a check of one byte is one that the verifier does not see.
    let Some(both) = packet.u16(at) else { return Verdict::Unparsed };
    let [icmp_type, _] = u16::from_be(both).to_be_bytes();
    let verdict = if icmp_type == Ipv::<N>::ECHO.0 && kind == FlowKind::INGRESS {
        echo::<N, P, T>(packet, tables, l3, at)
    } else if Ipv::<N>::is_error(icmp_type) {
        // One after the other, so that their frames use the same part of the stack.
        let led = leave::<N, P, T>(packet, tables, l3, at, kind);
        if !goes(led) {
            return led;
        }
        let led = tables.forget(led as u32);
        match error::<N, P, T>(packet, tables, l3, at, kind) {
            Verdict::Translated => gone::<N, P>(packet, l3, led),
            verdict => verdict,
        }
    } else {
        return Verdict::NotTransport;
    };
    if verdict == Verdict::Reflected && link == Link::Ethernet && swap_ethernet(packet).is_none() {
        return Verdict::Rewrite;
    }
    verdict
}

/// Where an error goes ([`led`]), if its flow is known.
#[inline(never)]
fn leave<const N: usize, P, T>(packet: &P, tables: &T, l3: usize, at: usize, kind: u8) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let Some(quote) = read_quote::<N, P>(packet, l3, at, kind) else {
        return Verdict::NotTransport;
    };
    let Some(flow) = recorded(tables, &quote.key) else { return Verdict::NotService };
    // As small as they are, errors fit everywhere.
    led(packet, tables, l3, (&quote.key, &flow), 0)
}

/// Turns an error: [`Verdict::Translated`] if so. A function of its own, so that the families share a
/// part of the stack.
#[inline(never)]
fn error<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    at: usize,
    kind: u8,
) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let Some(quote) = read_quote::<N, P>(packet, l3 & 0xff, at, kind) else {
        return Verdict::NotTransport;
    };
    // An error goes to who sent what it quotes. One that does not is forged, or none of ours: others
    // may have let it pass for its quote alone.
    if destination_of::<N, P>(packet, l3 & 0xff) != Some(quote.key.dst) {
        return Verdict::NotService;
    }
    // Not touched: an error does not keep a flow alive.
    let Some(flow) = recorded_anywhere(tables, &quote.key) else { return Verdict::NotService };
    if rewrite(packet, &quote, &flow).is_none() {
        return Verdict::Rewrite;
    }
    tables.count(Counter::IcmpTranslated);
    Verdict::Translated
}

/// What an error quotes, turned around: the key of the flow's other direction. Offsets as in
/// [`crate::parse::Headers`], and for the same reason.
struct Quote<const N: usize> {
    key: FlowKey<N>,
    /// Offset of the outer IP header.
    l3: u8,
    /// Offset of the ICMP message.
    at: u16,
    /// Offset of the quoted transport header.
    l4: u16,
}

impl<const N: usize> Quote<N> {
    #[inline(always)]
    const fn l3(&self) -> usize {
        self.l3 as usize
    }

    #[inline(always)]
    const fn at(&self) -> usize {
        self.at as usize & MAX_L4
    }

    #[inline(always)]
    const fn l4(&self) -> usize {
        self.l4 as usize & MAX_L4
    }
}

/// Reads what a message quotes; `None` if that cannot be a packet of ours.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "all are masked")]
fn read_quote<const N: usize, P: Packet>(
    packet: &P,
    l3: usize,
    at: usize,
    kind: u8,
) -> Option<Quote<N>>
where
    Ipv<N>: Header<N>,
{
    let inner = (at & MAX_L4).wrapping_add(QUOTE);
    let (proto, l4) = Ipv::<N>::quoted(packet, inner)?;
    if !matches!(proto, proto::TCP | proto::UDP | proto::SCTP) || l4 > MAX_L4 {
        return None;
    }
    let [ports] = packet.words(l4)?;
    let (sport, dport) = split_ports(ports);
    let (src, dst) = (source_of::<N, P>(packet, inner)?, destination_of::<N, P>(packet, inner)?);
    let quoted = FlowKey { src, dst, sport, dport, proto, kind, pad: 0 };
    Some(Quote {
        key: quoted.turned(kind),
        l3: (l3 & 0xff) as u8,
        at: (at & MAX_L4) as u16,
        l4: (l4 & MAX_L4) as u16,
    })
}

/// Turns quote and outer addresses into what the sender of the quoted packet knows; `None` if the
/// packet ends before.
#[inline(always)]
fn rewrite<const N: usize, P: Packet>(
    packet: &mut P,
    quote: &Quote<N>,
    flow: &Flow<N>,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    let key = &quote.key;
    let inner = quote.at().wrapping_add(QUOTE);
    let width = size_of::<Ip<N>>();
    // The quote travelled the other way: its source is what the flow's packets are sent to.
    let inner_at = inner.wrapping_add(Ipv::<N>::ADDRESSES);
    packet.set_words(inner_at, &flow.dst)?;
    packet.set_words(inner_at.wrapping_add(width), &flow.src)?;
    packet.set_words(quote.l4(), &[join_ports(flow.dport, flow.sport)])?;
    let inner_addresses =
        Diff::default().words(&key.dst, &flow.dst).words(&key.src, &flow.src).sum();
    let ports = Diff::default().half(key.dport, flow.dport).half(key.sport, flow.sport).sum();

    // The error itself may come from the backend, or from any router.
    let outer_at = quote.l3().wrapping_add(Ipv::<N>::ADDRESSES);
    let src: Ip<N> = packet.words(outer_at)?;
    let mut outer = Diff::default().words(&key.dst, &flow.dst);
    // Either end of a flow that is sent on hears of this node only, as netfilter has it: routers on the
    // way to the client may drop what claims to come from an address within the cluster.
    let sent_on = flow.flags & Flow::<N>::FORWARDED != 0;
    if src == key.src || sent_on {
        packet.set_words(outer_at, &flow.src)?;
        outer = outer.words(&src, &flow.src);
    }
    packet.set_words(outer_at.wrapping_add(width), &flow.dst)?;
    let outer = outer.sum();

    let mut change = Diff::default().word(u32::MAX, ports);
    // The quote may end before its own checksum.
    let sum_at = quote.l4().wrapping_add(if key.proto == proto::UDP { 6 } else { 16 });
    if key.proto != proto::SCTP
        && let Some(old) = packet.u16(sum_at)
    {
        let udp = key.proto == proto::UDP;
        let quoted = ChecksumChange { pseudo: inner_addresses, header: ports, udp, ipv6: N != V4 };
        if let Some(new) = adjusted(old, &quoted) {
            packet.set_u16(sum_at, new)?;
            change = change.half(old, new);
        }
    }
    if N == V4 {
        // Either header's own checksum makes up for its addresses.
        let at = inner.wrapping_add(10);
        packet.set_u16(at, updated(packet.u16(at)?, inner_addresses))?;
        let at = quote.l3().wrapping_add(10);
        packet.set_u16(at, updated(packet.u16(at)?, outer))?;
    } else {
        // ICMPv6 covers both (RFC 4443 section 2.3).
        change = change.word(u32::MAX, inner_addresses).word(u32::MAX, outer);
    }
    let at = quote.at().wrapping_add(2);
    packet.set_u16(at, updated(packet.u16(at)?, change.sum()))
}

/// Answers a ping of a VIP: it is this node that serves it. One of the node's own addresses is the
/// node's business, and so is what would begin no flow. [`Verdict::UndefinedPort`]: enough was
/// answered for now.
#[inline(never)]
fn echo<const N: usize, P, T>(packet: &mut P, tables: &T, l3: usize, at: usize) -> Verdict
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let (l3, at) = (l3 & 0xff, at & MAX_L4);
    // One after the other: with both in one pattern the compiler compares the first once more, and
    // the verifier does not know that the answer is the same.
    let Some(src) = source_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    let Some(dst) = destination_of::<N, P>(packet, l3) else { return Verdict::Unparsed };
    if !AddressFlags::is_services_alone(what_is(tables, &dst)) {
        return Verdict::NotService;
    }
    let interface = InterfaceWord(arrival(tables));
    if interface.has(InterfaceFlags::OFF_NODE)
        && beyond::<N, P>(packet, tables.arrival(), interface, l3, &src)
    {
        return Verdict::NotService;
    }
    // They share the limit of refusals: either is an answer to whom we know nothing of.
    let Some(word) = tables.refusals().and_then(|word| word.spend(tables.now())) else {
        return Verdict::UndefinedPort;
    };
    tables.set_refusals(word);
    if answer::<N, P>(packet, l3, at, &src, &dst).is_none() {
        return Verdict::Rewrite;
    }
    tables.count(Counter::EchoAnswered);
    Verdict::Reflected
}

#[inline(always)]
fn answer<const N: usize, P: Packet>(
    packet: &mut P,
    l3: usize,
    at: usize,
    src: &Ip<N>,
    dst: &Ip<N>,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    // Type and code share a word with nothing else; the code of either message is 0.
    let old = packet.u16(at)?;
    let new = u16::from_be_bytes([Ipv::<N>::ECHO.1, 0]).to_be();
    let sum = at.wrapping_add(2);
    let change = Diff::default().half(old, new).sum();
    packet.set_u16(sum, updated(packet.u16(sum)?, change))?;
    packet.set_u16(at, new)?;
    let addresses = l3.wrapping_add(Ipv::<N>::ADDRESSES);
    packet.set_words(addresses, dst)?;
    packet.set_words(addresses.wrapping_add(size_of::<Ip<N>>()), src)
}
