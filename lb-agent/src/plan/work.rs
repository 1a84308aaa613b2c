//! One call of plan: who owns what now, what is programmed for it, and what is told?

use std::collections::{BTreeMap, BTreeSet};

use super::owners::claimed;
use super::shares::Usage;
use super::table::{Batch, FrontKey, PortChange};
use super::{Error, Planner, PortIndex, Report, name, port, ranges};
use crate::model::Family;

/// What one call of plan has to look at.
#[derive(Default)]
pub(super) struct Work {
    /// Frontends whose owner may change.
    pub(super) touched: BTreeSet<FrontKey>,
    /// Service ports to program.
    pub(super) dirty: BTreeSet<PortIndex>,
    /// Frontends touched so far.
    seen: BTreeSet<FrontKey>,
    /// Service ports looked at so far.
    visited: BTreeSet<PortIndex>,
    /// Why each of them is not programmed as desired, if it is not.
    pub(super) errors: BTreeMap<PortIndex, Option<Error>>,
    /// Service ports that lost their last frontend at some point of this batch.
    lost: BTreeSet<PortIndex>,
}

impl Planner {
    /// Settles ownership, programs what is dirty, and tells the difference.
    pub(super) fn run(&mut self, mut work: Work) -> Batch {
        let mut batch = Batch { epoch: self.pools.epoch, ..Batch::default() };
        let retry = std::mem::take(&mut self.room);
        if retry {
            for index in self.failed.clone() {
                if let Some(port) = self.port_mut(index) {
                    port.barred = false;
                    work.dirty.insert(index);
                }
                work.touched.extend(self.wanted(index));
            }
            work.touched.extend(&self.unplaced);
        }
        // Each round either ends, or bars one more service port from owning frontends, or gives a
        // place to one more frontend.
        loop {
            let touched = std::mem::take(&mut work.touched);
            work.seen.extend(&touched);
            self.settle(touched, &mut work);
            let dirty = std::mem::take(&mut work.dirty);
            if dirty.is_empty() {
                // What goes makes room at once, because it is deleted first.
                work.touched.extend(self.unplaced.iter().filter(|front| self.may_be_placed(front)));
                if work.touched.is_empty() {
                    break;
                }
            }
            for index in self.in_turn(dirty) {
                self.program(index, &mut work, &mut batch);
            }
        }
        for index in std::mem::take(&mut work.lost) {
            self.retire(index, &mut batch);
        }
        for front in &work.seen {
            self.frontend_change(*front, &mut batch);
            self.conflict(*front, &mut batch);
        }
        self.settle_addresses(retry, &mut work, &mut batch);
        for (index, error) in work.errors {
            self.note(index, error, &mut batch);
        }
        for index in work.visited {
            self.forget(index);
        }
        batch.freed = self.waiting() == Some(batch.epoch);
        if batch.freed {
            self.pools.epoch += 1;
        }
        batch
    }

    fn wanted(&self, index: PortIndex) -> Vec<FrontKey> {
        let Some(port) = self.port(index) else { return Vec::new() };
        claimed(port.desired.as_ref(), port.key.protocol).into_keys().collect()
    }

    fn program(&mut self, index: PortIndex, work: &mut Work, batch: &mut Batch) {
        work.visited.insert(index);
        let leave = self.shares.leave(self.port(index), &self.capacity);
        let wanted = self.wanted(index);
        let unplaced = wanted.iter().filter(|&front| self.unplaced.contains(front)).count();
        let Some(port) = self.ports.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        if port.owned.is_empty() && port.table.is_some() {
            work.lost.insert(index);
        }
        let mut error = (unplaced > 0).then(|| Error::Full {
            map: if port.key.family == Family::V4 { "FRONTENDS4" } else { "FRONTENDS6" },
            needed: u32::try_from(unplaced).unwrap_or(u32::MAX),
            capacity: self.capacity.frontends,
            flag: "--max-frontends",
        });
        if let Some(desired) = &port.desired
            && !port.owned.is_empty()
        {
            let name = if port.table.is_some() { None } else { name::encode(&port.key) };
            let result = if name.is_none() && port.table.is_none() {
                Err(Error::NameTooLong)
            } else {
                let family = port.key.family;
                let before = Usage::of(port.table.as_ref());
                let result =
                    port::program(&mut port.table, desired, family, leave, &mut self.pools);
                let mut without = None;
                if let Some(table) = &mut port.table {
                    let was_guarded = table.is_guarded;
                    let (wanted, added) = (&desired.source_ranges, &mut batch.source_ranges);
                    let leave = leave.source_ranges;
                    without = ranges::program(table, wanted, leave, &mut self.pools, added);
                    if table.is_guarded != was_guarded {
                        work.seen.extend(&port.owned);
                    }
                }
                self.shares.count(&port.key.namespace, before, Usage::of(port.table.as_ref()));
                result.map(|(change, left_out)| (change, left_out.or(without)))
            };
            match result {
                Ok((change, left_out)) => {
                    error = left_out.or(error);
                    self.programmed += usize::from(name.is_some());
                    let change = PortChange { name, ..change };
                    if !change.is_empty() {
                        batch.ports.push(change);
                    }
                }
                Err(full) => {
                    if port.table.is_none() {
                        port.barred = true;
                        work.touched.extend(&port.owned);
                    }
                    error = Some(full);
                }
            }
        } else if port.barred {
            // It had to give up its frontends, in this very batch or before; why is known.
            error = work.errors.remove(&index).unwrap_or_else(|| port.error.clone());
        }
        work.errors.insert(index, error);
    }

    /// Remembers why a service port is not programmed, and tells it once.
    fn note(&mut self, index: PortIndex, error: Option<Error>, batch: &mut Batch) {
        let Some(port) = self.ports.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        match &error {
            Some(error) => {
                let known = port.error.as_ref().is_some_and(|known| known.same_cause(error));
                if self.failed.insert(index) || !known {
                    let (port, error) = (Box::new(port.key.clone()), error.clone());
                    batch.reports.push(Report::Unprogrammed { port, error });
                }
            }
            None => {
                if self.failed.remove(&index) && port.desired.is_some() {
                    let port = Box::new(port.key.clone());
                    batch.reports.push(Report::Recovered { port });
                }
            }
        }
        port.error = error;
    }

    fn retire(&mut self, index: PortIndex, batch: &mut Batch) {
        let Some(port) = self.ports.get_mut(index as usize).and_then(Option::as_mut) else {
            return;
        };
        if port.owned.is_empty()
            && let Some(table) = port.table.take()
        {
            self.programmed -= 1;
            self.shares.count(&port.key.namespace, Usage::of(Some(&table)), Usage::default());
            batch.ports.push(port::retire(&table, &mut self.pools));
        }
    }

    /// Drops what is neither desired nor programmed.
    fn forget(&mut self, index: PortIndex) {
        if self.port(index).is_some_and(|port| port.desired.is_none() && port.table.is_none())
            && let Some(port) = self.ports.get_mut(index as usize).and_then(Option::take)
        {
            self.by_key.remove(&port.key);
            self.failed.remove(&index);
            self.free_ports.push(index);
        }
    }
}
