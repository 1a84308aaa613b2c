//! Which address or range does a text mean?
//!
//! Kubernetes parses addresses *sloppily* (contract S-16): leading zeros in an IPv4 octet are
//! decimal, and an IPv4-mapped IPv6 address is the IPv4 address. Rust's parser refuses the former.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Cidr;

/// The canonical address that `text` means.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return v4(text).map(IpAddr::V4);
    }
    let v6: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            let [a, b, c, d] = v4(tail)?.octets();
            format!("{head}:{a:02x}{b:02x}:{c:02x}{d:02x}").parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(IpAddr::V6(v6).to_canonical())
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// The range that a text means, white space around it aside (S-8); host bits do not count (S-16).
pub(super) fn parse_cidr(text: &str) -> Option<Cidr> {
    let (addr, prefix) = text.trim().split_once('/')?;
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Cidr::new(parse(addr)?, prefix.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sloppy_addresses_mean_what_kubernetes_reads() {
        for (text, canonical) in [
            ("10.0.0.1", "10.0.0.1"),
            ("010.000.00000.011", "10.0.0.11"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:010.0.0.09", "10.0.0.9"),
            ("::ffff:a00:1", "10.0.0.1"),
            ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
            ("FD00:0:0::1", "fd00::1"),
        ] {
            assert_eq!(parse(text), Some(canonical.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in [
            "",
            " 10.0.0.1",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "10.0.0.+1",
            "0x0a.0.0.1",
            "10..0.1",
            "fe80::1%eth0",
            "::g",
            "10.0.0.1/24",
            "[::1]",
            "::ffff:1.2.3",
            "example.org",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn s_16_sloppy_ranges_mean_what_kubernetes_reads() {
        for (text, meant) in [
            (" 192.168.1.5/24\t", Some("192.168.1.0/24")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.1", None),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/8/8", None),
            ("::ffff:10.0.0.0/104", None),
            ("x/8", None),
            ("", None),
        ] {
            assert_eq!(parse_cidr(text).map(|cidr| cidr.to_string()).as_deref(), meant, "{text}");
        }
    }
}
