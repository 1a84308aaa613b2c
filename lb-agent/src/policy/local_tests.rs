//! The four local detectors of contract 4.3, and when they do not fit the node.

use super::*;

fn cidr(text: &str) -> Cidr {
    let (addr, prefix) = text.split_once('/').unwrap();
    Cidr::new(addr.parse().unwrap(), prefix.parse().unwrap()).unwrap()
}

fn ranges(all: &[&str]) -> Ranges {
    Ranges::first_of(&all.iter().map(|text| cidr(text)).collect::<Vec<_>>())
}

fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(),
        ..Node::default()
    }
}

#[test]
fn detector_cluster_cidr_takes_the_first_range_of_each_family() {
    let detector = LocalDetector::ClusterCidr(ranges(&[
        "10.0.0.0/8",
        "fd00::/48",
        "10.1.0.0/16",
        "fd01::/48",
    ]));
    let found = detector.ranges(None).unwrap();
    assert_eq!((found.v4, found.v6), (Some(cidr("10.0.0.0/8")), Some(cidr("fd00::/48"))));
    assert!(detector.goes_by_source() && detector.mode() == LocalMode::Range);
    assert!(!detector.is_local(true, ["veth1"]), "whatever it arrives by");
    assert_eq!(ranges(&["fd00::/48"]).of(Family::V4), None, "M-9: no detector for that family");
    assert_eq!(ranges(&["0.0.0.0/0"]), Ranges::default());
}

#[test]
fn detector_node_cidr_waits_for_the_node_and_follows_it() {
    let detector = LocalDetector::NodeCidr;
    assert_eq!(detector.ranges(None), None);
    assert_eq!(detector.ranges(Some(&node(&["192.0.2.1"], &[]))), None, "not told yet");
    let told = node(&["192.0.2.1"], &["10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24"]);
    assert_eq!(detector.ranges(Some(&told)), Some(ranges(&["10.1.0.0/24", "fd00:1::/64"])));
    let changed = node(&["192.0.2.1"], &["10.9.0.0/24"]);
    assert_eq!(detector.ranges(Some(&changed)), Some(ranges(&["10.9.0.0/24"])));
}

#[test]
fn detectors_by_interface_know_a_bridge_by_its_ports() {
    let port_of_cni0 = ["veth1", "cni0"];
    let bridge = LocalDetector::Bridge("cni0".into());
    assert!(bridge.is_local(true, port_of_cni0) && bridge.is_local(false, ["cni0"]));
    assert!(!bridge.is_local(true, ["veth1"]) && !bridge.is_local(true, ["veth1", "cni01"]));
    let prefix = LocalDetector::Prefix("cali".into());
    assert!(prefix.is_local(true, ["cali12"]) && !prefix.is_local(true, ["eth0"]));
    assert!(LocalDetector::Prefix("cni".into()).is_local(true, port_of_cni0));
    assert!(LocalDetector::Interface.is_local(true, ["eth0"]));
    assert!(!LocalDetector::Interface.is_local(false, ["veth1"]));
    assert!(!LocalDetector::None.is_local(true, port_of_cni0), "M-9, V-d");
    assert_eq!((prefix.mode(), bridge.mode()), (LocalMode::Interface, LocalMode::Interface));
    assert_eq!(LocalDetector::None.mode(), LocalMode::None);
    for detector in [bridge, prefix, LocalDetector::Interface, LocalDetector::None] {
        assert!(!detector.goes_by_source());
        assert_eq!(detector.ranges(None), Some(Ranges::default()));
    }
}

#[test]
fn a_range_of_the_wrong_family_alone_is_fatal_and_one_missing_is_told() {
    let v4 = LocalDetector::ClusterCidr(ranges(&["10.0.0.0/8"]));
    assert_eq!(v4.check(&node(&["192.0.2.1"], &[])), Ok(vec![]));
    assert_eq!(v4.check(&node(&["192.0.2.1", "fd00::1"], &[])), Ok(vec![Family::V6]));
    assert_eq!(v4.check(&node(&[], &[])), Ok(vec![]), "nothing is known of the node");
    let none = LocalDetector::ClusterCidr(ranges(&[]));
    assert_eq!(none.check(&node(&["192.0.2.1"], &[])), Ok(vec![Family::V4]), "M-9");
    let error = v4.check(&node(&["fd00::1"], &[])).unwrap_err().to_string();
    assert!(error.contains("--cluster-cidr") && error.contains("(IPv6)"), "{error}");
    let by_node = LocalDetector::NodeCidr;
    let error = by_node.check(&node(&["192.0.2.1"], &["fd00::/64"])).unwrap_err().to_string();
    assert!(error.contains("podCIDRs") && error.contains("(IPv4)"), "{error}");
    assert_eq!(by_node.check(&node(&["192.0.2.1"], &[])), Ok(vec![]), "still waited for");
    assert_eq!(LocalDetector::Interface.check(&node(&["fd00::1"], &[])), Ok(vec![]));
}
