//! The agent from objects to tables, without a kernel: what it would store is stored in maps in
//! memory, and once more where decisions can be run on it.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_agent::{
    convert::{self, Converter, Findings, Kind, Object},
    datapath::{
        Datapath as _,
        fake::{Fake, Step, steps},
    },
    diff::{self, Op},
    model::{Change, Dirty, ObjectKey, Store},
    plan::{Batch, Capacity, FrontKey, NodeFacts, Planner},
    policy,
};
use lb_common::{
    abi::{Backend, BackendFlags, BackendWord, FactsFlags, FactsWord, FrontendFlags, Scope},
    host::{HostTables, Words, words},
};
use lb_testbed::oracle::{
    Cluster, History,
    cluster::{Config, Node},
    generate::NODE,
    history::Event,
    render,
};
use serde_json::Value;

const CAPACITY: Capacity =
    Capacity { service_ports: 128, backends: 1024, slots: 2048, frontends: 256, addresses: 128 };

/// An agent on [`NODE`].
pub(crate) struct Agent {
    converter: Converter,
    store: Store,
    planner: Planner,
    maps: Fake,
    node_port_addresses: policy::node::NodePortAddresses,
    interfaces: Vec<IpAddr>,
    /// The same tables, with flows, sockets and affinity beside them.
    pub(crate) tables: HostTables,
    /// How many flows and sockets there were.
    pub(crate) senders: Cell<u64>,
}

impl Agent {
    /// An agent that knows nothing of the cluster yet but its `ServiceCIDR`s.
    pub(crate) fn new(config: &Config, service_cidrs: &[String]) -> Self {
        let addresses = &config.node_port_addresses;
        let mut agent = Self {
            converter: Converter::new(NODE).with_external_ips(config.external_ips),
            store: Store::default(),
            planner: Planner::new(CAPACITY),
            maps: Fake::new(CAPACITY),
            node_port_addresses: if addresses.is_empty() {
                policy::node::NodePortAddresses::default()
            } else {
                addresses.join(",").parse().unwrap()
            },
            interfaces: Vec::new(),
            tables: HostTables::new(),
            senders: Cell::new(0),
        };
        if !service_cidrs.is_empty() {
            let change = agent.convert(&render::service_cidr("kubernetes", service_cidrs), true);
            let dirty = agent.store.apply_all(change);
            agent.plan(&dirty);
        }
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
        let mut changes = Vec::new();
        let mut moved = false;
        for event in burst {
            let (object, there) = event.render();
            if let Event::Node(Node { name, interfaces, .. }) = event
                && name == NODE
                && self.interfaces != *interfaces
            {
                self.interfaces.clone_from(interfaces);
                moved = true;
            }
            changes.extend(self.convert(&object, there));
        }
        let dirty = self.store.apply_all(changes);
        self.plan(&Dirty { node: dirty.node || moved, ..dirty });
    }

    /// What an object says, by way of its text.
    fn convert(&mut self, object: &Value, there: bool) -> Option<Change> {
        let text = object.to_string();
        let raw = convert::json(text.as_bytes()).expect("generated objects are of the API's types");
        let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
        let mut findings = Findings::default();
        let drop = |kind, key: ObjectKey| match kind {
            Kind::Service => Some(Change::DropService(key)),
            Kind::Slice => Some(Change::DropSlice(key)),
            Kind::Node | Kind::ServiceCidr => None,
        };
        if !there {
            let (namespace, name) = (&raw.metadata.namespace, &raw.metadata.name);
            let key = self.converter.key(kind, namespace, name, &mut findings).unwrap();
            return drop(kind, key);
        }
        match self.converter.object(kind, &raw, &mut findings)? {
            Object::Service(service) => Some(Change::SetService(service)),
            Object::Slice(slice) => Some(Change::SetSlice(slice)),
            Object::Node(node) => Some(Change::SetNode(node)),
            Object::ServiceCidr(cidr) => Some(Change::SetServiceCidr(cidr)),
            Object::Ignored(kind, key) => drop(kind, key),
        }
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            node_port_addresses: policy::node::node_port_addresses(
                &self.node_port_addresses,
                self.store.node(),
                &self.interfaces,
            ),
            service_cidrs: policy::node::service_cidrs(&self.store),
        }
    }

    fn plan(&mut self, dirty: &Dirty) {
        if dirty.node {
            self.planner.set_node(self.facts());
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

    /// All that the tables say, ids aside: what is captured, and where it leads.
    pub(crate) fn meaning(&self) -> Meaning {
        let frontends = self.maps.frontends.iter().map(|(key, word)| {
            let found = key.found(*word).expect("every word belongs to its key");
            let at = (SocketAddr::new(key.addr(), key.port()), key.proto());
            (at, self.port(key, found.flags, found.id))
        });
        let addresses = self.maps.addresses.iter();
        Meaning {
            frontends: frontends.collect(),
            addresses: addresses.map(|(addr, word)| (*addr, word.flags())).collect(),
            service_cidrs: format!("{:?}", self.maps.service_cidrs),
        }
    }

    fn port(&self, key: &FrontKey, flags: u8, id: u32) -> PortMeaning {
        let backend = |id: u32| self.maps.backends[id as usize];
        let set = |scope: Scope| {
            let word = self.maps.sets[scope.index(id) as usize];
            let slots = word.first() as usize..(word.first() + word.count()) as usize;
            let members =
                self.maps.slots[slots].iter().map(|id| socket_address(key, &backend(*id)));
            (members.collect(), word.count() == 0 && word.drops_when_empty())
        };
        let all = self.maps.backends.iter();
        let of_port = all.filter(|backend| {
            let word = BackendWord(backend.word);
            backend.service_port == id && word.has(BackendFlags::PRESENT)
        });
        PortMeaning {
            external: flags & FrontendFlags::EXTERNAL != 0,
            facts: self.maps.facts[id as usize],
            cluster: set(Scope::Cluster),
            local: set(Scope::Local),
            serving: of_port
                .filter(|backend| BackendWord(backend.word).has(BackendFlags::SERVING))
                .map(|backend| socket_address(key, backend))
                .collect(),
        }
    }
}

/// What tables mean, whatever ids they use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// By address, port and protocol number; nodePorts at the unspecified address.
    pub(crate) frontends: BTreeMap<(SocketAddr, u8), PortMeaning>,
    /// Flags of addresses.
    pub(crate) addresses: BTreeMap<IpAddr, u32>,
    service_cidrs: String,
}

/// What a service port means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortMeaning {
    pub(crate) external: bool,
    pub(crate) facts: FactsWord,
    /// Members, and whether an empty set drops.
    pub(crate) cluster: (BTreeSet<SocketAddr>, bool),
    pub(crate) local: (BTreeSet<SocketAddr>, bool),
    /// Where UDP flows may stay (U-4).
    pub(crate) serving: BTreeSet<SocketAddr>,
}

impl PortMeaning {
    /// The set that a client on this node gets, and whether it drops when it is empty.
    pub(crate) fn for_client_here(&self) -> &(BTreeSet<SocketAddr>, bool) {
        let local = !self.external && self.facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
        if local { &self.local } else { &self.cluster }
    }
}

fn socket_address(key: &FrontKey, backend: &Backend) -> SocketAddr {
    let ip = lb_agent::plan::address(&backend.addr, matches!(key, FrontKey::V6(_)));
    SocketAddr::new(ip, u16::from_be(BackendWord(backend.word).port()))
}

/// Makes the same store in the tables of the decisions.
fn store(tables: &HostTables, maps: &Fake, step: Step) {
    match step {
        Step::Name(..) | Step::Meta(..) | Step::ServiceCidr(..) => {}
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
