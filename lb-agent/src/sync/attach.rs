//! Which programs are where? The socket engine on the cgroup, the packet engine on each
//! interface that leads to a pod or out of the node.

use super::Sync;
use crate::datapath::roles::Role;
use crate::datapath::{Datapath, Interface, Lacking, interfaces};

impl<D: Datapath> Sync<D> {
    /// Puts programs on the cgroup and on interfaces. What cannot be attached is tried again, and
    /// keeps nothing else from being attached.
    pub(super) fn attach_all(&mut self) {
        self.attached = true;
        self.attach_sockets();
        self.changed_interfaces.extend(self.interfaces.keys());
        self.sweep_interfaces();
        self.settle_changed();
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

    /// Takes up what the watch of interfaces tells. What it means for programs is done by
    /// [`Self::settle_changed`], when all that is queued is known.
    pub(super) fn interface(&mut self, change: interfaces::Change) {
        let index = match change {
            interfaces::Change::Is(interface) => {
                let index = interface.index;
                tracing::debug!(interface = interface.name, role = %interface.role, "interface");
                self.links.changed = true;
                let same = |before: &Interface| has_same_programs(before, &interface);
                let settled = match self.interfaces.get(&index) {
                    Some(before) => same(before),
                    // Nothing is on it that was not told, but for what an earlier run has left.
                    None => !has_part(&interface),
                };
                self.interfaces.insert(index, interface);
                if settled {
                    return;
                }
                index
            }
            interfaces::Change::Gone(index) => {
                self.links.changed = true;
                self.interfaces.remove(&index);
                self.gone_interfaces.insert(index);
                index
            }
            interfaces::Change::Addresses(addresses) => {
                self.addresses = Some(addresses);
                self.links.changed = true;
                self.dirty.node = true;
                return;
            }
            interfaces::Change::Primaries(primaries) => {
                self.links.set_primaries(primaries);
                return;
            }
            interfaces::Change::Listed => {
                self.links.changed = true;
                if std::mem::replace(&mut self.interfaces_listed, true) {
                    // Another one may be where one of the same name and index was.
                    self.changed_interfaces.extend(self.interfaces.keys());
                }
                self.sweep_interfaces();
                return;
            }
        };
        if let Some(namespaces) = &self.namespaces {
            namespaces.interfaces_changed();
        }
        self.changed_interfaces.insert(index);
    }

    /// The interface, if it has a part.
    fn with_part(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index).filter(|interface| has_part(interface))
    }

    /// How many interfaces have a part.
    pub(super) fn count_interfaces(&self) -> usize {
        self.interfaces.values().filter(|interface| has_part(interface)).count()
    }

    /// Makes the interfaces that changed have the programs that they should have, once programs are
    /// attached at all. Call it after [`Self::tell_links`].
    pub(super) fn settle_changed(&mut self) {
        if !self.attached {
            return;
        }
        for index in std::mem::take(&mut self.gone_interfaces) {
            // Of the one that went nothing may be taken for the other's.
            if self.with_part(index).is_some()
                && let Err(error) = self.datapath.detach(index)
            {
                tracing::debug!(index, %error, "an interface that was replaced");
            }
        }
        for index in std::mem::take(&mut self.changed_interfaces) {
            self.settle(index);
        }
    }

    /// Forgets interfaces of an earlier run that are gone or have no part any more.
    fn sweep_interfaces(&mut self) {
        if !self.interfaces_listed {
            return;
        }
        let without = self.datapath.attached().into_iter().filter(|&i| self.with_part(i).is_none());
        let without: Vec<u32> = without.collect();
        self.changed_interfaces.extend(without);
    }

    /// Makes an interface have programs if it has a part, and none otherwise. A failure is told when it
    /// begins or has another reason.
    pub(super) fn settle(&mut self, index: u32) {
        let interface = self.with_part(index).cloned();
        let result = match &interface {
            Some(interface) => self.datapath.attach(interface),
            None => self.datapath.detach(index),
        };
        // It may send by XDP now, or not any more.
        self.links.changed = true;
        let name = interface.map(|interface| interface.name).unwrap_or_default();
        let Err(error) = result else {
            if self.unsettled.remove(&index).is_some() {
                tracing::info!(interface = name, index, "what failed on an interface is done");
            }
            return;
        };
        self.counts.failed_attachments += 1;
        let error = error.to_string();
        if self.unsettled.get(&index) != Some(&error) {
            tracing::warn!(
                error,
                interface = name,
                index,
                "an interface does not have the programs that it should have; will be tried again, \
                 every second"
            );
            self.unsettled.insert(index, error);
        }
    }
}

/// Whether programs belong on it.
fn has_part(interface: &Interface) -> bool {
    !matches!(interface.role, Role::Ignored(_))
}

/// Whether nothing has to be attached or taken off when an interface becomes another.
fn has_same_programs(before: &Interface, now: &Interface) -> bool {
    match (has_part(before), has_part(now)) {
        (false, false) => true,
        // What XDP does there depends on its link as well.
        (true, true) if now.role == Role::Uplink => before == now,
        (true, true) => {
            (before.role, before.ethernet, &before.name) == (now.role, now.ethernet, &now.name)
        }
        _ => false,
    }
}
