//! Tables in hash maps: what decisions run on in tests, in fuzzing and in counts of their cost.
//!
//! They behave as the kernel's maps do where a decision can tell: a looked-up record outlives its
//! removal, a full table evicts or refuses, and time, randomness, the interface and the socket at
//! hand are what the test says. Single-threaded.

mod builder;
mod family;
mod node;
mod packet;
mod ranges;
mod raw;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::vec::Vec;

use crate::abi::{
    AffinityKey, AffinityRecord, Backend, BackendId, COUNTERS, Counter, FILTER_WORDS, FactsWord,
    NetnsRecord, RefusalWord, ServicePortId, SetWord, SocketKey, SocketLink, SocketPeer,
    SocketRecord,
};
use crate::select::Choice;
use crate::socket::in_node;
use crate::tables::{FlowTable, RefusalTables, ServiceTables, SocketTables};
pub use builder::{READY, Words, words};
use family::Family;
pub use family::{HostFlow, OfFamily};
use node::Node;
pub use node::{AskedRoute, HostRoute};
pub use packet::HostPacket;

/// How many entries each table holds; more is refused, or evicts what was used longest ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Main flow table of each family.
    pub flows: usize,
    /// Half-open flow table of each family.
    pub half_open: usize,
    /// Peers of unconnected sockets: of all sockets of pods together, and as many of those of the node.
    pub peers: usize,
    /// Clients of service ports with session affinity.
    pub affinity: usize,
    /// Sockets with a record, of pods and as many of the node.
    pub sockets: usize,
    /// What a full flow table does.
    pub when_full: WhenFull,
}

impl Default for Capacities {
    fn default() -> Self {
        let many = 1 << 20;
        Self {
            flows: many,
            half_open: many,
            peers: many,
            affinity: many,
            sockets: many,
            when_full: WhenFull::Evict,
        }
    }
}

/// What a full flow table does with one more record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It gives up the record that was used longest ago, as an LRU hash does.
    Evict,
    /// It refuses, as an LRU hash does when every element is in use on other CPUs.
    Refuse,
}

/// What decisions have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Calls that insert or remove an entry of a map.
    pub map_updates: u64,
    /// Lookups in hash maps and socket storage.
    pub lookups: u64,
    /// Stores into a value that is in its map already: no call.
    pub value_stores: u64,
    /// Reads of the coarse clock.
    pub coarse_clock_reads: u64,
    /// Reads of a precise clock.
    pub precise_clock_reads: u64,
}

/// Tables of both families, services and sockets.
pub struct HostTables {
    v4: Family<1>,
    v6: Family<4>,
    node: Node,
    sets: RefCell<Vec<SetWord>>,
    facts: RefCell<Vec<FactsWord>>,
    slots: RefCell<Vec<BackendId>>,
    backends: RefCell<Vec<Backend>>,
    generations: Cell<u32>,
    filter: RefCell<Vec<u64>>,
    interface: Cell<u32>,
    with_flows: RefCell<HashSet<u32>>,
    flow_sources: RefCell<HashSet<(u32, usize)>>,
    cookie: Cell<u64>,
    netns_cookie: Cell<u64>,
    node_netns: Cell<u64>,
    node_only: Cell<bool>,
    cgroup_bypassed: Cell<bool>,
    disconnected: RefCell<HashSet<u64>>,
    netns: RefCell<HashMap<u64, NetnsRecord>>,
    affinity: RefCell<HashMap<AffinityKey, AffinityRecord>>,
    seconds: Cell<u32>,
    records: [RefCell<HashMap<u64, SocketRecord>>; 2],
    peers: [RefCell<HashMap<SocketKey, SocketPeer>>; 2],
    counters: RefCell<Vec<u64>>,
    refusals: Cell<RefusalWord>,
    now: Cell<u32>,
    random: Cell<u64>,
    next_random: RefCell<VecDeque<u32>>,
    capacities: Cell<Capacities>,
    costs: Cell<Costs>,
}

impl Default for HostTables {
    fn default() -> Self {
        Self::new()
    }
}

impl HostTables {
    /// Empty tables with room for everything, at an arbitrary time that is not 0.
    pub fn new() -> Self {
        Self {
            v4: Family::new(),
            v6: Family::new(),
            node: Node::new(),
            sets: RefCell::default(),
            facts: RefCell::default(),
            slots: RefCell::default(),
            // Backend 0 is none.
            backends: RefCell::new(std::vec![Backend::default()]),
            generations: Cell::new(0),
            filter: RefCell::new(std::vec![0; FILTER_WORDS as usize]),
            interface: Cell::new(1),
            with_flows: RefCell::default(),
            flow_sources: RefCell::default(),
            cookie: Cell::new(1),
            netns_cookie: Cell::new(2),
            node_netns: Cell::new(1),
            node_only: Cell::new(false),
            cgroup_bypassed: Cell::new(false),
            disconnected: RefCell::default(),
            netns: RefCell::default(),
            affinity: RefCell::default(),
            seconds: Cell::new(100_000),
            records: Default::default(),
            peers: Default::default(),
            counters: RefCell::new(std::vec![0; COUNTERS as usize]),
            refusals: Cell::default(),
            now: Cell::new(1_000),
            random: Cell::new(0x2545_f491_4f6c_dd1d),
            next_random: RefCell::default(),
            capacities: Cell::default(),
            costs: Cell::default(),
        }
    }

    /// Sets the coarse time, in ticks.
    pub fn set_now(&self, ticks: u32) {
        self.now.set(ticks);
    }

    /// Lets time pass.
    pub fn advance(&self, ticks: u32) {
        self.now.set(self.now.get().wrapping_add(ticks));
    }

    /// Starts the sequence of random numbers anew; 0 is taken as 1.
    pub fn seed(&self, seed: u64) {
        self.random.set(seed.max(1));
    }

    /// The next random number is this one; several are used in order.
    pub fn push_random(&self, number: u32) {
        self.next_random.borrow_mut().push_back(number);
    }

    /// Forgets the numbers that [`Self::push_random`] gave and nobody asked for.
    pub fn clear_random(&self) {
        self.next_random.borrow_mut().clear();
    }

    /// Sets the interface at hand.
    pub fn set_interface(&self, ifindex: u32) {
        self.interface.set(ifindex);
    }

    /// Sets the socket at hand.
    pub fn set_cookie(&self, cookie: u64) {
        self.cookie.set(cookie);
    }

    /// Sets the network namespace of the socket at hand; that of the node is 1, another to begin with.
    pub fn set_netns(&self, cookie: u64) {
        self.netns_cookie.set(cookie);
    }

    /// Sets the node's own network namespace; 0 for a kernel that does not tell.
    pub fn set_node_netns(&self, cookie: u64) {
        self.node_netns.set(cookie);
    }

    /// Stores what is known of a network namespace.
    pub fn know_netns(&self, cookie: u64, record: NetnsRecord) {
        self.netns.borrow_mut().insert(cookie, record);
    }

    /// Serves sockets of the node's own network namespace only, or all.
    pub fn set_node_only(&self, node_only: bool) {
        self.node_only.set(node_only);
    }

    /// Puts the process at hand into a cgroup that is left alone, or out of it.
    pub fn set_cgroup_bypassed(&self, bypassed: bool) {
        self.cgroup_bypassed.set(bypassed);
    }

    /// Lets seconds pass on the monotonic clock.
    pub fn advance_seconds(&self, seconds: u32) {
        self.seconds.set(self.seconds.get().wrapping_add(seconds));
    }

    /// All records of session affinity.
    pub fn affinities(&self) -> Vec<(AffinityKey, AffinityRecord)> {
        self.affinity.borrow().iter().map(|(key, record)| (*key, *record)).collect()
    }

    /// Stores a record of session affinity behind the decisions' back.
    pub fn put_affinity(&self, key: AffinityKey, record: AffinityRecord) {
        self.affinity.borrow_mut().insert(key, record);
    }

    /// Ends the connection of the socket at hand without a word, as `connect` to `AF_UNSPEC` does.
    pub fn disconnect(&self) {
        self.disconnected.borrow_mut().insert(self.cookie.get());
    }

    /// Frees the socket at hand, with its storage and nothing else, as the kernel does.
    pub fn free_socket(&self) {
        self.records().borrow_mut().remove(&self.cookie.get());
    }

    /// Sets how much the tables hold; what they hold already stays.
    pub fn set_capacities(&self, capacities: Capacities) {
        self.capacities.set(capacities);
    }

    /// A counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.borrow().get(counter as usize).copied().unwrap_or(0)
    }

    /// All counters that are not 0.
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        Counter::ALL
            .iter()
            .map(|counter| (*counter, self.counter(*counter)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }

    /// What decisions cost since the last [`Self::reset_costs`].
    pub fn costs(&self) -> Costs {
        let in_flows: u64 = self.record_stores().iter().map(|stores| stores.get()).sum();
        let costs = self.costs.get();
        Costs { value_stores: costs.value_stores + in_flows, ..costs }
    }

    /// Begins to count costs anew.
    pub fn reset_costs(&self) {
        self.costs.set(Costs::default());
        for stores in self.record_stores() {
            stores.set(0);
        }
    }

    /// All peers of unconnected sockets.
    pub fn peers(&self) -> Vec<(SocketKey, SocketPeer)> {
        let of = |peers: &RefCell<HashMap<_, _>>| peers.borrow().clone();
        self.peers.iter().flat_map(of).collect()
    }

    fn record_stores(&self) -> [&Cell<u64>; 4] {
        [
            self.v4.store(FlowTable::Main).value_stores(),
            self.v4.store(FlowTable::HalfOpen).value_stores(),
            self.v6.store(FlowTable::Main).value_stores(),
            self.v6.store(FlowTable::HalfOpen).value_stores(),
        ]
    }

    fn cost(&self, add: impl FnOnce(&mut Costs)) {
        let mut costs = self.costs.get();
        add(&mut costs);
        self.costs.set(costs);
    }
}

impl ServiceTables for HostTables {
    fn set(&self, index: u32) -> SetWord {
        self.sets.borrow().get(index as usize).copied().unwrap_or(SetWord::REJECT)
    }

    fn facts(&self, id: ServicePortId) -> FactsWord {
        self.facts.borrow().get(id as usize).copied().unwrap_or_default()
    }

    fn slot(&self, index: u32) -> BackendId {
        self.slots.borrow().get(index as usize).copied().unwrap_or(0)
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        if id == 0 { None } else { self.backends.borrow().get(id as usize).copied() }
    }

    fn now(&self) -> u32 {
        self.cost(|costs| costs.coarse_clock_reads += 1);
        self.now.get()
    }

    fn seconds(&self) -> u32 {
        self.cost(|costs| costs.precise_clock_reads += 1);
        self.seconds.get()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        self.cost(|costs| costs.lookups += 1);
        self.affinity.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, record: &AffinityRecord) -> bool {
        self.cost(|costs| costs.map_updates += 1);
        let mut affinity = self.affinity.borrow_mut();
        if affinity.len() >= self.capacities.get().affinity && !affinity.contains_key(key) {
            return false;
        }
        affinity.insert(*key, *record);
        true
    }

    fn random(&self) -> u32 {
        if let Some(number) = self.next_random.borrow_mut().pop_front() {
            return number;
        }
        // xorshift64*: its high half is good enough for a chi-square test.
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        high_half(state.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn count(&self, counter: Counter) {
        if let Some(count) = self.counters.borrow_mut().get_mut(counter as usize) {
            *count += 1;
        }
    }
}

impl RefusalTables for HostTables {
    fn refusals(&self) -> Option<RefusalWord> {
        Some(self.refusals.get())
    }

    fn set_refusals(&self, word: RefusalWord) {
        self.refusals.set(word);
    }
}

impl SocketTables for HostTables {
    fn cookie(&self) -> u64 {
        self.cookie.get()
    }

    fn netns_cookie(&self) -> u64 {
        self.netns_cookie.get()
    }

    fn node_netns(&self) -> u64 {
        self.node_netns.get()
    }

    fn netns(&self, cookie: u64) -> Option<NetnsRecord> {
        self.cost(|costs| costs.lookups += 1);
        self.netns.borrow().get(&cookie).copied()
    }

    fn node_only(&self) -> bool {
        self.node_only.get()
    }

    fn cgroup_bypassed(&self) -> bool {
        self.cgroup_bypassed.get()
    }

    fn is_connected(&self) -> bool {
        !self.disconnected.borrow().contains(&self.cookie.get())
    }

    fn record(&self) -> Option<SocketRecord> {
        self.cost(|costs| costs.lookups += 1);
        self.records().borrow().get(&self.cookie.get()).copied()
    }

    fn set_connected(&self, vip: &[u32; 4], vip_port: u16, to: &Choice) -> bool {
        self.disconnected.borrow_mut().remove(&self.cookie.get());
        self.update_record(|record| {
            *record = SocketRecord {
                vip: *vip,
                vip_port,
                peer: to.addr,
                peer_port: to.port,
                backend: to.id,
                generation: to.generation,
                ..*record
            };
        })
    }

    fn set_disconnected(&self) {
        if self.record().is_some() {
            self.update_record(|record| record.vip_port = 0);
        }
    }

    fn remove_record(&self) {
        self.records().borrow_mut().remove(&self.cookie.get());
    }

    fn set_head(&self, head: &SocketLink, peers: u32) -> bool {
        self.update_record(|record| {
            record.head = *head;
            record.peers = peers;
        })
    }

    fn peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        self.cost(|costs| costs.lookups += 1);
        self.peers_at_hand().borrow().get(key).copied()
    }

    fn set_peer(&self, key: &SocketKey, peer: &SocketPeer) -> bool {
        self.cost(|costs| costs.map_updates += 1);
        let mut peers = self.peers_at_hand().borrow_mut();
        if peers.len() >= self.capacities.get().peers && !peers.contains_key(key) {
            return false;
        }
        peers.insert(*key, *peer);
        true
    }

    fn remove_peer(&self, key: &SocketKey) {
        self.cost(|costs| costs.map_updates += 1);
        self.peers_at_hand().borrow_mut().remove(key);
    }
}

impl HostTables {
    /// The table of sockets like the one at hand.
    fn records(&self) -> &RefCell<HashMap<u64, SocketRecord>> {
        let [pods, node] = &self.records;
        if in_node(self) { node } else { pods }
    }

    fn peers_at_hand(&self) -> &RefCell<HashMap<SocketKey, SocketPeer>> {
        let [pods, node] = &self.peers;
        if in_node(self) { node } else { pods }
    }

    /// Changes the record of the socket at hand, which is made first if there is room.
    fn update_record(&self, update: impl FnOnce(&mut SocketRecord)) -> bool {
        let mut records = self.records().borrow_mut();
        let room = records.len() < self.capacities.get().sockets;
        if let Some(old) = records.get_mut(&self.cookie.get()) {
            self.cost(|costs| costs.value_stores += 1);
            update(old);
            return true;
        }
        self.cost(|costs| costs.map_updates += 1);
        if room {
            update(records.entry(self.cookie.get()).or_default());
        }
        room
    }
}

const fn high_half(word: u64) -> u32 {
    (word >> 32) as u32
}
