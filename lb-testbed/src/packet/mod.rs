//! Packets for golden tests, built field by field; every checksum is right unless a test says
//! otherwise.
//!
//! ```
//! use lb_testbed::packet::{self, Packet, TcpFlags};
//! let syn = Packet::new("10.244.0.10", "10.96.0.1").tcp(40000, 80, TcpFlags::SYN).build();
//! packet::checksums_ok(&syn, packet::Link::Ethernet).unwrap();
//! ```

mod build;
pub mod checksum;
mod describe;
mod read;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use self::{
    describe::{describe, diff},
    read::{Parsed, checksums_ok, parse},
};

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What a packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, `WireGuard`, ipip.
    None,
}

/// A packet in parts. Fields may be changed freely before [`Packet::build`].
#[derive(Clone, Debug)]
pub struct Packet {
    /// Link layer.
    pub link: Link,
    /// Destination and source MAC address.
    pub macs: [[u8; 6]; 2],
    /// VLAN tags, outermost first: protocol (0x8100, 0x88a8) and tag.
    pub vlans: Vec<(u16, u16)>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Type of service, traffic class.
    pub tos: u8,
    /// IPv4: identification.
    pub id: u16,
    /// IPv4: do not fragment.
    pub dont_fragment: bool,
    /// IPv4: options, padded to four bytes.
    pub options: Vec<u8>,
    /// IPv6: extension headers, in order: type and content from the third byte on, padded to eight.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The upper layer.
    pub upper: Upper,
    /// What follows the upper-layer header.
    pub payload: Vec<u8>,
}

/// The upper-layer header.
#[derive(Clone, Debug)]
pub enum Upper {
    /// TCP with source and destination port.
    Tcp { ports: [u16; 2], flags: TcpFlags, seq: u32, ack: u32, options: Vec<u8> },
    /// UDP with source and destination port; without checksum it is zero.
    Udp { ports: [u16; 2], checksum: bool },
    /// SCTP with source and destination port; the payload is the chunks.
    Sctp { ports: [u16; 2], tag: u32 },
    /// ICMP or `ICMPv6`, by the family: type, code, the four bytes after the checksum.
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    /// Any other protocol, no header.
    Other(u8),
}

/// TCP flags, to be combined with `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    pub const FIN: Self = Self(0x01);
    /// SYN.
    pub const SYN: Self = Self(0x02);
    /// RST.
    pub const RST: Self = Self(0x04);
    /// PSH.
    pub const PSH: Self = Self(0x08);
    /// ACK.
    pub const ACK: Self = Self(0x10);
}

impl std::ops::BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Anything that names an address; a wrong text is a bug in the test and panics.
pub trait Address {
    /// The address.
    fn address(self) -> IpAddr;
}

impl Address for &str {
    #[expect(clippy::panic, reason = "addresses in tests are literals")]
    fn address(self) -> IpAddr {
        self.parse().unwrap_or_else(|_| panic!("{self:?} is no IP address"))
    }
}

impl Address for IpAddr {
    fn address(self) -> IpAddr {
        self
    }
}

impl Address for Ipv4Addr {
    fn address(self) -> IpAddr {
        self.into()
    }
}

impl Address for Ipv6Addr {
    fn address(self) -> IpAddr {
        self.into()
    }
}

impl Packet {
    /// A packet from one address to another of the same family, with an Ethernet header.
    pub fn new(src: impl Address, dst: impl Address) -> Self {
        let (src, dst) = (src.address(), dst.address());
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "{src} and {dst} are of different families");
        Self {
            link: Link::Ethernet,
            macs: [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]],
            vlans: Vec::new(),
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            dont_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
            upper: Upper::Other(253),
            payload: Vec::new(),
        }
    }

    /// TCP.
    #[must_use]
    pub fn tcp(mut self, sport: u16, dport: u16, flags: TcpFlags) -> Self {
        let (ports, seq, ack) = ([sport, dport], 0x0102_0304, 0x0506_0708);
        self.upper = Upper::Tcp { ports, flags, seq, ack, options: Vec::new() };
        self
    }

    /// UDP.
    #[must_use]
    pub fn udp(mut self, sport: u16, dport: u16) -> Self {
        self.upper = Upper::Udp { ports: [sport, dport], checksum: true };
        self
    }

    /// UDP with a checksum of zero: none was computed.
    #[must_use]
    pub fn udp_without_checksum(mut self, sport: u16, dport: u16) -> Self {
        self.upper = Upper::Udp { ports: [sport, dport], checksum: false };
        self
    }

    /// SCTP; the payload is its chunks.
    #[must_use]
    pub fn sctp(mut self, sport: u16, dport: u16) -> Self {
        self.upper = Upper::Sctp { ports: [sport, dport], tag: 0xabcd_ef01 };
        self
    }

    /// ICMP or `ICMPv6`, by the family.
    #[must_use]
    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.upper = Upper::Icmp { kind, code, rest };
        self
    }

    /// An ICMP error about another packet, of which it carries the first `bytes` from the IP header
    /// on.
    #[must_use]
    pub fn icmp_error(self, kind: u8, code: u8, rest: [u8; 4], about: &Self, bytes: usize) -> Self {
        let mut inner = about.clone().without_ethernet().build();
        inner.truncate(bytes);
        self.icmp(kind, code, rest).payload(&inner)
    }

    /// Another protocol; the payload is all that follows the IP header.
    #[must_use]
    pub fn other(mut self, protocol: u8) -> Self {
        self.upper = Upper::Other(protocol);
        self
    }

    /// What follows the upper-layer header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Begins with the IP header.
    #[must_use]
    pub fn without_ethernet(mut self) -> Self {
        self.link = Link::None;
        self
    }

    /// Adds a VLAN tag (802.1Q) within those there are.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push((0x8100, id));
        self
    }

    /// Time to live, hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 options, padded to four bytes with zeros.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// TCP options, padded to four bytes with zeros.
    #[must_use]
    pub fn tcp_options(mut self, wanted: &[u8]) -> Self {
        if let Upper::Tcp { options, .. } = &mut self.upper {
            *options = wanted.to_vec();
        }
        self
    }

    /// Adds an IPv6 extension header: its type (0 hop-by-hop, 43 routing, 60 destination options,
    /// 51 authentication) and its content from the third byte on.
    #[must_use]
    pub fn extension(mut self, kind: u8, content: &[u8]) -> Self {
        self.extensions.push((kind, content.to_vec()));
        self
    }
}
