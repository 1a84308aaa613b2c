//! Which address or range does a text of the API mean (S-16), and may it be used at all?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cluster::Family;

/// The address that a text means. Leading zeros of IPv4 octets are decimal; an IPv4-mapped IPv6
/// address is the IPv4 address.
pub fn address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return ipv4(text).map(IpAddr::V4);
    }
    let Some(dot) = text.find('.') else {
        return Some(text.parse::<Ipv6Addr>().ok()?.to_canonical());
    };
    // An IPv4 tail: written anew without zeros, it is one that every parser reads alike.
    let tail = text.get(..dot)?.rfind(':')? + 1;
    let (head, tail) = text.split_at(tail);
    let tail = ipv4(tail)?;
    Some(format!("{head}{tail}").parse::<Ipv6Addr>().ok()?.to_canonical())
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = text.split('.').map(octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

fn octet(text: &str) -> Option<u8> {
    let mut value: u32 = 0;
    for digit in text.chars() {
        value = (value * 10 + digit.to_digit(10)?).min(1000);
    }
    if text.is_empty() { None } else { u8::try_from(value).ok() }
}

/// A range of addresses, without host bits (S-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl Range {
    /// The range that a text means, white space around it aside (S-8).
    pub fn read(text: &str) -> Option<Self> {
        let (first, prefix) = text.trim().split_once('/')?;
        let first = address(first)?;
        if prefix.is_empty() || !prefix.chars().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let prefix: u8 = prefix.parse().ok()?;
        (u32::from(prefix) <= width(first)).then_some(Self { first, prefix })
    }

    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shift = width(self.first) - u32::from(self.prefix);
        let network = |ip| bits(ip).checked_shr(shift).unwrap_or(0);
        Family::of(ip) == self.family() && network(ip) == network(self.first)
    }
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Whether nobody may be sent to an address, or asked for it: loopback, link-local, multicast,
/// broadcast, unspecified (section 12: CVE-2021-25737, CVE-2020-8554, CVE-2021-25736).
pub fn is_forbidden(ip: IpAddr) -> bool {
    let forbidden = match ip {
        IpAddr::V4(_) => {
            ["0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"]
                .as_slice()
        }
        IpAddr::V6(_) => &["::/128", "::1/128", "fe80::/10", "ff00::/8"],
    };
    forbidden.iter().filter_map(|range| Range::read(range)).any(|range| range.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s_16_addresses_are_read_sloppily() {
        for (text, meant) in [
            ("010.096.000.001", Some("10.96.0.1")),
            ("10.96.0.08", Some("10.96.0.8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("FD00:0::01", Some("fd00::1")),
            ("10.96.0.256", None),
            ("10.96.0", None),
            ("10.96..1", None),
            ("+1.2.3.4", None),
            ("", None),
            ("example.org", None),
        ] {
            assert_eq!(address(text), meant.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn s_16_ranges_lose_their_host_bits() {
        let range = Range::read(" 192.168.1.5/24 ").unwrap();
        let inside = |ip: &str| range.contains(ip.parse().unwrap());
        assert!(inside("192.168.1.0") && inside("192.168.1.255"));
        assert!(!inside("192.168.2.5") && !inside("::ffff:192.168.1.5"));
        let all = Range::read("::/0").unwrap();
        assert!(all.contains("fd00::1".parse().unwrap()));
        assert!(!all.contains("10.0.0.1".parse().unwrap()));
        for text in ["10.0.0.1", "10.0.0.0/33", "fd00::/129", "10.0.0.0/+8", "x/8", "10.0.0.0/"] {
            assert_eq!(Range::read(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_of_the_node_itself_or_of_nobody_are_forbidden() {
        for ip in ["127.0.0.2", "169.254.169.254", "0.0.0.0", "::", "::1", "fe80::1", "ff02::1"] {
            assert!(is_forbidden(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["10.0.0.1", "192.0.2.1", "fd00::1", "126.255.255.255", "fec0::1"] {
            assert!(!is_forbidden(ip.parse().unwrap()), "{ip}");
        }
    }
}
