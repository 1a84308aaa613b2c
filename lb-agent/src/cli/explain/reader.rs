//! What an explanation reads: the pinned maps, or tables that a test fills.

use lb_agent::datapath::inspect::Inspector;
use lb_agent::plan::name;
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, FactsWord, Flow, FlowKey,
    FrontendKey, FrontendWord, Ip, ServicePortId, SetWord,
};
use lb_common::tables::FlowTable;

/// What is read, of both families alike. Nothing here can write.
pub(super) trait Reader {
    fn set(&self, index: u32) -> SetWord;
    fn facts(&self, id: ServicePortId) -> FactsWord;
    fn slot(&self, index: u32) -> BackendId;
    fn backend(&self, id: BackendId) -> Option<Backend>;
    fn name(&self, id: ServicePortId) -> String;
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord>;
    /// The programs' coarse clock, in ticks of 256 jiffies.
    fn now(&self) -> u32;
    /// Seconds of the monotonic clock.
    fn seconds(&self) -> u32;
}

/// What is read of one family.
pub(super) trait FamilyReader<const N: usize>: Reader {
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord>;
    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Flow<N>>;
    fn may_be_vip(&self, ip: &Ip<N>) -> bool;
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord>;
}

impl Reader for Inspector {
    fn set(&self, index: u32) -> SetWord {
        self.set(index)
    }

    fn facts(&self, id: ServicePortId) -> FactsWord {
        self.facts(id)
    }

    fn slot(&self, index: u32) -> BackendId {
        self.slot(index)
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backend(id)
    }

    fn name(&self, id: ServicePortId) -> String {
        self.maps().name(id).map(|bytes| name::text(&bytes)).unwrap_or_default()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        self.affinity(key)
    }

    fn now(&self) -> u32 {
        let ticks = timer("jiffies: ").map(|jiffies| (jiffies >> 8) & u64::from(u32::MAX));
        ticks.and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(0)
    }

    fn seconds(&self) -> u32 {
        let seconds = timer("now at ").map(|ns| ns / 1_000_000_000);
        seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0)
    }
}

impl<const N: usize> FamilyReader<N> for Inspector {
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        self.frontend(key)
    }

    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Flow<N>> {
        self.flow(table, key)
    }

    fn may_be_vip(&self, ip: &Ip<N>) -> bool {
        self.may_be_vip(ip)
    }

    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        self.address(ip)
    }
}

/// A clock of the kernel; only this file tells jiffies.
fn timer(name: &str) -> Option<u64> {
    let timers = std::fs::read_to_string("/proc/timer_list").ok()?;
    let value = timers.lines().find_map(|line| line.trim().strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}
