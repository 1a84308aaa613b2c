//! The join rules one by one, and that the order of events never shows.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::{Change, ClusterIps, Endpoint, Protocol, SlicePort};

const UP: &str = "rs";
const SERVING: u16 = BackendFlags::PRESENT | BackendFlags::SERVING;
const READY: u16 = SERVING | BackendFlags::READY | BackendFlags::IN_CLUSTER;
const LOCAL: u16 = BackendFlags::LOCAL | BackendFlags::IN_LOCAL;

fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

fn service(ports: &[(&str, Protocol, u16)]) -> Service {
    Service {
        key: key(),
        created_s: 5,
        cluster_ips: ClusterIps {
            v4: Some([10, 96, 0, 1].into()),
            v6: Some("fd00::1".parse().unwrap()),
        },
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| ServicePort { name: name.into(), port, protocol })
            .collect(),
        internal_local: false,
        affinity_timeout_s: None,
    }
}

fn web() -> Service {
    service(&[("http", Protocol::Tcp, 80)])
}

/// Conditions by letters: ready, serving, terminating, local.
fn conditions(letters: &str) -> Conditions {
    Conditions::default()
        .with(Conditions::READY, letters.contains('r'))
        .with(Conditions::SERVING, letters.contains('s'))
        .with(Conditions::TERMINATING, letters.contains('t'))
        .with(Conditions::LOCAL, letters.contains('l'))
}

/// An IPv4 slice of port `http`; endpoints by last octet and conditions.
fn slice(name: &str, port: u16, endpoints: &[(u8, &str)]) -> Slice {
    Slice {
        key: ObjectKey::new("shop", name),
        service: "web".into(),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), port, protocol: Protocol::Tcp }].into(),
        endpoints: endpoints
            .iter()
            .map(|&(octet, letters)| Endpoint {
                addr: [10, 0, 0, octet].into(),
                conditions: conditions(letters),
            })
            .collect(),
    }
}

fn store(service: Service, slices: impl IntoIterator<Item = Slice>) -> Store {
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
fn a_service_port_exists_once_in_each_family_with_a_cluster_ip() {
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
fn an_unknown_service_has_no_ports() {
    let mut store = Store::default();
    store.apply_all([Change::SetSlice(slice("a", 8080, &[(1, UP)]))]);
    assert!(service_ports(&store, &key()).is_empty());
}

#[test]
fn a_service_port_without_endpoints_is_still_there() {
    let ports = service_ports(&store(web(), [slice("a", 8080, &[])]), &key());
    assert_eq!(ports.len(), 2);
    assert!(ports.iter().all(|(_, port)| port.backends.is_empty() && !port.drop_when_no_local));
}

#[test]
fn a_port_joins_by_name_and_protocol_and_takes_its_number_from_the_slice() {
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
fn the_endpoints_of_the_other_family_stay_out() {
    let v6 = Slice {
        family: Family::V6,
        endpoints: [Endpoint { addr: "fd00:1::1".parse().unwrap(), conditions: conditions(UP) }]
            .into(),
        ..slice("b", 9090, &[])
    };
    let ports = service_ports(&store(web(), [slice("a", 8080, &[(1, UP)]), v6]), &key());
    let numbers: Vec<_> = ports.iter().map(|(_, port)| port.backends[0].port).collect();
    assert_eq!(numbers, [8080, 9090]);
}

#[test]
fn slices_with_different_numbers_for_a_port_name_are_merged_in_order() {
    let joined = backends(
        web(),
        [slice("a", 9090, &[(2, UP), (1, UP)]), slice("b", 8080, &[(2, UP), (3, UP)])],
    );
    let order: Vec<_> = joined.iter().map(|&(octet, port, _)| (octet, port)).collect();
    assert_eq!(order, [(1, 9090), (2, 8080), (2, 9090), (3, 8080)]);
}

#[test]
fn a_record_that_does_not_terminate_beats_one_that_does() {
    let (going, staying) = (slice("a", 80, &[(1, "st")]), slice("b", 80, &[(1, UP)]));
    for slices in [[going.clone(), staying.clone()], [staying, going]] {
        assert_eq!(backends(web(), slices), [(1, 80, READY)]);
    }
}

#[test]
fn conditions_decide_which_sets_an_endpoint_is_in() {
    let ready_and_terminating = READY | BackendFlags::TERMINATING;
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
            (2, 80, READY | LOCAL),
            (3, 80, ready_and_terminating),
            (4, 80, SERVING | BackendFlags::TERMINATING),
            (5, 80, SERVING | BackendFlags::TERMINATING | BackendFlags::LOCAL),
            (6, 80, SERVING),
            (9, 80, READY),
        ]
    );
}

#[test]
fn a_local_policy_drops_only_while_others_serve() {
    let local = Service { internal_local: true, ..web() };
    for (letters, drops) in [("rs", true), ("st", true), ("s", false), ("t", false)] {
        let slices = [slice("a", 80, &[(1, letters)])];
        let ports = service_ports(&store(local.clone(), slices), &key());
        assert_eq!(ports[0].1.drop_when_no_local, drops, "{letters}");
        assert!(ports[0].1.internal_local);
    }
}

/// Objects that depend on each other in every way: two Services, slices that change their label.
fn any_change() -> impl Strategy<Value = Change> {
    let name = || prop::sample::select(vec!["web", "api"]);
    let slice_name = || prop::sample::select(vec!["a", "b", "c"]);
    let letters = prop::sample::select(vec!["rs", "rsl", "st", "s", "t", "rst", ""]);
    prop_oneof![
        (name(), 1..3_u16).prop_map(|(name, port)| Change::SetService(Service {
            key: ObjectKey::new("shop", name),
            ..service(&[("http", Protocol::Tcp, port)])
        })),
        name().prop_map(|name| Change::DropService(ObjectKey::new("shop", name))),
        (slice_name(), name(), 80..82_u16, prop::collection::vec((1..4_u8, letters), 0..4))
            .prop_map(|(slice_name, name, port, endpoints)| Change::SetSlice(Slice {
                service: name.into(),
                ..slice(slice_name, port, &endpoints)
            })),
        slice_name().prop_map(|name| Change::DropSlice(ObjectKey::new("shop", name))),
    ]
}

type Desired = BTreeMap<PortKey, DesiredPort>;

fn desired_of(store: &Store) -> Desired {
    ["web", "api"]
        .iter()
        .flat_map(|name| service_ports(store, &ObjectKey::new("shop", name)))
        .collect()
}

/// What an object is named, whatever happens to it.
fn subject(change: &Change) -> (bool, ObjectKey) {
    match change {
        Change::SetService(service) => (true, service.key.clone()),
        Change::DropService(key) => (true, key.clone()),
        Change::SetSlice(slice) => (false, slice.key.clone()),
        Change::DropSlice(key) => (false, key.clone()),
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
    fn what_is_not_dirty_did_not_change(changes in prop::collection::vec(any_change(), 0..24)) {
        let mut store = Store::default();
        let mut programmed = Desired::new();
        for change in changes {
            for key in store.apply_all([change]).services {
                programmed.retain(|port, _| *port.service != *key.name);
                programmed.extend(service_ports(&store, &key));
            }
            prop_assert_eq!(&programmed, &desired_of(&store));
        }
    }

    #[test]
    fn a_complete_list_leads_to_the_same_as_events(
        before in prop::collection::vec(any_change(), 0..12),
        after in prop::collection::vec(any_change(), 0..12),
    ) {
        let mut fresh = Store::default();
        fresh.apply_all(after);
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
        relisted.apply_all(before);
        relisted.apply_all(listed.clone());
        prop_assert_eq!(desired_of(&relisted), desired_of(&fresh));
        prop_assert!(relisted.apply_all(listed).is_empty());
    }
}
