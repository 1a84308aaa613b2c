//! What is told at health check node ports, and who has them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Change, ClusterIps, Endpoint, Endpoints, External, Protocol, Service, Slice, SlicePort,
};
use crate::policy::tests::{conditions, key, service, slice, store};

fn balanced(name: &str, created_s: i64, port: u16) -> Service {
    let external = External { local: true, health_check_node_port: port, ..External::default() };
    Service {
        key: ObjectKey::new("shop", name),
        created_s,
        external: Some(Box::new(external)),
        ..service(&[("http", Protocol::Tcp, 80), ("https", Protocol::Tcp, 443)])
    }
}

/// What is told of the only Service.
fn local_endpoints(service: Service, slices: impl IntoIterator<Item = Slice>) -> usize {
    let mut ports = HealthPorts::default();
    ports.update(&store(service, slices), &key());
    ports.at(32_000).unwrap().local_endpoints
}

fn web() -> Service {
    balanced("web", 5, 32_000)
}

#[test]
fn h_8_one_port_for_each_service_that_has_one() {
    let mut ports = HealthPorts::default();
    let mut store = store(web(), [slice("a", 8080, &[(1, "rsl")])]);
    let touched = ports.update(&store, &key());
    assert_eq!(touched.ports, [32_000].into());
    assert_eq!(ports.at(32_000), Some(Served { service: key(), local_endpoints: 1 }));
    assert_eq!(ports.at(32_001), None);
    assert_eq!(ports.update(&store, &key()), Touched::default(), "nothing new");

    // H-13: another port, and none any more, be it by type, policy or deletion.
    store.apply_all([Change::SetService(balanced("web", 5, 32_001))]);
    assert_eq!(ports.update(&store, &key()).ports, [32_000, 32_001].into());
    assert_eq!((ports.at(32_000), ports.at(32_001).is_some()), (None, true));
    for change in [Change::SetService(balanced("web", 5, 0)), Change::DropService(key())] {
        store.apply_all([Change::SetService(balanced("web", 5, 32_001))]);
        ports.update(&store, &key());
        store.apply_all([change]);
        assert_eq!(ports.update(&store, &key()).ports, [32_001].into());
        assert_eq!(ports.at(32_001), None);
    }
    assert!(ports.claims.is_empty() && ports.wanted.is_empty());
}

#[test]
fn h_9_only_ready_endpoints_on_this_node_count() {
    let of = |letters| local_endpoints(web(), [slice("a", 8080, &[(1, letters)])]);
    assert_eq!(of("rsl"), 1);
    for not in ["rs", "sl", "stl", "l", "tl", ""] {
        assert_eq!(of(not), 0, "{not}");
    }
    assert_eq!(of("rstl"), 1, "H-10: with publishNotReadyAddresses all are ready");
}

#[test]
fn h_10_h_15_addresses_are_counted_once_over_ports_slices_and_families() {
    let https = |name, port, endpoints| Slice {
        ports: [SlicePort { name: "https".into(), port, protocol: Protocol::Tcp }].into(),
        ..slice(name, port, endpoints)
    };
    let slices = [
        slice("a", 8080, &[(1, "rsl"), (2, "rsl")]),
        slice("b", 8081, &[(2, "rsl"), (3, "rs")]),
        https("c", 8443, &[(1, "rsl"), (4, "rsl")]),
        // Of a port that the Service has not.
        Slice {
            ports: [SlicePort { name: "dns".into(), port: 53, protocol: Protocol::Udp }].into(),
            ..slice("d", 53, &[(5, "rsl")])
        },
    ];
    assert_eq!(local_endpoints(web(), slices.clone()), 3);

    let v6 =
        Endpoint { addr: "2001:db8::1".parse().unwrap(), conditions: conditions("rsl"), zones: 0 };
    let v6 = Slice { endpoints: Endpoints::new(Family::V6, [v6]), ..slice("e", 8080, &[]) };
    assert_eq!(local_endpoints(web(), slices.clone().into_iter().chain([v6.clone()])), 4);
    // S-6: of a family that the Service does not have, nothing counts.
    let v4_only = Service { cluster_ips: ClusterIps { v6: None, ..web().cluster_ips }, ..web() };
    assert_eq!(local_endpoints(v4_only, slices.into_iter().chain([v6])), 3);
}

#[test]
fn the_oldest_of_several_has_the_port_and_the_others_are_known() {
    let mut ports = HealthPorts::default();
    let mut store = Store::default();
    let mut look = |change: Change, name: &str| {
        store.apply_all([change]);
        let touched = ports.update(&store, &ObjectKey::new("shop", name));
        let lost: Vec<_> = ["old", "mid", "new"]
            .iter()
            .filter(|name| ports.lost_to(&ObjectKey::new("shop", name)).is_some())
            .copied()
            .collect();
        let winner = ports.at(32_000).map(|served| served.service.name.to_string());
        let named = touched.services.iter().map(|key| key.name.to_string()).collect::<Vec<_>>();
        (winner.unwrap_or_default(), lost.join(" "), named.join(" "))
    };
    let told = |winner: &str, lost: &str, touched: &str| {
        (winner.to_owned(), lost.to_owned(), touched.to_owned())
    };
    let set = |name, created_s| Change::SetService(balanced(name, created_s, 32_000));
    let drop = |name| Change::DropService(ObjectKey::new("shop", name));
    assert_eq!(look(set("mid", 5), "mid"), told("mid", "", "mid"));
    assert_eq!(look(set("new", 9), "new"), told("mid", "new", "mid new"));
    assert_eq!(look(set("old", 1), "old"), told("old", "mid new", "mid old"));
    assert_eq!(look(drop("old"), "old"), told("mid", "new", "mid old"));
    assert_eq!(look(drop("mid"), "mid"), told("new", "", "mid new"));
}

#[test]
fn h_8_listens_where_node_ports_are_reached() {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let own = [(ip("192.0.2.1"), false), (ip("127.0.0.1"), true), (ip("2001:db8::1"), false)];
    let shown = |config: &str| {
        let places = places(&config.parse().unwrap(), &own);
        let one = |place| match place {
            Place::Everywhere => "everywhere".to_owned(),
            Place::At(addr) => addr.to_string(),
        };
        places.into_iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(shown("all"), ["everywhere"]);
    assert_eq!(shown("0.0.0.0/0,::/0"), ["everywhere"]);
    assert_eq!(shown("primary"), ["127.0.0.1", "192.0.2.1", "2001:db8::1"]);
    // N-1: the family without a range has all of its addresses.
    assert_eq!(shown("192.0.2.0/24"), ["127.0.0.1", "192.0.2.1", "::"]);
    assert_eq!(shown("2001:db8::/64"), ["0.0.0.0", "2001:db8::1"]);
    assert_eq!(shown("0.0.0.0/0,2001:db8::/64"), ["0.0.0.0", "2001:db8::1"]);
}

fn any_change() -> impl Strategy<Value = (String, Change)> {
    let name = prop::sample::select(vec!["web", "api", "dns"]);
    let port = prop::sample::select(vec![0_u16, 32_000, 32_001]);
    let endpoints =
        prop::collection::vec((1..4_u8, prop::sample::select(vec!["rsl", "rs", "stl", "l"])), 0..4);
    prop_oneof![
        (name.clone(), 1..4_i64, port)
            .prop_map(|(name, created_s, port)| (name.to_owned(), created_s, port))
            .prop_map(|(name, created_s, port)| {
                let service = balanced(&name, created_s, port);
                (name, Change::SetService(service))
            }),
        name.clone().prop_map(|name| {
            (name.to_owned(), Change::DropService(ObjectKey::new("shop", name)))
        }),
        (name, endpoints).prop_map(|(name, endpoints)| {
            let slice = Slice { service: name.into(), ..slice(name, 8080, &endpoints) };
            (name.to_owned(), Change::SetSlice(slice))
        }),
    ]
}

proptest! {
    /// What is told after many small changes is what is told from the beginning, and nothing changes
    /// unless it was said to.
    #[test]
    fn h_13_small_changes_lead_where_a_fresh_look_does(
        changes in prop::collection::vec(any_change(), 0..40),
    ) {
        const PORTS: [u16; 2] = [32_000, 32_001];
        let names = ["web", "api", "dns"].map(|name| ObjectKey::new("shop", name));
        let mut store = Store::default();
        let mut ports = HealthPorts::default();
        let told = |ports: &HealthPorts| {
            let at: BTreeMap<_, _> = PORTS.iter().map(|port| (*port, ports.at(*port))).collect();
            let lost: BTreeMap<_, _> = names
                .iter()
                .map(|key| (key.clone(), ports.lost_to(key).map(|(_, winner)| winner.clone())))
                .collect();
            (at, lost)
        };
        for (name, change) in changes {
            store.apply_all([change]);
            let before = told(&ports);
            let touched = ports.update(&store, &ObjectKey::new("shop", &name));
            let after = told(&ports);
            for port in PORTS {
                prop_assert!(touched.ports.contains(&port) || before.0[&port] == after.0[&port]);
            }
            for key in &names {
                let is_loser = |told: &BTreeMap<_, Option<ObjectKey>>| told[key].is_some();
                prop_assert!(
                    touched.services.contains(key) || is_loser(&before.1) == is_loser(&after.1)
                );
            }
            let mut fresh = HealthPorts::default();
            for key in &names {
                fresh.update(&store, key);
            }
            prop_assert_eq!(&after, &told(&fresh));
        }
    }
}
