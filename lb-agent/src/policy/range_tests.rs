//! Source ranges of a Service, as its service ports get them.

use std::net::IpAddr;

use super::tests::{key, store, web};
use super::{Refusals, service_ports};
use crate::model::{Change, Cidr, External, Family, FrontendKind, Node, Service, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    let (addr, prefix) = text.split_once('/').unwrap();
    Cidr::new(ip(addr), prefix.parse().unwrap()).unwrap()
}

/// The Service behind a load balancer with an address of each family.
fn guarded(ranges: &[&str]) -> Service {
    let external = External {
        load_balancer_ips: [ip("198.51.100.1"), ip("2001:db8:1::1")].into(),
        source_ranges: ranges.iter().map(|text| cidr(text)).collect(),
        ..External::default()
    };
    Service { external: Some(Box::new(external)), ..web() }
}

fn ranges(store: &Store, family: Family) -> Vec<String> {
    let ports = service_ports(store, &key());
    let port = ports.iter().find(|(key, _)| key.family == family).unwrap();
    port.1.source_ranges.iter().map(ToString::to_string).collect()
}

#[test]
fn r_2_ranges_guard_their_own_family_only() {
    let store = store(guarded(&["203.0.113.0/24"]), []);
    assert_eq!(ranges(&store, Family::V4), ["203.0.113.0/24"]);
    assert_eq!(ranges(&store, Family::V6), [""; 0], "everybody");
    let ports = service_ports(&store, &key());
    let kinds = ports.iter().flat_map(|(_, port)| port.frontends.iter().map(|f| f.kind));
    let balanced = kinds.filter(|kind| *kind == FrontendKind::LoadBalancer).count();
    assert_eq!(balanced, 2, "both are programmed");
    assert_eq!(Refusals::default().update(&store, &key()), []);
}

#[test]
fn ranges_that_others_cover_are_left_out_and_one_for_all_is_none() {
    let all = ["203.0.113.0/24", "203.0.0.0/16", "203.0.113.7/32", "::/0", "2001:db8::/32"];
    let store = store(guarded(&all), []);
    assert_eq!(ranges(&store, Family::V4), ["203.0.0.0/16"]);
    assert_eq!(ranges(&store, Family::V6), [""; 0]);
}

/// without a load balancer's address there is nothing to guard.
#[test]
fn r_1_ranges_without_an_address_of_their_family_take_no_room() {
    let mut service = guarded(&["203.0.113.0/24", "2001:db8::/32"]);
    service.external.as_mut().unwrap().load_balancer_ips = [ip("2001:db8:1::1")].into();
    let store = store(service, []);
    assert_eq!(ranges(&store, Family::V4), [""; 0]);
    assert_eq!(ranges(&store, Family::V6), ["2001:db8::/32"]);
}

#[test]
fn r_3_a_node_in_a_range_may_send_from_the_addresses_themselves() {
    let mut store = store(guarded(&["192.0.2.0/24", "203.0.113.0/24"]), []);
    assert_eq!(ranges(&store, Family::V4).len(), 2, "the node is not known yet");
    let node =
        |addr: &str| Node { name: "here".into(), addresses: [ip(addr)].into(), ..Node::default() };
    assert!(store.apply_all([Change::SetNode(node("192.0.2.10"))]).services.contains(&key()));
    assert_eq!(ranges(&store, Family::V4), ["192.0.2.0/24", "198.51.100.1/32", "203.0.113.0/24"]);
    assert_eq!(ranges(&store, Family::V6), [""; 0]);
    assert!(store.apply_all([Change::SetNode(node("192.0.3.10"))]).services.contains(&key()));
    assert_eq!(ranges(&store, Family::V4).len(), 2);
}

/// V-5: nobody gets around the ranges by naming the same address among the externalIPs.
#[test]
fn v_5_an_address_among_both_is_the_load_balancers_and_other_external_ips_are_open() {
    let mut service = guarded(&["203.0.113.0/24"]);
    let both = [ip("192.0.2.1"), ip("198.51.100.1"), ip("2001:db8:1::1")];
    service.external.as_mut().unwrap().ips = both.into();
    let store = store(service, []);
    let ports = service_ports(&store, &key());
    let kind = |addr: IpAddr| {
        let all = ports.iter().flat_map(|(_, port)| &port.frontends);
        all.filter(|f| f.addr == addr).map(|f| f.kind).collect::<Vec<_>>()
    };
    assert_eq!(kind(both[0]), [FrontendKind::ExternalIp]);
    assert_eq!(kind(both[1]), [FrontendKind::LoadBalancer]);
    assert_eq!(kind(both[2]), [FrontendKind::ExternalIp], "no range of its family");
}

#[test]
fn section_12_a_service_cannot_fill_the_maps_by_ranges_and_ports() {
    let texts: Vec<String> =
        (0..1000).map(|n| format!("203.{}.{}.0/24", n / 250, n % 250)).collect();
    let mut all: Vec<&str> = texts.iter().map(String::as_str).collect();
    all.push("10.0.0.0/8");
    let mut service = guarded(&all);
    let port = service.ports[0].clone();
    service.ports = (1..=100_u16)
        .map(|n| crate::model::ServicePort {
            name: format!("p{n}").into(),
            port: n,
            ..port.clone()
        })
        .collect();
    let store = store(service, []);
    let ports = service_ports(&store, &key());
    let of_v4 = ports.iter().filter(|(key, _)| key.family == Family::V4);
    let total: usize = of_v4.map(|(_, port)| port.source_ranges.len()).sum();
    assert_eq!(total, 8100, "81 for each port");
    assert_eq!(ranges(&store, Family::V4)[0], "10.0.0.0/8", "the widest first");
    let told = Refusals::default().update(&store, &key());
    let [refusal] = &told[..] else { panic!("{told:?}") };
    assert_eq!(refusal.field, "spec.loadBalancerSourceRanges");
    assert!(refusal.problem.starts_with("920 ranges of V4 beyond the 81 widest"), "{refusal:?}");
}
