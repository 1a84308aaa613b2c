//! The endpoint rules one by one.

use super::*;
use crate::oracle::cluster::{Cluster, Labels, Policy, SERVICE_NAME};
use crate::oracle::fixture::{
    HERE, THERE, cluster, endpoint, pods, slice, with_endpoints, with_policies,
};
use crate::oracle::services::View;

/// The lists of the one service port of a cluster.
fn lists(cluster: &Cluster) -> Lists {
    let view = View::new(cluster, "node-a");
    assert_eq!(view.ports.len(), 1);
    view.ports[0].lists.clone()
}

fn all(cluster: &Cluster) -> BTreeSet<SocketAddr> {
    lists(cluster).all.keys().copied().collect()
}

/// The slices of a cluster changed one way or another leave it without endpoints.
#[track_caller]
fn has_none(change: impl FnOnce(&mut Slice)) {
    let mut cluster = cluster();
    change(&mut cluster.slices[0]);
    assert_eq!(all(&cluster), BTreeSet::new());
    assert!(!lists(&cluster).has_any);
}

#[test]
fn e_2_to_e_5_slices_that_do_not_count() {
    has_none(|slice| slice.address_type = AddressType::Fqdn);
    has_none(|slice| slice.address_type = AddressType::Ip(Family::V6));
    has_none(|slice| slice.labels = Labels::new());
    has_none(|slice| drop(slice.labels.insert(SERVICE_NAME.into(), String::new())));
    has_none(|slice| drop(slice.labels.insert(SERVICE_NAME.into(), "b".into())));
    has_none(|slice| slice.namespace = "other".into());
    has_none(|slice| drop(slice.labels.insert(HEADLESS.into(), String::new())));
    has_none(|slice| drop(slice.labels.insert(PROXY_NAME.into(), "x".into())));
}

#[test]
fn e_4_who_manages_a_slice_does_not_matter() {
    let mut cluster = cluster();
    cluster.slices[0].labels.insert("endpointslice.kubernetes.io/managed-by".into(), "me".into());
    assert_eq!(all(&cluster), pods(&[HERE, THERE]));
}

#[test]
fn e_8_e_9_ports_that_do_not_match() {
    has_none(|slice| slice.ports[0].name = None);
    has_none(|slice| slice.ports[0].port = None);
    has_none(|slice| slice.ports[0].port = Some(0));
    has_none(|slice| slice.ports[0].name = Some(String::new()));
    has_none(|slice| slice.ports[0].protocol = Protocol::Udp);
    has_none(|slice| slice.ports.clear());
}

#[test]
fn e_10_numbers_come_from_slices_and_are_merged() {
    let mut cluster = cluster();
    let mut other = slice("a-2", &[endpoint("10.244.1.2", "node-a", "rs")]);
    other.ports[0].port = Some(9090);
    cluster.slices.push(other);
    let expected = ["10.244.1.1:8080", "10.244.1.2:9090", "10.244.2.1:8080"];
    assert_eq!(all(&cluster), expected.iter().map(|at| at.parse().unwrap()).collect());
}

#[test]
fn e_11_only_the_first_address_counts() {
    has_none(|slice| slice.endpoints.iter_mut().for_each(|e| e.addresses.clear()));
    let mut cluster = cluster();
    cluster.slices[0].endpoints[0].addresses.push("10.244.1.7".into());
    assert_eq!(all(&cluster), pods(&[HERE, THERE]));
}

#[test]
fn e_12_absent_conditions() {
    let mut cluster =
        with_endpoints(&[Endpoint { addresses: vec![HERE.into()], ..Endpoint::default() }]);
    assert_eq!(lists(&cluster).cluster, pods(&[HERE]));
    // Absent `serving` is true, so that this one is a last resort.
    let endpoint = &mut cluster.slices[0].endpoints[0];
    (endpoint.ready, endpoint.terminating) = (Some(false), Some(true));
    assert_eq!(lists(&cluster).cluster, pods(&[HERE]));
}

#[test]
fn e_13_local_is_who_names_this_node() {
    let mut cluster = cluster();
    cluster.services[0].external = Some(Policy::Local);
    assert_eq!(lists(&cluster).local, pods(&[HERE]));
    cluster.slices[0].endpoints[0].node = None;
    assert_eq!(lists(&cluster).local, pods(&[]));
}

#[test]
fn e_15_a_record_that_stays_beats_one_that_terminates() {
    for (first, second) in [("st", "rs"), ("rs", "st")] {
        let mut cluster = with_endpoints(&[endpoint(HERE, "node-a", first)]);
        cluster.slices.push(slice("a-2", &[endpoint(HERE, "node-a", second)]));
        let lists = lists(&cluster);
        assert_eq!((lists.all.len(), lists.cluster), (1, pods(&[HERE])));
        assert!(lists.all.values().all(|endpoint| endpoint.stays));
    }
    // Even one of no use.
    let cluster = with_endpoints(&[endpoint(HERE, "", "rst"), endpoint(HERE, "", "")]);
    assert_eq!(lists(&cluster).cluster, pods(&[]));
}

#[test]
fn e_16_one_pod_with_two_numbers_is_two_endpoints() {
    let mut cluster = cluster();
    let mut port = cluster.slices[0].ports[0].clone();
    port.port = Some(9090);
    cluster.slices[0].ports.push(port);
    assert_eq!(all(&cluster).len(), 4);
}

#[test]
fn e_20_a_published_pod_is_ready_even_while_it_terminates() {
    let cluster = with_endpoints(&[endpoint(HERE, "node-a", "rt")]);
    assert_eq!(lists(&cluster).cluster, pods(&[HERE]));
    assert_eq!(lists(&cluster).keeps_flows(), pods(&[HERE]));
}

#[test]
fn endpoints_of_the_node_itself_are_refused() {
    for ip in ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"] {
        assert_eq!(all(&with_endpoints(&[endpoint(ip, "", "rs")])), pods(&[]), "{ip}");
    }
}

#[test]
fn t_1_no_endpoints() {
    let lists = lists(&with_endpoints(&[]));
    assert_eq!(lists, Lists::default());
}

#[test]
fn t_2_t_3_t_5_who_is_used() {
    // conditions of two endpoints of this node, then who is used
    for (first, second, used) in [
        ("rs", "rs", &[HERE, "10.244.1.2"][..]),
        ("rs", "st", &[HERE]),
        ("st", "st", &[HERE, "10.244.1.2"]),
        ("st", "t", &[HERE]),
        ("st", "", &[HERE]),
        ("st", "s", &[HERE]),
        ("", "s", &[]),
        ("t", "", &[]),
        ("r", "t", &[HERE]),
    ] {
        let endpoints = [endpoint(HERE, "node-a", first), endpoint("10.244.1.2", "node-a", second)];
        let mut cluster = with_endpoints(&endpoints);
        cluster.services[0].external = Some(Policy::Local);
        let lists = lists(&cluster);
        assert_eq!(lists.cluster, pods(used), "{first} {second}");
        assert_eq!(lists.local, pods(used), "{first} {second}");
        assert_eq!(lists.has_any, !used.is_empty(), "{first} {second}");
    }
}

#[test]
fn t_4_the_fallbacks_are_independent() {
    let endpoints = [endpoint(HERE, "node-a", "st"), endpoint(THERE, "node-b", "rs")];
    let mut cluster = with_endpoints(&endpoints);
    cluster.services[0].external = Some(Policy::Local);
    let lists = lists(&cluster);
    assert_eq!((lists.local, lists.cluster), (pods(&[HERE]), pods(&[THERE])));
}

/// Endpoints here and there with hints for zones and nodes.
fn hinted(here: (&[&str], &[&str]), there: (&[&str], &[&str])) -> Cluster {
    let mut cluster = cluster();
    for (endpoint, (zones, nodes)) in cluster.slices[0].endpoints.iter_mut().zip([here, there]) {
        endpoint.for_zones = zones.iter().map(|&name| name.into()).collect();
        endpoint.for_nodes = nodes.iter().map(|&name| name.into()).collect();
    }
    cluster
}

#[test]
fn t_6_to_t_10_hints() {
    let both = &[HERE, THERE][..];
    for (here, there, used) in [
        ((&["zone-1"][..], &[][..]), (&["zone-2"][..], &[][..]), &[HERE][..]),
        // T-8: the hint counts, not the place.
        ((&["zone-2"], &[]), (&["zone-1"], &[]), &[THERE]),
        // T-7: one ready endpoint without a hint.
        ((&["zone-1"], &[]), (&[], &[]), both),
        // Nobody names this zone.
        ((&["zone-2"], &[]), (&["zone-3"], &[]), both),
        // Nodes come first, zones where they do not apply.
        ((&["zone-2"], &["node-a"]), (&["zone-1"], &["node-b"]), &[HERE]),
        ((&["zone-1"], &["node-c"]), (&["zone-2"], &["node-b"]), &[HERE]),
        ((&["zone-1"], &["node-a"]), (&["zone-2"], &[]), &[HERE]),
    ] {
        let mut cluster = hinted(here, there);
        assert_eq!(lists(&cluster).cluster, pods(used), "{here:?} {there:?}");
        if here.1.is_empty() {
            // T-10: no zone, no zone hints.
            cluster.nodes[0].zone = None;
            assert_eq!(lists(&cluster).cluster, pods(both), "{here:?} {there:?}");
        }
    }
}

#[test]
fn t_2_t_7_hints_of_endpoints_that_are_not_ready_do_not_matter() {
    let mut cluster = hinted((&["zone-1"], &[]), (&["zone-2"], &[]));
    cluster.slices[0].endpoints.push(endpoint("10.244.1.2", "node-a", "st"));
    assert_eq!(lists(&cluster).cluster, pods(&[HERE]));
    // The fallback takes all that serve and terminate, hints or not.
    for endpoint in &mut cluster.slices[0].endpoints {
        (endpoint.ready, endpoint.terminating) = (Some(false), Some(true));
    }
    assert_eq!(lists(&cluster).cluster, pods(&[HERE, "10.244.1.2", THERE]));
}

#[test]
fn t_3_t_12_the_local_list_ignores_hints() {
    let mut cluster = with_policies(Policy::Local, Policy::Local);
    cluster.slices = hinted((&["zone-2"], &["node-b"]), (&["zone-1"], &["node-a"])).slices;
    let lists = lists(&cluster);
    assert_eq!((lists.local, lists.cluster), (pods(&[HERE]), pods(&[THERE])));
}
