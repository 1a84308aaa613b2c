//! How much of the maps may one namespace have?
//!
//! Who may write Services and slices in one namespace chooses how many backends, slots, ids and source
//! ranges they need: one Service of a thousand ports multiplies all of them by as many. What all others
//! need must still find room.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lb_common::abi::BackendFlags;

use super::port::Table;
use super::{Capacity, Planner, Port, PortIndex};
use crate::model::DesiredPort;

/// A namespace has a great part if it would have more than one of so many.
const GREAT: usize = 4;
/// One of so many elements is for those that have not.
const LEFT: usize = 32;

/// Elements of the maps that namespaces share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) service_ports: usize,
    pub(super) backends: usize,
    pub(super) slots: usize,
    pub(super) source_ranges: usize,
}

impl Usage {
    /// What is programmed of a service port.
    pub(super) fn of(table: Option<&Table>) -> Self {
        table.map_or(Self::default(), |table| Self {
            service_ports: 1,
            backends: table.backends.len(),
            slots: table.sets.iter().map(|set| set.ids.len()).sum(),
            source_ranges: table.ranges.len(),
        })
    }

    fn wanted(desired: Option<&DesiredPort>) -> Self {
        let Some(desired) = desired else { return Self::default() };
        let sets = |flags: u16| {
            let of = [BackendFlags::IN_CLUSTER, BackendFlags::IN_LOCAL];
            of.into_iter().filter(|flag| flags & flag != 0).count()
        };
        Self {
            service_ports: 1,
            backends: desired.backends.len(),
            slots: desired.backends.iter().map(|backend| sets(backend.flags)).sum(),
            source_ranges: desired.source_ranges.len(),
        }
    }

    fn each(self, other: Self, f: impl Fn(usize, usize) -> usize) -> Self {
        Self {
            service_ports: f(self.service_ports, other.service_ports),
            backends: f(self.backends, other.backends),
            slots: f(self.slots, other.slots),
            source_ranges: f(self.source_ranges, other.source_ranges),
        }
    }

    fn minus(self, other: Self) -> Self {
        self.each(other, usize::saturating_sub)
    }

    fn plus(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
}

/// What each namespace has.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Arc<str>, Usage>);

impl Shares {
    /// A service port of the namespace has something else than before.
    pub(super) fn count(&mut self, namespace: &Arc<str>, before: Usage, after: Usage) {
        if before == after {
            return;
        }
        let count = self.0.entry(namespace.clone()).or_default();
        *count = count.minus(before).plus(after);
        if *count == Usage::default() {
            self.0.remove(namespace);
        }
    }

    /// How many free ones of each a service port has to leave to others.
    pub(super) fn leave(&self, port: Option<&Port>, capacity: &Capacity) -> Usage {
        let Some(port) = port else { return Usage::default() };
        let now = self.0.get(&port.key.namespace).copied().unwrap_or_default();
        let wanted = Usage::wanted(port.desired.as_ref());
        let then = now.minus(Usage::of(port.table.as_ref())).plus(wanted);
        let all = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let all = Usage {
            service_ports: all(capacity.service_ports),
            backends: all(capacity.backends),
            slots: all(capacity.slots),
            source_ranges: all(capacity.source_ranges),
        };
        then.each(all, |then, all| if then > all / GREAT { all / LEFT } else { 0 })
    }
}

impl Planner {
    /// Service ports in the order in which they get what they need: those of the namespaces that want
    /// least first, an id counting as much as a backend.
    pub(super) fn in_turn(&self, ports: BTreeSet<PortIndex>) -> Vec<PortIndex> {
        let mut ports: Vec<PortIndex> = ports.into_iter().collect();
        if ports.len() < 2 {
            return ports;
        }
        let wanted = |port: &Port| port.desired.as_ref().map_or(0, |d| d.backends.len() + 1);
        let mut totals: HashMap<&Arc<str>, usize> = HashMap::new();
        for port in ports.iter().filter_map(|&index| self.port(index)) {
            *totals.entry(&port.key.namespace).or_default() += wanted(port);
        }
        let total = |index: PortIndex| {
            self.port(index).and_then(|port| totals.get(&port.key.namespace)).copied().unwrap_or(0)
        };
        ports.sort_by_cached_key(|&index| (total(index), index));
        ports
    }
}
