//! Which events of a watch are taken up together?
//!
//! All that have arrived. And where a slice that had endpoints is left with none that is of use, those
//! of the next moments too: while endpoints move from one slice to another, nobody may see a Service
//! without any (contract E-18).

use std::time::Duration;

use tokio::time::Instant;

use crate::convert::Report;
use crate::model::Change;

/// Changes that are sent together at most, where the API server sends many at once.
pub(super) const BATCH: usize = 512;
/// How long the other half of a move is waited for: some writes of a controller to the API server.
const MOVE: Duration = Duration::from_millis(50);

/// What some events say together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) reports: Vec<Report>,
    pub(super) version: Option<String>,
    /// More is waited for until then; none: it is only about what has arrived.
    pub(super) wait_until: Option<Instant>,
}

impl Batch {
    /// Takes up what an event says; `is_new` if there was no such object before.
    pub(super) fn push(&mut self, change: Change, is_new: bool) {
        let takes_all = match &change {
            Change::DropSlice(_) => true,
            Change::SetSlice(slice) => !slice.endpoints.iter().any(|at| at.conditions.counts()),
            _ => false,
        };
        if takes_all && !is_new {
            self.wait_until.get_or_insert_with(|| Instant::now() + MOVE);
        }
        self.changes.push(change);
    }
}
