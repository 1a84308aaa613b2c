//! Writes a translation into a packet: checksums first, because that may fail, then addresses and
//! ports.

use crate::abi::{Flow, V4, proto};
use crate::csum::Diff;
use crate::packet::{ChecksumChange, Packet};
use crate::parse::{Header, Headers, Ipv, join_ports};

/// Replaces the packet's tuple by the flow's; `None` if the packet ends inside its headers.
#[inline(always)]
pub fn apply<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    write(packet, headers, flow, false)
}

/// The same as by a router, which counts hops too.
#[inline(always)]
pub fn apply_routed<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    write(packet, headers, flow, true)
}

#[inline(always)]
fn write<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
    routed: bool,
) -> Option<()>
where
    Ipv<N>: Header<N>,
{
    let key = &headers.key;
    let addresses = Diff::default().words(&key.src, &flow.src).words(&key.dst, &flow.dst).sum();
    let ports = if key.sport == flow.sport && key.dport == flow.dport {
        0
    } else {
        Diff::default().half(key.sport, flow.sport).half(key.dport, flow.dport).sum()
    };
    let udp = key.proto == proto::UDP;
    let change = ChecksumChange { pseudo: addresses, header: ports, udp, ipv6: N != V4 };
    match key.proto {
        proto::TCP => packet.adjust_checksum(headers.l4().wrapping_add(16), &change)?,
        proto::UDP => packet.adjust_checksum(headers.l4().wrapping_add(6), &change)?,
        // SCTP's CRC32c covers no address, and its ports are kept (see `decide`).
        _ if N == V4 => {}
        _ => packet.note_change(addresses),
    }
    Ipv::<N>::address(packet, headers.l3(), addresses, [&flow.src, &flow.dst], routed)?;
    packet.set_words(headers.l4(), &[join_ports(flow.sport, flow.dport)])
}

/// Swaps the Ethernet addresses of a packet that goes back to where it came from.
#[inline(always)]
pub fn swap_ethernet<P: Packet>(packet: &mut P) -> Option<()> {
    for at in [0, 2, 4] {
        let (to, from) = (packet.u16(at)?, packet.u16(at.wrapping_add(6))?);
        packet.set_u16(at, from)?;
        packet.set_u16(at.wrapping_add(6), to)?;
    }
    Some(())
}
