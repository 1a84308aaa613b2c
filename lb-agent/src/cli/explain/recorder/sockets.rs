//! Whose socket asks, and what would be remembered in it?

use lb_common::abi::{NetnsFlags, NetnsRecord, SocketKey, SocketLink, SocketPeer, SocketRecord};
use lb_common::select::Choice;
use lb_common::tables::SocketTables;

use super::Recorder;
use crate::cli::explain::reader::Reader;

impl<R: Reader> SocketTables for Recorder<'_, R> {
    fn cookie(&self) -> u64 {
        0
    }

    fn netns_cookie(&self) -> u64 {
        self.asker.cookie
    }

    fn node_netns(&self) -> u64 {
        self.asker.node
    }

    fn netns(&self, _: u64) -> Option<NetnsRecord> {
        let record = self.asker.record;
        if !self.told_netns.replace(true) {
            let bypassed = record.is_some_and(|r| r.flags & NetnsFlags::BYPASS != 0);
            let what = if bypassed {
                ", which redirects its own traffic: its sockets are left alone"
            } else {
                ""
            };
            let text = format!("network namespace: {}{what}", self.asker.namespace());
            self.note("namespace", text);
        }
        record
    }

    fn node_only(&self) -> bool {
        if self.asker.node_only {
            let text = "only sockets of the node's own network namespace are served";
            self.note("scope", text.to_owned());
        }
        self.asker.node_only
    }

    /// Which process asks is not known.
    fn cgroup_bypassed(&self) -> bool {
        let cgroups = self.asker.bypassed_cgroups;
        if cgroups > 0 {
            let text = format!("cgroup: taken for none of the {cgroups} that are left alone");
            self.note("cgroup", text);
        }
        false
    }

    fn remove_record(&self) {}

    fn is_connected(&self) -> bool {
        false
    }

    /// A socket that is connected for the first time.
    fn record(&self) -> Option<SocketRecord> {
        None
    }

    fn set_connected(&self, _: &[u32; 4], _: u16, to: &Choice) -> bool {
        let backend = to.id;
        self.note(
            "remember",
            format!("would remember the VIP and backend {backend} in the socket"),
        );
        true
    }

    fn set_disconnected(&self) {}

    fn set_head(&self, _: &SocketLink, _: u32) -> bool {
        true
    }

    fn peer(&self, _: &SocketKey) -> Option<SocketPeer> {
        None
    }

    fn set_peer(&self, _: &SocketKey, _: &SocketPeer) -> bool {
        true
    }

    fn remove_peer(&self, _: &SocketKey) {}
}
