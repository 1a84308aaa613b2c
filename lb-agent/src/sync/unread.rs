//! Which objects are there, but could not be read?
//!
//! Such an object keeps its last good state. What this run has read of it is in the store; what an
//! earlier run had read of a Service is in the pinned maps only, so that the first plan must not
//! take the Service for gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::convert::{Kind, Report, Skipped};
use crate::model::{Change, ObjectKey};

const SERVICE: &str = Kind::Service.name();
const SLICE: &str = Kind::Slice.name();
const NODE: &str = Kind::Node.name();
const SERVICE_CIDR: &str = Kind::ServiceCidr.name();

/// Objects whose last state could not be read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Kind, namespace and name.
    objects: BTreeSet<(&'static str, Arc<str>, Arc<str>)>,
}

impl Unread {
    /// Takes up what a source reports.
    pub(super) fn report(&mut self, report: &Report) {
        if report.skipped == Skipped::Object {
            let (namespace, name) = (report.namespace.as_str(), report.name.as_str());
            self.objects.insert((report.kind, namespace.into(), name.into()));
        }
    }

    /// Forgets objects that can be read again, or are gone; tells the Services among them.
    pub(super) fn settle(&mut self, changes: &[Change]) -> Vec<ObjectKey> {
        if self.objects.is_empty() {
            return Vec::new();
        }
        let mut services = Vec::new();
        for change in changes {
            let (kind, key) = match change {
                Change::SetService(service) => (SERVICE, service.key.clone()),
                Change::DropService(key) => (SERVICE, key.clone()),
                Change::SetSlice(slice) => (SLICE, slice.key.clone()),
                Change::DropSlice(key) => (SLICE, key.clone()),
                Change::SetServiceCidr(cidr) => (SERVICE_CIDR, unspaced(&cidr.name)),
                Change::DropServiceCidr(name) => (SERVICE_CIDR, unspaced(name)),
                // Of Nodes, only this one's is told.
                Change::SetNode(_) | Change::DropNode => {
                    self.retain(NODE, &[]);
                    continue;
                }
                Change::ReplaceServiceCidrs { keep, .. } => {
                    self.retain(SERVICE_CIDR, keep);
                    continue;
                }
                Change::ReplaceServices { keep, .. } => {
                    services.extend(self.retain(SERVICE, keep));
                    continue;
                }
                Change::ReplaceSlices { keep, .. } => {
                    self.retain(SLICE, keep);
                    continue;
                }
            };
            let known = self.objects.remove(&(kind, key.namespace.clone(), key.name.clone()));
            if known && kind == SERVICE {
                services.push(key);
            }
        }
        services
    }

    /// Whether there is a Service of that name that could not be read.
    pub(super) fn has_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> bool {
        self.objects.contains(&(SERVICE, namespace.clone(), name.clone()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Keeps of one kind only these; tells which go.
    fn retain(&mut self, kind: &'static str, keep: &[ObjectKey]) -> Vec<ObjectKey> {
        let mut gone = Vec::new();
        let keep: BTreeSet<_> = keep.iter().map(|key| (&key.namespace, &key.name)).collect();
        self.objects.retain(|(of, namespace, name)| {
            let kept = *of != kind || keep.contains(&(namespace, name));
            if !kept {
                gone.push(ObjectKey { namespace: namespace.clone(), name: name.clone() });
            }
            kept
        });
        gone
    }
}

/// The key of an object that is in no namespace.
fn unspaced(name: &Arc<str>) -> ObjectKey {
    ObjectKey { namespace: "".into(), name: name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Origin;
    use crate::model::{Node, ServiceCidr};

    fn unread(kind: Kind, namespace: &str, name: &str) -> Report {
        Report {
            origin: Origin::Api,
            kind: kind.name(),
            namespace: namespace.into(),
            name: name.into(),
            field: String::new(),
            problem: String::new(),
            skipped: Skipped::Object,
        }
    }

    /// How many are left of one of each kind.
    fn left(change: Change) -> usize {
        let mut all = Unread::default();
        all.report(&unread(Kind::Service, "ns", "a"));
        all.report(&unread(Kind::Slice, "ns", "a"));
        all.report(&unread(Kind::Node, "", "a"));
        all.report(&unread(Kind::ServiceCidr, "", "a"));
        all.settle(&[change]);
        all.len()
    }

    #[test]
    fn an_object_of_any_kind_is_forgotten_when_it_can_be_read_or_is_gone() {
        let (key, other) = (ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"));
        let cidr = |name: &str| ServiceCidr { name: name.into(), cidrs: [].into() };
        let keep = vec![unspaced(&"a".into())];
        for (change, expected) in [
            (Change::DropService(key.clone()), 3),
            (Change::DropService(other.clone()), 4),
            (Change::DropSlice(key), 3),
            (Change::DropSlice(other), 4),
            (Change::SetNode(Node::default()), 3),
            (Change::DropNode, 3),
            (Change::SetServiceCidr(cidr("a")), 3),
            (Change::SetServiceCidr(cidr("b")), 4),
            (Change::DropServiceCidr("a".into()), 3),
            (Change::ReplaceServiceCidrs { cidrs: vec![cidr("a")], keep: Vec::new() }, 3),
            (Change::ReplaceServiceCidrs { cidrs: Vec::new(), keep }, 4),
        ] {
            assert_eq!(left(change.clone()), expected, "{change:?}");
        }
    }
}
