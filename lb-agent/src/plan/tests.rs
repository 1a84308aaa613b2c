//! Random histories of Services against maps in memory: who owns what, what readers can reach at
//! every step, and what is left after a crash at any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{Backend, BackendFlags, FactsFlags, FactsWord, Scope};
use proptest::prelude::*;

use super::ids::Freed;
use super::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::{Fake, Step, steps};
use crate::diff::{self, Op};
use crate::model::{DesiredBackend, Family, Frontend, Protocol};

const PORTS: usize = 5;
const FLAGS: [u16; 6] = [
    BackendFlags::SERVING | BackendFlags::READY | BackendFlags::IN_CLUSTER,
    BackendFlags::SERVING | BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL | BackendFlags::LOCAL,
    BackendFlags::SERVING | BackendFlags::IN_LOCAL,
    BackendFlags::SERVING | BackendFlags::TERMINATING,
    BackendFlags::TERMINATING | BackendFlags::IN_CLUSTER,
    BackendFlags::READY,
];

const ROOMY: Capacity = Capacity { service_ports: 64, backends: 256, slots: 512, frontends: 32 };
const TIGHT: Capacity = Capacity { service_ports: 4, backends: 12, slots: 14, frontends: 3 };

/// The endpoints of a port are recognised by their address.
fn endpoint(port: usize, n: usize) -> (IpAddr, u16) {
    let (p, n) = (u8::try_from(port).unwrap(), u8::try_from(n).unwrap());
    if port.is_multiple_of(2) {
        (IpAddr::from([10, p, 0, n]), 8080)
    } else {
        (IpAddr::from([0xfd00, u16::from(p), 0, 0, 0, 0, 0, u16::from(n)]), 8080)
    }
}

fn key(port: usize) -> PortKey {
    PortKey {
        namespace: "ns".into(),
        service: format!("svc{port}").into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: if port.is_multiple_of(2) { Family::V4 } else { Family::V6 },
    }
}

fn vip(port: usize, n: usize) -> Frontend {
    let n = u8::try_from(n).unwrap();
    let addr = if port.is_multiple_of(2) {
        IpAddr::from([10, 96, 0, n])
    } else {
        IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(n)])
    };
    Frontend::cluster_ip(addr, 80)
}

type Update = (usize, Option<DesiredPort>);

fn desired() -> impl Strategy<Value = Update> {
    let backends = proptest::collection::vec(proptest::option::weighted(0.6, 0..FLAGS.len()), 4);
    let port = (0..PORTS, any::<Option<()>>(), 1u8..8, backends, 0..3i64, any::<[bool; 2]>());
    (port, proptest::option::of(1u32..5)).prop_map(
        |((port, gone, vips, backends, created_s, [internal_local, drop]), affinity_timeout_s)| {
            if gone.is_none() && vips % 3 == 0 {
                return (port, None);
            }
            let frontends = (0..3).filter(|n| vips & (1 << n) != 0).map(|n| vip(port, n)).collect();
            let backends = backends.into_iter().enumerate().filter_map(|(n, flags)| {
                let (addr, number) = endpoint(port, n);
                flags.map(|i| DesiredBackend { addr, port: number, flags: FLAGS[i] })
            });
            let desired = DesiredPort {
                created_s,
                frontends,
                backends: backends.collect(),
                internal_local,
                external_local: false,
                drop_when_no_local: drop,
                affinity_timeout_s,
            };
            (port, Some(desired))
        },
    )
}

/// Batches, each with whether a grace period passes after it.
fn history() -> impl Strategy<Value = Vec<(Vec<Update>, bool)>> {
    proptest::collection::vec((proptest::collection::vec(desired(), 1..4), any::<bool>()), 1..12)
}

#[derive(Clone, Default)]
struct Model(BTreeMap<usize, DesiredPort>);

impl Model {
    fn update(&mut self, (port, desired): &Update) {
        match desired {
            Some(desired) => self.0.insert(*port, desired.clone()),
            None => self.0.remove(port),
        };
    }

    fn all(&self) -> Vec<(PortKey, DesiredPort)> {
        self.0.iter().map(|(&port, desired)| (key(port), desired.clone())).collect()
    }

    fn fronts(&self) -> BTreeSet<FrontKey> {
        let all = self.0.values().flat_map(|desired| &desired.frontends);
        all.map(|&frontend| FrontKey::new(frontend, Protocol::Tcp)).collect()
    }

    /// The strongest claim on a frontend.
    fn owner(&self, front: &FrontKey) -> Option<usize> {
        let claims = self.0.iter().filter(|(_, desired)| {
            desired.frontends.iter().any(|&f| FrontKey::new(f, Protocol::Tcp) == *front)
        });
        claims.min_by_key(|&(&port, desired)| (desired.created_s, key(port))).map(|(&port, _)| port)
    }

    /// What a frontend should reach.
    fn reach(&self, front: &FrontKey) -> Option<Vec<(IpAddr, u16)>> {
        let desired = &self.0[&self.owner(front)?];
        let local = desired.internal_local;
        let flag = if local { BackendFlags::IN_LOCAL } else { BackendFlags::IN_CLUSTER };
        let members = desired.backends.iter().filter(|backend| backend.flags & flag != 0);
        Some(members.map(|backend| (backend.addr, backend.port)).collect())
    }

    fn backends(&self, port: usize) -> impl Iterator<Item = (IpAddr, u16)> + '_ {
        let backends = self.0.get(&port).into_iter().flat_map(|desired| &desired.backends);
        backends.map(|backend| (backend.addr, backend.port))
    }
}

/// What a frontend may reach while `before` becomes `after`: the backends of its owners, both as
/// they were and as they become, because a frontend moves after the sets are committed.
fn may_reach(before: &Model, after: &Model, front: &FrontKey) -> Vec<(IpAddr, u16)> {
    let owners = [before.owner(front), after.owner(front)].into_iter().flatten();
    owners.flat_map(|port| before.backends(port).chain(after.backends(port))).collect()
}

/// Whether connections to a frontend must succeed at every moment while `before` becomes `after`.
fn serves_throughout(before: &Model, after: &Model, front: &FrontKey) -> bool {
    let serves = |model: &Model| model.reach(front).is_some_and(|reached| !reached.is_empty());
    let is_new = before.owner(front).is_none();
    serves(after) && (is_new || (serves(before) && before.owner(front) == after.owner(front)))
}

fn place(backend: &Backend) -> (IpAddr, u16) {
    let word = lb_common::abi::BackendWord(backend.word);
    (address(&backend.addr, word.has(BackendFlags::IPV6)), u16::from_be(word.port()))
}

fn assert_reach(fake: &Fake, model: &Model) {
    let programmed: BTreeSet<_> = fake.frontends.keys().copied().collect();
    assert_eq!(programmed, model.fronts());
    for front in &programmed {
        let reached: Vec<_> = fake.reach(front).unwrap().iter().map(place).collect();
        assert_eq!(Some(reached), model.reach(front), "{front}");
    }
}

/// A kernel program somewhere on its way, which nothing but a grace period waits for.
#[derive(Default)]
struct Reader {
    front: Option<FrontKey>,
    id: u32,
    facts: Option<FactsWord>,
    set: Option<lb_common::abi::SetWord>,
    backend: Option<u32>,
    /// Who owned the frontend since it set out.
    owners: BTreeSet<usize>,
    /// What it may reach: everything that was theirs since it set out.
    allowed: Vec<(IpAddr, u16)>,
}

impl Reader {
    fn allow(&mut self, front: FrontKey, before: &Model, after: &Model) {
        self.owners.extend([before.owner(&front), after.owner(&front)].into_iter().flatten());
        for &port in &self.owners {
            self.allowed.extend(before.backends(port).chain(after.backends(port)));
        }
    }

    /// Makes one load; true when it is done.
    fn advance(&mut self, fake: &Fake, pick: u8) -> bool {
        let pick = usize::from(pick);
        let Some(front) = self.front else {
            let Some((front, word)) = fake.frontends.iter().nth(pick % 8) else { return true };
            self.front = Some(*front);
            self.id = front.id_in(*word).unwrap();
            return false;
        };
        let Some(facts) = self.facts else {
            self.facts = Some(fake.facts[self.id as usize]);
            return false;
        };
        let Some(set) = self.set else {
            let local = facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
            let scope = if local { Scope::Local } else { Scope::Cluster };
            let set = fake.sets[scope.index(self.id) as usize];
            self.set = Some(set);
            return set.count() == 0;
        };
        let Some(id) = self.backend else {
            let slot = set.first() as usize + pick % set.count() as usize;
            self.backend = Some(fake.slots[slot]);
            return false;
        };
        let backend = fake.backends[id as usize];
        assert!(self.allowed.contains(&place(&backend)), "{front} reached {:?}", place(&backend));
        assert_eq!(backend.service_port, self.id);
        true
    }
}

struct World {
    planner: Planner,
    fake: Fake,
    before: Model,
    model: Model,
    readers: Vec<Reader>,
}

impl World {
    fn new(capacity: Capacity) -> Self {
        Self {
            planner: Planner::new(capacity),
            fake: Fake::new(capacity),
            before: Model::default(),
            model: Model::default(),
            readers: (0..3).map(|_| Reader::default()).collect(),
        }
    }

    fn plan(&mut self, updates: &[Update]) -> Vec<Op> {
        let waiting: Vec<_> = self.planner.pools.quarantine.iter().collect();
        self.before = self.model.clone();
        for update in updates {
            self.model.update(update);
        }
        let updates = updates.iter().map(|(port, desired)| (key(*port), desired.clone()));
        let ops = diff::operations(self.planner.plan(updates));
        assert_unused(&waiting, &ops);
        ops
    }

    /// Applies one store; readers make some loads.
    fn step(&mut self, step: Step, noise: u8) {
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

    fn apply(&mut self, ops: &[Op], noise: &mut impl Iterator<Item = u8>) {
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
    fn grace(&mut self) {
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
            _ => false,
        };
        assert!(!waiting.iter().any(used), "{op:?} writes what waits for a grace period");
    }
}

/// No two live owners of an id or a slot; every backend in a set belongs to that service port.
fn assert_ownership(planner: &Planner) {
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
        });
    }
    let free = planner.pools.slots.free();
    assert_eq!(free as usize + slots.len(), planner.capacity.slots as usize, "slots lost");
    let free = planner.pools.backends.available();
    assert_eq!(free + backends.len(), planner.capacity.backends as usize - 1, "backends lost");
}

/// Adopts what is in the maps, as a restarted agent does, and brings it to the model.
fn restart(mut fake: Fake, model: &Model) -> (Planner, Fake, usize) {
    let (mut planner, retired) = Planner::adopt(fake.capacity(), &fake.snapshot().unwrap());
    fake.apply(&diff::clear(&retired));
    let ops = diff::operations(planner.plan_all(model.all()));
    fake.apply(&ops);
    (planner, fake, retired.len() + ops.len())
}

fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_reaches_only_its_own_backends(history in history(), seed: u64) {
        let mut world = World::new(ROOMY);
        let mut noise = noise(seed);
        for (updates, grace) in history {
            let ops = world.plan(&updates);
            world.apply(&ops, &mut noise);
            assert_reach(&world.fake, &world.model);
            assert_ownership(&world.planner);
            if grace {
                world.grace();
            }
        }
    }

    #[test]
    fn a_restart_with_the_same_objects_has_nothing_to_do(history in history()) {
        let mut world = World::new(ROOMY);
        for (updates, grace) in history {
            let ops = world.plan(&updates);
            world.fake.apply(&ops);
            if grace {
                world.grace();
            }
        }
        world.grace();
        let (planner, fake, changes) = restart(world.fake.clone(), &world.model);
        prop_assert_eq!(changes, 0);
        prop_assert_eq!(fake.snapshot().unwrap(), world.fake.snapshot().unwrap());
        assert_ownership(&planner);
        prop_assert_eq!(planner.programmed(), world.planner.programmed());
    }

    #[test]
    fn a_crash_at_any_step_leaves_a_working_table(history in history()) {
        let mut world = World::new(ROOMY);
        for (updates, grace) in history {
            let ops = world.plan(&updates);
            let all: Vec<_> = ops.iter().flat_map(steps).collect();
            for n in 0..=all.len() {
                for front in world.fake.frontends.keys() {
                    let own = may_reach(&world.before, &world.model, front);
                    let reached = world.fake.reach(front).unwrap();
                    for backend in &reached {
                        prop_assert!(own.contains(&place(backend)), "{} after {} steps", front, n);
                    }
                    let served = serves_throughout(&world.before, &world.model, front);
                    prop_assert!(!served || !reached.is_empty(), "{} cut after {} steps", front, n);
                    let id = front.id_in(world.fake.frontends[front]).unwrap();
                    prop_assert_ne!(world.fake.names[id as usize][0], 0, "{} leads to no name", front);
                }
                let (planner, fake, _) = restart(world.fake.clone(), &world.model);
                assert_reach(&fake, &world.model);
                assert_ownership(&planner);
                if let Some(&step) = all.get(n) {
                    world.fake.step(step);
                }
            }
            if grace {
                world.grace();
            }
        }
    }

    #[test]
    fn the_way_to_a_model_does_not_matter(history in history()) {
        let mut world = World::new(ROOMY);
        for (updates, grace) in history {
            let ops = world.plan(&updates);
            world.fake.apply(&ops);
            if grace {
                world.grace();
            }
        }
        let mut planner = Planner::new(ROOMY);
        let mut fake = Fake::new(ROOMY);
        fake.apply(&diff::operations(planner.plan_all(world.model.all())));
        for front in fake.frontends.keys() {
            let reach = |fake: &Fake| fake.reach(front).map(|all| all.iter().map(place).collect::<Vec<_>>());
            prop_assert_eq!(reach(&fake), reach(&world.fake));
        }
        prop_assert_eq!(planner.conflicts(), world.planner.conflicts());
    }

    #[test]
    fn full_maps_cost_only_who_does_not_fit(history in history()) {
        let mut world = World::new(TIGHT);
        for (updates, grace) in history {
            let ops = world.plan(&updates);
            for step in ops.iter().flat_map(steps) {
                world.fake.step(step);
                for front in world.fake.frontends.keys() {
                    let claims = |model: &Model, port: usize| model.0.get(&port).is_some_and(|desired| {
                        desired.frontends.iter().any(|&f| FrontKey::new(f, Protocol::Tcp) == *front)
                    });
                    for backend in world.fake.reach(front).unwrap() {
                        let place = place(&backend);
                        let own = (0..PORTS).any(|port| {
                            (0..4).any(|n| endpoint(port, n) == place)
                                && (claims(&world.before, port) || claims(&world.model, port))
                        });
                        prop_assert!(own, "{} reached {:?}", front, place);
                    }
                }
            }
            assert_ownership(&world.planner);
            if world.planner.failed() == 0 {
                assert_reach(&world.fake, &world.model);
            }
            if grace {
                world.grace();
                let ops = world.plan(&[]);
                world.fake.apply(&ops);
            }
        }
    }
}

fn port(vips: &[usize], backends: &[usize]) -> DesiredPort {
    DesiredPort {
        created_s: 5,
        frontends: vips.iter().map(|&n| vip(0, n)).collect(),
        backends: backends
            .iter()
            .map(|&n| endpoint(0, n))
            .map(|(addr, port)| DesiredBackend { addr, port, flags: FLAGS[0] })
            .collect(),
        internal_local: false,
        external_local: false,
        drop_when_no_local: false,
        affinity_timeout_s: None,
    }
}

#[test]
fn one_changed_endpoint_writes_one_backend_one_range_and_one_word() {
    let mut planner = Planner::new(ROOMY);
    planner.plan([(key(0), Some(port(&[0, 1], &[1, 2, 3])))]);
    let ops = diff::operations(planner.plan([(key(0), Some(port(&[0, 1], &[1, 2, 4])))]));
    assert!(
        matches!(
            ops[..],
            [Op::Backend(4, _), Op::Slots(3, _), Op::Set(2, _), Op::BackendWord(3, _)]
        ),
        "{ops:?}"
    );
}

#[test]
fn the_oldest_service_wins_and_the_next_takes_over() {
    let mut planner = Planner::new(ROOMY);
    let young = DesiredPort { created_s: 9, ..port(&[0], &[1]) };
    let front = FrontKey::new(vip(0, 0), Protocol::Tcp);
    let batch = planner.plan([(key(2), Some(young)), (key(4), Some(port(&[0], &[2])))]);
    let winner = Box::new(key(4));
    let told = Report::Conflict { frontend: front, winner, losers: vec![key(2)] };
    assert_eq!(batch.reports, [told]);
    assert_eq!((planner.conflicts(), planner.programmed()), (1, 1));
    let again = planner.plan([(key(4), Some(port(&[0], &[2, 3])))]);
    assert_eq!(again.reports, [], "a conflict is told once");
    let batch = planner.plan([(key(4), None)]);
    assert!(matches!(batch.frontends[..], [FrontendChange::Put(f, 2)] if f == front));
    assert_eq!((planner.conflicts(), planner.programmed()), (0, 1));
}

#[test]
fn a_full_map_is_told_once_and_tried_again_when_there_is_room() {
    let mut planner = Planner::new(Capacity { backends: 4, ..ROOMY });
    planner.plan([(key(0), Some(port(&[0], &[1, 2])))]);
    let big = || [(key(2), Some(port(&[1], &[0, 1, 2])))];
    let batch = planner.plan(big());
    assert!(batch.is_empty());
    let error = Error::Full { map: "BACKENDS", needed: 3, capacity: 3, flag: "--max-backends" };
    assert_eq!(batch.reports, [Report::Unprogrammed { port: Box::new(key(2)), error }]);
    assert_eq!(planner.plan(big()).reports, []);
    let epoch = planner.plan([(key(0), None)]).epoch;
    assert!(!planner.wants_retry(), "what is freed is not free before the grace period");
    planner.release(epoch);
    assert!(planner.wants_retry());
    let batch = planner.plan([]);
    assert_eq!(batch.reports, [Report::Recovered { port: Box::new(key(2)) }]);
    assert_eq!(batch.ports.len(), 1);
    assert!(!planner.wants_retry());
}

#[test]
fn adopted_service_ports_stay_until_the_first_complete_list() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    fake.apply(&diff::operations(
        planner.plan([(key(0), Some(port(&[0], &[1]))), (key(2), Some(port(&[1], &[2])))]),
    ));
    let (mut planner, retired) = Planner::adopt(ROOMY, &fake.snapshot().unwrap());
    assert_eq!(retired, []);
    assert!(planner.plan([(key(0), Some(port(&[0], &[1])))]).is_empty());
    let batch = planner.plan_all([(key(0), port(&[0], &[1]))]);
    assert!(matches!(batch.frontends[..], [FrontendChange::Delete(_)]));
    assert_eq!(planner.programmed(), 1);
}

#[test]
fn an_id_gets_a_new_generation_with_each_backend_even_after_a_restart() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    let mut generations = Vec::new();
    for n in 0..4 {
        let batch = planner.plan_all([(key(0), port(&[0], &[n]))]);
        let epoch = batch.epoch;
        fake.apply(&diff::operations(batch));
        fake.apply(&diff::clear(&planner.release(epoch)));
        let backend = fake.reach(&FrontKey::new(vip(0, 0), Protocol::Tcp)).unwrap()[0];
        generations.push(lb_common::abi::BackendWord(backend.word).generation());
        planner = Planner::adopt(ROOMY, &fake.snapshot().unwrap()).0;
    }
    assert_eq!(generations, [1, 1, 2, 2], "two ids take turns");
}

#[test]
fn damaged_maps_are_repaired() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    let mut model = Model::default();
    model.update(&(0, Some(port(&[0], &[1, 2]))));
    model.update(&(2, Some(port(&[1], &[2, 3]))));
    fake.apply(&diff::operations(planner.plan_all(model.all())));
    let front = *fake.frontends.keys().next().unwrap();
    let stray = FrontKey::new(vip(0, 2), Protocol::Udp);
    fake.step(Step::Put(stray, front.word(1)));
    fake.step(Step::Name(2, [0xff; lb_common::abi::NAME_LEN]));
    fake.step(Step::Slot(0, 200));
    let (planner, fake, _) = restart(fake, &model);
    assert_reach(&fake, &model);
    assert_ownership(&planner);
}

#[test]
fn endpoints_of_no_use_or_of_the_other_family_take_no_room() {
    let mut planner = Planner::new(ROOMY);
    let mut desired = port(&[0], &[1]);
    desired.backends[0].flags = BackendFlags::READY;
    let (addr, number) = endpoint(1, 1);
    desired.backends.push(DesiredBackend { addr, port: number, flags: FLAGS[0] });
    let batch = planner.plan([(key(0), Some(desired))]);
    assert_eq!(batch.ports[0].added, []);
    assert_eq!(batch.frontends.len(), 1, "a Service without endpoints rejects");
}
