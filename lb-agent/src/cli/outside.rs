//! How is traffic from and to other machines treated? The flags that say so, each checked before
//! anything is done.

use std::fs;
use std::net::IpAddr;

use clap::{ArgAction, Args, ValueEnum};
use lb_agent::datapath::outside::Forwarding;
use lb_agent::model::Cidr;
use lb_agent::policy::local::{LocalDetector, Ranges};
use lb_agent::policy::snat::{self, SnatAddresses, SnatPorts};
use lb_agent::sync::Outside;

use super::error::Error;

/// Who counts as a pod of this node, and as whom the node sends on what comes from others.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traffic from and to other machines")]
pub(super) struct OutsideArgs {
    /// How pods of this node are told; kube-proxy's names are taken as well
    ///
    /// What others send to a clusterIP gets an address of the node as its source, and what pods send
    /// to an address of outside reaches backends everywhere, whatever externalTrafficPolicy says.
    #[arg(long, value_enum, value_name = "HOW", default_value = "interface")]
    detect_local_mode: Mode,
    /// Ranges of all pods' addresses, one for each IP family, for `cluster-cidr`
    #[arg(long, value_name = "RANGE,…", value_delimiter = ',', value_parser = range)]
    cluster_cidr: Vec<Cidr>,
    /// Bridge of the pods, for `bridge-interface`
    #[arg(long, value_name = "NAME", value_parser = name)]
    pod_bridge_interface: Option<String>,
    /// How names of pods' interfaces begin, for `interface-name-prefix`
    #[arg(long, value_name = "PREFIX", value_parser = name)]
    pod_interface_name_prefix: Option<String>,
    /// Give all connections to clusterIPs an address of the node as their source, in packets
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true")]
    masquerade_all: bool,
    /// Address of this node for what it sends on; up to four of each IP family [default: the primary
    /// address of the interface that a packet leaves by]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    snat_address: Vec<IpAddr>,
    /// Source ports for what this node sends on, off those that others choose for themselves
    ///
    /// With another range than that of the run before, connections that are sent on already lose their
    /// answers, unless their ports are in both: change it on a node that is drained.
    #[arg(long, value_name = "FIRST-LAST", default_value_t)]
    snat_ports: SnatPorts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// By the interface: the role of each tells what leads to a pod
    Interface,
    /// By the source, in --cluster-cidr
    #[value(name = "cluster-cidr", alias = "ClusterCIDR")]
    ClusterCidr,
    /// By the source, in spec.podCIDRs of the Node object
    #[value(name = "node-cidr", alias = "NodeCIDR")]
    NodeCidr,
    /// By the interface: --pod-bridge-interface or a port of it
    #[value(alias = "BridgeInterface")]
    BridgeInterface,
    /// By the interface: its name begins with --pod-interface-name-prefix
    #[value(alias = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// Not at all
    None,
}

impl OutsideArgs {
    /// What the flags ask for.
    pub(super) fn outside(&self) -> Result<Outside, Error> {
        let snat_addresses = SnatAddresses::new(self.snat_address.clone())
            .map_err(|error| Error::flag("--snat-address", error.to_string()))?;
        Ok(Outside {
            detector: self.detector()?,
            masquerade_all: self.masquerade_all,
            snat_addresses,
            snat_ports: self.snat_ports,
        })
    }

    fn detector(&self) -> Result<LocalDetector, Error> {
        let needed = |value: &Option<String>, flag, mode| {
            let reason = || format!("is needed by --detect-local-mode {mode}");
            value.clone().ok_or_else(|| Error::flag(flag, reason()))
        };
        Ok(match self.detect_local_mode {
            Mode::Interface => LocalDetector::Interface,
            Mode::ClusterCidr => LocalDetector::ClusterCidr(Ranges::first_of(&self.cluster_cidr)),
            Mode::NodeCidr => LocalDetector::NodeCidr,
            Mode::BridgeInterface => LocalDetector::Bridge(needed(
                &self.pod_bridge_interface,
                "--pod-bridge-interface",
                "bridge-interface",
            )?),
            Mode::InterfaceNamePrefix => LocalDetector::Prefix(needed(
                &self.pod_interface_name_prefix,
                "--pod-interface-name-prefix",
                "interface-name-prefix",
            )?),
            Mode::None => LocalDetector::None,
        })
    }

    /// What makes no difference, or may be a mistake; each as a sentence.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let mode = self.detect_local_mode;
        for (given, needs, flag) in [
            (!self.cluster_cidr.is_empty(), Mode::ClusterCidr, "--cluster-cidr"),
            (self.pod_bridge_interface.is_some(), Mode::BridgeInterface, "--pod-bridge-interface"),
            (
                self.pod_interface_name_prefix.is_some(),
                Mode::InterfaceNamePrefix,
                "--pod-interface-name-prefix",
            ),
        ] {
            if given && mode != needs {
                doubts.push(format!("{flag} has no effect with this --detect-local-mode"));
            }
        }
        if mode == Mode::ClusterCidr {
            let ranges = Ranges::first_of(&self.cluster_cidr);
            let used = |range: &Cidr| ranges.of(range.family()) == Some(*range);
            let unused: Vec<String> = self
                .cluster_cidr
                .iter()
                .filter(|range| !used(range))
                .map(ToString::to_string)
                .collect();
            if self.cluster_cidr.is_empty() {
                doubts.push(
                    "--detect-local-mode cluster-cidr without --cluster-cidr: nobody is known as a \
                     pod of this node"
                        .to_owned(),
                );
            } else if !unused.is_empty() {
                doubts.push(format!(
                    "--cluster-cidr: only the first range of each IP family counts; {} has no effect",
                    unused.join(",")
                ));
            }
        }
        doubts.extend(overlaps(self.snat_ports));
        doubts
    }
}

/// What of it programs have as constants.
pub(super) fn forwarding(outside: &Outside) -> Forwarding {
    Forwarding {
        local_mode: outside.detector.mode(),
        masquerade_all: outside.masquerade_all,
        snat_first: outside.snat_ports.first(),
        snat_count: outside.snat_ports.count(),
    }
}

/// Whose ports those for SNAT are as well, as the kernel is set at this moment in this thread's
/// network namespace. Nothing is changed.
pub(super) fn overlaps(ports: SnatPorts) -> Vec<String> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        snat::kernel_ranges(&text)
    };
    ports.overlaps(read("ip_local_port_range").first(), &read("ip_local_reserved_ports"))
}

fn range(text: &str) -> Result<Cidr, String> {
    let bad = || format!("`{text}` is no range of addresses such as 10.244.0.0/16");
    let (addr, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let (addr, prefix) = (addr.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
    if prefix == 0 {
        return Err("with a prefix of 0 everybody would be a pod".to_owned());
    }
    Cidr::new(addr, prefix).ok_or_else(bad)
}

/// A name that an interface can have, or the beginning of one (`dev_valid_name` of the kernel).
fn name(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
    if text.is_empty() || text.len() > 15 || text.contains(bad) {
        return Err("an interface is named by 1 to 15 bytes without spaces, `/` and `:`".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lb_common::tables::LocalMode;

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        outside: OutsideArgs,
    }

    fn parse(args: &[&str]) -> Result<OutsideArgs, String> {
        let args = [&["x"], args].concat();
        Cli::try_parse_from(args).map(|cli| cli.outside).map_err(|error| error.to_string())
    }

    fn detector(args: &[&str]) -> Result<String, String> {
        let outside = parse(args)?.outside().map_err(|error| error.to_string())?;
        Ok(outside.detector.to_string())
    }

    #[test]
    fn detect_local_modes_are_taken_by_our_names_and_kube_proxys() {
        assert_eq!(parse(&[]).unwrap().outside().unwrap(), Outside::default());
        let ranges = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56";
        let shown = "cluster-cidr 10.244.0.0/16,fd00:10:244::/56";
        for (ours, theirs, more, expected) in [
            ("cluster-cidr", "ClusterCIDR", ranges, shown),
            ("node-cidr", "NodeCIDR", ranges, "node-cidr"),
            (
                "bridge-interface",
                "BridgeInterface",
                "--pod-bridge-interface=cni0",
                "bridge-interface cni0",
            ),
            (
                "interface-name-prefix",
                "InterfaceNamePrefix",
                "--pod-interface-name-prefix=cali",
                "interface-name-prefix cali",
            ),
            ("none", "none", "--snat-ports=1024-9999", "none"),
        ] {
            for name in [ours, theirs] {
                let found = detector(&["--detect-local-mode", name, more]);
                assert_eq!(found.as_deref(), Ok(expected));
            }
        }
    }

    #[test]
    fn what_a_mode_needs_is_named_and_what_it_ignores_is_told() {
        for (mode, flag) in [
            ("bridge-interface", "--pod-bridge-interface"),
            ("InterfaceNamePrefix", "--pod-interface-name-prefix"),
        ] {
            let error = detector(&["--detect-local-mode", mode]).unwrap_err();
            assert!(error.starts_with(flag), "{error}");
        }
        let doubts = |args: &[&str]| parse(args).unwrap().doubts().join("; ");
        assert!(doubts(&["--cluster-cidr=10.0.0.0/8"]).contains("--cluster-cidr has no effect"));
        let mode = "--detect-local-mode=cluster-cidr";
        assert!(doubts(&[mode]).contains("nobody is known"));
        let twice = doubts(&[mode, "--cluster-cidr=10.0.0.0/8,fd00::/48,172.16.0.0/12"]);
        assert!(twice.contains("172.16.0.0/12 has no effect"), "{twice}");
        assert!(!doubts(&[mode, "--cluster-cidr=10.0.0.0/8,fd00::/48"]).contains("no effect"));
        assert!(doubts(&["--snat-ports=20000-40000"]).contains("--snat-ports"));
    }

    #[test]
    fn impossible_values_are_refused() {
        for (flag, value) in [
            ("--detect-local-mode", "ClusterCidrs"),
            ("--cluster-cidr", "10.0.0.0"),
            ("--cluster-cidr", "10.0.0.0/33"),
            ("--cluster-cidr", "::/0"),
            ("--pod-bridge-interface", "a/b"),
            ("--pod-interface-name-prefix", "longer-than-a-name"),
            ("--masquerade-all", "perhaps"),
            ("--snat-address", "node"),
            ("--snat-ports", "80-90"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag), "{error}");
        }
        let error = parse(&["--snat-address=127.0.0.1"]).unwrap().outside().unwrap_err();
        assert!(error.to_string().starts_with("--snat-address: 127.0.0.1"), "{error}");
    }

    #[test]
    fn programs_have_what_the_flags_say() {
        let told = |args: &[&str]| forwarding(&parse(args).unwrap().outside().unwrap());
        assert_eq!(told(&[]), Forwarding::default());
        let args = ["--snat-ports=1024-65535", "--detect-local-mode=NodeCIDR", "--masquerade-all"];
        let found = told(&args);
        assert_eq!((found.snat_first, found.snat_count), (1024, 64_512));
        assert_eq!((found.local_mode, found.masquerade_all), (LocalMode::Range, true));
    }

    #[test]
    fn m_6_masquerade_all_is_a_switch_as_kube_proxys() {
        let on = |args: &[&str]| parse(args).unwrap().outside().unwrap().masquerade_all;
        assert!(!on(&[]) && on(&["--masquerade-all"]) && on(&["--masquerade-all=true"]));
        assert!(!on(&["--masquerade-all=false"]));
    }
}
