//! Whatever happens in whatever order: who owns what, what readers can reach at every step, and what
//! is left after a crash at any of them.

use proptest::prelude::*;

use super::guards::*;
use super::model::*;
use super::world::*;
use crate::datapath::Datapath as _;
use crate::datapath::fake::{Fake, Step, steps};
use crate::diff;
use crate::model::Family;
use crate::plan::{Error, Planner, SourceRange};

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_reaches_only_its_own_backends(history in history(), seed: u64) {
        let mut world = World::new(ROOMY);
        let mut noise = noise(seed);
        for change in history {
            let ops = world.plan(&change);
            world.apply(&ops, &mut noise);
            assert_reach(&world.fake, &world.model);
            assert_ownership(&world.planner);
            assert_ranges(&world.planner, &world.fake);
            if change.grace {
                world.grace();
                assert_ranges(&world.planner, &world.fake);
            }
        }
    }

    #[test]
    fn a_restart_with_the_same_objects_has_nothing_to_do(history in history(), node_first: bool) {
        let mut world = World::new(ROOMY);
        for change in history {
            let ops = world.plan(&change);
            world.fake.apply(&ops);
            if change.grace {
                world.grace();
            }
        }
        world.grace();
        let (planner, fake, changes) = restart(world.fake.clone(), &world.model, node_first);
        prop_assert_eq!(changes, 0);
        prop_assert_eq!(fake.snapshot().unwrap(), world.fake.snapshot().unwrap());
        assert_ownership(&planner);
        assert_ranges(&planner, &fake);
        prop_assert_eq!(planner.programmed(), world.planner.programmed());
    }

    #[test]
    fn the_way_to_a_model_does_not_matter(history in history()) {
        let mut world = World::new(ROOMY);
        for change in history {
            let ops = world.plan(&change);
            world.fake.apply(&ops);
            if change.grace {
                world.grace();
            }
        }
        let mut planner = Planner::new(ROOMY);
        let mut fake = Fake::new(ROOMY);
        planner.set_node(world.model.node.clone().unwrap_or_default());
        fake.apply(&diff::operations(planner.plan_all(world.model.all())));
        for front in fake.frontends.keys() {
            let reach = |fake: &Fake| fake.reach(front).map(|all| all.iter().map(place).collect::<Vec<_>>());
            prop_assert_eq!(reach(&fake), reach(&world.fake));
        }
        prop_assert_eq!(planner.conflicts(), world.planner.conflicts());
        prop_assert_eq!(&fake.addresses, &world.fake.addresses);
        world.grace();
        prop_assert_eq!(fake.source_ranges.len(), world.fake.source_ranges.len());
    }

    #[test]
    fn full_maps_cost_only_who_does_not_fit(history in history()) {
        let mut world = World::new(TIGHT);
        for mut change in history {
            // So small a map has no room for addresses that are nothing else.
            if let Some(node) = &mut change.node {
                node.host_addresses.clear();
            }
            let ops = world.plan(&change);
            for step in ops.iter().flat_map(steps) {
                world.fake.step(step);
                for front in world.fake.frontends.keys() {
                    for backend in world.fake.reach(front).unwrap() {
                        let place = place(&backend);
                        let own = (0..PORTS).any(|port| {
                            (0..4).any(|n| endpoint(port, n) == place)
                                && (world.before.claims(port, front).is_some() || world.model.claims(port, front).is_some())
                        });
                        prop_assert!(own, "{} reached {:?}", front, place);
                    }
                }
            }
            assert_ownership(&world.planner);
            assert_ranges(&world.planner, &world.fake);
            if world.planner.failed() + world.planner.unplaced_addresses() == 0 {
                assert_reach(&world.fake, &world.model);
            }
            if change.grace {
                world.grace();
            }
            while world.planner.wants_retry() {
                let ops = world.plan(&Change::default());
                world.fake.apply(&ops);
            }
            assert_no_room_is_left(&world);
        }
    }
}

proptest! {
    // Each is hundreds of restarts.
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_step_leaves_a_working_table(history in history()) {
        let mut world = World::new(ROOMY);
        for change in history {
            let ops = world.plan(&change);
            // What is there already is not written again.
            let is_news = |step: &Step| match *step {
                Step::ServiceCidr(family, at, cidr) => {
                    world.fake.service_cidrs[usize::from(family == Family::V6)][at] != cidr
                }
                _ => true,
            };
            let all: Vec<_> = ops.iter().flat_map(steps).filter(is_news).collect();
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
                assert_addresses(&world.fake, &world.before, &world.model);
                assert_guards(&world);
                let (planner, fake, _) = restart(world.fake.clone(), &world.model, n % 2 == 0);
                assert_reach(&fake, &world.model);
                assert_ownership(&planner);
                assert_ranges(&planner, &fake);
                if let Some(&step) = all.get(n) {
                    world.fake.step(step);
                }
            }
            if change.grace {
                world.grace();
            }
        }
    }
}

/// What is left out is left out because the map is full.
fn assert_no_room_is_left(world: &World) {
    let full = |map: &dyn Fn(bool) -> usize, v6: bool, capacity: u32| map(v6) == capacity as usize;
    let fronts =
        |v6| world.fake.frontends.keys().filter(|front| front.addr().is_ipv6() == v6).count();
    let addresses = |v6| world.fake.addresses.keys().filter(|addr| addr.is_ipv6() == v6).count();
    for front in &world.planner.unplaced {
        let v6 = front.addr().is_ipv6();
        assert!(full(&fronts, v6, TIGHT.frontends), "{front} would fit");
    }
    for (port, error) in
        world.planner.ports.iter().flatten().filter_map(|port| Some((port, port.error.as_ref()?)))
    {
        if matches!(error, Error::Full { map: "SOURCE_RANGES4" | "SOURCE_RANGES6", .. }) {
            let of_family = |held: &&SourceRange| held.range.family() == port.key.family;
            let held = world.fake.source_ranges.iter().filter(of_family).count();
            assert_eq!(held, TIGHT.source_ranges as usize, "{:?} would fit", port.key);
        }
    }
    for addr in &world.planner.addresses.unplaced {
        assert!(full(&addresses, addr.is_ipv6(), TIGHT.addresses), "{addr} would fit");
    }
}
