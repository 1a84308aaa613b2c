//! Which addresses are something by themselves, whatever the port?
//!
//! Three sides hold an address: the frontends that somebody owns there; the node ports, which answer
//! at some of the node's addresses and count while there is one in their family; and the interfaces
//! that have it. An address is in the map as long as one of them holds it, with the flags of all.
//!
//! A node may have thousands of addresses, as those of pods that it answers for, or a VIP for each
//! Service that a tool has put on an interface. Those at which Services or node ports answer come
//! first; of the rest a part of the map has room for so many as any node uses itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{AddressFlags, AddressWord, SERVICE_CIDRS};

use super::address::{address_flags, address_word, family_index, mask};
use super::table::{AddressChange, Batch, FrontKey};
use super::{Error, Planner, Report, Work};
use crate::model::{Family, FrontendKind};

/// Node ports answer there.
const ELIGIBLE: u32 = AddressFlags::NODE | AddressFlags::LOOPBACK;

/// What the node has of an address, not some Service.
const OF_NODE: u32 = ELIGIBLE | AddressFlags::HOST;

/// Addresses that are nothing but an interface's have one of so many elements of the map.
const HOST_SHARE: u32 = 16;

/// Addresses that those of Services leave to those of the node, at most: without them no node port
/// is reached.
const RESERVE: u32 = 64;

/// An address range: any address of it, and the length of its prefix.
pub type Cidr = (IpAddr, u8);

/// What plan has to know of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The addresses at which node ports are reached, each with whether only the node's own sockets
    /// may use it, because it is a loopback address (contract N-1 to N-7).
    pub node_port_addresses: Vec<(IpAddr, bool)>,
    /// The addresses of all interfaces that mean something beyond a link.
    pub host_addresses: Vec<IpAddr>,
    /// The ranges of `ServiceCIDR` objects (V-13).
    pub service_cidrs: Vec<Cidr>,
}

#[derive(Debug, Default)]
struct Entry {
    cluster_ips: u32,
    vips: u32,
    /// [`OF_NODE`] flags.
    node: u32,
    /// Its word in the map, if it is there.
    programmed: Option<AddressWord>,
}

/// All addresses, and why each is one.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    entries: BTreeMap<IpAddr, Entry>,
    /// Those in the maps, by family.
    used: [u32; 2],
    /// Those of them that are nothing but an interface's.
    hosts: [u32; 2],
    /// Owned frontends of node ports, by family.
    node_ports: [u32; 2],
    /// Those that should be in a map, which is full.
    pub(super) unplaced: BTreeSet<IpAddr>,
    /// Those to look at with the next plan.
    pub(super) touched: BTreeSet<IpAddr>,
    /// What was last said of the node; nothing: what was found in the maps stays.
    node: Option<NodeFacts>,
    /// Ranges in the maps, by family.
    cidrs: [Vec<Cidr>; 2],
    /// Ranges to be there.
    wanted_cidrs: Option<[Vec<Cidr>; 2]>,
    /// Told: node addresses, ranges and addresses of interfaces that are left out.
    told: [usize; 3],
}

impl Addresses {
    /// Takes up what is in the maps. Call it before [`Self::hold`].
    pub(super) fn adopt(&mut self, found: &[(IpAddr, AddressWord)], cidrs: &[Vec<Cidr>; 2]) {
        for &(addr, word) in found {
            self.used[family_index(&addr)] += 1;
            self.hosts[family_index(&addr)] += u32::from(is_host_only(Some(word)));
            let node = address_flags(&addr, word) & OF_NODE;
            let entry = Entry { node, programmed: Some(word), ..Entry::default() };
            self.entries.insert(addr, entry);
            // A killed run may have left more than there should be.
            self.touched.insert(addr);
        }
        self.cidrs.clone_from(cidrs);
    }

    /// A frontend has an owner now, as this kind.
    pub(super) fn hold(&mut self, front: &FrontKey, kind: FrontendKind) {
        self.count(front, kind, |count| *count += 1);
    }

    /// It has none any more.
    pub(super) fn release(&mut self, front: &FrontKey, kind: FrontendKind) {
        self.count(front, kind, |count| *count = count.saturating_sub(1));
    }

    fn count(&mut self, front: &FrontKey, kind: FrontendKind, change: impl FnOnce(&mut u32)) {
        let addr = front.addr();
        if front.is_node_port() {
            let count = &mut self.node_ports[family_index(&addr)];
            let before = *count > 0;
            change(count);
            if before != (*count > 0) {
                let of_node = self.entries.iter().filter(|(_, entry)| entry.node & ELIGIBLE != 0);
                self.touched.extend(of_node.map(|(addr, _)| *addr));
            }
            return;
        }
        let entry = self.entries.entry(addr).or_default();
        change(if kind.is_external() { &mut entry.vips } else { &mut entry.cluster_ips });
        self.touched.insert(addr);
    }

    fn set_node(&mut self, facts: NodeFacts) {
        if self.node.as_ref() == Some(&facts) {
            return;
        }
        let now = flags(&facts);
        let before: Vec<IpAddr> = match &self.node {
            Some(before) => flags(before).into_keys().collect(),
            // What was found in the maps.
            None => self.entries.keys().copied().collect(),
        };
        let gone = before.into_iter().filter(|addr| !now.contains_key(addr)).map(|addr| (addr, 0));
        // There may be many addresses, of which one comes or goes.
        for (addr, flags) in gone.chain(now.iter().map(|(&addr, &flags)| (addr, flags))) {
            if self.entries.get(&addr).map_or(0, |entry| entry.node) != flags {
                self.entries.entry(addr).or_default().node = flags;
                self.touched.insert(addr);
            }
        }
        self.wanted_cidrs = Some(by_family(&facts.service_cidrs));
        self.node = Some(facts);
    }

    fn wanted(&self, addr: &IpAddr) -> Option<AddressWord> {
        let entry = self.entries.get(addr)?;
        let has_node_ports = self.node_ports[family_index(addr)] > 0;
        let mut flags = entry.node & if has_node_ports { OF_NODE } else { AddressFlags::HOST };
        if entry.cluster_ips > 0 {
            flags |= AddressFlags::CLUSTER_IP;
        }
        if entry.vips > 0 {
            flags |= AddressFlags::VIP;
        }
        (flags != 0).then(|| address_word(addr, flags))
    }

    /// Tells what changes. Those that go make room for those that come.
    fn settle(&mut self, capacity: u32, retry: bool, changes: &mut Vec<AddressChange>) {
        let mut touched = std::mem::take(&mut self.touched);
        let mut puts = Vec::new();
        let mut freed = false;
        if retry {
            touched.append(&mut self.unplaced);
        }
        let mut look = |this: &mut Self, addr: IpAddr, puts: &mut Vec<(IpAddr, AddressWord)>| {
            let wanted = this.wanted(&addr);
            let Some(entry) = this.entries.get_mut(&addr) else { return false };
            let mut gone = false;
            match wanted {
                Some(word) if entry.programmed == Some(word) => {}
                Some(word) => puts.push((addr, word)),
                None => {
                    this.unplaced.remove(&addr);
                    let programmed = entry.programmed.take();
                    this.hosts[family_index(&addr)] -= u32::from(is_host_only(programmed));
                    if programmed.is_some() {
                        this.used[family_index(&addr)] -= 1;
                        changes.push(AddressChange::Delete(addr));
                        gone = true;
                    }
                    if entry.node == 0 {
                        this.entries.remove(&addr);
                    }
                }
            }
            gone
        };
        for addr in touched {
            freed |= look(self, addr, &mut puts);
        }
        if freed {
            for addr in std::mem::take(&mut self.unplaced) {
                look(self, addr, &mut puts);
            }
        }
        let class = |word: AddressWord| match word.flags() {
            flags if flags & ELIGIBLE != 0 => 0,
            flags if flags != AddressFlags::HOST => 1,
            _ => 2,
        };
        puts.sort_unstable_by_key(|&(addr, word)| (class(word), addr));
        puts.dedup();
        let reserve = RESERVE.min(capacity / 16);
        for (addr, word) in puts {
            let Some(entry) = self.entries.get_mut(&addr) else { continue };
            let (used, hosts) =
                (&mut self.used[family_index(&addr)], &mut self.hosts[family_index(&addr)]);
            if entry.programmed.is_none() {
                let has_room = match class(word) {
                    0 => *used < capacity,
                    1 => *used < capacity - reserve,
                    _ => *used < capacity - reserve / 2 && *hosts < capacity / HOST_SHARE,
                };
                if !has_room {
                    self.unplaced.insert(addr);
                    continue;
                }
                *used += 1;
            }
            self.unplaced.remove(&addr);
            *hosts -= u32::from(is_host_only(entry.programmed));
            *hosts += u32::from(is_host_only(Some(word)));
            entry.programmed = Some(word);
            changes.push(AddressChange::Put(addr, word));
        }
    }

    fn settle_cidrs(&mut self, batch: &mut Batch) -> usize {
        let Some(wanted) = self.wanted_cidrs.take() else { return self.told[1] };
        let mut left_out = 0;
        for (family, (mut wanted, programmed)) in
            [Family::V4, Family::V6].into_iter().zip(wanted.into_iter().zip(&mut self.cidrs))
        {
            left_out += wanted.len().saturating_sub(SERVICE_CIDRS as usize);
            wanted.truncate(SERVICE_CIDRS as usize);
            if *programmed != wanted {
                programmed.clone_from(&wanted);
                batch.service_cidrs.push((family, wanted));
            }
        }
        left_out
    }
}

impl Planner {
    /// What is said of the node from now on; the next plan takes it up. Until the first call, what
    /// was found in the maps stays as it is.
    pub fn set_node(&mut self, facts: NodeFacts) {
        self.addresses.set_node(facts);
    }

    /// The addresses at which node ports answer as they were last said, or found in the maps.
    pub fn node_port_addresses(&self) -> Vec<(IpAddr, bool)> {
        let of_node = self.addresses.entries.iter().filter(|(_, entry)| entry.node & ELIGIBLE != 0);
        of_node.map(|(addr, entry)| (*addr, entry.node & AddressFlags::NODE == 0)).collect()
    }

    /// Takes up what changed about the node, and nothing else.
    pub fn plan_node(&mut self, facts: NodeFacts) -> Batch {
        self.set_node(facts);
        self.plan([])
    }

    /// Number of addresses that should be in a map, and are not because it is full.
    pub fn unplaced_addresses(&self) -> usize {
        self.addresses.unplaced.len()
    }

    /// Makes the addresses follow the frontends. Tells the service ports at whose addresses
    /// something is missing, or is not missing any more.
    pub(super) fn settle_addresses(&mut self, retry: bool, work: &mut Work, batch: &mut Batch) {
        let missed = !self.addresses.unplaced.is_empty();
        self.addresses.settle(self.capacity.addresses, retry, &mut batch.addresses);
        if missed {
            for &index in &self.failed {
                let Some(port) = self.port(index) else { continue };
                let of_addresses = |error: &Error| matches!(error, Error::Full { map, .. } if map.starts_with("ADDRESSES"));
                if port.error.as_ref().is_some_and(of_addresses) {
                    work.errors.entry(index).or_insert(None);
                }
            }
        }
        if !self.addresses.unplaced.is_empty() {
            for (&index, error) in &mut work.errors {
                if error.is_none()
                    && let Some(port) = self.ports.get(index as usize).and_then(Option::as_ref)
                {
                    let missing = port.owned.iter().map(FrontKey::addr);
                    let missing = missing.filter(|addr| self.addresses.unplaced.contains(addr));
                    *error = full(missing, self.capacity.addresses);
                }
            }
        }
        let cidrs = self.addresses.settle_cidrs(batch);
        let of_node = |addr: &&IpAddr| {
            self.addresses.wanted(addr).is_some_and(|word| word.flags() & ELIGIBLE != 0)
        };
        let missing: Vec<IpAddr> =
            self.addresses.unplaced.iter().filter(of_node).copied().collect();
        let hosts = self.addresses.unplaced.iter();
        let hosts = hosts.filter(|addr| is_host_only(self.addresses.wanted(addr))).count();
        let told = std::mem::replace(&mut self.addresses.told, [missing.len(), cidrs, hosts]);
        if missing.len() > told[0]
            && let Some(error) = full(missing.into_iter(), self.capacity.addresses)
        {
            batch.reports.push(Report::NodeAddresses { error });
        }
        if cidrs > told[1] {
            batch.reports.push(Report::ServiceCidrs { left_out: cidrs });
        }
        if hosts > told[2] {
            batch.reports.push(Report::HostAddresses { left_out: hosts });
        }
    }
}

/// What the node has of each of its addresses.
fn flags(facts: &NodeFacts) -> BTreeMap<IpAddr, u32> {
    let mut all = BTreeMap::new();
    for &(addr, loopback) in &facts.node_port_addresses {
        let flag = if loopback { AddressFlags::LOOPBACK } else { AddressFlags::NODE };
        *all.entry(addr).or_default() |= flag;
    }
    for &addr in &facts.host_addresses {
        *all.entry(addr).or_default() |= AddressFlags::HOST;
    }
    all
}

/// Whether it is the word of an address that an interface has, and nobody else.
fn is_host_only(word: Option<AddressWord>) -> bool {
    word.is_some_and(|word| word.flags() == AddressFlags::HOST)
}

/// Why these addresses are not in the map; nothing if there are none.
fn full(missing: impl Iterator<Item = IpAddr>, capacity: u32) -> Option<Error> {
    let missing: BTreeSet<IpAddr> = missing.collect();
    let v4 = missing.first()?.is_ipv4();
    Some(Error::Full {
        map: if v4 { "ADDRESSES4" } else { "ADDRESSES6" },
        needed: u32::try_from(missing.len()).unwrap_or(u32::MAX),
        capacity,
        flag: "--max-frontends",
    })
}

/// Ranges as their first address and prefix, the largest first.
fn by_family(cidrs: &[Cidr]) -> [Vec<Cidr>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for &(addr, prefix) in cidrs {
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        // A zero mask ends the list, and guards nothing but everything.
        if prefix > 0 && prefix <= bits {
            all[family_index(&addr)].push((first_of(addr, prefix), prefix));
        }
    }
    for list in &mut all {
        list.sort_unstable_by_key(|&(addr, prefix)| (prefix, addr));
        list.dedup();
    }
    all
}

/// The first address of a range.
fn first_of(addr: IpAddr, prefix: u8) -> IpAddr {
    match (addr, mask(&addr, prefix)) {
        (IpAddr::V4(addr), IpAddr::V4(mask)) => (addr & mask).into(),
        (IpAddr::V6(addr), IpAddr::V6(mask)) => (addr & mask).into(),
        (addr, _) => addr,
    }
}
