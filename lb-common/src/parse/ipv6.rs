//! The IPv6 header, and the extension headers that may follow it (RFC 8200).

use super::{BIG, Header, Ipv, MAX_L4, Part, Shape, Transport};
use crate::abi::{Ip, V6, proto};
use crate::csum::Diff;
use crate::packet::Packet;
use crate::verdict::Verdict;

impl Header<V6> for Ipv<V6> {
    const ADDRESSES: usize = 8;
    const ECHO: (u8, u8) = (128, 129);

    #[inline(always)]
    fn shape<P: Packet>(packet: &P, l3: usize) -> Option<Shape> {
        let next = packet.u8(l3.wrapping_add(6))?;
        Some(match next {
            proto::TCP | proto::UDP | proto::SCTP => Shape::Whole,
            proto::ICMPV6 => Shape::Icmp,
            _ => Shape::Fragment,
        })
    }

    #[inline(always)]
    fn icmp<P: Packet>(_: &P, l3: usize) -> Option<usize> {
        Some(l3.wrapping_add(40))
    }

    /// RFC 4443 section 2.1: below 128.
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 1..=4)
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<(u8, usize)> {
        let [first, length] = packet.words(l3)?;
        if u32::from_be(first) >> 28 != 6 {
            return None;
        }
        Some(((u32::from_be(length) >> 8 & 0xff) as u8, l3.wrapping_add(40)))
    }

    /// Only a fragment header that follows at once, or behind one other extension header.
    #[inline(always)]
    fn fragment<P: Packet>(packet: &P, l3: usize) -> Option<Part> {
        let at = fragment_header(packet, l3) as usize & MAX_L4;
        if at == 0 {
            return Some(Part { id: 0, proto: 0, first: true, whole: true });
        }
        let [word, id] = packet.words(at)?;
        let offset = u32::from_be(word) & 0xffff;
        let (first, last) = (offset & 0xfff8 == 0, offset & 1 == 0);
        Some(Part { id, proto: 0, first, whole: first && last })
    }

    #[inline(always)]
    fn ports<P: Packet>(packet: &P, l3: usize) -> Option<(u8, u32)> {
        let next = packet.u8(l3.wrapping_add(6))?;
        let [ports] = packet.words(l3.wrapping_add(40))?;
        Some((next, ports))
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P, l3: usize) -> Option<u32> {
        let payload = u16::from_be(packet.u16(l3.wrapping_add(4))?) as u32;
        Some(if payload == 0 { 0 } else { payload.wrapping_add(40) })
    }

    #[inline(always)]
    fn hops<P: Packet>(packet: &P, l3: usize) -> Option<u8> {
        let both = packet.u16(l3.wrapping_add(6))?;
        Some((u16::from_be(both) & 0xff) as u8)
    }

    #[inline(always)]
    fn pass_router<P: Packet>(packet: &mut P, l3: usize) -> Option<()> {
        let at = l3.wrapping_add(6);
        let old = packet.u16(at)?;
        let new = u16::from_be(old).wrapping_sub(1).to_be();
        packet.note_change(Diff::default().half(old, new).sum());
        packet.set_u16(at, new)
    }

    #[inline(always)]
    fn address<P: Packet>(
        packet: &mut P,
        l3: usize,
        _: u32,
        [src, dst]: [&Ip<V6>; 2],
        routed: bool,
    ) -> Option<()> {
        if routed {
            Self::pass_router(packet, l3)?;
        }
        packet.set_words(l3.wrapping_add(8), src)?;
        packet.set_words(l3.wrapping_add(24), dst)
    }

    /// Neither multicast, nor unspecified, nor loopback.
    #[inline(always)]
    fn is_host(ip: &Ip<V6>) -> bool {
        let [first, second, third, last] = *ip;
        u32::from_be(first) >> 24 != 0xff && (first | second | third != 0 || u32::from_be(last) > 1)
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P, l3: usize) -> Result<Transport, Verdict> {
        let [first, length] = packet.words(l3).ok_or(Verdict::Unparsed)?;
        if u32::from_be(first) >> 28 != 6 {
            return Err(Verdict::Unparsed);
        }
        let length = u32::from_be(length);
        Ok(Transport {
            proto: (length >> 8 & 0xff) as u8,
            at: l3.wrapping_add(40),
            length: if length >> 16 == 0 { BIG } else { (length >> 16) as usize },
        })
    }

    /// RFC 8200: up to [`MAX_EXTENSIONS`] extension headers are skipped.
    #[inline(always)]
    fn extend<P: Packet>(packet: &P, transport: &mut Transport) -> Result<(), Verdict> {
        if matches!(transport.proto, proto::TCP | proto::UDP | proto::SCTP) {
            return Ok(());
        }
        extensions(packet, transport)
    }
}

/// Extension headers that are followed; a packet with more is not ours to judge.
pub const MAX_EXTENSIONS: usize = 4;

/// Offset of the fragment header of an IPv6 packet; 0 if it has none, or it lies deeper than behind
/// one other header.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn fragment_header<P: Packet>(packet: &P, l3: usize) -> u32 {
    let l3 = l3 & 0xff;
    let Some(next) = packet.u8(l3.wrapping_add(6)) else { return 0 };
    let at = l3.wrapping_add(40);
    if next == FRAGMENT {
        return at as u32;
    }
    if !matches!(next, HOP_BY_HOP | DESTINATION) {
        return 0;
    }
    let Some(both) = packet.u16(at) else { return 0 };
    let [next, units] = u16::from_be(both).to_be_bytes();
    if next != FRAGMENT {
        return 0;
    }
    let at = at.wrapping_add((units as usize).wrapping_add(1) << 3);
    if at > MAX_L4 { 0 } else { at as u32 }
}

/// Next header values (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Follows extension headers to the transport header. Rare, so it is kept out of the way.
#[inline(never)]
fn extensions<P: Packet>(packet: &P, transport: &mut Transport) -> Result<(), Verdict> {
    let start = transport.at;
    let mut next = transport.proto;
    let mut skipped = 0_usize;
    for _ in 0..=MAX_EXTENSIONS {
        let at = start.wrapping_add(skipped);
        let length = match next {
            proto::TCP | proto::UDP | proto::SCTP => {
                if transport.length < skipped {
                    return Err(Verdict::Unparsed);
                }
                let length = transport.length.wrapping_sub(skipped);
                *transport = Transport { proto: next, at, length };
                return Ok(());
            }
            HOP_BY_HOP | ROUTING | DESTINATION => {
                // Until the last segment the destination seen is not the one that the transport
                // checksum covers (RFC 8200 section 8.1), nor the one that is meant.
                if next == ROUTING && packet.u8(at.wrapping_add(3)).ok_or(Verdict::Unparsed)? != 0 {
                    return Err(Verdict::NotTransport);
                }
                let units = packet.u8(at.wrapping_add(1)).ok_or(Verdict::Unparsed)?;
                (units as usize).wrapping_add(1) << 3
            }
            FRAGMENT => {
                let offset = packet.u16(at.wrapping_add(2)).ok_or(Verdict::Unparsed)?;
                if u16::from_be(offset) & 0xfff8 != 0 {
                    return Err(Verdict::Fragment);
                }
                8
            }
            _ => return Err(Verdict::NotTransport),
        };
        next = packet.u8(at).ok_or(Verdict::Unparsed)?;
        skipped = skipped.wrapping_add(length);
    }
    Err(Verdict::Unparsed)
}
