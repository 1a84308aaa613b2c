//! The decisions of the socket engine: a Service address becomes a backend's before a packet
//! exists, and the application keeps seeing the address it asked for.
//!
//! Addresses are four words, IPv4 in the first; an IPv4-mapped IPv6 address is IPv4 here.

use crate::abi::{
    Counter, Found, FrontendFlags, FrontendKey, NetnsFlags, ServicePortId, SocketKey, SocketLink,
    SocketPeer, SocketRecord, V4, V6, client_of_cookie, proto,
};
use crate::select::{Choice, choose_for, destination, narrow, scope_on_node, still_serves, widen};
use crate::tables::{FrontendTables, SocketTables};
use crate::verdict::NoBackend;

/// An address that an application names, or that it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<const N: usize> {
    /// Network order.
    pub ip: [u32; N],
    /// Network order.
    pub port: u16,
}

/// What becomes of a call that names a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<const N: usize> {
    /// Not a Service's address: untouched.
    Pass,
    /// The call goes to this address instead.
    Translated(Address<N>),
    /// Refused with ECONNREFUSED (V-3).
    Reject,
    /// Refused with EHOSTUNREACH (V-4, departure c of the design).
    Drop,
}

/// Records of one socket. One that needs more begins anew: the list is walked when the socket is
/// released, and one pod must not fill the table.
const MAX_PEERS: u32 = 64;

const fn family<const N: usize>() -> u8 {
    if N == V4 { 4 } else { 6 }
}

/// `connect`: chooses a backend and remembers the VIP in the socket's storage.
#[inline(always)]
pub fn connect<const N: usize, T>(tables: &T, protocol: u8, to: &Address<N>) -> Outcome<N>
where
    T: FrontendTables<N> + SocketTables,
{
    let Some(found) = service(tables, protocol, to) else {
        forget(tables);
        return Outcome::Pass;
    };
    match admission::<N, T>(tables, found) {
        Admission::Granted => {}
        Admission::Refused => return refuse(tables, NoBackend::Drop),
        Admission::Unknown => {
            forget(tables);
            return Outcome::Pass;
        }
    }
    let choice = match select::<N, T>(tables, found) {
        Ok(choice) => choice,
        // The kernel leaves a refused socket as it is: a UDP socket may still be connected.
        Err(none) => return refuse(tables, none),
    };
    if !tables.set_connected(&widen(&to.ip), to.port, &choice) {
        tables.count(Counter::SocketUnrecorded);
        if protocol == proto::UDP && has_packet_engine(tables) {
            return Outcome::Pass;
        }
    }
    tables.count(Counter::SocketTranslated);
    Outcome::Translated(Address { ip: choice.ip(), port: choice.port })
}

/// `sendmsg` with a destination on an unconnected UDP socket: one socket stays with one backend of
/// a VIP while that backend serves.
#[inline(always)]
pub fn sendmsg<const N: usize, T>(tables: &T, to: &Address<N>) -> Outcome<N>
where
    T: FrontendTables<N> + SocketTables,
{
    let Some(found) = service(tables, proto::UDP, to) else { return Outcome::Pass };
    let key = key_of(tables, SocketLink::FORWARD, to);
    let mut backend = Address { ip: [0; N], port: 0 };
    if serving_peer(tables, &key, &mut backend) || serving_connected(tables, to, &mut backend) {
        return Outcome::Translated(backend);
    }
    match admission::<N, T>(tables, found) {
        Admission::Granted => {}
        Admission::Refused => return refuse(tables, NoBackend::Drop),
        Admission::Unknown => return Outcome::Pass,
    }
    let choice = match select::<N, T>(tables, found) {
        Ok(choice) => choice,
        Err(none) => return refuse(tables, none),
    };
    backend = Address { ip: choice.ip(), port: choice.port };
    let mut peer = SocketPeer { addr: widen(&to.ip), port: to.port, ..NO_PEER };
    make_room(tables);
    // The reverse record first: an answer must never arrive without it.
    let reverse_key = key_of(tables, SocketLink::REVERSE, &backend);
    let mut remembered = remember(tables, &reverse_key, &mut peer);
    if remembered {
        peer.addr = choice.addr;
        peer.port = choice.port;
        peer.backend = choice.id;
        peer.generation = choice.generation;
        remembered = remember(tables, &key, &mut peer);
    }
    if !remembered {
        tables.count(Counter::SocketUnrecorded);
        if has_packet_engine(tables) {
            return Outcome::Pass;
        }
    }
    tables.count(Counter::SocketTranslated);
    Outcome::Translated(backend)
}

/// Whether the packet engine serves what this socket sends to a VIP: not what leaves the node's own
/// namespace, and nobody knows which that is where the kernel does not tell. Datagrams whose answers
/// could not be told to be the VIP's are left to it.
#[inline(always)]
fn has_packet_engine<T: SocketTables>(tables: &T) -> bool {
    tables.node_netns() != 0 && !in_node(tables)
}

/// Fills in the backend that this socket's datagrams to the VIP of `key` go to, if it serves.
#[inline(never)]
fn serving_peer<const N: usize, T: SocketTables>(
    tables: &T,
    key: &SocketKey,
    backend: &mut Address<N>,
) -> bool {
    let Some(peer) = tables.peer(key) else { return false };
    *backend = Address { ip: narrow(&peer.addr), port: peer.port };
    still_serves(tables, peer.backend, peer.generation)
}

/// The same for a socket that is connected to this VIP and names it all the same: it hears nobody but
/// the backend that it is connected to.
#[inline(never)]
fn serving_connected<const N: usize, T: SocketTables>(
    tables: &T,
    to: &Address<N>,
    backend: &mut Address<N>,
) -> bool {
    let Some(record) = tables.record() else { return false };
    if record.vip_port != to.port || narrow::<N>(&record.vip) != to.ip || !tables.is_connected() {
        return false;
    }
    *backend = Address { ip: narrow(&record.peer), port: record.peer_port };
    still_serves(tables, record.backend, record.generation)
}

/// The address that `recvmsg` reports: the VIP, if the sender is a backend that we put there.
#[inline(always)]
pub fn recvmsg<const N: usize, T: SocketTables>(
    tables: &T,
    from: &Address<N>,
) -> Option<Address<N>> {
    let record = tables.record()?;
    // No hook hears of `connect` to AF_UNSPEC, which ends a connection; its record is still there.
    if let Some(vip) = connected(&record, from)
        && tables.is_connected()
    {
        return Some(vip);
    }
    if record.head.kind == 0 {
        return None;
    }
    let peer = tables.peer(&key_of(tables, SocketLink::REVERSE, from))?;
    Some(Address { ip: narrow(&peer.addr), port: peer.port })
}

/// The address that `getpeername` reports.
#[inline(always)]
pub fn getpeername<const N: usize, T: SocketTables>(
    tables: &T,
    peer: &Address<N>,
) -> Option<Address<N>> {
    connected(&tables.record()?, peer)
}

/// A socket goes: its records go with it. Only UDP sockets have peers.
#[inline(always)]
pub fn release<T: SocketTables>(tables: &T, protocol: u8) {
    if protocol == proto::UDP {
        let Some(record) = tables.record() else { return };
        remove_peers(tables, &record.head);
    }
    tables.remove_record();
}

/// Forgets the peers of a socket that has as many as it may have, before two more come.
#[inline(never)]
fn make_room<T: SocketTables>(tables: &T) -> bool {
    let Some(record) = tables.record() else { return true };
    if record.peers.saturating_add(2) <= MAX_PEERS {
        return true;
    }
    remove_peers(tables, &record.head);
    tables.set_head(&SocketLink::default(), 0)
}

#[inline(always)]
fn remove_peers<T: SocketTables>(tables: &T, head: &SocketLink) {
    let mut key = SocketKey { cookie: tables.cookie(), link: *head, pad: 0 };
    for _ in 0..MAX_PEERS {
        if key.link.kind == 0 {
            return;
        }
        let Some(peer) = tables.peer(&key) else { return };
        tables.remove_peer(&key);
        key.link = peer.next;
    }
}

/// The service that a destination means, if this socket is served at all.
#[inline(always)]
fn service<const N: usize, T>(tables: &T, protocol: u8, to: &Address<N>) -> Option<Found>
where
    T: FrontendTables<N> + SocketTables,
{
    if !tables.may_be_vip(&to.ip) {
        return None;
    }
    let key = FrontendKey::new(to.ip, to.port, protocol);
    let found = destination(tables, &key, || in_node(tables))?;
    if left_alone(tables) {
        tables.count(Counter::SocketBypassed);
        return None;
    }
    Some(found)
}

/// Whether a socket is of the node's own namespace. Its records are then in tables of their own, which
/// no pod can fill: the packet engine serves pods that are not remembered, and nobody serves the node.
#[inline(always)]
pub fn in_node<T: SocketTables>(tables: &T) -> bool {
    tables.node_netns() != 0 && tables.netns_cookie() == tables.node_netns()
}

/// Whether this socket is not to be translated: the packet engine serves it then.
#[inline(never)]
fn left_alone<T: SocketTables>(tables: &T) -> bool {
    if tables.node_only() && !in_node(tables) {
        return true;
    }
    let record = tables.netns(tables.netns_cookie());
    record.is_some_and(|record| record.flags & NetnsFlags::BYPASS != 0) || tables.cgroup_bypassed()
}

#[inline(always)]
fn select<const N: usize, T: SocketTables>(tables: &T, found: Found) -> Result<Choice, NoBackend> {
    choose_for(tables, found.id, scope_on_node(tables, found), || client::<N, T>(tables))
}

/// Whether a client may use a load balancer's address (V-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It is in one of the source ranges, or there are none.
    Granted,
    /// It is in none.
    Refused,
    /// Nobody knows its address yet: its packets will tell the packet engine.
    Unknown,
}

#[inline(always)]
fn admission<const N: usize, T>(tables: &T, found: Found) -> Admission
where
    T: FrontendTables<N> + SocketTables,
{
    if found.flags & FrontendFlags::RANGES == 0 {
        Admission::Granted
    } else {
        among_sources::<N, T>(tables, found.id)
    }
}

#[inline(never)]
fn among_sources<const N: usize, T>(tables: &T, id: ServicePortId) -> Admission
where
    T: FrontendTables<N> + SocketTables,
{
    let address = address_of::<N, T>(tables);
    if address == [0; 4] {
        Admission::Unknown
    } else if tables.source_allowed(id, &narrow(&address)) {
        Admission::Granted
    } else {
        Admission::Refused
    }
}

/// Who asks, for session affinity: the address that its packets will have, as the packet engine
/// would see it; where nobody knows it, its network namespace.
#[inline(always)]
fn client<const N: usize, T: SocketTables>(tables: &T) -> [u32; 4] {
    let address = address_of::<N, T>(tables);
    if address == [0; 4] { client_of_cookie(tables.netns_cookie()) } else { address }
}

/// The address that packets of this socket will have; zeros if nobody knows it.
#[inline(always)]
fn address_of<const N: usize, T: SocketTables>(tables: &T) -> [u32; 4] {
    match tables.netns(tables.netns_cookie()) {
        Some(record) if N == V4 => [record.v4, 0, 0, 0],
        Some(record) => record.v6,
        None => [0; 4],
    }
}

#[inline(always)]
fn refuse<const N: usize, T: FrontendTables<N>>(tables: &T, none: NoBackend) -> Outcome<N> {
    match none {
        NoBackend::Reject => {
            tables.count(Counter::SocketRejected);
            Outcome::Reject
        }
        NoBackend::Drop => {
            tables.count(Counter::SocketDropped);
            Outcome::Drop
        }
    }
}

/// A socket that connects elsewhere is no longer connected to a VIP.
#[inline(always)]
fn forget<T: SocketTables>(tables: &T) {
    if tables.record().is_some_and(|record| record.vip_port != 0) {
        tables.set_disconnected();
    }
}

#[inline(always)]
fn connected<const N: usize>(record: &SocketRecord, peer: &Address<N>) -> Option<Address<N>> {
    let same = record.vip_port != 0
        && record.peer_port == peer.port
        && narrow::<N>(&record.peer) == peer.ip;
    if same { Some(Address { ip: narrow(&record.vip), port: record.vip_port }) } else { None }
}

#[inline(always)]
fn key_of<const N: usize, T: SocketTables>(
    tables: &T,
    kind: u8,
    address: &Address<N>,
) -> SocketKey {
    let addr = widen(&address.ip);
    let link = SocketLink { addr, port: address.port, kind, family: family::<N>() };
    SocketKey { cookie: tables.cookie(), link, pad: 0 }
}

/// Stores a peer. A new one becomes the head of the socket's list, so that `release` finds it.
#[inline(never)]
fn remember<T: SocketTables>(tables: &T, key: &SocketKey, peer: &mut SocketPeer) -> bool {
    if let Some(old) = tables.peer(key) {
        peer.next = old.next;
        return tables.set_peer(key, peer);
    }
    let (head, peers) = match tables.record() {
        Some(record) => (record.head, record.peers),
        None => (SocketLink::default(), 0),
    };
    peer.next = head;
    if !tables.set_peer(key, peer) {
        return false;
    }
    let linked = tables.set_head(&key.link, peers.saturating_add(1));
    if !linked {
        // Nothing would ever remove it.
        tables.remove_peer(key);
    }
    linked
}

const NO_PEER: SocketPeer = SocketPeer {
    addr: [0; 4],
    next: SocketLink { addr: [0; 4], port: 0, kind: 0, family: 0 },
    backend: 0,
    generation: 0,
    port: 0,
    pad: 0,
};

/// The IPv4 address inside an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
#[inline(always)]
pub const fn unmapped(ip: &[u32; V6]) -> Option<[u32; V4]> {
    let [a, b, c, d] = *ip;
    if a == 0 && b == 0 && c == 0xffff_u32.to_be() { Some([d]) } else { None }
}

/// The IPv4-mapped form of an IPv4 address.
#[inline(always)]
pub const fn mapped(ip: [u32; V4]) -> [u32; V6] {
    let [d] = ip;
    [0, 0, 0xffff_u32.to_be(), d]
}
