//! Which endpoints are in which set: contract T-1 to T-13.

use std::net::IpAddr;

use lb_common::abi::BackendFlags;

use super::service_ports;
use super::tests::{UP, conditions, key, slice, store, web};
use crate::model::{
    Change, DesiredPort, Dirty, Endpoint, Endpoints, External, Family, Node, Service, Slice, Store,
};

/// An endpoint by last octet, letters of its conditions and the zones of its hints.
type Hinted<'a> = (u8, &'a str, &'a [&'a str]);

fn hinted(name: &str, endpoints: &[Hinted<'_>]) -> Slice {
    let mut sets: Vec<&[&str]> = endpoints.iter().map(|(.., zones)| *zones).collect();
    sets.retain(|zones| !zones.is_empty());
    let packed = endpoints.iter().map(|&(octet, letters, zones)| Endpoint {
        addr: [10, 0, 0, octet].into(),
        conditions: conditions(letters),
        zones: sets
            .iter()
            .position(|set| *set == zones)
            .map_or(0, |at| u8::try_from(at + 1).unwrap()),
    });
    Slice {
        endpoints: Endpoints::new(Family::V4, packed),
        zone_sets: sets.iter().map(|set| set.iter().map(|&zone| zone.into()).collect()).collect(),
        ..slice(name, 80, &[])
    }
}

/// A Service whose policies are Local as told, reached from outside by a node port.
fn exposed(internal_local: bool, external_local: bool) -> Service {
    let external = External { local: external_local, ..External::default() };
    let mut service = Service { internal_local, external: Some(Box::new(external)), ..web() };
    service.ports[0].node_port = 30_080;
    service
}

fn in_zone(zone: &str) -> Change {
    Change::SetNode(Node { zone: zone.into(), ..Node::default() })
}

fn port(store: &Store) -> DesiredPort {
    let ports = service_ports(store, &key());
    ports.into_iter().find(|(key, _)| key.family == Family::V4).unwrap().1
}

fn set(port: &DesiredPort, flag: u16) -> Vec<u8> {
    let members = port.backends.iter().filter(|backend| backend.flags & flag != 0);
    members
        .map(|backend| match backend.addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => panic!("{v6} in an IPv4 port"),
        })
        .collect()
}

fn cluster(port: &DesiredPort) -> Vec<u8> {
    set(port, BackendFlags::IN_CLUSTER)
}

fn local(port: &DesiredPort) -> Vec<u8> {
    set(port, BackendFlags::IN_LOCAL)
}

/// The cluster set of a Service of policy Cluster on a node of that zone.
fn cluster_in(zone: &str, endpoints: &[Hinted<'_>]) -> Vec<u8> {
    let mut store = store(web(), [hinted("a", endpoints)]);
    store.apply_all([in_zone(zone)]);
    cluster(&port(&store))
}

#[test]
fn t_1_without_endpoints_both_sets_are_empty_and_reject() {
    for (internal, external) in [(false, false), (true, false), (false, true), (true, true)] {
        let port = port(&store(exposed(internal, external), []));
        assert!(port.backends.is_empty() && !port.drop_when_no_local);
    }
}

#[test]
fn t_2_what_drains_is_the_last_resort_whatever_hints_say() {
    // The zone hint of the draining ones names another zone.
    let draining = [(1, "st", &["b"][..]), (2, "st", &["b"]), (3, "t", &["a"]), (4, "s", &["a"])];
    assert_eq!(cluster_in("a", &draining), [1, 2]);
    let one_ready = [(1, "st", &[][..]), (2, "rs", &[])];
    assert_eq!(cluster_in("a", &one_ready), [2]);
}

#[test]
fn t_3_the_local_set_ignores_hints_and_falls_back_by_itself() {
    let hints = [(1, "rsl", &["b"][..]), (2, "rs", &["a"])];
    let mut store = store(exposed(true, true), [hinted("a", &hints)]);
    store.apply_all([in_zone("a")]);
    assert_eq!((cluster(&port(&store)), local(&port(&store))), (vec![2], vec![1]));
    let draining = slice("a", 80, &[(1, "stl"), (2, "st"), (3, "sl"), (4, "tl")]);
    store.apply_all([Change::SetSlice(draining)]);
    assert_eq!((cluster(&port(&store)), local(&port(&store))), (vec![1, 2], vec![1]));
}

/// V-3 and V-6 against V-4 and V-8.
#[test]
fn t_3_an_empty_local_set_drops_only_while_others_can_serve() {
    for (letters, drops) in [
        ("rs", true),
        ("r", true),
        ("st", true),
        ("rt", true),
        ("s", false),
        ("t", false),
        ("", false),
    ] {
        for (internal, external) in [(true, false), (false, true), (true, true)] {
            let port = port(&store(exposed(internal, external), [slice("a", 80, &[(1, letters)])]));
            assert_eq!(port.drop_when_no_local, drops, "{letters} {internal} {external}");
            assert_eq!((port.internal_local, port.external_local), (internal, external));
        }
    }
}

#[test]
fn t_4_both_fallbacks_are_independent() {
    let slices = [slice("a", 80, &[(1, "stl"), (2, "rs")])];
    let port = port(&store(exposed(false, true), slices));
    assert_eq!((cluster(&port), local(&port)), (vec![2], vec![1]));
}

#[test]
fn t_5_what_neither_is_ready_nor_drains_is_never_used() {
    let slices = [slice("a", 80, &[(1, "sl"), (2, "tl"), (3, "l"), (4, "s")])];
    let port = port(&store(exposed(false, true), slices));
    assert!(cluster(&port).is_empty() && local(&port).is_empty());
}

#[test]
fn t_6_nodes_go_before_zones_and_each_mode_needs_somebody_here() {
    let all = |letters: [&'static str; 2]| [(1, letters[0], &["a"][..]), (2, letters[1], &["b"])];
    // Both are hinted to nodes, one to this one.
    assert_eq!(cluster_in("b", &all(["rsN", "rsn"])), [1]);
    // None is hinted to this node: by zone.
    assert_eq!(cluster_in("b", &all(["rsn", "rsn"])), [2]);
    // One has no hint for a node: by zone.
    assert_eq!(cluster_in("b", &all(["rsN", "rs"])), [2]);
    // None is hinted to this zone either.
    assert_eq!(cluster_in("c", &all(["rsn", "rsn"])), [1, 2]);
}

#[test]
fn t_7_one_ready_endpoint_without_hint_turns_hints_off() {
    let hints = [(1, "rs", &["a"][..]), (2, "rs", &["b"])];
    assert_eq!(cluster_in("a", &hints), [1]);
    assert_eq!(cluster_in("a", &[hints[0], hints[1], (3, "rs", &[])]), [1, 2, 3]);
    // Of those that are not ready nobody asks.
    assert_eq!(cluster_in("a", &[hints[0], hints[1], (3, "st", &[]), (4, "s", &[])]), [1]);
    assert_eq!(cluster_in("b", &[hints[0], (3, "st", &["b"])]), [1]);
}

#[test]
fn t_8_a_hint_may_name_several_zones() {
    let hints = [(1, "rs", &["a", "b"][..]), (2, "rs", &["c"])];
    assert_eq!((cluster_in("a", &hints), cluster_in("b", &hints)), (vec![1], vec![1]));
    assert_eq!(cluster_in("c", &hints), [2]);
}

#[test]
fn t_10_a_node_without_zone_is_in_none() {
    assert_eq!(cluster_in("", &[(1, "rs", &["a"]), (2, "rs", &["b"])]), [1, 2]);
    assert_eq!(cluster_in("", &[(1, "rs", &[""]), (2, "rs", &["b"])]), [1, 2]);
    let store = store(web(), [hinted("a", &[(1, "rs", &["a"]), (2, "rs", &["b"])])]);
    assert_eq!(cluster(&port(&store)), [1, 2], "the Node was not seen yet");
}

#[test]
fn t_11_a_new_zone_concerns_every_service_and_a_deleted_node_keeps_its_own() {
    let mut store = store(web(), [hinted("a", &[(1, "rs", &["a"]), (2, "rs", &["b"])])]);
    assert!(store.apply_all([in_zone("a")]).services.contains(&key()));
    assert_eq!(cluster(&port(&store)), [1]);
    assert_eq!(store.apply_all([Change::DropNode]), Dirty::default());
    assert_eq!(cluster(&port(&store)), [1]);
    assert!(store.apply_all([in_zone("b")]).services.contains(&key()));
    assert_eq!(cluster(&port(&store)), [2]);
}

/// The table of section 2: which set each kind of traffic uses, and that hints reach the cluster set
/// only.
#[test]
fn t_12_t_13_policies_have_sets_of_their_own() {
    let hints = [(1, "rsl", &["b"][..]), (2, "rs", &["a"]), (3, "rs", &["b"])];
    for (external_local, internal_local) in
        [(false, false), (true, false), (true, true), (false, true)]
    {
        let mut store = store(exposed(internal_local, external_local), [hinted("a", &hints)]);
        store.apply_all([in_zone("a")]);
        let port = port(&store);
        assert_eq!((port.internal_local, port.external_local), (internal_local, external_local));
        assert_eq!(cluster(&port), [2], "clients on this node of external addresses (V-9, V-10)");
        let uses_local = internal_local || external_local;
        assert_eq!(local(&port), if uses_local { vec![1] } else { vec![] });
    }
}

#[test]
fn t_2_t_3_a_set_that_nothing_uses_is_empty() {
    let slices = || [slice("a", 80, &[(1, "rsl"), (2, UP)])];
    let only_internal = Service { internal_local: true, ..web() };
    let port_of = |service: Service| port(&store(service, slices()));
    let port = port_of(only_internal);
    assert_eq!((cluster(&port), local(&port)), (vec![], vec![1]));
    let port = port_of(web());
    assert_eq!((cluster(&port), local(&port)), (vec![1, 2], vec![]));
    // S-10: an external policy without anything external has no effect.
    let mut nothing_external = exposed(false, true);
    nothing_external.ports[0].node_port = 0;
    assert_eq!(local(&port_of(nothing_external)), [] as [u8; 0]);
}
