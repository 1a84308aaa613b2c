//! Which endpoints does a service port have, and which of them count here (sections 1.2 and 2)?

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::cluster::{AddressType, Endpoint, Family, HEADLESS, Node, PROXY_NAME, Protocol, Slice};
use super::text;

/// Identity of a service port: the number is an attribute (S-7).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port; empty for an unnamed one.
    pub port: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Family: nothing is shared between the two (G-1).
    pub family: Family,
}

/// Which of the lists some frontend of a service port uses (end of section 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// `usesClusterEndpoints`.
    pub cluster: bool,
    /// `usesLocalEndpoints`.
    pub local: bool,
}

/// What the contract keeps of an endpoint.
///
/// Of records of one address and port the greatest wins. That one which stays beats one which
/// terminates is E-15; the rest the contract leaves open, and Millrace decides it by the fields in
/// this order, so that the order of events never shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Not `terminating`.
    pub stays: bool,
    /// `ready`.
    pub ready: bool,
    /// `serving`.
    pub serving: bool,
    /// On this node (E-13).
    pub local: bool,
    /// Hints name nodes.
    pub for_nodes: bool,
    /// Hints name this node.
    pub for_this_node: bool,
    /// Hints name zones.
    pub for_zones: bool,
    /// Hints name this node's zone.
    pub for_this_zone: bool,
}

impl Record {
    /// The last resort: it terminates, but serves still.
    pub fn drains(&self) -> bool {
        self.serving && !self.stays
    }

    /// Whether it can be used at all (T-5).
    pub fn counts(&self) -> bool {
        self.ready || self.drains()
    }
}

/// The endpoints of a service port: the result of section 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// All of its endpoints, whatever their state.
    pub all: BTreeMap<SocketAddr, Record>,
    /// For traffic under policy Cluster.
    pub cluster: BTreeSet<SocketAddr>,
    /// For traffic under policy Local.
    pub local: BTreeSet<SocketAddr>,
    /// Whether anybody anywhere can serve.
    pub has_any: bool,
}

impl Lists {
    /// Section 2 for a service port on this node.
    pub fn new(id: &PortId, slices: &[Slice], node: &Node, uses: Uses) -> Self {
        let all = join(id, slices, node);
        let mut lists = Self { all, ..Self::default() };
        if uses.cluster {
            lists.cluster = lists.cluster_list(); // T-2
            lists.has_any = !lists.cluster.is_empty();
        }
        if uses.local {
            lists.local = first_of(&lists.pick(|e| e.local && e.ready), || {
                lists.pick(|e| e.local && e.drains())
            });
            lists.has_any |= lists.all.values().any(Record::counts); // T-3
        }
        lists
    }

    /// Endpoints that a UDP flow may stay with: all that serve (U-4), and those that are published
    /// before they serve, as new flows may go there too (E-20).
    pub fn keeps_flows(&self) -> BTreeSet<SocketAddr> {
        self.pick(|endpoint| endpoint.serving || endpoint.ready)
    }

    fn pick(&self, which: impl Fn(&Record) -> bool) -> BTreeSet<SocketAddr> {
        self.all.iter().filter(|(_, endpoint)| which(endpoint)).map(|(at, _)| *at).collect()
    }

    /// T-2, T-6.
    fn cluster_list(&self) -> BTreeSet<SocketAddr> {
        let ready = || self.all.values().filter(|endpoint| endpoint.ready);
        // T-7: one ready endpoint without a hint turns hints off.
        let by_node = ready().all(|e| e.for_nodes) && ready().any(|e| e.for_this_node);
        let by_zone = ready().all(|e| e.for_zones) && ready().any(|e| e.for_this_zone);
        let chosen = self.pick(|endpoint| {
            let hinted = if by_node {
                endpoint.for_this_node
            } else if by_zone {
                endpoint.for_this_zone
            } else {
                true
            };
            endpoint.ready && hinted
        });
        first_of(&chosen, || self.pick(Record::drains))
    }
}

fn first_of(
    first: &BTreeSet<SocketAddr>,
    otherwise: impl FnOnce() -> BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    if first.is_empty() { otherwise() } else { first.clone() }
}

/// The endpoints of a service port out of all slices, in whatever order they are (E-1 to E-17).
fn join(id: &PortId, slices: &[Slice], node: &Node) -> BTreeMap<SocketAddr, Record> {
    let mut endpoints: BTreeMap<SocketAddr, Record> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| counts(slice, id)) {
        for port in &slice.ports {
            // E-8: neither without a name nor without a number; E-9: both name and protocol.
            let (Some(name), Some(number)) = (&port.name, port.port) else { continue };
            if *name != id.port || port.protocol != id.protocol || number == 0 {
                continue;
            }
            for endpoint in &slice.endpoints {
                let Some(ip) = address(endpoint, id.family) else { continue };
                let record = read(endpoint, node);
                let held = endpoints.entry(SocketAddr::new(ip, number)).or_default();
                if *held < record {
                    *held = record;
                }
            }
        }
    }
    endpoints
}

/// Whether a slice is one of this Service and family (E-2, E-3, E-5).
fn counts(slice: &Slice, id: &PortId) -> bool {
    slice.address_type == AddressType::Ip(id.family)
        && slice.namespace == id.namespace
        && !slice.service().is_empty()
        && slice.service() == id.service
        && is_ours(slice)
}

/// Whether a slice is one for this proxy (E-5).
pub(super) fn is_ours(slice: &Slice) -> bool {
    !slice.labels.contains_key(HEADLESS) && !slice.labels.contains_key(PROXY_NAME)
}

/// The address of an endpoint, if it can be used (E-11, CVE-2021-25737).
pub(super) fn address(endpoint: &Endpoint, family: Family) -> Option<IpAddr> {
    let ip = text::address(endpoint.addresses.first()?)?;
    (Family::of(ip) == family && !text::is_forbidden(ip)).then_some(ip)
}

/// E-12 to E-14.
fn read(endpoint: &Endpoint, node: &Node) -> Record {
    let on_this_node = |name: &String| !node.name.is_empty() && *name == node.name;
    // T-10: without a label no hint is meant for this node.
    let in_this_zone =
        |name: &str| !name.is_empty() && node.zone.as_deref().is_some_and(|zone| zone == name);
    Record {
        stays: !endpoint.terminating.unwrap_or(false),
        ready: endpoint.ready.unwrap_or(true),
        serving: endpoint.serving.unwrap_or(true),
        local: endpoint.node.as_ref().is_some_and(on_this_node),
        for_nodes: !endpoint.for_nodes.is_empty(),
        for_this_node: endpoint.for_nodes.iter().any(on_this_node),
        for_zones: !endpoint.for_zones.is_empty(),
        for_this_zone: endpoint.for_zones.iter().any(|name| in_this_zone(name)),
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
