//! What do tables mean, whatever ids they use?

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_agent::{datapath::fake::Fake, model::Cidr, plan::FrontKey};
use lb_common::abi::{
    Backend, BackendFlags, BackendWord, FactsFlags, FactsWord, FrontendFlags, Scope,
};

/// What tables mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// By address, port and protocol number; nodePorts at the unspecified address.
    pub(crate) frontends: BTreeMap<(SocketAddr, u8), PortMeaning>,
    /// Flags of addresses.
    pub(crate) addresses: BTreeMap<IpAddr, u32>,
    /// Protocol number and port of frontends that are told as nodePorts.
    pub(crate) node_ports: BTreeSet<(u8, u16)>,
    service_cidrs: String,
}

/// What a service port means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortMeaning {
    pub(crate) external: bool,
    /// Who is let in, if not everybody (V-5).
    ranges: Option<Vec<Cidr>>,
    pub(crate) facts: FactsWord,
    /// Members, and whether an empty set drops.
    pub(crate) cluster: (BTreeSet<SocketAddr>, bool),
    pub(crate) local: (BTreeSet<SocketAddr>, bool),
    /// Where UDP flows may stay (U-4).
    pub(crate) serving: BTreeSet<SocketAddr>,
}

impl PortMeaning {
    /// Whether a client is let in (V-5).
    pub(crate) fn lets_in(&self, client: IpAddr) -> bool {
        self.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(client)))
    }

    /// The set that a client on this node gets, and whether it drops when it is empty.
    pub(crate) fn for_client_here(&self) -> &(BTreeSet<SocketAddr>, bool) {
        let local = !self.external && self.facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
        if local { &self.local } else { &self.cluster }
    }
}

impl Meaning {
    /// All that the tables say, ids aside: what is captured, and where it leads.
    pub(crate) fn of(maps: &Fake) -> Self {
        let frontends = maps.frontends.iter().map(|(key, word)| {
            let found = key.found(*word).expect("every word belongs to its key");
            let at = (SocketAddr::new(key.addr(), key.port()), key.proto());
            (at, service_port(maps, key, found.flags, found.id))
        });
        let addresses = maps.addresses.iter();
        Self {
            frontends: frontends.collect(),
            addresses: addresses.map(|(addr, word)| (*addr, word.flags())).collect(),
            node_ports: maps
                .frontends
                .keys()
                .filter(|key| key.is_node_port())
                .map(|key| (key.proto(), key.port()))
                // None is ever taken back.
                .filter(|port| maps.node_ports.contains(port))
                .collect(),
            service_cidrs: format!("{:?}", maps.service_cidrs),
        }
    }
}

fn service_port(maps: &Fake, key: &FrontKey, flags: u8, id: u32) -> PortMeaning {
    let backend = |id: u32| maps.backends[id as usize];
    let set = |scope: Scope| {
        let word = maps.sets[scope.index(id) as usize];
        let slots = word.first() as usize..(word.first() + word.count()) as usize;
        let members = maps.slots[slots].iter().map(|id| socket_address(key, &backend(*id)));
        (members.collect(), word.count() == 0 && word.drops_when_empty())
    };
    let all = maps.backends.iter();
    let of_port = all.filter(|backend| {
        let word = BackendWord(backend.word);
        backend.service_port == id && word.has(BackendFlags::PRESENT)
    });
    let ranges = maps.source_ranges.iter().filter(|range| range.id == id);
    let is_guarded = flags & FrontendFlags::RANGES != 0;
    PortMeaning {
        ranges: is_guarded.then(|| ranges.map(|range| range.range).collect()),
        external: flags & FrontendFlags::EXTERNAL != 0,
        facts: maps.facts[id as usize],
        cluster: set(Scope::Cluster),
        local: set(Scope::Local),
        serving: of_port
            .filter(|backend| BackendWord(backend.word).has(BackendFlags::SERVING))
            .map(|backend| socket_address(key, backend))
            .collect(),
    }
}

fn socket_address(key: &FrontKey, backend: &Backend) -> SocketAddr {
    let ip = lb_agent::plan::address(&backend.addr, matches!(key, FrontKey::V6(_)));
    SocketAddr::new(ip, u16::from_be(BackendWord(backend.word).port()))
}
