//! The join rules one by one, and that the order of events never shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::BackendFlags;
use proptest::prelude::*;

use super::*;
use crate::model::{
    Change, Cidr, ClusterIps, Conditions, Endpoint, Endpoints, External, Frontend, Node, Protocol,
    Slice, SlicePort,
};

pub(super) const UP: &str = "rs";
const SERVING: u16 = BackendFlags::PRESENT | BackendFlags::SERVING;
const READY: u16 = SERVING | BackendFlags::READY | BackendFlags::IN_CLUSTER;
const LAST_RESORT: u16 = SERVING | BackendFlags::TERMINATING | BackendFlags::IN_CLUSTER;

pub(super) fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

pub(super) fn service(ports: &[(&str, Protocol, u16)]) -> Service {
    Service {
        key: key(),
        created_s: 5,
        cluster_ips: ClusterIps {
            v4: Some([10, 96, 0, 1].into()),
            v6: Some("fd00::1".parse().unwrap()),
        },
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| ServicePort {
                name: name.into(),
                port,
                node_port: 0,
                protocol,
            })
            .collect(),
        internal_local: false,
        affinity_timeout_s: None,
        external: None,
    }
}

pub(super) fn web() -> Service {
    service(&[("http", Protocol::Tcp, 80)])
}

/// Conditions by letters: ready, serving, terminating, local; hints for nodes, for this node (`N`).
pub(super) fn conditions(letters: &str) -> Conditions {
    Conditions::default()
        .with(Conditions::READY, letters.contains('r'))
        .with(Conditions::SERVING, letters.contains('s'))
        .with(Conditions::TERMINATING, letters.contains('t'))
        .with(Conditions::LOCAL, letters.contains('l'))
        .with(Conditions::FOR_NODES, letters.contains(['n', 'N']))
        .with(Conditions::FOR_THIS_NODE, letters.contains('N'))
}

/// An IPv4 slice of port `http`; endpoints by last octet and conditions.
pub(super) fn slice(name: &str, port: u16, endpoints: &[(u8, &str)]) -> Slice {
    Slice {
        key: ObjectKey::new("shop", name),
        service: "web".into(),
        ports: [SlicePort { name: "http".into(), port, protocol: Protocol::Tcp }].into(),
        endpoints: Endpoints::new(
            Family::V4,
            endpoints.iter().map(|&(octet, letters)| Endpoint {
                addr: [10, 0, 0, octet].into(),
                conditions: conditions(letters),
                zones: 0,
            }),
        ),
        zone_sets: Box::default(),
    }
}

pub(super) fn store(service: Service, slices: impl IntoIterator<Item = Slice>) -> Store {
    let mut store = Store::default();
    store.apply_all(slices.into_iter().map(Change::SetSlice).chain([Change::SetService(service)]));
    store
}

/// The IPv4 backends of the only port of `service`: last octet, port, flags.
fn backends(service: Service, slices: impl IntoIterator<Item = Slice>) -> Vec<(u8, u16, u16)> {
    let ports = service_ports(&store(service, slices), &key());
    let (_, port) = ports.iter().find(|(key, _)| key.family == Family::V4).unwrap();
    let octet = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("{addr} in an IPv4 port"),
    };
    port.backends.iter().map(|b| (octet(b.addr), b.port, b.flags)).collect()
}

#[test]
fn s_6_a_service_port_exists_once_in_each_family_with_a_cluster_ip() {
    let both = service_ports(&store(web(), []), &key());
    let families: Vec<_> = both.iter().map(|(key, port)| (key.family, port.frontends[0])).collect();
    assert_eq!(
        families,
        [
            (Family::V4, Frontend::cluster_ip([10, 96, 0, 1].into(), 80)),
            (Family::V6, Frontend::cluster_ip("fd00::1".parse().unwrap(), 80)),
        ]
    );
    let v6_only = ClusterIps { v4: None, ..web().cluster_ips };
    let one = service_ports(&store(Service { cluster_ips: v6_only, ..web() }, []), &key());
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].0.family, Family::V6);
}

#[test]
fn e_7_endpoints_of_an_unknown_service_have_no_ports() {
    let mut store = Store::default();
    store.apply_all([Change::SetSlice(slice("a", 8080, &[(1, UP)]))]);
    assert!(service_ports(&store, &key()).is_empty());
}

#[test]
fn e_21_a_service_port_without_endpoints_is_still_there() {
    let ports = service_ports(&store(web(), [slice("a", 8080, &[])]), &key());
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(|(_, port)| port.backends.is_empty() && !port.drop_when_no_local));
}

#[test]
fn e_9_e_10_a_port_joins_by_name_and_protocol_and_takes_its_number_from_the_slice() {
    let other_name = Slice {
        ports: [SlicePort { name: "https".into(), port: 1, protocol: Protocol::Tcp }].into(),
        ..slice("b", 0, &[(2, UP)])
    };
    let other_protocol = Slice {
        ports: [SlicePort { name: "http".into(), port: 1, protocol: Protocol::Udp }].into(),
        ..slice("c", 0, &[(3, UP)])
    };
    let joined = backends(web(), [slice("a", 8080, &[(1, UP)]), other_name, other_protocol]);
    assert_eq!(joined, [(1, 8080, READY)]);
}

#[test]
fn e_2_the_endpoints_of_the_other_family_stay_out() {
    let v6 = Slice {
        endpoints: Endpoints::new(
            Family::V6,
            [Endpoint { addr: "fd00:1::1".parse().unwrap(), conditions: conditions(UP), zones: 0 }],
        ),
        ..slice("b", 9090, &[])
    };
    let ports = service_ports(&store(web(), [slice("a", 8080, &[(1, UP)]), v6]), &key());
    let numbers: Vec<_> = ports.iter().map(|(_, port)| port.backends[0].port).collect();
    assert_eq!(numbers, [8080, 9090]);
}

#[test]
fn e_10_e_16_e_17_slices_with_different_numbers_for_a_port_name_are_merged_in_order() {
    let joined = backends(
        web(),
        [slice("a", 9090, &[(2, UP), (1, UP)]), slice("b", 8080, &[(2, UP), (3, UP)])],
    );
    let order: Vec<_> = joined.iter().map(|&(octet, port, _)| (octet, port)).collect();
    assert_eq!(order, [(1, 9090), (2, 8080), (2, 9090), (3, 8080)]);
}

#[test]
fn e_15_a_record_that_does_not_terminate_beats_one_that_does() {
    let (going, staying) = (slice("a", 80, &[(1, "st")]), slice("b", 80, &[(1, UP)]));
    for slices in [[going.clone(), staying.clone()], [staying, going]] {
        assert_eq!(backends(web(), slices), [(1, 80, READY)]);
    }
}

#[test]
fn u_4_e_20_what_serves_keeps_its_flows_and_what_is_ready_gets_new_ones() {
    let local = READY | BackendFlags::LOCAL;
    let joined = backends(
        web(),
        [slice(
            "a",
            80,
            &[
                (1, "rs"),
                (2, "rsl"),
                (3, "rst"),
                (4, "st"),
                (5, "stl"),
                (6, "s"),
                (7, "t"),
                (8, ""),
                (9, "r"),
            ],
        )],
    );
    assert_eq!(
        joined,
        [
            (1, 80, READY),
            (2, 80, local),
            (3, 80, READY | BackendFlags::TERMINATING),
            (4, 80, SERVING | BackendFlags::TERMINATING),
            (5, 80, SERVING | BackendFlags::TERMINATING | BackendFlags::LOCAL),
            (6, 80, SERVING),
            (9, 80, READY),
        ]
    );
}

#[test]
fn e_12_absent_serving_counts_for_the_fallback() {
    // As the converter reads `ready: false, terminating: true` without `serving`.
    assert_eq!(backends(web(), [slice("a", 80, &[(1, "st")])]), [(1, 80, LAST_RESORT)]);
}

/// Objects that depend on each other in every way: Services that claim each other's addresses, slices
/// that change their label, hints, a Node that moves between zones.
fn any_change() -> impl Strategy<Value = Change> {
    let name = || prop::sample::select(vec!["web", "api"]);
    let slice_name = || prop::sample::select(vec!["a", "b", "c"]);
    let letters =
        || prop::sample::select(vec!["rs", "rsl", "st", "stl", "s", "t", "rst", "", "rsN"]);
    let zones = prop::sample::select(vec!["a", "b"]);
    prop_oneof![
        4 => (name(), 1..3_u16, any_external(), any::<bool>(), 0..2_u16, 0..2_u8).prop_map(
            |(name, port, external, internal_local, node_port, ip)| {
                let mut service = service(&[("http", Protocol::Tcp, port)]);
                service.ports[0].node_port = node_port * 30_000;
                service.cluster_ips.v4 = Some([10, 96, 0, ip].into());
                let key = ObjectKey::new("shop", name);
                Change::SetService(Service { key, internal_local, external, ..service })
            }
        ),
        1 => name().prop_map(|name| Change::DropService(ObjectKey::new("shop", name))),
        6 => (
            slice_name(),
            name(),
            80..82_u16,
            prop::collection::vec((1..4_u8, letters(), 0..3_u8), 0..4)
        )
            .prop_map(|(slice_name, name, port, endpoints)| {
                let hinted = endpoints.iter().map(|&(octet, letters, zones)| Endpoint {
                    addr: [10, 0, 0, octet].into(),
                    conditions: conditions(letters),
                    zones,
                });
                Change::SetSlice(Slice {
                    service: name.into(),
                    endpoints: Endpoints::new(Family::V4, hinted),
                    zone_sets: ["a", "b"].map(|zone| Box::from([zone.into()])).into(),
                    ..slice(slice_name, port, &[])
                })
            }),
        1 => slice_name().prop_map(|name| Change::DropSlice(ObjectKey::new("shop", name))),
        1 => (zones, 0..3_u8).prop_map(|(zone, pods)| Change::SetNode(Node {
            zone: zone.into(),
            pod_cidrs: Cidr::new([192, 0, 2, pods].into(), 32).into_iter().collect(),
            kubelet_port: u16::from(pods),
            addresses: [[192, 0, 2, 1].into()].into(),
            ..Node::default()
        })),
    ]
}

fn any_external() -> impl Strategy<Value = Option<Box<External>>> {
    let address = prop::sample::select(vec![
        IpAddr::from([192, 0, 2, 1]),
        [192, 0, 2, 2].into(),
        [10, 96, 0, 0].into(),
        [10, 96, 0, 1].into(),
        "2001:db8::1".parse().unwrap(),
    ]);
    let addresses = prop::collection::btree_set(address, 0..3);
    let external = (any::<bool>(), addresses.clone(), addresses, any::<bool>()).prop_map(
        |(local, ips, balanced, ranged)| {
            let range = Cidr::new([192, 0, 2, 0].into(), 24).filter(|_| ranged);
            Box::new(External {
                local,
                ips: ips.into_iter().collect(),
                load_balancer_ips: balanced.into_iter().collect(),
                source_ranges: range.into_iter().collect(),
                health_check_node_port: 0,
            })
        },
    );
    prop::option::of(external)
}

type Desired = BTreeMap<PortKey, DesiredPort>;

fn desired_of(store: &Store) -> Desired {
    ["web", "api"]
        .iter()
        .flat_map(|name| service_ports(store, &ObjectKey::new("shop", name)))
        .collect()
}

/// What an object is named, whatever happens to it.
fn subject(change: &Change) -> (u8, ObjectKey) {
    match change {
        Change::SetService(service) => (0, service.key.clone()),
        Change::DropService(key) => (0, key.clone()),
        Change::SetSlice(slice) => (1, slice.key.clone()),
        Change::DropSlice(key) => (1, key.clone()),
        Change::SetNode(_) => (2, ObjectKey::new("", "")),
        other => panic!("not generated: {other:?}"),
    }
}

proptest! {
    #[test]
    fn the_order_of_events_never_shows(
        changes in prop::collection::vec(any_change(), 0..24),
        seed in any::<u64>(),
    ) {
        let mut in_order = Store::default();
        in_order.apply_all(changes.clone());
        // The last word on each object, in an order that has nothing to do with the first.
        let mut last: Vec<_> = changes
            .iter()
            .map(|change| (subject(change), change.clone()))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        let mut state = seed;
        for at in (1..last.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            last.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        let mut shuffled = Store::default();
        shuffled.apply_all(last);
        prop_assert_eq!(desired_of(&in_order), desired_of(&shuffled));
    }

    #[test]
    fn s_12_what_is_not_dirty_did_not_change(changes in prop::collection::vec(any_change(), 0..24)) {
        let mut store = Store::default();
        let mut programmed = Desired::new();
        let mut refusals = Refusals::default();
        for change in changes {
            for key in store.apply_all([change]).services {
                for refusal in refusals.update(&store, &key) {
                    prop_assert!(!refusal.problem.is_empty());
                }
                programmed.retain(|port, _| *port.service != *key.name);
                programmed.extend(service_ports(&store, &key));
            }
            prop_assert_eq!(&programmed, &desired_of(&store));
            let mut anew = Refusals::default();
            for name in ["web", "api"] {
                anew.update(&store, &ObjectKey::new("shop", name));
            }
            prop_assert_eq!(&refusals, &anew);
        }
    }

    #[test]
    fn a_complete_list_leads_to_the_same_as_events(
        before in prop::collection::vec(any_change(), 0..12),
        after in prop::collection::vec(any_change(), 0..12),
    ) {
        let mut fresh = Store::default();
        let node = Change::SetNode(Node { zone: "a".into(), ..Node::default() });
        fresh.apply_all(after.into_iter().chain([node.clone()]));
        let listed = [
            Change::ReplaceServices {
                services: fresh.services().cloned().collect(),
                keep: Vec::new(),
            },
            Change::ReplaceSlices {
                slices: ["web", "api"]
                    .iter()
                    .flat_map(|name| {
                        let key = ObjectKey::new("shop", name);
                        fresh.slices_of(&key).cloned().collect::<Vec<_>>()
                    })
                    .collect(),
                keep: Vec::new(),
            },
        ];
        let mut relisted = Store::default();
        relisted.apply_all(before.into_iter().chain([node]));
        relisted.apply_all(listed.clone());
        prop_assert_eq!(desired_of(&relisted), desired_of(&fresh));
        prop_assert!(relisted.apply_all(listed).is_empty());
    }
}

#[test]
fn section_12_of_too_many_endpoints_the_useful_ones_come_first_and_that_is_told() {
    let slice = |name| {
        let few = [(1, "s"), (2, "rs"), (3, "rs"), (4, "rsl"), (5, "rs"), (6, "rs")];
        super::tests::slice(name, 8080, &few)
    };
    let a = slice("a");
    let octets = |most| {
        let mut joins = endpoints::Joins::new(&[&a], Family::V4, "", most);
        let (_, backends) = joins.of(&web().ports[0], true, true);
        backends.iter().map(|b| b.addr.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(octets(2), ["10.0.0.2", "10.0.0.4"]);
    assert_eq!(octets(1), ["10.0.0.4"]);
    assert_eq!((octets(5)[0].as_str(), octets(6).len()), ("10.0.0.2", 6));
    let ports: Vec<_> = (1..=60_000).map(|n| ("http", Protocol::Tcp, n)).collect();
    for (ports, told) in [(&ports[..1], 0), (&ports[..], 1)] {
        let store = store(service(ports), [slice("a")]);
        let refusals = super::Refusals::default().update(&store, &key());
        assert_eq!(refusals.len(), told, "{refusals:?}");
        assert!(
            refusals.iter().all(|r| r.problem.contains("for 4 endpoints each")),
            "{refusals:?}"
        );
    }
}
