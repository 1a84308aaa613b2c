//! What programs are told of interfaces as these come, change and go.

use std::net::IpAddr;

use lb_common::abi::{Interface as Record, InterfaceFlags};

use super::*;
use crate::datapath::fake::{Fake, SMALL};
use crate::datapath::roles::{Device, Kind};
use crate::datapath::{interfaces, outside};
use crate::model::{Change, Cidr};
use crate::source::SourceEvent;
use crate::sync::Event;

const OFF_NODE: u32 = InterfaceFlags::OFF_NODE;
/// Of a pod's port, to a detector that goes by interfaces.
const LOCAL_POD: u32 = InterfaceFlags::LOCAL_POD;
const PODS: u32 = InterfaceFlags::PODS;

fn start(outside: Outside) -> Sync<Fake> {
    Sync::new(Fake::new(SMALL), SMALL).unwrap().with_outside(outside)
}

fn of(detector: LocalDetector) -> Outside {
    Outside { detector, ..Outside::default() }
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|text| text.parse().unwrap()).collect()
}

fn cidr(text: &str) -> Cidr {
    let (addr, prefix) = text.split_once('/').unwrap();
    Cidr::new(addr.parse().unwrap(), prefix.parse().unwrap()).unwrap()
}

fn is(index: u32, name: &str, role: Role, master: u32) -> Event {
    let device = Device { kind: Kind::Veth, mtu: 1500, running: true, has_vlan: false, master };
    Event::Interface(interfaces::Change::Is(Interface {
        index,
        name: name.into(),
        role,
        ethernet: role != Role::Overlay,
        device,
    }))
}

fn gone(index: u32) -> Event {
    Event::Interface(interfaces::Change::Gone(index))
}

/// Each interface's own primary addresses, which are all there are, with some more.
fn addresses(primaries: &[(u32, &[&str])], more: &[&str]) -> [Event; 2] {
    let mut all = ips(more);
    let each = primaries.iter().map(|&(index, own)| {
        let own = ips(own);
        all.extend(&own);
        let v4 = own.iter().find_map(|addr| match addr {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = own.iter().find_map(|addr| match addr {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        (index, Primary { v4, v6 })
    });
    let primaries = each.collect();
    all.sort_unstable();
    [
        Event::Interface(interfaces::Change::Addresses(all)),
        Event::Interface(interfaces::Change::Primaries(primaries)),
    ]
}

fn listed() -> Event {
    Event::Interface(interfaces::Change::Listed)
}

fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Event {
    let node = Node {
        name: "here".into(),
        addresses: ips(addresses).into(),
        pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(),
        ..Node::default()
    };
    Event::Source(SourceEvent::Batch(vec![Change::SetNode(node)]))
}

/// What is told of an interface, if a program would believe it.
fn told(sync: &Sync<Fake>, index: u32) -> Option<Record> {
    let found = sync.datapath().told_interfaces.get(&index).copied()?;
    assert!(found.is_for(index), "{found:?}");
    Some(found)
}

fn flags(sync: &Sync<Fake>, index: u32) -> u32 {
    told(sync, index).unwrap().flags
}

fn sources(sync: &Sync<Fake>, index: u32) -> Vec<IpAddr> {
    outside::sources(&told(sync, index).unwrap())
}

#[test]
fn every_interface_is_told_before_programs_are_attached_masters_included() {
    let mut sync = start(Outside::default());
    let master = Role::Ignored(Reason::Master);
    sync.step([
        is(1, "lo", Role::Ignored(Reason::Loopback), 0),
        is(2, "eth0", Role::Uplink, 3),
        is(3, "bond0", master, 0),
        is(4, "veth4", Role::PodPort, 5),
        is(5, "br0", master, 0),
        is(6, "wg0", Role::Overlay, 0),
    ]);
    assert!(sync.datapath().interfaces.is_empty(), "nothing is attached");
    let each =
        |f: fn(Record) -> u32| (1..=6).map(|i| f(told(&sync, i).unwrap())).collect::<Vec<_>>();
    let flags = [0, OFF_NODE, 0, LOCAL_POD | PODS, PODS, OFF_NODE | InterfaceFlags::L3];
    assert_eq!(each(|r| r.flags), flags);
    assert_eq!(each(|r| r.group), [1, 3, 3, 5, 5, 6]);
    assert_eq!(each(|r| r.mtu), [1500; 6]);
}

#[test]
fn m_b_the_source_is_that_of_the_interface_its_bridge_or_else_the_node() {
    let mut sync = start(Outside::default());
    let own: &[(u32, &[&str])] = &[(2, &["192.0.2.2", "fd00::2"]), (5, &["10.244.0.1"])];
    sync.step([
        is(2, "eth0", Role::Uplink, 0),
        is(4, "veth4", Role::PodPort, 5),
        is(5, "br0", Role::Ignored(Reason::Master), 0),
        is(6, "cali6", Role::PodPort, 0),
    ]);
    assert_eq!(sources(&sync, 2), ips(&[]));
    sync.step(addresses(own, &["192.0.2.9"]));
    assert_eq!(sources(&sync, 2), ips(&["192.0.2.2", "fd00::2"]));
    assert_eq!(sources(&sync, 5), ips(&["10.244.0.1", "fd00::2"]));
    assert_eq!(sources(&sync, 4), sources(&sync, 5), "a port has its bridge's");
    assert_eq!(sources(&sync, 6), ips(&["192.0.2.2", "fd00::2"]), "an uplink's");
    sync.step([node(&["192.0.2.9"], &[])]);
    assert_eq!(sources(&sync, 6), ips(&["192.0.2.9", "fd00::2"]), "the node's, once it is known");
    assert_eq!(sources(&sync, 2), ips(&["192.0.2.2", "fd00::2"]));
    sync.step(addresses(&[(2, &["192.0.2.3"])], &[]));
    assert_eq!(sources(&sync, 6), ips(&["192.0.2.3"]), "the node's is assigned to nothing now");
    assert_eq!(sources(&sync, 2), ips(&["192.0.2.3"]));
}

#[test]
fn addresses_that_were_asked_for_are_used_while_they_are_assigned() {
    let asked = SnatAddresses::new(ips(&["192.0.2.8", "192.0.2.9"])).unwrap();
    let mut sync = start(Outside { snat_addresses: asked, ..Outside::default() });
    let missing = |sync: &Sync<Fake>| sync.datapath().meta[MetaWord::MissingSnatAddresses as usize];
    let own: &[(u32, &[&str])] = &[(2, &["192.0.2.2"])];
    sync.step([is(2, "eth0", Role::Uplink, 0)].into_iter().chain(addresses(own, &["192.0.2.9"])));
    assert_eq!((sources(&sync, 2), missing(&sync)), (ips(&["192.0.2.9"]), 1));
    sync.step(addresses(own, &["192.0.2.8", "192.0.2.9"]));
    assert_eq!((sources(&sync, 2), missing(&sync)), (ips(&["192.0.2.8", "192.0.2.9"]), 0));
    sync.step(addresses(own, &[]));
    assert_eq!((sources(&sync, 2), missing(&sync)), (ips(&["192.0.2.2"]), 2));
}

#[test]
fn records_are_written_on_change_only_and_go_with_their_interfaces() {
    let mut sync = start(Outside::default());
    let own: &[(u32, &[&str])] = &[(2, &["192.0.2.2"])];
    let all = || [is(2, "eth0", Role::Uplink, 0), is(4, "veth4", Role::PodPort, 0)];
    sync.step(all().into_iter().chain(addresses(own, &[])).chain([listed()]));
    let before = sync.datapath().clone();
    assert_eq!(before.told_interfaces.len(), 2);
    // Another agent takes over: nothing differs, and nothing is written.
    let mut sync = Sync::new(before.clone(), SMALL).unwrap();
    sync.step([]);
    let applied = sync.datapath().applied;
    sync.step(addresses(own, &[]).into_iter().chain(all()).chain([listed()]));
    assert_eq!(sync.datapath().told_interfaces, before.told_interfaces);
    assert_eq!(sync.datapath().applied, applied);
    // One that finds an interface gone forgets it, once it has seen all.
    let mut sync = Sync::new(before, SMALL).unwrap();
    sync.step(addresses(own, &[]).into_iter().chain([is(2, "eth0", Role::Uplink, 0)]));
    assert!(told(&sync, 4).is_some());
    sync.step([listed()]);
    assert_eq!(told(&sync, 4), None);
    // An index that another interface takes in the same burst.
    sync.step([gone(2), is(2, "veth2", Role::PodPort, 0)]);
    assert_eq!(flags(&sync, 2), LOCAL_POD | PODS);
    sync.step([gone(2)]);
    assert!(sync.datapath().told_interfaces.is_empty());
}

#[test]
fn an_interface_that_replaces_another_is_attached_to_again() {
    let mut sync = start(Outside::default());
    sync.step([is(4, "veth4", Role::PodPort, 0), listed(), Event::Source(SourceEvent::Synced)]);
    assert_eq!(sync.datapath().attached(), [4]);
    sync.datapath.interfaces.clear();
    sync.step([is(4, "veth4", Role::PodPort, 7)]);
    assert_eq!(sync.datapath().attached(), [0; 0], "the same programs belong on it");
    sync.step([gone(4), is(4, "veth4", Role::PodPort, 7)]);
    assert_eq!(sync.datapath().attached(), [4]);
    sync.datapath.interfaces.clear();
    // Netlink lost messages: nobody knows.
    sync.step([listed()]);
    assert_eq!(sync.datapath().attached(), [4]);
}

#[test]
fn detectors_by_interface_decide_what_a_local_pod_is() {
    let all = || {
        [
            is(2, "eth0", Role::Uplink, 0),
            is(4, "veth4", Role::PodPort, 5),
            is(5, "cni0", Role::Ignored(Reason::Master), 0),
            is(6, "cali6", Role::PodPort, 0),
        ]
    };
    for (detector, expected) in [
        (LocalDetector::Interface, [OFF_NODE, LOCAL_POD, 0, LOCAL_POD]),
        (LocalDetector::Bridge("cni0".into()), [OFF_NODE, LOCAL_POD, LOCAL_POD, 0]),
        (LocalDetector::Prefix("cali".into()), [OFF_NODE, 0, 0, LOCAL_POD]),
        (LocalDetector::None, [OFF_NODE, 0, 0, 0]),
    ] {
        let word = detector.word();
        let mut sync = start(of(detector.clone()));
        sync.step(all());
        let found = [2, 4, 5, 6].map(|index| flags(&sync, index) & !PODS);
        assert_eq!(found, expected, "{detector}");
        assert_eq!(sync.datapath().local_cidrs, [[], []]);
        assert_eq!(sync.datapath().meta[MetaWord::LocalDetector as usize], word);
    }
}

#[test]
fn detector_cluster_cidr_is_in_force_from_the_start_and_fits_the_node() {
    let ranges = Ranges::first_of(&[cidr("10.0.0.0/8")]);
    let outside = || of(LocalDetector::ClusterCidr(ranges));
    let mut sync = start(outside());
    assert_eq!(sync.datapath().local_cidrs, [vec![(ips(&["10.0.0.0"])[0], 8)], vec![]]);
    assert!(sync.step([is(4, "veth4", Role::PodPort, 0), node(&["192.0.2.1", "fd00::1"], &[])]));
    assert_eq!(flags(&sync, 4), PODS);
    // With addresses of the other family only, it was meant for another cluster: at a start.
    assert!(sync.step([node(&["fd00::1"], &[])]), "what fitted once goes on");
    let mut sync = start(outside());
    assert!(!sync.step([node(&["fd00::1"], &[])]));
    assert!(sync.unfit.is_some());
}

#[test]
fn detector_node_cidr_waits_for_the_node_and_follows_it() {
    let mut sync = start(of(LocalDetector::NodeCidr));
    assert!(sync.step([node(&["192.0.2.1"], &[])]));
    assert_eq!(sync.datapath().local_cidrs, [vec![], vec![]]);
    assert!(sync.step([node(&["192.0.2.1"], &["10.1.0.0/24"])]));
    let first = [vec![(ips(&["10.1.0.0"])[0], 24)], vec![]];
    assert_eq!(sync.datapath().local_cidrs, first);
    assert!(sync.step([node(&["192.0.2.1"], &[])]));
    assert_eq!(sync.datapath().local_cidrs, first, "not taken back by a Node without");
    // A restart keeps what was known until the Node says otherwise.
    let again = Sync::new(sync.datapath().clone(), SMALL).unwrap();
    let mut again = again.with_outside(of(LocalDetector::NodeCidr));
    assert_eq!(again.datapath().local_cidrs, first);
    assert!(again.step([node(&["192.0.2.1"], &["10.2.0.0/24", "fd00:2::/64"])]));
    let second = [vec![(ips(&["10.2.0.0"])[0], 24)], vec![(ips(&["fd00:2::"])[0], 64)]];
    assert_eq!(again.datapath().local_cidrs, second);
    // Another detector leaves nothing of it.
    let other = Sync::new(again.datapath().clone(), SMALL).unwrap();
    let other = other.with_outside(Outside::default());
    assert_eq!(other.datapath().local_cidrs, [vec![], vec![]]);
}

#[test]
fn ports_for_snat_and_masquerading_are_told_to_tools() {
    let snat_ports = "2048-9999".parse().unwrap();
    let sync = start(Outside { masquerade_all: true, snat_ports, ..Outside::default() });
    let meta = &sync.datapath().meta;
    assert_eq!(meta[MetaWord::LocalDetector as usize], 1 | 1 << 8);
    assert_eq!(meta[MetaWord::SnatPorts as usize], 2048 | 7952 << 32);
}

#[test]
fn flows_end_with_the_address_that_they_are_sent_on_under_and_not_before() {
    let mut sync = start(Outside::default());
    let eth0: &[&str] = &["192.0.2.2", "fd00::2"];
    sync.step([is(2, "eth0", Role::Uplink, 0), listed()]);
    sync.step(addresses(&[(2, eth0)], &[]));
    assert_eq!(sources(&sync, 2), ips(eth0));
    // Another one is the first now; the node still answers to the one before.
    sync.step(addresses(&[(2, &["192.0.2.3", "fd00::2"])], &["192.0.2.2"]));
    assert_eq!(sources(&sync, 2), ips(&["192.0.2.3", "fd00::2"]));
    assert_eq!(sync.datapath().ended_flows, ips(&[]));
    sync.step(addresses(&[(2, &["192.0.2.3"])], &[]));
    assert_eq!(sync.datapath().ended_flows, ips(&["192.0.2.2", "fd00::2"]));
    // What went while no agent looked ends with the next start, once.
    let mut sync = Sync::new(sync.datapath().clone(), SMALL).unwrap();
    sync.step([is(2, "eth0", Role::Uplink, 0)]);
    sync.step(addresses(&[(2, &["192.0.2.4"])], &[]));
    sync.step(addresses(&[(2, &["192.0.2.4"])], &["192.0.2.5"]));
    sync.step([listed()]);
    let ended = ips(&["192.0.2.2", "fd00::2", "192.0.2.3"]);
    assert_eq!(sync.datapath().ended_flows, ended);
}
