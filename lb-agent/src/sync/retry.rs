//! When is what failed tried again, and when is what went out of use given to others?

use std::io;
use std::time::{Duration, Instant};

use super::Sync;
use super::apply::Element;
use crate::datapath::Datapath;
use crate::diff::{self, Op};

/// What could not be done is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

impl<D: Datapath> Sync<D> {
    /// Whether something could not be done.
    pub(super) fn wants_retry(&self) -> bool {
        !self.failed.is_empty()
            || !self.unsettled.is_empty()
            || self.links.wants_retry()
            || self.wants_sockets()
            || (self.grace.is_none() && self.planner.waiting().is_some())
    }

    /// Whether the time has come to try again.
    pub(super) fn retry_is_due(&self) -> bool {
        self.retry_at.is_some_and(|at| at <= Instant::now())
    }

    /// Sets the time of the next attempt. One that is set stays: events that come meanwhile do not
    /// put it off.
    pub(super) fn schedule_retry(&mut self) {
        if !self.wants_retry() {
            self.retry_at = None;
        } else if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
        self.grace_failed = false;
        let failed = std::mem::take(&mut self.failed);
        if !failed.is_empty() {
            let ops: Vec<Op> = failed.into_values().collect();
            // That it failed was told when it began.
            if let Some((_, error)) = self.try_ops(&ops).first() {
                tracing::debug!(%error, "still fails");
            } else {
                tracing::info!(operations = ops.len(), "what failed is done");
            }
        }
        if self.wants_sockets() {
            self.attach_sockets();
        }
        let unsettled: Vec<u32> = self.unsettled.keys().copied().collect();
        for index in unsettled {
            self.settle(index);
        }
    }

    /// Waits for a grace period elsewhere, if something waits for one. As long as a frontend could
    /// not be written or a source range not be deleted, what they lead to is in use.
    pub(super) fn start_grace(&mut self) {
        let in_use = |(element, op): (&Element, &Op)| {
            matches!(element, Element::Frontend(_)) || matches!(op, Op::SourceRangeDelete(_))
        };
        if self.grace.is_some() || self.grace_failed || self.failed.iter().any(in_use) {
            return;
        }
        let Some(epoch) = self.planner.waiting() else { return };
        self.grace = Some(epoch);
        let (grace, done) = (self.datapath.grace(), self.grace_done.clone());
        let wait = move || {
            let result = grace.wait();
            // Nobody listens any more: the loop has ended.
            drop(done.blocking_send(result));
        };
        if let Err(error) = std::thread::Builder::new().name("grace".into()).spawn(wait) {
            tracing::warn!(%error, "cannot start a thread; ids and slots are not reused for now");
            self.grace = None;
            self.grace_failed = true;
        }
    }

    pub(super) fn grace_done(&mut self, result: io::Result<()>) {
        let Some(epoch) = self.grace.take() else { return };
        match result {
            Ok(()) => {
                let retired = self.planner.release(epoch);
                self.run_ops(&diff::clear(&retired));
            }
            Err(error) => {
                self.grace_failed = true;
                tracing::warn!(%error, "no grace period; ids and slots are not reused for now");
            }
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
