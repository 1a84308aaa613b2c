//! What became of XDP on an interface, and who is told?

use lb_common::abi::MetaWord;
use tokio::sync::mpsc;

use super::Sync;
use super::apply::log_failures;
use crate::datapath::Datapath;
use crate::diff::Op;

/// The next interface that is told of; never, where nobody tells any more.
pub(super) async fn changed(told: &mut Option<mpsc::Receiver<u32>>) -> u32 {
    loop {
        let Some(receiver) = told else { return std::future::pending().await };
        match receiver.recv().await {
            Some(index) => return index,
            None => *told = None,
        }
    }
}

impl<D: Datapath> Sync<D> {
    /// Has programs and `status` told of it.
    pub(super) fn xdp(&mut self) {
        let demotions = self.xdp_demotions.saturating_add(self.datapath.xdp_demotions());
        log_failures(&self.datapath.apply(&[Op::Meta(MetaWord::XdpDemotions, demotions)]));
        self.links.changed = true;
    }
}
