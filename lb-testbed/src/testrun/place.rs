//! A network namespace in which test runs find interfaces and routes: what a program asks the kernel
//! about where a packet goes is answered there.

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// The link address of all of its interfaces: that of the receiver in packets of [`crate::packet`].
pub const MAC: &str = "02:00:00:00:00:02";

/// A namespace that forwards packets, with these interfaces, which lead nowhere: each with its name,
/// its index, below 1000, and the bridge that holds it, which is one of those before it. `lines` are
/// `ip` commands for addresses, routes and neighbours.
pub fn with_links(links: &[(&str, u32, Option<&str>)], lines: &str) -> Result<Netns> {
    let netns = Netns::new()?;
    // Without forwarding no route is told.
    netns.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    let is_bridge = |name: &str| links.iter().any(|(_, _, bridge)| *bridge == Some(name));
    let added = links.iter().map(|(name, index, bridge)| {
        let end = index + 1000;
        let kind = if is_bridge(name) {
            "bridge".to_owned()
        } else {
            format!("veth peer name end{index} index {end}\nlink set end{index} up")
        };
        let held =
            bridge.map_or(String::new(), |bridge| format!("link set {name} master {bridge}\n"));
        format!(
            "link add {name} index {index} address {MAC} type {kind}\n{held}link set {name} up\n"
        )
    });
    let lines: String = added.chain([lines.to_owned()]).collect();
    netns.ip(&lines).context("make interfaces and routes for test runs")?;
    Ok(netns)
}
