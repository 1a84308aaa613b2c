//! Does a packet begin a flow, where does that go, and under which source?
//!
//! Who sends it decides (contract 3.2, 4.1): a pod of this node, this node itself, or anybody else.

use crate::abi::{
    AddressFlags, BackendFlags, FactsFlags, Flow, FlowKey, Found, FrontendFlags, FrontendKey,
    FrontendWord, InterfaceFlags, InterfaceWord, Ip, LOCAL_CIDRS, Scope, ServicePortId,
};
use crate::origin::{arrival, group, origin};
use crate::packet::Packet;
use crate::parse::{ETHERNET, Header, Headers, Ipv};
use crate::select::{Place, address_flags, choose_for, destination, place_of, widen};
use crate::stray::ends_here;
use crate::tables::{LocalMode, RouteTables};
use crate::verdict::{NoBackend, Verdict};

/// What the local detector says of a client (contract 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// A pod of this node.
    Pod,
    /// Somebody else.
    Other,
    /// There is no detector.
    Unknown,
}

/// A packet without a record: fills in where its flow goes, or tells why it does not begin one.
/// `frontend` is what [`frontend`] says of it.
#[inline(never)]
pub(crate) fn begin<const N: usize, P, T>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    flow: &mut Flow<N>,
    frontend: u32,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let key = &headers.key;
    let found = unpacked(frontend);
    if found.is_none() && !AddressFlags::is_services_alone(what_is(tables, &key.dst)) {
        return Some(Verdict::NotService);
    }
    let interface = InterfaceWord(arrival(tables));
    let outside = interface.has(InterfaceFlags::OFF_NODE);
    if outside && beyond::<N, P>(packet, tables.arrival(), interface, headers.l3(), &key.src) {
        return Some(Verdict::NotService);
    }
    let Some(found) = found else {
        // Nobody else has the address, so the node would send the packet out again (V-12).
        let over = group(tables.arrival(), interface);
        let circles = outside && !ends_here(tables, over, &key.src, &key.dst);
        return Some(if circles { Verdict::UndefinedPort } else { Verdict::NotService });
    };
    if headers.is_tcp() && !headers.opens() {
        // To an address of the node it may answer a connection that the node made from that very
        // port, and if not, the node resets it.
        let of_node = AddressFlags::NODE | AddressFlags::HOST;
        let own = what_is(tables, &key.dst) & of_node != 0;
        return Some(if own { Verdict::NotService } else { Verdict::NoFlow });
    }
    if found.flags & FrontendFlags::RANGES != 0 && !is_allowed(tables, found.id, &key.src) {
        return Some(Verdict::SourceRange);
    }
    let plan = Plan(tables.forget(plan(tables, found, interface, &key.src)));
    let scope = if plan.has(Plan::LOCAL) { Scope::Local } else { Scope::Cluster };
    let choice = match choose_for(tables, found.id, scope, || widen(&key.src)) {
        Ok(choice) => choice,
        Err(NoBackend::Reject) => return Some(Verdict::NoBackend),
        Err(NoBackend::Drop) => return Some(Verdict::NoLocalBackend),
    };
    flow.dst = choice.ip();
    flow.dport = choice.port;
    flow.backend = choice.id;
    flow.generation = choice.generation;
    flow.flags = 0;
    let here = tables.backend_word(choice.id).has(BackendFlags::LOCAL);
    // From outside, whatever the backend's object says of where it is (M-1).
    let itself = flow.dst == key.src;
    let sent_on = if itself {
        plan.has(Plan::OUTSIDE)
    } else {
        plan.has(Plan::ALWAYS) || (plan.has(Plan::ELSEWHERE) && !here)
    };
    if sent_on {
        flow.flags = Flow::<N>::FORWARDED;
    }
    flow.ifindex = origin(tables.arrival(), interface, sent_on);
    None
}

/// What follows from who sends a packet and what it is for.
#[derive(Clone, Copy)]
struct Plan(u32);

impl Plan {
    /// Only backends of this node count (V-2, V-4, V-8).
    const LOCAL: u32 = 1;
    /// It comes from outside.
    const OUTSIDE: u32 = 1 << 1;
    /// It gets a source of this node (M-6).
    const ALWAYS: u32 = 1 << 2;
    /// The same, if the backend is on another node (M-2, M-7): the design departs from the contract where
    /// it is here.
    const ELSEWHERE: u32 = 1 << 3;

    #[inline(always)]
    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// The frontend that a packet is for, as one word; 0 if there is none. A function of its own, for the
/// sake of the stack.
#[inline(never)]
pub(crate) fn frontend<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>) -> u32 {
    let found = destination(tables, &FrontendKey::new(key.dst, key.dport, key.proto), || false);
    // An id has 24 bits, and none is 0.
    tables.forget(found.map_or(0, |found| found.id | (found.flags as u32) << 24))
}

#[inline(always)]
const fn unpacked(word: u32) -> Option<Found> {
    let [_, _, _, flags] = word.to_le_bytes();
    if word == 0 { None } else { Some(Found { id: word & FrontendWord::MAX_ID, flags }) }
}

/// What an address is; a function of its own, for the sake of the stack.
#[inline(never)]
pub(crate) fn what_is<const N: usize, T: RouteTables<N>>(tables: &T, ip: &Ip<N>) -> u32 {
    address_flags(tables, ip)
}

/// Whether a source is let through (V-5), likewise.
#[inline(never)]
fn is_allowed<const N: usize, T: RouteTables<N>>(
    tables: &T,
    id: ServicePortId,
    source: &Ip<N>,
) -> bool {
    tables.source_allowed(id, source)
}

/// Whether a packet from outside is not for us to judge: the kernel hands it to an interface of a
/// VLAN first, or refuses it.
#[inline(always)]
pub(crate) fn beyond<const N: usize, P: Packet>(
    packet: &P,
    ifindex: u32,
    interface: InterfaceWord,
    l3: usize,
    source: &Ip<N>,
) -> bool
where
    Ipv<N>: Header<N>,
{
    // The port of a bridge has another address than the bridge.
    let alone = group(ifindex, interface) == ifindex;
    packet.tagged() || l3 > ETHERNET || (alone && packet.for_others()) || !Ipv::<N>::is_host(source)
}

/// The bits of a [`Plan`] (V-1, V-2, V-7 to V-10).
#[inline(always)]
fn plan<const N: usize, T: RouteTables<N>>(
    tables: &T,
    found: Found,
    interface: InterfaceWord,
    source: &Ip<N>,
) -> u32 {
    let outside = interface.has(InterfaceFlags::OFF_NODE);
    let client = client(tables, interface, source);
    let facts = tables.facts(found.id).flags();
    let mut plan = if outside { Plan::OUTSIDE | Plan::ELSEWHERE } else { 0 };
    if found.flags & FrontendFlags::EXTERNAL == 0 {
        if facts & FactsFlags::INTERNAL_LOCAL != 0 {
            plan |= Plan::LOCAL;
        }
        if client == Client::Other {
            plan |= Plan::ELSEWHERE;
        }
        if tables.masquerade_all() {
            plan |= Plan::ALWAYS;
        }
    } else if facts & FactsFlags::EXTERNAL_LOCAL != 0
        && client != Client::Pod
        && what_is(tables, source) & AddressFlags::HOST == 0
    {
        plan |= Plan::LOCAL;
    }
    plan
}

#[inline(always)]
fn client<const N: usize, T: RouteTables<N>>(
    tables: &T,
    interface: InterfaceWord,
    source: &Ip<N>,
) -> Client {
    match tables.local_mode() {
        LocalMode::Interface if interface.has(InterfaceFlags::LOCAL_POD) => Client::Pod,
        LocalMode::Interface => Client::Other,
        LocalMode::Range => by_range(tables, source),
        LocalMode::None => Client::Unknown,
    }
}

#[inline(always)]
fn by_range<const N: usize, T: RouteTables<N>>(tables: &T, source: &Ip<N>) -> Client {
    match place_of(source, LOCAL_CIDRS, |index| tables.local_cidr(index)) {
        Place::Inside => Client::Pod,
        Place::Outside => Client::Other,
        Place::Unknown => Client::Unknown,
    }
}
