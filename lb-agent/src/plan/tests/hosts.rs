//! Addresses of the node's interfaces.

use std::net::IpAddr;

use lb_common::abi::AddressFlags;

use super::cases::port;
use super::world::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::Fake;
use crate::diff;
use crate::model::{DesiredPort, Family, Frontend, FrontendKind};
use crate::plan::{AddressChange, Capacity, NodeFacts, Planner, Report, address_word};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hosts(texts: &[&str]) -> NodeFacts {
    let host_addresses = texts.iter().map(|text| ip(text)).collect();
    NodeFacts { host_addresses, ..NodeFacts::default() }
}

fn put(addr: &str, flags: u32) -> AddressChange {
    AddressChange::Put(ip(addr), address_word(&ip(addr), flags))
}

fn with(frontends: &[Frontend]) -> DesiredPort {
    DesiredPort { frontends: frontends.to_vec(), ..port(&[], &[1]) }
}

#[test]
fn every_address_of_an_interface_is_the_nodes_whether_there_are_node_ports_or_not_v_10() {
    let mut planner = Planner::new(ROOMY);
    let batch = planner.plan_node(hosts(&["192.168.0.1", "fd02::1"]));
    let host = AddressFlags::HOST;
    assert_eq!(batch.addresses, [put("192.168.0.1", host), put("fd02::1", host)]);
    let node_port = Frontend::node_port(Family::V4, 30_080);
    let mut facts = hosts(&["192.168.0.1", "fd02::1"]);
    facts.node_port_addresses = vec![(ip("192.168.0.1"), false), (ip("192.168.0.7"), false)];
    planner.set_node(facts);
    let batch = planner.plan([(key(0), Some(with(&[node_port])))]);
    // One that the Node object tells need not be on any interface.
    let node = AddressFlags::NODE;
    assert_eq!(batch.addresses, [put("192.168.0.1", host | node), put("192.168.0.7", node)]);
    let asked: Vec<_> = planner.node_port_addresses().into_iter().map(|(addr, _)| addr).collect();
    assert_eq!(asked, [ip("192.168.0.1"), ip("192.168.0.7")]);
    let batch = planner.plan([(key(0), None)]);
    let gone = AddressChange::Delete(ip("192.168.0.7"));
    assert_eq!(batch.addresses, [gone, put("192.168.0.1", host)]);
}

/// C-4: a VIP that is on an interface stays a VIP, and its other ports stay the node's.
#[test]
fn section_12_a_vip_that_is_an_address_of_the_node_is_both_c_4() {
    let mut planner = Planner::new(ROOMY);
    planner.plan_node(hosts(&["10.96.0.0"]));
    let vip = Frontend { kind: FrontendKind::LoadBalancer, ..vip(0, 0) };
    let batch = planner.plan([(key(0), Some(with(&[vip])))]);
    let both = AddressFlags::VIP | AddressFlags::HOST;
    assert_eq!((batch.addresses, batch.frontends.len()), (vec![put("10.96.0.0", both)], 1));
    assert!(!AddressFlags::is_services_alone(both));
    let batch = planner.plan_node(hosts(&[]));
    assert_eq!(batch.addresses, [put("10.96.0.0", AddressFlags::VIP)]);
}

#[test]
fn thousands_of_addresses_leave_room_for_services_and_are_told_once() {
    let capacity = Capacity { addresses: 64, frontends: 256, ..ROOMY };
    let (mut planner, mut fake) = (Planner::new(capacity), Fake::new(capacity));
    let all: Vec<String> = (0..100).map(|n| format!("172.16.0.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let batch = planner.plan_node(hosts(&all));
    assert_eq!(batch.addresses.len(), 4, "a sixteenth");
    assert_eq!(batch.reports, [Report::HostAddresses { left_out: 96 }]);
    fake.apply(&diff::operations(batch));
    let batch = planner.plan_node(hosts(&all[1..]));
    assert_eq!(batch.reports, []);
    assert_eq!(batch.addresses.len(), 2, "the place of one that goes is for the next: {batch:?}");
    fake.apply(&diff::operations(batch));
    // Services have the rest, and an address of theirs is not counted among those.
    let vips: Vec<Frontend> = (0..60).map(|n| vip(0, n)).collect();
    let of_services = Frontend { addr: ip("172.16.0.50"), ..vips[0] };
    let batch = planner.plan([(key(0), Some(with(&[&vips[..55], &[of_services]].concat())))]);
    assert_eq!((batch.addresses.len(), batch.reports.len()), (56, 0));
    fake.apply(&diff::operations(batch));
    // A restart keeps those that are there.
    let (mut planner, _) = Planner::adopt(capacity, &fake.snapshot().unwrap());
    planner.set_node(hosts(&all[1..]));
    let batch = planner.plan_all([(key(0), with(&[&vips[..55], &[of_services]].concat()))]);
    assert!(batch.is_empty(), "{batch:?}");
}

#[test]
fn eligible_addresses_come_before_those_that_are_nothing_else() {
    let mut planner = Planner::new(Capacity { addresses: 16, ..ROOMY });
    let all: Vec<String> = (0..40).map(|n| format!("172.16.0.{n}")).collect();
    let mut facts = hosts(&all.iter().map(String::as_str).collect::<Vec<_>>());
    facts.node_port_addresses = (30..40).map(|n: usize| (ip(&all[n]), false)).collect();
    planner.set_node(facts);
    let node_port = Frontend::node_port(Family::V4, 30_080);
    let batch = planner.plan([(key(0), Some(with(&[node_port])))]);
    let of = |flags: u32| {
        let has = |change: &&AddressChange| matches!(change, AddressChange::Put(_, word) if word.flags() == flags);
        batch.addresses.iter().filter(has).count()
    };
    assert_eq!(of(AddressFlags::NODE | AddressFlags::HOST), 10);
    assert_eq!(of(AddressFlags::HOST), 1);
    assert_eq!(batch.reports, [Report::HostAddresses { left_out: 29 }]);
}

/// A node may answer to thousands of addresses, and a cluster has tens of thousands of VIPs.
#[test]
fn an_address_that_comes_to_the_node_has_nobody_look_at_the_others() {
    let mut planner = Planner::new(ROOMY);
    planner.plan([(key(0), Some(with(&[vip(0, 0), vip(0, 1)])))]);
    planner.plan_node(hosts(&["192.168.0.1", "192.168.0.2"]));
    planner.set_node(hosts(&["192.168.0.2", "192.168.0.3"]));
    let touched: Vec<IpAddr> = planner.addresses.touched.iter().copied().collect();
    assert_eq!(touched, [ip("192.168.0.1"), ip("192.168.0.3")]);
    let batch = planner.plan([]);
    let gone = AddressChange::Delete(ip("192.168.0.1"));
    assert_eq!(batch.addresses, [gone, put("192.168.0.3", AddressFlags::HOST)]);
    let mut facts = hosts(&["192.168.0.2", "192.168.0.3"]);
    facts.node_port_addresses = vec![(ip("192.168.0.3"), false)];
    planner.set_node(facts);
    let touched: Vec<IpAddr> = planner.addresses.touched.iter().copied().collect();
    assert_eq!(touched, [ip("192.168.0.3")], "what it is has changed");
}
