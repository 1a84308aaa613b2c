//! Tables that tell what a decision asked them, and what they answered. What it would write is told
//! and not written.

mod flows;
mod node;
mod sockets;

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};

use lb_agent::plan::address;
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, Counter, FILTER_NODE, FILTER_VIP,
    FactsWord, Found, FrontendFlags, FrontendKey, FrontendWord, Ip, SCOPES, ServiceCidr,
    ServicePortId, SetWord, V4, V6, filter_place,
};
use lb_common::select::widen;
use lb_common::tables::{FrontendTables, GuardTables, ServiceTables};
use serde::Serialize;

use super::asker::Asker;
use super::reader::{FamilyReader, Reader};
use crate::cli::view;

/// One thing that a decision asked or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// What was asked, for programs.
    pub(super) step: &'static str,
    /// Question and answer, for people.
    pub(super) text: String,
}

/// Answers a decision and takes notes.
pub(super) struct Recorder<'a, R> {
    reader: &'a R,
    asker: &'a Asker,
    /// Whether the client's port is known, so that flow records mean something.
    knows_client: bool,
    /// The namespace was told.
    told_netns: Cell<bool>,
    /// So were the facts.
    told_facts: Cell<bool>,
    steps: RefCell<Vec<Step>>,
    service_port: Cell<Option<ServicePortId>>,
    set: Cell<Option<(u32, SetWord)>>,
    backend: Cell<Option<(BackendId, Backend)>>,
    known_flow: Cell<bool>,
    /// Index of the interface by which the packet arrives; 0 for that of a pod of this node.
    arrival: u32,
    told_interface: Cell<bool>,
    outside: Cell<bool>,
    masqueraded: Cell<bool>,
    /// Index of the interface that the route leads to which was found last.
    egress: Cell<u32>,
}

/// What the notes say, beside the steps.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) steps: Vec<Step>,
    pub(super) service_port: Option<ServicePortId>,
    /// Index and word of the set that was chosen from.
    pub(super) set: Option<(u32, SetWord)>,
    /// The backend that was read last.
    pub(super) backend: Option<(BackendId, Backend)>,
    /// A record of this flow was found.
    pub(super) known_flow: bool,
    /// It begins a flow from outside the node.
    pub(super) outside: bool,
    /// It begins a flow that is masqueraded like all others.
    pub(super) masqueraded: bool,
}

impl<'a, R: Reader> Recorder<'a, R> {
    pub(super) fn new(reader: &'a R, asker: &'a Asker, knows_client: bool, arrival: u32) -> Self {
        Self {
            reader,
            asker,
            knows_client,
            told_netns: Cell::default(),
            told_facts: Cell::default(),
            steps: RefCell::default(),
            service_port: Cell::default(),
            set: Cell::default(),
            backend: Cell::default(),
            known_flow: Cell::default(),
            arrival,
            told_interface: Cell::default(),
            outside: Cell::default(),
            masqueraded: Cell::default(),
            egress: Cell::default(),
        }
    }

    pub(super) fn notes(self) -> Notes {
        Notes {
            steps: self.steps.into_inner(),
            service_port: self.service_port.get(),
            set: self.set.get(),
            backend: self.backend.get(),
            known_flow: self.known_flow.get(),
            outside: self.outside.get(),
            masqueraded: self.masqueraded.get(),
        }
    }

    /// What the parts of a decision ask for more than once is told once.
    fn note(&self, step: &'static str, text: String) {
        let (mut steps, step) = (self.steps.borrow_mut(), Step { step, text });
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
}

impl<R: Reader> ServiceTables for Recorder<'_, R> {
    fn set(&self, index: u32) -> SetWord {
        let word = self.reader.set(index);
        let scope = if index.is_multiple_of(SCOPES) { "cluster" } else { "local" };
        let holds = match word.count() {
            0 if word.drops_when_empty() => "no backend: drop".to_owned(),
            0 => "no backend: reject".to_owned(),
            n => format!("{n} backends from slot {} on", word.first()),
        };
        self.note("set", format!("{scope} set: word {:#018x}, {holds}", word.0));
        self.set.set(Some((index, word)));
        word
    }

    fn facts(&self, id: ServicePortId) -> FactsWord {
        let word = self.reader.facts(id);
        if self.told_facts.replace(true) {
            // Asked twice: for the scope and for session affinity.
            return word;
        }
        let facts = view::facts(word);
        let affinity = match facts.session_affinity_timeout_s {
            Some(timeout) => format!("session affinity for {timeout} s"),
            None => "no session affinity".to_owned(),
        };
        let (internal, external) = (facts.internal_traffic_policy, facts.external_traffic_policy);
        self.note(
            "facts",
            format!(
                "facts: word {:#018x}, internalTrafficPolicy {internal}, externalTrafficPolicy \
                 {external}, {affinity}",
                word.0
            ),
        );
        word
    }

    fn slot(&self, index: u32) -> BackendId {
        let id = self.reader.slot(index);
        self.note("slot", format!("slot {index}: backend {id}"));
        id
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        if id == 0 {
            return None; // No question, but what a client without a record has.
        }
        let backend = self.reader.backend(id);
        let text = match backend.and_then(|backend| view::backend(id, &backend)) {
            Some(shown) => format!(
                "{}, generation {}, {}",
                SocketAddr::new(shown.address, shown.port),
                shown.generation,
                shown.states.join(" ")
            ),
            None => "not in use".to_owned(),
        };
        self.note("backend", format!("backend {id}: {text}"));
        self.backend.set(backend.map(|backend| (id, backend)));
        backend
    }

    fn now(&self) -> u32 {
        self.reader.now()
    }

    fn seconds(&self) -> u32 {
        self.reader.seconds()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        let client = self.asker.client(&key.client);
        let found = self.reader.affinity(key);
        let text = match &found {
            None => "has no backend yet".to_owned(),
            Some(record) => format!(
                "had backend {}, generation {}, {} s ago",
                record.backend,
                record.generation,
                self.seconds().saturating_sub(record.seen_s)
            ),
        };
        self.note("affinity", format!("affinity: {client} {text}"));
        found
    }

    fn set_affinity(&self, key: &AffinityKey, record: &AffinityRecord) -> bool {
        let (client, backend) = (self.asker.client(&key.client), record.backend);
        self.note("hold", format!("would remember backend {backend} for {client}"));
        true
    }

    /// Always the first of a set: each has the same chance, and the answer stays the same.
    fn random(&self) -> u32 {
        if let Some((_, word)) = self.set.get() {
            self.note(
                "random",
                format!(
                    "random: one of {}, each with the same chance; here the first",
                    word.count()
                ),
            );
        }
        0
    }

    fn count(&self, counter: Counter) {
        self.note("count", format!("would count {}", counter.name()));
    }
}

impl<const N: usize, R: FamilyReader<N>> FrontendTables<N> for Recorder<'_, R> {
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        let found = self.reader.frontend(key);
        let (port, protocol) = (u16::from_be(key.port), view::protocol(key.proto));
        let shown = if key.addr == [0; N] {
            format!("node port {port}/{protocol}")
        } else {
            format!("{}/{protocol}", at(&key.addr, key.port))
        };
        let text = match found {
            None => format!("frontend {shown}: not in the table"),
            Some(word) => match word.found(key) {
                Some(Found { id, flags }) => {
                    self.service_port.set(Some(id));
                    let kind = match flags {
                        _ if flags & FrontendFlags::RANGES != 0 => {
                            "external, for those in source ranges"
                        }
                        _ if flags & FrontendFlags::EXTERNAL != 0 => "external",
                        _ => "clusterIP",
                    };
                    format!(
                        "frontend {shown}: word {:#018x}, tag matches, {kind}, service port {id} ({})",
                        word.0,
                        self.reader.name(id)
                    )
                }
                None => format!("frontend {shown}: word {:#018x}, tag of another key", word.0),
            },
        };
        self.note("frontend", text);
        found
    }

    fn filter(&self, ip: &Ip<N>) -> u32 {
        let bits = self.reader.filter(ip);
        let (word, bit) = filter_place(ip);
        let says = match (bits & FILTER_VIP != 0, bits & FILTER_NODE != 0) {
            (true, false) => "may be a VIP",
            (true, true) => "may be a VIP, or an address of this node",
            (false, true) => "may be an address of this node, and is no VIP",
            (false, false) => "no Service has this address",
        };
        self.note("vip_filter", format!("VIP filter: bits {bit} of word {word}: {says}"));
        bits
    }

    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        let found = self.reader.address(ip);
        let flags = found.map_or(0, |word| word.flags_for(ip));
        self.note("address", format!("address {}: {}", ip_of(ip), view::address(flags)));
        found
    }

    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        let is_in = self.reader.source_allowed(id, source);
        let says = if is_in { "is in one" } else { "is in none" };
        self.note("source_ranges", format!("source ranges: {} {says} of them", ip_of(source)));
        is_in
    }
}

impl<const N: usize, R: FamilyReader<N>> GuardTables<N> for Recorder<'_, R> {
    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let range = self.reader.service_cidr(index)?;
        if index == 0 || range.mask != [0; N] {
            let prefix: u32 = range.mask.iter().map(|word| word.count_ones()).sum();
            let shown = if prefix == 0 {
                "none is known".to_owned()
            } else {
                format!("{}/{prefix}", ip_of(&range.addr))
            };
            self.note("service_cidr", format!("range of Services' addresses: {shown}"));
        }
        Some(range)
    }
}

/// Address and port from their words in network order.
pub(super) fn at<const N: usize>(ip: &Ip<N>, port: u16) -> SocketAddr {
    SocketAddr::new(ip_of(ip), u16::from_be(port))
}

fn ip_of<const N: usize>(ip: &Ip<N>) -> IpAddr {
    const { assert!(N == V4 || N == V6) };
    address(&widen(ip), N == V6)
}
