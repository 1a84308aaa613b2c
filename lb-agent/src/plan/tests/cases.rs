//! Service ports one by one: ids, ownership, full and damaged maps.

use super::model::*;
use super::world::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::{Fake, Step};
use crate::diff::{self, Op};
use crate::model::{DesiredBackend, DesiredPort, FrontendKind, Protocol};
use crate::plan::{Capacity, Error, FrontKey, FrontendChange, Planner, Report};
use lb_common::abi::BackendFlags;

pub(super) fn port(vips: &[usize], backends: &[usize]) -> DesiredPort {
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
        source_ranges: [].into(),
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
fn the_oldest_service_wins_and_the_next_takes_over_s_15() {
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
    assert!(
        matches!(batch.frontends[..], [FrontendChange::Put(f, word)] if f == front && word.id() == 2)
    );
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
    fake.step(Step::Put(stray, front.word(1, FrontendKind::ClusterIp)));
    fake.step(Step::Name(2, [0xff; lb_common::abi::NAME_LEN]));
    fake.step(Step::Slot(0, 200));
    let (planner, fake, _) = restart(fake, &model, true);
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
