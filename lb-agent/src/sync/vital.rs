//! What is queued and what is in force, for who asks whether this proxy is healthy (contract H-3).

use super::Sync;
use crate::datapath::Datapath;
use crate::health;
use crate::model::Family;

impl<D: Datapath> Sync<D> {
    /// Something came from the source. If taking it up never ends, this stands.
    pub(super) fn tell_queued(&self) {
        self.health.queued(Family::V4);
        self.health.queued(Family::V6);
    }

    /// What was queued is in force, but for a family with operations that failed, and for both while
    /// sockets are not served. What does not fit the maps does not count: load balancers would take
    /// all nodes out for it.
    pub(super) fn tell_health(&self) {
        let failed = |family| {
            self.sockets_failed.is_some()
                || self.failed.keys().any(|element| element.family() == family)
        };
        for family in [Family::V4, Family::V6] {
            if failed(family) {
                self.health.queued(family);
            } else {
                self.health.completed(family);
            }
        }
        self.health.node_is_eligible(health::is_eligible(self.store.node()));
    }
}
