//! The endpoints of a service port, and which of them are in which set: contract section 2.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use lb_common::abi::BackendFlags;

use crate::model::{
    Conditions, DesiredBackend, Endpoint, Family, Protocol, Service, ServicePort, Slice, ZoneSet,
};

/// Backends that a Service may have in each family: each of its ports has its own, and whoever writes
/// it chooses how many ports there are.
const MOST_BACKENDS: usize = 1 << 18;

/// How many endpoints are used of each port of a Service.
pub(super) fn most(service: &Service) -> usize {
    (MOST_BACKENDS / service.ports.len().max(1)).max(1)
}

/// By address and port (E-16), in the order in which they are programmed (E-17).
type Joined = BTreeMap<(IpAddr, u16), Conditions>;

/// A slice, as an index, and the number that it has for a port.
type Serving = (usize, u16);

/// The endpoints of the ports of a Service in one family: slices of that family with a port of the
/// same name and protocol; the number comes from the slice (E-9, E-10).
///
/// Ports for which the same slices have one number each have the same endpoints but for that number,
/// and are joined once: a Service of a thousand ports and ten thousand endpoints has as many of each,
/// not ten million.
pub(super) struct Joins<'a> {
    slices: Vec<(&'a Slice, Vec<bool>)>,
    serving: HashMap<(&'a str, Protocol), Vec<Serving>>,
    most: usize,
    joined: HashMap<Question, (bool, Vec<DesiredBackend>)>,
}

/// Which slices, and whether the cluster and the local set are used.
type Question = (Vec<usize>, bool, bool);

impl<'a> Joins<'a> {
    /// `most` endpoints are used of each port; `zone` is this node's.
    pub(super) fn new(slices: &[&'a Slice], family: Family, zone: &str, most: usize) -> Self {
        // A node without a zone is in none that a hint names (T-10).
        let is_here = |zones: &ZoneSet| !zone.is_empty() && zones.iter().any(|own| **own == *zone);
        let slices: Vec<(&Slice, Vec<bool>)> = slices
            .iter()
            .filter(|slice| slice.family() == family)
            .map(|slice| (*slice, slice.zone_sets.iter().map(is_here).collect()))
            .collect();
        let mut serving: HashMap<_, Vec<Serving>> = HashMap::new();
        for (at, (slice, _)) in slices.iter().enumerate() {
            for own in &slice.ports {
                serving.entry((&*own.name, own.protocol)).or_default().push((at, own.port));
            }
        }
        Self { slices, serving, most, joined: HashMap::new() }
    }

    /// How many joins were shared, or could have been.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.joined.len()
    }

    /// Whether anybody in the cluster can serve a port, and its endpoints as they are programmed.
    pub(super) fn of(
        &mut self,
        port: &ServicePort,
        uses_cluster: bool,
        uses_local: bool,
    ) -> (bool, Vec<DesiredBackend>) {
        let serving =
            self.serving.get(&(&*port.name, port.protocol)).map_or(&[][..], Vec::as_slice);
        let Some(&(_, number)) = serving.first() else { return (false, Vec::new()) };
        let join = |serving: &[Serving]| {
            let endpoints = join(&self.slices, serving);
            let sets = Sets::new(&endpoints, uses_cluster, uses_local);
            (sets.has_any, sets.backends(endpoints, self.most))
        };
        if serving.iter().any(|&(_, other)| other != number) {
            return join(serving);
        }
        let question = (serving.iter().map(|&(at, _)| at).collect(), uses_cluster, uses_local);
        let (has_any, backends) = self.joined.entry(question).or_insert_with(|| join(serving));
        let numbered = |backend: &DesiredBackend| DesiredBackend { port: number, ..*backend };
        (*has_any, backends.iter().map(numbered).collect())
    }
}

/// Where an address and port is in several slices, a record that does not terminate beats one that
/// does (E-15). The contract leaves the rest open; here the better record wins, so that the order
/// of events never shows.
fn join(slices: &[(&Slice, Vec<bool>)], serving: &[Serving]) -> Joined {
    let mut endpoints = Joined::new();
    for &(at, number) in serving {
        let Some((slice, here)) = slices.get(at) else { continue };
        for endpoint in slice.endpoints.iter() {
            let conditions = with_zones(endpoint, here);
            endpoints
                .entry((endpoint.addr, number))
                .and_modify(|held| {
                    if rank(conditions) > rank(*held) {
                        *held = conditions;
                    }
                })
                .or_insert(conditions);
        }
    }
    endpoints
}

/// The conditions of an endpoint with what its hints say of this node's zone; `here` tells of each
/// set of zones of the slice whether it has that.
fn with_zones(endpoint: Endpoint, here: &[bool]) -> Conditions {
    let set = usize::from(endpoint.zones).checked_sub(1);
    let is_here = set.and_then(|set| here.get(set)).copied().unwrap_or(false);
    endpoint
        .conditions
        .with(Conditions::FOR_ZONES, set.is_some())
        .with(Conditions::FOR_THIS_ZONE, is_here)
}

/// Orders the records of one address and port; different conditions never rank equal.
fn rank(conditions: Conditions) -> (bool, Conditions) {
    (!conditions.has(Conditions::TERMINATING), conditions) // Then ready, serving, local, hints.
}

/// What an endpoint must have to be in a set.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Nothing is in the set.
    None,
    /// All of these.
    Has(Conditions),
    /// The last resort (T-2): those that terminate and serve still, and have all of these.
    Drains(Conditions),
}

impl Rule {
    fn takes(self, conditions: Conditions) -> bool {
        match self {
            Self::None => false,
            Self::Has(needed) => conditions.has(needed),
            Self::Drains(needed) => conditions.drains() && conditions.has(needed),
        }
    }
}

/// Who is in the two sets of a service port.
#[derive(Clone, Copy, Debug)]
struct Sets {
    cluster: Rule,
    local: Rule,
    /// Whether anybody in the cluster can serve.
    has_any: bool,
}

impl Sets {
    /// The sets among `endpoints`; one that nothing uses is empty.
    fn new(endpoints: &Joined, uses_cluster: bool, uses_local: bool) -> Self {
        let any = |needed: Conditions| endpoints.values().any(|c| c.has(needed));
        let nothing = Conditions::default();
        let local_ready = Conditions::READY.with(Conditions::LOCAL, true);
        // The two fall back independently (T-4).
        let cluster = match (uses_cluster, any(Conditions::READY)) {
            (false, _) => Rule::None,
            (true, true) => Rule::Has(topology(endpoints)),
            (true, false) => Rule::Drains(nothing), // T-2: whatever hints say.
        };
        let local = match (uses_local, any(local_ready)) {
            (false, _) => Rule::None,
            (true, true) => Rule::Has(local_ready), // T-3: whatever hints say.
            (true, false) => Rule::Drains(Conditions::LOCAL),
        };
        // Each precondition of topology leaves somebody in the set, so that this is T-2 and T-3.
        Self { cluster, local, has_any: endpoints.values().any(|c| c.counts()) }
    }

    /// The endpoints that are in a set, and those that only keep the flows they have (U-4); of more
    /// than `most`, those that are in the local set come first, then those in the other.
    fn backends(self, endpoints: Joined, most: usize) -> Vec<DesiredBackend> {
        let mut backends: Vec<_> = endpoints
            .into_iter()
            .filter(|(_, conditions)| keeps_flows(*conditions))
            .map(|((addr, port), conditions)| DesiredBackend {
                addr,
                port,
                flags: self.flags(conditions),
            })
            .collect();
        if backends.len() > most {
            let lacks = |backend: &DesiredBackend, flag| backend.flags & flag == 0;
            backends.sort_by_key(|backend| {
                [BackendFlags::IN_LOCAL, BackendFlags::IN_CLUSTER].map(|flag| lacks(backend, flag))
            });
            backends.truncate(most);
            backends.shrink_to_fit(); // It is kept.
            backends.sort_by_key(|backend| (backend.addr, backend.port));
        }
        backends
    }

    fn flags(self, conditions: Conditions) -> u16 {
        let mut flags = BackendFlags::PRESENT;
        for (holds, flag) in [
            (self.cluster.takes(conditions), BackendFlags::IN_CLUSTER),
            (self.local.takes(conditions), BackendFlags::IN_LOCAL),
            (keeps_flows(conditions), BackendFlags::SERVING),
            (conditions.has(Conditions::READY), BackendFlags::READY),
            (conditions.has(Conditions::LOCAL), BackendFlags::LOCAL),
            (conditions.has(Conditions::TERMINATING), BackendFlags::TERMINATING),
        ] {
            if holds {
                flags |= flag;
            }
        }
        flags
    }
}

/// Whether a UDP flow may stay: U-4 asks for `serving` alone, but a pod that is published before it
/// serves (E-20) is chosen for new ones too.
fn keeps_flows(conditions: Conditions) -> bool {
    conditions.has(Conditions::READY) || conditions.has(Conditions::SERVING)
}

/// What an endpoint must have to be in the cluster set, where any is ready (T-6 to T-9): ready, and a
/// hint for this node or for its zone where every ready one has such a hint and one names this.
fn topology(endpoints: &Joined) -> Conditions {
    let ready = || endpoints.values().filter(|c| c.has(Conditions::READY));
    let modes = [
        (Conditions::FOR_NODES, Conditions::FOR_THIS_NODE),
        (Conditions::FOR_ZONES, Conditions::FOR_THIS_ZONE),
    ];
    let valid = modes
        .into_iter()
        .find(|&(hinted, here)| ready().all(|c| c.has(hinted)) && ready().any(|c| c.has(here)));
    valid.map_or(Conditions::READY, |(_, here)| Conditions::READY.with(here, true))
}
