//! Which id, which slots and which frontend does each service port get?
//!
//! [`Planner`] keeps what is desired beside what is programmed. [`Planner::plan`] takes the changed
//! service ports from policy and answers with a [`Batch`]: what to write, in no order yet
//! ([`crate::diff`] orders it). Everything is pure and deterministic: the same model and the same
//! previous ids give the same tables.
//!
//! - A service port is programmed as long as it owns a frontend: who is reached by no frontend is
//!   no one, which is also how a restart tells what is left over from a crash.
//! - An address and port that several Services claim belongs to the one whose clusterIP it is, then
//!   to the oldest (contract S-15).
//! - Addresses follow the frontends that are owned, and the node.
//! - A full map costs the service port that does not fit, and nothing else: a new one is not
//!   programmed, one that is programmed loses the endpoints that went and gets as many new ones as
//!   there is room for. The rest is tried again when something became free.
//! - A namespace that has a great part of the backends, slots, ids or source ranges leaves some to the
//!   others.
//! - Source ranges are in the map before the frontends that they guard say so, and go a grace period
//!   after that ended: at no moment is a client refused that is let in before and after, and none is
//!   let in at a guarded address but by a range (R-7, V-5).
//! - What goes out of use waits for a grace period: apply the batch, wait, then [`Planner::release`].

mod address;
mod addresses;
mod adopt;
#[cfg(test)]
mod full_tests;
mod ids;
pub mod name;
mod owners;
mod port;
mod ranges;
mod report;
pub mod self_test;
mod shares;
mod table;
#[cfg(test)]
mod tests;
mod walk;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub use self::address::{address, address_flags, address_word, mask, words};
pub use self::addresses::{Cidr, NodeFacts};
pub use self::report::{Error, Report};
pub use self::table::{
    AddressChange, Batch, Capacity, FrontKey, FrontendChange, PortChange, PortRow, Retired,
    SetChange, SetRow, Snapshot, SourceRange,
};

use self::addresses::Addresses;
use self::ids::{Freed, IdPool, Quarantine, RangePool};
use self::owners::{Claim, Front, claimed};
use self::port::{Pools, Table};
use self::ranges::SourceRanges;
use self::shares::Shares;
use self::work::Work;
use crate::model::{DesiredPort, Family, PortKey, Protocol};

/// Handle of a service port inside of the planner.
type PortIndex = u32;

#[derive(Debug)]
struct Port {
    key: PortKey,
    /// Nothing: found in the pinned maps, or gone.
    desired: Option<DesiredPort>,
    /// The frontends that lead to it.
    owned: BTreeSet<FrontKey>,
    table: Option<Table>,
    /// Why it is not programmed as desired.
    error: Option<Error>,
    /// It could not be programmed at all, so that it cannot own a frontend.
    barred: bool,
}

/// Holds ids and tables; see the module's documentation.
#[derive(Debug)]
pub struct Planner {
    capacity: Capacity,
    pools: Pools,
    ports: Vec<Option<Port>>,
    free_ports: Vec<PortIndex>,
    by_key: BTreeMap<PortKey, PortIndex>,
    fronts: HashMap<FrontKey, Front>,
    addresses: Addresses,
    /// Owned frontends, by family.
    owned: [u32; 2],
    /// Frontends that somebody claims, for which the map has no room.
    unplaced: BTreeSet<FrontKey>,
    /// Service ports with an error.
    failed: BTreeSet<PortIndex>,
    conflicts: BTreeMap<FrontKey, Vec<PortIndex>>,
    /// Something became free since failed ones were tried last.
    room: bool,
    /// Frontends found in the maps that lead nowhere.
    stray: BTreeSet<FrontKey>,
    programmed: usize,
    shares: Shares,
}

impl Planner {
    /// A planner for empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            pools: Pools {
                service_ports: IdPool::new(capacity.service_ports),
                backends: IdPool::new(capacity.backends),
                slots: RangePool::new(capacity.slots),
                source_ranges: SourceRanges::new(capacity.source_ranges),
                quarantine: Quarantine::default(),
                epoch: 1,
            },
            ports: Vec::new(),
            free_ports: Vec::new(),
            by_key: BTreeMap::new(),
            fronts: HashMap::new(),
            addresses: Addresses::default(),
            owned: [0; 2],
            unplaced: BTreeSet::new(),
            failed: BTreeSet::new(),
            conflicts: BTreeMap::new(),
            room: false,
            stray: BTreeSet::new(),
            programmed: 0,
            shares: Shares::default(),
        }
    }

    /// Takes up changed service ports; nothing for one that is gone. Others stay as they are.
    pub fn plan(
        &mut self,
        updates: impl IntoIterator<Item = (PortKey, Option<DesiredPort>)>,
    ) -> Batch {
        let mut work = Work::default();
        for (key, desired) in updates {
            self.update(key, desired, &mut work);
        }
        self.run(work)
    }

    /// Takes up all service ports that there are; any other is gone. This is how the first list is
    /// taken after [`Planner::adopt`]: until then, what was found stays in force.
    pub fn plan_all(&mut self, all: impl IntoIterator<Item = (PortKey, DesiredPort)>) -> Batch {
        self.plan_all_but(all, |_| false)
    }

    /// The same, but what is not among `all` stays as it is programmed where `is_kept` says so: it
    /// exists, or may exist, and nobody can tell how it should be.
    pub fn plan_all_but(
        &mut self,
        all: impl IntoIterator<Item = (PortKey, DesiredPort)>,
        is_kept: impl Fn(&PortKey) -> bool,
    ) -> Batch {
        let mut work = Work::default();
        let mut listed = HashSet::new();
        for (key, desired) in all {
            listed.insert(self.update(key, Some(desired), &mut work));
        }
        for index in 0..PortIndex::try_from(self.ports.len()).unwrap_or(PortIndex::MAX) {
            if let Some(port) = self.port(index)
                && !listed.contains(&Some(index))
                && !is_kept(&port.key)
            {
                work.touched.extend(&port.owned);
                let key = port.key.clone();
                self.update(key, None, &mut work);
            }
        }
        work.touched.append(&mut self.stray);
        self.run(work)
    }

    /// The service ports of a Service that are desired or programmed.
    pub fn ports_of(&self, namespace: &Arc<str>, service: &Arc<str>) -> Vec<PortKey> {
        // The smallest key that this Service can have.
        let first = PortKey {
            namespace: namespace.clone(),
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let keys = self.by_key.range(first..).map(|(key, _)| key);
        keys.take_while(|key| key.namespace == *namespace && key.service == *service)
            .cloned()
            .collect()
    }

    /// The frontends that lead to a Service.
    pub fn frontends_of(
        &self,
        namespace: &Arc<str>,
        service: &Arc<str>,
    ) -> impl Iterator<Item = &FrontKey> {
        let ports = self.ports_of(namespace, service).into_iter();
        let ports = ports.filter_map(|key| self.port(*self.by_key.get(&key)?));
        ports.flat_map(|port| &port.owned)
    }

    /// Makes free what went out of use in `epoch` or before. Call it when a grace period has passed
    /// since the operations of that epoch were applied, and apply what it returns before the next
    /// batch.
    pub fn release(&mut self, epoch: u64) -> Vec<Retired> {
        let mut retired = Vec::new();
        while let Some((since, freed)) = self.pools.quarantine.pop(epoch) {
            self.room = true;
            match freed {
                Freed::ServicePort(id) => {
                    self.pools.service_ports.release(id);
                    retired.push(Retired::ServicePort(id));
                }
                Freed::Backend(id) => {
                    self.pools.backends.release(id);
                    retired.push(Retired::Backend(id, self.pools.backends.generation(id)));
                }
                Freed::Slots(range) => self.pools.slots.release(range),
                Freed::SourceRange(range) => {
                    if self.pools.source_ranges.release(&range, since) {
                        retired.push(Retired::SourceRange(range));
                    }
                }
            }
        }
        retired
    }

    /// The last epoch of which something waits for [`Planner::release`].
    pub fn waiting(&self) -> Option<u64> {
        self.pools.quarantine.last_epoch()
    }

    /// Whether something may fit now that did not before: plan again, with no updates.
    pub fn wants_retry(&self) -> bool {
        self.room && !(self.failed.is_empty() && self.nothing_unplaced())
    }

    /// Number of frontends that more than one service port claims.
    pub fn conflicts(&self) -> usize {
        self.conflicts.len()
    }

    /// Number of service ports that are not programmed as desired.
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Number of service ports that are programmed.
    pub fn programmed(&self) -> usize {
        self.programmed
    }

    fn nothing_unplaced(&self) -> bool {
        self.unplaced.is_empty() && self.addresses.unplaced.is_empty()
    }

    fn port(&self, index: PortIndex) -> Option<&Port> {
        self.ports.get(index as usize)?.as_ref()
    }

    fn port_mut(&mut self, index: PortIndex) -> Option<&mut Port> {
        self.ports.get_mut(index as usize)?.as_mut()
    }

    /// Replaces what is desired of a service port, and its claims.
    fn update(
        &mut self,
        key: PortKey,
        desired: Option<DesiredPort>,
        work: &mut Work,
    ) -> Option<PortIndex> {
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None if desired.is_none() => return None,
            None => self.insert(key),
        };
        let port = self.port_mut(index)?;
        let protocol = port.key.protocol;
        let age = |desired: &Option<DesiredPort>| desired.as_ref().map(|desired| desired.created_s);
        let old = claimed(port.desired.as_ref(), protocol);
        let new = claimed(desired.as_ref(), protocol);
        // Claims are in order of age.
        let all_anew = age(&port.desired) != age(&desired);
        if port.desired.is_none() {
            // Found in the pinned maps: what it owns may not be what it wants.
            work.touched.extend(&port.owned);
        }
        port.desired = desired;
        if std::mem::take(&mut port.barred) {
            work.touched.extend(new.keys());
        }
        if all_anew || old != new {
            for front in old.keys() {
                self.unclaim(*front, index);
            }
            for (&front, &kind) in &new {
                self.claim(front, Claim { index, kind });
            }
            work.touched.extend(old.keys());
            work.touched.extend(new.keys());
        } else {
            work.touched.extend(new.keys().filter(|front| self.unplaced.contains(front)));
        }
        work.dirty.insert(index);
        Some(index)
    }

    fn insert(&mut self, key: PortKey) -> PortIndex {
        let port = Port {
            key: key.clone(),
            desired: None,
            owned: BTreeSet::new(),
            table: None,
            error: None,
            barred: false,
        };
        let index = if let Some(index) = self.free_ports.pop() {
            self.ports[index as usize] = Some(port);
            index
        } else {
            self.ports.push(Some(port));
            PortIndex::try_from(self.ports.len() - 1).unwrap_or(PortIndex::MAX)
        };
        self.by_key.insert(key, index);
        index
    }
}
