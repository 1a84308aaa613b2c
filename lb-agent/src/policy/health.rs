//! Which ports of this node tell how many endpoints of a Service are here, and at which addresses
//! (contract H-8 to H-10, H-15)?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::node::NodePortAddresses;
use crate::model::{Conditions, Family, ObjectKey, Store};

/// What is told at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Whose port it is.
    pub service: ObjectKey,
    /// Ready endpoints of it on this node, counted by address (H-10).
    pub local_endpoints: usize,
}

/// Who wants which port. Each port is had by one Service: the oldest, then the one with the smaller
/// namespace and name, as with frontends (S-15).
#[derive(Debug, Default)]
pub struct HealthPorts {
    wanted: BTreeMap<ObjectKey, Wanted>,
    claims: BTreeMap<u16, BTreeSet<(i64, ObjectKey)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    port: u16,
    created_s: i64,
    local_endpoints: usize,
}

/// What another look at a Service may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Ports at which something else is told now, or nothing.
    pub ports: BTreeSet<u16>,
    /// Services that may have won or lost a port.
    pub services: BTreeSet<ObjectKey>,
}

impl HealthPorts {
    /// Looks at a Service again, or for the first time. Costs what the Service has of endpoints.
    pub fn update(&mut self, store: &Store, key: &ObjectKey) -> Touched {
        let now = wanted(store, key);
        let before = match now {
            Some(now) => self.wanted.insert(key.clone(), now),
            None => self.wanted.remove(key),
        };
        let mut touched = Touched::default();
        if before == now {
            return touched;
        }
        touched.services.insert(key.clone());
        touched.ports.extend(before.iter().chain(&now).map(|wanted| wanted.port));
        let had: Vec<_> = touched.ports.iter().filter_map(|port| self.winner(*port)).collect();
        touched.services.extend(had.into_iter().cloned());
        if let Some(Wanted { port, created_s, .. }) = before
            && let Some(claims) = self.claims.get_mut(&port)
        {
            claims.remove(&(created_s, key.clone()));
            if claims.is_empty() {
                self.claims.remove(&port);
            }
        }
        if let Some(Wanted { port, created_s, .. }) = now {
            self.claims.entry(port).or_default().insert((created_s, key.clone()));
        }
        let have: Vec<_> = touched.ports.iter().filter_map(|port| self.winner(*port)).collect();
        touched.services.extend(have.into_iter().cloned());
        touched
    }

    /// Whether a Service that wants a port has endpoints that count.
    pub fn has_endpoints(store: &Store, key: &ObjectKey) -> bool {
        wanted(store, key).is_some_and(|wanted| wanted.local_endpoints > 0)
    }

    /// What is to be told at a port; nothing if nobody wants it.
    pub fn at(&self, port: u16) -> Option<Served> {
        let service = self.winner(port)?.clone();
        let local_endpoints = self.wanted.get(&service)?.local_endpoints;
        Some(Served { service, local_endpoints })
    }

    /// The port that a Service wants and the Service that has it, if that is another one.
    pub fn lost_to(&self, key: &ObjectKey) -> Option<(u16, &ObjectKey)> {
        let port = self.wanted.get(key)?.port;
        self.winner(port).filter(|winner| *winner != key).map(|winner| (port, winner))
    }

    fn winner(&self, port: u16) -> Option<&ObjectKey> {
        self.claims.get(&port)?.first().map(|(_, key)| key)
    }
}

/// What a Service wants: one of type `LoadBalancer` whose effective external policy is `Local` (S-10,
/// S-11).
fn wanted(store: &Store, key: &ObjectKey) -> Option<Wanted> {
    let service = store.service(key)?;
    let port = service.health_check_node_port()?;
    let here = Conditions::READY.with(Conditions::LOCAL, true);
    let ports: BTreeSet<_> = service.ports.iter().map(|port| (&port.name, port.protocol)).collect();
    let mut addresses = BTreeSet::new();
    for slice in store.slices_of(key) {
        let counts = service.cluster_ips.of(slice.family()).is_some();
        // Each of its endpoints serves all of its ports (E-8).
        if counts && slice.ports.iter().any(|own| ports.contains(&(&own.name, own.protocol))) {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.has(here));
            addresses.extend(ready.map(|endpoint| endpoint.addr));
        }
    }
    Some(Wanted { port, created_s: service.created_s, local_endpoints: addresses.len() })
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// All addresses of both families.
    Everywhere,
    /// One address; an unspecified one means all of its family.
    At(IpAddr),
}

/// Where to listen for this choice of addresses, which led to `node_port_addresses` (H-8).
pub fn places(
    config: &NodePortAddresses,
    node_port_addresses: &[(IpAddr, bool)],
) -> BTreeSet<Place> {
    let all = [
        (Family::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (Family::V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ];
    if all.iter().all(|(family, _)| config.is_all(*family)) {
        return [Place::Everywhere].into();
    }
    let mut places = BTreeSet::new();
    for (family, unspecified) in all {
        if config.is_all(family) {
            places.insert(Place::At(unspecified));
        } else {
            let own = node_port_addresses.iter().map(|(addr, _)| *addr);
            places.extend(own.filter(|addr| Family::of(*addr) == family).map(Place::At));
        }
    }
    places
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
