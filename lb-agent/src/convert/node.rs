//! This node's Node object.

use super::raw::RawObject;
use super::report::quoted;
use super::{Converter, Findings, Kind, Object, address, check_name};
use crate::model::{Node, ObjectKey};

/// The cluster's autoscaler is about to remove a Node with this taint (H-4).
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

impl Converter {
    /// The Node; that of another node is of no interest.
    pub(super) fn node(&mut self, raw: &RawObject<'_>, findings: &mut Findings) -> Option<Object> {
        let name = check_name("metadata.name", &raw.metadata.name, 253, findings)?;
        if *name != *self.node_name {
            let key = ObjectKey { namespace: "".into(), name: self.names.share(name) };
            return Some(Object::Ignored(Kind::Node, key));
        }
        let listed = raw.status.as_ref().map_or(&[][..], |status| &status.addresses.items);
        let mut addresses = Vec::new();
        for (index, listed) in listed.iter().enumerate() {
            if !matches!(listed.r#type.as_str(), "InternalIP" | "ExternalIP") {
                continue;
            }
            match address::parse(&listed.address) {
                Some(addr) => addresses.push(addr),
                None => findings.add(
                    &format!("status.addresses[{index}].address"),
                    format!("{} is not an IP address", quoted(&listed.address)),
                ),
            }
        }
        let taints = raw.spec.as_ref().map_or(&[][..], |spec| &spec.taints.items);
        Some(Object::Node(Node {
            name: self.node_name.clone(),
            zone: self.names.share(&raw.metadata.labels.zone),
            addresses: addresses.into(),
            deleting: !raw.metadata.deletion_timestamp.is_empty(),
            removal_planned: taints.iter().any(|taint| *taint.key == *REMOVAL_TAINT),
        }))
    }
}
