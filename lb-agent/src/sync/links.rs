//! What do programs have to know of interfaces and of pods' addresses?
//!
//! Told before a program is attached that asks for it, and only when it changes: links, masters and
//! addresses come and go, and the Node object may be read late.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{self, InterfaceFlags, MetaWord, SNAT_ADDRESSES, V4};
use lb_common::select::narrow;

use super::Sync;
use super::apply::log_failures;
use crate::datapath::interfaces::Primary;
use crate::datapath::outside::sources;
use crate::datapath::roles::{Reason, Role};
use crate::datapath::{Datapath, Interface};
use crate::diff::Op;
use crate::model::{Family, Node};
use crate::plan::words;
use crate::policy::local::{LocalDetector, Ranges, WrongFamily};
use crate::policy::snat::{SnatAddresses, SnatPorts};

/// What an operator says of traffic from and to other machines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// How pods of this node are told.
    pub detector: LocalDetector,
    /// Every connection to a clusterIP is masqueraded (M-6).
    pub masquerade_all: bool,
    /// Addresses for SNAT, if not those of the interfaces.
    pub snat_addresses: SnatAddresses,
    /// Ports for SNAT.
    pub snat_ports: SnatPorts,
}

/// Masters of masters that are followed: more than anybody stacks.
const DEPTH: usize = 8;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What is known of links, and what of it was told.
#[derive(Debug, Default)]
pub(super) struct Links {
    outside: Outside,
    primaries: BTreeMap<u32, Primary>,
    /// What `INTERFACES` holds.
    written: BTreeMap<u32, abi::Interface>,
    /// Addresses that it has held: flows may be sent on under them.
    used: BTreeSet<IpAddr>,
    /// Something changed that records depend on.
    pub(super) changed: bool,
    /// Why a record could not be written when that was last tried.
    failed: Option<String>,
    /// Addresses for SNAT that the node does not have, as last told.
    missing: Vec<IpAddr>,
    /// What `LOCAL_CIDRS4` and `LOCAL_CIDRS6` hold.
    ranges: Option<Ranges>,
    /// Families that have no range, as last told, once ranges and node were seen to fit.
    without: Option<Vec<Family>>,
}

impl Links {
    pub(super) fn new(written: impl IntoIterator<Item = (u32, abi::Interface)>) -> Self {
        let written: BTreeMap<u32, abi::Interface> = written.into_iter().collect();
        let used = written.values().flat_map(sources).collect();
        Self { written, used, changed: true, ..Self::default() }
    }

    fn primary(&self, index: u32, family: Family) -> Option<IpAddr> {
        let primary = self.primaries.get(&index)?;
        match family {
            Family::V4 => primary.v4.map(IpAddr::from),
            Family::V6 => primary.v6.map(IpAddr::from),
        }
    }

    pub(super) fn wants_retry(&self) -> bool {
        self.failed.is_some()
    }

    pub(super) fn set_primaries(&mut self, primaries: BTreeMap<u32, Primary>) {
        self.primaries = primaries;
        self.changed = true;
    }
}

impl<D: Datapath> Sync<D> {
    /// How traffic from and to other machines is treated, if not as by default.
    #[must_use]
    pub fn with_outside(mut self, outside: Outside) -> Self {
        let Outside { detector, masquerade_all, snat_ports, .. } = &outside;
        let told = [
            (MetaWord::LocalDetector, detector.word() | (u64::from(*masquerade_all) << 8)),
            (
                MetaWord::SnatPorts,
                u64::from(snat_ports.first()) | (u64::from(snat_ports.count()) << 32),
            ),
        ];
        log_failures(&self.datapath.apply(&told.map(|(word, value)| Op::Meta(word, value))));
        self.links.outside = outside;
        self.links.changed = true;
        // Nothing that runs already may take somebody for a pod who is none.
        self.tell_ranges();
        self
    }

    /// Tells programs what they do not know yet. Fails if nobody would be known as a pod, which is
    /// asked once only: at a start.
    pub(super) fn tell_links(&mut self) -> Result<(), WrongFamily> {
        if !self.links.changed {
            return Ok(());
        }
        self.check_ranges()?;
        self.tell_ranges();
        self.tell_missing();
        self.tell_records();
        self.end_flows();
        Ok(())
    }

    /// Ends what is sent on under addresses that went: the packets of clients would keep such flows,
    /// whose answers go astray. An address that the node still has may be in use, whatever new flows get.
    fn end_flows(&mut self) {
        let Some(assigned) = &self.addresses else { return };
        let links = &mut self.links;
        let went = |addr: &&IpAddr| assigned.binary_search(addr).is_err();
        let mut gone: BTreeSet<IpAddr> = links.used.iter().filter(went).copied().collect();
        if gone.is_empty() {
            return;
        }
        // Where a record could not be written, programs still use what it has.
        for addr in links.written.values().flat_map(sources) {
            gone.remove(&addr);
        }
        links.used.retain(|addr| !gone.contains(addr));
        if !gone.is_empty() {
            self.datapath.end_flows(&Vec::from_iter(gone));
        }
    }

    fn check_ranges(&mut self) -> Result<(), WrongFamily> {
        let Some(node) = self.store.node() else { return Ok(()) };
        let detector = &self.links.outside.detector;
        if detector.ranges(Some(node)).is_none() {
            if self.links.ranges.is_none() && self.links.without.is_none() {
                tracing::warn!(
                    "the Node object has no spec.podCIDRs yet: until it has, nobody is known as a \
                     pod of this node"
                );
                self.links.without = Some(Vec::new());
            }
            return Ok(());
        }
        let first = self.links.without.is_none();
        let without = match detector.check(node) {
            Ok(without) => without,
            Err(error) if first => return Err(error),
            Err(_) => vec![Family::V4, Family::V6],
        };
        if self.links.without.as_ref() != Some(&without) {
            for family in &without {
                tracing::warn!(
                    ?family,
                    detector = %detector,
                    "no range of pods in an IP family of this node: its pods count as foreign there"
                );
            }
            self.links.without = Some(without);
        }
        Ok(())
    }

    /// Makes the ranges of pods' addresses those that are known. What is not known yet stays as an
    /// earlier run left it.
    fn tell_ranges(&mut self) {
        let Some(ranges) = self.links.outside.detector.ranges(self.store.node()) else { return };
        if self.links.ranges == Some(ranges) {
            return;
        }
        for family in [Family::V4, Family::V6] {
            let list: Vec<_> =
                ranges.of(family).iter().map(|cidr| (cidr.first(), cidr.prefix())).collect();
            self.datapath.set_local_cidrs(family, &list);
        }
        match self.links.ranges.replace(ranges) {
            Some(before) => tracing::warn!(
                %before,
                now = %ranges,
                "spec.podCIDRs of the Node changed: pods with addresses of before count as foreign"
            ),
            None if self.links.outside.detector.goes_by_source() => {
                tracing::info!(%ranges, "pods of this node are told by their addresses");
            }
            None => {}
        }
    }

    /// Says once which addresses for SNAT are not the node's.
    fn tell_missing(&mut self) {
        let Some(addresses) = &self.addresses else { return };
        let missing = self.links.outside.snat_addresses.missing(addresses);
        if self.links.missing == missing {
            return;
        }
        if missing.is_empty() {
            tracing::info!("all addresses of --snat-address are assigned");
        } else {
            tracing::warn!(
                ?missing,
                "addresses of --snat-address are not assigned to any interface of this node: they \
                 are not used until they are"
            );
        }
        let told = Op::Meta(MetaWord::MissingSnatAddresses, missing.len() as u64);
        log_failures(&self.datapath.apply(&[told]));
        self.links.missing = missing;
    }

    /// Writes the records that differ, and removes those of interfaces that are gone.
    fn tell_records(&mut self) {
        let last = FAMILIES.map(|family| self.last_source(family));
        let wanted: BTreeMap<u32, abi::Interface> = self
            .interfaces
            .keys()
            .filter_map(|&index| Some((index, self.record(index, last)?)))
            .collect();
        let mut failed = None;
        let written = &mut self.links.written;
        // Those of an earlier run are right until interfaces have been listed.
        let stale = |index: &u32| self.interfaces_listed && !wanted.contains_key(index);
        let gone: Vec<u32> = written.keys().copied().filter(stale).collect();
        for index in gone {
            match self.datapath.tell_interface(index, None) {
                Ok(()) => drop(written.remove(&index)),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        for (index, record) in wanted {
            if written.get(&index) == Some(&record) {
                continue;
            }
            match self.datapath.tell_interface(index, Some(&record)) {
                Ok(()) => {
                    self.links.used.extend(sources(&record));
                    written.insert(index, record);
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        match &failed {
            Some(error) if self.links.failed.as_ref() != Some(error) => tracing::warn!(
                error,
                "programs do not know all interfaces: what arrives by others is not forwarded; \
                 will be tried again"
            ),
            None if self.links.failed.is_some() => tracing::info!("programs know all interfaces"),
            _ => {}
        }
        // What failed is tried again with everything else.
        self.links.changed = failed.is_some();
        self.links.failed = failed;
    }

    /// What programs are told of an interface; `last` are the sources of both families where it has
    /// none itself, and the node tells none.
    fn record(&self, index: u32, last: [Option<IpAddr>; 2]) -> Option<abi::Interface> {
        let links = &self.links;
        // Itself, its master, and so on.
        let chain: Vec<&Interface> = std::iter::successors(self.interfaces.get(&index), |port| {
            self.interfaces.get(&port.device.master)
        })
        .take(DEPTH)
        .collect();
        let (own, top) = (chain.first()?, chain.last()?);
        let (pod_port, off_node) = match own.role {
            Role::PodPort => (true, false),
            Role::Uplink | Role::Overlay => (false, true),
            Role::Ignored(_) => (false, false),
        };
        let leads_to_pod =
            |port: &Interface| port.device.master == index && port.role == Role::PodPort;
        let pods = pod_port
            || (own.role == Role::Ignored(Reason::Master)
                && self.interfaces.values().any(leads_to_pod));
        let names = chain.iter().map(|interface| interface.name.as_str());
        let local = links.outside.detector.is_local(pod_port, names);
        let is_loopback = own.role == Role::Ignored(Reason::Loopback);
        let mut flags = self.datapath.xdp_flags(index);
        for (flag, is_set) in [
            (InterfaceFlags::OFF_NODE, off_node),
            (InterfaceFlags::LOCAL_POD, local),
            (InterfaceFlags::PODS, pods),
            (InterfaceFlags::L3, !own.ethernet && !is_loopback),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let mut record = abi::Interface {
            flags,
            group: top.index,
            mtu: own.device.mtu,
            ..abi::Interface::default()
        };
        let [v4, v6] = [0, 1].map(|at| self.sources(FAMILIES[at], &chain, last[at]));
        for (to, addr) in record.v4.iter_mut().zip(v4) {
            [*to] = narrow::<V4>(&words(addr));
        }
        for (to, addr) in record.v6.iter_mut().zip(v6) {
            *to = words(addr);
        }
        record.tag = record.tag_for(index);
        Some(record)
    }

    /// The addresses of a family under which packets leave by the first of these interfaces, each of
    /// which is the master of the one before it: a port has none, its bridge or bond has.
    fn sources(&self, family: Family, chain: &[&Interface], last: Option<IpAddr>) -> Vec<IpAddr> {
        let links = &self.links;
        let own = chain.iter().find_map(|interface| links.primary(interface.index, family));
        let assigned = self.addresses.as_deref().unwrap_or_default();
        let node: Option<&Node> = self.store.node();
        let mut found = links.outside.snat_addresses.choose(family, own, node, last, assigned);
        found.truncate(SNAT_ADDRESSES);
        found
    }

    /// Where the Node object tells none of the node's addresses, that of an uplink.
    fn last_source(&self, family: Family) -> Option<IpAddr> {
        let uplinks = self.interfaces.values().filter(|i| i.role == Role::Uplink);
        uplinks
            .flat_map(|uplink| [uplink.index, uplink.device.master])
            .chain(self.links.primaries.keys().copied())
            .find_map(|index| self.links.primary(index, family))
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
