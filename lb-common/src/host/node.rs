//! What a test says of the node: its interfaces, its routes, and what is set for it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::vec::Vec;

use super::HostTables;
use super::builder::{Words, words};
use super::family::OfFamily;
use crate::abi::{
    Interface, InterfaceWord, Ip, LOCAL_CIDRS, NEXT_HOPS, NODE_PORT_WORDS, NextHop, ServiceCidr,
    SourceRangeKey, address_in_turn, node_port_place,
};
use crate::tables::{LocalMode, NodeTables, RouteStatus, RouteTables, ServiceTables as _};

/// Where packets to some address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// What is found.
    pub status: RouteStatus,
    /// The interface that they leave by.
    pub egress: u32,
    /// Bytes that fit; 0: any number.
    pub mtu: u32,
}

/// A question about a route: source, destination, interface, whether the packet leaves by it, length.
pub type AskedRoute = (IpAddr, IpAddr, u32, bool, u32);

/// What is set for the node, and where it sends packets to.
pub(super) struct Node {
    interfaces: RefCell<HashMap<u32, Interface>>,
    ports: RefCell<Vec<u64>>,
    own: Cell<bool>,
    local_mode: Cell<LocalMode>,
    masquerade_all: Cell<bool>,
    snat_ports: Cell<(u32, u32)>,
    /// By destination, and by interface that they have to leave by, 0 for any.
    routes: RefCell<HashMap<(IpAddr, u32), HostRoute>>,
    /// Interfaces that are gone: nothing is found over them.
    gone: RefCell<HashSet<u32>>,
    /// What was found last.
    hop: Cell<Option<HostRoute>>,
    next_hops: RefCell<HashMap<u32, NextHop>>,
    sources: RefCell<HashMap<u32, u64>>,
    /// Whether the kernel looks after every neighbour all the time.
    neighbours_kept: Cell<bool>,
    asked: RefCell<Vec<AskedRoute>>,
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            interfaces: RefCell::default(),
            ports: RefCell::new(std::vec![0; NODE_PORT_WORDS as usize]),
            own: Cell::new(true),
            local_mode: Cell::new(LocalMode::Interface),
            masquerade_all: Cell::new(false),
            snat_ports: Cell::new((1_024, 28_976)),
            routes: RefCell::default(),
            gone: RefCell::default(),
            hop: Cell::new(None),
            next_hops: RefCell::default(),
            sources: RefCell::default(),
            neighbours_kept: Cell::new(false),
            asked: RefCell::default(),
        }
    }
}

impl HostTables {
    /// Says what an interface is; its tag is filled in.
    pub fn set_host_interface(&self, ifindex: u32, interface: Interface) {
        let interface = Interface { tag: interface.tag_for(ifindex), ..interface };
        self.node.interfaces.borrow_mut().insert(ifindex, interface);
    }

    /// The same, but the agent is about to replace what is said of it.
    pub fn set_torn_interface(&self, ifindex: u32, interface: Interface) {
        let interface = Interface { tag: !interface.tag_for(ifindex), ..interface };
        self.node.interfaces.borrow_mut().insert(ifindex, interface);
    }

    /// All interfaces of which something is known.
    pub fn host_interfaces(&self) -> Vec<(u32, Interface)> {
        self.node.interfaces.borrow().iter().map(|(index, value)| (*index, *value)).collect()
    }

    /// Sets the bit of a port of `NODE_PORTS`, in host order.
    pub fn add_node_port(&self, protocol: u8, port: u16) {
        let Some((word, mask)) = node_port_place(protocol, port) else { return };
        if let Some(bits) = self.node.ports.borrow_mut().get_mut(word as usize) {
            *bits |= mask;
        }
    }

    /// `NODE_PORTS`, from index 0.
    pub fn all_node_ports(&self) -> Vec<u64> {
        self.node.ports.borrow().clone()
    }

    /// Whether packets that leave come from sockets of this node; they do to begin with.
    pub fn set_own(&self, own: bool) {
        self.node.own.set(own);
    }

    /// Sets how pods of this node are told from others.
    pub fn set_local_mode(&self, mode: LocalMode) {
        self.node.local_mode.set(mode);
    }

    /// Sets whether everything to a clusterIP gets a source of this node.
    pub fn set_masquerade_all(&self, all: bool) {
        self.node.masquerade_all.set(all);
    }

    /// Sets the ports for SNAT: the first one, in host order, and their number.
    pub fn set_snat_ports(&self, first: u16, count: u16) {
        self.node.snat_ports.set((u32::from(first), u32::from(count)));
    }

    /// Packets to an address go there; if `out` is not 0, only those that have to leave by that
    /// interface.
    pub fn add_route(&self, to: IpAddr, out: u32, route: HostRoute) {
        self.node.routes.borrow_mut().insert((to, out), route);
    }

    /// An interface is gone: no route is found over it.
    pub fn lose_interface(&self, ifindex: u32) {
        self.node.gone.borrow_mut().insert(ifindex);
    }

    /// The kernel has just looked after every neighbour, and goes on to do so.
    pub fn keep_neighbours(&self) {
        self.node.neighbours_kept.set(true);
    }

    /// Which routes were asked for.
    pub fn asked_routes(&self) -> Vec<AskedRoute> {
        self.node.asked.borrow().clone()
    }

    /// Adds a range of pods' addresses, for a detector that goes by these.
    pub fn add_local_cidr(&self, ip: IpAddr, prefix: u8) {
        match words(ip) {
            Words::V4(ip) => self.v4.local_cidrs.borrow_mut().push(range(ip, prefix)),
            Words::V6(ip) => self.v6.local_cidrs.borrow_mut().push(range(ip, prefix)),
        }
    }

    /// Adds a range of sources that a service port lets through.
    pub fn add_source_range(&self, id: u32, ip: IpAddr, prefix: u8) {
        match words(ip) {
            Words::V4(ip) => self.v4.add_source_range(id, ip, prefix),
            Words::V6(ip) => self.v6.add_source_range(id, ip, prefix),
        }
    }

    /// The ranges of pods' addresses.
    pub fn local_cidrs<const N: usize>(&self) -> Vec<ServiceCidr<N>>
    where
        Self: OfFamily<N>,
    {
        self.family().local_cidrs.borrow().clone()
    }

    /// All ranges of sources.
    pub fn source_ranges<const N: usize>(&self) -> Vec<SourceRangeKey<N>>
    where
        Self: OfFamily<N>,
    {
        self.family().source_ranges.borrow().iter().copied().collect()
    }
}

/// A range from one of its addresses.
pub(super) fn range<const N: usize>(ip: Ip<N>, prefix: u8) -> ServiceCidr<N> {
    let (mut addr, mut mask) = (ip, [0; N]);
    let mut bits = u32::from(prefix);
    for (addr, mask) in addr.iter_mut().zip(&mut mask) {
        let here = bits.min(32);
        *mask = u32::MAX.checked_shl(32 - here).unwrap_or(0).to_be();
        *addr &= *mask;
        bits -= here;
    }
    ServiceCidr { addr, mask }
}

/// Whether an address is in one of the ranges of a service port, as a longest prefix match tells.
pub(super) fn allows<const N: usize>(
    ranges: &HashSet<SourceRangeKey<N>>,
    id: u32,
    source: &Ip<N>,
) -> bool {
    ranges.iter().any(|key| {
        let prefix = u8::try_from(key.prefix.saturating_sub(32)).unwrap_or(u8::MAX);
        key.service_port == id.to_be() && range(*source, prefix).addr == key.addr
    })
}

impl NodeTables for HostTables {
    fn arrival(&self) -> u32 {
        self.interface.get()
    }

    fn own(&self) -> bool {
        self.node.own.get()
    }

    fn interface(&self, ifindex: u32) -> Option<InterfaceWord> {
        self.cost(|costs| costs.lookups += 1);
        let interface = self.node.interfaces.borrow().get(&ifindex).copied()?;
        if !interface.is_for(ifindex) {
            return Some(InterfaceWord::TORN);
        }
        Some(InterfaceWord::new(interface.flags, interface.group))
    }

    fn node_ports(&self, index: u32) -> u64 {
        self.node.ports.borrow().get(index as usize).copied().unwrap_or(0)
    }

    fn local_mode(&self) -> LocalMode {
        self.node.local_mode.get()
    }

    fn masquerade_all(&self) -> bool {
        self.node.masquerade_all.get()
    }

    fn snat_first(&self) -> u32 {
        self.node.snat_ports.get().0
    }

    fn snat_count(&self) -> u32 {
        self.node.snat_ports.get().1
    }

    fn seed(&self) -> u32 {
        0
    }

    fn egress(&self) -> u32 {
        self.node.hop.get().map_or(0, |hop| hop.egress)
    }

    fn neighbour_known(&self) -> bool {
        self.node.hop.get().is_some_and(|hop| hop.status == RouteStatus::Found)
    }

    fn mtu(&self) -> u32 {
        self.node.hop.get().map_or(0, |hop| hop.mtu)
    }

    /// One neighbour for each interface.
    fn found_hop(&self) -> Option<NextHop> {
        let hop = self.node.hop.get().filter(|hop| hop.status == RouteStatus::Found)?;
        let limits = if hop.mtu == 0 { 0xffff } else { hop.mtu };
        let found = NextHop { egress: hop.egress, limits, ..NextHop::default() };
        if self.node.neighbours_kept.get() {
            for limits in [limits, limits | NextHop::EARLY] {
                let seen = self.now();
                let kept = NextHop { seen, limits, ..found }.tagged();
                self.set_next_hop(kept.place(), &kept);
            }
        }
        Some(found)
    }

    fn next_hop(&self, place: u32) -> Option<NextHop> {
        let hops = self.node.next_hops.borrow();
        (place < NEXT_HOPS).then(|| hops.get(&place).copied().unwrap_or_default())
    }

    fn set_next_hop(&self, place: u32, hop: &NextHop) {
        self.node.next_hops.borrow_mut().insert(place, *hop);
    }

    fn set_next_hop_found(&self, place: u32, found: u32) {
        if let Some(hop) = self.node.next_hops.borrow_mut().get_mut(&place) {
            hop.found = found;
        }
    }

    fn source_known(&self, place: u32) -> u64 {
        self.node.sources.borrow().get(&place).copied().unwrap_or(0)
    }

    fn set_source_known(&self, place: u32, word: u64) {
        self.node.sources.borrow_mut().insert(place, word);
    }

    fn take_hop(&self, hop: &NextHop) {
        let (egress, mtu) = (hop.egress, hop.limits & !NextHop::EARLY);
        self.node.hop.set(Some(HostRoute { status: RouteStatus::Found, egress, mtu }));
    }

    fn forget_neighbour(&self) {
        let unknown = |hop| HostRoute { status: RouteStatus::NoNeighbour, ..hop };
        self.node.hop.set(self.node.hop.get().map(unknown));
    }
}

impl<const N: usize> RouteTables<N> for HostTables
where
    Self: OfFamily<N>,
{
    fn snat_address(&self, ifindex: u32, turn: u32) -> Ip<N> {
        self.cost(|costs| costs.lookups += 1);
        let interfaces = self.node.interfaces.borrow();
        let Some(interface) = interfaces.get(&ifindex) else { return [0; N] };
        address_in_turn(turn, |index| {
            let mut ip = [0; N];
            let four = interface.v4.get(index).map(std::slice::from_ref);
            let six = interface.v6.get(index).map(<[u32; 4]>::as_slice);
            if let Some(from) = if N == 1 { four } else { six } {
                ip.copy_from_slice(from);
            }
            ip
        })
    }

    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let ranges = self.family().local_cidrs.borrow();
        let none = ServiceCidr { addr: [0; N], mask: [0; N] };
        (index < LOCAL_CIDRS).then(|| ranges.get(index as usize).copied().unwrap_or(none))
    }

    fn route(&self, from: &Ip<N>, to: &Ip<N>, over: u32, out: bool, length: u32) -> RouteStatus {
        let (source, destination) = (address(from), address(to));
        self.node.asked.borrow_mut().push((source, destination, over, out, length));
        if self.node.gone.borrow().contains(&over) {
            self.node.hop.set(None);
            return RouteStatus::NoRoute;
        }
        let key = (destination, if out { over } else { 0 });
        let found = self.node.routes.borrow().get(&key).copied();
        self.node.hop.set(found);
        match found {
            None => RouteStatus::Local,
            Some(route) if route.mtu != 0 && length > route.mtu => RouteStatus::TooBig,
            Some(route) => route.status,
        }
    }
}

/// The address of some words.
fn address<const N: usize>(ip: &Ip<N>) -> IpAddr {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(ip) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    match octets {
        [a, b, c, d, ..] if N == 1 => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(octets),
    }
}
