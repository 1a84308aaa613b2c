//! How a node is attached to the fabric: by one link, by two that act as one, or by two networks.
//!
//! | uplink | interfaces | what leaves by it |
//! |---|---|---|
//! | one | eth0 | everything |
//! | pair | bond0 over eth0 and eth1, one active | everything |
//! | two | eth0; eth1 with 172.19.0.10 and up, `fd00:172:19::10` and up | by eth1 what has its address as source |

use anyhow::{Context as _, Result};

use super::{
    Cluster,
    wire::{AT_ONCE, bridge},
};
use crate::{
    address::{fabric_v4, fabric_v6, node_v4, node_v6, second_v4, second_v6},
    netns::Netns,
};

/// How nodes are attached to the fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// One interface, eth0.
    One,
    /// Two interfaces, one of them active, under a master with the addresses: what a bond in mode
    /// active-backup is. The master is a bridge, which every kernel has.
    Pair,
    /// Two interfaces in two networks; replies of the second one's address leave by it, because of a
    /// policy rule. Its reverse path filter is loose, as clouds with several interfaces set it.
    Two,
}

/// The policy routing table of the second uplink.
const TABLE: &str = "100";

impl Cluster {
    /// Has the second link of a node's pair do what the first did, as a bond does when a cable is
    /// pulled.
    pub fn fail_over(&self, node: usize) -> Result<()> {
        self.fabric.ip(&format!("link set n{node} down"))?;
        self.nodes[node].netns.bridge("link set dev eth1 state 3")
    }

    /// Makes a node's uplinks with their addresses and default routes.
    pub(super) fn plug_in(&self, index: usize, node: &Netns) -> Result<()> {
        let name = node.name();
        self.fabric.ip(&format!(
            "link add n{index} type veth peer name eth0 netns {name}\n\
             link set n{index} master br0 up"
        ))?;
        let device = if self.spec.uplink == Uplink::Pair { "bond0" } else { "eth0" };
        match self.spec.uplink {
            Uplink::One => {}
            Uplink::Pair => {
                self.fabric.ip(&format!(
                    "link add m{index} type veth peer name eth1 netns {name}\n\
                     link set m{index} master br0"
                ))?;
                // Ports that are isolated exchange nothing: frames cannot go round in circles by way
                // of the fabric while both are up.
                node.ip(&format!(
                    "link add bond0 type bridge {AT_ONCE}\n\
                     link set eth0 master bond0\n\
                     link set eth1 master bond0"
                ))?;
                node.bridge("link set dev eth0 isolated on\nlink set dev eth1 isolated on")?;
                node.ip("link set eth1 up")?;
                self.fabric.ip(&format!("link set m{index} up"))?;
            }
            Uplink::Two => self.plug_in_second(index, node).context("make a second uplink")?,
        }
        node.ip(&format!(
            "addr add {}/24 dev {device}\n\
             addr add {}/64 dev {device} nodad\n\
             link set eth0 up\n\
             link set {device} up\n\
             route add default via {} dev {device}\n\
             route add ::/0 via {} dev {device}",
            node_v4(index),
            node_v6(index),
            fabric_v4(1),
            fabric_v6(1)
        ))?;
        if self.spec.uplink == Uplink::Pair {
            // A master that comes up lets its ports forward, so this is last.
            node.bridge("link set dev eth1 state 0")?;
        }
        Ok(())
    }

    fn plug_in_second(&self, index: usize, node: &Netns) -> Result<()> {
        if index == 0 {
            self.fabric.ip(&bridge("br1", second_v4(1), second_v6(1)))?;
        }
        self.fabric.ip(&format!(
            "link add m{index} type veth peer name eth1 netns {}\n\
             link set m{index} master br1 up",
            node.name()
        ))?;
        let host = 10 + u8::try_from(index).unwrap_or(u8::MAX);
        let (v4, v6) = (second_v4(host), second_v6(u16::from(host) + 6));
        node.ip(&format!(
            "addr add {v4}/24 dev eth1\n\
             addr add {v6}/64 dev eth1 nodad\n\
             link set eth1 up\n\
             route add default via {} dev eth1 table {TABLE}\n\
             route add ::/0 via {} dev eth1 table {TABLE}",
            second_v4(1),
            second_v6(1)
        ))?;
        node.ip_output(&["rule", "add", "from", &v4.to_string(), "lookup", TABLE])?;
        node.ip_output(&["-6", "rule", "add", "from", &v6.to_string(), "lookup", TABLE])?;
        node.sysctls(&[("net.ipv4.conf.eth1.rp_filter", "2")])
    }
}
