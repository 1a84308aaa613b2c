//! The life of a flow in the packet engine: its two records, when they may be given up, and how
//! new ones come about.
//!
//! A record is never needed for anything but its own direction. It is fixed when it is inserted,
//! except for one word that says when it was last seen and how it ended.

use crate::abi::{Counter, FILTER_VIP, Flow, FlowKey, FlowKind, Live, proto};
use crate::origin::applies;
use crate::parse::{Headers, tcp};
use crate::select::still_serves;
use crate::snat::{self, Port};
use crate::tables::{FlowRef, FlowTable, FlowTables, Insert, RouteTables};
use crate::verdict::Verdict;

/// After this many ticks without a packet a record may be replaced by another flow's: TCP 24 h as
/// netfilter's default, closing TCP 2 min, others 3 min (contract 6.3), at the shortest tick that
/// kernels have (HZ=1000); at HZ=250 they are four times, at HZ=100 ten times as long.
const TCP_ESTABLISHED: u32 = 337_500;
const TCP_CLOSING: u32 = 469;
const OTHERS: u32 = 704;
/// Ticks after which the source port of a connection that nobody answers may be given to another one:
/// 10 s, as above. A backend that is there answers within one.
const HALF_OPEN: u32 = 39;

/// Whether both directions of a flow are met where they arrive: from the pod that is client and
/// backend, or from client and backend, between which we send.
#[inline(always)]
const fn arrives<const N: usize>(flow: &Flow<N>) -> bool {
    flow.flags & (Flow::<N>::HAIRPIN | Flow::<N>::FORWARDED) != 0
}

/// The hook of the other direction.
#[inline(always)]
const fn other(kind: u8) -> u8 {
    kind ^ FlowKind::INGRESS ^ FlowKind::EGRESS
}

/// The key under which replies to a flow are met.
#[inline(always)]
pub fn reply_key<const N: usize>(key: &FlowKey<N>, flow: &Flow<N>) -> FlowKey<N> {
    FlowKey {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        proto: key.proto,
        kind: if arrives(flow) { key.kind } else { other(key.kind) },
        pad: 0,
    }
}

/// Turns the record of one direction into that of the other; doing it twice changes nothing. In
/// place, because the kernel's stack has no room for both.
#[inline(always)]
pub fn flip<const N: usize>(key: &mut FlowKey<N>, flow: &mut Flow<N>) {
    swap(key, flow);
    flow.tag = flow.tag_for(key);
}

/// The same without the tag.
#[inline(always)]
fn swap<const N: usize>(key: &mut FlowKey<N>, flow: &mut Flow<N>) {
    core::mem::swap(&mut key.src, &mut flow.dst);
    core::mem::swap(&mut key.dst, &mut flow.src);
    core::mem::swap(&mut key.sport, &mut flow.dport);
    core::mem::swap(&mut key.dport, &mut flow.sport);
    if !arrives(flow) {
        key.kind = other(key.kind);
    }
    flow.flags ^= Flow::<N>::REPLY;
}

/// Notes that a packet of this flow passed. Writes only when the word changes: once in a time
/// unit, and when the connection ends; tells whether it did.
#[inline(always)]
pub fn touch<const N: usize, R: FlowRef<N>>(
    record: &R,
    flow: &Flow<N>,
    headers: &Headers<N>,
    now: u32,
) -> bool {
    let live = Live(flow.live);
    let mut state = live.state();
    if headers.is_tcp() {
        if headers.tcp_flags & tcp::FIN != 0 {
            state |= Live::FIN;
        }
        // A reset that the peer ignores (out of window) is followed by more: then it was none.
        if headers.tcp_flags & tcp::RST != 0 {
            state |= Live::RST;
        } else {
            state &= !(Live::RST | Live::CLOSING);
        }
        if headers.accepts() {
            state |= Live::ANSWERED;
        }
    }
    let new = Live::new(now, state);
    let changes = new != live.without_hop();
    if changes {
        record.set_live(new);
    }
    changes
}

/// The [`Live`] bits of what a packet ends.
#[inline(always)]
pub fn ends<const N: usize>(headers: &Headers<N>) -> u32 {
    const _: () = assert!(tcp::FIN as u32 == Live::FIN && tcp::RST as u32 == Live::RST << 1);
    // Without branches, each of which the verifier would follow. Others have neither.
    let flags = headers.tcp_flags as u32;
    (flags & tcp::FIN as u32) | ((flags & tcp::RST as u32) >> 1)
}

/// The record under a key, whole, if it counts at the interface at hand.
#[inline(always)]
pub fn recorded<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
) -> Option<Flow<N>> {
    recorded_anywhere(tables, key).filter(|flow| applies(tables, flow))
}

/// The record under a key, whole, from the table that has it; only TCP has flows in both.
#[inline(always)]
pub fn recorded_anywhere<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
) -> Option<Flow<N>> {
    for table in [FlowTable::Main, FlowTable::HalfOpen] {
        if let Some(record) = tables.flow(table, key) {
            let flow = record.read();
            if flow.is_for(key) {
                return Some(flow);
            }
        }
        if key.proto != proto::TCP {
            return None;
        }
    }
    None
}

/// Whether a SYN on this flow's tuple begins a new connection: the old one was refused or reset by its
/// backend, or both sides ended it, or its reply record was evicted, without which it cannot go on. What
/// the client alone ended may be a forgery: TCP survives it, so an established flow does (RFC 5961), until
/// it was idle for as long as one that closes. The backend tells by itself what a SYN means to it.
#[inline(always)]
pub fn ended<const N: usize, T: FlowTables<N>>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> bool {
    if table == FlowTable::HalfOpen {
        return over(tables, table, key, flow, Live::FIN | Live::RST);
    }
    let Some(record) = tables.flow(table, &reply_key(key, flow)) else { return true };
    let (own, other) = (Live(flow.live), record.live());
    let ended = |live: Live| live.state() & (Live::FIN | Live::RST) != 0;
    let closed = |live: Live| ended(live) && expired(tables.now(), proto::TCP, live);
    other.state() & Live::RST != 0 || (ended(own) && ended(other)) || closed(own) || closed(other)
}

/// Whether the backend has answered the SYN of a half-open flow: until then, nobody knows whether its
/// client exists. Without a reply record there is nothing to learn any more.
#[inline(never)]
pub(crate) fn is_answered<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> bool {
    match tables.flow(FlowTable::HalfOpen, &reply_key(key, flow)) {
        Some(record) => record.live().state() & Live::ANSWERED != 0,
        None => true,
    }
}

/// Whether this direction of a flow ended, or the other one did by one of the bits `other`, or is
/// gone.
#[inline(always)]
fn over<const N: usize, T: FlowTables<N>>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey<N>,
    flow: &Flow<N>,
    other: u32,
) -> bool {
    if Live(flow.live).state() & (Live::FIN | Live::RST) != 0 {
        return true;
    }
    match tables.flow(table, &reply_key(key, flow)) {
        // Another flow may have got the source port meanwhile.
        Some(record) if record.leads_to(&key.src, key.sport) => record.live().state() & other != 0,
        _ => true,
    }
}

/// Whether a record was idle for so long that its direction of the flow is over.
#[inline(always)]
pub(crate) fn expired(now: u32, proto: u8, live: Live) -> bool {
    let limit = match (proto, live.state() & !Live::ANSWERED) {
        (proto::TCP | proto::SCTP, 0) => TCP_ESTABLISHED,
        (proto::TCP, _) => TCP_CLOSING,
        _ => OTHERS,
    };
    silent(now, live, limit)
}

/// Whether a half-open flow is given up: nobody answered for so long that its source port may go to
/// somebody who is.
#[inline(always)]
pub(crate) fn unanswered(now: u32, live: Live) -> bool {
    silent(now, live, HALF_OPEN)
}

#[inline(always)]
fn silent(now: u32, live: Live, limit: u32) -> bool {
    // Another CPU may have read the clock later: what was seen just now is not idle for ages.
    let idle = now.wrapping_sub(live.seen());
    idle.wrapping_sub(limit).wrapping_sub(1) < u32::MAX / 2 - limit
}

/// Whether a backend that accepts cannot mean this reply record's flow: the backend ended it itself,
/// or the client reset it, or nothing else is left of it. A client's FIN alone ends nothing: its
/// connection may wait for its last acknowledgement to arrive.
#[inline(always)]
pub fn answers_another<const N: usize, T: FlowTables<N>>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> bool {
    over(tables, table, key, flow, Live::RST)
}

/// Whether this direction of a UDP flow was idle for as long as netfilter would have kept it. TCP
/// flows end by their own packets.
#[inline(always)]
pub fn idle<const N: usize>(now: u32, key: &FlowKey<N>, flow: &Flow<N>) -> bool {
    key.proto == proto::UDP && expired(now, proto::UDP, Live(flow.live))
}

/// The same of the other direction of the UDP flow under `key`.
#[inline(never)]
pub fn other_idle<const N: usize, T: FlowTables<N>>(tables: &T, key: &FlowKey<N>) -> bool {
    let Some(record) = tables.flow(FlowTable::Main, key) else { return true };
    match tables.flow(FlowTable::Main, &reply_key(key, &record.read())) {
        Some(record) => expired(tables.now(), proto::UDP, record.live()),
        None => true,
    }
}

/// Moves a half-open flow to the main table, where a flood of SYNs cannot evict it. `false`: another flow
/// has its reply key by now, because the half-open table gave up one of its records and not the other.
/// It ends then.
#[inline(always)]
pub fn promote<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
) -> bool {
    // The reply record first: with only it, replies are right and the next packet tries again.
    let replies = insert_reply(tables, key, flow, FlowTable::Main, false);
    if replies == Insert::Exists {
        tables.remove_flow(FlowTable::HalfOpen, key);
        return false;
    }
    if replies == Insert::Done
        && tables.insert_flow(FlowTable::Main, key, flow, true) == Insert::Done
    {
        tables.remove_flow(FlowTable::HalfOpen, key);
        remove_reply(tables, key, flow);
    } else {
        tables.count(Counter::FlowTableFull);
    }
    true
}

#[inline(never)]
fn remove_reply<const N: usize, T: FlowTables<N>>(tables: &T, key: &FlowKey<N>, flow: &Flow<N>) {
    tables.remove_flow(FlowTable::HalfOpen, &reply_key(key, flow));
}

/// Makes both records of a new flow to the backend in `flow`, whose rest is filled in; or tells why
/// not.
#[inline(always)]
pub fn create<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
) -> Option<Verdict> {
    flow.live = Live::new(tables.now(), 0).0;
    flow.sport = key.sport;
    if key.proto == proto::SCTP && flow.dport != key.dport {
        return Some(Verdict::SctpPort);
    }
    if flow.flags & Flow::<N>::FORWARDED == 0 {
        // The pod would refuse its own address as a source; the VIP is one that it answers through us.
        let hairpin = flow.dst == key.src && flow.is_pods();
        flow.src = if hairpin { key.dst } else { key.src };
        flow.flags = if hairpin { Flow::<N>::HAIRPIN } else { 0 };
        // What comes to an address that is the node's alone is looked up at these ports only.
        if hairpin && key.proto != proto::SCTP && tables.filter(&key.dst) & FILTER_VIP == 0 {
            flow.sport = snat::port(tables, u16::from_be(key.sport) as u32);
        }
    }
    flow.flags = tables.forget(flow.flags);
    let port = tables.forget(snat::find(tables, key, flow) as u32);
    if port == Port::Taken as u32 {
        return Some(Verdict::NoPort);
    }
    let table = table_of(key);
    let inserted = match insert_reply(tables, key, flow, table, port == Port::Left as u32) {
        Insert::Done => tables.insert_flow(table, key, flow, true),
        // Another CPU was faster; the client asks again.
        Insert::Exists => return Some(Verdict::NoPort),
        Insert::Full => Insert::Full,
    };
    if inserted != Insert::Done {
        tables.count(Counter::FlowTableFull);
        return Some(Verdict::TableFull);
    }
    tables.count(if flow.flags & Flow::<N>::FORWARDED != 0 {
        Counter::FlowForwarded
    } else if flow.sport == key.sport {
        Counter::FlowCreated
    } else {
        Counter::FlowReported
    });
    None
}

/// Where a new flow's records go.
#[inline(always)]
pub(crate) fn table_of<const N: usize>(key: &FlowKey<N>) -> FlowTable {
    if key.proto == proto::TCP { FlowTable::HalfOpen } else { FlowTable::Main }
}

/// Inserts the reply record; one that is there, in either table, goes only if it may, or is the same.
/// Leaves `flow` with its tag.
#[inline(never)]
fn insert_reply<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
    table: FlowTable,
    replace: bool,
) -> Insert {
    // What the client's packets said so far is not the backend's.
    let live = flow.live;
    turn(key, flow);
    flow.live = Live::new(Live(live).seen(), 0).0;
    if table == FlowTable::HalfOpen && replace {
        // Replies are looked up in the main table first: what an old flow left hides ours.
        tables.remove_flow(FlowTable::Main, key);
    }
    let mut inserted = tables.insert_flow(table, key, flow, replace);
    if inserted == Insert::Exists
        && tables.flow(table, key).is_some_and(|record| record.tag() == flow.tag)
    {
        inserted = Insert::Done;
    }
    flow.live = live;
    turn(key, flow);
    inserted
}

/// What became of the record of the other direction.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tended {
    /// It lives, or need not.
    Kept,
    /// Another flow has its key.
    Taken,
}

/// A packet of a flow was seen in one direction, for the first time in this tick: the other one's record
/// is kept alive by it, and made anew if it was evicted. Otherwise a record would have to be idle in both
/// directions before its source port could be given to another flow. `end` has the [`Live`] bits of what
/// the packet ends.
#[inline(never)]
pub(crate) fn tend<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
    end: u32,
) -> Tended {
    let live = flow.live;
    turn(key, flow);
    let tended = match tables.flow(FlowTable::Main, key) {
        None => restore(tables, key, flow, end),
        Some(record) if record.tag() == flow.tag => {
            let closing = if end & Live::RST != 0 { Live::CLOSING } else { 0 };
            let old = record.live();
            let new = Live::new(tables.now(), old.state() | closing);
            if new != old.without_hop() {
                record.set_live(new);
            }
            Tended::Kept
        }
        Some(_) => Tended::Taken,
    };
    flow.live = live;
    turn(key, flow);
    tended
}

/// Makes the record of the other direction anew, whose key and record are given, but for its word: that
/// is this direction's. What ends or has ended is not brought back: a new flow may have its key, and its
/// record would hide that.
#[inline(never)]
fn restore<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &mut Flow<N>,
    end: u32,
) -> Tended {
    if key.proto == proto::TCP
        && let Some(record) = tables.flow(FlowTable::HalfOpen, key)
    {
        return if record.tag() == flow.tag { Tended::Kept } else { Tended::Taken };
    }
    let dead = key.proto == proto::UDP && !still_serves(tables, flow.backend, flow.generation);
    if end | (Live(flow.live).state() & !Live::ANSWERED) != 0 || dead {
        return Tended::Kept;
    }
    flow.live = Live::new(tables.now(), 0).0;
    // Another CPU may have been faster, with the same.
    let _there = tables.insert_flow(FlowTable::Main, key, flow, false);
    Tended::Kept
}

/// [`flip`] as a function of its own, whose frame ends before others begin.
#[inline(never)]
pub(crate) fn turn<const N: usize>(key: &mut FlowKey<N>, flow: &mut Flow<N>) -> u32 {
    flip(key, flow);
    flow.tag
}
