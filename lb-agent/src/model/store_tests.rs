//! What is dirty after which change?

use super::store::{Counts, Dirty, Store};
use super::{
    Change, Cidr, ClusterIps, Conditions, Endpoint, Endpoints, External, Family, Node, ObjectKey,
    Protocol, Service, ServiceCidr, ServicePort, Slice, SlicePort,
};

fn service(name: &str) -> Service {
    Service {
        key: ObjectKey::new("default", name),
        created_s: 1,
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None },
        ports: [ServicePort {
            name: "http".into(),
            port: 80,
            node_port: 0,
            protocol: Protocol::Tcp,
        }]
        .into(),
        internal_local: false,
        affinity_timeout_s: None,
        external: None,
    }
}

fn slice(name: &str, service: &str, last_octet: u8) -> Slice {
    Slice {
        key: ObjectKey::new("default", name),
        service: service.into(),
        ports: [SlicePort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }].into(),
        endpoints: Endpoints::new(
            Family::V4,
            [Endpoint {
                addr: [10, 0, 0, last_octet].into(),
                conditions: Conditions::READY,
                zones: 0,
            }],
        ),
        zone_sets: Box::default(),
    }
}

fn services(dirty: &Dirty) -> Vec<&str> {
    dirty.services.iter().map(|key| &*key.name).collect()
}

#[test]
fn an_object_that_did_not_change_dirties_nothing() {
    let mut store = Store::default();
    let all = [Change::SetService(service("web")), Change::SetSlice(slice("web-1", "web", 1))];
    assert_eq!(services(&store.apply_all(all.clone())), ["web"]);
    assert!(store.apply_all(all).is_empty());
}

#[test]
fn a_slice_of_an_unknown_service_is_kept_until_the_service_comes() {
    let mut store = Store::default();
    assert!(store.apply_all([Change::SetSlice(slice("web-1", "web", 1))]).is_empty());
    assert_eq!(services(&store.apply_all([Change::SetService(service("web"))])), ["web"]);
    assert_eq!(store.slices_of(&ObjectKey::new("default", "web")).count(), 1);
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut store = Store::default();
    store.apply_all([
        Change::SetService(service("old")),
        Change::SetService(service("new")),
        Change::SetSlice(slice("s", "old", 1)),
    ]);
    let dirty = store.apply_all([Change::SetSlice(slice("s", "new", 1))]);
    assert_eq!(services(&dirty), ["new", "old"]);
    assert_eq!(store.slices_of(&ObjectKey::new("default", "old")).count(), 0);
    assert_eq!(store.slices_of(&ObjectKey::new("default", "new")).count(), 1);
}

#[test]
fn a_complete_list_dirties_what_differs_and_nothing_else() {
    let mut store = Store::default();
    store.apply_all([
        Change::SetService(service("same")),
        Change::SetService(service("gone")),
        Change::SetService(service("changed")),
        Change::SetService(service("unreadable")),
    ]);
    let changed = Service { internal_local: true, ..service("changed") };
    let dirty = store.apply_all([Change::ReplaceServices {
        services: vec![service("same"), changed, service("added")],
        keep: vec![ObjectKey::new("default", "unreadable")],
    }]);
    assert_eq!(services(&dirty), ["added", "changed", "gone"]);
    assert_eq!(store.counts().services, 4);
}

#[test]
fn a_complete_list_of_slices_drops_those_not_in_it() {
    let mut store = Store::default();
    store.apply_all([
        Change::SetService(service("web")),
        Change::SetSlice(slice("a", "web", 1)),
        Change::SetSlice(slice("b", "web", 2)),
    ]);
    let same = Change::ReplaceSlices {
        slices: vec![slice("b", "web", 2), slice("a", "web", 1)],
        keep: Vec::new(),
    };
    assert!(store.apply_all([same]).is_empty());
    let fewer = Change::ReplaceSlices { slices: vec![slice("b", "web", 2)], keep: Vec::new() };
    assert_eq!(services(&store.apply_all([fewer])), ["web"]);
    assert_eq!(store.counts(), Counts { services: 1, slices: 1, endpoints: 1 });
}

#[test]
fn t_11_h_4_a_node_that_goes_keeps_its_zone_and_dirties_nothing() {
    let mut store = Store::default();
    let node = Node { name: "node-1".into(), zone: "a".into(), ..Node::default() };
    assert!(store.apply_all([Change::DropNode]).is_empty());
    assert_eq!(store.node(), None);
    assert!(store.apply_all([Change::SetNode(node.clone())]).node);
    let tainted = Node { removal_planned: true, ..node.clone() };
    assert!(store.apply_all([Change::SetNode(tainted.clone())]).is_empty());
    assert_eq!(store.node(), Some(&tainted));
    assert!(store.apply_all([Change::DropNode]).is_empty());
    assert!(store.node().is_some_and(|node| node.deleting && &*node.zone == "a"));
    assert!(store.apply_all([Change::SetNode(node.clone())]).is_empty());
    let moved = Node { zone: "b".into(), ..node };
    assert!(store.apply_all([Change::SetNode(moved)]).node);
}

#[test]
fn a_removed_service_is_dirty_once_and_comes_back_with_its_slices() {
    let mut store = Store::default();
    let key = ObjectKey::new("default", "web");
    store.apply_all([Change::SetService(service("web")), Change::SetSlice(slice("a", "web", 1))]);
    assert_eq!(services(&store.apply_all([Change::DropService(key.clone())])), ["web"]);
    assert!(store.apply_all([Change::DropService(key.clone())]).is_empty());
    assert_eq!(services(&store.apply_all([Change::SetService(service("web"))])), ["web"]);
    assert_eq!(store.slices_of(&key).count(), 1);
}

#[test]
fn l_6_addresses_of_the_node_concern_only_what_may_claim_them() {
    let mut store = Store::default();
    let exposed = Service {
        external: Some(Box::new(External { local: true, ..External::default() })),
        ..service("exposed")
    };
    let mut with_node_port = service("with-node-port");
    with_node_port.ports[0].node_port = 30_080;
    store.apply_all([
        Change::SetService(service("inside")),
        Change::SetService(exposed),
        Change::SetService(with_node_port),
        Change::SetNode(Node { zone: "a".into(), ..Node::default() }),
    ]);
    let pods = Cidr::new([10, 0, 0, 0].into(), 24).unwrap();
    let node = Node { zone: "a".into(), pod_cidrs: [pods].into(), ..Node::default() };
    let dirty = store.apply_all([Change::SetNode(node.clone())]);
    assert_eq!((services(&dirty), dirty.node), (vec!["exposed", "with-node-port"], true));
    let dirty = store.apply_all([Change::SetNode(Node { zone: "b".into(), ..node })]);
    assert_eq!(services(&dirty), ["exposed", "inside", "with-node-port"]);
}

#[test]
fn a_service_cidr_is_the_nodes_business_only() {
    let mut store = Store::default();
    store.apply_all([Change::SetService(service("web"))]);
    let cidrs = Cidr::new([10, 96, 0, 0].into(), 12).into_iter().collect();
    let object = ServiceCidr { name: "kubernetes".into(), cidrs };
    let listed = |cidrs, keep| Change::ReplaceServiceCidrs { cidrs, keep };
    let dirty = store.apply_all([listed(vec![object.clone()], vec![])]);
    assert_eq!((services(&dirty), dirty.node), (vec![], true));
    // One that could not be read stays as it was.
    let key = ObjectKey { namespace: "".into(), name: "kubernetes".into() };
    assert!(store.apply_all([listed(vec![], vec![key])]).is_empty());
    assert_eq!(store.service_cidrs().collect::<Vec<_>>(), [&object]);
}

#[test]
fn endpoints_are_packed_by_family_and_come_back_as_they_were() {
    let endpoint = |addr: &str, zones| Endpoint {
        addr: addr.parse().unwrap(),
        conditions: Conditions::READY.with(Conditions::FOR_NODES, true),
        zones,
    };
    let (v4, v6) = (endpoint("10.0.0.1", 255), endpoint("fd00::1", 0));
    for (family, of_family) in [(Family::V4, v4), (Family::V6, v6)] {
        let packed = Endpoints::new(family, [v4, v6]);
        assert_eq!((packed.family(), packed.len()), (family, 1));
        assert_eq!(packed.iter().collect::<Vec<_>>(), [of_family]);
    }
}
