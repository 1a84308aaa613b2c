//! The answer to a refused packet: a reset for TCP, port unreachable for the rest; an ICMP error for
//! what is too long for its way, or was on it for too long.
//!
//! The packet itself becomes the answer and goes back to where it came from. The answer is made from
//! scratch: no options or extension headers, complete checksums, and of the packet that an ICMP error
//! quotes no more than its sender needs to know its socket by (the IP header and eight bytes, RFC 792).
//! An answer is as small as a packet can be, and their number is limited, so that nobody is flooded
//! through us.

use crate::abi::{Counter, FlowKind, V4, V6, proto};
use crate::csum::Sum;
use crate::packet::Renew;
use crate::parse::{
    ETHERNET, Header, Headers, Ipv, Link, Network, headers, join_ports, network, short, tcp,
};
use crate::rewrite::swap_ethernet;
use crate::tables::RefusalTables;
use crate::verdict::Verdict;

/// What the sender of a refused packet is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody is there: a reset for TCP, port unreachable for the rest.
    Port,
    /// This many bytes would fit (RFC 1191, RFC 8201).
    TooBig(u16),
    /// It was on its way for too long.
    TimeExceeded,
}

impl Reason {
    /// As one word, for who hands it to another program.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        match self {
            Self::Port => 0,
            Self::TooBig(mtu) => 1 | (mtu as u32) << 16,
            Self::TimeExceeded => 2,
        }
    }

    /// From [`Reason::word`].
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        match word & 0xff {
            1 => Self::TooBig((word >> 16) as u16),
            2 => Self::TimeExceeded,
            _ => Self::Port,
        }
    }

    /// Why a packet with this verdict is refused; `mtu` is asked for what is too long.
    #[inline(always)]
    pub fn for_verdict(verdict: Verdict, mtu: impl FnOnce() -> u32) -> Self {
        match verdict {
            // No link fits more.
            Verdict::TooBig => Self::TooBig(mtu().min(0xffff) as u16),
            Verdict::TimeExceeded => Self::TimeExceeded,
            _ => Self::Port,
        }
    }
}

/// What becomes of a refused packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The packet is the answer now.
    Answered,
    /// It is dropped, and nobody is told.
    Silent,
}

/// Time to live of an answer, as the kernel's own has.
const TTL: u32 = 64;
const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// Bytes behind the IP header that an ICMP error quotes.
const QUOTED: usize = 8;
/// Type and code of an ICMP error, and the word behind its checksum.
type Message = (u32, u32);

/// RFC 792: port unreachable, fragmentation needed (RFC 1191), time to live exceeded in transit.
#[inline(always)]
const fn message4(reason: Reason) -> Message {
    match reason {
        Reason::Port => (0x0303_0000, 0),
        Reason::TooBig(mtu) => (0x0304_0000, mtu as u32),
        Reason::TimeExceeded => (0x0b00_0000, 0),
    }
}

/// RFC 4443: port unreachable, packet too big, hop limit exceeded in transit.
#[inline(always)]
const fn message6(reason: Reason) -> Message {
    match reason {
        Reason::Port => (0x0104_0000, 0),
        Reason::TooBig(mtu) => (0x0200_0000, mtu as u32),
        Reason::TimeExceeded => (0x0300_0000, 0),
    }
}

/// Turns a packet that is refused into its answer, if it may be answered.
#[inline(always)]
pub fn answer<P: Renew, T: RefusalTables>(
    packet: &mut P,
    tables: &T,
    link: Link,
    reason: Reason,
) -> Refusal {
    let counter = match network(packet, link) {
        Ok(Network::V4(l3)) => answer_ip::<V4, P, T>(packet, tables, l3, link, reason),
        Ok(Network::V6(l3)) => answer_ip::<V6, P, T>(packet, tables, l3, link, reason),
        Err(_) => Counter::RefusalUnanswered,
    };
    tables.count(counter);
    if counter as u32 == Counter::RefusalAnswered as u32 {
        Refusal::Answered
    } else {
        Refusal::Silent
    }
}

#[inline(always)]
fn answer_ip<const N: usize, P, T>(
    packet: &mut P,
    tables: &T,
    l3: usize,
    link: Link,
    reason: Reason,
) -> Counter
where
    P: Renew,
    T: RefusalTables,
    Ipv<N>: Header<N> + Answer<N>,
{
    // Fails for all but the first of several fragments, too.
    let Ok(headers) = headers::<N, P>(packet, l3, FlowKind::INGRESS) else {
        return Counter::RefusalUnanswered;
    };
    if !may_be_told(packet, &headers, link) {
        return Counter::RefusalUnanswered;
    }
    let Some(word) = tables.refusals().and_then(|word| word.spend(tables.now())) else {
        return Counter::RefusalSuppressed;
    };
    tables.set_refusals(word);
    let made = if headers.is_tcp() && reason == Reason::Port {
        reset(packet, &headers)
    } else {
        Ipv::<N>::error(packet, &headers, reason)
    };
    if made.is_none() || (link == Link::Ethernet && swap_ethernet(packet).is_none()) {
        return Counter::RefusalUnanswered;
    }
    Counter::RefusalAnswered
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4: nothing is told about what came to many, nor to
/// who has no address of its own; and a reset is never answered (RFC 9293 section 3.5.2).
#[inline(always)]
fn may_be_told<const N: usize, P: Renew>(packet: &P, headers: &Headers<N>, link: Link) -> bool
where
    Ipv<N>: Header<N>,
{
    // The kernel cannot cut a packet behind a VLAN tag that lies in it, as the second one does.
    if link == Link::Ethernet && headers.l3() != ETHERNET {
        return false;
    }
    // A whole word: a check of one byte at offset 0 is one that the verifier does not see.
    let group = |[first]: [u32; 1]| u32::from_be(first) & 0x0100_0000 != 0;
    let to_many = link == Link::Ethernet && packet.words(0).is_none_or(group);
    !to_many && headers.tcp_flags & tcp::RST == 0 && Ipv::<N>::is_host(&headers.key.src)
}

/// What differs between the families.
pub trait Answer<const N: usize> {
    /// Bytes of the IP header.
    const LENGTH: usize;

    /// Bytes from the transport header to the end of the packet, as its IP header has it.
    fn transport_length<P: Renew>(packet: &P, headers: &Headers<N>) -> Option<u32>;

    /// Writes an IP header back to the source, before `length` bytes.
    fn write<P: Renew>(
        packet: &mut P,
        headers: &Headers<N>,
        proto: u8,
        length: usize,
    ) -> Option<()>;

    /// Makes an ICMP error of the packet.
    fn error<P: Renew>(packet: &mut P, headers: &Headers<N>, reason: Reason) -> Option<()>;
}

/// RFC 9293 section 3.5.2: a reset that the sender takes for one of its connection.
#[inline(always)]
fn reset<const N: usize, P: Renew>(packet: &mut P, headers: &Headers<N>) -> Option<()>
where
    Ipv<N>: Answer<N>,
{
    let l4 = headers.l4();
    let [seq, ack, rest] = packet.words(l4.wrapping_add(4))?;
    let (seq, ack, flags) = if headers.tcp_flags & tcp::ACK != 0 {
        (ack, 0, tcp::RST)
    } else {
        let header = (u32::from_be(rest) >> 28) << 2;
        let payload = Ipv::<N>::transport_length(packet, headers)?.checked_sub(header)?;
        let flags = headers.tcp_flags;
        let marks = (flags & tcp::FIN) as u32 + ((flags & tcp::SYN) >> 1) as u32;
        let next = u32::from_be(seq).wrapping_add(payload).wrapping_add(marks);
        (0, next.to_be(), tcp::RST | tcp::ACK)
    };
    packet.renew(headers.l3(), l4, Ipv::<N>::LENGTH.wrapping_add(TCP_HEADER))?;
    Ipv::<N>::write(packet, headers, proto::TCP, TCP_HEADER)?;
    let key = &headers.key;
    let ports = join_ports(key.dport, key.sport);
    // The header's length in words, and no window.
    let control = (5 << 28 | (flags as u32) << 16).to_be();
    let sum = pseudo(headers, proto::TCP, TCP_HEADER).words(&[ports, seq, ack, control]);
    let header = [ports, seq, ack, control, join_ports(sum.checksum(), 0)];
    packet.set_words(headers.l3().wrapping_add(Ipv::<N>::LENGTH), &header)
}

/// The sum over the pseudo header.
#[inline(always)]
fn pseudo<const N: usize>(headers: &Headers<N>, proto: u8, length: usize) -> Sum {
    let sum = Sum::default().words(&headers.key.src).words(&headers.key.dst);
    sum.word(u32::from(proto).to_be()).word(short(length).to_be())
}

impl Answer<V4> for Ipv<V4> {
    const LENGTH: usize = 20;

    #[inline(always)]
    fn transport_length<P: Renew>(packet: &P, headers: &Headers<V4>) -> Option<u32> {
        let [first] = packet.words(headers.l3())?;
        let before = headers.l4().wrapping_sub(headers.l3());
        (u32::from_be(first) & 0xffff).checked_sub(short(before))
    }

    #[inline(always)]
    fn write<P: Renew>(
        packet: &mut P,
        headers: &Headers<V4>,
        proto: u8,
        length: usize,
    ) -> Option<()> {
        let ([src], [dst]) = (headers.key.dst, headers.key.src);
        let first = (0x4500_0000 | short(length.wrapping_add(Self::LENGTH))).to_be();
        // Never fragmented, so it needs no identification (RFC 6864).
        let header = with_checksum([first, 0x4000_u32.to_be(), protocol(proto), src, dst]);
        packet.set_words(headers.l3(), &header)
    }

    #[inline(always)]
    fn error<P: Renew>(packet: &mut P, headers: &Headers<V4>, reason: Reason) -> Option<()> {
        let (l3, l4) = (headers.l3(), headers.l4());
        let [first, id, ttl_proto, src, dst] = packet.words(l3)?;
        let quoted: [u32; QUOTED / 4] = packet.words(l4)?;
        // Without options: what is left out of the header is left out of its lengths.
        let total = (u32::from_be(first) & 0xffff)
            .wrapping_sub(short(l4.wrapping_sub(l3)))
            .wrapping_add(short(Self::LENGTH));
        let first = (0x4500_0000 | (u32::from_be(first) & 0x00ff_0000) | (total & 0xffff)).to_be();
        let ttl_proto = (u32::from_be(ttl_proto) & 0xffff_0000).to_be();
        let header = with_checksum([first, id, ttl_proto, src, dst]);
        let length = ICMP_HEADER + Self::LENGTH + QUOTED;
        packet.renew(l3, l4, Self::LENGTH + length)?;
        Self::write(packet, headers, proto::ICMP, length)?;
        let (icmp, rest) = message4(reason);
        let (icmp, rest) = (icmp.to_be(), rest.to_be());
        let sum = Sum::default().words(&[icmp, rest]).words(&header).words(&quoted);
        let icmp = [icmp | join_ports(0, sum.checksum()), rest];
        let at = l3.wrapping_add(Self::LENGTH);
        packet.set_words(at, &icmp)?;
        packet.set_words(at.wrapping_add(ICMP_HEADER), &header)?;
        packet.set_words(at.wrapping_add(ICMP_HEADER + Self::LENGTH), &quoted)
    }
}

/// The word of an IPv4 header with time to live and protocol, without checksum.
#[inline(always)]
const fn protocol(proto: u8) -> u32 {
    (TTL << 24 | (proto as u32) << 16).to_be()
}

/// Fills in the checksum of an IPv4 header, which is the second half of its third word.
#[inline(always)]
fn with_checksum(header: [u32; 5]) -> [u32; 5] {
    let sum = Sum::default().words(&header).checksum();
    let [first, id, ttl_proto, src, dst] = header;
    [first, id, ttl_proto | join_ports(0, sum), src, dst]
}

impl Answer<V6> for Ipv<V6> {
    const LENGTH: usize = 40;

    #[inline(always)]
    fn transport_length<P: Renew>(packet: &P, headers: &Headers<V6>) -> Option<u32> {
        let [length] = packet.words(headers.l3().wrapping_add(4))?;
        let before = headers.l4().wrapping_sub(headers.l3()).wrapping_sub(Self::LENGTH);
        (u32::from_be(length) >> 16).checked_sub(short(before))
    }

    #[inline(always)]
    fn write<P: Renew>(
        packet: &mut P,
        headers: &Headers<V6>,
        proto: u8,
        length: usize,
    ) -> Option<()> {
        let second = (short(length) << 16 | (proto as u32) << 8 | TTL).to_be();
        let at = headers.l3();
        packet.set_words(at, &[0x6000_0000_u32.to_be(), second])?;
        packet.set_words(at.wrapping_add(8), &headers.key.dst)?;
        packet.set_words(at.wrapping_add(24), &headers.key.src)
    }

    #[inline(always)]
    fn error<P: Renew>(packet: &mut P, headers: &Headers<V6>, reason: Reason) -> Option<()> {
        let (l3, l4, key) = (headers.l3(), headers.l4(), &headers.key);
        let [first, second] = packet.words(l3)?;
        let quoted: [u32; QUOTED / 4] = packet.words(l4)?;
        // Without extension headers: the transport header follows at once.
        let payload = (u32::from_be(second) >> 16)
            .wrapping_sub(short(l4.wrapping_sub(l3).wrapping_sub(Self::LENGTH)));
        let hops = u32::from_be(second) & 0xff;
        let second = ((payload & 0xffff) << 16 | (key.proto as u32) << 8 | hops).to_be();
        let length = ICMP_HEADER + Self::LENGTH + QUOTED;
        packet.renew(l3, l4, Self::LENGTH + length)?;
        Self::write(packet, headers, proto::ICMPV6, length)?;
        let (icmp, rest) = message6(reason);
        let (icmp, rest) = (icmp.to_be(), rest.to_be());
        let sum = pseudo(headers, proto::ICMPV6, length).words(&[icmp, rest, first, second]);
        let sum = sum.words(&key.src).words(&key.dst).words(&quoted);
        let at = l3.wrapping_add(Self::LENGTH);
        packet.set_words(at, &[icmp | join_ports(0, sum.checksum()), rest, first, second])?;
        packet.set_words(at.wrapping_add(16), &key.src)?;
        packet.set_words(at.wrapping_add(32), &key.dst)?;
        packet.set_words(at.wrapping_add(48), &quoted)
    }
}
