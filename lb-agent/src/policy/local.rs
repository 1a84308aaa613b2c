//! Whose packets are those of a pod of this node (contract 4.3)?
//!
//! By the interface that a packet arrives by, or by its source: what is not sent by such a pod and
//! asks for a clusterIP comes from outside of the cluster and is masqueraded (M-7), and what is may
//! take the short way to backends elsewhere (V-9).

use std::fmt;

use lb_common::tables::LocalMode;

use crate::model::{Cidr, Family, Node, refusal};

/// How pods of this node are told, `--detect-local-mode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalDetector {
    /// By the interface: what leads to a pod is known of each.
    #[default]
    Interface,
    /// By the source, in a range of the whole cluster's pods.
    ClusterCidr(Ranges),
    /// By the source, in the range that the Node object tells.
    NodeCidr,
    /// By the interface: this bridge, or a port of it.
    Bridge(String),
    /// By the interface: its name, or that of the bridge or bond that it is a port of, begins so.
    Prefix(String),
    /// Not at all (M-9, V-d).
    None,
}

/// A range of pods' addresses for each family; a family without one has no detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// IPv4.
    pub v4: Option<Cidr>,
    /// IPv6.
    pub v6: Option<Cidr>,
}

impl Ranges {
    /// The first range of each family; of a zero prefix, everybody would be a pod.
    pub fn first_of(all: &[Cidr]) -> Self {
        let first =
            |family| all.iter().find(|cidr| cidr.family() == family && cidr.prefix() > 0).copied();
        Self { v4: first(Family::V4), v6: first(Family::V6) }
    }

    /// That of a family.
    pub fn of(&self, family: Family) -> Option<Cidr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4},{v6}"),
            (Some(one), None) | (None, Some(one)) => write!(f, "{one}"),
            (None, None) => f.write_str("none"),
        }
    }
}

/// No family of the node has a range: no pod of it would be known as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} has no range of the node's own IP family ({families}): give ranges of the families that \
     the Node object has addresses of, or choose another --detect-local-mode"
)]
pub struct WrongFamily {
    what: &'static str,
    families: &'static str,
}

impl LocalDetector {
    /// What [`lb_common::abi::MetaWord::LocalDetector`] tells of it.
    pub const fn word(&self) -> u64 {
        match self {
            Self::Interface => 1,
            Self::ClusterCidr(_) => 2,
            Self::NodeCidr => 3,
            Self::Bridge(_) => 4,
            Self::Prefix(_) => 5,
            Self::None => 6,
        }
    }

    /// What `--detect-local-mode` was, by such a word; nothing if no agent has told it.
    pub const fn of_word(word: u64) -> Option<&'static str> {
        Some(match word & 0xff {
            1 => "interface",
            2 => "cluster-cidr",
            3 => "node-cidr",
            4 => "bridge-interface",
            5 => "interface-name-prefix",
            6 => "none",
            _ => return None,
        })
    }

    /// How programs tell them.
    pub const fn mode(&self) -> LocalMode {
        match self {
            Self::Interface | Self::Bridge(_) | Self::Prefix(_) => LocalMode::Interface,
            Self::ClusterCidr(_) | Self::NodeCidr => LocalMode::Range,
            Self::None => LocalMode::None,
        }
    }

    /// Whether packets are told by their source.
    pub const fn goes_by_source(&self) -> bool {
        matches!(self, Self::ClusterCidr(_) | Self::NodeCidr)
    }

    /// The ranges of sources; nothing as long as the Node object has not told them. A detector that
    /// does not go by the source has none.
    pub fn ranges(&self, node: Option<&Node>) -> Option<Ranges> {
        match self {
            Self::ClusterCidr(ranges) => Some(*ranges),
            Self::NodeCidr => node
                .map(|node| Ranges::first_of(&node.pod_cidrs))
                .filter(|r| *r != Ranges::default()),
            _ => Some(Ranges::default()),
        }
    }

    /// Whether what arrives by an interface is a pod's, to a detector that goes by interfaces.
    /// `leads_to_pod` is what is known of it, `names` are its own name and those of the bridges and
    /// bonds that it is a port of, which is what routing takes it for.
    pub fn is_local<'a>(
        &self,
        leads_to_pod: bool,
        names: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        let mut names = names.into_iter();
        match self {
            Self::Interface => leads_to_pod,
            Self::Bridge(bridge) => names.any(|name| name == bridge),
            Self::Prefix(prefix) => names.any(|name| name.starts_with(prefix.as_str())),
            Self::ClusterCidr(_) | Self::NodeCidr | Self::None => false,
        }
    }

    /// Looks at whether ranges and node fit: tells the families of the node that have no range, and
    /// fails where there are ranges and none of them has. A node whose addresses are not known fits
    /// everything.
    pub fn check(&self, node: &Node) -> Result<Vec<Family>, WrongFamily> {
        let Some(ranges) = self.ranges(Some(node)).filter(|_| self.goes_by_source()) else {
            return Ok(Vec::new());
        };
        let usable = || node.addresses.iter().filter(|addr| refusal(**addr).is_none());
        let has = |family| usable().any(|addr| Family::of(*addr) == family);
        let mut families = [Family::V4, Family::V6].to_vec();
        families.retain(|family| has(*family));
        let without: Vec<Family> =
            families.iter().copied().filter(|family| ranges.of(*family).is_none()).collect();
        let none = ranges == Ranges::default();
        if families.is_empty() || none || without.len() < families.len() {
            return Ok(without);
        }
        Err(WrongFamily {
            what: match self {
                Self::NodeCidr => "spec.podCIDRs of the Node object",
                _ => "--cluster-cidr",
            },
            families: match families.as_slice() {
                [Family::V4] => "IPv4",
                [Family::V6] => "IPv6",
                _ => "IPv4 and IPv6",
            },
        })
    }
}

impl fmt::Display for LocalDetector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface => f.write_str("interface"),
            Self::ClusterCidr(ranges) => write!(f, "cluster-cidr {ranges}"),
            Self::NodeCidr => f.write_str("node-cidr"),
            Self::Bridge(name) => write!(f, "bridge-interface {name}"),
            Self::Prefix(prefix) => write!(f, "interface-name-prefix {prefix}"),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
