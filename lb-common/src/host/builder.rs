//! Fills the service tables by hand, as the agent does from Services and `EndpointSlice`s, and
//! shows them to who copies them into maps.

use std::net::{IpAddr, SocketAddr};
use std::vec::Vec;

use super::HostTables;
use super::family::OfFamily;
use super::node::range;
use crate::abi::{
    AddressFlags, AddressWord, Backend, BackendFlags, BackendId, BackendWord, FILTER_NODE,
    FILTER_VIP, FactsFlags, FactsWord, FrontendKey, FrontendWord, Ip, Scope, ServicePortId,
    SetWord, V4, V6, filter_place,
};

/// The flags of a backend that is ready.
pub const READY: u16 = BackendFlags::PRESENT
    | BackendFlags::SERVING
    | BackendFlags::READY
    | BackendFlags::IN_CLUSTER
    | BackendFlags::IN_LOCAL;

impl HostTables {
    /// Adds a service port with its frontends, and a cluster and a local set of all `backends`.
    /// Both sets of an empty list reject.
    pub fn add_service_port(
        &self,
        protocol: u8,
        frontends: &[SocketAddr],
        backends: &[SocketAddr],
    ) -> ServicePortId {
        // Id 0 is none; ids are never given again here.
        let id = length(&self.facts.borrow()).max(1);
        self.set_facts(id, FactsWord::new(FactsFlags::PRESENT, 0));
        let backends: Vec<_> = backends.iter().map(|at| self.add_backend(id, *at)).collect();
        self.set_backends(id, Scope::Cluster, &backends);
        self.set_backends(id, Scope::Local, &backends);
        for frontend in frontends {
            self.add_frontend(id, protocol, *frontend);
        }
        id
    }

    /// Adds a frontend.
    pub fn add_frontend(&self, id: ServicePortId, protocol: u8, at: SocketAddr) {
        self.add_frontend_with(id, protocol, at, 0);
    }

    /// Adds a frontend with [`crate::abi::FrontendFlags`]; a `NodePort` has the address 0.
    pub fn add_frontend_with(&self, id: ServicePortId, protocol: u8, at: SocketAddr, flags: u8) {
        match words(at.ip()) {
            Words::V4(ip) => self.frontend_at::<V4>(id, protocol, ip, at.port(), flags),
            Words::V6(ip) => self.frontend_at::<V6>(id, protocol, ip, at.port(), flags),
        }
    }

    /// Says what an address is ([`crate::abi::AddressFlags`]); nothing with 0.
    pub fn set_address(&self, ip: IpAddr, flags: u32) {
        match words(ip) {
            Words::V4(ip) => self.address_at::<V4>(ip, flags),
            Words::V6(ip) => self.address_at::<V6>(ip, flags),
        }
    }

    /// Adds a range that Services get their addresses from, of one family.
    pub fn add_service_cidr(&self, ip: IpAddr, prefix: u8) {
        match words(ip) {
            Words::V4(ip) => self.v4.service_cidrs.borrow_mut().push(range(ip, prefix)),
            Words::V6(ip) => self.v6.service_cidrs.borrow_mut().push(range(ip, prefix)),
        }
    }

    /// Deletes a service port: its frontends, and what its backends may keep.
    pub fn delete_service_port(&self, id: ServicePortId) {
        self.v4.frontends.borrow_mut().retain(|_, word| word.id() != id);
        self.v6.frontends.borrow_mut().retain(|_, word| word.id() != id);
        self.set_empty(id, Scope::Cluster, SetWord::REJECT);
        self.set_empty(id, Scope::Local, SetWord::REJECT);
        self.set_facts(id, FactsWord::default());
        for backend in self.backends.borrow_mut().iter_mut() {
            if backend.service_port == id {
                let word = BackendWord(backend.word);
                backend.word = BackendWord::new(word.port(), 0, word.generation()).0;
            }
        }
    }

    /// Adds a backend to no set yet; it is ready.
    pub fn add_backend(&self, id: ServicePortId, at: SocketAddr) -> BackendId {
        let backend = length(&self.backends.borrow());
        self.backends.borrow_mut().push(Backend::default());
        self.reuse_backend(backend, id, at);
        backend
    }

    /// Gives a backend id to another endpoint, with a generation of its own.
    pub fn reuse_backend(&self, backend: BackendId, id: ServicePortId, at: SocketAddr) {
        self.generations.set(self.generations.get().wrapping_add(1));
        let (addr, family) = match words(at.ip()) {
            Words::V4([ip]) => ([ip, 0, 0, 0], 0),
            Words::V6(ip) => (ip, BackendFlags::IPV6),
        };
        let word = BackendWord::new(at.port().to_be(), READY | family, self.generations.get()).0;
        let new = Backend { addr, word, service_port: id, zone: 0, pad: 0 };
        if let Some(element) = self.backends.borrow_mut().get_mut(backend as usize) {
            *element = new;
        }
    }

    /// Clears flags of a backend, as [`BackendFlags::SERVING`] when it serves no longer.
    pub fn clear_flags(&self, backend: BackendId, flags: u16) {
        self.change_flags(backend, |old| old & !flags);
    }

    /// Sets flags of a backend.
    pub fn set_flags(&self, backend: BackendId, flags: u16) {
        self.change_flags(backend, |old| old | flags);
    }

    /// Commits a set: a fresh range of slots, then the word. An empty one rejects.
    pub fn set_backends(&self, id: ServicePortId, scope: Scope, backends: &[BackendId]) {
        let first = length(&self.slots.borrow());
        self.slots.borrow_mut().extend(backends);
        self.set_empty(id, scope, SetWord::new(first, length(backends)));
    }

    /// Stores a set word as it is: [`SetWord::DROP`] or [`SetWord::REJECT`].
    pub fn set_empty(&self, id: ServicePortId, scope: Scope, word: SetWord) {
        store(&mut self.sets.borrow_mut(), scope.index(id), word);
    }

    /// Stores the facts of a service port.
    pub fn set_facts(&self, id: ServicePortId, facts: FactsWord) {
        store(&mut self.facts.borrow_mut(), id, facts);
    }

    /// The ids in a set.
    pub fn backends_of(&self, id: ServicePortId, scope: Scope) -> Vec<BackendId> {
        let word = self.sets.borrow().get(scope.index(id) as usize).copied().unwrap_or_default();
        let slots = self.slots.borrow();
        slots.iter().skip(word.first() as usize).take(word.count() as usize).copied().collect()
    }

    /// `SETS`, from index 0.
    pub fn sets(&self) -> Vec<SetWord> {
        self.sets.borrow().clone()
    }

    /// `FACTS`, from index 0.
    pub fn all_facts(&self) -> Vec<FactsWord> {
        self.facts.borrow().clone()
    }

    /// `SLOTS`, from index 0, one by one.
    pub fn slots(&self) -> Vec<BackendId> {
        self.slots.borrow().clone()
    }

    /// `BACKENDS`, from index 0.
    pub fn backends(&self) -> Vec<Backend> {
        self.backends.borrow().clone()
    }

    /// `VIP_FILTER`, from index 0.
    pub fn vip_filter(&self) -> Vec<u64> {
        self.filter.borrow().clone()
    }

    fn frontend_at<const N: usize>(
        &self,
        id: ServicePortId,
        protocol: u8,
        ip: Ip<N>,
        port: u16,
        flags: u8,
    ) where
        Self: OfFamily<N>,
    {
        self.expect_frontend(&FrontendKey::new(ip, port.to_be(), protocol));
        let key = FrontendKey::new(ip, port.to_be(), protocol);
        self.family().frontends.borrow_mut().insert(key, FrontendWord::new(&key, id, flags));
    }

    fn address_at<const N: usize>(&self, ip: Ip<N>, flags: u32)
    where
        Self: OfFamily<N>,
    {
        if flags == 0 {
            self.family().addresses.borrow_mut().remove(&ip);
            return;
        }
        self.expect_address(&ip, flags);
        self.family().addresses.borrow_mut().insert(ip, AddressWord::new(&ip, flags));
    }

    /// Sets what leads packets to a frontend to be looked up.
    pub(super) fn expect_frontend<const N: usize>(&self, key: &FrontendKey<N>) {
        if key.addr == [0; N] {
            self.add_node_port(key.proto, u16::from_be(key.port));
        } else {
            self.set_filter_bit(&key.addr, FILTER_VIP);
        }
    }

    /// The same for an address with these flags.
    pub(super) fn expect_address<const N: usize>(&self, ip: &Ip<N>, flags: u32) {
        if flags & (AddressFlags::CLUSTER_IP | AddressFlags::VIP) != 0 {
            self.set_filter_bit(ip, FILTER_VIP);
        }
        if flags & (AddressFlags::NODE | AddressFlags::LOOPBACK | AddressFlags::HOST) != 0 {
            self.set_filter_bit(ip, FILTER_NODE);
        }
    }

    fn set_filter_bit<const N: usize>(&self, ip: &Ip<N>, bit: u32) {
        let (word, shift) = filter_place(ip);
        if let Some(bits) = self.filter.borrow_mut().get_mut(word as usize) {
            *bits |= u64::from(bit) << shift;
        }
    }

    fn change_flags(&self, backend: BackendId, change: impl FnOnce(u16) -> u16) {
        if let Some(backend) = self.backends.borrow_mut().get_mut(backend as usize) {
            let word = BackendWord(backend.word);
            backend.word = BackendWord::new(word.port(), change(word.flags()), word.generation()).0;
        }
    }
}

/// An address as the words of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// IPv4.
    V4(Ip<V4>),
    /// IPv6.
    V6(Ip<V6>),
}

/// The words of an address, in network order.
pub fn words(ip: IpAddr) -> Words {
    match ip {
        IpAddr::V4(ip) => Words::V4([u32::from_ne_bytes(ip.octets())]),
        IpAddr::V6(ip) => {
            let mut words = [0; V6];
            for (word, bytes) in words.iter_mut().zip(ip.octets().chunks_exact(4)) {
                *word = u32::from_ne_bytes(bytes.try_into().unwrap_or_default());
            }
            Words::V6(words)
        }
    }
}

/// Elements of a table that only a test fills: far below 2^32.
fn length<T>(elements: &[T]) -> u32 {
    u32::try_from(elements.len()).unwrap_or(u32::MAX)
}

/// Stores an element, after as many default ones as it takes.
pub(super) fn store<T: Clone + Default>(elements: &mut Vec<T>, index: u32, element: T) {
    let index = index as usize;
    if elements.len() <= index {
        elements.resize(index + 1, T::default());
    }
    if let Some(place) = elements.get_mut(index) {
        *place = element;
    }
}
