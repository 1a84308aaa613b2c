//! What do the maps hold, in types: keys, sizes, a change, and all that is programmed.

use std::fmt;
use std::net::IpAddr;

use lb_common::abi::{
    AddressWord, Backend, BackendId, BackendWord, FactsWord, Found, FrontendFlags, FrontendKey,
    FrontendWord, META_WORDS, Name, ServicePortId, SetWord, V4, V6, proto,
};

use super::address::{address, words};
use super::addresses::Cidr;
use crate::model::{self, Family, Frontend, FrontendKind, Protocol};

/// A key of `FRONTENDS4` or `FRONTENDS6`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontKey {
    /// In `FRONTENDS4`.
    V4(FrontendKey<V4>),
    /// In `FRONTENDS6`.
    V6(FrontendKey<V6>),
}

impl FrontKey {
    /// The key under which a frontend of a service port with this protocol is found.
    pub fn new(frontend: Frontend, protocol: Protocol) -> Self {
        let port = frontend.port.to_be();
        let proto = match protocol {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        };
        match frontend.addr {
            IpAddr::V4(addr) => {
                Self::V4(FrontendKey::new([u32::from_ne_bytes(addr.octets())], port, proto))
            }
            IpAddr::V6(_) => Self::V6(FrontendKey::new(words(frontend.addr), port, proto)),
        }
    }

    /// The word that leads from this key to a service port, for a frontend of this kind that is open
    /// to everybody.
    pub fn word(&self, id: ServicePortId, kind: FrontendKind) -> FrontendWord {
        self.guarded_word(id, kind, false)
    }

    /// The same; a load balancer's may be for those in source ranges only.
    pub fn guarded_word(
        &self,
        id: ServicePortId,
        kind: FrontendKind,
        has_ranges: bool,
    ) -> FrontendWord {
        let mut flags = if kind.is_external() { FrontendFlags::EXTERNAL } else { 0 };
        // Of all that a Service has, ranges are for its load balancer's addresses only.
        if has_ranges && kind == FrontendKind::LoadBalancer {
            flags |= FrontendFlags::RANGES;
        }
        match self {
            Self::V4(key) => FrontendWord::new(key, id, flags),
            Self::V6(key) => FrontendWord::new(key, id, flags),
        }
    }

    /// What a word found under this key leads to, if the word belongs to it.
    pub fn found(&self, word: FrontendWord) -> Option<Found> {
        match self {
            Self::V4(key) => word.found(key),
            Self::V6(key) => word.found(key),
        }
    }

    /// The service port that a word found under this key leads to, if the word belongs to it.
    pub fn id_in(&self, word: FrontendWord) -> Option<ServicePortId> {
        self.found(word).map(|found| found.id)
    }

    /// The family.
    pub fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// Whether it is that of a node port, which every eligible address of the node has (C-2).
    pub fn is_node_port(&self) -> bool {
        self.addr().is_unspecified()
    }

    /// The VIP; the unspecified address for a node port.
    pub fn addr(&self) -> IpAddr {
        match self {
            Self::V4(key) => address(&[key.addr[0], 0, 0, 0], false),
            Self::V6(key) => address(&key.addr, true),
        }
    }

    /// The port, host order.
    pub fn port(&self) -> u16 {
        u16::from_be(match self {
            Self::V4(key) => key.port,
            Self::V6(key) => key.port,
        })
    }

    /// The IP protocol number.
    pub fn proto(&self) -> u8 {
        match self {
            Self::V4(key) => key.proto,
            Self::V6(key) => key.proto,
        }
    }
}

impl fmt::Display for FrontKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto() {
            proto::TCP => "tcp",
            proto::UDP => "udp",
            proto::SCTP => "sctp",
            _ => "?",
        };
        write!(f, "{}/{proto}", std::net::SocketAddr::new(self.addr(), self.port()))
    }
}

impl fmt::Debug for FrontKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of elements of the maps that plan fills; each is settable, and fixed once pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `FACTS` and `NAMES`; `SETS` has twice as many. `--max-service-ports`.
    pub service_ports: u32,
    /// `BACKENDS`. `--max-backends`.
    pub backends: u32,
    /// Slots in `SLOTS`, which has half as many elements. `--max-slots`.
    pub slots: u32,
    /// `FRONTENDS4` and `FRONTENDS6`, each. `--max-frontends`.
    pub frontends: u32,
    /// `ADDRESSES4` and `ADDRESSES6`, each; as many as frontends, because few addresses have none.
    pub addresses: u32,
    /// `SOURCE_RANGES4` and `SOURCE_RANGES6`, each. `--max-source-ranges`.
    pub source_ranges: u32,
}

impl Default for Capacity {
    /// Room for 30,000 dual-stack service ports with some 250,000 endpoints.
    fn default() -> Self {
        Self {
            service_ports: 1 << 16,
            backends: 1 << 18,
            slots: 1 << 20,
            frontends: 1 << 16,
            addresses: 1 << 16,
            source_ranges: 1 << 16,
        }
    }
}

/// An element of `SOURCE_RANGES4` or `SOURCE_RANGES6`: a range of clients that the guarded frontends
/// of a service port let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRange {
    /// The service port.
    pub id: ServicePortId,
    /// The range.
    pub range: model::Cidr,
}

/// A change of the programmed tables. Its order is made in [`crate::diff`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The epoch to hand to [`super::Planner::release`] a grace period after this was applied.
    pub epoch: u64,
    /// Whether anything went out of use, so that a grace period is worth waiting for.
    pub freed: bool,
    /// Changed service ports.
    pub ports: Vec<PortChange>,
    /// Changed frontends.
    pub frontends: Vec<FrontendChange>,
    /// Changed addresses.
    pub addresses: Vec<AddressChange>,
    /// All ranges of Services' addresses of a family, where they changed.
    pub service_cidrs: Vec<(Family, Vec<Cidr>)>,
    /// New source ranges. Those that go wait for a grace period, see [`Retired::SourceRange`].
    pub source_ranges: Vec<SourceRange>,
    /// What people should know, each told once.
    pub reports: Vec<super::Report>,
}

impl Batch {
    /// Whether there is nothing to program.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
            && self.frontends.is_empty()
            && self.addresses.is_empty()
            && self.service_cidrs.is_empty()
            && self.source_ranges.is_empty()
    }
}

/// A change of one service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortChange {
    /// Its id.
    pub id: ServicePortId,
    /// Its name, if the id is newly its.
    pub name: Option<Box<Name>>,
    /// New facts.
    pub facts: Option<FactsWord>,
    /// New sets, by scope.
    pub sets: [Option<SetChange>; 2],
    /// Backends whose id is newly theirs.
    pub added: Vec<(BackendId, Backend)>,
    /// Backends that stay, or go out of use: word before and after.
    pub words: Vec<(BackendId, BackendWord, BackendWord)>,
}

impl PortChange {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.facts.is_none()
            && self.sets.iter().all(Option::is_none)
            && self.added.is_empty()
            && self.words.is_empty()
    }
}

/// A new set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetChange {
    /// The word that commits it.
    pub word: SetWord,
    /// What its slots hold.
    pub slots: Vec<BackendId>,
}

/// A change of one frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendChange {
    /// It has this word now.
    Put(FrontKey, FrontendWord),
    /// It is gone.
    Delete(FrontKey),
}

/// A change of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressChange {
    /// It has this word now.
    Put(IpAddr, AddressWord),
    /// It is gone.
    Delete(IpAddr),
}

/// What became free after a grace period, and has to be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// A service port id.
    ServicePort(ServicePortId),
    /// A backend id; its generation is kept.
    Backend(BackendId, u32),
    /// A source range. A program that has found a guarded frontend, or is on its way through the
    /// trie, may not have asked for its client yet, who may be let in before and after.
    SourceRange(SourceRange),
}

/// All that is programmed, as read back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// All frontends, in no order.
    pub frontends: Vec<(FrontKey, FrontendWord)>,
    /// All addresses, in no order.
    pub addresses: Vec<(IpAddr, AddressWord)>,
    /// The ranges of Services' addresses, by family, in order.
    pub service_cidrs: [Vec<Cidr>; 2],
    /// All source ranges, in no order.
    pub source_ranges: Vec<SourceRange>,
    /// All service port ids of which anything is not zero, by id.
    pub ports: Vec<PortRow>,
    /// All backends of which anything is not zero, by id.
    pub backends: Vec<(BackendId, Backend)>,
    /// `META`.
    pub meta: [u64; META_WORDS as usize],
}

impl Snapshot {
    /// Whether nothing is programmed.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.addresses.is_empty()
            && self.ports.is_empty()
            && self.backends.is_empty()
            && self.source_ranges.is_empty()
    }

    /// A service port by its id.
    pub fn port(&self, id: ServicePortId) -> Option<&PortRow> {
        self.ports.binary_search_by_key(&id, |row| row.id).ok().and_then(|i| self.ports.get(i))
    }

    /// A backend by its id.
    pub fn backend(&self, id: BackendId) -> Option<&Backend> {
        let i = self.backends.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        self.backends.get(i).map(|(_, backend)| backend)
    }
}

/// One service port as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRow {
    /// Its id.
    pub id: ServicePortId,
    /// Its name, see [`super::name`].
    pub name: String,
    /// Its facts.
    pub facts: FactsWord,
    /// Its sets, by scope.
    pub sets: [SetRow; 2],
}

/// One set as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetRow {
    /// Its word.
    pub word: SetWord,
    /// What its slots hold; shorter than the word says where that leaves the map.
    pub ids: Vec<BackendId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_keep_address_and_port_through_their_key() {
        for (addr, shown) in
            [("10.96.0.1", "10.96.0.1:443/tcp"), ("fd00::1:2", "[fd00::1:2]:443/tcp")]
        {
            let addr: IpAddr = addr.parse().unwrap();
            let key = FrontKey::new(Frontend::cluster_ip(addr, 443), Protocol::Tcp);
            assert_eq!((key.addr(), key.port(), key.proto()), (addr, 443, 6));
            assert_eq!(key.to_string(), shown);
            for (kind, flags) in
                [(FrontendKind::ClusterIp, 0), (FrontendKind::NodePort, FrontendFlags::EXTERNAL)]
            {
                let found = Some(Found { id: 77, flags });
                assert_eq!(key.found(key.word(77, kind)), found);
                // whatever ranges there are, they are not for these.
                assert_eq!(key.found(key.guarded_word(77, kind, true)), found);
            }
            let guarded = key.guarded_word(77, FrontendKind::LoadBalancer, true);
            assert_eq!(guarded.flags(), FrontendFlags::EXTERNAL | FrontendFlags::RANGES);
        }
    }

    #[test]
    fn addresses_lie_in_memory_as_on_the_wire() {
        let FrontKey::V4(key) = FrontKey::new(
            Frontend::cluster_ip(IpAddr::from([10, 96, 0, 1]), 0x1234),
            Protocol::Udp,
        ) else {
            panic!("an IPv4 frontend has an IPv4 key");
        };
        assert_eq!(key.addr[0].to_ne_bytes(), [10, 96, 0, 1]);
        assert_eq!(key.port.to_ne_bytes(), [0x12, 0x34]);
    }
}
