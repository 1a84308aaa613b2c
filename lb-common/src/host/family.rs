//! The tables of one family: frontends and flows.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::vec::Vec;

use super::node::{allows, range};
use super::{Capacities, HostTables, WhenFull};
use crate::abi::{
    AddressWord, Flow, FlowKey, FragmentKey, FragmentRecord, FrontendKey, FrontendWord, Ip, Live,
    SERVICE_CIDRS, ServiceCidr, ServicePortId, SourceRangeKey, V4, V6, filter_place, flow_source,
};
use crate::tables::{FlowRef, FlowTable, FlowTables, FrontendTables, GuardTables, Insert};

/// A looked-up flow record; it stays readable after its removal, as an element of a map does.
#[derive(Clone)]
pub struct HostFlow<const N: usize> {
    flow: Rc<Cell<Flow<N>>>,
    value_stores: Rc<Cell<u64>>,
}

impl<const N: usize> FlowRef<N> for HostFlow<N> {
    fn read(&self) -> Flow<N> {
        self.flow.get()
    }

    fn tag(&self) -> u32 {
        self.flow.get().tag
    }

    fn live(&self) -> Live {
        Live(self.flow.get().live)
    }

    fn set_live(&self, live: Live) {
        self.value_stores.set(self.value_stores.get() + 1);
        self.flow.set(Flow { live: live.0, ..self.flow.get() });
    }
}

pub(super) struct Family<const N: usize> {
    pub(super) frontends: RefCell<HashMap<FrontendKey<N>, FrontendWord>>,
    pub(super) addresses: RefCell<HashMap<Ip<N>, AddressWord>>,
    fragments: RefCell<HashMap<FragmentKey<N>, FragmentRecord>>,
    pub(super) service_cidrs: RefCell<Vec<ServiceCidr<N>>>,
    pub(super) local_cidrs: RefCell<Vec<ServiceCidr<N>>>,
    pub(super) source_ranges: RefCell<HashSet<SourceRangeKey<N>>>,
    /// How many of the next frontend lookups answer with another key's word.
    pub(super) torn: Cell<u32>,
    /// The same for addresses.
    torn_addresses: Cell<u32>,
    main: FlowStore<N>,
    half_open: FlowStore<N>,
}

impl<const N: usize> Family<N> {
    pub(super) fn new() -> Self {
        Self {
            frontends: RefCell::default(),
            addresses: RefCell::default(),
            fragments: RefCell::default(),
            service_cidrs: RefCell::default(),
            local_cidrs: RefCell::default(),
            source_ranges: RefCell::default(),
            torn: Cell::new(0),
            torn_addresses: Cell::new(0),
            main: FlowStore::default(),
            half_open: FlowStore::default(),
        }
    }

    pub(super) fn add_source_range(&self, id: ServicePortId, ip: Ip<N>, prefix: u8) {
        let key = SourceRangeKey {
            prefix: 32 + u32::from(prefix),
            service_port: id.to_be(),
            addr: range(ip, prefix).addr,
        };
        self.source_ranges.borrow_mut().insert(key);
    }

    pub(super) fn store(&self, table: FlowTable) -> &FlowStore<N> {
        match table {
            FlowTable::Main => &self.main,
            FlowTable::HalfOpen => &self.half_open,
        }
    }
}

/// One flow table. Each record carries the number of its last use.
pub(super) struct FlowStore<const N: usize> {
    records: RefCell<HashMap<FlowKey<N>, (u64, HostFlow<N>)>>,
    uses: Cell<u64>,
    value_stores: Rc<Cell<u64>>,
}

impl<const N: usize> Default for FlowStore<N> {
    fn default() -> Self {
        Self { records: RefCell::default(), uses: Cell::new(0), value_stores: Rc::default() }
    }
}

impl<const N: usize> FlowStore<N> {
    fn use_number(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    fn get(&self, key: &FlowKey<N>) -> Option<HostFlow<N>> {
        let used = self.use_number();
        let mut records = self.records.borrow_mut();
        let (last, record) = records.get_mut(key)?;
        *last = used;
        Some(record.clone())
    }

    fn insert(
        &self,
        key: &FlowKey<N>,
        flow: &Flow<N>,
        replace: bool,
        capacity: usize,
        when_full: WhenFull,
    ) -> Insert {
        let used = self.use_number();
        let mut records = self.records.borrow_mut();
        if records.contains_key(key) {
            if !replace {
                return Insert::Exists;
            }
        } else if records.len() >= capacity {
            if when_full == WhenFull::Refuse {
                return Insert::Full;
            }
            let oldest = records.iter().min_by_key(|(_, (last, _))| *last).map(|(key, _)| *key);
            let Some(oldest) = oldest else { return Insert::Full };
            records.remove(&oldest);
        }
        let record = HostFlow {
            flow: Rc::new(Cell::new(*flow)),
            value_stores: Rc::clone(&self.value_stores),
        };
        records.insert(*key, (used, record));
        Insert::Done
    }

    fn remove(&self, key: &FlowKey<N>) {
        self.records.borrow_mut().remove(key);
    }

    fn all(&self) -> Vec<(FlowKey<N>, Flow<N>)> {
        self.records.borrow().iter().map(|(key, (_, record))| (*key, record.read())).collect()
    }

    /// Stores into records so far.
    pub(super) fn value_stores(&self) -> &Cell<u64> {
        &self.value_stores
    }
}

/// The tables of an address width.
pub trait OfFamily<const N: usize> {
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "only this module's methods use it")]
    fn family(&self) -> &Family<N>;
}

impl OfFamily<V4> for HostTables {
    #[expect(private_interfaces, reason = "only this module's methods use it")]
    fn family(&self) -> &Family<V4> {
        &self.v4
    }
}

impl OfFamily<V6> for HostTables {
    #[expect(private_interfaces, reason = "only this module's methods use it")]
    fn family(&self) -> &Family<V6> {
        &self.v6
    }
}

impl HostTables {
    /// All frontends of a family.
    pub fn frontends<const N: usize>(&self) -> Vec<(FrontendKey<N>, FrontendWord)>
    where
        Self: OfFamily<N>,
    {
        self.family().frontends.borrow().iter().map(|(key, word)| (*key, *word)).collect()
    }

    /// The ranges that Services get their addresses from.
    pub fn service_cidrs<const N: usize>(&self) -> Vec<ServiceCidr<N>>
    where
        Self: OfFamily<N>,
    {
        self.family().service_cidrs.borrow().clone()
    }

    /// All addresses of a family that mean something by themselves.
    pub fn addresses<const N: usize>(&self) -> Vec<(Ip<N>, AddressWord)>
    where
        Self: OfFamily<N>,
    {
        self.family().addresses.borrow().iter().map(|(ip, word)| (*ip, *word)).collect()
    }

    /// All records of a flow table.
    pub fn flows<const N: usize>(&self, table: FlowTable) -> Vec<(FlowKey<N>, Flow<N>)>
    where
        Self: OfFamily<N>,
    {
        self.family().store(table).all()
    }

    /// Changes a record behind the decisions' back, as the reuse of its element does.
    pub fn tamper<const N: usize>(
        &self,
        table: FlowTable,
        key: &FlowKey<N>,
        change: impl FnOnce(&mut Flow<N>),
    ) where
        Self: OfFamily<N>,
    {
        if let Some(record) = self.family().store(table).get(key) {
            let mut flow = record.flow.get();
            change(&mut flow);
            record.flow.set(flow);
        }
    }

    /// Removes a record behind the decisions' back, as eviction does.
    pub fn evict<const N: usize>(&self, table: FlowTable, key: &FlowKey<N>)
    where
        Self: OfFamily<N>,
    {
        self.family().store(table).remove(key);
    }

    /// The next `lookups` of frontends answer with a word that belongs to another key, as the
    /// reuse of an element makes a preallocated hash do.
    pub fn tear_frontends<const N: usize>(&self, lookups: u32)
    where
        Self: OfFamily<N>,
    {
        self.family().torn.set(lookups);
    }

    /// The next `lookups` of addresses do the same.
    pub fn tear_addresses<const N: usize>(&self, lookups: u32)
    where
        Self: OfFamily<N>,
    {
        self.family().torn_addresses.set(lookups);
    }

    fn capacity(&self, table: FlowTable) -> (usize, WhenFull) {
        let Capacities { flows, half_open, when_full, .. } = self.capacities.get();
        match table {
            FlowTable::Main => (flows, when_full),
            FlowTable::HalfOpen => (half_open, when_full),
        }
    }
}

impl<const N: usize> FrontendTables<N> for HostTables
where
    Self: OfFamily<N>,
{
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        self.cost(|costs| costs.lookups += 1);
        let family = self.family();
        let word = family.frontends.borrow().get(key).copied()?;
        let torn = family.torn.get();
        if torn == 0 {
            return Some(word);
        }
        family.torn.set(torn - 1);
        let other = FrontendKey { port: !key.port, ..*key };
        Some(FrontendWord::new(&other, word.id(), word.flags()))
    }

    #[expect(clippy::cast_possible_truncation, reason = "two bits")]
    fn filter(&self, ip: &Ip<N>) -> u32 {
        let (word, shift) = filter_place(ip);
        self.filter.borrow().get(word as usize).map_or(0, |bits| (bits >> shift) as u32 & 3)
    }

    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        self.cost(|costs| costs.lookups += 1);
        let family = self.family();
        let word = family.addresses.borrow().get(ip).copied()?;
        let torn = family.torn_addresses.get();
        if torn == 0 {
            return Some(word);
        }
        family.torn_addresses.set(torn - 1);
        Some(AddressWord::new(&ip.map(|part| !part), word.flags()))
    }

    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        self.cost(|costs| costs.lookups += 1);
        allows(&self.family().source_ranges.borrow(), id, source)
    }
}

impl<const N: usize> GuardTables<N> for HostTables
where
    Self: OfFamily<N>,
{
    /// As the map, it has zeros behind what was stored.
    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let ranges = self.family().service_cidrs.borrow();
        let none = ServiceCidr { addr: [0; N], mask: [0; N] };
        (index < SERVICE_CIDRS).then(|| ranges.get(index as usize).copied().unwrap_or(none))
    }
}

impl<const N: usize> FlowTables<N> for HostTables
where
    Self: OfFamily<N>,
{
    type Ref = HostFlow<N>;

    fn has_flows(&self) -> bool {
        let with_flows = self.with_flows.borrow();
        with_flows.contains(&self.interface.get()) || with_flows.contains(&0)
    }

    fn has_flows_to(&self, backend: &Ip<N>) -> bool {
        self.flow_sources.borrow().contains(&flow_source(backend))
    }

    fn note_flows(&self, backend: &Ip<N>, outside: bool) {
        self.with_flows.borrow_mut().insert(if outside { 0 } else { self.interface.get() });
        self.flow_sources.borrow_mut().insert(flow_source(backend));
    }

    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<HostFlow<N>> {
        self.cost(|costs| costs.lookups += 1);
        self.family().store(table).get(key)
    }

    fn insert_flow(
        &self,
        table: FlowTable,
        key: &FlowKey<N>,
        flow: &Flow<N>,
        replace: bool,
    ) -> Insert {
        self.cost(|costs| costs.map_updates += 1);
        let (capacity, when_full) = self.capacity(table);
        self.family().store(table).insert(key, flow, replace, capacity, when_full)
    }

    fn fragment(&self, key: &FragmentKey<N>) -> Option<FragmentRecord> {
        self.cost(|costs| costs.lookups += 1);
        self.family().fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey<N>, record: &FragmentRecord) -> bool {
        self.cost(|costs| costs.map_updates += 1);
        self.family().fragments.borrow_mut().insert(*key, *record);
        true
    }

    fn remove_flow(&self, table: FlowTable, key: &FlowKey<N>) {
        self.cost(|costs| costs.map_updates += 1);
        self.family().store(table).remove(key);
    }
}
