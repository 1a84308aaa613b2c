//! Where does a packet to an address of Services end that no Service takes?
//!
//! Nobody here has such an address, so the node's routes lead what comes from outside back to where it
//! came from: it would go in circles until its time to live ends (contract V-12, production case 45),
//! one packet as good as a hundred for who wants to fill the link.

use crate::abi::{AddressFlags, InterfaceFlags, InterfaceWord, Ip, V4, V6};
use crate::begin::{beyond, what_is};
use crate::origin::{arrival, group};
use crate::packet::Packet;
use crate::parse::{Header, Ipv, Link, Network, destination_of, network, source_of};
use crate::tables::{NodeTables, RouteStatus, RouteTables};
use crate::verdict::Verdict;

/// What becomes of a packet that arrives, for which `verdict` was found: one without ports, by which it
/// would have been judged, is dropped where it would go in circles, and nobody can be told.
#[inline(always)]
pub(crate) fn unless_stray<P, T>(packet: &P, tables: &T, link: Link, verdict: Verdict) -> Verdict
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    if !matches!(verdict, Verdict::NotTransport | Verdict::Unparsed | Verdict::Fragment) {
        return verdict;
    }
    // Numbers that the verifier does not know: it follows what comes once for all of them.
    let known = hidden(tables, verdict as usize);
    let circles = match network(packet, link) {
        Ok(Network::V4(l3)) => circles::<V4, P, T>(packet, tables, hidden(tables, l3)),
        Ok(Network::V6(l3)) => circles::<V6, P, T>(packet, tables, hidden(tables, l3)),
        Err(_) => false,
    };
    if circles {
        Verdict::UndefinedPort
    } else if known == Verdict::NotTransport as usize {
        Verdict::NotTransport
    } else if known == Verdict::Unparsed as usize {
        Verdict::Unparsed
    } else {
        Verdict::Fragment
    }
}

/// A small number, of which the verifier knows nothing any more.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a small number")]
pub(crate) fn hidden<T: NodeTables>(tables: &T, number: usize) -> usize {
    tables.forget(number as u32) as usize & 0xff
}

/// Whether a packet that is left alone would leave by where it came from. A function of its own, for
/// the sake of the stack.
#[inline(never)]
pub(crate) fn circles<const N: usize, P, T>(packet: &P, tables: &T, l3: usize) -> bool
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let l3 = l3 & 0xff;
    let Some(src) = source_of::<N, P>(packet, l3) else { return false };
    let Some(dst) = destination_of::<N, P>(packet, l3) else { return false };
    if !AddressFlags::is_services_alone(what_is(tables, &dst)) {
        return false;
    }
    let interface = InterfaceWord(arrival(tables));
    let ifindex = tables.arrival();
    interface.has(InterfaceFlags::OFF_NODE)
        && !beyond::<N, P>(packet, ifindex, interface, l3, &src)
        && !ends_here(tables, group(ifindex, interface), &src, &dst)
}

/// Whether a packet that arrives by the interface `over` ends on this node: by a `local` route, as the
/// agents of some load balancers make them, or because no route leads anywhere.
#[inline(never)]
pub(crate) fn ends_here<const N: usize, T: RouteTables<N>>(
    tables: &T,
    over: u32,
    src: &Ip<N>,
    dst: &Ip<N>,
) -> bool {
    tables.route(src, dst, over, false, 0) == RouteStatus::Local
}
