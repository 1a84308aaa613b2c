//! Good objects, objects to be damaged, and objects that are far too large.

use std::net::Ipv4Addr;

use lb_agent::model::ObjectKey;
use serde_json::{Value, json};

/// The node that the agent is on.
pub(crate) const NODE: &str = "here";
/// So many Services are good.
pub(crate) const GOOD: usize = 4;

pub(crate) fn good_key(number: usize) -> ObjectKey {
    ObjectKey::new("good", &format!("web-{number}"))
}

/// No damaged object has such an address.
pub(crate) fn good_vip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0701 + u32::try_from(number).unwrap())
}

pub(crate) fn good_endpoints(number: usize) -> Vec<Ipv4Addr> {
    let first = 0x0af4_0700 + 16 * u32::try_from(number).unwrap();
    (first..first + 3).map(Ipv4Addr::from_bits).collect()
}

/// Services with a slice each.
pub(crate) fn good_objects() -> Vec<Value> {
    let each = |number| {
        let (name, vip) = (format!("web-{number}"), good_vip(number).to_string());
        let endpoints: Vec<Value> = good_endpoints(number)
            .iter()
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": NODE}))
            .collect();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "namespace": "good", "creationTimestamp": "2020-01-01T00:00:00Z"
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]
            }
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{name}-a"), "namespace": "good",
                "labels": {"kubernetes.io/service-name": name}
            },
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints
        });
        [service, slice]
    };
    (0..GOOD).flat_map(each).collect()
}

/// What is damaged: one object of each kind with every field that is read, and some that are not.
pub(crate) fn damaged_seeds() -> Vec<Value> {
    let metadata = |name: &str| {
        json!({
            "name": name, "namespace": "bad", "creationTimestamp": "2021-05-04T03:02:01Z",
            "resourceVersion": "7", "uid": "0-1", "annotations": {"note": "none"},
            "labels": {
                "app": "x", "kubernetes.io/service-name": "all",
                "topology.kubernetes.io/zone": "a"
            },
            "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {"f:ports": {}}}}]
        })
    };
    let vips = ["10.97.0.1", "fd00:97::1"];
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("all"),
            "spec": {
                "type": "LoadBalancer", "clusterIP": vips[0], "clusterIPs": vips,
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "externalIPs": ["198.51.100.1"], "healthCheckNodePort": 31000,
                "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
                "trafficDistribution": "PreferClose", "publishNotReadyAddresses": true,
                "allocateLoadBalancerNodePorts": true, "selector": {"app": "x"},
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "ports": [
                    {"name": "a", "port": 81, "protocol": "TCP", "targetPort": "a", "nodePort": 30081},
                    {"name": "b", "port": 53, "protocol": "UDP", "targetPort": 5353, "nodePort": 30053},
                    {"name": "c", "port": 99, "protocol": "SCTP", "targetPort": 99, "nodePort": 30099}
                ]
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1", "ipMode": "VIP", "ports": [{"port": 81, "protocol": "TCP"}]},
                {"hostname": "lb.example", "ipMode": "Proxy"}
            ]}}
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": metadata("all-1"),
            "ports": [
                {"name": "a", "port": 8081, "protocol": "TCP", "appProtocol": "http"},
                {"name": "b", "port": 5353, "protocol": "UDP"}
            ],
            "endpoints": [
                {
                    "addresses": ["10.98.0.1"], "nodeName": NODE, "zone": "a", "hostname": "x",
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": NODE}]},
                    "targetRef": {"kind": "Pod", "name": "x", "namespace": "bad"}
                },
                {"addresses": ["10.98.0.2"], "conditions": {"ready": false, "terminating": true}}
            ]
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": metadata("all-2"),
            "ports": [{"name": "a", "port": 8081, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["fd00:98::1"], "deprecatedTopology": {"x": "y"}}]
        }),
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": NODE, "deletionTimestamp": null,
                "labels": {"topology.kubernetes.io/zone": "a", "kubernetes.io/hostname": NODE}
            },
            "spec": {
                "podCIDR": "10.98.0.0/24", "podCIDRs": ["10.98.0.0/24", "fd00:98::/64"],
                "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
            },
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": "192.0.2.1"},
                    {"type": "Hostname", "address": NODE}
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}
            }
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.97.0.0/16", "fd00:97::/112"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        }),
    ]
}

/// What they have in common.
const HEAD: &str =
    r#""metadata":{"name":"huge","namespace":"bad","labels":{"kubernetes.io/service-name":"all"}}"#;

type Make = Box<dyn Fn() -> String>;

/// Objects that are far too large in one way each, as their bytes: with 8 MiB of text or a million
/// of something, or that part of it.
pub(crate) fn huge(part: usize) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let (million, bytes) = (1_000_000 / part, (8 << 20) / part);
    let slice = |rest: String| {
        format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4",{HEAD}{rest}}}"#
        )
    };
    let service = |rest: String| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service",{HEAD},"spec":{{"clusterIP":"10.97.0.9"{rest}}}}}"#
        )
    };
    let node = |rest: String| {
        format!(r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{NODE}"}}{rest}}}"#)
    };
    let many = |item: &str, count: usize| {
        let mut list = String::with_capacity((item.len() + 1) * count);
        for index in 0..count {
            list.push_str(if index == 0 { "" } else { "," });
            list.push_str(item);
        }
        list
    };
    let text = move || "x".repeat(bytes);
    let all: Vec<(&'static str, Make)> = vec![
        (
            "an annotation",
            Box::new(move || {
                format!(
                    r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"huge","namespace":"bad","annotations":{{"a":"{}"}}}},"spec":{{"clusterIP":"10.97.0.9"}}}}"#,
                    text()
                )
            }),
        ),
        (
            "an escaped annotation",
            Box::new(move || {
                format!(
                    r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"huge","namespace":"bad","annotations":{{"a":"{}"}}}},"spec":{{"clusterIP":"10.97.0.9"}}}}"#,
                    r"\u00e9".repeat(bytes / 8)
                )
            }),
        ),
        (
            "a name",
            Box::new(move || {
                format!(
                    r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{}","namespace":"bad"}},"spec":{{"clusterIP":"10.97.0.9"}}}}"#,
                    text()
                )
            }),
        ),
        ("an address", Box::new(move || service(format!(r#","clusterIPs":["{}"]"#, text())))),
        (
            "a kind",
            Box::new(move || format!(r#"{{"apiVersion":"v1","kind":"{}",{HEAD}}}"#, text())),
        ),
        (
            "a million endpoints",
            Box::new(move || {
                slice(format!(
                    r#","endpoints":[{}]"#,
                    many(r#"{"addresses":["10.98.0.7"]}"#, million)
                ))
            }),
        ),
        (
            "a million addresses of an endpoint",
            Box::new(move || {
                slice(format!(
                    r#","endpoints":[{{"addresses":[{}]}}]"#,
                    many(r#""10.98.0.7""#, million)
                ))
            }),
        ),
        (
            "a million ports of a slice",
            Box::new(move || {
                slice(format!(r#","ports":[{}]"#, many(r#"{"name":"a","port":1}"#, million)))
            }),
        ),
        (
            "a million ports of a Service",
            Box::new(move || {
                service(format!(r#","ports":[{}]"#, many(r#"{"name":"a","port":1}"#, million)))
            }),
        ),
        (
            "a million clusterIPs",
            Box::new(move || {
                service(format!(r#","clusterIPs":[{}]"#, many(r#""10.97.0.9""#, million)))
            }),
        ),
        (
            "a million externalIPs",
            Box::new(move || {
                service(format!(r#","externalIPs":[{}]"#, many(r#""198.51.100.9""#, million)))
            }),
        ),
        (
            "a million labels",
            Box::new(move || {
                format!(
                    r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"huge","namespace":"bad","labels":{{{}}}}},"spec":{{}}}}"#,
                    many(r#""a":"b""#, million)
                )
            }),
        ),
        (
            "a million taints",
            Box::new(move || {
                node(format!(r#","spec":{{"taints":[{}]}}"#, many(r#"{"key":"a"}"#, million)))
            }),
        ),
        (
            "a million addresses of a Node",
            Box::new(move || {
                let address = r#"{"type":"InternalIP","address":"192.0.2.1"}"#;
                node(format!(r#","status":{{"addresses":[{}]}}"#, many(address, million)))
            }),
        ),
        (
            "a million unknown fields",
            Box::new(move || slice(format!(",{}", many(r#""a":[]"#, million)))),
        ),
        ("nested lists", Box::new(move || slice(format!(r#","x":{}"#, "[".repeat(bytes / 8))))),
        (
            "nested maps",
            Box::new(move || slice(format!(r#","x":{}"#, r#"{"x":"#.repeat(bytes / 8)))),
        ),
        (
            "nested lists that are closed",
            Box::new(move || {
                let deep = million / 10;
                slice(format!(r#","x":{}{}"#, "[".repeat(deep), "]".repeat(deep)))
            }),
        ),
    ];
    all.into_iter().map(|(what, make)| (what, make().into_bytes()))
}
