//! Is this node fit for traffic from and to other machines, and as whom does it send on what comes
//! from others?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use lb_agent::datapath::outside::{OutsideMaps, sources};
use lb_agent::datapath::roles::{Interface, Role};
use lb_agent::model::Family;
use lb_agent::policy::local::LocalDetector;
use lb_agent::policy::snat::SnatPorts;
use lb_common::abi::{self, InterfaceFlags, MetaWord};
use serde::Serialize;

use super::word;
use crate::cli::error::Error;
use crate::cli::outside::overlaps;
use crate::cli::table::Table;

/// What the node does with traffic from and to other machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Outside {
    /// `--detect-local-mode`, as far as it is known: names and prefixes are not kept.
    local_detector: Option<&'static str>,
    /// Ranges of pods' addresses, where the detector goes by these.
    local_ranges: Vec<String>,
    /// `--masquerade-all`.
    masquerade_all: bool,
    /// Source ports of what is sent on.
    snat_ports: Option<String>,
    /// Addresses of `--snat-address` that are assigned to no interface.
    missing_snat_addresses: u64,
    /// What is known of interfaces that have a part.
    interfaces: Vec<Facing>,
    /// Whose ports those for SNAT are as well, each in a sentence.
    #[serde(skip)]
    overlaps: Vec<String>,
    /// The IP families that Services have frontends in.
    #[serde(skip)]
    families: Vec<Family>,
}

/// An interface as programs see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Facing {
    name: String,
    /// An uplink or an overlay.
    off_node: bool,
    /// An uplink.
    #[serde(skip)]
    uplink: bool,
    /// Programs know it.
    known: bool,
    /// What arrives by it is a pod's, to a detector that goes by interfaces.
    local_pod: bool,
    /// Addresses for SNAT, the first one first.
    sends_as: Vec<String>,
    /// The interface that routing takes it for: its bridge or bond, or itself.
    routed_as: String,
    /// `net.ipv4.conf.….forwarding`; none where it cannot be read.
    forwards_ipv4: Option<bool>,
    /// `net.ipv6.conf.….forwarding`.
    forwards_ipv6: Option<bool>,
    /// `net.ipv4.conf.….rp_filter`, or that of all interfaces if it is higher.
    rp_filter: Option<u8>,
}

/// Asks programs' maps and the kernel. Call it in the node's network namespace.
pub(super) fn outside(
    folder: &Path,
    meta: &[u64],
    found: &[Interface],
    families: Vec<Family>,
) -> Result<Outside, Error> {
    let maps = OutsideMaps::open(folder)?;
    let records: BTreeMap<u32, abi::Interface> = maps.interfaces()?.into_iter().collect();
    let detector = word(meta, MetaWord::LocalDetector).unwrap_or(0);
    let ports = word(meta, MetaWord::SnatPorts).and_then(snat_ports);
    let ranges = [Family::V4, Family::V6].into_iter().flat_map(|family| maps.local_cidrs(family));
    let names: BTreeMap<u32, &str> = found.iter().map(|i| (i.index, i.name.as_str())).collect();
    let with_part = found.iter().filter(|i| !matches!(i.role, Role::Ignored(_)));
    Ok(Outside {
        local_detector: LocalDetector::of_word(detector),
        local_ranges: ranges.map(|(addr, prefix)| format!("{addr}/{prefix}")).collect(),
        masquerade_all: detector & (1 << 8) != 0,
        snat_ports: ports.map(|ports| ports.to_string()),
        missing_snat_addresses: word(meta, MetaWord::MissingSnatAddresses).unwrap_or(0),
        interfaces: with_part.map(|i| facing(i, records.get(&i.index), &names)).collect(),
        overlaps: ports.map(overlaps).unwrap_or_default(),
        families,
    })
}

fn snat_ports(word: u64) -> Option<SnatPorts> {
    let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).ok();
    SnatPorts::of(half(word)?, half(word >> 32)?)
}

fn facing(
    interface: &Interface,
    record: Option<&abi::Interface>,
    names: &BTreeMap<u32, &str>,
) -> Facing {
    let record = record.filter(|record| record.is_for(interface.index));
    let top = record.and_then(|record| names.get(&record.group)).copied();
    let routed_as = top.unwrap_or(&interface.name);
    let number = |family: &str, of: &str, what: &str| -> Option<u8> {
        // Names of interfaces may have dots, which a path keeps apart from those of sysctl(8).
        let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{of}/{what}")).ok()?;
        text.trim().parse().ok()
    };
    let has = |flag| record.is_some_and(|record| record.flags & flag != 0);
    let rp_filter = |of| number("ipv4", of, "rp_filter");
    Facing {
        name: interface.name.clone(),
        off_node: matches!(interface.role, Role::Uplink | Role::Overlay),
        uplink: interface.role == Role::Uplink,
        known: record.is_some(),
        local_pod: has(InterfaceFlags::LOCAL_POD),
        sends_as: record
            .map(|record| sources(record).iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        routed_as: routed_as.to_owned(),
        forwards_ipv4: number("ipv4", routed_as, "forwarding").map(|value| value != 0),
        forwards_ipv6: number("ipv6", routed_as, "forwarding").map(|value| value != 0),
        rp_filter: rp_filter(routed_as).max(rp_filter("all")),
    }
}

impl Outside {
    /// What is wrong, each in a sentence.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.missing_snat_addresses > 0 {
            problems.push(format!(
                "--snat-address: {} assigned to no interface of this node, and not used: assign \
                 them, or start `lb-agent run` with others",
                match self.missing_snat_addresses {
                    1 => "one address is".to_owned(),
                    n => format!("{n} addresses are"),
                }
            ));
        }
        problems.extend(self.overlaps.iter().cloned());
        for interface in &self.interfaces {
            problems.extend(self.on(interface));
        }
        problems
    }

    fn on(&self, interface: &Facing) -> Vec<String> {
        let Facing { name, routed_as, .. } = interface;
        let mut problems = Vec::new();
        if !interface.known {
            problems.push(format!(
                "{name}: programs do not know it, and forward nothing that arrives by it; see the \
                 log of `lb-agent run`"
            ));
            return problems;
        }
        for &family in &self.families {
            let (forwards, ip, number) = match family {
                Family::V4 => (interface.forwards_ipv4, "IPv4", "ipv4"),
                Family::V6 => (interface.forwards_ipv6, "IPv6", "ipv6"),
            };
            if interface.off_node && forwards == Some(false) {
                problems.push(format!(
                    "{name}: the kernel forwards no {ip} packets that arrive by {routed_as}: \
                     connections from outside reach neither pods nor other nodes; set \
                     net.{number}.conf.{}.forwarding=1",
                    routed_as.replace('.', "/")
                ));
            }
            let is_of = |addr: &&String| addr.contains(':') == (family == Family::V6);
            if interface.off_node && !interface.sends_as.iter().any(|addr| is_of(&addr)) {
                problems.push(format!(
                    "{name}: no {ip} address of this node to send on under: connections to backends \
                     that are reached by it are dropped; assign one, or name one by --snat-address"
                ));
            }
        }
        if self.families.contains(&Family::V4)
            && interface.uplink
            && interface.rp_filter == Some(1)
            && self.uplinks() > 1
        {
            problems.push(format!(
                "{name}: strict reverse path filtering with several uplinks: what arrives by one of \
                 them from clients that are routed by another is dropped; set \
                 net.ipv4.conf.{}.rp_filter=2",
                routed_as.replace('.', "/")
            ));
        }
        problems
    }

    /// How many ways out of the node there are: the ports of a bond are one.
    fn uplinks(&self) -> usize {
        let uplinks = self.interfaces.iter().filter(|interface| interface.uplink);
        uplinks.map(|interface| interface.routed_as.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// What is worth knowing.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.local_detector {
            Some(mode @ ("cluster-cidr" | "node-cidr")) => {
                for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
                    let is_of = |range: &String| range.contains(':') == (family == Family::V6);
                    if self.families.contains(&family) && !self.local_ranges.iter().any(is_of) {
                        notes.push(format!(
                            "no {name} range of pods is known (--detect-local-mode {mode}): pods of \
                             this node count as foreign there"
                        ));
                    }
                }
            }
            Some(mode @ ("bridge-interface" | "interface-name-prefix"))
                if !self.interfaces.iter().any(|interface| interface.local_pod) =>
            {
                notes.push(format!(
                    "no interface is a pod's (--detect-local-mode {mode}): pods of this node \
                         count as foreign"
                ));
            }
            _ => {}
        }
        for interface in self.interfaces.iter().filter(|i| i.off_node && i.local_pod) {
            notes.push(format!(
                "{}: it leads out of the node, and what arrives by it counts as a pod's of this node \
                 (--detect-local-mode)",
                interface.name
            ));
        }
        notes
    }

    /// For people: a line each on pods and on SNAT.
    pub(super) fn rows(&self, table: &mut Table) {
        let mut pods = self.local_detector.unwrap_or("unknown").to_owned();
        if !self.local_ranges.is_empty() {
            pods = format!("{pods} {}", self.local_ranges.join(","));
        }
        let all = if self.masquerade_all { "; --masquerade-all" } else { "" };
        let ports = self.snat_ports.as_deref().unwrap_or("unknown");
        table
            .row(["pods are told by".into(), pods])
            .row(["SNAT".into(), format!("ports {ports}{all}")]);
    }

    /// For people: as whom packets leave by each interface, and whether it leads to pods.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new(&["INTERFACE", "ARRIVING", "SENDS AS"]);
        for interface in &self.interfaces {
            let arriving = match (interface.known, interface.off_node, interface.local_pod) {
                (false, ..) => "unknown to programs",
                (_, true, true) => "from outside, as a pod",
                (_, true, false) => "from outside",
                (_, false, true) => "from a pod",
                (_, false, false) => "from nobody in particular",
            };
            table.row([interface.name.clone(), arriving.into(), interface.sends_as.join(", ")]);
        }
        if table.is_empty() { String::new() } else { table.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(name: &str) -> Facing {
        Facing {
            name: name.into(),
            off_node: true,
            uplink: true,
            known: true,
            local_pod: false,
            sends_as: vec!["192.0.2.1".into(), "fd00::1".into()],
            routed_as: name.into(),
            forwards_ipv4: Some(true),
            forwards_ipv6: Some(true),
            rp_filter: Some(1),
        }
    }

    fn healthy() -> Outside {
        let pod =
            Facing { name: "veth0".into(), known: true, local_pod: true, ..Facing::default() };
        Outside {
            local_detector: Some("interface"),
            snat_ports: Some("1024-29999".into()),
            interfaces: vec![uplink("eth0"), pod],
            families: vec![Family::V4, Family::V6],
            ..Outside::default()
        }
    }

    #[test]
    fn one_uplink_that_forwards_and_has_addresses_is_fit() {
        assert_eq!(healthy().problems(), [""; 0], "strict filtering hurts nobody there");
        assert_eq!(healthy().notes(), [""; 0]);
        let mut bond = healthy();
        let port = |name| Facing { routed_as: "bond0".into(), ..uplink(name) };
        bond.interfaces = vec![port("eth0"), port("eth1")];
        assert_eq!(bond.problems(), [""; 0], "both are one way out");
    }

    #[test]
    fn what_makes_a_node_unfit_is_told_with_what_to_do() {
        type Change = fn(&mut Outside);
        let changes: [(Change, &str); 7] = [
            (|o| o.interfaces[0].forwards_ipv4 = Some(false), "net.ipv4.conf.eth0.forwarding=1"),
            (|o| o.interfaces[0].forwards_ipv6 = Some(false), "net.ipv6.conf.eth0.forwarding=1"),
            (|o| drop(o.interfaces[0].sends_as.pop()), "eth0: no IPv6 address"),
            (|o| o.interfaces[1].known = false, "veth0: programs do not know it"),
            (|o| o.missing_snat_addresses = 2, "--snat-address: 2 addresses are"),
            (|o| o.overlaps.push("SNAT ports overlap".into()), "SNAT ports overlap"),
            (
                |o| {
                    o.interfaces[0].rp_filter = Some(2);
                    o.interfaces.push(uplink("eth1.7"));
                },
                "net.ipv4.conf.eth1/7.rp_filter=2",
            ),
        ];
        for (change, expected) in changes {
            let mut outside = healthy();
            change(&mut outside);
            let problems = outside.problems();
            let [problem] = &problems[..] else { panic!("{expected}: {problems:?}") };
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn a_family_that_no_service_has_is_nobodys_problem() {
        let mut outside = healthy();
        outside.families = vec![Family::V4];
        outside.interfaces[0].forwards_ipv6 = Some(false);
        outside.interfaces[0].sends_as.pop();
        assert_eq!(outside.problems(), [""; 0]);
        outside.interfaces[1].forwards_ipv4 = Some(false);
        assert_eq!(outside.problems(), [""; 0], "nothing arrives from outside there");
    }

    #[test]
    fn a_detector_that_finds_no_pods_is_noted() {
        let mut outside = healthy();
        outside.local_detector = Some("node-cidr");
        outside.local_ranges = vec!["10.0.0.0/24".into()];
        let [note] = &outside.notes()[..] else { panic!("{:?}", outside.notes()) };
        assert!(note.starts_with("no IPv6 range"), "{note}");
        outside.local_detector = Some("interface-name-prefix");
        assert_eq!(outside.notes(), [""; 0]);
        outside.interfaces[1].local_pod = false;
        assert_eq!(outside.notes().len(), 1);
        outside.interfaces[0].local_pod = true;
        let [note] = &outside.notes()[..] else { panic!("{:?}", outside.notes()) };
        assert!(note.starts_with("eth0: it leads out"), "{note}");
    }

    #[test]
    fn ports_come_back_as_the_agent_told_them() {
        assert_eq!(snat_ports(1024 | 28_976 << 32), Some(SnatPorts::default()));
        assert_eq!(snat_ports(0), None);
    }
}
