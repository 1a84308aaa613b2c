//! Random histories of Services and of the node, and the planner, the maps and the readers that live them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::BackendFlags;
use proptest::prelude::*;

use super::guards::ranges;
use super::model::Model;
use super::reader::Reader;
use crate::datapath::Datapath as _;
use crate::datapath::fake::{Fake, Step, steps};
use crate::diff::{self, Op};
use crate::model::{
    DesiredBackend, DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol,
};
use crate::plan::ids::Freed;
use crate::plan::{Capacity, NodeFacts, Planner};

pub(super) const PORTS: usize = 5;
pub(super) const FLAGS: [u16; 6] = [
    BackendFlags::SERVING | BackendFlags::READY | BackendFlags::IN_CLUSTER,
    BackendFlags::SERVING | BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL | BackendFlags::LOCAL,
    BackendFlags::SERVING | BackendFlags::IN_LOCAL,
    BackendFlags::SERVING | BackendFlags::TERMINATING,
    BackendFlags::TERMINATING | BackendFlags::IN_CLUSTER,
    BackendFlags::READY,
];

pub(super) const ROOMY: Capacity = Capacity {
    service_ports: 64,
    backends: 256,
    slots: 512,
    frontends: 48,
    addresses: 48,
    source_ranges: 48,
};
pub(super) const TIGHT: Capacity = Capacity {
    service_ports: 4,
    backends: 12,
    slots: 14,
    frontends: 3,
    addresses: 3,
    source_ranges: 3,
};

/// The endpoints of a port are recognised by their address.
pub(super) fn endpoint(port: usize, n: usize) -> (IpAddr, u16) {
    let (p, n) = (u8::try_from(port).unwrap(), u8::try_from(n).unwrap());
    if port.is_multiple_of(2) {
        (IpAddr::from([10, p, 0, n]), 8080)
    } else {
        (IpAddr::from([0xfd00, u16::from(p), 0, 0, 0, 0, 0, u16::from(n)]), 8080)
    }
}

pub(super) fn key(port: usize) -> PortKey {
    PortKey {
        namespace: "ns".into(),
        service: format!("svc{port}").into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: if port.is_multiple_of(2) { Family::V4 } else { Family::V6 },
    }
}

/// A few VIPs and node ports that all Services of a family fight for.
pub(super) fn vip(port: usize, n: usize) -> Frontend {
    Frontend::cluster_ip(vip_addr(port, n), 80)
}

fn vip_addr(port: usize, n: usize) -> IpAddr {
    let n = u8::try_from(n).unwrap();
    if port.is_multiple_of(2) {
        IpAddr::from([10, 96, 0, n])
    } else {
        IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(n)])
    }
}

pub(super) type Update = (usize, Option<DesiredPort>);

/// Any subset of kinds at each of three VIPs, and of two node ports.
fn frontends(port: usize, kinds: [u8; 3], node_ports: u8) -> Vec<Frontend> {
    const KINDS: [FrontendKind; 3] =
        [FrontendKind::ClusterIp, FrontendKind::ExternalIp, FrontendKind::LoadBalancer];
    let at = |n: usize| {
        let of_vip = move |&i: &usize| kinds[n] & (1 << i) != 0;
        let vip = move |i: usize| Frontend { kind: KINDS[i], ..vip(port, n) };
        (0..KINDS.len()).filter(of_vip).map(vip)
    };
    let node_port = |n: u16| Frontend::node_port(key(port).family, 30_000 + n);
    (0..3)
        .flat_map(at)
        .chain((0..2).filter(|n| node_ports & (1 << n) != 0).map(node_port))
        .collect()
}

fn desired() -> impl Strategy<Value = Update> {
    let backends = proptest::collection::vec(proptest::option::weighted(0.6, 0..FLAGS.len()), 4);
    let kinds = [0u8..8, 0u8..8, 0u8..4];
    let port = (0..PORTS, any::<bool>(), kinds, 0u8..8, backends, 0..3i64, any::<[bool; 3]>());
    (port, proptest::option::of(1u32..5), 0u8..32).prop_map(
        |((port, gone, kinds, node_ports, backends, created_s, bits), affinity_timeout_s, of)| {
            if gone && kinds[0] % 3 == 0 {
                return (port, None);
            }
            let [internal_local, external_local, drop_when_no_local] = bits;
            let backends = backends.into_iter().enumerate().filter_map(|(n, flags)| {
                let (addr, number) = endpoint(port, n);
                flags.map(|i| DesiredBackend { addr, port: number, flags: FLAGS[i] })
            });
            let desired = DesiredPort {
                created_s,
                frontends: frontends(port, kinds, node_ports.saturating_sub(4)),
                backends: backends.collect(),
                internal_local,
                external_local,
                drop_when_no_local,
                affinity_timeout_s,
                source_ranges: ranges(key(port).family, of),
            };
            (port, Some(desired))
        },
    )
}

/// Addresses of the node, of which one is a VIP as well, and ranges.
fn node() -> impl Strategy<Value = NodeFacts> {
    let addresses = ["192.168.0.1", "192.168.0.2", "10.96.0.1", "fd02::1", "fd01::1"];
    let loopbacks = ["127.0.0.1", "::1"];
    let own = addresses.map(|addr| (addr.parse().unwrap(), false)).into_iter();
    let all: Vec<_> = own.chain(loopbacks.map(|addr| (addr.parse().unwrap(), true))).collect();
    let cidrs = ["10.96.0.0/12", "10.80.0.0/16", "fd01::/112", "fd09::/64"].map(|text| {
        let (addr, prefix) = text.split_once('/').unwrap();
        (addr.parse().unwrap(), prefix.parse().unwrap())
    });
    let hosts = ["192.168.0.1", "192.168.0.3", "10.96.0.1", "fd02::2", "fd01::1"];
    let hosts = hosts.map(|addr| addr.parse().unwrap()).to_vec();
    (
        proptest::sample::subsequence(all, 0..=7),
        proptest::sample::subsequence(hosts, 0..=5),
        proptest::sample::subsequence(cidrs.to_vec(), 0..=4),
    )
        .prop_map(|(node_port_addresses, host_addresses, service_cidrs)| NodeFacts {
            node_port_addresses,
            host_addresses,
            service_cidrs,
        })
}

/// What happens at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) updates: Vec<Update>,
    pub(super) node: Option<NodeFacts>,
    /// A grace period passes afterwards.
    pub(super) grace: bool,
}

pub(super) fn history() -> impl Strategy<Value = Vec<Change>> {
    let updates = proptest::collection::vec(desired(), 1..4);
    let change = (updates, proptest::option::weighted(0.3, node()), any::<bool>())
        .prop_map(|(updates, node, grace)| Change { updates, node, grace });
    proptest::collection::vec(change, 1..12)
}

pub(super) struct World {
    pub(super) planner: Planner,
    pub(super) fake: Fake,
    pub(super) before: Model,
    pub(super) model: Model,
    readers: Vec<Reader>,
}

impl World {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            planner: Planner::new(capacity),
            fake: Fake::new(capacity),
            before: Model::default(),
            model: Model::default(),
            readers: (0..3).map(|_| Reader::default()).collect(),
        }
    }

    pub(super) fn plan(&mut self, change: &Change) -> Vec<Op> {
        let waiting: Vec<_> = self.planner.pools.quarantine.iter().collect();
        self.before = self.model.clone();
        for update in &change.updates {
            self.model.update(update);
        }
        if let Some(node) = &change.node {
            self.model.node = Some(node.clone());
            self.planner.set_node(node.clone());
        }
        let updates = change.updates.iter();
        let updates = updates.map(|(port, desired)| (key(*port), desired.clone()));
        let ops = diff::operations(self.planner.plan(updates));
        assert_unused(&waiting, &ops);
        ops
    }

    /// Applies one store; readers make some loads.
    pub(super) fn step(&mut self, step: Step, noise: u8) {
        self.fake.step(step);
        for (i, reader) in self.readers.iter_mut().enumerate() {
            if noise & (1 << i) == 0 {
                continue;
            }
            let is_new = reader.front.is_none();
            if reader.advance(&self.fake, noise >> 3) {
                *reader = Reader::default();
            } else if let (true, Some(front)) = (is_new, reader.front) {
                reader.allow(front, &self.before, &self.model);
            }
        }
    }

    pub(super) fn apply(&mut self, ops: &[Op], noise: &mut impl Iterator<Item = u8>) {
        for reader in &mut self.readers {
            if let Some(front) = reader.front {
                reader.allow(front, &self.before, &self.model);
            }
        }
        for step in ops.iter().flat_map(steps) {
            self.step(step, noise.next().unwrap());
        }
    }

    /// Every program that is on its way arrives; then what they could see is free.
    pub(super) fn grace(&mut self) {
        for reader in &mut self.readers {
            while reader.front.is_some() {
                if reader.advance(&self.fake, 1) {
                    *reader = Reader::default();
                }
            }
        }
        if let Some(epoch) = self.planner.waiting() {
            let retired = self.planner.release(epoch);
            self.fake.apply(&diff::clear(&retired));
        }
    }
}

/// Operations must not write what a program may still read.
fn assert_unused(waiting: &[Freed], ops: &[Op]) {
    for op in ops {
        let used = |freed: &Freed| match (freed, op) {
            (Freed::Backend(a), Op::Backend(b, _)) | (Freed::ServicePort(a), Op::Name(b, _)) => {
                a == b
            }
            (Freed::Slots(range), Op::Slots(first, ids)) => {
                let end = first + u32::try_from(ids.len()).unwrap();
                range.first < end && *first < range.first + range.count
            }
            (Freed::SourceRange(a), Op::SourceRangePut(b)) => a == b,
            _ => false,
        };
        assert!(!waiting.iter().any(used), "{op:?} writes what waits for a grace period");
    }
}

/// No two live owners of an id or a slot; every backend in a set belongs to that service port.
pub(super) fn assert_ownership(planner: &Planner) {
    let (mut ids, mut backends, mut slots) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for table in planner.ports.iter().flatten().filter_map(|port| port.table.as_ref()) {
        assert!(table.id != 0 && ids.insert(table.id), "service port id {} twice", table.id);
        let own: BTreeSet<_> = table.backends.iter().map(|held| held.id).collect();
        for set in &table.sets {
            assert!(set.ids.iter().all(|id| own.contains(id)));
            let range = set.range.map_or(0..0, |range| range.first..range.first + range.count);
            assert_eq!(range.len(), set.ids.len());
            assert!(range.into_iter().all(|slot| slots.insert(slot)), "a slot twice");
        }
        assert!(own.into_iter().all(|id| id != 0 && backends.insert(id)), "a backend id twice");
    }
    for freed in planner.pools.quarantine.iter() {
        assert!(match freed {
            Freed::Backend(id) => backends.insert(id),
            Freed::ServicePort(id) => ids.insert(id),
            Freed::Slots(range) =>
                (range.first..range.first + range.count).all(|slot| slots.insert(slot)),
            Freed::SourceRange(_) => true, // May be taken up again meanwhile.
        });
    }
    let free = planner.pools.slots.free();
    assert_eq!(free as usize + slots.len(), planner.capacity.slots as usize, "slots lost");
    let free = planner.pools.backends.available();
    assert_eq!(free + backends.len(), planner.capacity.backends as usize - 1, "backends lost");
}

/// Adopts what is in the maps, as a restarted agent does, and brings it to the model. What is known
/// of the node comes before the first plan or after it.
pub(super) fn restart(mut fake: Fake, model: &Model, node_first: bool) -> (Planner, Fake, usize) {
    let (mut planner, retired) = Planner::adopt(fake.capacity(), &fake.snapshot().unwrap());
    fake.apply(&diff::clear(&retired));
    let node = || model.node.clone().unwrap_or_default();
    if node_first {
        planner.set_node(node());
    }
    let mut ops = diff::operations(planner.plan_all(model.all()));
    if !node_first {
        ops.extend(diff::operations(planner.plan_node(node())));
    }
    fake.apply(&ops);
    (planner, fake, retired.len() + ops.len())
}

pub(super) fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
}
