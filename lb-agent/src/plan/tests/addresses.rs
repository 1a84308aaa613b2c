//! Kinds of frontends, and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{AddressFlags, BackendFlags, BackendWord, SERVICE_CIDRS};

use super::cases::port;
use super::model::*;
use super::world::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::Fake;
use crate::diff::{self, Op};
use crate::model::{DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol};
use crate::plan::{
    AddressChange, Capacity, Error, FrontKey, FrontendChange, NodeFacts, Planner, Report,
    address_word, self_test,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn with(frontends: &[Frontend]) -> DesiredPort {
    DesiredPort { frontends: frontends.to_vec(), ..port(&[], &[1]) }
}

fn external(n: usize) -> Frontend {
    Frontend { kind: FrontendKind::ExternalIp, ..vip(0, n) }
}

fn node(addresses: &[(&str, bool)]) -> NodeFacts {
    let all = addresses.iter().map(|&(addr, loopback)| (ip(addr), loopback));
    NodeFacts { node_port_addresses: all.collect(), ..NodeFacts::default() }
}

#[test]
fn a_cluster_ip_is_not_captured_by_an_older_external_ip_and_that_is_told_s_15() {
    let mut planner = Planner::new(ROOMY);
    let old = DesiredPort { created_s: 1, ..with(&[external(0)]) };
    planner.plan([(key(0), Some(old))]);
    let young = DesiredPort { created_s: 9, ..with(&[vip(0, 0)]) };
    let batch = planner.plan([(key(2), Some(young))]);
    let front = FrontKey::new(vip(0, 0), Protocol::Tcp);
    let told = Report::Conflict { frontend: front, winner: Box::new(key(2)), losers: vec![key(0)] };
    assert_eq!(batch.reports, [told]);
    let word = front.word(2, FrontendKind::ClusterIp);
    assert_eq!(batch.frontends, [FrontendChange::Put(front, word)]);
    let addr = front.addr();
    let flags = address_word(&addr, AddressFlags::CLUSTER_IP);
    assert_eq!(batch.addresses, [AddressChange::Put(addr, flags)]);

    let batch = planner.plan([(key(2), None)]);
    let word = front.word(3, FrontendKind::ExternalIp);
    assert_eq!(batch.frontends, [FrontendChange::Put(front, word)], "the next takes over");
    let flags = address_word(&addr, AddressFlags::VIP);
    assert_eq!(batch.addresses, [AddressChange::Put(addr, flags)]);
}

#[test]
fn a_frontend_that_changes_its_kind_costs_one_store_in_each_map() {
    let mut planner = Planner::new(ROOMY);
    planner.plan([(key(0), Some(with(&[external(0), vip(0, 1)])))]);
    let ops = diff::operations(planner.plan([(key(0), Some(with(&[vip(0, 0), vip(0, 1)])))]));
    assert!(matches!(ops[..], [Op::AddressPut(..), Op::FrontendPut(..)]), "{ops:?}");
    let both = with(&[external(0), vip(0, 0), vip(0, 1)]);
    assert!(planner.plan([(key(0), Some(both))]).is_empty(), "it stays the clusterIP");
}

#[test]
fn addresses_of_the_node_count_while_their_family_has_a_node_port_c_2() {
    let mut planner = Planner::new(ROOMY);
    let facts = node(&[("192.168.0.1", false), ("127.0.0.1", true), ("fd02::1", false)]);
    assert!(planner.plan_node(facts.clone()).is_empty(), "nobody asks for them");
    let node_port = Frontend::node_port(Family::V4, 30_080);
    let batch = planner.plan([(key(0), Some(with(&[vip(0, 0), node_port])))]);
    let puts = |flags: &[(&str, u32)]| -> Vec<AddressChange> {
        flags.iter().map(|&(a, f)| AddressChange::Put(ip(a), address_word(&ip(a), f))).collect()
    };
    let wanted = puts(&[
        ("127.0.0.1", AddressFlags::LOOPBACK),
        ("192.168.0.1", AddressFlags::NODE),
        ("10.96.0.0", AddressFlags::CLUSTER_IP),
    ]);
    assert_eq!(batch.addresses, wanted);
    let front = FrontKey::new(node_port, Protocol::Tcp);
    assert!(front.is_node_port() && front.addr().is_unspecified());

    let batch = planner.plan_node(node(&[("192.168.0.1", false), ("192.168.0.9", false)]));
    let mut wanted = vec![AddressChange::Delete(ip("127.0.0.1"))];
    wanted.extend(puts(&[("192.168.0.9", AddressFlags::NODE)]));
    assert_eq!((batch.addresses, batch.frontends), (wanted, vec![]), "one entry, not each port");

    let batch = planner.plan([(key(0), Some(with(&[vip(0, 0)])))]);
    let gone = ["192.168.0.1", "192.168.0.9"].map(|addr| AddressChange::Delete(ip(addr)));
    assert_eq!(batch.addresses, gone);
}

#[test]
fn an_address_that_two_hold_stays_until_both_let_go() {
    let mut planner = Planner::new(ROOMY);
    let other_port = Frontend { port: 81, ..external(0) };
    let node_port = Frontend::node_port(Family::V4, 30_080);
    planner.plan_node(node(&[("10.96.0.0", false)]));
    planner.plan([(key(0), Some(with(&[vip(0, 0), node_port])))]);
    let batch = planner.plan([(key(2), Some(with(&[other_port])))]);
    let all = AddressFlags::CLUSTER_IP | AddressFlags::VIP | AddressFlags::NODE;
    let addr = ip("10.96.0.0");
    assert_eq!(batch.addresses, [AddressChange::Put(addr, address_word(&addr, all))]);
    let batch = planner.plan([(key(0), None)]);
    let left = address_word(&addr, AddressFlags::VIP);
    assert_eq!(batch.addresses, [AddressChange::Put(addr, left)]);
    let batch = planner.plan([(key(2), None)]);
    assert_eq!(batch.addresses, [AddressChange::Delete(addr)]);
}

#[test]
fn full_addresses_cost_who_does_not_fit_and_are_tried_again() {
    let mut planner = Planner::new(Capacity { addresses: 2, ..ROOMY });
    planner.plan([(key(0), Some(with(&[vip(0, 0), vip(0, 1)])))]);
    let batch = planner.plan([(key(2), Some(with(&[vip(0, 2)])))]);
    assert_eq!(batch.frontends.len(), 1, "it is served all the same");
    let error = Error::Full { map: "ADDRESSES4", needed: 1, capacity: 2, flag: "--max-frontends" };
    assert_eq!(batch.reports, [Report::Unprogrammed { port: Box::new(key(2)), error }]);
    assert_eq!((planner.failed(), planner.unplaced_addresses()), (1, 1));
    assert_eq!(planner.plan([(key(2), Some(with(&[vip(0, 2)])))]).reports, []);
    let batch = planner.plan([(key(0), Some(with(&[vip(0, 0)])))]);
    assert_eq!(batch.reports, [Report::Recovered { port: Box::new(key(2)) }]);
    assert!(
        matches!(batch.addresses[..], [AddressChange::Delete(_), AddressChange::Put(..)]),
        "{batch:?}"
    );
    assert_eq!((planner.failed(), planner.unplaced_addresses()), (0, 0));
}

#[test]
fn services_leave_room_for_addresses_of_the_node() {
    let mut planner = Planner::new(Capacity { addresses: 16, frontends: 64, ..ROOMY });
    let vips: Vec<Frontend> = (0..16).map(|n| vip(0, n)).collect();
    let batch = planner.plan([(key(0), Some(with(&vips)))]);
    assert_eq!((batch.addresses.len(), planner.failed()), (15, 1));
    let node_port = Frontend::node_port(Family::V4, 30_080);
    let facts = node(&[("192.168.0.1", false), ("192.168.0.2", false)]);
    planner.set_node(facts.clone());
    let batch = planner.plan([(key(2), Some(with(&[node_port])))]);
    let addr = ip("192.168.0.1");
    let word = address_word(&addr, AddressFlags::NODE);
    assert_eq!(batch.addresses, [AddressChange::Put(addr, word)]);
    let error = Error::Full { map: "ADDRESSES4", needed: 1, capacity: 16, flag: "--max-frontends" };
    assert_eq!(batch.reports, [Report::NodeAddresses { error }]);
    assert_eq!(planner.plan_node(facts).reports, [], "told once");
}

#[test]
fn a_frontend_that_goes_makes_room_without_a_grace_period() {
    let mut planner = Planner::new(Capacity { frontends: 2, ..ROOMY });
    planner.plan([(key(0), Some(with(&[vip(0, 0), vip(0, 1)])))]);
    planner.plan([(key(2), Some(with(&[vip(0, 2)])))]);
    assert_eq!(planner.failed(), 1);
    let batch = planner.plan([(key(0), Some(with(&[vip(0, 0)])))]);
    assert_eq!((batch.frontends.len(), planner.failed()), (2, 0));
    let ops = diff::operations(batch);
    let at = |wanted: &dyn Fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let deleted = at(&|op| matches!(op, Op::FrontendDelete(_)));
    assert!(deleted < at(&|op| matches!(op, Op::FrontendPut(..))), "{ops:?}");
}

#[test]
fn claimed_addresses_leave_room_for_what_the_cluster_hands_out() {
    let capacity = Capacity { frontends: 8, ..ROOMY };
    let claimed: Vec<Frontend> = (0..9).map(external).collect();
    let all = || [(key(0), with(&claimed)), (key(2), with(&[vip(0, 9)]))];
    let owned = |planner: &Planner, n: usize| {
        let front = FrontKey::new(vip(0, n), Protocol::Tcp);
        planner.fronts.get(&front).is_some_and(|entry| entry.owner.is_some())
    };
    // In one batch, the clusterIP comes first, whatever its address.
    let mut planner = Planner::new(capacity);
    let batch = planner.plan_all(all());
    let owners = |planner: &Planner| (0..10).filter(|&n| owned(planner, n)).collect::<Vec<_>>();
    assert_eq!(owners(&planner), [0, 1, 2, 3, 4, 9]);
    let [Report::Unprogrammed { port, error: Error::Full { map, needed, .. } }] =
        &batch.reports[..]
    else {
        panic!("{:?}", batch.reports);
    };
    assert_eq!((&**port, *map, *needed), (&key(0), "FRONTENDS4", 4));
    // One that comes later has the rest.
    let more = (key(4), Some(with(&[10, 11].map(|n| vip(0, n)))));
    assert_eq!(planner.plan([more]).reports, []);
    assert_eq!(planner.owned[0], 8);
    // What was programmed keeps its place, and goes on claiming.
    planner.plan([(key(4), None)]);
    assert_eq!(owners(&planner), [0, 1, 2, 3, 4, 9]);
    planner.plan([(key(2), None)]);
    assert_eq!(owners(&planner), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_programmed_vip_keeps_its_place_in_a_full_map_over_a_restart() {
    let capacity = Capacity { frontends: 4, ..ROOMY };
    let (mut planner, mut fake) = (Planner::new(capacity), Fake::new(capacity));
    let balanced = Frontend { kind: FrontendKind::LoadBalancer, ..vip(0, 0) };
    let all = || {
        let others = [1, 2, 3].map(|n| vip(0, n));
        [(key(0), with(&[balanced])), (key(2), with(&others))]
    };
    for (key, desired) in all() {
        fake.apply(&diff::operations(planner.plan([(key, Some(desired))])));
    }
    let (mut planner, _) = Planner::adopt(capacity, &fake.snapshot().unwrap());
    let batch = planner.plan_all(all());
    assert!(batch.is_empty() && batch.reports.is_empty(), "{batch:?}");
}

#[test]
fn each_of_many_that_claim_a_frontend_is_told_once() {
    let mut planner = Planner::new(Capacity { service_ports: 512, ..ROOMY });
    let claim = |created_s| DesiredPort { created_s, ..with(&[external(0)]) };
    let port = |n: usize| PortKey { service: format!("s{n}").into(), ..key(0) };
    let mut told = 0;
    for n in 0..100 {
        for report in planner.plan([(port(n), Some(claim(1)))]).reports {
            let Report::Conflict { winner, losers, .. } = report else { panic!("{report:?}") };
            assert_eq!(*winner, port(0));
            told += losers.len();
        }
    }
    assert_eq!(told, 99);
    // Of another winner all are told.
    let reports = planner.plan([(port(100), Some(claim(0)))]).reports;
    let [Report::Conflict { winner, losers, .. }] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((&**winner, losers.len()), (&port(100), 100));
}

#[test]
fn ranges_of_services_are_listed_the_largest_first_and_what_does_not_fit_is_told() {
    let mut planner = Planner::new(ROOMY);
    let ranges = |n: u8| (0..n).map(|i| (IpAddr::from([10, i, 3, 4]), 24)).collect::<Vec<_>>();
    let facts = |service_cidrs| NodeFacts { service_cidrs, ..NodeFacts::default() };
    let mut all = ranges(17);
    all.extend([(ip("fd00::5"), 112), (ip("10.96.1.2"), 12), (ip("0.0.0.0"), 0), (ip("::"), 129)]);
    let batch = planner.plan_node(facts(all.clone()));
    let [(Family::V4, v4), (Family::V6, v6)] = &batch.service_cidrs[..] else {
        panic!("{batch:?}");
    };
    assert_eq!(v4[..2], [(ip("10.96.0.0"), 12), (ip("10.0.3.0"), 24)]);
    assert_eq!((v4.len(), &v6[..]), (SERVICE_CIDRS as usize, &[(ip("fd00::"), 112)][..]));
    assert_eq!(batch.reports, [Report::ServiceCidrs { left_out: 2 }]);
    all.push((ip("10.96.0.0"), 12));
    let batch = planner.plan_node(facts(all));
    assert!(batch.is_empty() && batch.reports.is_empty(), "{batch:?}");
    let batch = planner.plan_node(facts(vec![]));
    assert_eq!(batch.service_cidrs, [(Family::V4, vec![]), (Family::V6, vec![])]);
}

#[test]
fn the_self_test_makes_nothing_of_its_address_and_yields_to_any_service() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    fake.apply(&diff::operations(planner.plan_all(self_test::ports())));
    assert_eq!((fake.frontends.len(), fake.addresses.len()), (2, 0));
    let (mut planner, retired) = Planner::adopt(ROOMY, &fake.snapshot().unwrap());
    assert!(retired.is_empty() && planner.plan_all(self_test::ports()).is_empty());
    let addr = IpAddr::from(self_test::VIP4);
    let own = Frontend { addr, port: self_test::PORT, kind: FrontendKind::ExternalIp };
    let real = PortKey { protocol: Protocol::Udp, ..key(0) };
    let batch = planner.plan([(real, Some(with(&[own])))]);
    assert!(matches!(batch.frontends[..], [FrontendChange::Put(_, word)] if word.id() == 3));
    let word = address_word(&addr, AddressFlags::VIP);
    assert_eq!(batch.addresses, [AddressChange::Put(addr, word)]);
}

/// Which records of `AFFINITY` a program would follow: service port, backend, generation.
fn valid_records(fake: &Fake) -> BTreeSet<(u32, u32, u32)> {
    let all = (0..).zip(&fake.backends).map(|(id, backend)| (id, *backend));
    let valid = all.filter(|(_, backend)| BackendWord(backend.word).has(BackendFlags::PRESENT));
    valid.map(|(id, b)| (b.service_port, id, BackendWord(b.word).generation())).collect()
}

#[test]
fn affinity_records_hold_over_a_restart_a_8() {
    let (mut planner, mut fake) = (Planner::new(ROOMY), Fake::new(ROOMY));
    let mut model = Model::default();
    model.update(&(0, Some(port(&[0], &[1, 2]))));
    model.update(&(2, Some(port(&[1], &[2, 3]))));
    fake.apply(&diff::operations(planner.plan_all(model.all())));
    let before = valid_records(&fake);
    // While the agent was away, one endpoint came and one Service changed its frontends.
    model.update(&(0, Some(port(&[0, 2], &[0, 1, 2]))));
    let (_, fake, _) = restart(fake, &model, true);
    assert_eq!(before.len(), 4);
    assert!(valid_records(&fake).is_superset(&before));
}

#[test]
fn no_affinity_record_of_a_service_that_is_gone_binds_the_next_with_its_id_a_8() {
    // Few ids, so that they are reused at once.
    let capacity = Capacity { service_ports: 2, backends: 3, ..ROOMY };
    let (mut planner, mut fake) = (Planner::new(capacity), Fake::new(capacity));
    let mut ever = BTreeSet::new();
    for n in 0..12 {
        let service = 2 * (n % 3);
        let ops = planner.plan([(key(service), Some(port(&[0], &[1, 2])))]);
        fake.apply(&diff::operations(ops));
        let valid = valid_records(&fake);
        assert_eq!(valid.len(), 2);
        assert!(valid.iter().all(|&(id, ..)| id == 1), "the id is always the same");
        assert!(ever.is_disjoint(&valid), "an old record binds a new Service");
        ever.extend(valid);
        let batch = planner.plan([(key(service), None)]);
        let epoch = batch.epoch;
        fake.apply(&diff::operations(batch));
        fake.apply(&diff::clear(&planner.release(epoch)));
        assert_eq!(valid_records(&fake), BTreeSet::new());
        if n % 4 == 3 {
            planner = Planner::adopt(capacity, &fake.snapshot().unwrap()).0;
        }
    }
}
