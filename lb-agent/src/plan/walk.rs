//! Which backends of a service port come, stay and go?
//!
//! Both the programmed and the desired ones are sorted by address and port, so that one walk over the
//! two tells.

use std::cmp::Ordering;
use std::net::IpAddr;

use lb_common::abi::BackendFlags;

use super::port::Held;
use crate::model::{DesiredBackend, DesiredPort, Family};

/// Flags without which a backend is of no use to anyone.
const USEFUL: u16 = BackendFlags::SERVING | BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL;

/// The desired backends that are good for something, with the flags that the map needs, in order.
pub(super) fn useful(desired: &DesiredPort, family: Family) -> Vec<DesiredBackend> {
    let own = match family {
        Family::V4 => BackendFlags::PRESENT,
        Family::V6 => BackendFlags::PRESENT | BackendFlags::IPV6,
    };
    let of_family = |addr: IpAddr| addr.is_ipv6() == (family == Family::V6);
    let mut wanted: Vec<_> = desired
        .backends
        .iter()
        .filter(|backend| backend.flags & USEFUL != 0 && of_family(backend.addr))
        .map(|backend| DesiredBackend { flags: backend.flags | own, ..*backend })
        .collect();
    // Sorted already as policy hands it over; the walk depends on it.
    wanted.sort_by_key(|backend| (backend.addr, backend.port));
    wanted.dedup_by_key(|backend| (backend.addr, backend.port));
    wanted
}

impl From<&DesiredBackend> for Held {
    fn from(want: &DesiredBackend) -> Self {
        Self { addr: want.addr, port: want.port, flags: want.flags, id: 0, generation: 0 }
    }
}

/// What becomes of a backend.
pub(super) enum Step<'a> {
    /// It is new.
    Comes(&'a DesiredBackend),
    /// It is there already, as the first says, and is to be as the second says.
    Stays(&'a Held, &'a DesiredBackend),
    /// It is not desired any more.
    Goes(&'a Held),
}

/// Merges two lists sorted by (address, port).
pub(super) fn walk<'a>(
    mut held: &'a [Held],
    mut wanted: &'a [DesiredBackend],
) -> impl Iterator<Item = Step<'a>> {
    std::iter::from_fn(move || {
        let order = match (held.first(), wanted.first()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(held), Some(want)) => (held.addr, held.port).cmp(&(want.addr, want.port)),
        };
        let mut next_held = || {
            let (first, rest) = held.split_first()?;
            held = rest;
            Some(first)
        };
        let mut next_wanted = || {
            let (first, rest) = wanted.split_first()?;
            wanted = rest;
            Some(first)
        };
        match order {
            Ordering::Less => next_held().map(Step::Goes),
            Ordering::Greater => next_wanted().map(Step::Comes),
            Ordering::Equal => Some(Step::Stays(next_held()?, next_wanted()?)),
        }
    })
}
