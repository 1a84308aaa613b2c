//! Addresses and packets that the tests of the packet logic share: one client, a few pods, two
//! Services, in both families.

use std::net::SocketAddr;

use crate::packet::{Address, Packet, TcpFlags, Upper};

/// Asks for a connection.
pub const SYN: TcpFlags = TcpFlags::SYN;
/// Any segment of an established connection.
pub const ACK: TcpFlags = TcpFlags::ACK;
/// A reset.
pub const RST: TcpFlags = TcpFlags::RST;
/// Grants a connection.
pub const SYN_ACK: TcpFlags = TcpFlags(0x12);
/// The last segment of one side.
pub const FIN_ACK: TcpFlags = TcpFlags(0x11);

/// Port of a client that has one.
pub const SPORT: u16 = 40_000;
/// Port of every VIP.
pub const PORT: u16 = 80;
/// Port of every backend.
pub const TARGET: u16 = 8080;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// A pod with a client.
    pub client: &'static str,
    /// A Service.
    pub vip: &'static str,
    /// Another Service.
    pub vip2: &'static str,
    /// A pod with a server.
    pub pod: &'static str,
    /// Another one.
    pub pod2: &'static str,
    /// No pod and no Service.
    pub foreign: &'static str,
}

/// IPv4.
pub const V4: Net = Net {
    client: "10.244.1.10",
    vip: "10.96.0.10",
    vip2: "10.96.0.11",
    pod: "10.244.2.20",
    pod2: "10.244.3.30",
    foreign: "192.0.2.1",
};

/// IPv6.
pub const V6: Net = Net {
    client: "fd00:10:244:1::a",
    vip: "fd00:10:96::a",
    vip2: "fd00:10:96::b",
    pod: "fd00:10:244:2::14",
    pod2: "fd00:10:244:3::1e",
    foreign: "2001:db8::1",
};

/// Both families.
pub const NETS: [Net; 2] = [V4, V6];

/// A protocol that Services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Those that every test covers.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// An address and port; a wrong text is a bug in the test and panics.
#[must_use]
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(Address::address(ip), port)
}

/// A packet; `flags` only count for TCP.
#[must_use]
pub fn packet(protocol: Protocol, from: SocketAddr, to: SocketAddr, flags: TcpFlags) -> Packet {
    let packet = Packet::new(from.ip(), to.ip()).payload(b"some payload of odd length.");
    match protocol {
        Protocol::Tcp => packet.tcp(from.port(), to.port(), flags),
        Protocol::Udp => packet.udp(from.port(), to.port()),
        Protocol::Sctp => packet.sctp(from.port(), to.port()),
    }
}

/// The same packet between other addresses.
#[must_use]
pub fn readdressed(packet: &Packet, from: SocketAddr, to: SocketAddr) -> Packet {
    let mut other = packet.clone();
    (other.src, other.dst) = (from.ip(), to.ip());
    if let Upper::Tcp { ports, .. } | Upper::Udp { ports, .. } | Upper::Sctp { ports, .. } =
        &mut other.upper
    {
        *ports = [from.port(), to.port()];
    }
    other
}
