//! Rules about what is reached from outside, hints, Nodes and `ServiceCIDR`s, one by one.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::tests::{
    convert, endpoint, node, only_field, read_service, read_slice, service, slice, with, without,
};
use super::*;
use crate::model::{Conditions, External, Family};

/// A Service that is reached in every way.
pub(super) fn exposed() -> Value {
    let mut value = service();
    value["spec"]["type"] = json!("LoadBalancer");
    value["spec"]["ports"][0]["nodePort"] = json!(30_080);
    value["spec"]["externalIPs"] = json!(["192.0.2.1", "2001:db8::1"]);
    value["spec"]["externalTrafficPolicy"] = json!("Local");
    value["spec"]["healthCheckNodePort"] = json!(32_000);
    value["spec"]["loadBalancerSourceRanges"] = json!(["203.0.113.0/24"]);
    value["status"] =
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}});
    value
}

/// What a Service has beside clusterIPs and node ports, and the only field that is reported.
fn external(value: &Value) -> (External, Option<String>) {
    let (service, field) = read_service(value);
    (service.external.map(|external| *external).unwrap_or_default(), field)
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_is_read_with_all_that_it_is_reached_by() {
    let (read, field) = read_service(&exposed());
    assert_eq!((read.ports[0].node_port, field), (30_080, None));
    assert!(read.external_local());
    let ips = |family| texts(&read.external_ips(family).collect::<Vec<_>>());
    assert_eq!(
        (ips(Family::V4), ips(Family::V6)),
        (vec!["192.0.2.1".into()], vec!["2001:db8::1".into()])
    );
    let balanced: Vec<IpAddr> = read.load_balancer_ips(Family::V4).collect();
    assert_eq!(texts(&balanced), ["198.51.100.1"]);
    assert_eq!(texts(&read.source_ranges(Family::V4).collect::<Vec<_>>()), ["203.0.113.0/24"]);
    assert_eq!(read.source_ranges(Family::V6).count(), 0);
    assert_eq!(read.health_check_node_port(), Some(32_000));
}

#[test]
fn most_services_have_nothing_external() {
    assert_eq!(read_service(&service()).0.external, None);
    let with_node_port = with(service(), "/spec/ports/0/nodePort", json!(30_080));
    assert_eq!(
        read_service(&with(with_node_port, "/spec/type", json!("NodePort"))).0.external,
        None
    );
}

#[test]
fn s_8_a_bad_entry_of_a_list_costs_that_entry_only() {
    for (pointer, list, bad, kept) in [
        ("/spec/externalIPs", json!(["192.0.2.1", "x", "192.0.2.2"]), "spec.externalIPs[1]", 2),
        ("/spec/externalIPs", json!(["192.0.2.1", "192.0.2.1", ""]), "spec.externalIPs[2]", 1),
        (
            "/spec/loadBalancerSourceRanges",
            json!([" 10.0.0.0/8 ", "10.0.0.0", "fd00::/8"]),
            "spec.loadBalancerSourceRanges[1]",
            2,
        ),
        (
            "/status/loadBalancer/ingress",
            json!([{"ip": "192.0.2.999"}, {"ip": "198.51.100.1"}]),
            "status.loadBalancer.ingress[0].ip",
            1,
        ),
    ] {
        let (read, field) = external(&with(exposed(), pointer, list));
        assert_eq!(field.as_deref(), Some(bad));
        let found = match pointer {
            "/spec/externalIPs" => read.ips.len(),
            "/status/loadBalancer/ingress" => read.load_balancer_ips.len(),
            _ => read.source_ranges.len(),
        };
        assert_eq!(found, kept, "{bad}");
    }
}

/// Section 12: CVE-2020-8554 (what is local to the node or the link), CVE-2021-25736 (nothing at all).
#[test]
fn section_12_addresses_of_the_node_itself_or_of_nobody_are_refused_everywhere() {
    for bad in [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::ffff:127.0.0.1",
    ] {
        let (read, field) = external(&with(exposed(), "/spec/externalIPs/0", json!(bad)));
        assert_eq!(
            (texts(&read.ips), field.as_deref()),
            (vec!["2001:db8::1".into()], Some("spec.externalIPs[0]"))
        );
        let value = with(exposed(), "/status/loadBalancer/ingress/0/ip", json!(bad));
        let (read, field) = external(&value);
        assert_eq!(read.load_balancer_ips.len(), 0, "{bad}");
        assert_eq!(field.as_deref(), Some("status.loadBalancer.ingress[0].ip"));
    }
}

#[test]
fn s_16_addresses_and_ranges_mean_what_kubernetes_reads() {
    let value =
        with(exposed(), "/spec/externalIPs", json!(["192.000.002.010", "::ffff:192.0.2.11"]));
    let value = with(value, "/spec/loadBalancerSourceRanges", json!(["192.168.001.5/24"]));
    let (read, field) = external(&value);
    assert_eq!((texts(&read.ips), field), (vec!["192.0.2.10".into(), "192.0.2.11".into()], None));
    assert_eq!(texts(&read.source_ranges), ["192.168.1.0/24"]);
}

#[test]
fn s_9_only_addresses_that_packets_arrive_with_count() {
    let listed = json!([
        {"ip": "198.51.100.1"},
        {"ip": "198.51.100.2", "ipMode": "VIP"},
        {"ip": "198.51.100.3", "ipMode": "Proxy"},
        {"ip": "", "ipMode": "VIP"},
        {"hostname": "lb.example.org"},
        {"hostname": "lb.example.org", "ip": "198.51.100.4"}
    ]);
    let (read, field) = external(&with(exposed(), "/status/loadBalancer/ingress", listed));
    assert_eq!(texts(&read.load_balancer_ips), ["198.51.100.1", "198.51.100.2", "198.51.100.4"]);
    assert_eq!(field, None);
    let odd = with(exposed(), "/status/loadBalancer/ingress/0/ipMode", json!("Bridge"));
    let (read, field) = external(&odd);
    assert_eq!(read.load_balancer_ips.len(), 0);
    assert_eq!(field.as_deref(), Some("status.loadBalancer.ingress[0].ipMode"));
}

#[test]
fn s_10_an_external_policy_counts_where_something_is_external() {
    for (kind, ips, local) in [
        ("LoadBalancer", json!([]), true),
        ("NodePort", json!([]), true),
        ("ClusterIP", json!(["192.0.2.1"]), true),
        ("ClusterIP", json!([]), false),
        ("ClusterIP", json!(null), false),
    ] {
        let value = with(exposed(), "/spec/type", json!(kind));
        let (read, field) = read_service(&with(value, "/spec/externalIPs", ips.clone()));
        assert_eq!((read.external_local(), field), (local, None), "{kind} {ips}");
    }
    for policy in [json!("Cluster"), json!(""), json!(null)] {
        let (read, field) = read_service(&with(exposed(), "/spec/externalTrafficPolicy", policy));
        assert_eq!((read.external_local(), field), (false, None));
    }
    let (read, field) =
        read_service(&with(exposed(), "/spec/externalTrafficPolicy", json!("Near")));
    assert!(!read.external_local());
    assert_eq!(field.as_deref(), Some("spec.externalTrafficPolicy"));
}

#[test]
fn s_11_a_health_check_port_is_for_load_balancers_of_policy_local() {
    let port = |value: &Value| {
        let (service, field) = read_service(value);
        (service.health_check_node_port(), field)
    };
    assert_eq!(port(&exposed()), (Some(32_000), None));
    assert_eq!(port(&with(exposed(), "/spec/type", json!("NodePort"))), (None, None));
    let cluster = with(exposed(), "/spec/externalTrafficPolicy", json!("Cluster"));
    assert_eq!(port(&cluster), (None, None));
    let told = Some("spec.healthCheckNodePort".to_owned());
    for bad in [0, -1, 65_536] {
        let value = with(exposed(), "/spec/healthCheckNodePort", json!(bad));
        assert_eq!(port(&value), (None, told.clone()), "{bad}");
    }
    assert_eq!(port(&without(exposed(), "/spec/healthCheckNodePort")), (None, told));
}

#[test]
fn s_14_no_node_port_is_none_and_a_bad_one_costs_itself_only() {
    for (given, expected, told) in [
        (json!(0), 0, None),
        (json!(null), 0, None),
        (json!(1), 1, None),
        (json!(65_535), 65_535, None),
        (json!(65_536), 0, Some("spec.ports[0].nodePort")),
        (json!(-1), 0, Some("spec.ports[0].nodePort")),
    ] {
        let (read, field) = read_service(&with(exposed(), "/spec/ports/0/nodePort", given));
        assert_eq!((read.ports[0].node_port, field.as_deref()), (expected, told));
    }
    // KEP-1864: one that is there stays in force.
    let value = with(exposed(), "/spec/allocateLoadBalancerNodePorts", json!(false));
    assert_eq!(read_service(&value).0.ports[0].node_port, 30_080);
}

/// N-9: the same number for two protocols; not for two ports of one.
#[test]
fn n_9_a_node_port_is_one_port_of_a_protocol() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30_053},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "nodePort": 30_053},
        {"name": "dot", "port": 853, "protocol": "TCP", "nodePort": 30_053}
    ]);
    let (read, field) = read_service(&with(exposed(), "/spec/ports", ports));
    let node_ports: Vec<_> = read.ports.iter().map(|port| port.node_port).collect();
    assert_eq!(
        (node_ports, field.as_deref()),
        (vec![30_053, 30_053, 0], Some("spec.ports[2].nodePort"))
    );
}

#[test]
fn x_3_external_ips_can_be_switched_off() {
    let bytes = exposed().to_string();
    let raw = json(bytes.as_bytes()).unwrap();
    let mut converter = Converter::new("here").with_external_ips(false);
    let mut findings = Findings::default();
    let Some(Object::Service(read)) = converter.object(Kind::Service, &raw, &mut findings) else {
        panic!("{findings:?}");
    };
    assert_eq!(read.external_ips(Family::V4).chain(read.external_ips(Family::V6)).count(), 0);
    assert_eq!(read.load_balancer_ips(Family::V4).count(), 1);
    assert!(read.external_local() && findings.is_empty());
}

/// Lists that the API does not bound are bounded here, and it is told what is left out.
#[test]
fn section_12_endless_lists_cost_no_more_than_their_bound() {
    let many: Vec<String> = (0..1500).map(|n| format!("10.1.{}.{}", n / 250, n % 250)).collect();
    let ranges: Vec<String> = many.iter().map(|ip| format!("{ip}/32")).collect();
    let ingress: Vec<Value> = many.iter().map(|ip| json!({"ip": ip})).collect();
    for (pointer, list, field) in [
        ("/spec/externalIPs", json!(many), "spec.externalIPs"),
        ("/spec/loadBalancerSourceRanges", json!(ranges), "spec.loadBalancerSourceRanges"),
        ("/status/loadBalancer/ingress", json!(ingress), "status.loadBalancer.ingress"),
    ] {
        let (read, told) = external(&with(exposed(), pointer, list));
        assert_eq!(told.as_deref(), Some(field));
        let of_v4 = read.source_ranges.iter().filter(|range| range.family() == Family::V4);
        let longest = read.ips.len().max(of_v4.count()).max(read.load_balancer_ips.len());
        assert_eq!(longest, raw::MOST_EXTERNAL);
    }
}

#[test]
fn section_12_source_ranges_of_nonsense_are_skipped_one_by_one_and_told_s_8() {
    for bad in [
        "",
        "x",
        "/8",
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
        "300.1.1.1/8",
        "fd00::/129",
        "fe80::1%eth0/64",
        "10.0.0.0-10.0.0.9",
    ] {
        let value = with(
            exposed(),
            "/spec/loadBalancerSourceRanges",
            json!(["203.0.113.0/24", bad, "2001:db8::/32"]),
        );
        let (read, field) = external(&value);
        assert_eq!(texts(&read.source_ranges), ["203.0.113.0/24", "2001:db8::/32"], "{bad}");
        assert_eq!(field.as_deref(), Some("spec.loadBalancerSourceRanges[1]"), "{bad}");
    }
}

/// R-2 lets everybody in where no range is of a family. One that is not read must not do that: nobody
/// is let in then.
#[test]
fn section_12_ranges_beyond_the_bound_open_nothing() {
    let mut all: Vec<String> = (0..raw::MOST_EXTERNAL).map(|_| "nonsense".to_owned()).collect();
    let of = |all: &[String], family| {
        let value = with(exposed(), "/spec/loadBalancerSourceRanges", json!(all)).to_string();
        let raw = json(value.as_bytes()).unwrap();
        let mut findings = Findings::default();
        let read = Converter::new("here").object(Kind::Service, &raw, &mut findings);
        let Some(Object::Service(Service { external: Some(read), .. })) = read else {
            panic!("{findings:?}");
        };
        let ranges = read.source_ranges.iter().filter(|range| range.family() == family);
        ranges.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of(&all, Family::V4), [""; 0], "R-2: all are read, and none makes sense");
    all.push("203.0.113.0/24".to_owned());
    assert_eq!(of(&all, Family::V4), ["255.255.255.255/32"]);
    assert_eq!(of(&all, Family::V6), ["::/128"]);
    all[7] = "2001:db8::/32".to_owned();
    assert_eq!(of(&all, Family::V6), ["2001:db8::/32"]);
}

fn hinted(zones: &[&str], nodes: &[&str]) -> Value {
    let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
    json!({"forZones": named(zones), "forNodes": named(nodes)})
}

#[test]
fn e_14_hints_are_kept_as_sets_of_zones_and_two_bits() {
    let mut value = slice();
    let hints = [
        hinted(&["a"], &["here"]),
        hinted(&["b", "a", "b"], &["there"]),
        hinted(&["a", "b"], &["there", "here"]),
        hinted(&[], &[]),
        json!(null),
        json!({"forZones": null}),
    ];
    value["endpoints"] = hints
        .into_iter()
        .enumerate()
        .map(|(n, hints)| json!({"addresses": [format!("10.0.0.{n}")], "hints": hints}))
        .collect();
    let (read, field) = read_slice(&value);
    assert_eq!(field, None);
    let sets: Vec<_> = read.zone_sets.iter().map(|set| set.join(",")).collect();
    assert_eq!(sets, ["a", "a,b"]);
    let of = |n| {
        let at = endpoint(&read, n);
        let (any, here) = (Conditions::FOR_NODES, Conditions::FOR_THIS_NODE);
        (at.zones, at.conditions.has(any), at.conditions.has(here))
    };
    assert_eq!(of(0), (1, true, true));
    assert_eq!(of(1), (2, true, false));
    assert_eq!(of(2), (2, true, true));
    for n in 3..6 {
        assert_eq!(of(n), (0, false, false));
    }
}

#[test]
fn e_14_hints_beyond_all_measure_are_as_none() {
    let long = "z".repeat(300);
    let (read, field) = read_slice(&with(slice(), "/endpoints/0/hints", hinted(&[&long], &[])));
    assert_eq!((endpoint(&read, 0).zones, read.zone_sets.len()), (0, 0));
    assert_eq!(field.as_deref(), Some("endpoints[0].hints.forZones"));
    let many: Vec<String> = (0..100).map(|n| format!("zone-{n:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (read, field) = read_slice(&with(slice(), "/endpoints/0/hints", hinted(&many, &[])));
    assert_eq!(read.zone_sets[0].len(), raw::MOST_HINTS);
    assert_eq!(field.as_deref(), Some("endpoints[0].hints.forZones"));
    // More different sets than a byte can number.
    let mut value = slice();
    value["endpoints"] = (0..300)
        .map(|n| json!({"addresses": ["10.0.0.1"], "hints": hinted(&[&format!("zone-{n}")], &[])}))
        .collect();
    let (object, reports) = convert(&value);
    let Some(Object::Slice(read)) = object else { panic!("{object:?}") };
    assert_eq!((read.endpoints.len(), read.zone_sets.len()), (300, 255));
    assert_eq!(endpoint(&read, 299).zones, 0);
    assert_eq!(reports[0].field, "endpoints[255].hints.forZones");
}

/// E-13: without a name of one's own nothing is local, and no hint names this node.
#[test]
fn e_13_an_agent_without_a_name_has_no_local_endpoints() {
    let mut value = with(slice(), "/endpoints/0/nodeName", json!(""));
    value["endpoints"][0]["hints"] = hinted(&[], &[""]);
    let bytes = value.to_string();
    let raw = json(bytes.as_bytes()).unwrap();
    let mut findings = Findings::default();
    let object = Converter::new("").object(Kind::Slice, &raw, &mut findings);
    let Some(Object::Slice(read)) = object else { panic!("{object:?}") };
    let conditions = endpoint(&read, 0).conditions;
    assert!(!conditions.has(Conditions::LOCAL) && !conditions.has(Conditions::FOR_THIS_NODE));
}

fn read_node(value: &Value) -> (Node, Option<String>) {
    match convert(value) {
        (Some(Object::Node(node)), reports) => (node, only_field(&reports)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn l_5_internal_addresses_of_the_node_come_before_external_ones() {
    let addresses = json!([
        {"type": "ExternalIP", "address": "198.51.100.1"},
        {"type": "Hostname", "address": "here"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalDNS", "address": "here.example.org"},
        {"type": "InternalIP", "address": "2001:db8::1"}
    ]);
    let (read, field) = read_node(&with(node("here"), "/status/addresses", addresses));
    assert_eq!(texts(&read.addresses), ["192.0.2.1", "2001:db8::1", "198.51.100.1"]);
    assert_eq!(field, None);
}

#[test]
fn l_6_ranges_of_pods_and_the_kubelets_port_are_read() {
    let plain = with(node("here"), "/status/addresses", json!([]));
    assert_eq!(read_node(&plain).0.kubelet_port, 0);
    let value = with(plain.clone(), "/spec/podCIDR", json!("10.244.1.0/24"));
    assert_eq!(texts(&read_node(&value).0.pod_cidrs), ["10.244.1.0/24"]);
    let value = with(value, "/spec/podCIDRs", json!(["10.244.1.0/24", "fd00:1::/64", "x"]));
    let daemons = json!({"kubeletEndpoint": {"Port": 10_250}});
    let (read, field) = read_node(&with(value, "/status/daemonEndpoints", daemons));
    assert_eq!(texts(&read.pod_cidrs), ["10.244.1.0/24", "fd00:1::/64"]);
    assert_eq!((read.kubelet_port, field.as_deref()), (10_250, Some("spec.podCIDRs[2]")));
    let odd = json!({"kubeletEndpoint": {"Port": -1}});
    assert_eq!(read_node(&with(plain, "/status/daemonEndpoints", odd)).0.kubelet_port, 0);
}

#[test]
fn v_13_a_service_cidr_is_its_ranges() {
    let value = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.1/12", "fd00:96::/112", "10.0.0.1"]}
    });
    let (object, reports) = convert(&value);
    let Some(Object::ServiceCidr(read)) = object else { panic!("{object:?}") };
    assert_eq!(texts(&read.cidrs), ["10.96.0.0/12", "fd00:96::/112"]);
    assert_eq!((&*read.name, &*reports[0].field), ("kubernetes", "spec.cidrs[2]"));
    let (object, _) = convert(&without(value, "/spec"));
    assert!(matches!(object, Some(Object::ServiceCidr(read)) if read.cidrs.is_empty()));
}
