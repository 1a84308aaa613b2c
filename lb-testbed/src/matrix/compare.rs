//! Where does Millrace do something else than kube-proxy, in the same namespaces and for the same
//! connections? Each difference has a row in `docs/contract.md`, or is a bug.

use std::fmt;

use super::{
    Transport,
    cell::{Backends, Proxy, Row, Who},
    seen::Seen,
    table::{Cell, Table},
};
use crate::oracle::{Expectation, Source, Verdict};

/// Why two cells differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Departure a: who is off the node is seen by a backend on it.
    KeptFromOff,
    /// Departure b: who is on the node is seen by every backend.
    KeptOnNode,
    /// Departure c: what is dropped fails at a socket at once.
    Unreachable,
    /// A datagram that is refused on its way out fails with ECONNREFUSED, where netfilter's refusal
    /// makes it EPERM.
    Refused,
    /// TCP is refused by a reset, where netfilter sends ICMP, which a client may not heed at once.
    Reset,
    /// Nobody knows.
    Unknown,
}

/// One connection of which two proxies make different things.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    /// Why.
    pub why: Why,
    /// What Millrace makes of it.
    pub ours: &'a Cell,
    /// What kube-proxy makes of it.
    pub theirs: &'a Cell,
}

/// All differences between cells of a table.
pub fn differences(table: &Table) -> Vec<Difference<'_>> {
    let (theirs, ours): (Vec<&Cell>, Vec<&Cell>) =
        table.cells.iter().partition(|cell| cell.proxy == Proxy::KubeProxy);
    let mut differences = Vec::new();
    for cell in ours {
        let same = |other: &&&Cell| {
            let key = |cell: &Cell| {
                let Row { who, transport, family, .. } = cell.row;
                (cell.topology, who, transport, family, cell.column)
            };
            key(other) == key(cell)
        };
        let Some(other) = theirs.iter().find(same) else { continue };
        // Silence is the same, counted or not.
        let silent = |seen: &Seen| matches!(seen, Seen::Dropped | Seen::Silent);
        let both_silent = silent(&cell.seen) && silent(&other.seen);
        if cell.seen != other.seen && !both_silent {
            let why = Why::of(cell, other);
            differences.push(Difference { why, ours: cell, theirs: other });
        }
    }
    differences
}

/// Whether kube-proxy does what the contract says, as far as a connection shows that.
pub fn is_of_contract(row: Row, backends: Backends, expected: &Expectation, seen: &Seen) -> bool {
    match (&expected.verdict, seen) {
        // Netfilter masquerades what leaves by an interface: what is for the node itself stays as it
        // is, and what comes from the node has its address anyway.
        (Verdict::Translate(endpoints), Seen::To(at, Source::Kept)) => {
            let on_node =
                !row.who.is_elsewhere() && row.who != Who::Pod || backends == Backends::HostHere;
            endpoints.get(at).is_some_and(|source| on_node || *source == Source::Kept)
        }
        // Refusing and dropping are the same to who sends a datagram from the node.
        (Verdict::Reject | Verdict::Drop, Seen::NotPermitted) => {
            row.transport == Transport::Udp && matches!(row.who, Who::Process | Who::HostPod)
        }
        // Nobody tells the one from the other.
        (Verdict::Drop, Seen::Silent) | (Verdict::Reject, Seen::RefusedLate) => true,
        _ => seen.agrees_with(expected),
    }
}

impl Why {
    fn of(ours: &Cell, theirs: &Cell) -> Self {
        match (&ours.seen, &theirs.seen) {
            (Seen::To(at, Source::Kept), Seen::To(to, Source::Rewritten)) if at == to => {
                if ours.row.who.is_elsewhere() { Self::KeptFromOff } else { Self::KeptOnNode }
            }
            (Seen::Unreachable, Seen::Silent | Seen::NotPermitted) => Self::Unreachable,
            (Seen::Refused, Seen::NotPermitted) => Self::Refused,
            (Seen::Refused, Seen::RefusedLate) => Self::Reset,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeptFromOff => "a backend on the node sees who is off it (departure a)",
            Self::KeptOnNode => "a backend sees who is on the node (departure b)",
            Self::Unreachable => "what is dropped fails at a socket (departure c)",
            Self::Refused => "a refused datagram fails with ECONNREFUSED, not EPERM",
            Self::Reset => {
                "TCP is refused by a reset, not by ICMP, which is heeded later if at all"
            }
            Self::Unknown => "nobody knows why",
        })
    }
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs, .. } = self;
        let Cell { topology, proxy, row, column, .. } = ours;
        write!(
            f,
            "{proxy}, {topology}, {row}, {column}: {:?}, kube-proxy {:?}",
            ours.seen, theirs.seen
        )
    }
}
