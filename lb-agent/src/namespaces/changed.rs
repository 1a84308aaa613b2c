//! What of a commit concerns UDP sockets that are connected already?

use std::collections::BTreeSet;

use lb_common::abi::{BackendFlags, BackendId, ServicePortId, proto};

use crate::diff::Op;
use crate::plan::FrontKey;

/// What has changed under UDP sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Service ports of UDP that lost a serving backend.
    pub(super) ports: BTreeSet<ServicePortId>,
    /// Frontends of UDP that are gone.
    pub(super) gone: BTreeSet<FrontKey>,
    /// Frontends of UDP that are new or lead elsewhere: a socket of the node that asked for one
    /// before it was there would never reach anyone (U-5).
    pub(super) new: BTreeSet<FrontKey>,
}

impl Changed {
    /// What these operations change. `udp_port` tells the service port of a backend if it is one of
    /// UDP.
    pub(super) fn of(ops: &[Op], udp_port: impl Fn(BackendId) -> Option<ServicePortId>) -> Self {
        let mut changed = Self::default();
        for op in ops {
            match op {
                Op::BackendWord(id, word) if !word.has(BackendFlags::SERVING) => {
                    changed.ports.extend(udp_port(*id));
                }
                Op::FrontendDelete(key) if key.proto() == proto::UDP => {
                    changed.gone.insert(*key);
                }
                Op::FrontendPut(key, _) if key.proto() == proto::UDP => {
                    changed.new.insert(*key);
                }
                _ => {}
            }
        }
        changed
    }

    /// Nothing of a start: everything is new then, and sockets that were opened before stay with
    /// whoever served them until their backend goes.
    pub(super) fn at_start(mut self) -> Self {
        self.new.clear();
        self
    }

    /// Whether nothing has changed.
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.gone.is_empty() && self.new.is_empty()
    }

    /// Both at once. A frontend is as it was last.
    pub(super) fn add(&mut self, later: Self) {
        self.ports.extend(later.ports);
        self.gone.extend(later.gone);
        self.new.extend(later.new);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{BackendWord, FrontendKey};

    use super::*;
    use crate::model::FrontendKind;

    fn key(port: u16, proto: u8) -> FrontKey {
        FrontKey::V4(FrontendKey::new([1], port, proto))
    }

    #[test]
    fn only_losses_of_udp_and_frontends_of_udp_count() {
        let word = |flags| BackendWord::new(0, flags, 1);
        let put = |key: FrontKey| Op::FrontendPut(key, key.word(3, FrontendKind::ClusterIp));
        let ops = [
            Op::BackendWord(1, word(BackendFlags::PRESENT)),
            Op::BackendWord(2, word(BackendFlags::PRESENT | BackendFlags::SERVING)),
            Op::BackendWord(3, word(0)),
            Op::FrontendDelete(key(53, proto::UDP)),
            Op::FrontendDelete(key(53, proto::TCP)),
            put(key(54, proto::UDP)),
            put(key(54, proto::TCP)),
        ];
        // Backend 3 is one of TCP.
        let mut changed = Changed::of(&ops, |id| (id != 3).then_some(id + 10));
        assert_eq!(changed.ports, [11].into());
        assert_eq!(changed.gone, [key(53, proto::UDP)].into());
        assert_eq!(changed.new, [key(54, proto::UDP)].into());
        assert!(changed.clone().at_start().new.is_empty());
        changed.add(Changed { ports: [12].into(), ..Changed::default() });
        assert_eq!(changed.ports, [11, 12].into());
        assert!(Changed::of(&ops[1..2], Some).is_empty());
    }
}
