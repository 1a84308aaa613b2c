//! Who holds which id and which slots, and when may they be given to another?
//!
//! A kernel program may still read what was taken out of use a moment ago. So nothing goes straight
//! back to its pool: it waits in [`Quarantine`] until a grace period has passed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_common::abi::{BackendId, ServicePortId};

use super::table::SourceRange;

/// Dense ids from 1 to the capacity; 0 is none. Freed ids are reused first-in-first-out, before
/// fresh ones, so that the tables stay dense and the time before a reuse is longest.
#[derive(Debug)]
pub(super) struct IdPool {
    /// Ids from here on were never used.
    next: u32,
    /// Exclusive end of the ids.
    end: u32,
    free: VecDeque<u32>,
    /// Uses so far, by id; grows with the ids in use.
    generations: Vec<u32>,
}

impl IdPool {
    /// A pool for a table of `elements`, of which element 0 is never used.
    pub(super) fn new(elements: u32) -> Self {
        Self { next: 1, end: elements.max(1), free: VecDeque::new(), generations: Vec::new() }
    }

    /// Number of ids that can be taken now.
    pub(super) fn available(&self) -> usize {
        self.free.len() + (self.end - self.next) as usize
    }

    /// Number of ids, free or not.
    pub(super) fn capacity(&self) -> u32 {
        self.end - 1
    }

    /// An id and its new generation.
    pub(super) fn take(&mut self) -> Option<(u32, u32)> {
        let id = self.free.pop_front().or_else(|| {
            (self.next < self.end).then(|| {
                self.next += 1;
                self.next - 1
            })
        })?;
        let generation = self.generation_mut(id);
        *generation = generation.wrapping_add(1);
        Some((id, *generation))
    }

    /// Makes an id available again, after its grace period.
    pub(super) fn release(&mut self, id: u32) {
        self.free.push_back(id);
    }

    /// The generation of an id.
    pub(super) fn generation(&self, id: u32) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or(0)
    }

    /// Builds a pool in which `used` ids are taken and `generations` are known.
    pub(super) fn adopt(
        elements: u32,
        used: &BTreeSet<u32>,
        generations: impl IntoIterator<Item = (u32, u32)>,
    ) -> Self {
        let mut pool = Self::new(elements);
        for (id, generation) in generations {
            if id < pool.end {
                *pool.generation_mut(id) = generation;
                pool.next = pool.next.max(id + 1);
            }
        }
        let last = used.iter().next_back().map_or(1, |last| last + 1);
        pool.next = pool.next.max(last).min(pool.end);
        pool.free = (1..pool.next).filter(|id| !used.contains(id)).collect();
        pool
    }

    fn generation_mut(&mut self, id: u32) -> &mut u32 {
        let index = id as usize;
        if self.generations.len() <= index {
            self.generations.resize(index + 1, 0);
        }
        &mut self.generations[index]
    }
}

/// Contiguous slots: `first` and `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    /// Index of the first slot.
    pub(super) first: u32,
    /// Number of slots, never 0.
    pub(super) count: u32,
}

/// Free ranges of slots, neighbours merged; takes the smallest that fits.
#[derive(Debug)]
pub(super) struct RangePool {
    capacity: u32,
    free: u32,
    by_first: BTreeMap<u32, u32>,
    /// (count, first), the smallest first.
    by_count: BTreeSet<(u32, u32)>,
}

impl RangePool {
    /// A pool of `capacity` free slots.
    pub(super) fn new(capacity: u32) -> Self {
        let mut pool =
            Self { capacity, free: 0, by_first: BTreeMap::new(), by_count: BTreeSet::new() };
        if capacity > 0 {
            pool.insert(Range { first: 0, count: capacity });
        }
        pool
    }

    /// Number of slots, free or not.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Takes `count` slots, more than none.
    pub(super) fn take(&mut self, count: u32) -> Option<Range> {
        let &(size, first) = self.by_count.range((count, 0)..).next()?;
        self.remove(Range { first, count: size });
        if size > count {
            self.insert(Range { first: first + count, count: size - count });
        }
        Some(Range { first, count })
    }

    /// The same, but only if `leave` slots are free afterwards.
    pub(super) fn take_leaving(&mut self, count: u32, leave: u32) -> Option<Range> {
        if self.free.checked_sub(count)? < leave { None } else { self.take(count) }
    }

    /// The slots that a set which grows leaves free. A set is never written in place, so that
    /// without them a full map would not even let endpoints go.
    pub(super) fn reserve(&self) -> u32 {
        self.capacity / 16
    }

    /// Takes exactly this range, if it is free.
    pub(super) fn claim(&mut self, range: Range) -> bool {
        let Some(end) = range.first.checked_add(range.count) else { return false };
        let Some((&first, &count)) = self.by_first.range(..=range.first).next_back() else {
            return false;
        };
        if range.count == 0 || end > first + count {
            return false;
        }
        self.remove(Range { first, count });
        if range.first > first {
            self.insert(Range { first, count: range.first - first });
        }
        if first + count > end {
            self.insert(Range { first: end, count: first + count - end });
        }
        true
    }

    /// Makes a range available again, after its grace period.
    pub(super) fn release(&mut self, range: Range) {
        let mut merged = range;
        let before = self.by_first.range(..range.first).next_back().map(|(&f, &c)| (f, c));
        if let Some((first, count)) = before
            && first + count == range.first
        {
            self.remove(Range { first, count });
            merged = Range { first, count: count + merged.count };
        }
        let end = range.first + range.count;
        if let Some(&count) = self.by_first.get(&end) {
            self.remove(Range { first: end, count });
            merged.count += count;
        }
        self.insert(merged);
    }

    /// Number of free slots.
    #[cfg(test)]
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    fn insert(&mut self, range: Range) {
        self.free += range.count;
        self.by_first.insert(range.first, range.count);
        self.by_count.insert((range.count, range.first));
    }

    fn remove(&mut self, range: Range) {
        self.free -= range.count;
        self.by_first.remove(&range.first);
        self.by_count.remove(&(range.count, range.first));
    }
}

/// Something out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// A service port id.
    ServicePort(ServicePortId),
    /// A backend id.
    Backend(BackendId),
    /// Slots.
    Slots(Range),
    /// A source range, unless it was taken up again meanwhile.
    SourceRange(SourceRange),
}

/// What waits for a grace period, in the order it went out of use.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    waiting: VecDeque<(u64, Freed)>,
}

impl Quarantine {
    /// Adds what the operations of `epoch` take out of use.
    pub(super) fn push(&mut self, epoch: u64, freed: Freed) {
        self.waiting.push_back((epoch, freed));
    }

    /// The next one that went out of use in `epoch` or before, and in which.
    pub(super) fn pop(&mut self, epoch: u64) -> Option<(u64, Freed)> {
        self.waiting.pop_front_if(|(at, _)| *at <= epoch)
    }

    /// The last epoch in which something went out of use, if anything waits.
    pub(super) fn last_epoch(&self) -> Option<u64> {
        self.waiting.back().map(|&(epoch, _)| epoch)
    }

    /// What waits.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = Freed> + '_ {
        self.waiting.iter().map(|&(_, freed)| freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dense_and_reused_in_order_with_a_new_generation() {
        let mut pool = IdPool::new(4);
        assert_eq!(
            [pool.take(), pool.take(), pool.take()],
            [Some((1, 1)), Some((2, 1)), Some((3, 1))]
        );
        assert_eq!(pool.take(), None);
        pool.release(3);
        pool.release(1);
        assert_eq!(pool.available(), 2);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some((3, 2)), Some((1, 2)), None]);
    }

    #[test]
    fn an_adopted_pool_keeps_used_ids_and_all_generations() {
        let mut pool = IdPool::adopt(6, &BTreeSet::from([2, 4]), [(2, 5), (3, 7), (4, 1)]);
        assert_eq!(
            [pool.take(), pool.take(), pool.take()],
            [Some((1, 1)), Some((3, 8)), Some((5, 1))]
        );
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn neighbouring_ranges_merge() {
        let mut pool = RangePool::new(10);
        let a = pool.take(3).unwrap();
        let b = pool.take(3).unwrap();
        let c = pool.take(4).unwrap();
        assert_eq!(pool.take(1), None);
        pool.release(a);
        pool.release(c);
        assert_eq!(pool.take(5), None, "seven free slots, but not in one piece");
        pool.release(b);
        assert_eq!(pool.take(10), Some(Range { first: 0, count: 10 }));
    }

    #[test]
    fn a_reserve_is_left_to_those_that_do_not_grow() {
        let mut pool = RangePool::new(10);
        assert_eq!(pool.take_leaving(8, 3), None);
        assert_eq!(pool.take_leaving(11, 0), None);
        assert_eq!(pool.take_leaving(7, 3), Some(Range { first: 0, count: 7 }));
        assert_eq!((pool.free(), pool.take_leaving(1, 3)), (3, None));
        assert_eq!(pool.take_leaving(3, 0), Some(Range { first: 7, count: 3 }));
        pool.release(Range { first: 0, count: 7 });
        assert_eq!(pool.free(), 7);
    }

    #[test]
    fn only_free_ranges_can_be_claimed() {
        let mut pool = RangePool::new(10);
        assert!(pool.claim(Range { first: 2, count: 3 }));
        assert!(!pool.claim(Range { first: 4, count: 1 }));
        assert!(!pool.claim(Range { first: 8, count: 3 }));
        assert!(!pool.claim(Range { first: u32::MAX, count: 2 }));
        assert!(pool.claim(Range { first: 5, count: 5 }));
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn quarantine_keeps_what_is_too_young() {
        let mut quarantine = Quarantine::default();
        quarantine.push(1, Freed::Backend(7));
        quarantine.push(2, Freed::ServicePort(3));
        assert_eq!(quarantine.pop(0), None);
        assert_eq!(quarantine.pop(1), Some((1, Freed::Backend(7))));
        assert_eq!(quarantine.pop(1), None);
        assert_eq!(quarantine.last_epoch(), Some(2));
    }
}
