//! Which endpoints count, for which frontends?
//!
//! A pure function from what is known of one Service to what plan should make of it. The rules are
//! the contract's: S-5 to S-7 for identity and families, E-9, E-10, E-15 and E-17 for the join of
//! Service ports and slices. A service port without endpoints is still there: it rejects (E-21).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::BackendFlags;

use crate::model::{
    Conditions, DesiredBackend, DesiredPort, Family, Frontend, ObjectKey, PortKey, Service,
    ServicePort, Slice, Store,
};

/// The service ports of a Service in every family it has, with what is desired of each; nothing if
/// the Service is unknown or does not count.
pub fn service_ports(store: &Store, key: &ObjectKey) -> Vec<(PortKey, DesiredPort)> {
    let Some(service) = store.service(key) else {
        return Vec::new();
    };
    let slices: Vec<_> = store.slices_of(key).collect();
    let mut ports = Vec::with_capacity(service.ports.len());
    for family in [Family::V4, Family::V6] {
        let Some(vip) = service.cluster_ips.of(family) else {
            continue; // S-6: nothing of the Service exists in this family.
        };
        for port in &service.ports {
            let key = PortKey {
                namespace: service.key.namespace.clone(),
                service: service.key.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            ports.push((key, desired(service, port, vip, join(&slices, port, family))));
        }
    }
    ports
}

fn desired(
    service: &Service,
    port: &ServicePort,
    vip: IpAddr,
    endpoints: BTreeMap<(IpAddr, u16), Conditions>,
) -> DesiredPort {
    let serves_anywhere = endpoints.values().any(|conditions| {
        conditions.has(Conditions::READY)
            || conditions.has(Conditions::SERVING.with(Conditions::TERMINATING, true))
    });
    DesiredPort {
        created_s: service.created_s,
        frontends: vec![Frontend::cluster_ip(vip, port.port)],
        backends: endpoints
            .into_iter()
            .filter(|(_, c)| c.has(Conditions::READY) || c.has(Conditions::SERVING))
            .map(|((addr, port), c)| DesiredBackend { addr, port, flags: flags(c) })
            .collect(),
        internal_local: service.internal_local,
        external_local: false,
        // V-4 against V-3: without any endpoint in the cluster it is a reject (T-3).
        drop_when_no_local: service.internal_local && serves_anywhere,
        affinity_timeout_s: service.affinity_timeout_s,
    }
}

/// The endpoints of a service port: slices of its family with a port of its name and protocol; the
/// number comes from the slice (E-9, E-10).
///
/// Where an address and port is in several slices, a record that does not terminate beats one that
/// does (E-15). The contract leaves the rest open; here the better record wins, so that the order
/// of events never shows.
fn join(
    slices: &[&Slice],
    port: &ServicePort,
    family: Family,
) -> BTreeMap<(IpAddr, u16), Conditions> {
    let mut endpoints = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let matching =
            slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        for own in matching {
            for endpoint in &slice.endpoints {
                endpoints
                    .entry((endpoint.addr, own.port))
                    .and_modify(|held| {
                        if rank(endpoint.conditions) > rank(*held) {
                            *held = endpoint.conditions;
                        }
                    })
                    .or_insert(endpoint.conditions);
            }
        }
    }
    endpoints
}

/// Orders the records of one address and port; different conditions never rank equal.
fn rank(conditions: Conditions) -> (bool, Conditions) {
    (!conditions.has(Conditions::TERMINATING), conditions) // Then ready, serving, local.
}

fn flags(conditions: Conditions) -> u16 {
    let ready = conditions.has(Conditions::READY);
    // A pod that is published before it serves (E-20) is chosen, and so its UDP flows stay (U-4).
    let keeps = ready || conditions.has(Conditions::SERVING);
    let local = conditions.has(Conditions::LOCAL);
    let mut flags = BackendFlags::PRESENT;
    for (holds, flag) in [
        (ready, BackendFlags::READY | BackendFlags::IN_CLUSTER),
        (ready && local, BackendFlags::IN_LOCAL),
        (local, BackendFlags::LOCAL),
        (keeps, BackendFlags::SERVING),
        (conditions.has(Conditions::TERMINATING), BackendFlags::TERMINATING),
    ] {
        if holds {
            flags |= flag;
        }
    }
    flags
}
