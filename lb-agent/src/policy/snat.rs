//! Under which addresses, and with which ports, does this node send on what comes from others?

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use lb_common::abi::SNAT_ADDRESSES;

use crate::model::{Family, Node, refusal};

/// `--snat-address`: addresses of this node, in the order in which they are used, at most
/// [`SNAT_ADDRESSES`] of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatAddresses(Vec<IpAddr>);

/// Why addresses cannot be those of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSnatAddress {
    /// Nobody answers to it.
    #[error("{addr} {reason}: give an address of one of this node's interfaces")]
    Refused {
        /// It.
        addr: IpAddr,
        /// What it is.
        reason: &'static str,
    },
    /// Twice the same.
    #[error("{0} is there twice: remove one of the two")]
    Twice(IpAddr),
    /// More than there is room for.
    #[error(
        "more than {SNAT_ADDRESSES} addresses of one IP family: give the first {SNAT_ADDRESSES} only"
    )]
    TooMany,
}

impl SnatAddresses {
    /// Checks addresses as they were given.
    pub fn new(addresses: Vec<IpAddr>) -> Result<Self, BadSnatAddress> {
        for (at, &addr) in addresses.iter().enumerate() {
            if let Some(reason) = refusal(addr) {
                return Err(BadSnatAddress::Refused { addr, reason });
            }
            let mut before = addresses.iter().take(at);
            if before.any(|other| *other == addr) {
                return Err(BadSnatAddress::Twice(addr));
            }
            let of_family = |other: &&IpAddr| Family::of(**other) == Family::of(addr);
            if addresses.iter().filter(of_family).count() > SNAT_ADDRESSES {
                return Err(BadSnatAddress::TooMany);
            }
        }
        Ok(Self(addresses))
    }

    /// Those that no interface of the node has: answers to them would go to somebody else. `assigned`
    /// are those that some interface has, in order.
    pub fn missing(&self, assigned: &[IpAddr]) -> Vec<IpAddr> {
        self.0.iter().filter(|addr| assigned.binary_search(addr).is_err()).copied().collect()
    }

    /// The addresses of a family under which packets leave by an interface whose own primary address
    /// is `own` (M-b): those that were asked for; else its own; else that by which others know the
    /// node; else `last`. Only what is `assigned` to some interface counts; there may be thousands, so
    /// they are in order.
    pub fn choose(
        &self,
        family: Family,
        own: Option<IpAddr>,
        node: Option<&Node>,
        last: Option<IpAddr>,
        assigned: &[IpAddr],
    ) -> Vec<IpAddr> {
        let is_ours =
            |addr: &IpAddr| Family::of(*addr) == family && assigned.binary_search(addr).is_ok();
        let asked: Vec<IpAddr> = self.0.iter().copied().filter(is_ours).collect();
        if !asked.is_empty() {
            return asked;
        }
        let told = node.map_or(&[][..], |node| &node.addresses).iter().copied().filter(is_ours);
        let told = told.filter(|addr| refusal(*addr).is_none());
        own.into_iter().chain(told).chain(last).find(is_ours).into_iter().collect()
    }
}

impl fmt::Display for SnatAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

/// `--snat-ports`: source ports for what is sent on. Its default lies below node ports and ephemeral
/// ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatPorts {
    first: u16,
    last: u16,
}

/// Fewer ports do not serve one busy client.
pub const LEAST_PORTS: u16 = 1024;

/// Where an API server allocates node ports from unless it is told otherwise (N-8).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

impl Default for SnatPorts {
    fn default() -> Self {
        Self { first: 1024, last: 29_999 }
    }
}

/// Why ports cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSnatPorts {
    /// Not a range.
    #[error("`{0}` is no range of ports such as 1024-29999")]
    NoRange(String),
    /// Ports of servers.
    #[error("ports below 1024 belong to servers: begin with 1024 or more")]
    Privileged,
    /// Too small.
    #[error("{0} ports are too few for one busy client: give at least {LEAST_PORTS}")]
    TooFew(u16),
}

impl SnatPorts {
    /// The first one.
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// How many.
    pub const fn count(&self) -> u16 {
        // Never all 65,536: it begins with 1024 or later.
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// The range with this first port and so many; nothing if there is none.
    pub fn of(first: u32, count: u32) -> Option<Self> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        Some(Self { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? })
    }

    /// Those that others choose for themselves too: `ephemeral` are the ports that the kernel gives
    /// to sockets, `reserved` those among them that it does not. Each as a sentence.
    pub fn overlaps(
        &self,
        ephemeral: Option<&RangeInclusive<u16>>,
        reserved: &[RangeInclusive<u16>],
    ) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(ephemeral) = ephemeral
            && self
                .shared(ephemeral)
                .any(|port| !reserved.iter().any(|range| range.contains(&port)))
        {
            found.push(format!(
                "SNAT ports {self} overlap those of the node's own sockets, {} to {} \
                 (net.ipv4.ip_local_port_range): answers to such sockets may be taken for those of \
                 forwarded connections; choose other --snat-ports, or reserve them \
                 (net.ipv4.ip_local_reserved_ports)",
                ephemeral.start(),
                ephemeral.end()
            ));
        }
        if self.shared(&NODE_PORTS).next().is_some() {
            found.push(format!(
                "SNAT ports {self} overlap {} to {}, where node ports usually are: a port that is \
                 both is the node port's; choose other --snat-ports",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            ));
        }
        found
    }

    fn shared(self, other: &RangeInclusive<u16>) -> RangeInclusive<u16> {
        self.first.max(*other.start())..=self.last.min(*other.end())
    }
}

impl FromStr for SnatPorts {
    type Err = BadSnatPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadSnatPorts::NoRange(text.chars().take(64).collect());
        let port = |text: &str| -> Option<u16> {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
        };
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let (first, last) = (port(first).ok_or_else(bad)?, port(last).ok_or_else(bad)?);
        if first > last {
            return Err(bad());
        }
        let ports = Self { first, last };
        match ports.count() {
            _ if first < 1024 => Err(BadSnatPorts::Privileged),
            few if few < LEAST_PORTS => Err(BadSnatPorts::TooFew(few)),
            _ => Ok(ports),
        }
    }
}

impl fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ranges of ports as the kernel writes them: `1-5,8`, or two numbers with a space between them.
pub fn kernel_ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let of_pair = |text: &str| -> Option<RangeInclusive<u16>> {
        let mut ends = text.split(['-', '\t', ' ']).filter(|end| !end.is_empty());
        let first = ends.next()?.parse().ok()?;
        let last = ends.next().map_or(Some(first), |end| end.parse().ok())?;
        Some(first..=last)
    };
    text.trim().split(',').filter_map(of_pair).collect()
}

#[cfg(test)]
#[path = "snat_tests.rs"]
mod tests;
