//! Records of flows: which are found, and which would be made or removed?

use lb_common::abi::{Flow, FlowKey, FragmentKey, FragmentRecord, Ip, Live};
use lb_common::tables::{FlowRef, FlowTable, FlowTables, Insert};

use super::{Recorder, at};
use crate::cli::explain::reader::FamilyReader;

/// A copy of a record: what would be written to the record itself is dropped.
pub(in crate::cli::explain) struct Copied<const N: usize>(Flow<N>);

impl<const N: usize> FlowRef<N> for Copied<N> {
    fn read(&self) -> Flow<N> {
        self.0
    }

    fn tag(&self) -> u32 {
        self.0.tag
    }

    fn live(&self) -> Live {
        Live(self.0.live)
    }

    fn set_live(&self, _: Live) {}
}

impl<const N: usize, R: FamilyReader<N>> FlowTables<N> for Recorder<'_, R> {
    type Ref = Copied<N>;

    fn has_flows(&self) -> bool {
        true
    }

    fn has_flows_to(&self, _: &Ip<N>) -> bool {
        true
    }

    fn note_flows(&self, _: &Ip<N>, _: bool) {}

    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Copied<N>> {
        if !self.knows_client {
            return None;
        }
        let found = self.reader.flow(table, key);
        let (from, to) = (at(&key.src, key.sport), at(&key.dst, key.dport));
        let which = match table {
            FlowTable::Main => "flow table",
            FlowTable::HalfOpen => "half-open flows",
        };
        let text = match &found {
            None => "no record".to_owned(),
            Some(flow) if flow.is_for(key) => {
                self.known_flow.set(true);
                let ended = Live(flow.live).state() & !Live::ANSWERED != 0;
                let ends = if ended { ", one side has ended it" } else { "" };
                format!(
                    "becomes {} to {} (backend {}, generation {}){ends}",
                    at(&flow.src, flow.sport),
                    at(&flow.dst, flow.dport),
                    flow.backend,
                    flow.generation
                )
            }
            Some(_) => "record of another flow, not used".to_owned(),
        };
        self.note("flow", format!("{which}: {from} to {to}: {text}"));
        found.map(Copied)
    }

    fn insert_flow(&self, table: FlowTable, key: &FlowKey<N>, flow: &Flow<N>, _: bool) -> Insert {
        let which = match table {
            FlowTable::Main => "flow table",
            FlowTable::HalfOpen => "half-open flows",
        };
        if self.knows_client {
            self.note(
                "insert",
                format!(
                    "would record in the {which}: {} to {} becomes {} to {}",
                    at(&key.src, key.sport),
                    at(&key.dst, key.dport),
                    at(&flow.src, flow.sport),
                    at(&flow.dst, flow.dport)
                ),
            );
        } else if flow.flags & Flow::<N>::REPLY == 0 {
            self.note("insert", format!("would record both directions in the {which}"));
        }
        Insert::Done
    }

    /// No packet that is explained is a fragment.
    fn fragment(&self, _: &FragmentKey<N>) -> Option<FragmentRecord> {
        None
    }

    fn set_fragment(&self, _: &FragmentKey<N>, _: &FragmentRecord) -> bool {
        true
    }

    fn remove_flow(&self, _: FlowTable, key: &FlowKey<N>) {
        if !self.knows_client {
            return;
        }
        let (from, to) = (at(&key.src, key.sport), at(&key.dst, key.dport));
        self.note("remove", format!("would remove the record of {from} to {to}"));
    }
}
