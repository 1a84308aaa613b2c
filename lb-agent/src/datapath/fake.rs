//! Maps in memory, for tests: applies operations store by store, and can stop after any of them.

use std::collections::{BTreeMap, BTreeSet};

use std::net::IpAddr;

use lb_common::abi::{
    self, AddressWord, Backend, BackendId, BackendWord, FactsFlags, FactsWord, FrontendFlags,
    FrontendWord, META_WORDS, NAME_LEN, Name, SCOPES, SERVICE_CIDRS, Scope, ServicePortId, SetWord,
};

use super::{Datapath, Error, Grace, Interface, Lacking};
use crate::diff::Op;
use crate::model::Family;
use crate::plan::{Capacity, Cidr, FrontKey, PortRow, SetRow, Snapshot, SourceRange, name};

/// Maps in memory.
#[derive(Clone, Debug)]
pub struct Fake {
    capacity: Capacity,
    /// `FRONTENDS4` and `FRONTENDS6`.
    pub frontends: BTreeMap<FrontKey, FrontendWord>,
    /// `ADDRESSES4` and `ADDRESSES6`.
    pub addresses: BTreeMap<IpAddr, AddressWord>,
    /// `SERVICE_CIDRS4` and `SERVICE_CIDRS6`.
    pub service_cidrs: [[Option<Cidr>; SERVICE_CIDRS as usize]; 2],
    /// `SOURCE_RANGES4` and `SOURCE_RANGES6`.
    pub source_ranges: BTreeSet<SourceRange>,
    /// `NODE_PORTS`, as IP protocol number and port.
    pub node_ports: BTreeSet<(u8, u16)>,
    /// `SETS`.
    pub sets: Vec<SetWord>,
    /// `FACTS`.
    pub facts: Vec<FactsWord>,
    /// `NAMES`.
    pub names: Vec<Name>,
    /// `SLOTS`.
    pub slots: Vec<BackendId>,
    /// `BACKENDS`.
    pub backends: Vec<Backend>,
    /// `META`.
    pub meta: [u64; META_WORDS as usize],
    /// Interfaces with programs.
    pub interfaces: BTreeMap<u32, Interface>,
    /// `INTERFACES`.
    pub told_interfaces: BTreeMap<u32, abi::Interface>,
    /// `LOCAL_CIDRS4` and `LOCAL_CIDRS6`.
    pub local_cidrs: [Vec<Cidr>; 2],
    /// Addresses under which flows were ended.
    pub ended_flows: Vec<IpAddr>,
    /// Whether the socket engine is attached.
    pub sockets: bool,
    /// Operations applied.
    pub applied: usize,
}

/// One store, or one system call.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The name of a service port.
    Name(ServicePortId, Name),
    /// All of a backend but its word.
    BackendAddress(BackendId, Backend),
    /// The word of a backend.
    BackendWord(BackendId, BackendWord),
    /// One slot.
    Slot(u32, BackendId),
    /// The word of a set.
    Set(u32, SetWord),
    /// Facts.
    Facts(ServicePortId, FactsWord),
    /// Delete a frontend.
    Delete(FrontKey),
    /// Insert or replace a frontend.
    Put(FrontKey, FrontendWord),
    /// Delete an address.
    DeleteAddress(IpAddr),
    /// Insert or replace an address.
    PutAddress(IpAddr, AddressWord),
    /// One range of Services' addresses; nothing for zeros.
    ServiceCidr(Family, usize, Option<Cidr>),
    /// Insert a source range.
    PutSourceRange(SourceRange),
    /// Delete a source range.
    DeleteSourceRange(SourceRange),
    /// Note a node port, by IP protocol number and port.
    NodePort(u8, u16),
    /// A word of `META`.
    Meta(u32, u64),
}

/// The stores that an operation consists of, as the real datapath makes them.
pub fn steps(op: &Op) -> Vec<Step> {
    match op {
        Op::Name(id, name) => vec![Step::Name(*id, **name)],
        Op::Backend(id, backend) => vec![
            Step::BackendAddress(*id, *backend),
            Step::BackendWord(*id, BackendWord(backend.word)),
        ],
        Op::BackendWord(id, word) => vec![Step::BackendWord(*id, *word)],
        Op::Slots(first, ids) => {
            (*first..).zip(ids).map(|(slot, &id)| Step::Slot(slot, id)).collect()
        }
        Op::Set(index, word) => vec![Step::Set(*index, *word)],
        Op::Facts(id, word) => vec![Step::Facts(*id, *word)],
        Op::FrontendDelete(key) => vec![Step::Delete(*key)],
        Op::FrontendPut(key, word) if key.is_node_port() => {
            vec![Step::NodePort(key.proto(), key.port()), Step::Put(*key, *word)]
        }
        Op::FrontendPut(key, word) => vec![Step::Put(*key, *word)],
        Op::AddressDelete(addr) => vec![Step::DeleteAddress(*addr)],
        Op::AddressPut(addr, word) => vec![Step::PutAddress(*addr, *word)],
        Op::ServiceCidrs(family, list) => (0..SERVICE_CIDRS as usize)
            .map(|at| Step::ServiceCidr(*family, at, list.get(at).copied()))
            .collect(),
        Op::SourceRangePut(range) => vec![Step::PutSourceRange(*range)],
        Op::SourceRangeDelete(range) => vec![Step::DeleteSourceRange(*range)],
        Op::Meta(word, value) => vec![Step::Meta(*word as u32, *value)],
    }
}

/// Sizes with which hardly anything fits, for tests.
#[cfg(test)]
pub(crate) const SMALL: Capacity = Capacity {
    service_ports: 16,
    backends: 16,
    slots: 16,
    frontends: 16,
    addresses: 16,
    source_ranges: 16,
};

impl Fake {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        let ports = capacity.service_ports as usize;
        Self {
            capacity,
            frontends: BTreeMap::new(),
            addresses: BTreeMap::new(),
            service_cidrs: [[None; SERVICE_CIDRS as usize]; 2],
            source_ranges: BTreeSet::new(),
            node_ports: BTreeSet::new(),
            sets: vec![SetWord::REJECT; ports * SCOPES as usize],
            facts: vec![FactsWord::default(); ports],
            names: vec![[0; NAME_LEN]; ports],
            slots: vec![0; capacity.slots as usize],
            backends: vec![Backend::default(); capacity.backends as usize],
            meta: [0; META_WORDS as usize],
            interfaces: BTreeMap::new(),
            told_interfaces: BTreeMap::new(),
            local_cidrs: [Vec::new(), Vec::new()],
            ended_flows: Vec::new(),
            sockets: false,
            applied: 0,
        }
    }

    /// The sizes it was made with.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Makes one store; panics where the real one would leave its map.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Name(id, name) => self.names[id as usize] = name,
            Step::BackendAddress(id, backend) => {
                let word = self.backends[id as usize].word;
                self.backends[id as usize] = Backend { word, ..backend };
            }
            Step::BackendWord(id, word) => self.backends[id as usize].word = word.0,
            Step::Slot(slot, id) => self.slots[slot as usize] = id,
            Step::Set(index, word) => self.sets[index as usize] = word,
            Step::Facts(id, word) => self.facts[id as usize] = word,
            Step::Delete(key) => {
                self.frontends.remove(&key);
            }
            Step::Put(key, word) => {
                self.frontends.insert(key, word);
                let v6 = matches!(key, FrontKey::V6(_));
                let of_family = |key: &&FrontKey| matches!(key, FrontKey::V6(_)) == v6;
                let count = self.frontends.keys().filter(of_family).count();
                assert!(count <= self.capacity.frontends as usize, "E2BIG");
            }
            Step::DeleteAddress(addr) => {
                self.addresses.remove(&addr);
            }
            Step::PutAddress(addr, word) => {
                self.addresses.insert(addr, word);
                let of_family = |other: &&IpAddr| other.is_ipv6() == addr.is_ipv6();
                let count = self.addresses.keys().filter(of_family).count();
                assert!(count <= self.capacity.addresses as usize, "E2BIG");
            }
            Step::ServiceCidr(family, at, cidr) => {
                self.service_cidrs[usize::from(family == Family::V6)][at] = cidr;
            }
            Step::PutSourceRange(range) => {
                self.source_ranges.insert(range);
                let of_family = |other: &&SourceRange| other.range.family() == range.range.family();
                let count = self.source_ranges.iter().filter(of_family).count();
                assert!(count <= self.capacity.source_ranges as usize, "ENOSPC");
            }
            Step::DeleteSourceRange(range) => {
                self.source_ranges.remove(&range);
            }
            Step::NodePort(proto, port) => {
                self.node_ports.insert((proto, port));
            }
            Step::Meta(word, value) => self.meta[word as usize] = value,
        }
    }

    /// Whether a frontend lets a client in (V-5): what a kernel program would find.
    pub fn lets_in(&self, key: &FrontKey, client: IpAddr) -> Option<bool> {
        let found = key.found(*self.frontends.get(key)?)?;
        let is_guarded = found.flags & FrontendFlags::RANGES != 0;
        let mut ranges = self.source_ranges.iter().filter(|held| held.id == found.id);
        Some(!is_guarded || ranges.any(|held| held.range.contains(client)))
    }

    /// The backends that clients on this node reach by a frontend: what a kernel program could pick.
    pub fn reach(&self, key: &FrontKey) -> Option<Vec<Backend>> {
        let found = key.found(*self.frontends.get(key)?)?;
        let id = found.id;
        let facts = self.facts[id as usize];
        let external = found.flags & FrontendFlags::EXTERNAL != 0;
        let local = !external && facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
        let scope = if local { Scope::Local } else { Scope::Cluster };
        let set = self.sets[scope.index(id) as usize];
        let slots = set.first() as usize..(set.first() + set.count()) as usize;
        Some(self.slots[slots].iter().map(|&id| self.backends[id as usize]).collect())
    }
}

impl Datapath for Fake {
    fn apply(&mut self, ops: &[Op]) -> Vec<(usize, Error)> {
        self.applied += ops.len();
        for op in ops {
            for step in steps(op) {
                self.step(step);
            }
        }
        Vec::new()
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let row = |id: ServicePortId| {
            let set = |scope: Scope| {
                let word = self.sets[scope.index(id) as usize];
                let first = word.first() as usize;
                let slots = self.slots.get(first..).unwrap_or_default();
                SetRow { word, ids: slots.iter().take(word.count() as usize).copied().collect() }
            };
            PortRow {
                id,
                name: name::text(&self.names[id as usize]),
                facts: self.facts[id as usize],
                sets: [set(Scope::Cluster), set(Scope::Local)],
            }
        };
        let empty = |row: &PortRow| {
            let blank = PortRow { id: row.id, ..PortRow::default() };
            *row == blank
        };
        Ok(Snapshot {
            frontends: self.frontends.iter().map(|(&key, &word)| (key, word)).collect(),
            addresses: self.addresses.iter().map(|(&addr, &word)| (addr, word)).collect(),
            service_cidrs: self
                .service_cidrs
                .map(|list| list.into_iter().map_while(|cidr| cidr).collect()),
            source_ranges: self.source_ranges.iter().copied().collect(),
            ports: (1..self.capacity.service_ports).map(row).filter(|row| !empty(row)).collect(),
            backends: (0..)
                .zip(&self.backends)
                .filter(|(_, backend)| **backend != Backend::default())
                .map(|(id, backend)| (id, *backend))
                .collect(),
            meta: self.meta,
        })
    }

    fn grace(&self) -> Grace {
        Grace::none()
    }

    fn attach_sockets(&mut self) -> Result<(), Error> {
        self.sockets = true;
        Ok(())
    }

    fn lacking(&self) -> &[Lacking] {
        &[]
    }

    fn attach(&mut self, interface: &Interface) -> Result<(), Error> {
        self.interfaces.insert(interface.index, interface.clone());
        Ok(())
    }

    fn detach(&mut self, index: u32) -> Result<(), Error> {
        self.interfaces.remove(&index);
        Ok(())
    }

    fn attached(&self) -> Vec<u32> {
        self.interfaces.keys().copied().collect()
    }

    fn told_interfaces(&self) -> Result<Vec<(u32, abi::Interface)>, Error> {
        Ok(self.told_interfaces.iter().map(|(&index, &record)| (index, record)).collect())
    }

    fn tell_interface(
        &mut self,
        index: u32,
        interface: Option<&abi::Interface>,
    ) -> Result<(), Error> {
        self.applied += 1;
        match interface {
            Some(&interface) => drop(self.told_interfaces.insert(index, interface)),
            None => drop(self.told_interfaces.remove(&index)),
        }
        Ok(())
    }

    fn end_flows(&mut self, gone: &[IpAddr]) {
        self.ended_flows.extend(gone);
    }

    fn set_local_cidrs(&mut self, family: Family, list: &[Cidr]) {
        self.local_cidrs[usize::from(family == Family::V6)] = list.to_vec();
    }
}
