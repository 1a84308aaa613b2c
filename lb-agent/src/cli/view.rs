//! What is programmed, as tables and JSON show it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_agent::model::{self, PortKey};
use lb_agent::plan::{self, FrontKey, PortRow, SetRow, Snapshot, name};
use lb_common::abi::{
    AddressFlags, BackendFlags, BackendId, BackendWord, FactsFlags, FactsWord, Found,
    FrontendFlags, proto,
};
use serde::Serialize;

/// A frontend with everything behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Frontend {
    pub(super) kind: Kind,
    /// The unspecified address for a node port.
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: &'static str,
    /// `namespace/name` of the Service.
    pub(super) service: String,
    /// Name of the Service's port; empty for an unnamed one.
    pub(super) port_name: String,
    /// Id of the service port.
    pub(super) service_port: u32,
    #[serde(flatten)]
    pub(super) facts: Facts,
    pub(super) cluster: Set,
    pub(super) local: Set,
    pub(super) backends: Vec<Backend>,
    /// Whom it lets in, if not everybody.
    pub(super) source_ranges: Option<Vec<String>>,
}

/// What a frontend is to its Service, as far as the maps tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    ClusterIp,
    /// An externalIP, or a load balancer VIP that everybody may use: they are the same to programs.
    External,
    /// A load balancer VIP for those in its source ranges.
    LoadBalancer,
    NodePort,
}

impl Kind {
    pub(super) fn of(key: &FrontKey, flags: u8) -> Self {
        if key.is_node_port() {
            Self::NodePort
        } else if flags & FrontendFlags::RANGES != 0 {
            Self::LoadBalancer
        } else if flags & FrontendFlags::EXTERNAL != 0 {
            Self::External
        } else {
            Self::ClusterIp
        }
    }
}

impl Frontend {
    /// The policy that governs it (T-13).
    pub(super) fn traffic_policy(&self) -> &'static str {
        match self.kind {
            Kind::ClusterIp => self.facts.internal_traffic_policy,
            Kind::External | Kind::LoadBalancer | Kind::NodePort => {
                self.facts.external_traffic_policy
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Facts {
    /// `Cluster` or `Local`.
    pub(super) internal_traffic_policy: &'static str,
    /// `Cluster` or `Local`; clients on this node are not bound by it.
    pub(super) external_traffic_policy: &'static str,
    pub(super) session_affinity_timeout_s: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Set {
    pub(super) backends: usize,
    /// What happens to new connections when there is no backend.
    pub(super) when_empty: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Backend {
    pub(super) id: BackendId,
    pub(super) generation: u32,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) states: Vec<&'static str>,
    /// New connections go to it, but for those that the local set is for.
    pub(super) in_cluster: bool,
    /// New connections that the local set is for go to it.
    pub(super) in_local: bool,
}

/// All frontends, by Service.
pub(super) fn frontends(snapshot: &Snapshot) -> Vec<Frontend> {
    let mut backends: BTreeMap<u32, Vec<Backend>> = BTreeMap::new();
    for (id, found) in &snapshot.backends {
        if let Some(shown) = backend(*id, found) {
            backends.entry(found.service_port).or_default().push(shown);
        }
    }
    let mut ranges: BTreeMap<u32, Vec<model::Cidr>> = BTreeMap::new();
    for held in &snapshot.source_ranges {
        ranges.entry(held.id).or_default().push(held.range);
    }
    for ranges in ranges.values_mut() {
        ranges.sort_unstable();
    }
    let mut all: Vec<Frontend> = Vec::with_capacity(snapshot.frontends.len());
    for (key, word) in &snapshot.frontends {
        // The word of another key: no reader follows it.
        let Some(Found { id, flags }) = key.found(*word) else { continue };
        let none = PortRow { id, ..PortRow::default() };
        let row = snapshot.port(id).unwrap_or(&none);
        let (service, port_name) = service(&row.name);
        let [cluster, local] = [set(&row.sets[0]), set(&row.sets[1])];
        all.push(Frontend {
            kind: Kind::of(key, flags),
            address: key.addr(),
            port: key.port(),
            protocol: protocol(key.proto()),
            service,
            port_name,
            service_port: id,
            facts: facts(row.facts),
            cluster,
            local,
            backends: backends.get(&id).cloned().unwrap_or_default(),
            source_ranges: (flags & FrontendFlags::RANGES != 0)
                .then(|| ranges.get(&id).into_iter().flatten().map(ToString::to_string).collect()),
        });
    }
    all.sort_by(|a, b| {
        let order =
            |f: &Frontend| (f.service.clone(), f.port_name.clone(), f.kind, f.address, f.port);
        order(a).cmp(&order(b)).then(a.protocol.cmp(b.protocol))
    });
    all
}

/// A backend, if the element is in use.
pub(super) fn backend(id: BackendId, found: &lb_common::abi::Backend) -> Option<Backend> {
    let word = BackendWord(found.word);
    word.has(BackendFlags::PRESENT).then(|| Backend {
        id,
        generation: word.generation(),
        address: plan::address(&found.addr, word.has(BackendFlags::IPV6)),
        port: u16::from_be(word.port()),
        states: states(word),
        in_cluster: word.has(BackendFlags::IN_CLUSTER),
        in_local: word.has(BackendFlags::IN_LOCAL),
    })
}

fn states(word: BackendWord) -> Vec<&'static str> {
    let all = [
        (BackendFlags::READY, "ready"),
        (BackendFlags::SERVING, "serving"),
        (BackendFlags::TERMINATING, "terminating"),
        (BackendFlags::LOCAL, "local"),
    ];
    all.iter().filter(|(flag, _)| word.has(*flag)).map(|(_, name)| *name).collect()
}

/// Service and port name from an element of `NAMES`; the whole text where it is none.
pub(super) fn service(name: &str) -> (String, String) {
    match name::decode(name) {
        Some(PortKey { namespace, service, port, .. }) => {
            (format!("{namespace}/{service}"), port.to_string())
        }
        None => (name.to_owned(), String::new()),
    }
}

pub(super) fn facts(facts: FactsWord) -> Facts {
    let has = |flag| facts.flags() & flag != 0;
    Facts {
        internal_traffic_policy: policy(has(FactsFlags::INTERNAL_LOCAL)),
        external_traffic_policy: policy(has(FactsFlags::EXTERNAL_LOCAL)),
        session_affinity_timeout_s: has(FactsFlags::AFFINITY).then(|| facts.affinity_timeout_s()),
    }
}

fn policy(is_local: bool) -> &'static str {
    if is_local { "Local" } else { "Cluster" }
}

fn set(row: &SetRow) -> Set {
    let when_empty = if row.word.drops_when_empty() { "drop" } else { "reject" };
    Set { backends: row.ids.len(), when_empty }
}

/// The name of an IP protocol number that Services know.
pub(super) fn protocol(number: u8) -> &'static str {
    match number {
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::SCTP => "sctp",
        _ => "?",
    }
}

/// What an address is, in words.
pub(super) fn address(flags: u32) -> String {
    let known = [
        (AddressFlags::CLUSTER_IP, "a clusterIP"),
        (AddressFlags::NODE, "of this node, for node ports"),
        (AddressFlags::LOOPBACK, "of this node, for node ports of its own sockets"),
        (AddressFlags::VIP, "a load balancer VIP or externalIP"),
        (AddressFlags::HOST, "of an interface of this node"),
    ];
    let words: Vec<_> =
        known.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| *word).collect();
    if words.is_empty() { "nothing by itself".to_owned() } else { words.join(", ") }
}
