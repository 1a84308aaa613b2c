//! A packet of a flow that is sent on, or of an answer to the node, where its record alone does not tell.

use crate::abi::{Flow, Live};
use crate::decide::Stage;
use crate::established::stands;
use crate::flow::{Tended, ends, idle, tend, touch};
use crate::forward;
use crate::origin::applies;
use crate::packet::Packet;
use crate::parse::{Header, Headers, Ipv};
use crate::tables::{FlowRef, FlowTable, RouteTables};
use crate::verdict::Verdict;

/// A packet that only passes this node: of a flow that is sent on, or an answer to what the node itself
/// has asked.
#[inline(never)]
#[expect(clippy::needless_pass_by_value, reason = "the kernel's is a pointer in a register")]
pub(crate) fn passing<const N: usize, S: Stage, P, T>(
    stage: S,
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<N>,
    record: T::Ref,
) -> Option<Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let mut flow = Flow::empty();
    match pass(tables, headers, &record, &mut flow) {
        Passage::Looked => return None,
        Passage::Foreign => return Some(Verdict::NotService),
        Passage::Again => {}
        Passage::First => {
            let end = ends(headers);
            let tended = tend(tables, &mut headers.key, &mut flow, end);
            // Its source port is another flow's by now (production case 38). A late reply harms nobody.
            if tended == Tended::Taken && flow.flags & Flow::<N>::REPLY == 0 {
                tables.remove_flow(FlowTable::Main, &headers.key);
                let tcp = headers.is_tcp();
                return Some(if tcp { Verdict::NoFlow } else { Verdict::NoPort });
            }
        }
    }
    Some(forward::send(stage, packet, tables, headers, &flow, Some(&record)))
}

/// How a packet that only passes is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    /// Its record does not tell: it takes more looking.
    Looked,
    /// It is an answer to what the node has asked.
    Foreign,
    /// It is sent on; the first one of its direction in some ticks, or one that changes its flow's state.
    First,
    /// It is sent on.
    Again,
}

/// Fills in the record of a packet that only passes, and notes that it did.
#[inline(never)]
fn pass<const N: usize, T: RouteTables<N>>(
    tables: &T,
    headers: &Headers<N>,
    record: &T::Ref,
    flow: &mut Flow<N>,
) -> Passage {
    *flow = record.read();
    if !flow.is_for(&headers.key) || !applies(tables, flow) {
        return Passage::Looked;
    }
    let now = tables.now();
    if flow.flags & Flow::<N>::FOREIGN != 0 {
        if idle(now, &headers.key, flow) {
            return Passage::Looked;
        }
        touch(record, flow, headers, now);
        return Passage::Foreign;
    }
    if flow.flags & Flow::<N>::REPLY == 0 && !stands(tables, headers, flow, now) {
        return Passage::Looked;
    }
    let old = Live(flow.live);
    let changes = touch(record, flow, headers, now);
    // Time alone matters to this direction's record only, most of the time.
    let small = old.is_recent(now, flow.tag) && record.live().state() == old.state();
    if changes && !small { Passage::First } else { Passage::Again }
}
