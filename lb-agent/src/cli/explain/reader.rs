//! What an explanation reads: the pinned maps, or tables that a test fills.

use std::net::IpAddr;

use lb_agent::datapath::inspect::Inspector;
use lb_agent::datapath::routes::{self, Way};
use lb_agent::model::Family;
use lb_agent::plan::{Cidr, mask, name, words};
use lb_agent::policy::local::LocalDetector;
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, FactsWord, Flow, FlowKey,
    FrontendKey, FrontendWord, Interface, Ip, LOCAL_CIDRS, MetaWord, ServiceCidr, ServicePortId,
    SetWord, V4,
};
use lb_common::select::narrow;
use lb_common::tables::{FlowTable, LocalMode, RouteStatus};

/// The bit of [`MetaWord::LocalDetector`] for `--masquerade-all`.
const MASQUERADE_ALL: u64 = 1 << 8;

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
    /// What programs are told of an interface.
    fn interface(&self, ifindex: u32) -> Option<Interface>;
    fn interface_name(&self, ifindex: u32) -> Option<String>;
    /// Element of `NODE_PORTS`.
    fn node_ports(&self, index: u32) -> u64;
    fn settings(&self) -> NodeSettings;
    /// Where a packet would go, and by which interface: among the routes that leave by `over` if `out`,
    /// else as if it arrived by that.
    fn route(&self, from: IpAddr, to: IpAddr, over: u32, out: bool) -> (RouteStatus, u32);
}

/// What is set for the node, as programs were loaded with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeSettings {
    pub(super) local_mode: LocalMode,
    pub(super) masquerade_all: bool,
    /// First source port of what is sent on, host order.
    pub(super) snat_first: u32,
    pub(super) snat_count: u32,
}

/// What is read of one family.
pub(super) trait FamilyReader<const N: usize>: Reader {
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord>;
    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Flow<N>>;
    fn filter(&self, ip: &Ip<N>) -> u32;
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord>;
    /// A range of Services' addresses; a zero mask ends the list.
    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>>;
    /// A range of addresses of pods of this node, likewise.
    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>>;
    /// Whether a source is in a range of a service port.
    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool;
    /// An address for packets that leave by an interface, zeros if it has no such many.
    fn snat_address(&self, ifindex: u32, index: u32) -> Ip<N>;
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

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        let all = self.outside().interfaces().ok()?;
        all.into_iter().find(|(index, _)| *index == ifindex).map(|(_, interface)| interface)
    }

    fn interface_name(&self, ifindex: u32) -> Option<String> {
        routes::interface_name(ifindex)
    }

    fn node_ports(&self, index: u32) -> u64 {
        self.maps().node_port_word(index)
    }

    fn settings(&self) -> NodeSettings {
        let meta = self.maps().meta();
        let detector = meta[MetaWord::LocalDetector as usize];
        let ports = meta[MetaWord::SnatPorts as usize];
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        NodeSettings {
            local_mode: match LocalDetector::of_word(detector) {
                Some("cluster-cidr" | "node-cidr") => LocalMode::Range,
                Some("none") => LocalMode::None,
                _ => LocalMode::Interface,
            },
            masquerade_all: detector & MASQUERADE_ALL != 0,
            snat_first: half(ports),
            snat_count: half(ports >> 32),
        }
    }

    fn route(&self, from: IpAddr, to: IpAddr, over: u32, out: bool) -> (RouteStatus, u32) {
        // Where the kernel has no answer for a packet that arrives, one of the node itself may have.
        let ways = [(over, out), (0, false)].map(|(over, out)| routes::find(from, to, over, out));
        for way in ways {
            match way {
                Ok(Way::Out(index)) => return (RouteStatus::Found, index),
                Ok(Way::Local) => return (RouteStatus::Local, 0),
                Ok(Way::None) | Err(_) => {}
            }
        }
        (RouteStatus::NoRoute, 0)
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
        Some(element(range))
    }

    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let family = if N == V4 { Family::V4 } else { Family::V6 };
        let ranges = self.outside().local_cidrs(family);
        (index < LOCAL_CIDRS).then(|| element(ranges.get(index as usize)))
    }

    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        self.is_in_source_range(id, source)
    }

    fn snat_address(&self, ifindex: u32, index: u32) -> Ip<N> {
        let Some(Interface { v4, v6, .. }) = self.interface(ifindex) else { return [0; N] };
        let index = index as usize;
        if N == V4 {
            [v4.get(index).copied().unwrap_or(0); N]
        } else {
            narrow(&v6.get(index).copied().unwrap_or_default())
        }
    }
}

/// A range as it lies in the map; zeros for none.
fn element<const N: usize>(range: Option<&Cidr>) -> ServiceCidr<N> {
    range.map_or(ServiceCidr { addr: [0; N], mask: [0; N] }, |(addr, prefix)| ServiceCidr {
        addr: narrow(&words(*addr)),
        mask: narrow(&words(mask(addr, *prefix))),
    })
}

/// A clock of the kernel; only this file tells jiffies.
fn timer(name: &str) -> Option<u64> {
    let timers = std::fs::read_to_string("/proc/timer_list").ok()?;
    let value = timers.lines().find_map(|line| line.trim().strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}
