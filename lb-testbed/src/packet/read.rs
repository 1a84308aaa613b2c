//! From bytes to fields, and the question whether every checksum is right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Link, checksum,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

/// A packet's fields, as far as a test asks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Destination and source MAC address, with an Ethernet header.
    pub macs: Option<[[u8; 6]; 2]>,
    /// VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Type of service, traffic class.
    pub tos: u8,
    /// Bytes that the IP header claims, from the IP header on.
    pub claimed: usize,
    /// Extension headers passed, by type.
    pub extensions: Vec<u8>,
    /// Fragment: offset in bytes, whether more follow.
    pub fragment: Option<(usize, bool)>,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source and destination port, where the protocol has them and they are here.
    pub ports: Option<[u16; 2]>,
    /// Where the IP header begins.
    pub ip_at: usize,
    /// Where the upper layer begins.
    pub upper_at: usize,
    /// Where the packet ends: at most what the IP header claims.
    pub end: usize,
}

/// Reads the headers. Understands less than what can be sent: other protocols are errors.
pub fn parse(bytes: &[u8], link: Link) -> Result<Parsed> {
    let mut at = 0;
    let (mut macs, mut vlans) = (None, Vec::new());
    if link == Link::Ethernet {
        macs = Some([array(bytes, 0)?, array(bytes, 6)?]);
        at = 12;
        while matches!(be16(bytes, at)?, 0x8100 | 0x88a8) {
            vlans.push(be16(bytes, at + 2)?);
            at += 4;
        }
        let ethertype = be16(bytes, at)?;
        ensure!(matches!(ethertype, 0x0800 | 0x86dd), "EtherType {ethertype:#06x} is not IP");
        at += 2;
    }
    let mut parsed = match bytes.get(at).map(|first| first >> 4) {
        Some(4) => parse_v4(bytes, at)?,
        Some(6) => parse_v6(bytes, at)?,
        other => bail!("IP version {other:?}"),
    };
    parsed.macs = macs;
    parsed.vlans = vlans;
    let first = parsed.fragment.is_none_or(|(offset, _)| offset == 0);
    if first && matches!(parsed.protocol, TCP | UDP | SCTP) {
        let at = parsed.upper_at;
        parsed.ports = be16(bytes, at).and_then(|sport| Ok([sport, be16(bytes, at + 2)?])).ok();
    }
    Ok(parsed)
}

/// Checks every checksum that can be checked: the IP header's, the upper layer's unless it is a
/// fragment, and those of a packet within an ICMP error as far as it is there.
pub fn checksums_ok(bytes: &[u8], link: Link) -> Result<()> {
    let parsed = parse(bytes, link)?;
    check(bytes, &parsed, true)
}

fn check(bytes: &[u8], parsed: &Parsed, must_be_whole: bool) -> Result<()> {
    if parsed.src.is_ipv4() {
        let header = bytes.get(parsed.ip_at..parsed.upper_at).context("an IPv4 header")?;
        ensure!(checksum::ones_sum(header) == 0xffff, "wrong IPv4 header checksum");
    }
    let claimed_end = parsed.ip_at + parsed.claimed;
    if parsed.fragment.is_some() {
        return Ok(());
    }
    if bytes.len() < claimed_end {
        ensure!(!must_be_whole, "the IP header claims {claimed_end} bytes of {}", bytes.len());
        return Ok(());
    }
    let upper = bytes.get(parsed.upper_at..claimed_end).context("an upper layer")?;
    let (src, dst, protocol) = (parsed.src, parsed.dst, parsed.protocol);
    let pseudo = || checksum::with_pseudo_header(src, dst, protocol, upper);
    let right = match protocol {
        UDP if be16(upper, 6)? == 0 => src.is_ipv4(),
        TCP | UDP | ICMPV6 => checksum::ones_sum(&pseudo()) == 0xffff,
        ICMP => checksum::ones_sum(upper) == 0xffff,
        SCTP => {
            let mut zeroed = upper.to_vec();
            let field = zeroed.get_mut(8..12).context("an SCTP header")?;
            let sent: [u8; 4] = array(field, 0)?;
            field.fill(0);
            checksum::crc32c(&zeroed).to_le_bytes() == sent
        }
        _ => true,
    };
    ensure!(right, "wrong checksum of protocol {protocol}");
    if is_icmp_error(protocol, upper) {
        let inner = upper.get(8..).context("a packet within an ICMP error")?;
        let fields = parse(inner, Link::None).context("packet within the ICMP error")?;
        check(inner, &fields, false).context("packet within the ICMP error")?;
    }
    Ok(())
}

/// Whether an ICMP message carries the beginning of a packet.
pub(super) fn is_icmp_error(protocol: u8, upper: &[u8]) -> bool {
    match (protocol, upper.first()) {
        (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ICMPV6, Some(kind)) => *kind < 128,
        _ => false,
    }
}

fn parse_v4(bytes: &[u8], at: usize) -> Result<Parsed> {
    let length = usize::from(bytes[at] & 0x0f) * 4;
    ensure!(length >= 20, "an IPv4 header of {length} bytes");
    let claimed = usize::from(be16(bytes, at + 2)?);
    let fragment = be16(bytes, at + 6)?;
    let (offset, more) = (usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
    let [tos] = array(bytes, at + 1)?;
    let [ttl, protocol] = array(bytes, at + 8)?;
    Ok(Parsed {
        macs: None,
        vlans: Vec::new(),
        src: Ipv4Addr::from(array::<4>(bytes, at + 12)?).into(),
        dst: Ipv4Addr::from(array::<4>(bytes, at + 16)?).into(),
        ttl,
        tos,
        claimed,
        extensions: Vec::new(),
        fragment: (offset > 0 || more).then_some((offset, more)),
        protocol,
        ports: None,
        ip_at: at,
        upper_at: at + length,
        end: bytes.len().min(at + claimed),
    })
}

fn parse_v6(bytes: &[u8], at: usize) -> Result<Parsed> {
    let claimed = 40 + usize::from(be16(bytes, at + 4)?);
    let [first, second] = array(bytes, at)?;
    let [mut protocol, ttl] = array(bytes, at + 6)?;
    let (mut upper_at, mut extensions, mut fragment) = (at + 40, Vec::new(), None);
    while matches!(protocol, 0 | 43 | 44 | 51 | 60) {
        extensions.push(protocol);
        let [next, length] = array(bytes, upper_at)?;
        let length = match protocol {
            44 => {
                let field = be16(bytes, upper_at + 2)?;
                fragment = Some((usize::from(field & 0xfff8), field & 1 != 0));
                8
            }
            51 => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        upper_at += length;
        protocol = next;
        // What follows the header of a later fragment is not what its next-header field says.
        if fragment.is_some_and(|(offset, _)| offset > 0) {
            break;
        }
    }
    Ok(Parsed {
        macs: None,
        vlans: Vec::new(),
        src: Ipv6Addr::from(array::<16>(bytes, at + 8)?).into(),
        dst: Ipv6Addr::from(array::<16>(bytes, at + 24)?).into(),
        ttl,
        tos: (first << 4) | (second >> 4),
        claimed,
        extensions,
        fragment,
        protocol,
        ports: None,
        ip_at: at,
        upper_at,
        end: bytes.len().min(at + claimed),
    })
}

fn be16(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_be_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..at + N)
        .and_then(|part| part.try_into().ok())
        .with_context(|| format!("the packet of {} bytes ends before byte {}", bytes.len(), at + N))
}
