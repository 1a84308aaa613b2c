//! What an explanation reads: the pinned maps, or tables that a test fills.

use lb_agent::datapath::inspect::Inspector;
use lb_agent::model::Family;
use lb_agent::plan::{mask, name, words};
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, FactsWord, Flow, FlowKey,
    FrontendKey, FrontendWord, Ip, ServiceCidr, ServicePortId, SetWord, V4,
};
use lb_common::select::narrow;
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
    fn filter(&self, ip: &Ip<N>) -> u32;
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord>;
    /// A range of Services' addresses; a zero mask ends the list.
    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>>;
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

    fn filter(&self, ip: &Ip<N>) -> u32 {
        self.filter(ip)
    }

    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        self.address(ip)
    }

    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let family = if N == V4 { Family::V4 } else { Family::V6 };
        let ranges = self.maps().service_cidrs(family);
        let range = ranges.get(usize::try_from(index).ok()?);
        Some(range.map_or(ServiceCidr { addr: [0; N], mask: [0; N] }, |(addr, prefix)| {
            ServiceCidr { addr: narrow(&words(*addr)), mask: narrow(&words(mask(addr, *prefix))) }
        }))
    }
}

/// A clock of the kernel; only this file tells jiffies.
fn timer(name: &str) -> Option<u64> {
    let timers = std::fs::read_to_string("/proc/timer_list").ok()?;
    let value = timers.lines().find_map(|line| line.trim().strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}
