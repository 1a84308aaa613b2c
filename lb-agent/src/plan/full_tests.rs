//! Full maps: what becomes of a service port that is programmed, and whose endpoints change?

use proptest::prelude::*;

use super::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::Fake;
use crate::diff;
use crate::model::{DesiredBackend, Frontend};
use lb_common::abi::{Backend, BackendFlags};

const IN_SET: u16 = BackendFlags::SERVING | BackendFlags::IN_CLUSTER;

/// A planner and its maps.
struct Rig {
    planner: Planner,
    fake: Fake,
}

impl Rig {
    fn new(capacity: Capacity) -> Self {
        Self { planner: Planner::new(capacity), fake: Fake::new(capacity) }
    }

    fn set(&mut self, service: u8, backends: &[u8]) -> Vec<Report> {
        self.set_flags(service, &backends.iter().map(|&n| (n, IN_SET)).collect::<Vec<_>>())
    }

    /// Wants these backends, of which only the last octet and the flags are told.
    fn set_flags(&mut self, service: u8, backends: &[(u8, u16)]) -> Vec<Report> {
        let backend = |&(n, flags): &(u8, u16)| DesiredBackend {
            addr: [10, 0, service, n].into(),
            port: 8080,
            flags,
        };
        let desired = DesiredPort {
            created_s: 1,
            frontends: vec![frontend(service)],
            backends: backends.iter().map(backend).collect(),
            internal_local: false,
            external_local: false,
            drop_when_no_local: false,
            affinity_timeout_s: None,
            source_ranges: [].into(),
        };
        self.plan([(key(service), Some(desired))])
    }

    fn plan(
        &mut self,
        updates: impl IntoIterator<Item = (PortKey, Option<DesiredPort>)>,
    ) -> Vec<Report> {
        let mut batch = self.planner.plan(updates);
        let reports = std::mem::take(&mut batch.reports);
        self.fake.apply(&diff::operations(batch));
        reports
    }

    /// Lets grace periods pass, and tries again, until there is nothing to do.
    fn settle(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        while let Some(epoch) = self.planner.waiting() {
            self.fake.apply(&diff::clear(&self.planner.release(epoch)));
            if self.planner.wants_retry() {
                reports.extend(self.plan([]));
            }
        }
        reports
    }

    /// The last octets of what a Service reaches.
    fn reach(&self, service: u8) -> Vec<u8> {
        let octet = |backend: &Backend| match address(&backend.addr, false) {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        let front = FrontKey::new(frontend(service), Protocol::Tcp);
        self.fake.reach(&front).unwrap_or_default().iter().map(octet).collect()
    }
}

fn frontend(service: u8) -> Frontend {
    Frontend::cluster_ip([10, 96, 0, service].into(), 80)
}

fn key(service: u8) -> PortKey {
    PortKey {
        namespace: "ns".into(),
        service: format!("svc{service}").into(),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

fn full(reports: &[Report]) -> Option<&'static str> {
    match reports {
        [Report::Unprogrammed { error: Error::Full { map, .. }, .. }] => Some(map),
        _ => None,
    }
}

const CAPACITY: Capacity = Capacity {
    service_ports: 8,
    backends: 64,
    slots: 32,
    frontends: 8,
    addresses: 8,
    source_ranges: 8,
};

#[test]
fn a_pod_that_is_replaced_in_full_backends_goes_at_once_and_the_new_one_follows() {
    let mut rig = Rig::new(Capacity { backends: 4, ..CAPACITY });
    assert_eq!(rig.set(1, &[1, 2, 3]), []);
    let reports = rig.set(1, &[1, 2, 4]);
    assert_eq!(full(&reports), Some("BACKENDS"), "{reports:?}");
    assert_eq!(rig.reach(1), [1, 2], "the dead pod is gone");
    assert_eq!(rig.settle(), [Report::Recovered { port: Box::new(key(1)) }]);
    assert_eq!(rig.reach(1), [1, 2, 4]);
}

#[test]
fn as_many_new_backends_as_there_is_room_for_are_served_those_in_a_set_first() {
    let mut rig = Rig::new(Capacity { backends: 4, ..CAPACITY });
    rig.set(1, &[3]);
    let only_serves = (1, BackendFlags::SERVING);
    let all = [only_serves, (2, IN_SET), (3, IN_SET), (4, IN_SET), (5, IN_SET)];
    let reports = rig.set_flags(1, &all);
    assert_eq!((full(&reports), rig.reach(1)), (Some("BACKENDS"), vec![2, 3, 4]));
    assert_eq!(rig.settle(), []);
    assert_eq!(rig.planner.failed(), 1);
}

#[test]
fn a_set_can_shrink_in_full_slots_because_those_that_grow_leave_a_reserve() {
    let mut rig = Rig::new(CAPACITY);
    rig.set(1, &[1, 2, 3]);
    let many: Vec<u8> = (1..=29).collect();
    assert_eq!(full(&rig.set(2, &many)), Some("SLOTS"), "three are left to others");
    assert_eq!(rig.set(2, &many[..26]), [Report::Recovered { port: Box::new(key(2)) }]);
    assert_eq!(rig.set(1, &[1, 3]), []);
    assert_eq!(rig.reach(1), [1, 3]);
}

#[test]
fn dead_pods_go_from_full_slots_even_when_the_set_should_grow() {
    let mut rig = Rig::new(CAPACITY);
    let many: Vec<u8> = (1..=26).collect();
    rig.set(1, &[1, 2, 3]);
    rig.set(2, &many);
    let reports = rig.set(1, &[1, 4, 5, 6]);
    assert_eq!(full(&reports), Some("SLOTS"), "{reports:?}");
    assert!(rig.reach(1).contains(&1), "{:?}", rig.reach(1));
    assert!(rig.reach(1).iter().all(|n| [1, 4, 5, 6].contains(n)), "{:?}", rig.reach(1));
    rig.settle();
    assert!(rig.reach(1).len() >= 2, "{:?}", rig.reach(1));
    rig.set(2, &many[..2]);
    rig.settle();
    assert_eq!((rig.reach(1), rig.planner.failed()), (vec![1, 4, 5, 6], 0));
}

#[test]
fn a_pod_that_becomes_ready_does_not_keep_a_dead_one_in_full_slots() {
    let mut rig = Rig::new(CAPACITY);
    let waits = |n| (n, BackendFlags::SERVING);
    rig.set_flags(1, &[(1, IN_SET), (2, IN_SET), waits(3), waits(4)]);
    rig.set(2, &(1..=27).collect::<Vec<_>>());
    let reports = rig.set_flags(1, &[(1, IN_SET), (3, IN_SET), (4, IN_SET)]);
    assert_eq!((full(&reports), rig.reach(1)), (Some("SLOTS"), vec![1]));
}

#[test]
fn one_namespace_cannot_take_all_backends() {
    let of = |namespace: &str, service: u8| PortKey { namespace: namespace.into(), ..key(service) };
    let desired = |service: u8, backends: std::ops::Range<u8>| DesiredPort {
        created_s: 1,
        frontends: vec![frontend(service)],
        backends: backends
            .map(|n| DesiredBackend { addr: [10, 0, service, n].into(), port: 8080, flags: IN_SET })
            .collect(),
        internal_local: false,
        external_local: false,
        drop_when_no_local: false,
        affinity_timeout_s: None,
        source_ranges: [].into(),
    };
    let capacity = Capacity { backends: 129, slots: 1024, ..CAPACITY };
    let greedy = || (0..4).map(|n| (of("greedy", n), desired(n, 0..40)));
    let mut rig = Rig::new(capacity);
    // Nobody else is there yet: 128 backends but for four.
    assert_eq!(full(&rig.plan(greedy().map(|(key, port)| (key, Some(port))))), Some("BACKENDS"));
    assert_eq!(rig.plan([(of("other", 7), Some(desired(7, 0..4)))]), []);
    assert_eq!(rig.reach(7).len(), 4);
    // A pod that is replaced finds the place of the one before, after its grace period.
    rig.plan([(of("greedy", 0), Some(desired(0, 1..41)))]);
    rig.settle();
    assert_eq!(rig.reach(0).len(), 40);
    // What was programmed counts after a restart.
    rig.plan([(of("other", 7), None)]);
    rig.settle();
    let (mut planner, _) = Planner::adopt(capacity, &rig.fake.snapshot().unwrap());
    let all = greedy().chain([(of("other", 7), desired(7, 0..4))]);
    let reports = planner.plan_all(all).reports;
    let of_greedy = |report: &Report| matches!(report, Report::Unprogrammed { port, .. } if &*port.namespace == "greedy");
    assert!(!reports.is_empty() && reports.iter().all(of_greedy), "{reports:?}");
    // In the first list, whoever wants little comes first.
    let mut rig = Rig::new(capacity);
    let all = greedy().chain([(of("other", 7), desired(7, 0..30))]);
    rig.plan(all.map(|(key, port)| (key, Some(port))));
    assert_eq!(rig.reach(7).len(), 30);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_keeps_a_dead_pod_or_loses_a_living_one_in_full_backends(
        history in proptest::collection::vec(
            (1..4u8, proptest::collection::btree_set(1..9u8, 0..8), any::<bool>()),
            1..20,
        ),
    ) {
        let mut rig = Rig::new(Capacity { backends: 9, slots: 512, ..CAPACITY });
        let mut wanted = BTreeMap::new();
        for (service, backends, grace) in history {
            let before: BTreeSet<u8> = rig.reach(service).into_iter().collect();
            let backends: Vec<u8> = backends.into_iter().collect();
            rig.set(service, &backends);
            let reached = rig.reach(service);
            for n in &backends {
                prop_assert!(!before.contains(n) || reached.contains(n), "{} lost {}", service, n);
            }
            wanted.insert(service, backends);
            if grace {
                rig.settle();
            }
            for (&service, backends) in &wanted {
                prop_assert!(rig.reach(service).iter().all(|n| backends.contains(n)));
            }
        }
        rig.settle();
        let reached: usize = wanted.keys().map(|&service| rig.reach(service).len()).sum();
        let all: usize = wanted.values().map(Vec::len).sum();
        prop_assert!(rig.planner.failed() > 0 || reached == all, "{} of {}", reached, all);
    }
}
