//! Are the packets of golden tests what they claim to be?

use lb_testbed::packet::{
    Link, Packet, TcpFlags, Upper, checksums_ok, describe, diff, parse,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP},
};

/// A TCP SYN from 10.0.0.1:1 to 10.0.0.2:2, its checksums computed by hand.
const SYN: [u8; 54] = [
    0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00, // Ethernet
    0x45, 0x00, 0x00, 0x28, 0x12, 0x34, 0x00, 0x00, 0x40, 0x06, 0x54, 0x9a, // IPv4
    10, 0, 0, 1, 10, 0, 0, 2, //
    0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x02, 0x10, 0x00, 0x7b, 0xc9, 0, 0, // TCP
];

fn pairs() -> [(&'static str, &'static str); 2] {
    [("10.244.0.10", "10.96.0.1"), ("fd00:10:244::10", "fd00:10:96::1")]
}

fn every_kind() -> Vec<(Packet, u8)> {
    let mut all = Vec::new();
    for (src, dst) in pairs() {
        let icmp = if src.contains(':') { ICMPV6 } else { ICMP };
        let base = Packet::new(src, dst).payload(b"odd number of bytes");
        all.extend([
            (base.clone().tcp(40_000, 80, TcpFlags::SYN | TcpFlags::ACK), TCP),
            (base.clone().tcp(40_000, 80, TcpFlags::SYN).tcp_options(&[2, 4, 5, 0xb4, 1]), TCP),
            (base.clone().udp(40_000, 53), UDP),
            (base.clone().sctp(40_000, 53).payload(&[1, 0, 0, 4]), SCTP),
            (base.clone().icmp(128, 0, [0, 1, 0, 2]), icmp),
            (base.clone().other(47), 47),
        ]);
    }
    all
}

#[test]
fn bytes_are_those_of_the_standards() {
    let built = Packet::new("10.0.0.1", "10.0.0.2").tcp(1, 2, TcpFlags::SYN).build();
    assert_eq!(built, SYN, "{}", diff(&SYN, &built, Link::Ethernet));
}

#[test]
fn every_kind_has_right_checksums_and_is_read_back() {
    for (packet, protocol) in every_kind() {
        for packet in [packet.clone(), packet.clone().vlan(7).vlan(8), packet.without_ethernet()] {
            let bytes = packet.build();
            let text = describe(&bytes, packet.link);
            checksums_ok(&bytes, packet.link).unwrap_or_else(|error| panic!("{error:#}\n{text}"));
            let parsed = parse(&bytes, packet.link).unwrap();
            assert_eq!((parsed.src, parsed.dst), (packet.src, packet.dst));
            assert_eq!(parsed.protocol, protocol);
            assert_eq!(parsed.end, bytes.len(), "{text}");
            assert_eq!(parsed.ports.is_some(), matches!(protocol, TCP | UDP | SCTP));
            assert_eq!(parsed.vlans.len(), packet.vlans.len());
        }
    }
}

#[test]
fn any_flipped_bit_behind_the_link_header_that_a_checksum_covers_is_noticed() {
    for (packet, protocol) in every_kind().into_iter().filter(|(_, protocol)| *protocol != 47) {
        let packet = packet.without_ethernet();
        let good = packet.build();
        let upper_at = parse(&good, Link::None).unwrap().upper_at;
        for at in upper_at..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // Flipped in the checksum of UDP or the type of ICMP it may become another message, but
            // never one that passes.
            assert!(checksums_ok(&bad, Link::None).is_err(), "protocol {protocol}, byte {at}");
        }
    }
}

#[test]
fn udp_without_checksum_is_right_over_ipv4_only() {
    for (src, dst) in pairs() {
        let bytes = Packet::new(src, dst).udp_without_checksum(1, 2).build();
        assert_eq!(checksums_ok(&bytes, Link::Ethernet).is_ok(), !src.contains(':'));
    }
}

#[test]
fn a_computed_udp_checksum_of_zero_is_sent_as_ones() {
    // The payload is chosen so that the sum comes out as zero.
    let base = Packet::new("10.0.0.1", "10.0.0.2").udp(1, 2).payload(&[0, 0]);
    let at = base.build().len() - 4;
    let sum: [u8; 2] = base.build()[at..at + 2].try_into().unwrap();
    let bytes = base.payload(&sum).build();
    assert_eq!(bytes[at..at + 2], [0xff, 0xff]);
    checksums_ok(&bytes, Link::Ethernet).unwrap();
}

#[test]
fn options_and_extension_headers_are_passed() {
    let v4 = Packet::new("10.0.0.1", "10.0.0.2").options(&[7, 7, 4, 0, 0, 0, 0]).udp(1, 2);
    let parsed = parse(&v4.build(), Link::Ethernet).unwrap();
    assert_eq!(parsed.upper_at - parsed.ip_at, 28);
    checksums_ok(&v4.build(), Link::Ethernet).unwrap();

    let v6 = Packet::new("fd00::1", "fd00::2")
        .extension(0, &[])
        .extension(43, &[0; 14])
        .extension(60, &[1, 2, 3])
        .extension(51, &[0; 14])
        .tcp(1, 2, TcpFlags::ACK);
    let bytes = v6.build();
    let parsed = parse(&bytes, Link::Ethernet).unwrap();
    assert_eq!(parsed.extensions, [0, 43, 60, 51]);
    assert_eq!(parsed.upper_at - parsed.ip_at, 40 + 8 + 16 + 8 + 16);
    assert_eq!((parsed.protocol, parsed.ports), (TCP, Some([1, 2])));
    checksums_ok(&bytes, Link::Ethernet).unwrap();
}

#[test]
fn fragments_put_together_are_the_datagram() {
    for (src, dst) in pairs() {
        let whole = Packet::new(src, dst).udp(1, 2).payload(&[0xab; 100]).without_ethernet();
        let upper_at = parse(&whole.build(), Link::None).unwrap().upper_at;
        let mut together: Vec<u8> = Vec::new();
        let fragments = whole.fragments(50);
        assert_eq!(fragments.len(), 3);
        for (index, fragment) in fragments.iter().enumerate() {
            checksums_ok(fragment, Link::None).unwrap();
            let parsed = parse(fragment, Link::None).unwrap();
            assert_eq!(parsed.fragment, Some((together.len(), index < 2)));
            assert_eq!(parsed.ports.is_some(), index == 0);
            assert_eq!(parsed.protocol, UDP);
            together.extend(&fragment[parsed.upper_at..]);
        }
        assert_eq!(together, whole.build()[upper_at..]);
    }
}

#[test]
fn a_packet_within_an_icmp_error_is_checked_too() {
    for (src, dst) in pairs() {
        let (kind, code) = if src.contains(':') { (2, 0) } else { (3, 4) };
        let about = Packet::new(dst, src).tcp(80, 40_000, TcpFlags::ACK).payload(&[1; 50]);
        for bytes in [28, 48, 500] {
            let error = Packet::new("fd00::9", "fd00::8");
            let error = if src.contains(':') { error } else { Packet::new("10.9.9.9", dst) };
            let built = error.icmp_error(kind, code, [0, 0, 5, 0xdc], &about, bytes).build();
            if bytes < 40 && src.contains(':') {
                assert!(checksums_ok(&built, Link::Ethernet).is_err(), "no whole inner header");
            } else {
                checksums_ok(&built, Link::Ethernet).unwrap();
            }
        }
        if !src.contains(':') {
            let mut spoilt = about.clone().without_ethernet().build();
            spoilt[8] = 1; // time to live, which the inner header's checksum covers
            let outer = Packet::new("10.9.9.9", dst).icmp(3, 4, [0; 4]).payload(&spoilt).build();
            let error = checksums_ok(&outer, Link::Ethernet).unwrap_err();
            assert!(format!("{error:#}").contains("within the ICMP error"), "{error:#}");
        }
    }
}

#[test]
fn no_truncation_panics() {
    for (packet, _) in every_kind() {
        let bytes = packet.extension(0, &[]).vlan(1).build();
        for length in 0..bytes.len() {
            let cut = &bytes[..length];
            assert!(checksums_ok(cut, Link::Ethernet).is_err(), "{length} bytes");
            assert!(!describe(cut, Link::Ethernet).is_empty());
        }
    }
}

#[test]
fn a_difference_names_both_and_the_bytes() {
    let one = Packet::new("10.0.0.1", "10.0.0.2").tcp(1, 2, TcpFlags::SYN);
    let mut other = one.clone();
    assert_eq!(diff(&one.build(), &other.build(), Link::Ethernet), "");
    other.dst = "10.0.0.3".parse().unwrap();
    if let Upper::Tcp { ports, .. } = &mut other.upper {
        ports[1] = 3;
    }
    let text = diff(&one.build(), &other.build(), Link::Ethernet);
    assert!(text.contains("10.0.0.1 > 10.0.0.2") && text.contains("10.0.0.1 > 10.0.0.3"), "{text}");
    assert!(text.contains("1 > 3") && text.contains("0x0020"), "{text}");
}
