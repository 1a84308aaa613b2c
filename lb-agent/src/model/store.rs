//! Which Services changed?
//!
//! [`Store`] holds what counts of the cluster. Applying a [`Change`] tells which Services must be
//! planned again; an object that is the same as before in everything that is used dirties nothing
//! (contract S-12, G-5), be it from an event or from a complete list. Slices and Services may come
//! in any order (E-7): what a slice says is kept under the name of its Service.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::index::Index;
use super::{Node, ObjectKey, Protocol, Service, ServiceCidr, Slice};

/// Namespace and name of the Service whose endpoints the API servers themselves keep.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

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
    /// A `ServiceCIDR` is new or changed.
    SetServiceCidr(ServiceCidr),
    /// The `ServiceCIDR` of that name is gone.
    DropServiceCidr(Arc<str>),
    /// The complete list of `ServiceCIDR`s.
    ReplaceServiceCidrs {
        /// All of them.
        cidrs: Vec<ServiceCidr>,
        /// Those that exist but could not be read: the last good state stays. Of no namespace.
        keep: Vec<ObjectKey>,
    },
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
    /// Services whose ports must be planned again, those that are gone among them. Those that a
    /// change of the Node concerns are among them already.
    pub services: BTreeSet<ObjectKey>,
    /// The Node or a `ServiceCIDR` changed.
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
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    index: Index,
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
            Change::SetServiceCidr(cidr) => self.set_service_cidr(cidr, dirty),
            Change::DropServiceCidr(name) => {
                dirty.node |= self.service_cidrs.remove(&name).is_some();
            }
            Change::ReplaceServiceCidrs { cidrs, keep } => {
                let listed: HashSet<_> = cidrs
                    .iter()
                    .map(|cidr| &cidr.name)
                    .chain(keep.iter().map(|k| &k.name))
                    .collect();
                let before = self.service_cidrs.len();
                self.service_cidrs.retain(|name, _| listed.contains(name));
                dirty.node |= self.service_cidrs.len() != before;
                for cidr in cidrs {
                    self.set_service_cidr(cidr, dirty);
                }
            }
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

    /// The `ServiceCIDR`s, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.service_cidrs.values()
    }

    /// Whether an address that `service` claims as external is the clusterIP of another Service. Only
    /// to be asked of a Service that is held.
    pub fn is_cluster_ip_of_another(&self, addr: IpAddr, service: &Service) -> bool {
        self.index.cluster_ips_at(addr) > u32::from(service.cluster_ips.has(addr))
    }

    /// Where the API servers of the cluster listen, as the slices of its own Service tell.
    pub fn api_servers(&self) -> Vec<(IpAddr, u16)> {
        let service = ObjectKey::new(API_SERVER.0, API_SERVER.1);
        let listeners = self.slices_of(&service).flat_map(|slice| {
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.flat_map(|port| slice.endpoints.iter().map(|at| (at.addr, port.port)))
        });
        listeners.collect()
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
        let key = service.key.clone();
        if self.services.get(&key) == Some(&service) {
            return;
        }
        let old = self.services.remove(&key);
        if let Some(old) = &old {
            self.index.remove(old);
        }
        self.index.add(&service, &self.services);
        if old.as_ref().is_none_or(|old| old.cluster_ips != service.cluster_ips) {
            dirty.services.extend(old.iter().flat_map(|old| self.index.rivals(old)));
            dirty.services.extend(self.index.rivals(&service));
        }
        self.services.insert(key.clone(), service);
        dirty.services.insert(key);
    }

    fn drop_service(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        if let Some((key, old)) = self.services.remove_entry(key) {
            self.index.remove(&old);
            dirty.services.extend(self.index.rivals(&old));
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
                if old == service {
                    self.touch(&service, dirty);
                } else {
                    // A new label is a removal from one Service and an addition to another (E-6).
                    self.unlink(&old, &name, dirty);
                    self.link(service, name, dirty);
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
        let is_same = held.as_ref() == Some(&node);
        let held = held.unwrap_or_default();
        dirty.node |= !is_same;
        if held.zone != node.zone {
            dirty.services.extend(self.services.keys().cloned()); // T-11
        } else if !is_same {
            self.touch_guarded(dirty);
        }
        self.node = Some(node);
    }

    fn set_service_cidr(&mut self, cidr: ServiceCidr, dirty: &mut Dirty) {
        if self.service_cidrs.get(&cidr.name) != Some(&cidr) {
            self.service_cidrs.insert(cidr.name.clone(), cidr);
            dirty.node = true;
        }
    }

    fn link(&mut self, service: ObjectKey, slice: Arc<str>, dirty: &mut Dirty) {
        self.touch(&service, dirty);
        self.slices_of.entry(service).or_default().push(slice);
    }

    fn unlink(&mut self, service: &ObjectKey, slice: &str, dirty: &mut Dirty) {
        if let Some(names) = self.slices_of.get_mut(service) {
            names.retain(|name| **name != *slice);
            if names.is_empty() {
                self.slices_of.remove(service);
            }
        }
        self.touch(service, dirty);
    }

    /// Notes that the slices of a Service changed.
    fn touch(&self, service: &ObjectKey, dirty: &mut Dirty) {
        if self.services.contains_key(service) {
            dirty.services.insert(service.clone());
        }
        if is_api_server(service) {
            self.touch_guarded(dirty);
        }
    }

    /// Notes the Services that may claim what belongs to the node or the cluster itself.
    fn touch_guarded(&self, dirty: &mut Dirty) {
        let reached_from_outside = |service: &&Service| {
            service.external.is_some() || service.ports.iter().any(|port| port.node_port != 0)
        };
        let guarded = self.services.values().filter(reached_from_outside);
        dirty.services.extend(guarded.map(|service| service.key.clone()));
    }
}

fn is_api_server(service: &ObjectKey) -> bool {
    *service.name == *API_SERVER.1 && *service.namespace == *API_SERVER.0
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
