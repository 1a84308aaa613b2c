//! How much of the backends may one namespace have?
//!
//! Who may write Services and slices in one namespace chooses how many backends they need: one Service
//! of a thousand ports multiplies its endpoints by as many. The pods of all others must still find room.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::port::Table;
use super::{Planner, Port, PortIndex};

/// A namespace has a great part if it would have more than one of so many.
const GREAT: u32 = 4;
/// One of so many backends is for those that have not.
const LEFT: u32 = 32;

/// The backends of each namespace.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Arc<str>, usize>);

impl Shares {
    /// A service port of the namespace has other backends than before.
    pub(super) fn count(&mut self, namespace: &Arc<str>, before: usize, after: usize) {
        if before == after {
            return;
        }
        let count = self.0.entry(namespace.clone()).or_default();
        *count = count.saturating_sub(before) + after;
        if *count == 0 {
            self.0.remove(namespace);
        }
    }

    /// How many free ones a service port has to leave to others.
    pub(super) fn leave(&self, port: Option<&Port>, capacity: u32) -> usize {
        let Some(port) = port else { return 0 };
        let wanted = port.desired.as_ref().map_or(0, |desired| desired.backends.len());
        let now = self.0.get(&port.key.namespace).copied().unwrap_or(0);
        let then = now.saturating_sub(held(port.table.as_ref())) + wanted;
        if then > (capacity / GREAT) as usize { (capacity / LEFT) as usize } else { 0 }
    }
}

/// The number of backends of a table.
pub(super) fn held(table: Option<&Table>) -> usize {
    table.map_or(0, |table| table.backends.len())
}

impl Planner {
    /// Service ports in the order in which they get what they need: those of the namespaces that want
    /// the fewest backends first.
    pub(super) fn in_turn(&self, ports: BTreeSet<PortIndex>) -> Vec<PortIndex> {
        let mut ports: Vec<PortIndex> = ports.into_iter().collect();
        if ports.len() < 2 {
            return ports;
        }
        let wanted = |port: &Port| port.desired.as_ref().map_or(0, |d| d.backends.len());
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
