//! From fields to bytes.

use std::net::IpAddr;

use super::{
    Link, Packet, Upper, checksum,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// In bytes, a multiple of eight.
    offset: usize,
    more: bool,
}

impl Packet {
    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        self.frame(&self.upper_bytes(), None)
    }

    /// The bytes of its fragments, each with at most `size` bytes of the datagram (rounded down to
    /// a multiple of eight).
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let upper = self.upper_bytes();
        let size = (size / 8 * 8).max(8);
        let last = upper.len().saturating_sub(1) / size;
        let parts = upper.chunks(size).enumerate();
        parts
            .map(|(index, part)| {
                self.frame(part, Some(Part { offset: index * size, more: index < last }))
            })
            .collect()
    }

    /// The IP protocol number of the upper layer.
    pub fn protocol(&self) -> u8 {
        match self.upper {
            Upper::Tcp { .. } => TCP,
            Upper::Udp { .. } => UDP,
            Upper::Sctp { .. } => SCTP,
            Upper::Icmp { .. } if self.src.is_ipv4() => ICMP,
            Upper::Icmp { .. } => ICMPV6,
            Upper::Other(protocol) => protocol,
        }
    }

    fn frame(&self, upper: &[u8], part: Option<Part>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.link == Link::Ethernet {
            bytes.extend(self.macs.as_flattened());
            for (protocol, tag) in &self.vlans {
                bytes.extend(protocol.to_be_bytes());
                bytes.extend(tag.to_be_bytes());
            }
            let ethertype = if self.src.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
            bytes.extend(ethertype.to_be_bytes());
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(self.v4_header(src.octets(), dst.octets(), upper.len(), part));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(self.v6_headers(src.octets(), dst.octets(), upper.len(), part));
            }
            _ => unreachable!("both addresses are of one family"),
        }
        bytes.extend(upper);
        bytes
    }

    fn v4_header(&self, src: [u8; 4], dst: [u8; 4], upper: usize, part: Option<Part>) -> Vec<u8> {
        let options = padded(&self.options, 4);
        let length = 20 + options.len();
        let part = part.unwrap_or(Part { offset: 0, more: false });
        let flags = (u16::from(self.dont_fragment) << 14) | (u16::from(part.more) << 13);
        let mut header = vec![0x40 | byte(length / 4), self.tos];
        header.extend(word(length + upper));
        header.extend(self.id.to_be_bytes());
        header.extend((flags | u16::from_be_bytes(word(part.offset / 8))).to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(src);
        header.extend(dst);
        header.extend(options);
        let sum = checksum::internet(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn v6_headers(
        &self,
        src: [u8; 16],
        dst: [u8; 16],
        upper: usize,
        part: Option<Part>,
    ) -> Vec<u8> {
        let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
        if part.is_some() {
            kinds.push(FRAGMENT);
        }
        kinds.push(self.protocol());
        let mut extensions = Vec::new();
        for ((kind, content), next) in self.extensions.iter().zip(kinds.iter().skip(1)) {
            let content = padded_after(content, 2, 8);
            let length = content.len() + 2;
            // Authentication counts four-byte units less two, the others eight-byte units less one.
            let units = if *kind == AUTHENTICATION { length / 4 - 2 } else { length / 8 - 1 };
            extensions.extend([*next, byte(units)]);
            extensions.extend(content);
        }
        if let Some(part) = part {
            extensions.extend([self.protocol(), 0]);
            extensions.extend(word(part.offset | usize::from(part.more)));
            extensions.extend([0, 0]);
            extensions.extend(self.id.to_be_bytes());
        }
        let mut header = vec![0x60 | (self.tos >> 4), self.tos << 4, 0, 0];
        header.extend(word(extensions.len() + upper));
        header.extend([kinds[0], self.ttl]);
        header.extend(src);
        header.extend(dst);
        header.extend(extensions);
        header
    }

    fn upper_bytes(&self) -> Vec<u8> {
        let protocol = self.protocol();
        let (mut bytes, checksum_at) = match &self.upper {
            Upper::Tcp { ports, flags, seq, ack, options } => {
                let options = padded(options, 4);
                let mut header = be_words(ports);
                header.extend(seq.to_be_bytes());
                header.extend(ack.to_be_bytes());
                header.extend([byte((20 + options.len()) / 4) << 4, flags.0]);
                header.extend([0x10, 0, 0, 0, 0, 0]);
                header.extend(options);
                (header, Some(16))
            }
            Upper::Udp { ports, checksum } => {
                let mut header = be_words(ports);
                header.extend(word(8 + self.payload.len()));
                header.extend([0, 0]);
                (header, checksum.then_some(6))
            }
            Upper::Sctp { ports, tag } => {
                let mut header = be_words(ports);
                header.extend(tag.to_be_bytes());
                header.extend([0; 4]);
                (header, None)
            }
            Upper::Icmp { kind, code, rest } => {
                let mut header = vec![*kind, *code, 0, 0];
                header.extend(rest);
                (header, Some(2))
            }
            Upper::Other(_) => (Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = checksum_at {
            let sum = if protocol == ICMP {
                checksum::internet(&bytes)
            } else {
                let all = checksum::with_pseudo_header(self.src, self.dst, protocol, &bytes);
                checksum::internet(&all)
            };
            // RFC 768: a computed zero is sent as all ones, zero means none.
            let sum = if protocol == UDP && sum == 0 { u16::MAX } else { sum };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if protocol == SCTP && matches!(self.upper, Upper::Sctp { .. }) {
            let crc = checksum::crc32c(&bytes).to_le_bytes();
            bytes[8..12].copy_from_slice(&crc);
        }
        bytes
    }
}

fn be_words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn padded(bytes: &[u8], unit: usize) -> Vec<u8> {
    padded_after(bytes, 0, unit)
}

/// Zeros after `bytes`, so that they and `before` bytes make whole units.
fn padded_after(bytes: &[u8], before: usize, unit: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(
        (before + bytes.len()).next_multiple_of(unit).max(unit * usize::from(before > 0)) - before,
        0,
    );
    padded
}

fn word(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes()
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
