//! Source ranges of load balancers, and what one namespace may have of the maps.

use super::cases::port;
use super::guards::*;
use super::world::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::Fake;
use crate::diff::{self, Op};
use crate::model::{DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol};
use crate::plan::{Capacity, Error, FrontKey, Planner, Report, Retired};
use lb_common::abi::FrontendFlags;

fn balanced(n: usize) -> Frontend {
    Frontend { kind: FrontendKind::LoadBalancer, ..vip(0, n) }
}

/// A clusterIP, a load balancer's address and an externalIP; `of` says which ranges there are.
fn with(of: u8) -> DesiredPort {
    let external = Frontend { kind: FrontendKind::ExternalIp, ..vip(0, 2) };
    DesiredPort {
        frontends: vec![vip(0, 0), balanced(1), external, Frontend::node_port(Family::V4, 30_000)],
        source_ranges: ranges(Family::V4, of),
        ..port(&[], &[1])
    }
}

fn guarded(fake: &Fake) -> Vec<FrontKey> {
    let flags = fake.frontends.iter().map(|(key, word)| (*key, word.flags()));
    flags.filter(|(_, flags)| flags & FrontendFlags::RANGES != 0).map(|(key, _)| key).collect()
}

#[test]
fn r_1_ranges_guard_the_load_balancers_addresses_alone() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    fake.apply(&diff::operations(planner.plan([(key(0), Some(with(0b1010)))])));
    let front = FrontKey::new(balanced(1), Protocol::Tcp);
    assert_eq!(guarded(&fake), [front]);
    let [stranger, one, _, inside, _] = clients(Family::V4);
    let lets_in = |client| fake.lets_in(&front, client);
    assert_eq!(
        (lets_in(stranger), lets_in(one), lets_in(inside)),
        (Some(false), Some(true), Some(true))
    );
}

#[test]
fn v_5_ranges_come_before_their_frontend_and_go_a_grace_period_after_it_was_opened() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    fake.apply(&diff::operations(planner.plan([(key(0), Some(with(0)))])));
    let ops = diff::operations(planner.plan([(key(0), Some(with(0b1010)))]));
    assert!(
        matches!(ops[..], [Op::SourceRangePut(_), Op::SourceRangePut(_), Op::FrontendPut(..)]),
        "{ops:?}"
    );
    fake.apply(&ops);
    // others come at once, those that go wait for who is on his way.
    let ops = diff::operations(planner.plan([(key(0), Some(with(0b0110)))]));
    let [Op::SourceRangePut(_)] = ops[..] else { return assert_eq!(ops, []) };
    fake.apply(&ops);
    assert_eq!(fake.source_ranges.len(), 3);
    let retired = planner.release(planner.waiting().unwrap());
    assert!(matches!(retired[..], [Retired::SourceRange(_)]), "{retired:?}");
    fake.apply(&diff::clear(&retired));
    assert_eq!(fake.source_ranges.len(), 1, "10.1.2.0/24 is in 10.1.0.0/16");
    let batch = planner.plan([(key(0), Some(with(0)))]);
    assert!(batch.freed && batch.source_ranges.is_empty());
    assert_eq!(batch.frontends.len(), 1);
    fake.apply(&diff::operations(batch));
    assert_eq!((guarded(&fake).len(), fake.source_ranges.len()), (0, 1));
    fake.apply(&diff::clear(&planner.release(planner.waiting().unwrap())));
    assert_eq!(fake.source_ranges.len(), 0);
}

#[test]
fn a_range_that_comes_back_before_it_is_gone_costs_nothing_and_stays() {
    let mut planner = Planner::new(ROOMY);
    planner.plan([(key(0), Some(with(0b1001)))]);
    let first = planner.plan([(key(0), Some(with(0b0001)))]);
    assert!(planner.plan([(key(0), Some(with(0b1001)))]).is_empty());
    let second = planner.plan([(key(0), Some(with(0b0001)))]);
    assert_ne!(first.epoch, second.epoch);
    assert_eq!(planner.release(first.epoch), [], "it went once more since");
    assert_eq!(planner.release(second.epoch).len(), 1);
    assert_eq!(planner.pools.source_ranges.used(), [1, 0]);
}

#[test]
fn a_full_map_of_ranges_keeps_clients_out_and_lets_nobody_in() {
    let capacity = Capacity { source_ranges: 1, ..ROOMY };
    let (mut planner, mut fake) = (Planner::new(capacity), Fake::new(capacity));
    let batch = planner.plan([(key(0), Some(with(0b1010)))]);
    let error =
        Error::Full { map: "SOURCE_RANGES4", needed: 1, capacity: 1, flag: "--max-source-ranges" };
    assert_eq!(batch.reports, [Report::Unprogrammed { port: Box::new(key(0)), error }]);
    fake.apply(&diff::operations(batch));
    let front = FrontKey::new(balanced(1), Protocol::Tcp);
    let lets_in =
        |fake: &Fake| clients(Family::V4).map(|client| fake.lets_in(&front, client).unwrap());
    assert_eq!(lets_in(&fake), [false, false, false, true, true], "the widest range");
    // It is served all the same where no ranges are asked.
    assert_eq!(fake.frontends.len(), 4);
    // What is not wanted any more goes though nothing can take its place yet.
    let ops = diff::operations(planner.plan([(key(0), Some(with(0b1000)))]));
    fake.apply(&ops);
    fake.apply(&diff::clear(&planner.release(planner.waiting().unwrap())));
    assert_eq!(lets_in(&fake), [false; 5]);
    assert!(planner.wants_retry());
    let batch = planner.plan([]);
    assert_eq!(batch.reports, [Report::Recovered { port: Box::new(key(0)) }]);
    fake.apply(&diff::operations(batch));
    assert_eq!(lets_in(&fake), [false, true, false, false, false]);
}

#[test]
fn ranges_change_in_a_full_map_because_those_that_grow_leave_a_reserve() {
    let mut planner = Planner::new(Capacity { source_ranges: 16, ..ROOMY });
    for n in 0..8 {
        let name = |n: usize| PortKey { service: format!("s{n}").into(), ..key(0) };
        let desired = DesiredPort { frontends: vec![balanced(n)], ..with(0b1010) };
        planner.plan([(name(n), Some(desired))]);
    }
    assert_eq!((planner.failed(), planner.pools.source_ranges.used()), (1, [15, 0]));
    let batch = planner.plan([(
        PortKey { service: "s0".into(), ..key(0) },
        Some(DesiredPort { frontends: vec![balanced(0)], ..with(0b1100) }),
    )]);
    assert_eq!((batch.source_ranges.len(), planner.failed()), (1, 1));
}

#[test]
fn ranges_left_over_from_a_crash_are_cleared_before_their_id_is_given_to_another() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    let ops = diff::operations(planner.plan([(key(0), Some(with(0b1010)))]));
    // Killed before the first frontend.
    let written =
        ops.iter().take_while(|op| !matches!(op, Op::AddressPut(..) | Op::FrontendPut(..)));
    fake.apply(&written.cloned().collect::<Vec<_>>());
    assert_eq!((fake.source_ranges.len(), fake.frontends.len()), (2, 0));
    let (mut planner, retired) = Planner::adopt(ROOMY, &fake.snapshot().unwrap());
    fake.apply(&diff::clear(&retired));
    assert_eq!(fake.source_ranges.len(), 0);
    fake.apply(&diff::operations(planner.plan_all([(key(2), with(0b0001))])));
    assert_eq!(fake.source_ranges.len(), 1);
    assert_ranges(&planner, &fake);
}

/// Service ports of a namespace, each with an address of its own.
fn of(namespace: &str, n: usize) -> PortKey {
    PortKey { namespace: namespace.into(), service: format!("s{n}").into(), ..key(0) }
}

fn told(
    planner: &mut Planner,
    namespace: &str,
    from: usize,
    desired: &[DesiredPort],
) -> Vec<&'static str> {
    let all = desired.iter().enumerate().map(|(n, desired)| {
        (
            of(namespace, from + n),
            Some(DesiredPort { frontends: vec![balanced(from + n)], ..desired.clone() }),
        )
    });
    let reports = planner.plan(all).reports.into_iter();
    reports
        .filter_map(|report| match report {
            Report::Unprogrammed { error: Error::Full { map, .. }, .. } => Some(map),
            _ => None,
        })
        .collect()
}

#[test]
fn one_namespace_cannot_take_all_ids() {
    let capacity = Capacity { service_ports: 65, frontends: 1024, addresses: 1024, ..ROOMY };
    let mut planner = Planner::new(capacity);
    let empty = vec![port(&[], &[]); 70];
    assert_eq!(told(&mut planner, "greedy", 0, &empty), ["FACTS"; 8], "of 64 two are left");
    assert_eq!(planner.programmed(), 62);
    assert_eq!(told(&mut planner, "other", 100, &empty[..2]), [""; 0]);
    assert_eq!(told(&mut planner, "third", 110, &empty[..1]), ["FACTS"]);
}

#[test]
fn one_namespace_cannot_take_all_slots() {
    let capacity = Capacity { slots: 64, backends: 1024, frontends: 256, addresses: 256, ..ROOMY };
    let mut planner = Planner::new(capacity);
    let four = vec![port(&[], &[1, 2, 3, 0]); 16];
    let refused = told(&mut planner, "greedy", 0, &four);
    // A sixteenth is kept for changes; a thirty-second part is for others.
    assert_eq!((refused.len(), planner.programmed()), (2, 14), "{refused:?}");
    assert_eq!(told(&mut planner, "other", 100, &[port(&[], &[1, 2, 3, 0])]), [""; 0]);
}

#[test]
fn one_namespace_cannot_take_all_source_ranges() {
    let capacity =
        Capacity { source_ranges: 64, service_ports: 256, frontends: 256, addresses: 256, ..ROOMY };
    let mut planner = Planner::new(capacity);
    let two = vec![with(0b1010); 32];
    // A sixteenth is kept for changes, a thirty-second part is for others.
    assert_eq!(told(&mut planner, "greedy", 0, &two), ["SOURCE_RANGES4"; 3]);
    assert_eq!(planner.pools.source_ranges.used(), [58, 0]);
    assert_eq!(told(&mut planner, "other", 100, &two[..1]), [""; 0]);
    assert_eq!(told(&mut planner, "third", 110, &two[..1]), ["SOURCE_RANGES4"]);
}
