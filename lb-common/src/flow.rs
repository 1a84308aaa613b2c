//! The life of a flow in the packet engine: its two records, when they may be given up, and how
//! new ones come about.
//!
//! A record is never needed for anything but its own direction. It is fixed when it is inserted,
//! except for one word that says when it was last seen and how it ended.

use crate::abi::{Counter, Flow, FlowKey, FlowKind, Live, proto};
use crate::parse::{Headers, tcp};
use crate::select::Choice;
use crate::tables::{FlowRef, FlowTable, FlowTables, Insert};
use crate::verdict::Verdict;

/// After this long without a packet, in units of 2^30 ns, a record may be replaced by another
/// flow's: TCP 24 h as netfilter's default, closing TCP 2 min, others 3 min (contract 6.3).
const TCP_ESTABLISHED: u32 = 80_467;
const TCP_CLOSING: u32 = 112;
const OTHERS: u32 = 168;

/// Source ports tried when another flow uses the reply tuple.
const PORT_TRIES: u32 = 8;
/// First port that is neither a `NodePort` nor an ephemeral one by default.
const FIRST_PORT: u32 = 61_000;
const PORTS: u32 = 65_536 - FIRST_PORT;

/// The key under which replies to a flow are met.
#[inline(always)]
pub fn reply_key<const N: usize>(key: &FlowKey<N>, flow: &Flow<N>) -> FlowKey<N> {
    // A hairpin flow's replies come from the pod itself, so they are met where it sends.
    let hairpin = flow.flags & Flow::<N>::HAIRPIN != 0;
    FlowKey {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        proto: key.proto,
        kind: if hairpin { FlowKind::INGRESS } else { FlowKind::EGRESS },
        pad: 0,
    }
}

/// The record of the other direction: what a reply becomes.
#[inline(always)]
pub fn reply<const N: usize>(key: &FlowKey<N>, flow: &Flow<N>, reply_key: &FlowKey<N>) -> Flow<N> {
    let mut reply = Flow {
        live: flow.live,
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        flags: Flow::<N>::REPLY | (flow.flags & Flow::<N>::HAIRPIN),
        backend: flow.backend,
        generation: flow.generation,
        tag: 0,
        pad: 0,
    };
    reply.tag = reply.tag_for(reply_key);
    reply
}

/// Notes that a packet of this flow passed. Writes only when the word changes: once in a time
/// unit, and when the connection ends.
#[inline(always)]
pub fn touch<const N: usize, T: FlowTables<N>>(
    tables: &T,
    record: &T::Ref,
    flow: &Flow<N>,
    headers: &Headers<N>,
) {
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
            state &= !Live::RST;
        }
    }
    let new = Live::new(tables.now(), state);
    if new != live {
        record.set_live(new);
    }
}

/// Whether a SYN on this flow's tuple begins a new connection: one side ended the old one.
#[inline(never)]
pub fn ended<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> bool {
    if Live(flow.live).state() != 0 {
        return true;
    }
    match tables.flow(FlowTable::Main, &reply_key(key, flow)) {
        Some(record) => record.live().state() != 0,
        None => true,
    }
}

/// Whether a record was idle for so long that another flow may have its key.
#[inline(always)]
fn expired(now: u32, proto: u8, live: Live) -> bool {
    let limit = match (proto, live.state()) {
        (proto::TCP | proto::SCTP, 0) => TCP_ESTABLISHED,
        (proto::TCP, _) => TCP_CLOSING,
        _ => OTHERS,
    };
    now.wrapping_sub(live.seen()) > limit
}

/// Moves a half-open flow to the main table, where a flood of SYNs cannot evict it.
#[inline(always)]
pub fn promote<const N: usize, T: FlowTables<N>>(tables: &T, key: &FlowKey<N>, flow: &Flow<N>) {
    let reply_key = reply_key(key, flow);
    let reply = reply(key, flow, &reply_key);
    // The reply record first: with only it, replies are right and the next packet tries again.
    if insert(tables, FlowTable::Main, &reply_key, &reply)
        && insert(tables, FlowTable::Main, key, flow)
    {
        tables.remove_flow(FlowTable::HalfOpen, key);
        tables.remove_flow(FlowTable::HalfOpen, &reply_key);
    }
}

#[inline(always)]
fn insert<const N: usize, T: FlowTables<N>>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> bool {
    let done = tables.insert_flow(table, key, flow, true) == Insert::Done;
    if !done {
        tables.count(Counter::FlowTableFull);
    }
    done
}

/// Makes both records of a new flow: fills in `flow`, the forward one, and tells why not.
#[inline(always)]
pub fn create<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    choice: &Choice,
) -> Result<Flow<N>, Verdict> {
    let dst = choice.ip::<N>();
    // The pod would refuse its own address as a source; the VIP is one that it answers through us.
    let hairpin = dst == key.src;
    let mut flow = Flow {
        live: Live::new(tables.now(), 0).0,
        src: if hairpin { key.dst } else { key.src },
        dst,
        sport: key.sport,
        dport: choice.port,
        flags: if hairpin { Flow::<N>::HAIRPIN } else { 0 },
        backend: choice.id,
        generation: choice.generation,
        tag: 0,
        pad: 0,
    };
    if key.proto == proto::SCTP && flow.dport != key.dport {
        return Err(Verdict::SctpPort);
    }
    for _ in 0..PORT_TRIES {
        match reserve(tables, key, &flow) {
            Insert::Done => {
                flow.tag = flow.tag_for(key);
                if !insert(tables, table_of(key), key, &flow) {
                    return Err(Verdict::TableFull);
                }
                tables.count(if flow.sport == key.sport {
                    Counter::FlowCreated
                } else {
                    Counter::FlowReported
                });
                return Ok(flow);
            }
            Insert::Full => {
                tables.count(Counter::FlowTableFull);
                return Err(Verdict::TableFull);
            }
            Insert::Exists if key.proto == proto::SCTP => return Err(Verdict::NoPort),
            Insert::Exists => flow.sport = random_port(tables.random()),
        }
    }
    Err(Verdict::NoPort)
}

/// Where a new flow's records go.
#[inline(always)]
fn table_of<const N: usize>(key: &FlowKey<N>) -> FlowTable {
    if key.proto == proto::TCP { FlowTable::HalfOpen } else { FlowTable::Main }
}

/// Inserts the reply record unless a live flow of another client tuple has it (the same client
/// port to two VIPs that share a backend).
#[inline(never)]
fn reserve<const N: usize, T: FlowTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> Insert {
    let table = table_of(key);
    let reply_key = reply_key(key, flow);
    let reply = reply(key, flow, &reply_key);
    let taken = |table| match tables.flow(table, &reply_key) {
        Some(record) => {
            record.tag() != reply.tag && !expired(tables.now(), key.proto, record.live())
        }
        None => false,
    };
    if taken(FlowTable::Main) || (table == FlowTable::HalfOpen && taken(table)) {
        return Insert::Exists;
    }
    tables.insert_flow(table, &reply_key, &reply, true)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below 65,536 by construction")]
const fn random_port(random: u32) -> u16 {
    let offset = ((random as u64).wrapping_mul(PORTS as u64) >> 32) as u32;
    (FIRST_PORT.wrapping_add(offset) as u16).to_be()
}
