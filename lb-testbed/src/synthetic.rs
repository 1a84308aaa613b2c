//! Clusters of any size out of nothing: what `kubectl get services,endpointslices,nodes -A` would
//! print of them, written as a stream, the same for the same parameters.
//!
//! Service `n` has one TCP port and, in each family, a clusterIP and one slice. Endpoints are spread
//! over [`NODES`] nodes named `node-0` and so on; no two have the same address. Objects carry about as
//! much that no proxy reads (labels, owners, managed fields) as real ones do.

mod value;

use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

use self::value::{Value, json, map, text, yaml};

/// Nodes of every synthetic cluster.
pub const NODES: usize = 100;

/// Most endpoints in all, and most Services: what fits `10.0.0.0/8` and `172.16.0.0/12`.
const MOST_ENDPOINTS: usize = 1 << 24;
const MOST_SERVICES: usize = 1 << 20;

/// Which families the Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Families {
    const fn v4(self) -> bool {
        !matches!(self, Self::V6)
    }

    const fn v6(self) -> bool {
        !matches!(self, Self::V4)
    }
}

/// A cluster.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    /// Number of Services.
    pub services: usize,
    /// Endpoints of each Service, in each family.
    pub endpoints: usize,
    /// Families of all Services.
    pub families: Families,
}

impl Synthetic {
    /// Writes the cluster as a JSON `kind: List`, indented as kubectl does.
    pub fn write_json(&self, mut to: impl Write) -> io::Result<()> {
        self.check()?;
        to.write_all(b"{\n    \"apiVersion\": \"v1\",\n    \"items\": [")?;
        let mut before = "\n";
        let mut text = String::new();
        self.each(&mut |object| {
            text.clear();
            json(object, 2, &mut text);
            to.write_all(before.as_bytes())?;
            to.write_all(b"        ")?;
            before = ",\n";
            to.write_all(text.as_bytes())
        })?;
        to.write_all(
            b"\n    ],\n    \"kind\": \"List\",\n    \"metadata\": {\n        \
              \"resourceVersion\": \"\"\n    }\n}\n",
        )?;
        to.flush()
    }

    /// Writes the cluster as a YAML `kind: List`, as kubectl does.
    pub fn write_yaml(&self, mut to: impl Write) -> io::Result<()> {
        self.check()?;
        to.write_all(b"apiVersion: v1\nitems:\n")?;
        let mut text = String::new();
        self.each(&mut |object| {
            text.clear();
            text.push('-');
            yaml(object, 1, &mut text);
            to.write_all(text.as_bytes())
        })?;
        to.write_all(b"kind: List\nmetadata:\n  resourceVersion: \"\"\n")?;
        to.flush()
    }

    /// Gives every object as JSON of its own, in kubectl's order.
    pub fn each_json(&self, mut take: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
        self.check()?;
        let mut text = String::new();
        self.each(&mut |object| {
            text.clear();
            json(object, 0, &mut text);
            take(&text)
        })
    }

    /// The clusterIP of a Service.
    pub fn cluster_ip_v4(service: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0xac10_0000 | low_bits(service + 1))
    }

    /// The IPv6 clusterIP of a Service.
    pub fn cluster_ip_v6(service: usize) -> Ipv6Addr {
        Ipv6Addr::from_bits((0xfd00_0001 << 96) | u128::from(low_bits(service + 1)))
    }

    /// The address of an endpoint of a Service.
    pub fn endpoint_v4(&self, service: usize, endpoint: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0000 | low_bits(service * self.endpoints + endpoint + 1))
    }

    /// The IPv6 address of an endpoint of a Service.
    pub fn endpoint_v6(&self, service: usize, endpoint: usize) -> Ipv6Addr {
        let number = u128::from(low_bits(service * self.endpoints + endpoint + 1));
        Ipv6Addr::from_bits((0xfd00_0002 << 96) | number)
    }

    fn check(&self) -> io::Result<()> {
        if self.services >= MOST_SERVICES
            || self.services.saturating_mul(self.endpoints) >= MOST_ENDPOINTS - 1
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the cluster is too large"));
        }
        Ok(())
    }

    /// Every object, in kubectl's order.
    fn each(&self, take: &mut dyn FnMut(&Value) -> io::Result<()>) -> io::Result<()> {
        for service in 0..self.services {
            take(&self.service(service))?;
        }
        for service in 0..self.services {
            if self.families.v4() {
                take(&self.slice(service, false))?;
            }
            if self.families.v6() {
                take(&self.slice(service, true))?;
            }
        }
        for node in 0..NODES {
            take(&self.node(node))?;
        }
        Ok(())
    }

    fn service(&self, service: usize) -> Value {
        let mut ips = Vec::new();
        let mut families = Vec::new();
        if self.families.v4() {
            ips.push(text(Self::cluster_ip_v4(service)));
            families.push(text("IPv4"));
        }
        if self.families.v6() {
            ips.push(text(Self::cluster_ip_v6(service)));
            families.push(text("IPv6"));
        }
        let policy = if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        let app = format!("app-{service}");
        map([
            ("apiVersion", text("v1")),
            ("kind", text("Service")),
            ("metadata", metadata(&service_name(service), vec![("app", text(&app))])),
            (
                "spec",
                map([
                    ("clusterIP", ips.first().cloned().unwrap_or(Value::List(Vec::new()))),
                    ("clusterIPs", Value::List(ips)),
                    ("internalTrafficPolicy", text("Cluster")),
                    ("ipFamilies", Value::List(families)),
                    ("ipFamilyPolicy", text(policy)),
                    (
                        "ports",
                        Value::List(vec![map([
                            ("name", text("http")),
                            ("port", Value::Number(80)),
                            ("protocol", text("TCP")),
                            ("targetPort", Value::Number(8080)),
                        ])]),
                    ),
                    ("selector", map([("app", text(&app))])),
                    ("sessionAffinity", text("None")),
                    ("type", text("ClusterIP")),
                ]),
            ),
            ("status", map([("loadBalancer", map([]))])),
        ])
    }

    fn slice(&self, service: usize, v6: bool) -> Value {
        let endpoints = (0..self.endpoints).map(|endpoint| self.endpoint(service, endpoint, v6));
        let labels = vec![
            ("app", text(format!("app-{service}"))),
            ("endpointslice.kubernetes.io/managed-by", text("endpointslice-controller.k8s.io")),
            ("kubernetes.io/service-name", text(service_name(service))),
        ];
        let name = format!("{}-{}", service_name(service), if v6 { "6" } else { "4" });
        map([
            ("addressType", text(if v6 { "IPv6" } else { "IPv4" })),
            ("apiVersion", text("discovery.k8s.io/v1")),
            ("endpoints", Value::List(endpoints.collect())),
            ("kind", text("EndpointSlice")),
            ("metadata", metadata(&name, labels)),
            (
                "ports",
                Value::List(vec![map([
                    ("name", text("http")),
                    ("port", Value::Number(8080)),
                    ("protocol", text("TCP")),
                ])]),
            ),
        ])
    }

    fn endpoint(&self, service: usize, endpoint: usize, v6: bool) -> Value {
        let address = if v6 {
            text(self.endpoint_v6(service, endpoint))
        } else {
            text(self.endpoint_v4(service, endpoint))
        };
        map([
            ("addresses", Value::List(vec![address])),
            (
                "conditions",
                map([
                    ("ready", Value::Bool(true)),
                    ("serving", Value::Bool(true)),
                    ("terminating", Value::Bool(false)),
                ]),
            ),
            ("nodeName", text(node_name(service * self.endpoints + endpoint))),
            (
                "targetRef",
                map([
                    ("kind", text("Pod")),
                    ("name", text(format!("app-{service}-{endpoint}"))),
                    ("namespace", text(NAMESPACE)),
                    ("uid", text(uid(service * self.endpoints + endpoint))),
                ]),
            ),
        ])
    }

    fn node(&self, node: usize) -> Value {
        let mut addresses = Vec::new();
        if self.families.v4() {
            addresses.push(text(Ipv4Addr::from_bits(0xc0a8_0000 | low_bits(node + 1))));
        }
        if self.families.v6() {
            let bits = (0xfd00_0003 << 96) | u128::from(low_bits(node + 1));
            addresses.push(text(Ipv6Addr::from_bits(bits)));
        }
        let address = |address| map([("address", address), ("type", text("InternalIP"))]);
        map([
            ("apiVersion", text("v1")),
            ("kind", text("Node")),
            (
                "metadata",
                map([
                    (
                        "labels",
                        map([("topology.kubernetes.io/zone", text(["a", "b", "c"][node % 3]))]),
                    ),
                    ("name", text(node_name(node))),
                ]),
            ),
            (
                "status",
                map([("addresses", Value::List(addresses.into_iter().map(address).collect()))]),
            ),
        ])
    }
}

const NAMESPACE: &str = "synthetic";

/// The name of a Service; all are in namespace `synthetic`.
pub fn service_name(service: usize) -> String {
    format!("service-{service}")
}

fn node_name(number: usize) -> String {
    format!("node-{}", number % NODES)
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

#[expect(clippy::cast_possible_truncation, reason = "check() bounds the size of the cluster")]
const fn low_bits(number: usize) -> u32 {
    number as u32
}

fn metadata(name: &str, labels: Vec<(&'static str, Value)>) -> Value {
    map([
        ("creationTimestamp", text("2026-01-01T00:00:00Z")),
        ("labels", Value::Map(labels)),
        ("name", text(name)),
        ("namespace", text(NAMESPACE)),
        ("resourceVersion", text("1")),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    const SMALL: Synthetic = Synthetic { services: 3, endpoints: 4, families: Families::Dual };

    fn items(cluster: &Synthetic) -> Vec<Json> {
        let mut bytes = Vec::new();
        cluster.write_json(&mut bytes).unwrap();
        let list: Json = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(list["kind"], "List");
        list["items"].as_array().unwrap().clone()
    }

    #[test]
    fn a_cluster_has_what_was_asked_for() {
        let items = items(&SMALL);
        let of = |kind: &str| items.iter().filter(|item| item["kind"] == kind).count();
        assert_eq!((of("Service"), of("EndpointSlice"), of("Node")), (3, 6, NODES));
        let slices = items.iter().filter(|item| item["kind"] == "EndpointSlice");
        let mut addresses: Vec<_> = slices
            .flat_map(|slice| slice["endpoints"].as_array().unwrap())
            .map(|endpoint| endpoint["addresses"][0].as_str().unwrap())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 3 * 2 * 4);
        assert_eq!(items[1]["spec"]["clusterIPs"], serde_json::json!(["172.16.0.2", "fd00:1::2"]));
    }

    #[test]
    fn a_family_that_was_not_asked_for_is_not_there() {
        for (families, other) in [(Families::V4, "IPv6"), (Families::V6, "IPv4")] {
            let text = format!("{:?}", items(&Synthetic { families, ..SMALL }));
            assert!(!text.contains(other), "{families:?}");
        }
    }

    #[test]
    fn yaml_is_laid_out_as_kubectl_does() {
        let mut bytes = Vec::new();
        let one = Synthetic { services: 1, endpoints: 1, families: Families::V4 };
        one.write_yaml(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let head = "apiVersion: v1\nitems:\n- apiVersion: \"v1\"\n  kind: \"Service\"\n  metadata:\n    \
                    creationTimestamp: \"2026-01-01T00:00:00Z\"\n    labels:\n      app: \"app-0\"\n";
        assert!(text.starts_with(head), "{text}");
        let slice = "  endpoints:\n  - addresses:\n    - \"10.0.0.1\"\n    conditions:\n      \
                     ready: true\n";
        assert!(text.contains(slice), "{text}");
        assert!(text.ends_with("kind: List\nmetadata:\n  resourceVersion: \"\"\n"));
    }

    #[test]
    fn what_does_not_fit_the_address_space_is_refused() {
        let huge = Synthetic { services: 1 << 20, endpoints: 1000, ..SMALL };
        assert!(huge.write_json(io::sink()).is_err());
    }
}
