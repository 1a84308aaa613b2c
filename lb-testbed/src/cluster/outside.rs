//! Clients outside of the cluster: behind a router, which is the fabric, in a network of their own.
//!
//! The router checks strictly that what it gets comes from where it would send an answer to, so that
//! a packet on the wrong uplink goes no further.

use anyhow::Result;

use super::{Cluster, Family, uplink::Uplink, wire::bridge};
use crate::{
    address::{client_net_v4, client_net_v6, client_v4, client_v6, node_v4, node_v6},
    netns::Netns,
};

impl Cluster {
    /// Has the router send what is meant for these ranges to a node: what an announcement by BGP or
    /// ARP brings about for the addresses of load balancers and externalIPs.
    pub fn route_to_node(&self, ranges: &[&str], node: usize) -> Result<()> {
        let lines: Vec<String> = ranges
            .iter()
            .map(|range| {
                let via: std::net::IpAddr = match family_of(range) {
                    Family::V4 => node_v4(node).into(),
                    Family::V6 => node_v6(node).into(),
                };
                format!("route replace {range} via {via} dev br0")
            })
            .collect();
        self.fabric.ip(&lines.join("\n"))
    }

    /// The interface of the router that leads to the clients.
    pub fn client_side(&self) -> &'static str {
        "brc"
    }

    pub(super) fn add_clients(&mut self) -> Result<()> {
        if self.spec.clients == 0 {
            return Ok(());
        }
        self.fabric.sysctls(&[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.br0.send_redirects", "0"),
            // Answers to many tests in one second are all of interest.
            ("net.ipv4.icmp_ratelimit", "0"),
        ])?;
        self.fabric.ip(&bridge("brc", client_net_v4(1), client_net_v6(1)))?;
        if self.spec.uplink == Uplink::Two {
            // IPv6 has no reverse path filter; what comes by the wrong uplink is seen by counting.
            self.fabric.sysctls(&[("net.ipv4.conf.br1.send_redirects", "0")])?;
        }
        for client in 0..usize::from(self.spec.clients) {
            let netns = Netns::new()?;
            self.fabric.ip(&format!(
                "link add c{client} type veth peer name eth0 netns {}\n\
                 link set c{client} master brc up",
                netns.name()
            ))?;
            netns.ip(&format!(
                "addr add {}/24 dev eth0\n\
                 addr add {}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via {}\n\
                 route add ::/0 via {}",
                client_v4(client),
                client_v6(client),
                client_net_v4(1),
                client_net_v6(1)
            ))?;
            self.clients.push(netns);
        }
        Ok(())
    }
}

fn family_of(range: &str) -> Family {
    if range.contains(':') { Family::V6 } else { Family::V4 }
}
