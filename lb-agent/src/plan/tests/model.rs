//! What should the maps lead to, before, after, and while a change is under way?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{AddressFlags, Backend, BackendFlags, FrontendFlags};

use super::guards::clients;
use super::world::{Update, key};
use crate::datapath::Datapath as _;
use crate::datapath::fake::Fake;
use crate::model::{DesiredPort, FrontendKind, PortKey, Protocol};
use crate::plan::{Cidr, FrontKey, NodeFacts, address, address_flags};

#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) ports: BTreeMap<usize, DesiredPort>,
    pub(super) node: Option<NodeFacts>,
}

impl Model {
    pub(super) fn update(&mut self, (port, desired): &Update) {
        match desired {
            Some(desired) => self.ports.insert(*port, desired.clone()),
            None => self.ports.remove(port),
        };
    }

    pub(super) fn all(&self) -> Vec<(PortKey, DesiredPort)> {
        self.ports.iter().map(|(&port, desired)| (key(port), desired.clone())).collect()
    }

    fn fronts(&self) -> BTreeSet<FrontKey> {
        let all = self.ports.values().flat_map(|desired| &desired.frontends);
        all.map(|&frontend| FrontKey::new(frontend, Protocol::Tcp)).collect()
    }

    /// As what a Service claims a frontend: as its clusterIP, if it is that among others.
    pub(super) fn claims(&self, port: usize, front: &FrontKey) -> Option<FrontendKind> {
        let frontends = self.ports.get(&port)?.frontends.iter();
        frontends.filter(|&&f| FrontKey::new(f, Protocol::Tcp) == *front).map(|f| f.kind).min()
    }

    /// The strongest claim on a frontend (S-15; contract section 12: a clusterIP comes first).
    pub(super) fn owner(&self, front: &FrontKey) -> Option<(usize, FrontendKind)> {
        let claims = self.ports.keys().filter_map(|&port| Some((port, self.claims(port, front)?)));
        claims.min_by_key(|&(port, kind)| {
            (kind != FrontendKind::ClusterIp, self.ports[&port].created_s, key(port))
        })
    }

    /// What a frontend should reach for clients on this node (T-13, V-9, V-10).
    fn reach(&self, front: &FrontKey) -> Option<Vec<(IpAddr, u16)>> {
        let (port, kind) = self.owner(front)?;
        let desired = &self.ports[&port];
        let local = kind == FrontendKind::ClusterIp && desired.internal_local;
        let flag = if local { BackendFlags::IN_LOCAL } else { BackendFlags::IN_CLUSTER };
        let members = desired.backends.iter().filter(|backend| backend.flags & flag != 0);
        Some(members.map(|backend| (backend.addr, backend.port)).collect())
    }

    /// What each address should be.
    fn addresses(&self) -> BTreeMap<IpAddr, u32> {
        let mut addresses = BTreeMap::new();
        let mut node_ports = [false; 2];
        for front in self.fronts() {
            let addr = front.addr();
            match self.owner(&front) {
                Some((_, FrontendKind::NodePort)) => node_ports[usize::from(addr.is_ipv6())] = true,
                Some((_, FrontendKind::ClusterIp)) => {
                    *addresses.entry(addr).or_default() |= AddressFlags::CLUSTER_IP;
                }
                Some(_) => *addresses.entry(addr).or_default() |= AddressFlags::VIP,
                None => {}
            }
        }
        for &(addr, loopback) in self.node.iter().flat_map(|node| &node.node_port_addresses) {
            if node_ports[usize::from(addr.is_ipv6())] {
                *addresses.entry(addr).or_default() |=
                    if loopback { AddressFlags::LOOPBACK } else { AddressFlags::NODE };
            }
        }
        for &addr in self.node.iter().flat_map(|node| &node.host_addresses) {
            *addresses.entry(addr).or_default() |= AddressFlags::HOST;
        }
        addresses
    }

    /// Whether a client is let in at a frontend, if there is such a one.
    pub(super) fn lets_in(&self, front: &FrontKey, client: IpAddr) -> Option<bool> {
        let (port, kind) = self.owner(front)?;
        let ranges = &self.ports[&port].source_ranges;
        let is_open = ranges.is_empty() || kind != FrontendKind::LoadBalancer;
        Some(is_open || ranges.iter().any(|range| range.contains(client)))
    }

    pub(super) fn backends(&self, port: usize) -> impl Iterator<Item = (IpAddr, u16)> + '_ {
        let backends = self.ports.get(&port).into_iter().flat_map(|desired| &desired.backends);
        backends.map(|backend| (backend.addr, backend.port))
    }
}

/// What a frontend may reach while `before` becomes `after`: the backends of its owners, both as
/// they were and as they become, because a frontend moves after the sets are committed.
pub(super) fn may_reach(before: &Model, after: &Model, front: &FrontKey) -> Vec<(IpAddr, u16)> {
    let owners = [before.owner(front), after.owner(front)].into_iter().flatten();
    owners.flat_map(|(port, _)| before.backends(port).chain(after.backends(port))).collect()
}

/// Whether connections to a frontend must succeed at every moment while `before` becomes `after`.
pub(super) fn serves_throughout(before: &Model, after: &Model, front: &FrontKey) -> bool {
    let serves = |model: &Model| model.reach(front).is_some_and(|reached| !reached.is_empty());
    let is_new = before.owner(front).is_none();
    // The same Service, under the same policy.
    let same = || {
        let owner =
            |model: &Model| model.owner(front).map(|(port, kind)| (port, kind.is_external()));
        owner(before) == owner(after)
    };
    serves(after) && (is_new || (serves(before) && same()))
}

pub(super) fn place(backend: &Backend) -> (IpAddr, u16) {
    let word = lb_common::abi::BackendWord(backend.word);
    (address(&backend.addr, word.has(BackendFlags::IPV6)), u16::from_be(word.port()))
}

pub(super) fn assert_reach(fake: &Fake, model: &Model) {
    let programmed: BTreeSet<_> = fake.frontends.keys().copied().collect();
    assert_eq!(programmed, model.fronts());
    for front in &programmed {
        let reached: Vec<_> = fake.reach(front).unwrap().iter().map(place).collect();
        assert_eq!(Some(reached), model.reach(front), "{front}");
        let external = fake.frontends[front].flags() & FrontendFlags::EXTERNAL != 0;
        let (_, kind) = model.owner(front).unwrap();
        assert_eq!(external, kind != FrontendKind::ClusterIp, "{front}");
        let guarded = fake.frontends[front].flags() & FrontendFlags::RANGES != 0;
        let everybody = |client: &IpAddr| model.lets_in(front, *client) == Some(true);
        assert_eq!(guarded, !clients(front.family()).iter().all(everybody), "{front}");
    }
    let addresses = fake.addresses.iter();
    let addresses: BTreeMap<_, _> =
        addresses.map(|(addr, word)| (*addr, address_flags(addr, *word))).collect();
    assert_eq!(addresses, model.addresses());
    let cidrs: BTreeSet<Cidr> =
        fake.snapshot().unwrap().service_cidrs.into_iter().flatten().collect();
    let wanted = model.node.iter().flat_map(|node| &node.service_cidrs).copied();
    assert_eq!(cidrs, wanted.collect());
}

/// Whatever is reached is reached at an address that counts as one; and node ports that stay are
/// reached at all addresses of the node that stay.
pub(super) fn assert_addresses(fake: &Fake, before: &Model, after: &Model) {
    let flags = |addr: &IpAddr| fake.addresses.get(addr).map_or(0, |w| address_flags(addr, *w));
    for front in fake.frontends.keys().filter(|front| !front.is_node_port()) {
        let of_services = AddressFlags::CLUSTER_IP | AddressFlags::VIP;
        assert_ne!(flags(&front.addr()) & of_services, 0, "{front}");
    }
    for front in fake.frontends.keys().filter(|front| front.is_node_port()) {
        assert!(fake.node_ports.contains(&(front.proto(), front.port())), "{front} is not noted");
    }
    let (old, new) = (before.addresses(), after.addresses());
    for (addr, was) in old {
        let stays = was & new.get(&addr).copied().unwrap_or(0);
        assert_eq!(flags(&addr) & stays, stays, "{addr}");
    }
}
