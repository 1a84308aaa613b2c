//! Under which address and port of this node is a flow sent on?
//!
//! The port follows from the client's own, so that the connections of one client to one backend never
//! compete with each other; where those of two clients do, others are tried.

use crate::abi::{Counter, Flow, FlowKey, Live, Mix, SNAT_ADDRESSES, proto};
use crate::flow::{expired, flip};
use crate::tables::{FlowRef, FlowTable, Insert, RouteTables};
use crate::verdict::Verdict;

/// Ports tried under each address.
const TRIES: u32 = 16;
/// From one port to the next that is tried: a prime, so that all are reached, and far enough to leave
/// the ports of one client behind.
const STRIDE: u32 = 7_919;

/// Who has a port.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// Nobody.
    Free,
    /// Nobody any more, or this very client: its record is replaced.
    Left,
    /// Another flow.
    Taken,
}

/// Makes both records of a flow that leaves by the interface of the route that was found last.
#[inline(always)]
pub(crate) fn create<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
    table: FlowTable,
) -> Option<Verdict> {
    let port = find(tables, key, flow, table);
    if port == Port::Taken {
        return Some(Verdict::NoPort);
    }
    match insert_reply(tables, key, flow, table, port == Port::Left) {
        Insert::Done => {}
        // Another CPU was faster; the client asks again.
        Insert::Exists => return Some(Verdict::NoPort),
        Insert::Full => return Some(full(tables)),
    }
    if tables.insert_flow(table, key, flow, true) != Insert::Done {
        return Some(full(tables));
    }
    tables.count(Counter::FlowForwarded);
    None
}

#[inline(always)]
fn full<const N: usize, T: RouteTables<N>>(tables: &T) -> Verdict {
    tables.count(Counter::FlowTableFull);
    Verdict::TableFull
}

/// Fills in source address and port.
#[inline(never)]
fn find<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &mut Flow<N>,
    table: FlowTable,
) -> Port {
    let egress = tables.egress();
    // SCTP's checksum covers its ports.
    let kept = key.proto == proto::SCTP;
    let (first, count) =
        if kept { (host(key.sport), 1) } else { (tables.snat_first(), tables.snat_count()) };
    let mix = Mix::new().word(tables.seed() as u64).ip(&key.src).ip(&flow.dst);
    let begin = (mix.tag() >> 1).wrapping_add(host(key.sport));
    let mut reply = FlowKey {
        src: flow.dst,
        dst: [0; N],
        sport: flow.dport,
        dport: 0,
        proto: key.proto,
        kind: key.kind,
        pad: 0,
    };
    for index in 0..SNAT_ADDRESSES as u32 {
        reply.dst = tables.snat_address(egress, index);
        if reply.dst == [0; N] {
            return Port::Taken;
        }
        let mut offset = begin;
        for _ in 0..TRIES {
            let port = first.wrapping_add(offset.checked_rem(count).unwrap_or(0));
            reply.dport = network(port);
            let has = who_has(tables, &reply, key, table);
            if has != Port::Taken {
                flow.src = reply.dst;
                flow.sport = reply.dport;
                return has;
            }
            offset = offset.wrapping_add(STRIDE);
        }
    }
    Port::Taken
}

/// Who has the reply tuple `reply`, for the flow of `key`.
#[inline(never)]
fn who_has<const N: usize, T: RouteTables<N>>(
    tables: &T,
    reply: &FlowKey<N>,
    key: &FlowKey<N>,
    table: FlowTable,
) -> Port {
    let now = tables.now();
    let mut left = false;
    for at in [FlowTable::Main, FlowTable::HalfOpen] {
        if at == FlowTable::HalfOpen && table != at {
            break;
        }
        let Some(record) = tables.flow(at, reply) else { continue };
        let old = record.read();
        let own = old.dst == key.src
            && old.src == key.dst
            && old.dport == key.sport
            && old.sport == key.dport;
        let live = Live(old.live);
        // Nobody waits for an answer to a SYN for longer.
        let state = if at == FlowTable::HalfOpen { Live::FIN } else { live.state() };
        if !own && !expired(now, key.proto, Live::new(live.seen(), state)) {
            return Port::Taken;
        }
        left |= at == table;
    }
    if left { Port::Left } else { Port::Free }
}

/// Inserts the reply record; one that is there goes only if it may. Leaves `flow` with its tag.
#[inline(never)]
fn insert_reply<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
    table: FlowTable,
    replace: bool,
) -> Insert {
    flip(key, flow);
    if table == FlowTable::HalfOpen {
        // Replies are looked up in the main table first: what an old flow left hides ours.
        tables.remove_flow(FlowTable::Main, key);
    }
    let inserted = tables.insert_flow(table, key, flow, replace);
    flip(key, flow);
    inserted
}

#[inline(always)]
const fn host(port: u16) -> u32 {
    u16::from_be(port) as u32
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a port, as the settings are checked")]
const fn network(port: u32) -> u16 {
    (port as u16).to_be()
}
