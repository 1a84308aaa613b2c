//! Which next hop does a flow that is sent on have?
//!
//! The kernel's routes are asked every few ticks for each direction of a flow; its record names the
//! answer. In every tick they are asked for some flow of each next hop: where they lead nobody any more,
//! those who still name it ask too. And the kernel looks only after those neighbours that it sends
//! packets to itself: every few ticks it is given one for each next hop, else one that has moved would
//! be lost for good.

use crate::abi::{InterfaceFlags, Live, NEXT_HOPS, NextHop};
use crate::tables::NodeTables;

/// Ticks after which a neighbour is looked after: 2 s to 20 s, by the kernel's HZ. The kernel itself
/// trusts one for 15 s to 45 s after it answered.
const TRUSTED: u32 = 8;

/// What a flow's record is to remember of the route that was found last, whose neighbour is known; 0:
/// nothing. Where the neighbour is to be looked after, it counts as unknown from here on
/// ([`NodeTables::neighbour_known`]); at XDP, where the kernel sends nothing, the packet is left.
#[inline(never)]
pub(crate) fn settle<T: NodeTables>(tables: &T, flow: u32, early: bool) -> u32 {
    let Some(mut hop) = tables.found_hop() else { return 0 };
    if leaves_early(tables, hop.egress) {
        hop.limits |= NextHop::EARLY;
    }
    hop.seen = tables.now();
    hop.found = hop.seen;
    let hop = hop.tagged();
    let Some((tag, seen)) = tables.next_hop_seen(hop.place()) else { return 0 };
    let name = hop.name_for(flow, tables.arrival());
    let same = tag == hop.tag;
    let trusted = tag != 0 && hop.seen.wrapping_sub(seen) <= TRUSTED;
    if same && trusted {
        tables.set_next_hop_found(hop.place(), hop.found);
        return name;
    }
    tables.forget_neighbour();
    if early || trusted {
        // Another next hop has the place: this one goes without, and is looked after every time.
        return 0;
    }
    tables.set_next_hop(hop.place(), &hop);
    name
}

/// Takes the next hop that a flow's record names as the route found last, for a packet of `length`
/// bytes; `false` if there is none that can be relied on.
#[inline(always)]
pub(crate) fn take<T: NodeTables>(
    tables: &T,
    live: Live,
    flow: u32,
    length: u32,
    early: bool,
) -> bool {
    let name = live.hop();
    if name == 0 {
        return false;
    }
    let Some(hop) = tables.next_hop(name & (NEXT_HOPS - 1)) else { return false };
    let here = tables.arrival();
    if hop.found != tables.now()
        || !hop.is_whole()
        || hop.name_for(flow, here) != name
        || !hop.fits(length)
        || (early && !hop.is_early())
    {
        return false;
    }
    tables.take_hop(&hop);
    true
}

/// Whether XDP may send a packet out of an interface.
#[inline(always)]
pub(crate) fn leaves_early<T: NodeTables>(tables: &T, egress: u32) -> bool {
    egress == tables.arrival()
        || tables.interface(egress).is_some_and(|interface| interface.has(InterfaceFlags::XDP))
}
