//! What was programmed before this process started, and what of it is only left over?
//!
//! The maps outlive the agent, and it may have been killed at any step. Whoever is reached by a
//! frontend and has a name that can be read is kept, with ids and generations, so that a restart
//! with the same objects has nothing to do. Everything else is free, and is told so that it can be
//! cleared. The slots of a killed batch cannot be told from free ones, so that nothing may be
//! planned before a grace period has passed since the maps were read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::abi::{
    Backend, BackendFlags, BackendId, BackendWord, FrontendFlags, FrontendWord, ServicePortId,
    SetWord,
};

use super::address::family_index;
use super::ids::{IdPool, Quarantine, Range, RangePool};
use super::owners::Claim;
use super::port::{Held, Pools, Set, Table};
use super::ranges::SourceRanges;
use super::shares::Usage;
use super::{
    Capacity, Front, FrontKey, Planner, Port, PortRow, Retired, SetRow, Snapshot, SourceRange,
    address, name, self_test,
};
use crate::model::{Cidr, Family, FrontendKind, PortKey, Protocol};

/// What a word with the tag of another key leads to: no service port has this id.
const STRAY: ServicePortId = ServicePortId::MAX;

impl Planner {
    /// A planner that knows what is programmed, and what to clear. Wait for a grace period before
    /// the first plan, and make that [`Planner::plan_all`].
    pub fn adopt(capacity: Capacity, found: &Snapshot) -> (Self, Vec<Retired>) {
        let mut planner = Self::new(capacity);
        planner.addresses.adopt(&found.addresses, &found.service_cidrs);
        let reached = reached(found);
        let mut slots = RangePool::new(capacity.slots);
        let mut taken = HashMap::new();
        for &(id, backend) in &found.backends {
            taken.entry(backend.service_port).or_insert_with(Vec::new).push((id, backend));
        }
        let mut ranges: HashMap<ServicePortId, Vec<Cidr>> = HashMap::new();
        for held in &found.source_ranges {
            ranges.entry(held.id).or_default().push(held.range);
        }
        for (&id, fronts) in &reached {
            if id == 0 || id >= capacity.service_ports {
                // No reader follows these: no such id, or the tag of another key.
                for &(front, word) in fronts {
                    let stray = Front { programmed: Some(word), ..Front::default() };
                    planner.fronts.insert(front, stray);
                    planner.stray.insert(front);
                }
                continue;
            }
            let empty = PortRow { id, ..PortRow::default() };
            let row = found.port(id).unwrap_or(&empty);
            let key = name::decode(&row.name).filter(|key| !planner.by_key.contains_key(key));
            let backends = taken.get(&id).map_or(&[][..], Vec::as_slice);
            let mut table = table(row, backends, capacity, &mut slots);
            table.ranges = ranges.remove(&id).unwrap_or_default();
            table.ranges.sort_unstable();
            let guarded = |(_, word): &(_, FrontendWord)| word.flags() & FrontendFlags::RANGES != 0;
            table.is_guarded = fronts.iter().any(guarded);
            planner.keep(key.unwrap_or_else(|| nameless(id)), table, fronts);
        }
        let mut retired = planner.fill_pools(found, slots);
        // Of who is reached by no frontend.
        let left_over = ranges.into_iter().flat_map(|(id, ranges)| {
            ranges.into_iter().map(move |range| Retired::SourceRange(SourceRange { id, range }))
        });
        retired.extend(left_over);
        (planner, retired)
    }

    fn keep(&mut self, key: PortKey, table: Table, fronts: &[(FrontKey, FrontendWord)]) {
        let has_address = !self_test::is(&key);
        self.shares.count(&key.namespace, Usage::default(), Usage::of(Some(&table)));
        let index = self.insert(key);
        for &(front, word) in fronts {
            self.owned[family_index(&front.addr())] += 1;
            let kind = kind(&front, word);
            if has_address {
                self.addresses.hold(&front, kind);
            }
            let owner = Some(Claim { index, kind });
            let entry = Front { claims: Vec::new(), owner, programmed: Some(word) };
            self.fronts.insert(front, entry);
        }
        self.programmed += 1;
        if let Some(port) = self.port_mut(index) {
            port.owned = fronts.iter().map(|&(front, _)| front).collect();
            port.table = Some(table);
        }
    }

    fn fill_pools(&mut self, found: &Snapshot, slots: RangePool) -> Vec<Retired> {
        let tables = || self.ports.iter().flatten().filter_map(|port: &Port| port.table.as_ref());
        let ports: BTreeSet<u32> = tables().map(|table| table.id).collect();
        let backends: BTreeSet<u32> =
            tables().flat_map(|table| &table.backends).map(|held| held.id).collect();
        let generations: Vec<_> = found
            .backends
            .iter()
            .map(|&(id, backend)| (id, BackendWord(backend.word).generation()))
            .collect();
        let left_over = found.ports.iter().map(|row| row.id).filter(|id| !ports.contains(id));
        let mut retired: Vec<_> = left_over.map(Retired::ServicePort).collect();
        let cleared = |id, generation| Backend {
            word: BackendWord::new(0, 0, generation).0,
            ..found.backend(id).copied().unwrap_or_default()
        };
        retired.extend(
            generations
                .iter()
                .filter(|&&(id, generation)| {
                    let dirty = found.backend(id) != Some(&cleared(id, generation));
                    dirty && !backends.contains(&id)
                })
                .map(|&(id, generation)| Retired::Backend(id, generation)),
        );
        let ranges = tables().flat_map(|table| &table.ranges);
        let source_ranges = SourceRanges::adopt(self.capacity.source_ranges, ranges);
        self.pools = Pools {
            service_ports: IdPool::adopt(self.capacity.service_ports, &ports, []),
            backends: IdPool::adopt(self.capacity.backends, &backends, generations),
            slots,
            source_ranges,
            quarantine: Quarantine::default(),
            epoch: 1,
        };
        retired
    }
}

/// A key for a service port whose name cannot be read. Its frontends stay in force until the first
/// plan; that takes it for gone, as no Service is named like this.
fn nameless(id: ServicePortId) -> PortKey {
    PortKey {
        namespace: "".into(),
        service: format!("?{id}").into(),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

/// The frontends that lead to each service port id.
fn reached(found: &Snapshot) -> BTreeMap<ServicePortId, Vec<(FrontKey, FrontendWord)>> {
    let mut reached: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for &(front, word) in &found.frontends {
        reached.entry(front.id_in(word).unwrap_or(STRAY)).or_default().push((front, word));
    }
    reached
}

/// As what a frontend was programmed, as far as that makes a difference.
fn kind(front: &FrontKey, word: FrontendWord) -> FrontendKind {
    if front.is_node_port() {
        FrontendKind::NodePort
    } else if word.flags() & FrontendFlags::RANGES != 0 {
        FrontendKind::LoadBalancer
    } else if word.flags() & FrontendFlags::EXTERNAL != 0 {
        FrontendKind::ExternalIp
    } else {
        FrontendKind::ClusterIp
    }
}

/// The table of a service port as it was programmed. `backends` are those that say they are its.
fn table(
    row: &PortRow,
    backends: &[(BackendId, Backend)],
    capacity: Capacity,
    slots: &mut RangePool,
) -> Table {
    let in_sets: BTreeSet<BackendId> = row.sets.iter().flat_map(|set| &set.ids).copied().collect();
    let mut held: Vec<_> = backends
        .iter()
        .filter(|&&(id, _)| id < capacity.backends)
        .filter_map(|&(id, backend)| kept(id, &backend, in_sets.contains(&id)))
        .collect();
    // A killed batch may have left an endpoint twice: keep the one that is in use.
    held.sort_by_key(|held| (held.addr, held.port, !in_sets.contains(&held.id), held.id));
    held.dedup_by_key(|held| (held.addr, held.port));
    let known: BTreeSet<BackendId> = held.iter().map(|held| held.id).collect();
    let mut sets = [Set::default(), Set::default()];
    for (set, row) in sets.iter_mut().zip(&row.sets) {
        *set = adopt_set(row, &known, slots);
    }
    Table {
        id: row.id,
        facts: row.facts,
        backends: held,
        sets,
        is_guarded: false,
        ranges: Vec::new(),
    }
}

fn kept(id: BackendId, backend: &Backend, in_set: bool) -> Option<Held> {
    let word = BackendWord(backend.word);
    let flags = word.flags();
    let of_use = BackendFlags::SERVING | BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL;
    let present = flags & BackendFlags::PRESENT != 0;
    (present && (in_set || flags & of_use != 0)).then(|| Held {
        addr: address(&backend.addr, flags & BackendFlags::IPV6 != 0),
        port: u16::from_be(word.port()),
        flags,
        id,
        generation: word.generation(),
    })
}

fn adopt_set(row: &SetRow, known: &BTreeSet<BackendId>, slots: &mut RangePool) -> Set {
    let range = Range { first: row.word.first(), count: row.word.count() };
    if range.count == 0 {
        let plain = row.word == SetWord::REJECT || row.word == SetWord::DROP;
        return Set { word: row.word, damaged: !plain, ..Set::default() };
    }
    let whole =
        row.ids.len() == range.count as usize && row.ids.iter().all(|id| known.contains(id));
    // Slots that two sets claim stay with the first; the other is written anew.
    let range = slots.claim(range).then_some(range);
    let damaged = !whole || range.is_none();
    Set { word: row.word, ids: row.ids.clone().into(), range, damaged }
}
