//! At which addresses a service port is reached, and what is refused.

use std::net::IpAddr;

use super::tests::{key, service, slice, store, web};
use super::{Refusals, service_ports};
use crate::model::{
    Change, Cidr, ClusterIps, Endpoint, Endpoints, External, Family, Frontend, FrontendKind, Node,
    ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort, Store,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Box<[IpAddr]> {
    texts.iter().map(|text| ip(text)).collect()
}

fn external(ips_: &[&str], balanced: &[&str]) -> External {
    External { ips: ips(ips_), load_balancer_ips: ips(balanced), ..External::default() }
}

/// The Service with what it has beside its clusterIPs.
fn with(external: External) -> Service {
    Service { external: Some(Box::new(external)), ..web() }
}

/// The frontends of the only port in a family, but for its clusterIP.
fn externals(store: &Store, family: Family) -> Vec<(String, FrontendKind)> {
    let ports = service_ports(store, &key());
    let port = ports.iter().find(|(key, _)| key.family == family).map(|(_, port)| port);
    let frontends = port.into_iter().flat_map(|port| &port.frontends);
    let external = frontends.filter(|frontend| frontend.kind.is_external());
    external.map(|f| (std::net::SocketAddr::new(f.addr, f.port).to_string(), f.kind)).collect()
}

/// What is refused of the Service, as it is told.
fn refused(store: &Store) -> Vec<(String, String)> {
    let new = Refusals::default().update(store, &key());
    new.into_iter().map(|refusal| (refusal.field, refusal.problem)).collect()
}

#[test]
fn x_1_s_9_s_14_every_kind_of_frontend_is_there_in_its_family() {
    let mut service = with(external(&["192.0.2.1", "2001:db8::1"], &["198.51.100.1"]));
    service.ports[0].node_port = 30_080;
    let store = store(service, []);
    let of = |text: &str, kind| (text.to_owned(), kind);
    assert_eq!(
        externals(&store, Family::V4),
        [
            of("0.0.0.0:30080", FrontendKind::NodePort),
            of("192.0.2.1:80", FrontendKind::ExternalIp),
            of("198.51.100.1:80", FrontendKind::LoadBalancer),
        ]
    );
    assert_eq!(
        externals(&store, Family::V6),
        [
            of("[::]:30080", FrontendKind::NodePort),
            of("[2001:db8::1]:80", FrontendKind::ExternalIp),
        ]
    );
    assert_eq!(refused(&store), []);
}

#[test]
fn s_6_without_cluster_ip_in_a_family_nothing_of_the_service_is_in_it() {
    let mut service = with(external(&["192.0.2.1", "2001:db8::1"], &["2001:db8::2"]));
    service.ports[0].node_port = 30_080;
    service.cluster_ips.v6 = None;
    let ports = service_ports(&store(service, []), &key());
    let families: Vec<_> = ports.iter().map(|(key, _)| key.family).collect();
    assert_eq!(families, [Family::V4]);
    assert!(ports[0].1.frontends.iter().all(|frontend| frontend.addr.is_ipv4()));
}

#[test]
fn an_address_that_is_claimed_twice_is_one_frontend() {
    let own = external(&["10.96.0.1", "192.0.2.1"], &["192.0.2.1"]);
    let store = store(with(own), []);
    let ports = service_ports(&store, &key());
    let frontends: Vec<_> = ports[0].1.frontends.iter().map(|f| (f.addr, f.kind)).collect();
    let expected =
        [(ip("10.96.0.1"), FrontendKind::ClusterIp), (ip("192.0.2.1"), FrontendKind::ExternalIp)];
    assert_eq!(frontends, expected);
}

#[test]
fn s_7_a_port_number_is_an_attribute_and_frontends_follow_it() {
    let mut other = service(&[("http", Protocol::Tcp, 81)]);
    other.ports[0].node_port = 30_081;
    let ports = service_ports(&store(other, []), &key());
    assert_eq!(ports[0].0, service_ports(&store(web(), []), &key())[0].0);
    let expected =
        [Frontend::node_port(Family::V4, 30_081), Frontend::cluster_ip(ip("10.96.0.1"), 81)];
    assert_eq!(ports[0].1.frontends, expected);
}

#[test]
fn s_10_policies_are_handed_on() {
    let local = External { local: true, ..external(&["192.0.2.1"], &[]) };
    let service = Service { internal_local: true, ..with(local) };
    let ports = service_ports(&store(service, []), &key());
    assert!(ports.iter().all(|(_, port)| port.internal_local && port.external_local));
}

/// CVE-2020-8554: what is sent to another Service's clusterIP is not for the taking, at no port.
#[test]
fn section_12_the_cluster_ip_of_another_service_is_refused() {
    let victim = |ip: [u8; 4]| {
        Change::SetService(Service {
            key: ObjectKey::new("bank", "vault"),
            created_s: 100,
            cluster_ips: ClusterIps { v4: Some(ip.into()), v6: None },
            ..service(&[("https", Protocol::Tcp, 443)])
        })
    };
    let thief = with(external(&["10.96.7.7", "192.0.2.1"], &["10.96.7.7"]));
    let mut store = store(thief, []);
    assert_eq!(externals(&store, Family::V4).len(), 2);
    // Whoever comes first: the claim is refused when the clusterIP comes, and back when it goes.
    let dirty = store.apply_all([victim([10, 96, 7, 7])]);
    assert!(dirty.services.contains(&key()));
    let left = [("192.0.2.1:80".to_owned(), FrontendKind::ExternalIp)];
    assert_eq!(externals(&store, Family::V4), left);
    let fields: Vec<_> = refused(&store).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["spec.externalIPs", "status.loadBalancer.ingress"]);
    assert!(store.apply_all([victim([10, 96, 8, 8])]).services.contains(&key()));
    assert_eq!(externals(&store, Family::V4).len(), 2);
    store.apply_all([victim([10, 96, 7, 7])]);
    let gone = store.apply_all([Change::DropService(ObjectKey::new("bank", "vault"))]);
    assert!(gone.services.contains(&key()));
    assert_eq!((externals(&store, Family::V4).len(), refused(&store).len()), (2, 0));
}

fn node() -> Node {
    Node {
        name: "here".into(),
        addresses: ips(&["192.0.2.10", "2001:db8::10"]),
        pod_cidrs: [Cidr::new(ip("10.244.3.0"), 24).unwrap()].into(),
        kubelet_port: 10_250,
        ..Node::default()
    }
}

#[test]
fn section_12_addresses_for_pods_of_this_node_are_refused() {
    let mut store = store(with(external(&["10.244.3.9", "10.244.4.9"], &[])), []);
    assert!(store.apply_all([Change::SetNode(node())]).services.contains(&key()));
    let left = [("10.244.4.9:80".to_owned(), FrontendKind::ExternalIp)];
    assert_eq!(externals(&store, Family::V4), left);
    assert_eq!(
        refused(&store),
        [(
            "spec.externalIPs".to_owned(),
            "10.244.3.9 is in 10.244.3.0/24, which is for the pods of this node".to_owned()
        )]
    );
}

/// C-4, X-2: a Service may be reached at an address of the node, but not where the kubelet listens.
#[test]
fn section_12_the_kubelets_port_is_refused_and_others_of_the_node_are_not() {
    let mut claims = service(&[
        ("a", Protocol::Tcp, 10_250),
        ("b", Protocol::Udp, 10_250),
        ("c", Protocol::Tcp, 443),
    ]);
    claims.external = Some(Box::new(external(&["192.0.2.10", "192.0.2.11"], &["2001:db8::10"])));
    claims.ports[2].node_port = 10_250;
    let mut store = store(claims, []);
    store.apply_all([Change::SetNode(node())]);
    let ports = service_ports(&store, &key());
    let reached = |family, name: &str| -> Vec<String> {
        let port =
            ports.iter().find(|(key, _)| key.family == family && *key.port == *name).unwrap();
        let frontends = port.1.frontends.iter().filter(|frontend| frontend.kind.is_external());
        frontends.map(|frontend| frontend.addr.to_string()).collect()
    };
    assert_eq!(reached(Family::V4, "a"), ["192.0.2.11"]);
    assert_eq!(reached(Family::V4, "b"), ["192.0.2.10", "192.0.2.11"]);
    assert_eq!(reached(Family::V4, "c"), ["192.0.2.10", "192.0.2.11"], "and no node port");
    assert_eq!(reached(Family::V6, "a"), [] as [&str; 0]);
    assert_eq!(reached(Family::V6, "c"), ["2001:db8::10"]);
    let fields: Vec<_> = refused(&store).into_iter().map(|(field, _)| field).collect();
    assert_eq!(
        fields,
        [
            "spec.externalIPs",
            "spec.ports[2].nodePort",
            "spec.ports[2].nodePort",
            "status.loadBalancer.ingress"
        ]
    );
}

#[test]
fn section_12_where_an_api_server_listens_is_refused() {
    let api_server = |octet| {
        let addr = IpAddr::from([192, 0, 2, octet]);
        let endpoint = Endpoint { addr, conditions: super::tests::conditions("rs"), zones: 0 };
        Change::SetSlice(Slice {
            key: ObjectKey::new("default", "kubernetes"),
            service: "kubernetes".into(),
            ports: [SlicePort { name: "https".into(), port: 6443, protocol: Protocol::Tcp }].into(),
            endpoints: Endpoints::new(Family::V4, [endpoint]),
            ..slice("kubernetes", 0, &[])
        })
    };
    let mut claims = service(&[("https", Protocol::Tcp, 6443)]);
    claims.external = Some(Box::new(external(&["192.0.2.20"], &["192.0.2.21"])));
    let mut store = store(claims, []);
    assert_eq!(externals(&store, Family::V4).len(), 2);
    assert!(store.apply_all([api_server(20)]).services.contains(&key()));
    let left = [("192.0.2.21:6443".to_owned(), FrontendKind::LoadBalancer)];
    assert_eq!(externals(&store, Family::V4), left);
    assert!(store.apply_all([api_server(22)]).services.contains(&key()));
    assert_eq!(externals(&store, Family::V4).len(), 2);
}

#[test]
fn a_refusal_is_told_once_and_again_when_it_is_new_again() {
    let mut store = store(with(external(&["10.244.3.9"], &[])), []);
    store.apply_all([Change::SetNode(node())]);
    let mut refusals = Refusals::default();
    assert_eq!(refusals.update(&store, &key()).len(), 1);
    assert_eq!((refusals.update(&store, &key()).len(), refusals.len()), (0, 1));
    store.apply_all([Change::SetService(with(external(&["10.244.3.9", "10.244.3.10"], &[])))]);
    assert_eq!((refusals.update(&store, &key()).len(), refusals.len()), (1, 2));
    store.apply_all([Change::DropService(key())]);
    assert_eq!((refusals.update(&store, &key()).len(), refusals.is_empty()), (0, true));
}

#[test]
fn section_12_a_service_cannot_fill_the_maps_by_addresses_that_it_claims() {
    let claimed: Box<[IpAddr]> = (0..=255).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let mut service = with(External { ips: claimed, ..External::default() });
    let ports = 1..=100_u16;
    service.ports = ports
        .map(|n| ServicePort {
            name: format!("p{n}").into(),
            port: n,
            node_port: 30_000 + n,
            protocol: Protocol::Tcp,
        })
        .collect();
    let store = store(service, []);
    let of = |kind| {
        let all = service_ports(&store, &key());
        let v4 = all.into_iter().filter(|(key, _)| key.family == Family::V4);
        v4.flat_map(|(_, port)| port.frontends).filter(|f| f.kind == kind).count()
    };
    assert_eq!(of(FrontendKind::ExternalIp), 4000, "forty for each port");
    assert_eq!((of(FrontendKind::ClusterIp), of(FrontendKind::NodePort)), (100, 100));
    let told = refused(&store);
    let [(field, problem)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(field, "spec.externalIPs");
    assert!(problem.starts_with("216 addresses beyond the first 40"), "{problem}");
}
