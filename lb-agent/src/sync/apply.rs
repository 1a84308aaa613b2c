//! How are operations applied, and which are to be tried again?

use std::net::IpAddr;

use lb_common::abi::MetaWord;

use super::{Sync, unix_ms};
use crate::datapath::{Datapath, Error};
use crate::diff::{self, Op};
use crate::model::Family;
use crate::plan::{Batch, FrontKey, SourceRange};

/// An element of a hash or trie, frontends last: what failed is tried again in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    SourceRange(SourceRange),
    Address(IpAddr),
    Frontend(FrontKey),
}

impl Element {
    pub(super) fn family(&self) -> Family {
        match self {
            Self::SourceRange(range) => range.range.family(),
            Self::Address(addr) => Family::of(*addr),
            Self::Frontend(key) => key.family(),
        }
    }
}

/// What an operation writes, if that can fail.
fn element(op: &Op) -> Option<Element> {
    match op {
        Op::FrontendPut(key, _) | Op::FrontendDelete(key) => Some(Element::Frontend(*key)),
        Op::AddressPut(addr, _) | Op::AddressDelete(addr) => Some(Element::Address(*addr)),
        Op::SourceRangePut(range) | Op::SourceRangeDelete(range) => {
            Some(Element::SourceRange(*range))
        }
        _ => None,
    }
}

impl<D: Datapath> Sync<D> {
    /// Applies a batch; returns how many bytes it stored in shared memory.
    pub(super) fn apply(&mut self, batch: Batch) -> usize {
        let mut ops = diff::operations(batch);
        self.counts.commits += 1;
        ops.extend([
            Op::Meta(MetaWord::Commits, self.counts.commits),
            Op::Meta(MetaWord::LastCommitMs, unix_ms()),
            Op::Meta(MetaWord::Synced, 1),
        ]);
        self.run_ops(&ops);
        if let Some(namespaces) = &self.namespaces {
            namespaces.committed(&ops);
        }
        ops.iter().map(Op::bytes_stored).sum()
    }

    /// Applies operations, and tells of failures.
    pub(super) fn run_ops(&mut self, ops: &[Op]) {
        log_failures(&self.try_ops(ops));
    }

    /// Applies operations, and keeps those on elements that failed until they succeed
    /// or newer ones take their place.
    pub(super) fn try_ops(&mut self, ops: &[Op]) -> Vec<(usize, Error)> {
        if !self.failed.is_empty() {
            for element in ops.iter().filter_map(element) {
                self.failed.remove(&element);
            }
        }
        let failures = self.datapath.apply(ops);
        self.counts.failed_operations += failures.len() as u64;
        for (index, _) in &failures {
            if let Some(op) = ops.get(*index)
                && let Some(element) = element(op)
            {
                self.failed.insert(element, op.clone());
            }
        }
        failures
    }
}

pub(super) fn log_failures(failures: &[(usize, Error)]) {
    if let Some((_, error)) = failures.first() {
        tracing::error!(%error, failed = failures.len(), "will be tried again, every second");
    }
}
