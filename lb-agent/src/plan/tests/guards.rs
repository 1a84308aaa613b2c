//! Source ranges: which there are, who is let in, and what the maps hold of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::FrontendFlags;

use super::world::World;
use crate::datapath::fake::Fake;
use crate::model::{self, Family, FrontendKind};
use crate::plan::ids::Freed;
use crate::plan::{Planner, SourceRange};

/// Those of a family that a bit is set for, as policy would tell them.
pub(super) fn ranges(family: Family, bits: u8) -> std::sync::Arc<[model::Cidr]> {
    let all = match family {
        Family::V4 => [("10.0.0.0", 8), ("10.1.0.0", 16), ("10.1.2.0", 24), ("203.0.113.7", 32)],
        Family::V6 => [("fd10::", 16), ("fd10:1::", 32), ("fd10:1:2::", 48), ("2001:db8::7", 128)],
    };
    let set = all.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
    let set = set.map(|(_, (addr, prefix))| model::Cidr::new(addr.parse().unwrap(), *prefix));
    model::Cidr::widest(set.map(Option::unwrap).collect()).into()
}

/// Clients in none, some and many of these ranges.
pub(super) fn clients(family: Family) -> [IpAddr; 5] {
    match family {
        Family::V4 => ["198.51.100.1", "203.0.113.7", "10.9.9.9", "10.1.9.9", "10.1.2.3"],
        Family::V6 => ["2001:db8::1", "2001:db8::7", "fd10:9::1", "fd10:1:9::1", "fd10:1:2::1"],
    }
    .map(|text| text.parse().unwrap())
}

/// While `before` becomes `after`, nobody is let in whom no owner wants in either of the two, but for
/// those whose range waits for a grace period; and whoever is in both is let in at every moment (V-5, R-7).
pub(super) fn assert_guards(world: &World) {
    let (fake, before, after) = (&world.fake, &world.before, &world.model);
    for (front, word) in &fake.frontends {
        for client in clients(front.family()) {
            let lets_in = fake.lets_in(front, client).unwrap();
            let by = [before, after].map(|model| model.lets_in(front, client));
            let leaves = |freed: Freed| match freed {
                Freed::SourceRange(held) => held.id == word.id() && held.range.contains(client),
                _ => false,
            };
            // A frontend moves after the ranges of its old owner have come that it does not need now.
            let of_owners = || {
                let owners = [before, after].into_iter().filter_map(|model| model.owner(front));
                let mut ports =
                    owners.flat_map(|(port, _)| [before, after].map(|m| m.ports.get(&port)));
                ports.any(|port| {
                    port.is_some_and(|port| {
                        port.source_ranges.iter().any(|range| range.contains(client))
                    })
                })
            };
            let may = by.contains(&Some(true))
                || world.planner.pools.quarantine.iter().any(leaves)
                || of_owners();
            let must = !by.contains(&Some(false));
            assert!(!lets_in || may, "{front} lets {client} in");
            assert!(lets_in || !must, "{front} keeps {client} out");
        }
    }
}

/// The map holds the ranges of service ports and those that wait to go, and no others; and a port that
/// has no error has all that it should have.
pub(super) fn assert_ranges(planner: &Planner, fake: &Fake) {
    let mut all = BTreeSet::new();
    for port in planner.ports.iter().flatten() {
        let Some(table) = &port.table else { continue };
        let id = table.id;
        all.extend(table.ranges.iter().map(|&range| SourceRange { id, range }));
        if let Some(desired) = &port.desired {
            let wanted: BTreeSet<_> = desired.source_ranges.iter().collect();
            assert!(table.ranges.iter().all(|range| wanted.contains(range)), "{:?}", port.key);
            let complete = port.error.is_some() || table.ranges.len() == wanted.len();
            assert!(complete, "{:?} lacks ranges", port.key);
            assert_eq!(table.is_guarded, !wanted.is_empty());
        }
    }
    all.extend(planner.pools.quarantine.iter().filter_map(|freed| match freed {
        Freed::SourceRange(range) => Some(range),
        _ => None,
    }));
    assert_eq!(all, fake.source_ranges);
    let [v4, v6] = [Family::V4, Family::V6]
        .map(|family| all.iter().filter(|held| held.range.family() == family).count());
    assert_eq!(planner.pools.source_ranges.used().map(|used| used as usize), [v4, v6]);
    for (front, word) in &fake.frontends {
        let guarded = word.flags() & FrontendFlags::RANGES != 0;
        let owner = planner.fronts[front].owner.unwrap();
        let port = planner.ports[owner.index as usize].as_ref().unwrap();
        let Some(desired) = &port.desired else { continue };
        let wanted = owner.kind == FrontendKind::LoadBalancer && !desired.source_ranges.is_empty();
        assert_eq!(guarded, wanted, "{front}, whatever there is room for");
    }
}
