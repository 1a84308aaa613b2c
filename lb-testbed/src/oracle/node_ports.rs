//! At which addresses does this node answer nodePorts (section 3.3)?

use std::{collections::BTreeSet, net::IpAddr};

use super::cluster::{Family, Node};
use super::text::{self, Range};

/// Addresses at which nodePorts are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// For everybody (C-2).
    pub open: BTreeSet<IpAddr>,
    /// Only for sockets of the node itself, where the configuration names loopback (N-6, N-7): no
    /// packet is ever let in there (CVE-2020-8558).
    pub loopback: BTreeSet<IpAddr>,
}

impl NodePortAddresses {
    /// What `nodePortAddresses` means on this node.
    pub fn new(configured: &[String], node: &Node) -> Self {
        let mut addresses = Self::default();
        for family in Family::BOTH {
            addresses.add(configured, node, family);
        }
        addresses
    }

    fn add(&mut self, configured: &[String], node: &Node, family: Family) {
        let default = ["primary".to_owned()]; // N-3
        let configured = if configured.is_empty() { &default } else { configured };
        let of_family = |ip: &&IpAddr| Family::of(**ip) == family && !text::is_forbidden(**ip);
        let loopback = |ip: &&IpAddr| Family::of(**ip) == family && ip.is_loopback();
        let mut any_entry = false;
        for entry in configured {
            match entry.as_str() {
                "primary" => {
                    any_entry = true;
                    let listed = node.addresses.iter().filter_map(|ip| text::address(ip));
                    let first = listed
                        .filter(|ip| Family::of(*ip) == family && !ip.is_loopback()) // N-2
                        .find(|ip| !text::is_forbidden(*ip));
                    self.open.extend(first);
                }
                "localhost" => {
                    any_entry = true;
                    self.loopback.extend(node.interfaces.iter().filter(loopback));
                }
                "all" => {
                    any_entry = true;
                    self.open.extend(node.interfaces.iter().filter(of_family));
                }
                range => {
                    let Some(range) = Range::read(range) else { continue };
                    if range.family() != family {
                        continue;
                    }
                    any_entry = true;
                    let inside = |ip: &&IpAddr| range.contains(**ip);
                    self.open.extend(node.interfaces.iter().filter(of_family).filter(inside));
                    if range.prefix != 0 {
                        let named = node.interfaces.iter().filter(loopback).filter(inside);
                        self.loopback.extend(named);
                    }
                }
            }
        }
        if !any_entry {
            // N-1: a family that the list says nothing of has all of its addresses.
            self.open.extend(node.interfaces.iter().filter(of_family));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let interfaces = ["127.0.0.1", "::1", "192.168.0.1", "10.0.0.1", "fd00::1", "fd01::1"];
        Node {
            name: "a".into(),
            addresses: vec!["127.0.0.1".into(), "192.168.0.1".into(), "fd00::1".into()],
            interfaces: interfaces.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    fn addresses(configured: &[&str]) -> (Vec<String>, Vec<String>) {
        let configured: Vec<String> = configured.iter().map(|&entry| entry.into()).collect();
        let found = NodePortAddresses::new(&configured, &node());
        let texts = |set: &BTreeSet<IpAddr>| set.iter().map(ToString::to_string).collect();
        (texts(&found.open), texts(&found.loopback))
    }

    #[test]
    fn n_1_to_n_7_addresses_of_node_ports() {
        let all = ["10.0.0.1", "192.168.0.1", "fd00::1", "fd01::1"];
        let none: [&str; 0] = [];
        for (configured, open, loopback) in [
            (&[][..], &["192.168.0.1", "fd00::1"][..], &none[..]), // N-3
            (&["primary"], &["192.168.0.1", "fd00::1"], &none),    // N-2
            (&["all"], &all, &none),                               // N-6: never loopback
            (&["10.0.0.9/8"], &["10.0.0.1", "fd00::1", "fd01::1"], &none), // N-1
            (&["10.0.0.0/8", "fd01::/16"], &["10.0.0.1", "fd01::1"], &none), // N-1
            (&["0.0.0.0/0", "fd01::/16"], &["10.0.0.1", "192.168.0.1", "fd01::1"], &none),
            (&["localhost"], &none, &["127.0.0.1", "::1"]), // N-2, N-7
            (&["127.0.0.0/8", "primary"], &["192.168.0.1", "fd00::1"], &["127.0.0.1"]), // N-7
        ] {
            let (found_open, found_loopback) = addresses(configured);
            assert_eq!(found_open, open, "{configured:?}");
            assert_eq!(found_loopback, loopback, "{configured:?}");
        }
    }
}
