//! What other programs have netfilter do on a node: a CNI, a container runtime, a distribution, an
//! administrator. Written for `nft`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    address::{pod_net_v4, pod_net_v6},
    cluster::Cluster,
    process::Launch,
    wait,
};

/// How long `nft` may take.
const WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// A set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// A CNI hides pods that talk to the world behind the node.
    Masquerade,
    /// A CNI, or kube-proxy of old, drops what connection tracking does not understand.
    DropInvalid,
    /// A container runtime forwards what it knows only; a CNI has told it of pods.
    Docker,
    /// A distribution drops what comes from where its answer would not go to.
    ReversePath,
    /// An administrator lets in what is known to be served here, and answers.
    Input,
}

impl Rules {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Masquerade, Self::DropInvalid, Self::Docker, Self::ReversePath, Self::Input];

    fn text(self, node: usize) -> String {
        let (net4, net6) = (pod_net_v4(node), pod_net_v6(node));
        match self {
            Self::Masquerade => format!(
                "table inet cni {{
                    chain post {{
                        type nat hook postrouting priority srcnat;
                        ip saddr {net4} ip daddr != 10.244.0.0/16 masquerade
                        ip6 saddr {net6} ip6 daddr != fd00:10:244::/48 masquerade
                    }}
                }}"
            ),
            Self::DropInvalid => "table inet invalid {
                    chain forward { type filter hook forward priority -1; ct state invalid counter drop; }
                    chain input { type filter hook input priority -1; ct state invalid counter drop; }
                }"
            .into(),
            Self::Docker => "table inet docker {
                    chain forward {
                        type filter hook forward priority filter; policy drop;
                        ct state established,related accept
                        iifname docker0 accept
                        ip saddr 10.244.0.0/16 accept
                        ip daddr 10.244.0.0/16 accept
                        ip6 saddr fd00:10:244::/48 accept
                        ip6 daddr fd00:10:244::/48 accept
                    }
                    chain post {
                        type nat hook postrouting priority srcnat;
                        ip saddr 172.17.0.0/16 oifname != docker0 masquerade
                    }
                }"
            .into(),
            Self::ReversePath => "table inet rpfilter {
                    chain pre {
                        type filter hook prerouting priority mangle + 10;
                        meta nfproto ipv4 udp sport 67 udp dport 68 accept
                        ip6 saddr { ::, fe80::/10 } accept
                        fib saddr . mark . iif oif missing counter drop
                    }
                }"
            .into(),
            Self::Input => "table inet administrator {
                    chain input {
                        type filter hook input priority filter; policy drop;
                        ct state established,related accept
                        iifname lo accept
                        meta l4proto { icmp, ipv6-icmp } accept
                        udp dport { 8472, 8080 } accept
                        tcp dport { 22, 8080 } accept
                    }
                }"
            .into(),
        }
    }
}

/// Puts rules in force on a node.
pub fn apply(cluster: &Cluster, node: usize, rules: &[Rules]) -> Result<()> {
    let text: Vec<String> = rules.iter().map(|rules| rules.text(node)).collect();
    run(cluster, node, &text.join("\n"))
}

/// Has `nft` do on a node what a text says.
pub fn run(cluster: &Cluster, node: usize, text: &str) -> Result<()> {
    let path = cluster.scratch().join(format!("rules-{node}.nft"));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let launch = Launch::new("nft", "nft").netns(&cluster.nodes()[node].netns)?;
    launch.arg("-f").arg(&path).output(WITHIN).map(drop)
}

/// The rules of a node with their counters.
pub fn list(cluster: &Cluster, node: usize) -> Result<String> {
    let launch = Launch::new("nft", "nft").netns(&cluster.nodes()[node].netns)?;
    launch.args(["list", "ruleset"]).output(WITHIN)
}

/// How many packets a table's counters have seen.
pub fn counted(cluster: &Cluster, node: usize, table: &str) -> Result<u64> {
    let launch = Launch::new("nft", "nft").netns(&cluster.nodes()[node].netns)?;
    let text = launch.args(["list", "table", "inet", table]).output(WITHIN)?;
    let after: Vec<&str> = text.split("counter packets ").skip(1).collect();
    after
        .iter()
        .map(|rest| {
            let number = rest.split_whitespace().next().unwrap_or_default();
            number.parse::<u64>().with_context(|| format!("read a counter in {text}"))
        })
        .sum()
}

/// Waits until a node's connection tracking knows as many connections, or more.
pub fn wait_tracked(cluster: &Cluster, node: usize, wanted: u64) -> Result<()> {
    wait::until("connection tracking to know the connections", WITHIN, || {
        tracked(cluster, node).is_ok_and(|now| now >= wanted)
    })
}

/// How many connections a node's connection tracking knows.
pub fn tracked(cluster: &Cluster, node: usize) -> Result<u64> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = cluster.nodes()[node].netns.run(|| fs::read_to_string(path))??;
    text.trim().parse().with_context(|| format!("read {text:?} in {path}"))
}
