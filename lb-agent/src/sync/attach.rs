//! Which programs are where? The socket engine on the cgroup, the packet engine on each
//! interface that leads to a pod or out of the node.

use super::Sync;
use crate::datapath::roles::Role;
use crate::datapath::{Datapath, Lacking, interfaces};

impl<D: Datapath> Sync<D> {
    /// Puts programs on the cgroup and on interfaces. What cannot be attached is tried again, and
    /// keeps nothing else from being attached.
    pub(super) fn attach_all(&mut self) {
        self.attached = true;
        self.attach_sockets();
        let indices: Vec<u32> = self.interfaces.keys().copied().collect();
        for index in indices {
            self.settle(index);
        }
        self.sweep_interfaces();
    }

    /// Whether hooks of sockets are missing that may be had later.
    pub(super) fn wants_sockets(&self) -> bool {
        let may_pass = || self.datapath.lacking().iter().any(Lacking::may_pass);
        self.attached && (self.sockets_failed.is_some() || may_pass())
    }

    /// Attaches the hooks of sockets that are not attached yet. Told when it begins to fail, fails
    /// for another reason, or works again.
    pub(super) fn attach_sockets(&mut self) {
        let error = self.datapath.attach_sockets().err().map(|error| error.to_string());
        if let Some(error) = &error {
            self.counts.failed_attachments += 1;
            if self.sockets_failed.as_ref() != Some(error) {
                tracing::error!(
                    error,
                    "the socket engine is not complete: connections of host processes may not reach \
                     Services; will be tried again"
                );
            }
        } else if self.sockets_failed.is_some() {
            tracing::info!("the socket engine is complete");
        }
        self.sockets_failed = error;
    }

    pub(super) fn interface(&mut self, change: interfaces::Change) {
        let index = match change {
            interfaces::Change::Is(interface) => {
                let index = interface.index;
                tracing::debug!(interface = interface.name, role = %interface.role, "interface");
                if !matches!(interface.role, Role::Ignored(_)) {
                    self.interfaces.insert(index, interface);
                } else if self.interfaces.remove(&index).is_none() {
                    return;
                }
                index
            }
            interfaces::Change::Gone(index) => {
                self.interfaces.remove(&index);
                index
            }
            interfaces::Change::Addresses(addresses) => {
                self.addresses = Some(addresses);
                self.dirty.node = true;
                return;
            }
            interfaces::Change::Listed => {
                self.interfaces_listed = true;
                self.sweep_interfaces();
                return;
            }
        };
        if let Some(namespaces) = &self.namespaces {
            namespaces.interfaces_changed();
        }
        if self.attached {
            self.settle(index);
        }
    }

    /// Forgets interfaces of an earlier run that are gone or have no part any more.
    fn sweep_interfaces(&mut self) {
        if !self.attached || !self.interfaces_listed {
            return;
        }
        for index in self.datapath.attached() {
            if !self.interfaces.contains_key(&index) {
                self.settle(index);
            }
        }
    }

    /// Makes an interface have programs if it has a part, and none otherwise.
    pub(super) fn settle(&mut self, index: u32) {
        let result = match self.interfaces.get(&index) {
            Some(interface) => self.datapath.attach(interface),
            None => self.datapath.detach(index),
        };
        if let Err(error) = result {
            self.counts.failed_attachments += 1;
            let name = self.interfaces.get(&index).map_or("", |interface| &interface.name);
            tracing::warn!(%error, interface = name, index, "will be tried again");
            self.unsettled.insert(index);
        } else {
            self.unsettled.remove(&index);
        }
    }
}
