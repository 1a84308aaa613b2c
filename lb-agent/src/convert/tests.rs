//! One test per rule and per kind of bad input; none of it may panic or cost more than itself.

use serde_json::{Value, json};

use super::*;
use crate::model::{ClusterIps, Conditions, Endpoint, Family, ServicePort};

pub(super) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "web", "namespace": "shop", "creationTimestamp": "2000-02-29T12:00:00Z",
            "labels": {"app": "web"}
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"],
            "ipFamilies": ["IPv4", "IPv6"], "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]
        }
    })
}

pub(super) fn slice() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "here", "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "nodeName": "there", "conditions": {"ready": true}}
        ]
    })
}

/// `value` with the field at `pointer` set to `new`.
pub(super) fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Array(list) => list[field.parse::<usize>().unwrap()] = new,
        object => object[field] = new,
    }
    value
}

/// `value` without the field at `pointer`.
pub(super) fn without(mut value: Value, pointer: &str) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field).unwrap();
    value
}

pub(super) fn convert(value: &Value) -> (Option<Object>, Vec<Report>) {
    let bytes = value.to_string();
    let raw = json(bytes.as_bytes()).unwrap();
    let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
    let mut findings = Findings::default();
    let object = Converter::new("here").object(kind, &raw, &mut findings);
    (object, findings.report(&Origin::Api, (kind.name(), "", ""), Skipped::Part))
}

/// The Service that `value` is, and the only field that is reported, if any.
pub(super) fn read_service(value: &Value) -> (Service, Option<String>) {
    match convert(value) {
        (Some(Object::Service(service)), reports) => (service, only_field(&reports)),
        other => panic!("{other:?}"),
    }
}

pub(super) fn read_slice(value: &Value) -> (Slice, Option<String>) {
    match convert(value) {
        (Some(Object::Slice(slice)), reports) => (slice, only_field(&reports)),
        other => panic!("{other:?}"),
    }
}

pub(super) fn endpoint(slice: &Slice, n: usize) -> Endpoint {
    slice.endpoints.iter().nth(n).unwrap()
}

pub(super) fn only_field(reports: &[Report]) -> Option<String> {
    assert!(reports.len() <= 1, "{reports:?}");
    reports.first().map(|report| report.field.clone())
}

fn is_ignored(value: &Value) -> bool {
    match convert(value) {
        (Some(Object::Ignored(_, key)), reports) => {
            assert_eq!(&*key.namespace, "shop");
            reports.is_empty()
        }
        _ => false,
    }
}

#[test]
fn a_service_is_read_with_all_that_counts() {
    let (read, field) = read_service(&service());
    assert_eq!(field, None);
    let expected = Service {
        key: ObjectKey::new("shop", "web"),
        created_s: 951_825_600,
        cluster_ips: ClusterIps {
            v4: Some([10, 96, 0, 10].into()),
            v6: Some("fd00::10".parse().unwrap()),
        },
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
    };
    assert_eq!(read, expected);
}

/// S-12, G-5, E-4: neither who made a slice nor where its pods are is asked.
#[test]
fn fields_that_no_proxy_uses_change_nothing() {
    let other = with(service(), "/spec/selector", json!({"app": "other"}));
    let other = with(other, "/metadata/labels", json!({"another": "label"}));
    let other = with(other, "/metadata/annotations", json!({"big": "x".repeat(8 << 20)}));
    let other = with(other, "/metadata/resourceVersion", json!("77"));
    let other = with(other, "/spec/ports/0/targetPort", json!(8080));
    let other = with(other, "/spec/ports/0/appProtocol", json!("h2c"));
    let other = with(other, "/spec/publishNotReadyAddresses", json!(true));
    let other = with(other, "/spec/trafficDistribution", json!("PreferSameNode"));
    let other = with(other, "/spec/loadBalancerClass", json!("a/b"));
    let other = with(other, "/spec/loadBalancerIP", json!("192.0.2.1"));
    let other = with(other, "/spec/allocateLoadBalancerNodePorts", json!(false));
    let other = with(other, "/spec/externalTrafficPolicy", json!("Local")); // Nothing external (S-10).
    let other = with(other, "/spec/healthCheckNodePort", json!(32_000)); // No load balancer (S-11).
    let other = with(other, "/spec/loadBalancerSourceRanges", json!(["10.0.0.0/8"]));
    let other = with(other, "/status", json!({"conditions": [{"type": "x"}], "loadBalancer": {}}));
    assert_eq!(read_service(&other), read_service(&service()));
    let other = with(slice(), "/endpoints/0/zone", json!("a"));
    let other = with(other, "/endpoints/0/targetRef", json!({"kind": "Pod"}));
    let other = with(other, "/endpoints/0/deprecatedTopology", json!({"zone": "a"}));
    let by = json!({"endpointslice.kubernetes.io/managed-by": "me", "kubernetes.io/service-name": "web"});
    let other = with(other, "/metadata/labels", by);
    let other = with(other, "/metadata/ownerReferences", json!([{"kind": "Service", "name": "x"}]));
    let other = with(other, "/endpoints/1/nodeName", json!("elsewhere"));
    assert_eq!(read_slice(&other), read_slice(&slice()));
}

/// S-1, S-2, S-3.
#[test]
fn services_that_are_not_for_a_proxy_are_ignored() {
    let labels = |name: &str| with(service(), "/metadata/labels", json!({name: ""}));
    assert!(is_ignored(&labels("service.kubernetes.io/service-proxy-name")));
    assert!(is_ignored(&labels("service.kubernetes.io/headless")));
    assert!(is_ignored(&with(service(), "/spec/clusterIP", json!("None"))));
    assert!(is_ignored(&with(service(), "/spec/clusterIP", json!(""))));
    assert!(is_ignored(&with(service(), "/spec/type", json!("ExternalName"))));
    assert!(is_ignored(&without(service(), "/spec")));
}

/// S-6.
#[test]
fn a_family_without_cluster_ip_does_not_exist() {
    let single = with(service(), "/spec/ipFamilies", json!(["IPv6"]));
    let single = with(single, "/spec/clusterIPs", json!(["fd00::10"]));
    let (read, field) = read_service(&single);
    assert_eq!((read.cluster_ips.v4, field), (None, None));
    assert!(read.cluster_ips.v6.is_some());
}

/// S-5.
#[test]
fn without_families_the_cluster_ip_counts_for_its_own() {
    let old = without(without(service(), "/spec/ipFamilies"), "/spec/clusterIPs");
    let (read, field) = read_service(&with(old, "/spec/clusterIP", json!("fd00::10")));
    assert_eq!(read.cluster_ips, ClusterIps { v4: None, v6: Some("fd00::10".parse().unwrap()) });
    assert_eq!(field, None);
    let (_, field) = read_service(&without(service(), "/spec/ipFamilies"));
    assert_eq!(field.as_deref(), Some("spec.clusterIPs[1]"));
}

#[test]
fn a_cluster_ip_without_its_plural_counts_and_a_family_without_address_is_told() {
    let single = without(service(), "/spec/clusterIPs");
    let (read, field) = read_service(&with(single.clone(), "/spec/ipFamilies", json!(["IPv4"])));
    assert!(read.cluster_ips.v4.is_some() && read.cluster_ips.v6.is_none());
    assert_eq!(field, None);
    let (read, field) = read_service(&single);
    assert!(read.cluster_ips.v4.is_some() && read.cluster_ips.v6.is_none());
    assert_eq!(field.as_deref(), Some("spec.clusterIP"));
    let (read, field) = read_service(&with(service(), "/spec/ipFamilies", json!(["IPv4"])));
    assert!(read.cluster_ips.v4.is_some() && read.cluster_ips.v6.is_none());
    assert_eq!(field.as_deref(), Some("spec.clusterIPs"));
}

#[test]
fn a_bad_cluster_ip_costs_its_family_only() {
    for bad in ["10.96.0.999", "127.0.0.1", "224.0.0.1", "0.0.0.0", "169.254.1.1", "fd00::1", ""] {
        let (read, field) = read_service(&with(service(), "/spec/clusterIPs/0", json!(bad)));
        assert_eq!(field.as_deref(), Some("spec.clusterIPs[0]"), "{bad}");
        assert!(read.cluster_ips.v4.is_none() && read.cluster_ips.v6.is_some(), "{bad}");
    }
    let (read, field) = read_service(&with(service(), "/spec/ipFamilies/1", json!("IPX")));
    assert_eq!(field.as_deref(), Some("spec.ipFamilies[1]"));
    assert!(read.cluster_ips.v4.is_some() && read.cluster_ips.v6.is_none());
}

#[test]
fn a_bad_port_costs_that_port_only() {
    for (field, bad) in [
        ("port", json!(0)),
        ("port", json!(65_536)),
        ("port", json!(-1)),
        ("port", json!(null)),
        ("protocol", json!("ICMP")),
        ("name", json!("a/b")),
        ("name", json!("x".repeat(64))),
    ] {
        let two = json!([
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "bad", "port": 81, "protocol": "TCP"}
        ]);
        let value = with(service(), "/spec/ports", two);
        let (read, told) = read_service(&with(value, &format!("/spec/ports/1/{field}"), bad));
        assert_eq!(told, Some(format!("spec.ports[1].{field}")));
        assert_eq!(read.ports.len(), 1);
    }
}

#[test]
fn ports_that_repeat_a_name_or_number_are_skipped() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns", "port": 53, "protocol": "TCP"},
        {"name": "again", "port": 53, "protocol": "TCP"}
    ]);
    let (read, field) = read_service(&with(service(), "/spec/ports", ports));
    assert_eq!(read.ports.len(), 2);
    assert_eq!(field.as_deref(), Some("spec.ports[2]"));
}

/// S-13, A-1.
#[test]
fn affinity_has_a_default_and_bounds() {
    let sticky = with(service(), "/spec/sessionAffinity", json!("ClientIP"));
    assert_eq!(
        read_service(&sticky),
        (Service { affinity_timeout_s: Some(10_800), ..read_service(&service()).0 }, None)
    );
    for (timeout, expected, reported) in
        [(1, 1, false), (86_400, 86_400, false), (0, 10_800, true), (86_401, 10_800, true)]
    {
        let config = json!({"clientIP": {"timeoutSeconds": timeout}});
        let (read, field) =
            read_service(&with(sticky.clone(), "/spec/sessionAffinityConfig", config));
        assert_eq!((read.affinity_timeout_s, field.is_some()), (Some(expected), reported));
    }
}

#[test]
fn an_unknown_policy_is_taken_as_cluster() {
    let local = with(service(), "/spec/internalTrafficPolicy", json!("Local"));
    assert!(read_service(&local).0.internal_local);
    let unknown = with(service(), "/spec/internalTrafficPolicy", json!("Near"));
    let (read, field) = read_service(&unknown);
    assert!(!read.internal_local);
    assert_eq!(field.as_deref(), Some("spec.internalTrafficPolicy"));
}

#[test]
fn nobody_can_take_the_namespace_of_the_self_test() {
    let namespace = crate::plan::self_test::NAMESPACE;
    for value in [service(), slice()] {
        let (object, reports) = convert(&with(value, "/metadata/namespace", json!(namespace)));
        assert_eq!(object, None);
        assert_eq!(only_field(&reports).as_deref(), Some("metadata.namespace"));
    }
}

#[test]
fn an_object_without_a_usable_name_is_skipped() {
    for (value, pointer) in [
        (service(), "/metadata/name"),
        (service(), "/metadata/namespace"),
        (slice(), "/metadata/name"),
    ] {
        let field = pointer[1..].replace('/', ".");
        for bad in [
            without(value.clone(), pointer),
            with(value.clone(), pointer, json!("a\u{1b}[2J")),
            with(value, pointer, json!("x".repeat(254))),
        ] {
            let (object, reports) = convert(&bad);
            assert_eq!((object, only_field(&reports)), (None, Some(field.clone())));
        }
    }
}

/// E-13.
#[test]
fn a_slice_is_read_with_all_that_counts() {
    let (read, field) = read_slice(&slice());
    assert_eq!(field, None);
    assert_eq!(read.service_key(), ObjectKey::new("shop", "web"));
    assert_eq!((read.family(), read.ports[0].port), (Family::V4, 8080));
    let local: Vec<_> =
        read.endpoints.iter().map(|e| e.conditions.has(Conditions::LOCAL)).collect();
    assert_eq!(local, [true, false]);
}

/// E-2, E-5.
#[test]
fn slices_of_names_or_of_another_proxy_are_ignored() {
    assert!(is_ignored(&with(slice(), "/addressType", json!("FQDN"))));
    for label in ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"] {
        let mut value = slice();
        value["metadata"]["labels"][label] = json!("");
        assert!(is_ignored(&value), "{label}");
    }
}

/// E-3.
#[test]
fn a_slice_without_a_service_is_ignored_and_told() {
    for labels in [json!({}), json!(null), json!({"kubernetes.io/service-name": ""})] {
        let (object, reports) = convert(&with(slice(), "/metadata/labels", labels));
        assert!(matches!(object, Some(Object::Ignored(Kind::Slice, _))));
        let label = "metadata.labels[kubernetes.io/service-name]";
        assert_eq!(only_field(&reports).as_deref(), Some(label));
    }
    let (object, reports) = convert(&with(slice(), "/addressType", json!("IPX")));
    assert!(matches!(object, Some(Object::Ignored(Kind::Slice, _))));
    assert_eq!(only_field(&reports).as_deref(), Some("addressType"));
}

/// E-12.
#[test]
fn absent_conditions_mean_ready_and_serving() {
    let conditions = |given: Value| {
        let value = with(slice(), "/endpoints/1/conditions", given);
        endpoint(&read_slice(&value).0, 1).conditions
    };
    let up = Conditions::READY.with(Conditions::SERVING, true);
    assert_eq!(conditions(json!(null)), up);
    assert_eq!(conditions(json!({})), up);
    assert_eq!(conditions(json!({"ready": false})), Conditions::SERVING);
    assert_eq!(
        conditions(json!({"ready": false, "serving": false, "terminating": true})),
        Conditions::TERMINATING
    );
}

/// CVE-2021-25737, E-11.
#[test]
fn a_bad_endpoint_costs_that_endpoint_only() {
    for bad in [
        "10.0.0.x",
        "",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "fd00::1",
        "::1",
        "fe80::1",
        "web.example",
    ] {
        let (read, field) = read_slice(&with(slice(), "/endpoints/0/addresses/0", json!(bad)));
        assert_eq!(field.as_deref(), Some("endpoints[0].addresses[0]"), "{bad}");
        assert_eq!(read.endpoints.len(), 1, "{bad}");
    }
    let v6 = with(slice(), "/addressType", json!("IPv6"));
    for bad in ["::1", "fe80::1", "ff02::1", "::", "10.0.0.1", "::ffff:10.0.0.1"] {
        let value = with(v6.clone(), "/endpoints/0/addresses/0", json!(bad));
        let (read, field) = read_slice(&with(value, "/endpoints/1/addresses/0", json!("fd00::2")));
        assert_eq!(field.as_deref(), Some("endpoints[0].addresses[0]"), "{bad}");
        assert_eq!(read.endpoints.len(), 1, "{bad}");
    }
    let (read, field) = read_slice(&with(slice(), "/endpoints/0/addresses", json!([])));
    assert_eq!(field.as_deref(), Some("endpoints[0].addresses"));
    assert_eq!(read.endpoints.len(), 1);
}

/// E-11, S-16.
#[test]
fn only_the_first_address_of_an_endpoint_counts_and_sloppy_ones_are_canonical() {
    let addresses = json!(["010.000.0.011", "not an address"]);
    let (read, field) = read_slice(&with(slice(), "/endpoints/0/addresses", addresses));
    assert_eq!((endpoint(&read, 0).addr.to_string().as_str(), field), ("10.0.0.11", None));
}

/// E-8.
#[test]
fn a_slice_port_needs_a_name_and_a_number() {
    for (bad, field) in [
        (json!({"port": 80}), "ports[0].name"),
        (json!({"name": null, "port": 80}), "ports[0].name"),
        (json!({"name": ""}), "ports[0].port"),
        (json!({"name": "", "port": 0}), "ports[0].port"),
        (json!({"name": "", "port": 80, "protocol": "QUIC"}), "ports[0].protocol"),
    ] {
        let (read, told) = read_slice(&with(slice(), "/ports/0", bad));
        assert_eq!((read.ports.len(), told.as_deref()), (0, Some(field)));
    }
    let unnamed = json!({"name": "", "port": 80});
    let (read, told) = read_slice(&with(slice(), "/ports/0", unnamed));
    assert_eq!((&*read.ports[0].name, read.ports[0].protocol, told), ("", Protocol::Tcp, None));
}

#[test]
fn faults_without_end_are_told_in_a_few_lines() {
    let endpoints: Vec<_> = (0..20_000).map(|_| json!({"addresses": ["127.0.0.1"]})).collect();
    let (object, reports) = convert(&with(slice(), "/endpoints", json!(endpoints)));
    assert!(matches!(object, Some(Object::Slice(slice)) if slice.endpoints.is_empty()));
    assert!(reports.len() < 10, "{}", reports.len());
    assert!(reports.last().unwrap().problem.starts_with("9993 more"), "{:?}", reports.last());
}

pub(super) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "Hostname", "address": "here"},
            {"type": "InternalIP", "address": "2001:db8::zz"}
        ]}
    })
}

#[test]
fn h_4_a_node_that_goes_is_known_by_its_deletion_timestamp_or_one_taint() {
    let read = |value: &Value| match convert(value).0 {
        Some(Object::Node(node)) => (node.deleting, node.removal_planned),
        other => panic!("{other:?}"),
    };
    let node = node("here");
    assert_eq!(read(&node), (false, false), "cordoned is not removed");
    let deleted = with(node.clone(), "/metadata/deletionTimestamp", json!("2026-11-21T14:00:00Z"));
    assert_eq!(read(&deleted), (true, false));
    let taint =
        json!({"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"});
    assert_eq!(read(&with(node, "/spec/taints/0", taint)), (false, true));
}

#[test]
fn the_node_of_this_node_counts_and_no_other() {
    match convert(&node("here")) {
        (Some(Object::Node(node)), reports) => {
            assert_eq!((&*node.zone, node.addresses.len()), ("a", 1));
            assert_eq!(only_field(&reports).as_deref(), Some("status.addresses[2].address"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(convert(&node("there")).0, Some(Object::Ignored(Kind::Node, _))));
}

/// E-1.
#[test]
fn kinds_are_told_apart_by_group() {
    assert_eq!(Kind::of("v1", "Service"), Ok(Some(Kind::Service)));
    assert_eq!(Kind::of("discovery.k8s.io/v1", "EndpointSlice"), Ok(Some(Kind::Slice)));
    assert_eq!(Kind::of("discovery.k8s.io/v1beta1", "EndpointSlice"), Err(Kind::Slice));
    assert_eq!(Kind::of("serving.knative.dev/v1", "Service"), Ok(None));
    assert_eq!(Kind::of("", "Service"), Err(Kind::Service));
    assert_eq!(Kind::of("v1", "Endpoints"), Ok(None));
    assert_eq!(Kind::of("networking.k8s.io/v1", "ServiceCIDR"), Ok(Some(Kind::ServiceCidr)));
    assert_eq!(Kind::of("networking.k8s.io/v1beta1", "ServiceCIDR"), Err(Kind::ServiceCidr));
}
