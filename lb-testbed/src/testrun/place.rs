//! A network namespace in which test runs find interfaces and routes: what a program asks the kernel
//! about where a packet goes is answered there.

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// A namespace that forwards packets, with these interfaces, which lead nowhere: each with its name
/// and its index. `lines` are `ip` commands for addresses, routes and neighbours.
pub fn with_links(links: &[(&str, u32)], lines: &str) -> Result<Netns> {
    let netns = Netns::new()?;
    // Without forwarding no route is told.
    netns.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    let added = links.iter().map(|(name, index)| {
        format!("link add {name} index {index} type dummy\nlink set {name} up\n")
    });
    let lines: String = added.chain([lines.to_owned()]).collect();
    netns.ip(&lines).context("make interfaces and routes for test runs")?;
    Ok(netns)
}
