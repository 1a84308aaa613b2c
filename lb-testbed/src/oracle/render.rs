//! Objects as the API server prints them.

use serde_json::{Map, Value, json};

use super::cluster::{
    AddressType, Endpoint, Ingress, IpMode, Node, Service, ServiceType, Slice, SlicePort, ZONE,
};

/// The first second of 2024: creation times are within that day.
pub const FIRST_DAY_S: i64 = 1_704_067_200;

/// A Service.
pub fn service(service: &Service) -> Value {
    let mut spec = Map::new();
    spec.insert("type".into(), service.kind.name().into());
    if !service.cluster_ip.is_empty() {
        spec.insert("clusterIP".into(), service.cluster_ip.clone().into());
    }
    insert_list(&mut spec, "clusterIPs", &service.cluster_ips);
    let families: Vec<_> = service.families.iter().map(|family| family.name()).collect();
    if !families.is_empty() {
        spec.insert("ipFamilies".into(), json!(families));
        let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        spec.insert("ipFamilyPolicy".into(), policy.into());
    }
    if service.kind == ServiceType::ExternalName {
        spec.insert("externalName".into(), "example.org".into());
    }
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let mut value =
                json!({"port": port.port, "protocol": port.protocol.name(), "targetPort": port.target});
            if !port.name.is_empty() {
                value["name"] = port.name.clone().into();
            }
            if port.node_port != 0 {
                value["nodePort"] = port.node_port.into();
            }
            value
        })
        .collect();
    spec.insert("ports".into(), ports.into());
    insert_list(&mut spec, "externalIPs", &service.external_ips);
    insert_list(&mut spec, "loadBalancerSourceRanges", &service.source_ranges);
    if let Some(policy) = service.internal {
        spec.insert("internalTrafficPolicy".into(), policy.name().into());
    }
    if let Some(policy) = service.external {
        spec.insert("externalTrafficPolicy".into(), policy.name().into());
    }
    let affinity = if service.affinity_s.is_some() { "ClientIP" } else { "None" };
    spec.insert("sessionAffinity".into(), affinity.into());
    if let Some(timeout_s) = service.affinity_s {
        let config = json!({"clientIP": {"timeoutSeconds": timeout_s}});
        spec.insert("sessionAffinityConfig".into(), config);
    }
    if service.publish_not_ready {
        spec.insert("publishNotReadyAddresses".into(), true.into());
    }
    let balancer = if service.ingress.is_empty() {
        json!({})
    } else {
        json!({"ingress": service.ingress.iter().map(ingress).collect::<Vec<_>>()})
    };
    let mut object = object("v1", "Service", &service.namespace, &service.name);
    object["metadata"]["creationTimestamp"] = timestamp(service.created_s).into();
    if !service.labels.is_empty() {
        object["metadata"]["labels"] = json!(service.labels);
    }
    object["spec"] = spec.into();
    object["status"] = json!({"loadBalancer": balancer});
    object
}

/// An EndpointSlice.
pub fn slice(slice: &Slice) -> Value {
    let mut object = object("discovery.k8s.io/v1", "EndpointSlice", &slice.namespace, &slice.name);
    object["metadata"]["labels"] = json!(slice.labels);
    object["addressType"] = match slice.address_type {
        AddressType::Ip(family) => family.name(),
        AddressType::Fqdn => "FQDN",
    }
    .into();
    object["ports"] = slice.ports.iter().map(slice_port).collect::<Vec<_>>().into();
    object["endpoints"] = slice.endpoints.iter().map(endpoint).collect::<Vec<_>>().into();
    object
}

/// A Node.
pub fn node(node: &Node) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": node.name});
    if let Some(zone) = &node.zone {
        labels[ZONE] = zone.clone().into();
    }
    let addresses: Vec<Value> =
        node.addresses.iter().map(|ip| json!({"address": ip, "type": "InternalIP"})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"labels": labels, "name": node.name, "resourceVersion": "1"},
        "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
        "status": {
            "addresses": addresses,
            "conditions": [{"status": "True", "type": "Ready"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": node.kubelet_port}},
        },
    })
}

/// A `ServiceCIDR`.
pub fn service_cidr(name: &str, cidrs: &[String]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"cidrs": cidrs},
    })
}

fn object(api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": "1"},
    })
}

fn insert_list(map: &mut Map<String, Value>, field: &str, list: &[String]) {
    if !list.is_empty() {
        map.insert(field.into(), json!(list));
    }
}

fn ingress(entry: &Ingress) -> Value {
    let mut value = json!({});
    for (field, text) in [("ip", &entry.ip), ("hostname", &entry.hostname)] {
        if !text.is_empty() {
            value[field] = text.clone().into();
        }
    }
    if let Some(mode) = entry.mode {
        value["ipMode"] = if mode == IpMode::Vip { "VIP" } else { "Proxy" }.into();
    }
    value
}

fn slice_port(port: &SlicePort) -> Value {
    json!({"name": port.name, "port": port.port, "protocol": port.protocol.name()})
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let mut value = json!({"addresses": endpoint.addresses, "conditions": {}});
    for (name, condition) in [
        ("ready", endpoint.ready),
        ("serving", endpoint.serving),
        ("terminating", endpoint.terminating),
    ] {
        if let Some(condition) = condition {
            value["conditions"][name] = condition.into();
        }
    }
    for (field, text) in [("nodeName", &endpoint.node), ("zone", &endpoint.zone)] {
        if let Some(text) = text {
            value[field] = text.clone().into();
        }
    }
    let hints = |names: &[String]| -> Value {
        names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>().into()
    };
    if !endpoint.for_zones.is_empty() {
        value["hints"]["forZones"] = hints(&endpoint.for_zones);
    }
    if !endpoint.for_nodes.is_empty() {
        value["hints"]["forNodes"] = hints(&endpoint.for_nodes);
    }
    value
}

fn timestamp(seconds: i64) -> String {
    let of_day = (seconds - FIRST_DAY_S).rem_euclid(86_400);
    format!("2024-01-01T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}
