//! A packet that a client would send: just enough headers for a decision, no link header.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::proto;
use lb_common::packet::SlicePacket;

/// The packet to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// IP protocol number.
    pub(super) protocol: u8,
    /// TCP flags; of no meaning for others.
    pub(super) tcp_flags: u8,
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

impl Probe {
    /// The bytes, from the IP header on. Checksums are left out: a decision does not read them.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let length = u16::try_from(transport.len()).unwrap_or(0);
        let mut packet = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = (length + 20).to_be_bytes();
                // Version 4 of five words, don't fragment, TTL 64 (RFC 791).
                let mut header =
                    vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, self.protocol, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                header
            }
            (from, to) => {
                let [high, low] = length.to_be_bytes();
                // Version 6, hop limit 64 (RFC 8200).
                let mut header = vec![0x60, 0, 0, 0, high, low, self.protocol, 64];
                for ip in [from, to] {
                    header.extend(match ip {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    });
                }
                header
            }
        };
        packet.extend(transport);
        packet
    }

    fn transport(&self) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(self.from.port().to_be_bytes());
        header.extend(self.to.port().to_be_bytes());
        match self.protocol {
            proto::TCP => {
                header.extend([0; 8]);
                // Five words of header (RFC 9293).
                header.extend([5 << 4, self.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            proto::UDP => header.extend([0, 8, 0, 0]),
            // Common header and an INIT chunk without parameters (RFC 9260).
            _ => {
                header.extend([0; 8]);
                header.extend([1, 0, 0, 20]);
                header.extend([0; 16]);
            }
        }
        header
    }
}

/// Source and destination of a packet that [`Probe::bytes`] made, after a decision wrote to it.
pub(super) fn addresses(packet: &mut [u8]) -> Option<(SocketAddr, SocketAddr)> {
    use lb_common::packet::Packet as _;
    let v4 = packet.first()? >> 4 == 4;
    let packet = SlicePacket(packet);
    let ip = |at: usize| -> Option<IpAddr> {
        Some(if v4 {
            let [word] = packet.words::<1>(at)?;
            IpAddr::from(word.to_ne_bytes())
        } else {
            let words = packet.words::<4>(at)?;
            lb_agent::plan::address(&words, true)
        })
    };
    let (first, second, l4) = if v4 { (12, 16, IPV4_HEADER) } else { (8, 24, IPV6_HEADER) };
    let port = |at| packet.u16(at).map(u16::from_be);
    Some((SocketAddr::new(ip(first)?, port(l4)?), SocketAddr::new(ip(second)?, port(l4 + 2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::{FlowKind, V4, V6};
    use lb_common::parse::{Headers, Link, Network, headers, network, tcp};

    #[test]
    fn every_probe_is_a_packet_that_opens_a_connection() {
        for (from, to) in [("10.0.0.1:40000", "10.96.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:80")]
        {
            for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
                let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
                let probe = Probe { from, to, protocol, tcp_flags: tcp::SYN };
                let mut bytes = probe.bytes();
                let packet = SlicePacket(&mut bytes);
                let (sport, dport, opens) = match network(&packet, Link::None).unwrap() {
                    Network::V4(l3) => {
                        let parsed: Headers<V4> = headers(&packet, l3, FlowKind::INGRESS).unwrap();
                        (parsed.key.sport, parsed.key.dport, parsed.opens())
                    }
                    Network::V6(l3) => {
                        let parsed: Headers<V6> = headers(&packet, l3, FlowKind::INGRESS).unwrap();
                        (parsed.key.sport, parsed.key.dport, parsed.opens())
                    }
                };
                assert_eq!((u16::from_be(sport), u16::from_be(dport)), (40_000, 80));
                assert_eq!(opens, protocol != proto::UDP);
                assert_eq!(addresses(&mut bytes), Some((from, to)));
            }
        }
    }
}
