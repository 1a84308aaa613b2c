//! Services, `EndpointSlices` and Nodes as `kubectl get -A -o json` prints them, built in a test and
//! changed while an agent watches.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// Objects by kind, namespace and name: the order in which they are printed.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    objects: BTreeMap<(String, String, String), Value>,
}

/// A Service.
#[derive(Clone, Debug)]
pub struct Service(Value);

/// An `EndpointSlice`.
#[derive(Clone, Debug)]
pub struct EndpointSlice(Value);

/// A Node.
#[derive(Clone, Debug)]
pub struct Node(Value);

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint(Value);

impl Manifest {
    /// No objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object, or replaces the one of the same kind, namespace and name.
    pub fn set(&mut self, object: impl Into<Value>) -> &mut Self {
        let object = object.into();
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("");
        let key = (
            text("/kind").to_owned(),
            text("/metadata/namespace").to_owned(),
            text("/metadata/name").to_owned(),
        );
        self.objects.insert(key, object);
        self
    }

    /// Removes an object; whether there was one.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> bool {
        self.objects.remove(&(kind.into(), namespace.into(), name.into())).is_some()
    }

    /// Adds or replaces a Service of both families and its slices: `name:port` on TCP and UDP,
    /// answered by `endpoints` at `target`. Slices are named `<name>-ipv4` and `<name>-ipv6`.
    pub fn publish(
        &mut self,
        name: &str,
        vips: &[IpAddr],
        port: u16,
        target: u16,
        endpoints: &[IpAddr],
    ) -> &mut Self {
        let service = Service::new("default", name, vips)
            .port("tcp", "TCP", port, target)
            .port("udp", "UDP", port, target);
        self.set(service).endpoints(name, target, endpoints)
    }

    /// Replaces the slices that [`Manifest::publish`] made.
    pub fn endpoints(&mut self, service: &str, target: u16, endpoints: &[IpAddr]) -> &mut Self {
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let slice_name = format!("{service}-{}", family.to_lowercase());
            let mut slice = EndpointSlice::new("default", &slice_name, service, family)
                .port("tcp", "TCP", target)
                .port("udp", "UDP", target);
            for ip in endpoints.iter().filter(|ip| ip.is_ipv4() == is_v4) {
                slice = slice.endpoint(Endpoint::ready(*ip));
            }
            self.set(slice);
        }
        self
    }

    /// The `List` that kubectl prints.
    pub fn to_json(&self) -> String {
        Self::list(&self.objects.values().cloned().collect::<Vec<_>>())
    }

    /// The same as one would write it for an API server, which gives out identities and
    /// takes no status this way.
    pub fn to_apply(&self) -> String {
        let mut items: Vec<Value> = self.objects.values().cloned().collect();
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("status");
            without_identity(item);
        }
        Self::list(&items)
    }

    /// The status of all objects that have one, as one would write it for an API server.
    pub fn to_apply_status(&self) -> String {
        let mut items: Vec<Value> = self.objects.values().cloned().collect();
        items.retain(|item| item.get("status").is_some());
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("spec");
            without_identity(item);
        }
        Self::list(&items)
    }

    fn list(items: &[Value]) -> String {
        let list = json!({
            "apiVersion": "v1",
            "items": items,
            "kind": "List",
            "metadata": {"resourceVersion": ""},
        });
        format!("{list:#}\n")
    }

    /// Writes the list so that no reader ever sees half of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, &self.to_json())
    }
}

/// What the API server gives out, and takes from nobody.
fn without_identity(object: &mut Map<String, Value>) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion", "creationTimestamp"] {
            metadata.remove(field);
        }
    }
}

/// Replaces a file in one step. The temporary file is hidden and has another ending, so that a
/// folder of manifests may be written into.
pub fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().context("a file name")?.to_string_lossy();
    let temporary: PathBuf = path.with_file_name(format!(".{name}.part"));
    fs::write(&temporary, text).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("replace {}", path.display()))
}

impl Service {
    /// A Service with these cluster IPs, the first being its primary family.
    pub fn new(namespace: &str, name: &str, vips: &[IpAddr]) -> Self {
        let texts: Vec<String> = vips.iter().map(ToString::to_string).collect();
        let families: Vec<&str> =
            vips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        Self(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}")},
            "spec": {
                "clusterIP": texts.first().map_or("None", String::as_str),
                "clusterIPs": texts,
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": families,
                "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                "ports": [],
                "sessionAffinity": "None",
                "type": "ClusterIP",
            },
            "status": {"loadBalancer": {}},
        }))
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, port: u16, target: u16) -> Self {
        push(
            &mut self.0["spec"]["ports"],
            json!({"name": name, "port": port, "protocol": protocol, "targetPort": target}),
        );
        self
    }

    /// Sets a field of its spec.
    #[must_use]
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][name] = value.into();
        self
    }
}

impl EndpointSlice {
    /// A slice of a Service; `family` is `IPv4` or `IPv6`.
    pub fn new(namespace: &str, name: &str, service: &str, family: &str) -> Self {
        Self(json!({
            "addressType": family,
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": [],
            "kind": "EndpointSlice",
            "metadata": {
                "labels": {"kubernetes.io/service-name": service},
                "name": name,
                "namespace": namespace,
                "uid": format!("uid-{namespace}-{name}"),
            },
            "ports": [],
        }))
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        push(&mut self.0["ports"], json!({"name": name, "port": port, "protocol": protocol}));
        self
    }

    /// Adds an endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        push(&mut self.0["endpoints"], endpoint.0);
        self
    }
}

impl Endpoint {
    /// A ready endpoint.
    pub fn ready(ip: IpAddr) -> Self {
        Self(json!({
            "addresses": [ip.to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }))
    }

    /// Sets a condition.
    #[must_use]
    pub fn condition(mut self, name: &str, value: bool) -> Self {
        self.0["conditions"][name] = value.into();
        self
    }

    /// The node it is on.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.0["nodeName"] = name.into();
        self
    }

    /// The zone it is in.
    #[must_use]
    pub fn zone(mut self, name: &str) -> Self {
        self.0["zone"] = name.into();
        self
    }
}

impl Node {
    /// A ready node with these internal addresses.
    pub fn new(name: &str, addresses: &[IpAddr]) -> Self {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|ip| json!({"address": ip.to_string(), "type": "InternalIP"}))
            .collect();
        Self(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"labels": {"kubernetes.io/hostname": name}, "name": name, "uid": format!("uid-{name}")},
            "spec": {},
            "status": {
                "addresses": addresses,
                "conditions": [{"status": "True", "type": "Ready"}],
            },
        }))
    }

    /// The address ranges of its pods.
    #[must_use]
    pub fn pod_cidrs(mut self, cidrs: &[&str]) -> Self {
        self.0["spec"]["podCIDR"] = json!(cidrs.first());
        self.0["spec"]["podCIDRs"] = json!(cidrs);
        self
    }
}

impl From<Service> for Value {
    fn from(object: Service) -> Self {
        object.0
    }
}

impl From<EndpointSlice> for Value {
    fn from(object: EndpointSlice) -> Self {
        object.0
    }
}

impl From<Node> for Value {
    fn from(object: Node) -> Self {
        object.0
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_does_not_depend_on_the_order_of_changes() {
        let vips: [IpAddr; 2] = ["10.96.0.10".parse().unwrap(), "fd00:10:96::10".parse().unwrap()];
        let pods: [IpAddr; 2] =
            ["10.244.0.10".parse().unwrap(), "fd00:10:244::10".parse().unwrap()];
        let (mut one, mut other) = (Manifest::new(), Manifest::new());
        one.publish("a", &vips, 80, 8080, &pods).publish("b", &vips, 81, 8080, &[]);
        other.publish("b", &vips, 81, 8080, &pods).publish("a", &vips, 80, 8080, &pods);
        assert_ne!(one.to_json(), other.to_json());
        other.endpoints("b", 8080, &[]);
        assert_eq!(one.to_json(), other.to_json());

        let list: Value = serde_json::from_str(&one.to_json()).unwrap();
        assert_eq!(list["kind"], "List");
        let slices: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|object| object["kind"] == "EndpointSlice")
            .map(|object| (object["metadata"]["name"].as_str().unwrap(), &object["endpoints"]))
            .collect();
        assert_eq!(slices.len(), 4);
        assert_eq!(slices[0].0, "a-ipv4");
        assert_eq!(slices[0].1[0]["addresses"][0], "10.244.0.10");
        assert_eq!(slices[1].1[0]["addresses"][0], "fd00:10:244::10");
        assert_eq!(slices[2].1, &json!([]));
    }
}
