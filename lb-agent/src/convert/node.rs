//! This node's Node object, and the cluster's `ServiceCIDR`s.

use std::net::IpAddr;

use super::raw::{RawNodeAddress, RawObject, Text};
use super::report::quoted;
use super::{Converter, Findings, Kind, Object, address, check_length, check_name};
use crate::model::{Cidr, Node, ObjectKey, ServiceCidr};

/// The autoscaler of the cluster is about to remove the node (H-4).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl Converter {
    /// The Node; that of another node is of no interest.
    pub(super) fn node(&mut self, raw: &RawObject<'_>, findings: &mut Findings) -> Option<Object> {
        let name = check_name("metadata.name", &raw.metadata.name, 253, findings)?;
        if *name != *self.node_name {
            let key = ObjectKey { namespace: "".into(), name: self.names.share(name) };
            return Some(Object::Ignored(Kind::Node, key));
        }
        let taints = raw.spec.as_ref().map_or(&[][..], |spec| &spec.taints.items);
        Some(Object::Node(Node {
            name: self.node_name.clone(),
            zone: self.names.share(&raw.metadata.labels.zone),
            addresses: addresses(raw, findings),
            pod_cidrs: pod_cidrs(raw, findings),
            kubelet_port: kubelet_port(raw),
            deleting: !raw.metadata.deletion_timestamp.is_empty(),
            removal_planned: taints.iter().any(|taint| taint.key.as_str() == TO_BE_DELETED),
        }))
    }

    /// A `ServiceCIDR`. One that is being deleted counts until it is gone: clusterIPs are still
    /// allocated from it.
    pub(super) fn service_cidr(
        &mut self,
        raw: &RawObject<'_>,
        findings: &mut Findings,
    ) -> Option<Object> {
        let name = check_name("metadata.name", &raw.metadata.name, 253, findings)?;
        let name = self.names.share(name);
        let listed = raw.spec.as_ref().map(|spec| &spec.cidrs);
        let texts = listed.map_or(&[][..], |listed| &listed.items);
        let cidrs = cidrs(texts, "spec.cidrs", findings);
        let beyond = listed.map_or(0, |listed| listed.beyond);
        check_length(beyond, texts.len(), "spec.cidrs", "ranges", findings);
        Some(Object::ServiceCidr(ServiceCidr { name, cidrs }))
    }
}

/// Those of type `InternalIP` before those of type `ExternalIP` (L-5).
fn addresses(raw: &RawObject<'_>, findings: &mut Findings) -> Box<[IpAddr]> {
    let listed = raw.status.as_ref().map_or(&[][..], |status| &status.addresses.items);
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for (index, RawNodeAddress { r#type, address: text }) in listed.iter().enumerate() {
        let addresses = match r#type.as_str() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut external,
            _ => continue,
        };
        match address::parse(text) {
            Some(addr) => addresses.push(addr),
            None => findings.add(
                &format!("status.addresses[{index}].address"),
                format!("{} is not an IP address", quoted(text)),
            ),
        }
    }
    internal.append(&mut external);
    internal.into()
}

/// The plural field came later: what was written before it has the first range only.
fn pod_cidrs(raw: &RawObject<'_>, findings: &mut Findings) -> Box<[Cidr]> {
    match &raw.spec {
        None => Box::default(),
        Some(spec) if !spec.pod_cidrs.items.is_empty() => {
            cidrs(&spec.pod_cidrs.items, "spec.podCIDRs", findings)
        }
        Some(spec) if spec.pod_cidr.is_empty() => Box::default(),
        Some(spec) => cidrs(std::slice::from_ref(&spec.pod_cidr), "spec.podCIDR", findings),
    }
}

fn cidrs(texts: &[Text<'_>], field: &str, findings: &mut Findings) -> Box<[Cidr]> {
    let mut cidrs = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match address::parse_cidr(text) {
            Some(cidr) => cidrs.push(cidr),
            None => findings.add(
                &format!("{field}[{index}]"),
                format!("{} is not a range such as 10.0.0.0/8", quoted(text)),
            ),
        }
    }
    cidrs.into()
}

fn kubelet_port(raw: &RawObject<'_>) -> u16 {
    let daemons = raw.status.as_ref().and_then(|status| status.daemon_endpoints.as_ref());
    let kubelet = daemons.and_then(|daemons| daemons.kubelet_endpoint.as_ref());
    let port = kubelet.and_then(|kubelet| kubelet.port);
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
}
