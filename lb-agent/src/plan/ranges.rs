//! Which source ranges of a service port come, stay and go (contract )?
//!
//! A frontend is guarded from when its service port has a range until it has none, whatever the map
//! has room for: a full map keeps clients out, and lets nobody in.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::Error;
use super::ids::Freed;
use super::port::{Pools, Table};
use super::table::SourceRange;
use crate::model::{Cidr, Family};

/// The elements of `SOURCE_RANGES4` and `SOURCE_RANGES6`.
#[derive(Debug)]
pub(super) struct SourceRanges {
    capacity: u32,
    /// Those in the maps, by family.
    used: [u32; 2],
    /// Those that wait for a grace period, with the epoch in which they went out of use.
    leaving: HashMap<SourceRange, u64>,
}

impl SourceRanges {
    /// Empty maps of `capacity` elements each.
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, used: [0; 2], leaving: HashMap::new() }
    }

    /// Maps with these ranges in them.
    pub(super) fn adopt<'a>(capacity: u32, held: impl Iterator<Item = &'a Cidr>) -> Self {
        let mut all = Self::new(capacity);
        for range in held {
            all.used[index(range.family())] += 1;
        }
        all
    }

    /// Takes an element that leaves so many free; false if there is none. Tells those to write.
    fn take(&mut self, range: SourceRange, leave: u32, added: &mut Vec<SourceRange>) -> bool {
        // Still there.
        if self.leaving.remove(&range).is_some() {
            return true;
        }
        let used = &mut self.used[index(range.range.family())];
        if *used >= self.capacity.saturating_sub(leave) {
            return false;
        }
        *used += 1;
        added.push(range);
        true
    }

    /// A grace period has passed for what went out of use in `epoch`. Whether it goes now: it may have
    /// been taken up again, and it may even have gone out of use again since.
    pub(super) fn release(&mut self, range: &SourceRange, epoch: u64) -> bool {
        let goes = self.leaving.get(range) == Some(&epoch);
        if goes {
            self.leaving.remove(range);
            self.used[index(range.range.family())] -= 1;
        }
        goes
    }

    /// What ports that get more ranges leave to those that only get others: theirs go a grace period
    /// later, and until then there are both.
    fn reserve(&self) -> u32 {
        self.capacity / 16
    }

    /// Elements in use, by family.
    #[cfg(test)]
    pub(super) fn used(&self) -> [u32; 2] {
        self.used
    }
}

/// Brings the ranges of a service port to what is desired; leaves so many free to others. Tells those
/// to write, and why some are missing: those that go, go in any case.
pub(super) fn program(
    table: &mut Table,
    desired: &[Cidr],
    leave: usize,
    pools: &mut Pools,
    added: &mut Vec<SourceRange>,
) -> Option<Error> {
    table.is_guarded = !desired.is_empty();
    if table.ranges == desired {
        return None;
    }
    let id = table.id;
    let before = table.ranges.len();
    let wanted: BTreeSet<Cidr> = desired.iter().copied().collect();
    let (kept, gone): (Vec<Cidr>, Vec<Cidr>) =
        table.ranges.drain(..).partition(|range| wanted.contains(range));
    let known: BTreeSet<Cidr> = kept.iter().copied().collect();
    let mut new: Vec<Cidr> = wanted.difference(&known).copied().collect();
    // If not all fit, those that let in most.
    new.sort_by_key(|range| (range.prefix(), Reverse(*range)));
    let leave = u32::try_from(leave).unwrap_or(u32::MAX);
    let leave = pools.source_ranges.reserve().saturating_add(leave);
    table.ranges = kept;
    let mut missing: Option<(Family, u32)> = None;
    for range in new {
        let leave = if table.ranges.len() < before { 0 } else { leave };
        if pools.source_ranges.take(SourceRange { id, range }, leave, added) {
            table.ranges.push(range);
        } else {
            missing.get_or_insert((range.family(), 0)).1 += 1;
        }
    }
    table.ranges.sort_unstable();
    for range in gone {
        let_go(SourceRange { id, range }, pools);
    }
    missing.map(|(family, needed)| Error::Full {
        map: if family == Family::V4 { "SOURCE_RANGES4" } else { "SOURCE_RANGES6" },
        needed,
        capacity: pools.source_ranges.capacity,
        flag: "--max-source-ranges",
    })
}

/// Takes the ranges of a service port out of use.
pub(super) fn retire(table: &Table, pools: &mut Pools) {
    for &range in &table.ranges {
        let_go(SourceRange { id: table.id, range }, pools);
    }
}

fn let_go(range: SourceRange, pools: &mut Pools) {
    pools.source_ranges.leaving.insert(range, pools.epoch);
    pools.free(Freed::SourceRange(range));
}

fn index(family: Family) -> usize {
    usize::from(family == Family::V6)
}
