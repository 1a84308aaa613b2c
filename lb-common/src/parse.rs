//! From bytes to the flow key of a packet, or the reason why it has none.
//!
//! Everything read here is hostile: no length is believed before it is compared, every offset is
//! masked or bounded so that the verifier can see it, and no loop depends on the packet.

mod ipv6;

use crate::abi::{FlowKey, Ip, V4, proto};
use crate::csum::{Diff, updated, updated_twice};
use crate::packet::Packet;
use crate::verdict::Verdict;
pub use ipv6::MAX_EXTENSIONS;

/// What lies before the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header, with up to two VLAN tags.
    Ethernet,
    /// Nothing: tun, `WireGuard`, ipip.
    None,
}

/// Where the IP header begins, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4 at this offset.
    V4(usize),
    /// IPv6 at this offset.
    V6(usize),
}

/// Headers of a TCP, UDP or SCTP packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<const N: usize> {
    /// The packet's tuple; `kind` is the hook's.
    pub key: FlowKey<N>,
    /// TCP flags (RFC 9293 section 3.1); SYN for an SCTP packet that opens, 0 for others.
    pub tcp_flags: u8,
    /// Offset of the IP header. Bytes and halves on purpose: what the verifier reads back from
    /// them is an unknown number of known size, so it follows what comes next once and not once
    /// for each combination of tags, options and extensions.
    l3: u8,
    /// Offset of the transport header, at most [`MAX_L4`].
    l4: u16,
}

/// The transport header must begin within this many bytes.
pub const MAX_L4: usize = 0x3ff;

/// TCP flag bits.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// Acknowledgement.
    pub const ACK: u8 = 1 << 4;
}

impl<const N: usize> Headers<N> {
    /// Whether this accepts a TCP connection: SYN with ACK.
    #[inline(always)]
    pub const fn accepts(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub const fn l3(&self) -> usize {
        self.l3 as usize
    }

    /// Offset of the transport header.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l4 as usize & MAX_L4
    }

    /// Whether this is TCP.
    #[inline(always)]
    pub const fn is_tcp(&self) -> bool {
        self.key.proto == proto::TCP
    }

    /// Whether this asks for a new connection: SYN without ACK, or SCTP's INIT.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// Bytes of an Ethernet header without VLAN tags.
pub(crate) const ETHERNET: usize = 14;
const VLAN: usize = 4;

/// Finds the IP header.
#[inline(always)]
pub fn network<P: Packet>(packet: &P, link: Link) -> Result<Network, Verdict> {
    if link == Link::None {
        // A whole word: a check of one byte at offset 0 is one that the verifier does not see.
        let [first] = packet.words::<1>(0).ok_or(Verdict::Unparsed)?;
        return match u32::from_be(first) >> 28 {
            4 => Ok(Network::V4(0)),
            6 => Ok(Network::V6(0)),
            _ => Err(Verdict::NotTransport),
        };
    }
    let mut l3 = ETHERNET;
    // The tags that hardware or the kernel took off are not in the packet; these are the others.
    for _ in 0..3 {
        let ethertype = packet.u16(l3.wrapping_sub(2)).ok_or(Verdict::Unparsed)?;
        match u16::from_be(ethertype) {
            ETH_P_IP => return Ok(Network::V4(l3)),
            ETH_P_IPV6 => return Ok(Network::V6(l3)),
            ETH_P_8021Q | ETH_P_8021AD => l3 = l3.wrapping_add(VLAN),
            _ => return Err(Verdict::NotTransport),
        }
    }
    Err(Verdict::Unparsed)
}

/// What becomes of a packet that may concern us, by its IP header alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The usual case.
    Whole,
    /// ICMP or `ICMPv6`.
    Icmp,
    /// A fragment, or IPv6 with extension headers, among which may be that of a fragment.
    Fragment,
}

/// The destination address of a packet whose IP header is at `l3`; nothing else is looked at.
#[inline(always)]
pub fn destination_of<const N: usize, P: Packet>(packet: &P, l3: usize) -> Option<Ip<N>>
where
    Ipv<N>: Header<N>,
{
    packet.words(l3.wrapping_add(Ipv::<N>::ADDRESSES).wrapping_add(size_of::<Ip<N>>()))
}

/// Its source address.
#[inline(always)]
pub fn source_of<const N: usize, P: Packet>(packet: &P, l3: usize) -> Option<Ip<N>>
where
    Ipv<N>: Header<N>,
{
    packet.words(l3.wrapping_add(Ipv::<N>::ADDRESSES))
}

/// A family's header, as far as the flow key needs it.
pub trait Header<const N: usize> {
    /// Offset of the source address in the header; the destination follows it.
    const ADDRESSES: usize;
    /// Types of ICMP messages: echo request, echo reply.
    const ECHO: (u8, u8);

    /// What kind of packet it is.
    fn shape<P: Packet>(packet: &P, l3: usize) -> Option<Shape>;

    /// Offset of an ICMP message that follows this header.
    fn icmp<P: Packet>(packet: &P, l3: usize) -> Option<usize>;

    /// Whether a message of this type quotes the packet that it is about, and so may be meant for who
    /// sent that.
    fn is_error(icmp_type: u8) -> bool;

    /// Protocol and offset of the transport header in a quoted packet, which begins at `l3`.
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<(u8, usize)>;

    /// What all fragments of a datagram share besides addresses, and this one's place: identification,
    /// protocol, whether it is the first one.
    fn fragment<P: Packet>(packet: &P, l3: usize) -> Option<Part>;

    /// Protocol and word of ports of a packet of the usual shape.
    fn ports<P: Packet>(packet: &P, l3: usize) -> Option<(u8, u32)>;

    /// Bytes of the packet, as its header has it; 0 if they are too many for that.
    fn length<P: Packet>(packet: &P, l3: usize) -> Option<u32>;

    /// How many routers it may still pass.
    fn hops<P: Packet>(packet: &P, l3: usize) -> Option<u8>;

    /// One router less.
    fn pass_router<P: Packet>(packet: &mut P, l3: usize) -> Option<()>;

    /// Writes addresses, whose change has the difference `change`, with what the header itself sums up;
    /// and with one router less, if `routed`.
    fn address<P: Packet>(
        packet: &mut P,
        l3: usize,
        change: u32,
        to: [&Ip<N>; 2],
        routed: bool,
    ) -> Option<()>;

    /// Whether an address is that of one host that may be reached.
    fn is_host(ip: &Ip<N>) -> bool;

    /// What follows this header.
    fn read<P: Packet>(packet: &P, l3: usize) -> Result<Transport, Verdict>;

    /// Finds the transport header behind extension headers, if there are any.
    fn extend<P: Packet>(packet: &P, transport: &mut Transport) -> Result<(), Verdict>;
}

/// Where the transport header is, and what the IP header says of it.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    proto: u8,
    at: usize,
    /// Bytes from there to the end of the packet.
    length: usize,
}

/// The length of a packet whose header says 0: segments that the kernel keeps as one of more than
/// 64 KiB (BIG TCP). What is really there is checked at each access.
const BIG: usize = 0x1_0000;

/// Selects the header of an address width.
pub struct Ipv<const N: usize>;

/// A fragment as its IP header describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Identification, as it lies in the packet.
    pub id: u32,
    /// Protocol, where each fragment tells it; else 0.
    pub proto: u8,
    /// It begins with the transport header.
    pub first: bool,
    /// It is the only one.
    pub whole: bool,
}

impl Header<V4> for Ipv<V4> {
    const ADDRESSES: usize = 12;
    const ECHO: (u8, u8) = (8, 0);

    #[inline(always)]
    fn shape<P: Packet>(packet: &P, l3: usize) -> Option<Shape> {
        let [fragment, ttl_proto] = packet.words(l3.wrapping_add(4))?;
        // More fragments, or an offset.
        if u32::from_be(fragment) & 0x3fff != 0 {
            return Some(Shape::Fragment);
        }
        let icmp = u32::from_be(ttl_proto) >> 16 & 0xff == proto::ICMP as u32;
        Some(if icmp { Shape::Icmp } else { Shape::Whole })
    }

    #[inline(always)]
    fn icmp<P: Packet>(packet: &P, l3: usize) -> Option<usize> {
        let [first] = packet.words(l3)?;
        let header = (u32::from_be(first) >> 22 & 0x3c) as usize;
        if header < 20 { None } else { Some(l3.wrapping_add(header)) }
    }

    /// RFC 792: destination unreachable, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 11 | 12)
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<(u8, usize)> {
        let [first, fragment, ttl_proto] = packet.words(l3)?;
        let first = u32::from_be(first);
        let header = ((first >> 22) & 0x3c) as usize;
        if first >> 28 != 4 || header < 20 || u32::from_be(fragment) & 0x1fff != 0 {
            return None;
        }
        Some(((u32::from_be(ttl_proto) >> 16 & 0xff) as u8, l3.wrapping_add(header)))
    }

    #[inline(always)]
    fn fragment<P: Packet>(packet: &P, l3: usize) -> Option<Part> {
        let [fragment, ttl_proto] = packet.words(l3.wrapping_add(4))?;
        let fragment = u32::from_be(fragment);
        let (offset, more) = (fragment & 0x1fff, fragment & 0x2000);
        Some(Part {
            id: fragment >> 16,
            proto: (u32::from_be(ttl_proto) >> 16 & 0xff) as u8,
            first: offset == 0,
            whole: offset | more == 0,
        })
    }

    #[inline(always)]
    fn ports<P: Packet>(packet: &P, l3: usize) -> Option<(u8, u32)> {
        let [first, _, ttl_proto] = packet.words(l3)?;
        let header = (u32::from_be(first) >> 22 & 0x3c) as usize;
        let [ports] = packet.words(l3.wrapping_add(header))?;
        Some(((u32::from_be(ttl_proto) >> 16 & 0xff) as u8, ports))
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P, l3: usize) -> Option<u32> {
        let [first] = packet.words(l3)?;
        Some(u32::from_be(first) & 0xffff)
    }

    #[inline(always)]
    fn hops<P: Packet>(packet: &P, l3: usize) -> Option<u8> {
        let both = packet.u16(l3.wrapping_add(8))?;
        Some((u16::from_be(both) >> 8) as u8)
    }

    #[inline(always)]
    fn pass_router<P: Packet>(packet: &mut P, l3: usize) -> Option<()> {
        let (at, sum) = (l3.wrapping_add(8), l3.wrapping_add(10));
        let old = packet.u16(at)?;
        let new = u16::from_be(old).wrapping_sub(0x0100).to_be();
        let change = Diff::default().half(old, new).sum();
        packet.set_u16(sum, updated(packet.u16(sum)?, change))?;
        packet.set_u16(at, new)
    }

    #[inline(always)]
    fn address<P: Packet>(
        packet: &mut P,
        l3: usize,
        change: u32,
        [[src], [dst]]: [&Ip<V4>; 2],
        routed: bool,
    ) -> Option<()> {
        let at = l3.wrapping_add(8);
        let [word] = packet.words(at)?;
        let (old, sum) = split_ports(word);
        let new = u16::from_be(old).wrapping_sub(if routed { 0x0100 } else { 0 }).to_be();
        let hop = if routed { Diff::default().half(old, new).sum() } else { 0 };
        packet.set_words(at, &[join_ports(new, updated_twice(sum, change, hop)), *src, *dst])
    }

    #[inline(always)]
    fn is_host(ip: &Ip<V4>) -> bool {
        let [ip] = *ip;
        let first = u32::from_be(ip) >> 24;
        first != 0 && first != 127 && first < 224
    }

    /// RFC 791: options are skipped, a first fragment counts as a packet, a later one has no ports.
    #[inline(always)]
    fn read<P: Packet>(packet: &P, l3: usize) -> Result<Transport, Verdict> {
        let [first, fragment, ttl_proto] = packet.words(l3).ok_or(Verdict::Unparsed)?;
        let first = u32::from_be(first);
        let header = ((first >> 22) & 0x3c) as usize;
        let total = (first & 0xffff) as usize;
        if first >> 28 != 4 || header < 20 || (total != 0 && total < header) {
            return Err(Verdict::Unparsed);
        }
        if u32::from_be(fragment) & 0x1fff != 0 {
            return Err(Verdict::Fragment);
        }
        Ok(Transport {
            proto: (u32::from_be(ttl_proto) >> 16 & 0xff) as u8,
            at: l3.wrapping_add(header),
            length: if total == 0 { BIG } else { total.wrapping_sub(header) },
        })
    }

    #[inline(always)]
    fn extend<P: Packet>(_: &P, _: &mut Transport) -> Result<(), Verdict> {
        Ok(())
    }
}

/// Reads the headers of a packet whose IP header is at `l3`, as seen at a hook of `kind`.
#[inline(always)]
pub fn headers<const N: usize, P: Packet>(
    packet: &P,
    l3: usize,
    kind: u8,
) -> Result<Headers<N>, Verdict>
where
    Ipv<N>: Header<N>,
{
    let mut transport = Ipv::<N>::read(packet, l3)?;
    Ipv::<N>::extend(packet, &mut transport)?;
    both(packet, l3, transport, kind)
}

/// The same of a packet without extension headers, as it is but for a few.
#[inline(always)]
pub(crate) fn plain_headers<const N: usize, P: Packet>(
    packet: &P,
    l3: usize,
    kind: u8,
) -> Result<Headers<N>, Verdict>
where
    Ipv<N>: Header<N>,
{
    both(packet, l3, Ipv::<N>::read(packet, l3)?, kind)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both are masked")]
fn both<const N: usize, P: Packet>(
    packet: &P,
    l3: usize,
    transport: Transport,
    kind: u8,
) -> Result<Headers<N>, Verdict>
where
    Ipv<N>: Header<N>,
{
    let at = transport.at;
    let smallest = match transport.proto {
        proto::TCP => 20,
        proto::UDP => 8,
        proto::SCTP => 12,
        _ => return Err(Verdict::NotTransport),
    };
    if transport.length < smallest || at > MAX_L4 {
        return Err(Verdict::Unparsed);
    }
    let tcp_flags = if transport.proto == proto::TCP {
        packet.u8(at.wrapping_add(13)).ok_or(Verdict::Unparsed)?
    } else if transport.proto == proto::SCTP {
        // Only an INIT has no verification tag (RFC 9260 section 8.5.1): it opens, as a SYN does.
        let [tag] = packet.words(at.wrapping_add(4)).ok_or(Verdict::Unparsed)?;
        if tag == 0 { tcp::SYN } else { 0 }
    } else {
        0
    };
    let [ports] = packet.words(at).ok_or(Verdict::Unparsed)?;
    let (sport, dport) = split_ports(ports);
    let addresses = l3.wrapping_add(Ipv::<N>::ADDRESSES);
    // Last, so that these words go from the packet to the stack and nowhere else.
    let src = packet.words(addresses).ok_or(Verdict::Unparsed)?;
    let dst = packet.words(addresses.wrapping_add(size_of::<Ip<N>>())).ok_or(Verdict::Unparsed)?;
    Ok(Headers {
        key: FlowKey { src, dst, sport, dport, proto: transport.proto, kind, pad: 0 },
        tcp_flags,
        // Both were compared above; `try_from` would leave a path that the verifier cannot rule out.
        l3: (l3 & 0xff) as u8,
        l4: (at & MAX_L4) as u16,
    })
}

/// A length within a packet that was checked or is a constant, or the distance of two of its headers.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
pub(crate) const fn short(length: usize) -> u32 {
    (length & 0xffff) as u32
}

/// Splits the word of both ports, each in network order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
pub(crate) const fn split_ports(word: u32) -> (u16, u16) {
    let (low, high) = (word as u16, (word >> 16) as u16);
    if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
}

/// The word of both ports, each in network order.
#[inline(always)]
pub(crate) const fn join_ports(sport: u16, dport: u16) -> u32 {
    let (low, high) = if cfg!(target_endian = "little") { (sport, dport) } else { (dport, sport) };
    low as u32 | ((high as u32) << 16)
}
