//! The agent from objects to tables, without a kernel: what it would store is stored in maps in
//! memory, and once more where decisions can be run on it.

use std::{cell::Cell, net::IpAddr};

use lb_agent::{
    datapath::{
        Datapath as _,
        fake::{Fake, Step, steps},
    },
    diff::{self, Op},
    model::{Dirty, ObjectKey, Store},
    plan::{Batch, Capacity, FrontKey, NodeFacts, Planner, SourceRange},
    policy::{self, local::LocalDetector},
};
use lb_common::{
    abi::{Backend, BackendFlags, BackendWord},
    host::{HostTables, Words, words},
    tables::LocalMode,
};
use lb_testbed::oracle::{Cluster, History, cluster::Config, history::Event};

use super::{
    meaning::Meaning,
    node,
    read::{Reader, node_port_addresses},
};

pub(crate) const CAPACITY: Capacity = Capacity {
    service_ports: 128,
    backends: 1024,
    slots: 2048,
    frontends: 256,
    addresses: 128,
    source_ranges: 512,
};

/// An agent on [`NODE`].
pub(crate) struct Agent {
    reader: Reader,
    store: Store,
    planner: Planner,
    maps: Fake,
    node_port_addresses: policy::node::NodePortAddresses,
    detector: LocalDetector,
    constants: (LocalMode, bool),
    interfaces: Vec<IpAddr>,
    /// The same tables, with flows, sockets and affinity beside them.
    pub(crate) tables: HostTables,
    /// How many flows and sockets there were.
    pub(crate) senders: Cell<u64>,
}

impl Agent {
    /// An agent that knows nothing of the cluster yet but its `ServiceCIDR`s.
    pub(crate) fn new(config: &Config, service_cidrs: &[String]) -> Self {
        let mut agent = Self {
            reader: Reader::new(config),
            store: Store::default(),
            planner: Planner::new(CAPACITY),
            maps: Fake::new(CAPACITY),
            node_port_addresses: node_port_addresses(config),
            detector: node::detector(config),
            constants: node::constants(config),
            interfaces: config.interfaces.clone(),
            tables: HostTables::new(),
            senders: Cell::new(0),
        };
        node::tell(&agent.tables, config);
        let cidrs = agent.reader.service_cidrs(service_cidrs);
        let dirty = agent.store.apply_all(cidrs);
        agent.plan(&Dirty { node: true, ..dirty });
        agent
    }

    /// An agent that was there all the time.
    pub(crate) fn with_history(history: &History) -> Self {
        let mut agent = Self::new(&history.config, &history.service_cidrs);
        for burst in &history.bursts {
            agent.take(burst);
        }
        agent
    }

    /// An agent that was told of every object once.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut agent = Self::new(&cluster.config, &cluster.service_cidrs);
        agent.take(&cluster.events());
        agent
    }

    /// Takes up what happened together.
    pub(crate) fn take(&mut self, burst: &[Event]) {
        let (changes, interfaces) = self.reader.burst(burst);
        let moved = interfaces.is_some();
        if let Some(interfaces) = interfaces {
            self.interfaces = interfaces;
        }
        let dirty = self.store.apply_all(changes);
        self.plan(&Dirty { node: dirty.node || moved, ..dirty });
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            node_port_addresses: policy::node::node_port_addresses(
                &self.node_port_addresses,
                self.store.node(),
                &self.interfaces,
            ),
            host_addresses: policy::node::host_addresses(&self.interfaces),
            service_cidrs: policy::node::service_cidrs(&self.store),
        }
    }

    fn plan(&mut self, dirty: &Dirty) {
        if dirty.node {
            self.planner.set_node(self.facts());
            let ranges = self.detector.ranges(self.store.node()).unwrap_or_default();
            node::tell_local_ranges(&self.tables, &ranges);
        }
        let mut updates = Vec::new();
        for service in &dirty.services {
            let ports = policy::service_ports(&self.store, service);
            for old in self.planner.ports_of(&service.namespace, &service.name) {
                if !ports.iter().any(|(key, _)| *key == old) {
                    updates.push((old, None));
                }
            }
            updates.extend(ports.into_iter().map(|(key, desired)| (key, Some(desired))));
        }
        let batch = self.planner.plan(updates);
        self.apply(batch);
    }

    fn apply(&mut self, batch: Batch) {
        let epoch = batch.epoch;
        self.run(&diff::operations(batch));
        // The grace period: no decision is under way.
        let retired = self.planner.release(epoch);
        self.run(&diff::clear(&retired));
        assert_eq!((self.planner.failed(), self.planner.unplaced_addresses()), (0, 0), "too small");
    }

    fn run(&mut self, ops: &[Op]) {
        for step in ops.iter().flat_map(steps) {
            self.maps.step(step);
            store(&self.tables, &self.maps, step);
        }
    }

    /// Starts anew over what is programmed, with the same objects; tells what it wrote.
    pub(crate) fn restart(&mut self) -> Vec<Op> {
        let (planner, retired) = Planner::adopt(CAPACITY, &self.maps.snapshot().unwrap());
        self.planner = planner;
        self.planner.set_node(self.facts());
        let keys: Vec<ObjectKey> = self.store.services().map(|s| s.key.clone()).collect();
        let store = &self.store;
        let all = keys.iter().flat_map(|key| policy::service_ports(store, key));
        let batch = self.planner.plan_all(all);
        let mut ops = diff::clear(&retired);
        ops.extend(diff::operations(batch));
        self.run(&ops);
        ops
    }

    /// Who has which id and generation: what records of flows and of affinity hold.
    pub(crate) fn identities(&self) -> Vec<(u32, Backend)> {
        let all = (0..).zip(&self.maps.backends);
        all.filter(|(_, backend)| BackendWord(backend.word).has(BackendFlags::PRESENT))
            .map(|(id, backend)| (id, *backend))
            .collect()
    }

    /// What programs are loaded with for this agent.
    pub(crate) fn constants(&self) -> (LocalMode, bool) {
        self.constants
    }

    /// All that the tables say, ids aside.
    pub(crate) fn meaning(&self) -> Meaning {
        Meaning::of(&self.maps)
    }
}

/// Makes the same store in the tables of the decisions.
fn store(tables: &HostTables, maps: &Fake, step: Step) {
    match step {
        // A node port has its bit with its frontend.
        Step::Name(..) | Step::Meta(..) | Step::ServiceCidr(_, _, None) | Step::NodePort(..) => {}
        // They are written once in these tests.
        Step::ServiceCidr(_, _, Some((addr, prefix))) => tables.add_service_cidr(addr, prefix),
        Step::PutSourceRange(SourceRange { id, range }) => {
            tables.store_source_range(id, range.first(), range.prefix(), true);
        }
        Step::DeleteSourceRange(SourceRange { id, range }) => {
            tables.store_source_range(id, range.first(), range.prefix(), false);
        }
        Step::BackendAddress(id, _) | Step::BackendWord(id, _) => {
            tables.store_backend(id, maps.backends[id as usize]);
        }
        Step::Slot(index, id) => tables.store_slot(index, id),
        Step::Set(index, word) => tables.store_set(index, word),
        Step::Facts(id, word) => tables.set_facts(id, word),
        Step::Delete(FrontKey::V4(key)) => tables.store_frontend(key, None),
        Step::Delete(FrontKey::V6(key)) => tables.store_frontend(key, None),
        Step::Put(FrontKey::V4(key), word) => tables.store_frontend(key, Some(word)),
        Step::Put(FrontKey::V6(key), word) => tables.store_frontend(key, Some(word)),
        Step::DeleteAddress(addr) => match words(addr) {
            Words::V4(ip) => tables.store_address(ip, None),
            Words::V6(ip) => tables.store_address(ip, None),
        },
        Step::PutAddress(addr, word) => match words(addr) {
            Words::V4(ip) => tables.store_address(ip, Some(word)),
            Words::V6(ip) => tables.store_address(ip, Some(word)),
        },
    }
}
