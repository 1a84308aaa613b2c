//! Where node ports are answered: contract N-1 to N-7; and the ranges of V-13.

use super::*;
use crate::model::{Change, ServiceCidr};

const INTERFACES: [&str; 8] = [
    "127.0.0.1",
    "::1",
    "192.168.0.1",
    "10.0.0.1",
    "fd00::1",
    "fd01::1",
    "fe80::1",
    "169.254.20.10",
];

fn node(addresses: &[&str]) -> Node {
    let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
    Node { addresses, ..Node::default() }
}

fn found(config: &NodePortAddresses, node: Option<&Node>) -> Vec<String> {
    let interfaces = INTERFACES.map(|addr| addr.parse().unwrap());
    let found = node_port_addresses(config, node, &interfaces);
    let shown = |(addr, loopback): &(IpAddr, bool)| {
        assert_eq!(addr.is_loopback(), *loopback);
        addr.to_string()
    };
    found.iter().map(shown).collect()
}

fn of(config: &str) -> Vec<String> {
    let node = node(&["127.0.0.1", "fe80::1", "192.168.0.1", "10.0.0.1", "fd00::1"]);
    found(&config.parse().unwrap(), Some(&node))
}

#[test]
fn n_1_a_family_that_the_list_says_nothing_of_has_all_addresses() {
    assert_eq!(of("10.0.0.0/8"), ["10.0.0.1", "fd00::1", "fd01::1"]);
    assert_eq!(of("fd01::/16"), ["10.0.0.1", "192.168.0.1", "fd01::1"]);
    assert_eq!(of("10.0.0.0/8,fd01::/16"), ["10.0.0.1", "fd01::1"]);
    assert_eq!(of("0.0.0.0/0,fd01::/16"), ["10.0.0.1", "192.168.0.1", "fd01::1"]);
    assert_eq!(of("172.16.0.0/12,fd02::/16"), [] as [&str; 0]);
}

#[test]
fn n_2_keywords_are_of_both_families_and_mix_with_ranges() {
    assert_eq!(of("primary"), ["192.168.0.1", "fd00::1"]);
    assert_eq!(of("all"), ["10.0.0.1", "192.168.0.1", "fd00::1", "fd01::1"]);
    assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
    assert_eq!(of("primary, 10.0.0.0/8"), ["10.0.0.1", "192.168.0.1", "fd00::1"]);
    assert_eq!(of("localhost,primary"), ["127.0.0.1", "192.168.0.1", "::1", "fd00::1"]);
}

#[test]
fn n_3_the_default_is_primary_and_a_node_that_is_not_known_has_none() {
    let config = NodePortAddresses::default();
    assert_eq!(found(&config, Some(&node(&["10.0.0.1"]))), ["10.0.0.1"]);
    assert_eq!(found(&config, Some(&node(&[]))), [] as [&str; 0]);
    assert_eq!(found(&config, None), [] as [&str; 0]);
}

#[test]
fn n_4_n_5_interface_addresses_count_as_they_are_told() {
    let (config, one): (NodePortAddresses, _) =
        ("all".parse().unwrap(), "192.0.2.1".parse().unwrap());
    assert_eq!(node_port_addresses(&config, None, &[]), []);
    assert_eq!(node_port_addresses(&config, None, &[one, one]), [(one, false)]);
}

#[test]
fn n_6_n_7_loopback_counts_only_where_it_is_named() {
    assert_eq!(of("127.0.0.0/8,primary"), ["127.0.0.1", "192.168.0.1", "fd00::1"]);
    assert_eq!(of("::1/128,10.0.0.0/8"), ["10.0.0.1", "::1"]);
    for config in ["all", "primary", "0.0.0.0/0,::/0"] {
        assert!(!of(config).iter().any(|addr| addr == "127.0.0.1" || addr == "::1"), "{config}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_it_is() {
    for (text, told) in [
        ("", "``"),
        ("primary,", "``"),
        ("10.0.0.1", "`10.0.0.1`"),
        ("10.0.0.0/33", "`10.0.0.0/33`"),
        ("10.0.0.0/-1", "`10.0.0.0/-1`"),
        ("010.0.0.0/8", "`010.0.0.0/8`"),
        ("none", "`none`"),
        ("Primary", "`Primary`"),
        ("all,all", "`all` is there twice"),
        ("10.0.0.0/8,10.0.0.0/8", "`10.0.0.0/8` is there twice"),
        ("10.0.0.0/8,10.1.0.0/16", "`10.1.0.0/16` is in `10.0.0.0/8`"),
        ("10.1.0.0/16,10.0.0.0/8", "`10.1.0.0/16` is in `10.0.0.0/8`"),
    ] {
        let error = text.parse::<NodePortAddresses>().unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn v_13_ranges_of_service_cidrs_are_put_together() {
    let mut store = Store::default();
    let cidr = |addr: &str, prefix| Cidr::new(addr.parse().unwrap(), prefix).unwrap();
    let object = |name: &str, cidrs: &[Cidr]| {
        Change::SetServiceCidr(ServiceCidr { name: name.into(), cidrs: cidrs.into() })
    };
    let everything = cidr("0.0.0.0", 0);
    let first = object("kubernetes", &[cidr("10.96.0.0", 12), cidr("fd00:96::", 112)]);
    let more = object("more", &[cidr("10.100.0.0", 16), cidr("10.112.0.0", 16), everything]);
    assert!(store.apply_all([first.clone(), more]).node);
    assert!(store.apply_all([first]).is_empty());
    let shown = |store: &Store| -> Vec<String> {
        service_cidrs(store).iter().map(|(addr, prefix)| format!("{addr}/{prefix}")).collect()
    };
    assert_eq!(shown(&store), ["10.96.0.0/12", "10.112.0.0/16", "fd00:96::/112"]);
    assert!(store.apply_all([Change::DropServiceCidr("kubernetes".into())]).node);
    assert_eq!(shown(&store), ["10.100.0.0/16", "10.112.0.0/16"]);
    let none = Change::ReplaceServiceCidrs { cidrs: Vec::new(), keep: Vec::new() };
    assert!(store.apply_all([none.clone()]).node && store.apply_all([none]).is_empty());
    assert_eq!(shown(&store), [] as [&str; 0]);
}
