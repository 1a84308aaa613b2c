//! A cluster in the making: objects that come, change and go, as a watch tells them.

use std::fmt;

use serde_json::Value;

use super::cluster::{Cluster, Config, Node, Service, Slice};
use super::render;

/// Something that happens to one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A Service is new or changed.
    Service(Box<Service>),
    /// A slice is new or changed.
    Slice(Slice),
    /// A Node is new or changed.
    Node(Node),
    /// A Service is gone.
    NoService(String, String),
    /// A slice is gone.
    NoSlice(String, String),
    /// A Node is gone: what was last known of it stays (T-11).
    NoNode(String),
}

/// Events in order, in bursts: those of one burst are taken up together.
#[derive(Clone, PartialEq)]
pub struct History {
    /// What the proxy is told.
    pub config: Config,
    /// The ranges of all `ServiceCIDR` objects.
    pub service_cidrs: Vec<String>,
    /// Bursts of events.
    pub bursts: Vec<Vec<Event>>,
}

impl Event {
    /// The object as the API server prints it, and whether it is there or gone. What is gone is told
    /// by its kind and name alone.
    pub fn render(&self) -> (Value, bool) {
        let gone = |api_version: &str, kind: &str, namespace: &str, name: &str| {
            serde_json::json!({
                "apiVersion": api_version,
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
            })
        };
        match self {
            Self::Service(service) => (render::service(service), true),
            Self::Slice(slice) => (render::slice(slice), true),
            Self::Node(node) => (render::node(node), true),
            Self::NoService(namespace, name) => (gone("v1", "Service", namespace, name), false),
            Self::NoSlice(namespace, name) => {
                (gone("discovery.k8s.io/v1", "EndpointSlice", namespace, name), false)
            }
            Self::NoNode(name) => (gone("v1", "Node", "", name), false),
        }
    }

    /// What it makes of a cluster.
    pub fn apply(&self, cluster: &mut Cluster) {
        match self {
            Self::Service(service) => {
                drop_service(cluster, &service.namespace, &service.name);
                cluster.services.push(service.as_ref().clone());
            }
            Self::Slice(slice) => {
                drop_slice(cluster, &slice.namespace, &slice.name);
                cluster.slices.push(slice.clone());
            }
            Self::Node(node) => {
                cluster.nodes.retain(|other| other.name != node.name);
                cluster.nodes.push(node.clone());
            }
            Self::NoService(namespace, name) => drop_service(cluster, namespace, name),
            Self::NoSlice(namespace, name) => drop_slice(cluster, namespace, name),
            Self::NoNode(_) => {}
        }
    }
}

fn drop_service(cluster: &mut Cluster, namespace: &str, name: &str) {
    cluster.services.retain(|other| (&*other.namespace, &*other.name) != (namespace, name));
}

fn drop_slice(cluster: &mut Cluster, namespace: &str, name: &str) {
    cluster.slices.retain(|other| (&*other.namespace, &*other.name) != (namespace, name));
}

impl History {
    /// A cluster before anything happened.
    fn beginning(&self) -> Cluster {
        Cluster {
            service_cidrs: self.service_cidrs.clone(),
            config: self.config.clone(),
            ..Cluster::default()
        }
    }

    /// Each burst, with the cluster as it is after it.
    pub fn steps(&self) -> impl Iterator<Item = (&[Event], Cluster)> {
        self.bursts.iter().scan(self.beginning(), |cluster, burst| {
            for event in burst {
                event.apply(cluster);
            }
            Some((burst.as_slice(), cluster.clone()))
        })
    }

    /// The cluster when all has happened.
    pub fn end(&self) -> Cluster {
        let mut cluster = self.beginning();
        for event in self.bursts.iter().flatten() {
            event.apply(&mut cluster);
        }
        cluster
    }
}

impl Cluster {
    /// One event for each object: the shortest way here.
    pub fn events(&self) -> Vec<Event> {
        let services = self.services.iter().map(|s| Event::Service(Box::new(s.clone())));
        let slices = self.slices.iter().cloned().map(Event::Slice);
        services.chain(slices).chain(self.nodes.iter().cloned().map(Event::Node)).collect()
    }
}

/// As manifests, which say more to people than the fields of these types.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}\nserviceCIDRs {:?}", self.config, self.service_cidrs)?;
        for (index, burst) in self.bursts.iter().enumerate() {
            writeln!(f, "burst {index}:")?;
            for event in burst {
                let (object, there) = event.render();
                writeln!(f, "  {} {object}", if there { "set" } else { "delete" })?;
                if let Event::Node(node) = event {
                    writeln!(f, "      with interfaces {:?}", node.interfaces)?;
                }
            }
        }
        Ok(())
    }
}
