//! Ranges of addresses, and addresses that no Service may have.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Family;

impl Family {
    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A range of addresses, without host bits (S-16).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range of that prefix length around an address; nothing if the family has fewer bits.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        let first = match addr {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
            _ => return None,
        };
        Some(Self { first, prefix })
    }

    /// Its first address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// Length of the prefix in bits.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The family.
    pub const fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address lies in it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Self::new(addr, self.prefix).is_some_and(|around| around == *self)
    }

    /// Whether all of another range lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.first)
    }

    /// The range of this address alone.
    pub const fn of_one(addr: IpAddr) -> Self {
        let prefix = match addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Self { first: addr, prefix }
    }

    /// The same addresses in as few of these ranges as cover them: sorted, none within another.
    pub fn widest(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut widest: Vec<Self> = Vec::new();
        for range in ranges {
            // Sorted by first address, then prefix: what is around another comes before it.
            if !widest.last().is_some_and(|last| last.covers(&range)) {
                widest.push(range);
            }
        }
        widest
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why an address must not be one of a Service or endpoint, if so: it would reach what is local to
/// the node or the link (CVE-2021-25737, CVE-2020-8554), or nobody in particular (CVE-2021-25736).
pub fn refusal(addr: IpAddr) -> Option<&'static str> {
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

    fn cidr(addr: &str, prefix: u8) -> Option<Cidr> {
        Cidr::new(addr.parse().unwrap(), prefix)
    }

    #[test]
    fn s_16_host_bits_do_not_count() {
        assert_eq!(cidr("192.168.1.5", 24), cidr("192.168.1.0", 24));
        assert_eq!(cidr("192.168.1.5", 24).unwrap().to_string(), "192.168.1.0/24");
        assert_eq!(cidr("fd00::1", 64).unwrap().to_string(), "fd00::/64");
        assert_eq!((cidr("10.0.0.0", 33), cidr("fd00::", 129)), (None, None));
    }

    #[test]
    fn a_range_contains_addresses_of_its_family_only() {
        for (range, addr, inside) in [
            (cidr("10.0.0.0", 8), "10.255.255.255", true),
            (cidr("10.0.0.0", 8), "11.0.0.0", false),
            (cidr("10.0.0.1", 32), "10.0.0.1", true),
            (cidr("0.0.0.0", 0), "192.0.2.1", true),
            (cidr("0.0.0.0", 0), "fd00::1", false),
            (cidr("::", 0), "10.0.0.1", false),
            (cidr("::", 0), "fd00::1", true),
            (cidr("fd00::", 127), "fd00::2", false),
        ] {
            assert_eq!(range.unwrap().contains(addr.parse().unwrap()), inside, "{range:?} {addr}");
        }
        assert!(cidr("10.0.0.0", 8).unwrap().covers(&cidr("10.96.0.0", 12).unwrap()));
        assert!(!cidr("10.96.0.0", 12).unwrap().covers(&cidr("10.0.0.0", 8).unwrap()));
    }

    #[test]
    fn ranges_within_others_and_duplicates_are_left_out() {
        let all = [("10.1.0.0", 16), ("10.0.0.0", 8), ("10.0.0.0", 24), ("10.0.0.0", 8)];
        let all = all.into_iter().chain([("11.0.0.0", 8), ("fd00::", 64), ("fd00::1", 128)]);
        let widest = Cidr::widest(all.filter_map(|(addr, prefix)| cidr(addr, prefix)).collect());
        let shown: Vec<_> = widest.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "11.0.0.0/8", "fd00::/64"]);
        assert_eq!(Cidr::of_one("fd00::1".parse().unwrap()), cidr("fd00::1", 128).unwrap());
    }

    #[test]
    fn addresses_that_reach_the_node_itself_or_nobody_are_refused() {
        for addr in [
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
        ] {
            assert!(refusal(addr.parse().unwrap()).is_some(), "{addr}");
        }
        for addr in ["10.0.0.1", "128.0.0.1", "169.253.0.1", "fd00::1", "fec0::1", "2001:db8::1"] {
            assert_eq!(refusal(addr.parse().unwrap()), None, "{addr}");
        }
    }
}
