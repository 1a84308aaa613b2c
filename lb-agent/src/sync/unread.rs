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
                Change::SetService(service) => (SERVICE, &service.key),
                Change::DropService(key) => (SERVICE, key),
                Change::SetSlice(slice) => (SLICE, &slice.key),
                Change::DropSlice(key) => (SLICE, key),
                Change::SetNode(_)
                | Change::DropNode
                | Change::SetServiceCidr(_)
                | Change::DropServiceCidr(_)
                | Change::ReplaceServiceCidrs { .. } => continue,
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
                services.push(key.clone());
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
        self.objects.retain(|(of, namespace, name)| {
            let kept =
                *of != kind || keep.iter().any(|k| k.namespace == *namespace && k.name == *name);
            if !kept {
                gone.push(ObjectKey { namespace: namespace.clone(), name: name.clone() });
            }
            kept
        });
        gone
    }
}
