//! Under which source port does a backend see a flow, and which address of this node, if it is sent on?
//!
//! The port follows from the client's own, so that the connections of one client to one backend never
//! compete with each other; where those of two clients do, others are tried.

use crate::abi::{Flow, FlowKey, Mix, proto};
use crate::flow::{expired, table_of, turn, unanswered};
use crate::tables::{FlowRef, FlowTable, NodeTables, RouteTables};

/// Ports tried: some of each address in turn, until there is none left to be tried.
const TRIES: u32 = 16;
/// Ports of one address before the next one has its turn.
const TRIES_IN_A_ROW: u32 = 4;
/// From one port to the next that is tried: a prime, so that all are reached, and far enough to leave
/// the ports of one client behind.
const STRIDE: u32 = 7_919;

/// Who has a port.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Nobody.
    Free,
    /// Nobody any more, or this very client: its record is replaced.
    Left,
    /// Another flow.
    Taken,
}

/// Fills in the source port, and the address of a flow that is sent on; others keep both if they can.
/// Protocol and table are read anew wherever they matter: the verifier follows what comes once for each
/// value that it knows.
#[inline(never)]
pub(crate) fn find<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &mut Flow<N>,
) -> Port {
    let begin = place(tables, key, flow);
    // What is tried is the key of the replies.
    turn(key, flow);
    let port = seek(tables, key, flow, begin);
    turn(key, flow);
    port
}

/// Looks for an address and a port of it that nobody has; fills them in.
#[inline(never)]
fn seek<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &Flow<N>,
    begin: u32,
) -> Port {
    for tried in 0..TRIES {
        if !propose(tables, key, flow, begin, tried) {
            break;
        }
        let has = who_has(tables, key, flow);
        if has != Port::Taken {
            return has;
        }
    }
    Port::Taken
}

/// Fills in the address and port to be tried next; `false` if there is none. A function of its own: the
/// verifier forgets by which way it came here.
#[inline(never)]
fn propose<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    flow: &Flow<N>,
    begin: u32,
    tried: u32,
) -> bool {
    let forwarded = flow.flags & Flow::<N>::FORWARDED != 0;
    if forwarded
        && tried.is_multiple_of(TRIES_IN_A_ROW)
        && !set_address(tables, key, tried / TRIES_IN_A_ROW)
    {
        return false;
    }
    // SCTP's checksum covers its ports: it keeps that of the client.
    if key.proto != proto::SCTP && (forwarded || tried != 0) {
        // Each client has a stride of its own, as where ports are taken in a row, all would go on in
        // step; one, or its own ports would compete. It is odd: these mostly are all even or all odd.
        let stride = STRIDE.wrapping_add((begin >> 16 & 0x3ff) << 1);
        key.dport = port(tables, begin.wrapping_add(stride.wrapping_mul(tried)));
    }
    true
}

/// Where among the ports a client's own port lies, in the low half: those of one client next to each
/// other. The high half is the same for all of them.
#[inline(never)]
fn place<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>, flow: &Flow<N>) -> u32 {
    let mix = Mix::new().word(tables.seed() as u64).ip(&key.src).ip(&flow.dst);
    let client = mix.tag();
    (client & 0xffff_0000) | (client.wrapping_add(host(key.sport)) & 0xffff)
}

/// An address of this node for replies to come to; `false` if the interface has none.
#[inline(never)]
fn set_address<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &mut FlowKey<N>,
    turn: u32,
) -> bool {
    key.dst = tables.snat_address(tables.egress(), turn);
    key.dst != [0; N]
}

/// Who has the key of the replies of a flow, whose reply record is `flow`.
#[inline(never)]
fn who_has<const N: usize, T: RouteTables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> Port {
    let table = table_of(key);
    let mut left = false;
    // In this order: a flow may move from the half-open table to the main one meanwhile.
    if table == FlowTable::HalfOpen
        && let Some(record) = tables.flow(FlowTable::HalfOpen, key)
    {
        // A flood of SYNs does not take all ports of a backend for longer than that.
        if !record.translates_as(flow) && !unanswered(tables.now(), record.live()) {
            return Port::Taken;
        }
        left = true;
    }
    if let Some(record) = tables.flow(FlowTable::Main, key) {
        // Only what is sent on is kept alive in both directions by either.
        let kept = key.proto == proto::UDP && flow.flags & Flow::<N>::FORWARDED == 0;
        if !record.translates_as(flow) && (kept || !expired(tables.now(), key.proto, record.live()))
        {
            return Port::Taken;
        }
        left |= table == FlowTable::Main;
    }
    if left { Port::Left } else { Port::Free }
}

/// One of the ports for SNAT, network order.
#[inline(always)]
pub(crate) fn port<T: NodeTables>(tables: &T, number: u32) -> u16 {
    let offset = number.checked_rem(tables.snat_count()).unwrap_or(0);
    network(tables.snat_first().wrapping_add(offset))
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
