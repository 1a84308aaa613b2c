//! At which addresses does this node answer node ports, and where do clusterIPs come from?

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use crate::model::{Cidr, Family, Node, Store, refusal};

/// `--node-port-addresses`: which addresses of the node count (contract N-1 to N-7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The first address of each family that the Node tells (N-2).
    Primary,
    /// Loopback addresses, for the node's own sockets only.
    Localhost,
    /// All but loopback addresses.
    All,
    /// Those in a range.
    Range(Cidr),
}

impl Default for NodePortAddresses {
    /// `primary` (N-3).
    fn default() -> Self {
        Self(vec![Entry::Primary])
    }
}

/// Why a list of addresses makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddresses {
    /// An entry is neither.
    #[error("`{entry}` is neither `primary`, `localhost` or `all` nor a range such as 10.0.0.0/8")]
    Entry {
        /// As it was written.
        entry: String,
    },
    /// An entry is there twice.
    #[error("`{entry}` is there twice: remove one of the two")]
    Twice {
        /// As it was written the second time.
        entry: String,
    },
    /// One range is in another.
    #[error("`{inner}` is in `{outer}` already: remove one of the two")]
    Overlap {
        /// The range in the other.
        inner: Cidr,
        /// The range around it.
        outer: Cidr,
    },
}

impl NodePortAddresses {
    /// Whether the Node object tells some of them.
    pub fn asks_the_node(&self) -> bool {
        self.0.contains(&Entry::Primary)
    }

    /// Whether all addresses of a family count (N-1).
    pub fn is_all(&self, family: Family) -> bool {
        let mut entries = self.0.iter().filter(|entry| entry.is_of(family)).peekable();
        entries.peek().is_none()
            || entries.any(|entry| {
                *entry == Entry::All || entry.range().is_some_and(|range| range.prefix() == 0)
            })
    }
}

impl FromStr for NodePortAddresses {
    type Err = BadAddresses;

    /// Keywords and ranges, separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut entries = Vec::new();
        for word in text.split(',').map(str::trim) {
            let entry = match word {
                "primary" => Some(Entry::Primary),
                "localhost" => Some(Entry::Localhost),
                "all" => Some(Entry::All),
                range => parse_range(range).map(Entry::Range),
            };
            let shown = || word.chars().take(64).collect();
            let entry = entry.ok_or_else(|| BadAddresses::Entry { entry: shown() })?;
            if entries.contains(&entry) {
                return Err(BadAddresses::Twice { entry: shown() });
            }
            if let Entry::Range(range) = entry {
                for other in entries.iter().filter_map(Entry::range) {
                    let [outer, inner] =
                        if other.covers(&range) { [other, range] } else { [range, other] };
                    if outer.covers(&inner) {
                        return Err(BadAddresses::Overlap { inner, outer });
                    }
                }
            }
            entries.push(entry);
        }
        Ok(Self(entries))
    }
}

impl Entry {
    fn range(&self) -> Option<Cidr> {
        match self {
            Self::Range(range) => Some(*range),
            _ => None,
        }
    }

    fn is_of(&self, family: Family) -> bool {
        self.range().is_none_or(|range| range.family() == family)
    }
}

fn parse_range(text: &str) -> Option<Cidr> {
    let (addr, prefix) = text.split_once('/')?;
    // Text that people write for us is read strictly.
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Cidr::new(addr.parse().ok()?, prefix.parse().ok()?)
}

/// The addresses at which node ports are reached, sorted, each with whether only sockets of the
/// node's own network namespace may use it, because it is a loopback address: no packet is ever let
/// in there (CVE-2020-8558). `interface_addresses` are those of all interfaces, `lo` among them.
///
/// Link-local addresses never count: without their interface they mean nobody in particular.
pub fn node_port_addresses(
    config: &NodePortAddresses,
    node: Option<&Node>,
    interface_addresses: &[IpAddr],
) -> Vec<(IpAddr, bool)> {
    let mut found = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        let own = || interface_addresses.iter().filter(move |addr| Family::of(**addr) == family);
        let open = || own().filter(|addr| refusal(**addr).is_none());
        let loopback = || own().filter(|addr| addr.is_loopback());
        let mut entries = config.0.iter().filter(|entry| entry.is_of(family)).peekable();
        if entries.peek().is_none() {
            found.extend(open().map(|addr| (*addr, false))); // N-1
        }
        for entry in entries {
            match entry {
                Entry::Primary => found.extend(primary(node, family).map(|addr| (addr, false))),
                Entry::Localhost => found.extend(loopback().map(|addr| (*addr, true))),
                Entry::All => found.extend(open().map(|addr| (*addr, false))),
                Entry::Range(range) => {
                    let inside = |addr: &&IpAddr| range.contains(**addr);
                    found.extend(open().filter(inside).map(|addr| (*addr, false)));
                    // A zero prefix means all (N-1), and all does not mean loopback (N-6, N-7).
                    if range.prefix() != 0 {
                        found.extend(loopback().filter(inside).map(|addr| (*addr, true)));
                    }
                }
            }
        }
    }
    found.into_iter().collect()
}

/// The addresses of this node among those of its interfaces. Loopback and link-local ones are on every
/// node, and no Service, node port or SNAT can have them.
pub fn host_addresses(interface_addresses: &[IpAddr]) -> Vec<IpAddr> {
    interface_addresses.iter().copied().filter(|addr| refusal(*addr).is_none()).collect()
}

/// The address of a node that others know it by (L-5).
fn primary(node: Option<&Node>, family: Family) -> Option<IpAddr> {
    let addresses = node.map_or(&[][..], |node| &node.addresses);
    let mut usable = addresses.iter().filter(|addr| refusal(**addr).is_none());
    usable.find(|addr| Family::of(**addr) == family).copied()
}

/// Where clusterIPs are allocated from (V-13): as first address and prefix length, sorted, none
/// within another.
pub fn service_cidrs(store: &Store) -> Vec<(IpAddr, u8)> {
    let mut all: Vec<Cidr> =
        store.service_cidrs().flat_map(|object| object.cidrs.iter().copied()).collect();
    // A zero prefix would guard everything there is.
    all.retain(|cidr| cidr.prefix() > 0);
    Cidr::widest(all).into_iter().map(|cidr| (cidr.first(), cidr.prefix())).collect()
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
