//! Which Services changed?
//!
//! [`Store`] holds what counts of the cluster. Applying a [`Change`] tells which Services must be
//! planned again; an object that is the same as before in everything that is used dirties nothing
//! (contract S-12, G-5), be it from an event or from a complete list. Slices and Services may come
//! in any order (E-7): what a slice says is kept under the name of its Service.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Node, ObjectKey, Service, Slice};

/// What a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service is new or changed.
    SetService(Service),
    /// A Service is gone, or does not count any more.
    DropService(ObjectKey),
    /// A slice is new or changed.
    SetSlice(Slice),
    /// A slice is gone, or does not count any more.
    DropSlice(ObjectKey),
    /// A Node is new or changed.
    SetNode(Node),
    /// The Node is gone. It keeps its last known zone (T-11), but nobody may send to it (H-4).
    DropNode,
    /// The complete list of Services. What is held and neither in it nor in `keep` is gone.
    ReplaceServices {
        /// All Services that count.
        services: Vec<Service>,
        /// Services that exist but could not be read: the last good state stays.
        keep: Vec<ObjectKey>,
    },
    /// The complete list of slices, likewise.
    ReplaceSlices {
        /// All slices that count.
        slices: Vec<Slice>,
        /// Slices that exist but could not be read.
        keep: Vec<ObjectKey>,
    },
}

/// What must be looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose ports must be planned again, those that are gone among them.
    pub services: BTreeSet<ObjectKey>,
    /// The Node changed.
    pub node: bool,
}

impl Dirty {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node
    }
}

/// How much is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services.
    pub services: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Endpoints in all slices.
    pub endpoints: usize,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Store {
    services: HashMap<ObjectKey, Service>,
    slices: HashMap<ObjectKey, Slice>,
    /// Names of the slices of a Service, whether the Service is known or not.
    slices_of: HashMap<ObjectKey, Vec<Arc<str>>>,
    node: Option<Node>,
}

impl Store {
    /// Applies the changes of a burst together, so that nothing in between is ever planned: an
    /// endpoint that moves from one slice to another is never lost (E-18).
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            self.apply(change, &mut dirty);
        }
        dirty
    }

    /// Applies one change and adds to `dirty` what it touches.
    pub fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::SetService(service) => self.set_service(service, dirty),
            Change::DropService(key) => self.drop_service(&key, dirty),
            Change::SetSlice(slice) => self.set_slice(slice, dirty),
            Change::DropSlice(key) => self.drop_slice(&key, dirty),
            Change::SetNode(node) => self.set_node(node, dirty),
            Change::DropNode => {
                if let Some(node) = &mut self.node {
                    node.deleting = true;
                }
            }
            Change::ReplaceServices { services, keep } => {
                for key in gone(&self.services, services.iter().map(|s| &s.key).chain(&keep)) {
                    self.drop_service(&key, dirty);
                }
                for service in services {
                    self.set_service(service, dirty);
                }
            }
            Change::ReplaceSlices { slices, keep } => {
                for key in gone(&self.slices, slices.iter().map(|s| &s.key).chain(&keep)) {
                    self.drop_slice(&key, dirty);
                }
                for slice in slices {
                    self.set_slice(slice, dirty);
                }
            }
        }
    }

    /// A Service, if it is known and counts.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The slices of a Service, in no order.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Slice> {
        let namespace = &service.namespace;
        self.slices_of.get(service).into_iter().flatten().filter_map(move |name| {
            self.slices.get(&ObjectKey { namespace: namespace.clone(), name: name.clone() })
        })
    }

    /// This node, once its object was seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// How much is held.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.services.len(),
            slices: self.slices.len(),
            endpoints: self.slices.values().map(|slice| slice.endpoints.len()).sum(),
        }
    }

    fn set_service(&mut self, service: Service, dirty: &mut Dirty) {
        if self.services.get(&service.key) != Some(&service) {
            dirty.services.insert(service.key.clone());
            self.services.insert(service.key.clone(), service);
        }
    }

    fn drop_service(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        if let Some((key, _)) = self.services.remove_entry(key) {
            dirty.services.insert(key);
        }
    }

    fn set_slice(&mut self, slice: Slice, dirty: &mut Dirty) {
        let service = slice.service_key();
        let name = slice.key.name.clone();
        match self.slices.entry(slice.key.clone()) {
            Entry::Occupied(held) if *held.get() == slice => {}
            Entry::Occupied(mut held) => {
                let old = held.insert(slice).service_key();
                if old != service {
                    // A new label is a removal from one Service and an addition to another (E-6).
                    self.unlink(&old, &name, dirty);
                    self.link(service, name, dirty);
                } else if self.services.contains_key(&service) {
                    dirty.services.insert(service);
                }
            }
            Entry::Vacant(free) => {
                free.insert(slice);
                self.link(service, name, dirty);
            }
        }
    }

    fn drop_slice(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        if let Some(slice) = self.slices.remove(key) {
            self.unlink(&slice.service_key(), &key.name, dirty);
        }
    }

    fn set_node(&mut self, node: Node, dirty: &mut Dirty) {
        // That it is about to go changes nothing for its Services.
        let (deleting, removal_planned) = (node.deleting, node.removal_planned);
        let held = self.node.take().map(|held| Node { deleting, removal_planned, ..held });
        dirty.node |= held.as_ref() != Some(&node);
        self.node = Some(node);
    }

    fn link(&mut self, service: ObjectKey, slice: Arc<str>, dirty: &mut Dirty) {
        if self.services.contains_key(&service) {
            dirty.services.insert(service.clone());
        }
        self.slices_of.entry(service).or_default().push(slice);
    }

    fn unlink(&mut self, service: &ObjectKey, slice: &str, dirty: &mut Dirty) {
        if let Some(names) = self.slices_of.get_mut(service) {
            names.retain(|name| **name != *slice);
            if names.is_empty() {
                self.slices_of.remove(service);
            }
        }
        if self.services.contains_key(service) {
            dirty.services.insert(service.clone());
        }
    }
}

/// The keys that are held but not in `listed`.
fn gone<'a, T>(
    held: &HashMap<ObjectKey, T>,
    listed: impl Iterator<Item = &'a ObjectKey>,
) -> Vec<ObjectKey> {
    if held.is_empty() {
        return Vec::new();
    }
    let listed: HashSet<_> = listed.collect();
    held.keys().filter(|key| !listed.contains(key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ClusterIps, Conditions, Endpoint, Family, Protocol, ServicePort, SlicePort,
    };

    fn service(name: &str) -> Service {
        Service {
            key: ObjectKey::new("default", name),
            created_s: 1,
            cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None },
            ports: [ServicePort { name: "http".into(), port: 80, protocol: Protocol::Tcp }].into(),
            internal_local: false,
            affinity_timeout_s: None,
        }
    }

    fn slice(name: &str, service: &str, last_octet: u8) -> Slice {
        Slice {
            key: ObjectKey::new("default", name),
            service: service.into(),
            family: Family::V4,
            ports: [SlicePort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }].into(),
            endpoints: [Endpoint {
                addr: [10, 0, 0, last_octet].into(),
                conditions: Conditions::READY,
            }]
            .into(),
        }
    }

    fn services(dirty: &Dirty) -> Vec<&str> {
        dirty.services.iter().map(|key| &*key.name).collect()
    }

    #[test]
    fn an_object_that_did_not_change_dirties_nothing() {
        let mut store = Store::default();
        let all = [Change::SetService(service("web")), Change::SetSlice(slice("web-1", "web", 1))];
        assert_eq!(services(&store.apply_all(all.clone())), ["web"]);
        assert!(store.apply_all(all).is_empty());
    }

    #[test]
    fn a_slice_of_an_unknown_service_is_kept_until_the_service_comes() {
        let mut store = Store::default();
        assert!(store.apply_all([Change::SetSlice(slice("web-1", "web", 1))]).is_empty());
        assert_eq!(services(&store.apply_all([Change::SetService(service("web"))])), ["web"]);
        assert_eq!(store.slices_of(&ObjectKey::new("default", "web")).count(), 1);
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut store = Store::default();
        store.apply_all([
            Change::SetService(service("old")),
            Change::SetService(service("new")),
            Change::SetSlice(slice("s", "old", 1)),
        ]);
        let dirty = store.apply_all([Change::SetSlice(slice("s", "new", 1))]);
        assert_eq!(services(&dirty), ["new", "old"]);
        assert_eq!(store.slices_of(&ObjectKey::new("default", "old")).count(), 0);
        assert_eq!(store.slices_of(&ObjectKey::new("default", "new")).count(), 1);
    }

    #[test]
    fn a_complete_list_dirties_what_differs_and_nothing_else() {
        let mut store = Store::default();
        store.apply_all([
            Change::SetService(service("same")),
            Change::SetService(service("gone")),
            Change::SetService(service("changed")),
            Change::SetService(service("unreadable")),
        ]);
        let changed = Service { internal_local: true, ..service("changed") };
        let dirty = store.apply_all([Change::ReplaceServices {
            services: vec![service("same"), changed, service("added")],
            keep: vec![ObjectKey::new("default", "unreadable")],
        }]);
        assert_eq!(services(&dirty), ["added", "changed", "gone"]);
        assert_eq!(store.counts().services, 4);
    }

    #[test]
    fn a_complete_list_of_slices_drops_those_not_in_it() {
        let mut store = Store::default();
        store.apply_all([
            Change::SetService(service("web")),
            Change::SetSlice(slice("a", "web", 1)),
            Change::SetSlice(slice("b", "web", 2)),
        ]);
        let same = Change::ReplaceSlices {
            slices: vec![slice("b", "web", 2), slice("a", "web", 1)],
            keep: Vec::new(),
        };
        assert!(store.apply_all([same]).is_empty());
        let fewer = Change::ReplaceSlices { slices: vec![slice("b", "web", 2)], keep: Vec::new() };
        assert_eq!(services(&store.apply_all([fewer])), ["web"]);
        assert_eq!(store.counts(), Counts { services: 1, slices: 1, endpoints: 1 });
    }

    #[test]
    fn t_11_h_4_a_node_that_goes_keeps_its_zone_and_dirties_nothing() {
        let mut store = Store::default();
        let node = Node { name: "node-1".into(), zone: "a".into(), ..Node::default() };
        assert!(store.apply_all([Change::DropNode]).is_empty());
        assert_eq!(store.node(), None);
        assert!(store.apply_all([Change::SetNode(node.clone())]).node);
        let tainted = Node { removal_planned: true, ..node.clone() };
        assert!(store.apply_all([Change::SetNode(tainted.clone())]).is_empty());
        assert_eq!(store.node(), Some(&tainted));
        assert!(store.apply_all([Change::DropNode]).is_empty());
        assert!(store.node().is_some_and(|node| node.deleting && &*node.zone == "a"));
        assert!(store.apply_all([Change::SetNode(node.clone())]).is_empty());
        let moved = Node { zone: "b".into(), ..node };
        assert!(store.apply_all([Change::SetNode(moved)]).node);
    }

    #[test]
    fn a_removed_service_is_dirty_once_and_comes_back_with_its_slices() {
        let mut store = Store::default();
        let key = ObjectKey::new("default", "web");
        store.apply_all([
            Change::SetService(service("web")),
            Change::SetSlice(slice("a", "web", 1)),
        ]);
        assert_eq!(services(&store.apply_all([Change::DropService(key.clone())])), ["web"]);
        assert!(store.apply_all([Change::DropService(key.clone())]).is_empty());
        assert_eq!(services(&store.apply_all([Change::SetService(service("web"))])), ["web"]);
        assert_eq!(store.slices_of(&key).count(), 1);
    }
}
