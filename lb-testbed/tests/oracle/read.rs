//! What do events say to an agent?

use std::net::IpAddr;

use lb_agent::{
    convert::{self, Converter, Findings, Kind, Object},
    model::{Change, ObjectKey},
    policy::node::NodePortAddresses,
};
use lb_testbed::oracle::{
    cluster::{Config, Node},
    generate::NODE,
    history::Event,
    render,
};
use serde_json::Value;

/// Reads objects as a source of the agent does, and the machine as netlink tells.
pub(crate) struct Reader {
    converter: Converter,
    interfaces: Vec<IpAddr>,
}

impl Reader {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            converter: Converter::new(NODE).with_external_ips(config.external_ips),
            interfaces: config.interfaces.clone(),
        }
    }

    /// The changes of a burst, and the addresses of all interfaces if they changed.
    pub(crate) fn burst(&mut self, burst: &[Event]) -> (Vec<Change>, Option<Vec<IpAddr>>) {
        let before = self.interfaces.clone();
        let mut changes = Vec::new();
        for event in burst {
            let (object, there) = event.render();
            if let Event::Node(Node { name, interfaces, .. }) = event
                && name == NODE
            {
                self.interfaces.clone_from(interfaces);
            }
            changes.extend(self.object(&object, there));
        }
        let moved = self.interfaces != before;
        (changes, moved.then(|| self.interfaces.clone()))
    }

    /// The `ServiceCIDR` object.
    pub(crate) fn service_cidrs(&mut self, cidrs: &[String]) -> Option<Change> {
        let object = render::service_cidr("kubernetes", cidrs);
        if cidrs.is_empty() { None } else { self.object(&object, true) }
    }

    /// What an object says, by way of its text.
    fn object(&mut self, object: &Value, there: bool) -> Option<Change> {
        let text = object.to_string();
        let raw = convert::json(text.as_bytes()).expect("generated objects are of the API's types");
        let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
        let mut findings = Findings::default();
        let drop = |kind, key: ObjectKey| match kind {
            Kind::Service => Some(Change::DropService(key)),
            Kind::Slice => Some(Change::DropSlice(key)),
            Kind::Node => (*key.name == *NODE).then_some(Change::DropNode),
            Kind::ServiceCidr => None,
        };
        if !there {
            let (namespace, name) = (&raw.metadata.namespace, &raw.metadata.name);
            let key = self.converter.key(kind, namespace, name, &mut findings).unwrap();
            return drop(kind, key);
        }
        match self.converter.object(kind, &raw, &mut findings)? {
            Object::Service(service) => Some(Change::SetService(service)),
            Object::Slice(slice) => Some(Change::SetSlice(slice)),
            Object::Node(node) => Some(Change::SetNode(node)),
            Object::ServiceCidr(cidr) => Some(Change::SetServiceCidr(cidr)),
            Object::Ignored(Kind::Node, _) => None,
            Object::Ignored(kind, key) => drop(kind, key),
        }
    }
}

/// `--node-port-addresses`.
pub(crate) fn node_port_addresses(config: &Config) -> NodePortAddresses {
    let addresses = &config.node_port_addresses;
    if addresses.is_empty() {
        NodePortAddresses::default()
    } else {
        addresses.join(",").parse().unwrap()
    }
}
