//! Which address does a text mean, and may it be used?
//!
//! Kubernetes parses addresses *sloppily* (contract S-16): leading zeros in an IPv4 octet are
//! decimal, and an IPv4-mapped IPv6 address is the IPv4 address. Rust's parser refuses the former.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Why an address must not be a clusterIP or endpoint, if so: it would reach what is local to the
/// node or the link (CVE-2021-25737), or nobody in particular.
pub(super) fn refusal(addr: IpAddr) -> Option<&'static str> {
    let (link_local, broadcast) = match addr {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if addr.is_loopback() {
        Some("is a loopback address")
    } else if link_local {
        Some("is a link-local address")
    } else if addr.is_multicast() || broadcast {
        Some("is a multicast or broadcast address")
    } else if addr.is_unspecified() {
        Some("is the unspecified address")
    } else {
        None
    }
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
    fn addresses_that_reach_the_node_itself_or_nobody_are_refused() {
        for text in [
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "febf::1",
            "::",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(refusal(parse(text).unwrap()).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "128.0.0.1", "169.253.0.1", "fd00::1", "fec0::1", "2001:db8::1"] {
            assert_eq!(refusal(parse(text).unwrap()), None, "{text}");
        }
    }
}
