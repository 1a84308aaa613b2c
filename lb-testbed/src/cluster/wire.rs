//! How a cluster's namespaces are wired: pods to their node, nodes to the fabric.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;

use super::{Cluster, Node, Pod, Topology, overlay::Overlay};
use crate::{
    address::{gateway_v4, gateway_v6, node_v4, node_v6, pod_net_v4, pod_net_v6, pod_v4, pod_v6},
    netns::Netns,
};

/// A bridge that forwards from the beginning, and to every port.
pub(super) const AT_ONCE: &str = "stp_state 0 forward_delay 0 mcast_snooping 0";

impl Cluster {
    /// Adds a pod to a node; its number.
    pub fn add_pod(&mut self, node: usize) -> Result<usize> {
        let netns = Netns::new()?;
        let number = self.nodes[node].pods.len();
        let host_interface = format!("veth{number}");
        let (v4, v6) = (pod_v4(node, number), pod_v6(node, number));
        let (gateway4, gateway6) = (gateway_v4(node), gateway_v6(node));
        let pod_ns = netns.name();
        match self.spec.topology {
            Topology::Bridge => {
                self.nodes[node].netns.ip(&format!(
                    "link add {host_interface} type veth peer name eth0 netns {pod_ns}\n\
                     link set {host_interface} master cni0 up"
                ))?;
                netns.ip(&format!(
                    "addr add {v4}/24 dev eth0\n\
                     addr add {v6}/64 dev eth0 nodad\n\
                     link set eth0 up\n\
                     route add default via {gateway4}\n\
                     route add ::/0 via {gateway6}"
                ))?;
            }
            Topology::Routed => {
                self.nodes[node].netns.ip(&format!(
                    "link add {host_interface} type veth peer name eth0 netns {pod_ns}\n\
                     addr add {gateway4}/32 dev {host_interface}\n\
                     addr add {gateway6}/128 dev {host_interface} nodad\n\
                     link set {host_interface} up\n\
                     route add {v4}/32 dev {host_interface}\n\
                     route add {v6}/128 dev {host_interface}"
                ))?;
                netns.ip(&format!(
                    "addr add {v4}/32 dev eth0\n\
                     addr add {v6}/128 dev eth0 nodad\n\
                     link set eth0 up\n\
                     route add {gateway4}/32 dev eth0\n\
                     route add {gateway6}/128 dev eth0\n\
                     route add default via {gateway4} src {v4}\n\
                     route add ::/0 via {gateway6} src {v6}"
                ))?;
            }
        }
        self.nodes[node].pods.push(Pod { netns, host_interface });
        Ok(number)
    }

    pub(super) fn add_node(&mut self, index: usize) -> Result<()> {
        let name = format!("node-{index}");
        let node = Node {
            netns: Netns::new()?,
            cgroup: self.cgroup.child(&name)?,
            bpffs: self.bpffs.folder(&name)?,
            pods: Vec::new(),
            name,
        };
        node.netns.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv6.conf.default.forwarding", "1"),
            // Strict: a reply that leaves another way than its request came is noticed.
            ("net.ipv4.conf.all.rp_filter", "1"),
            ("net.ipv4.conf.default.rp_filter", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
        ])?;
        self.plug_in(index, &node.netns)?;
        let mut lines = String::new();
        if self.spec.overlay == Overlay::None {
            for other in (0..usize::from(self.spec.nodes)).filter(|other| *other != index) {
                let (net4, net6) = (pod_net_v4(other), pod_net_v6(other));
                let (via4, via6) = (node_v4(other), node_v6(other));
                writeln!(lines, "route add {net4} via {via4}\nroute add {net6} via {via6}")?;
            }
        }
        if self.spec.topology == Topology::Bridge {
            lines += &bridge("cni0", gateway_v4(index), gateway_v6(index));
        }
        node.netns.ip(&lines)?;
        self.nodes.push(node);
        Ok(())
    }
}

/// What `ip` reads to make a bridge with an address of each family, which forwards at once.
pub(super) fn bridge(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    format!(
        "link add {name} type bridge {AT_ONCE}\n\
         addr add {v4}/24 dev {name}\n\
         addr add {v6}/64 dev {name} nodad\n\
         link set {name} up\n"
    )
}
