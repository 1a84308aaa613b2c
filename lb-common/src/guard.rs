//! What leaves the node although it is meant for a Service?
//!
//! Asked where a packet leaves by an uplink or an overlay, after everyone's own translation: no other
//! node has such an address, so it would be lost on its way, or answered by a stranger (contract
//! V-12, V-13, V-i). Packets that are delivered on the node never come here.

use crate::abi::{AddressFlags, FlowKind, Ip, SERVICE_CIDRS, V4, V6};
use crate::decide::counted;
use crate::packet::Packet;
use crate::parse::{Header, Ipv, Link, Network, destination_of, headers, network};
use crate::select::{Place, address_flags, place_of};
use crate::tables::GuardTables;
use crate::verdict::Verdict;

/// Whether [`leaving`] has to be asked: loads only, because every packet of the node comes here.
#[inline(always)]
pub fn suspects<P, T>(packet: &mut P, tables: &T, link: Link) -> bool
where
    P: Packet,
    T: GuardTables<V4> + GuardTables<V6>,
{
    packet.make_reachable();
    match network(packet, link) {
        Ok(Network::V4(l3)) => destination_of::<V4, P>(packet, l3)
            .is_some_and(|ip| may_be_service::<V4, T>(tables, &ip)),
        Ok(Network::V6(l3)) => destination_of::<V6, P>(packet, l3)
            .is_some_and(|ip| may_be_service::<V6, T>(tables, &ip)),
        Err(_) => false,
    }
}

/// Why a packet may not leave; `None` if it may. Drops are counted.
#[inline(always)]
pub fn leaving<P, T>(packet: &P, tables: &T, link: Link) -> Option<Verdict>
where
    P: Packet,
    T: GuardTables<V4> + GuardTables<V6>,
{
    let verdict = match network(packet, link) {
        Ok(Network::V4(l3)) => judge::<V4, P, T>(packet, tables, l3),
        Ok(Network::V6(l3)) => judge::<V6, P, T>(packet, tables, l3),
        Err(_) => None,
    };
    verdict.map(|verdict| counted(tables, verdict))
}

#[inline(always)]
fn may_be_service<const N: usize, T: GuardTables<N>>(tables: &T, ip: &Ip<N>) -> bool {
    match place(tables, ip) {
        Place::Inside => true,
        // Every clusterIP lies in a range, where ranges are known.
        Place::Outside => false,
        Place::Unknown => tables.may_be_vip(ip),
    }
}

#[inline(always)]
fn judge<const N: usize, P, T>(packet: &P, tables: &T, l3: usize) -> Option<Verdict>
where
    P: Packet,
    T: GuardTables<N>,
    Ipv<N>: Header<N>,
{
    let ip = destination_of::<N, P>(packet, l3)?;
    let flags = address_flags(tables, &ip);
    if flags & AddressFlags::CLUSTER_IP != 0 {
        // What Services do not know is none of theirs to refuse, as ping.
        return headers::<N, P>(packet, l3, FlowKind::EGRESS).ok().map(|_| Verdict::UndefinedPort);
    }
    (flags == 0 && place(tables, &ip) == Place::Inside).then_some(Verdict::Unallocated)
}

#[inline(always)]
fn place<const N: usize, T: GuardTables<N>>(tables: &T, ip: &Ip<N>) -> Place {
    place_of(ip, SERVICE_CIDRS, |index| tables.service_cidr(index))
}
