//! What changes in the tables of one service port when its endpoints or facts change?
//!
//! One [`walk`] over what is programmed and what is desired finds what comes, stays and goes: the work
//! is in proportion to that service port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{
    Backend, BackendFlags, BackendId, BackendWord, FactsFlags, FactsWord, Scope, ServicePortId,
    SetWord,
};

use super::Error;
use super::address::words;
use super::ids::{Freed, IdPool, Quarantine, Range, RangePool};
use super::ranges::{self, SourceRanges};
use super::shares::Usage;
use super::table::{PortChange, SetChange};
use super::walk::{Step, useful, walk};
use crate::model::{Cidr, DesiredBackend, DesiredPort, Family};

/// Flags of a backend that is in a set.
const IN_A_SET: u16 = BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL;

/// What is programmed of one service port.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) id: ServicePortId,
    pub(super) facts: FactsWord,
    /// Sorted by (address, port).
    pub(super) backends: Vec<Held>,
    pub(super) sets: [Set; 2],
    /// Whether its load balancer's frontends are guarded.
    pub(super) is_guarded: bool,
    /// Its source ranges in the map, sorted: all that it should have, unless that is full.
    pub(super) ranges: Vec<Cidr>,
}

/// A backend that has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) addr: IpAddr,
    pub(super) port: u16,
    pub(super) flags: u16,
    pub(super) id: BackendId,
    pub(super) generation: u32,
}

impl Held {
    fn word(&self, flags: u16) -> BackendWord {
        BackendWord::new(self.port.to_be(), flags, self.generation)
    }
}

/// A set as programmed.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    pub(super) word: SetWord,
    pub(super) ids: Box<[BackendId]>,
    /// The slots that this set holds; none where it is empty, or was found damaged.
    pub(super) range: Option<Range>,
    /// What was read back does not fit together: write it anew.
    pub(super) damaged: bool,
}

/// The pools from which a service port takes what it needs.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) service_ports: IdPool,
    pub(super) backends: IdPool,
    pub(super) slots: RangePool,
    pub(super) source_ranges: SourceRanges,
    pub(super) quarantine: Quarantine,
    /// The epoch under which the current batch frees.
    pub(super) epoch: u64,
}

impl Pools {
    pub(super) fn free(&mut self, freed: Freed) {
        self.quarantine.push(self.epoch, freed);
    }
}

/// Brings `table` to what `desired` says. Where a map is full, one that is programmed loses the
/// backends that went and gets as many of the new ones as there is room for: a set must not go on
/// leading to pods that are gone. Why the others are left out is told beside the change. What is
/// new leaves so much to others.
///
/// # Errors
///
/// If nothing can be done. Nothing is changed then.
pub(super) fn program(
    table: &mut Option<Table>,
    desired: &DesiredPort,
    family: Family,
    leave: Usage,
    pools: &mut Pools,
) -> Result<(PortChange, Option<Error>), Error> {
    let all = useful(desired, family);
    let held: &[Held] = table.as_ref().map_or(&[], |table| &table.backends);
    let new = walk(held, &all).filter(|step| matches!(step, Step::Comes(_))).count();
    let free = pools.backends.available().saturating_sub(leave.backends);
    let is_new = table.is_none();
    let mut left_out = check_room(is_new, leave.service_ports, new, free, pools).err();
    if table.is_none()
        && let Some(full) = left_out
    {
        return Err(full);
    }
    let mut room = new.min(free);
    let mut wanted = within(held, &all, room);
    let mut last = false;
    loop {
        match find_room(table.as_ref(), &wanted, leave, pools) {
            Ok(Fitting { backends, gone, ranges }) => {
                let change = commit(table, desired, backends, &gone, ranges, pools);
                return Ok((change, left_out));
            }
            Err(full) if table.is_none() || last => return Err(left_out.unwrap_or(full)),
            Err(full) => left_out = left_out.or(Some(full)),
        }
        let held: &[Held] = table.as_ref().map_or(&[], |table| &table.backends);
        last = room == 0;
        wanted = if last { shrunk(held, &all) } else { within(held, &all, room / 2) };
        room /= 2;
    }
}

/// What [`commit`] needs, taken from the pools where it can be missing.
struct Fitting {
    /// With the flags as they are programmed; nothing for a new one, whose id is still 0.
    backends: Vec<(Held, Option<u16>)>,
    gone: Vec<Held>,
    ranges: [Option<Range>; 2],
}

/// Takes the slots for the sets that change; on an error nothing is taken.
fn find_room(
    table: Option<&Table>,
    wanted: &[DesiredBackend],
    leave: Usage,
    pools: &mut Pools,
) -> Result<Fitting, Error> {
    let held: &[Held] = table.map_or(&[], |table| &table.backends);
    let mut backends = Vec::with_capacity(wanted.len());
    let mut gone = Vec::new();
    for step in walk(held, wanted) {
        match step {
            Step::Comes(want) => backends.push((Held::from(want), None)),
            Step::Stays(held, want) => {
                backends.push((Held { flags: want.flags, ..*held }, Some(held.flags)));
            }
            Step::Goes(held) => gone.push(*held),
        }
    }
    let old_sets = table.map(|table| &table.sets);
    let mut ranges = [None, None];
    for (scope, flag) in SCOPES {
        let members = members(&backends, flag);
        let old = old_sets.map(|sets| &sets[scope as usize]);
        if old.is_some_and(|old| !old.damaged && members.clone().eq(old.ids.iter().copied())) {
            continue;
        }
        let count = u32::try_from(members.count()).unwrap_or(u32::MAX);
        let before = old.map_or(0, |old| old.ids.len());
        match take_slots(count, before, leave.slots, pools) {
            Ok(range) => ranges[scope as usize] = range,
            Err(error) => {
                // Never written to, so there is nothing to wait for.
                ranges.into_iter().flatten().for_each(|range| pools.slots.release(range));
                return Err(error);
            }
        }
    }
    Ok(Fitting { backends, gone, ranges })
}

/// Without the new backends beyond the first `room`. Those in a set come before those that only
/// serve whom affinity sends.
fn within(held: &[Held], all: &[DesiredBackend], room: usize) -> Vec<DesiredBackend> {
    let mut new: Vec<_> = walk(held, all)
        .filter_map(|step| match step {
            Step::Comes(want) => Some((want.flags & IN_A_SET == 0, want.addr, want.port)),
            Step::Stays(..) | Step::Goes(_) => None,
        })
        .collect();
    if new.len() <= room {
        return all.to_vec();
    }
    new.sort_unstable();
    let out: BTreeSet<_> = new[room..].iter().map(|&(_, addr, port)| (addr, port)).collect();
    all.iter().filter(|want| !out.contains(&(want.addr, want.port))).copied().collect()
}

/// What stays, in no set in which it is not already: no set grows.
fn shrunk(held: &[Held], all: &[DesiredBackend]) -> Vec<DesiredBackend> {
    walk(held, all)
        .filter_map(|step| match step {
            Step::Stays(held, want) => {
                let flags = want.flags & (held.flags | !IN_A_SET);
                Some(DesiredBackend { flags, ..*want })
            }
            Step::Comes(_) | Step::Goes(_) => None,
        })
        .collect()
}

/// Takes a service port whose last frontend goes out of use.
pub(super) fn retire(table: &Table, pools: &mut Pools) -> PortChange {
    let mut change = PortChange { id: table.id, ..PortChange::default() };
    for held in &table.backends {
        drop_backend(held, &mut change, pools);
    }
    for range in table.sets.iter().filter_map(|set| set.range) {
        pools.free(Freed::Slots(range));
    }
    ranges::retire(table, pools);
    pools.free(Freed::ServicePort(table.id));
    change
}

const SCOPES: [(Scope, u16); 2] =
    [(Scope::Cluster, BackendFlags::IN_CLUSTER), (Scope::Local, BackendFlags::IN_LOCAL)];

/// Everything is there; from here on nothing fails.
fn commit(
    table: &mut Option<Table>,
    desired: &DesiredPort,
    backends: Vec<(Held, Option<u16>)>,
    gone: &[Held],
    ranges: [Option<Range>; 2],
    pools: &mut Pools,
) -> PortChange {
    let mut change = PortChange::default();
    let is_new = table.is_none();
    let table = table.get_or_insert_with(|| Table {
        id: pools.service_ports.take().map_or(0, |(id, _)| id),
        facts: FactsWord::default(),
        backends: Vec::new(),
        sets: [Set::default(), Set::default()],
        is_guarded: false,
        ranges: Vec::new(),
    });
    change.id = table.id;
    table.backends.clear();
    table.backends.reserve_exact(backends.len());
    for (mut held, flags_before) in backends {
        if let Some(before) = flags_before {
            if before != held.flags {
                change.words.push((held.id, held.word(before), held.word(held.flags)));
            }
        } else {
            (held.id, held.generation) = pools.backends.take().unwrap_or_default();
            change.added.push((held.id, element(&held, table.id)));
        }
        table.backends.push(held);
    }
    for held in gone {
        drop_backend(held, &mut change, pools);
    }
    for (scope, flag) in SCOPES {
        let set = &mut table.sets[scope as usize];
        let ids: Vec<BackendId> = table
            .backends
            .iter()
            .filter(|held| held.flags & flag != 0)
            .map(|held| held.id)
            .collect();
        let word = match ranges[scope as usize] {
            Some(range) => SetWord::new(range.first, range.count),
            None if !ids.is_empty() => set.word,
            None if scope == Scope::Local && desired.drop_when_no_local => SetWord::DROP,
            None => SetWord::REJECT,
        };
        if word == set.word && !set.damaged && !is_new {
            continue;
        }
        if let Some(old) = set.range {
            pools.free(Freed::Slots(old));
        }
        change.sets[scope as usize] = Some(SetChange { word, slots: ids.clone() });
        *set = Set { word, ids: ids.into(), range: ranges[scope as usize], damaged: false };
    }
    let facts = facts(desired);
    if facts != table.facts {
        table.facts = facts;
        change.facts = Some(facts);
    }
    change
}

fn drop_backend(held: &Held, change: &mut PortChange, pools: &mut Pools) {
    // It stays present until nobody can be reading it; what it is good for ends now.
    let kept = held.flags & (BackendFlags::PRESENT | BackendFlags::IPV6);
    change.words.push((held.id, held.word(held.flags), held.word(kept)));
    pools.free(Freed::Backend(held.id));
}

fn check_room(
    is_new: bool,
    leave: usize,
    new: usize,
    free: usize,
    pools: &Pools,
) -> Result<(), Error> {
    if is_new && pools.service_ports.available() <= leave {
        return Err(Error::Full {
            map: "FACTS",
            needed: 1,
            capacity: pools.service_ports.capacity(),
            flag: "--max-service-ports",
        });
    }
    if free < new {
        return Err(Error::Full {
            map: "BACKENDS",
            needed: u32::try_from(new).unwrap_or(u32::MAX),
            capacity: pools.backends.capacity(),
            flag: "--max-backends",
        });
    }
    Ok(())
}

/// Slots for a set of `count` backends that had `before`. One that does not grow may take from the
/// reserve, and what is left to others: it gives back as many after the grace period.
fn take_slots(
    count: u32,
    before: usize,
    leave: usize,
    pools: &mut Pools,
) -> Result<Option<Range>, Error> {
    if count == 0 {
        return Ok(None);
    }
    if count > SetWord::MAX_COUNT {
        return Err(Error::TooManyBackends { count });
    }
    let leave = u32::try_from(leave).unwrap_or(u32::MAX);
    let leave =
        if count as usize <= before { 0 } else { pools.slots.reserve().saturating_add(leave) };
    pools.slots.take_leaving(count, leave).map(Some).ok_or(Error::Full {
        map: "SLOTS",
        needed: count,
        capacity: pools.slots.capacity(),
        flag: "--max-slots",
    })
}

fn members(
    backends: &[(Held, Option<u16>)],
    flag: u16,
) -> impl Iterator<Item = BackendId> + Clone + '_ {
    backends.iter().filter(move |(held, _)| held.flags & flag != 0).map(|(held, _)| held.id)
}

fn facts(desired: &DesiredPort) -> FactsWord {
    let mut flags = FactsFlags::PRESENT;
    if desired.internal_local {
        flags |= FactsFlags::INTERNAL_LOCAL;
    }
    if desired.external_local {
        flags |= FactsFlags::EXTERNAL_LOCAL;
    }
    if desired.affinity_timeout_s.is_some() {
        flags |= FactsFlags::AFFINITY;
    }
    FactsWord::new(flags, desired.affinity_timeout_s.unwrap_or(0))
}

fn element(held: &Held, service_port: ServicePortId) -> Backend {
    Backend { addr: words(held.addr), word: held.word(held.flags).0, service_port, zone: 0, pad: 0 }
}
