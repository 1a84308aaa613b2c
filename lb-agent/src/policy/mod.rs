//! Which endpoints count, for which frontends?
//!
//! A pure function from what is known of one Service to what plan should make of it. The rules are
//! the contract's: S-5 to S-10 for identity, families and frontends, E-9 to E-17 for the join of
//! Service ports and slices, section 2 for the two sets. A service port without endpoints is still
//! there: it rejects (E-21).

mod endpoints;
#[cfg(test)]
mod frontend_tests;
mod frontends;
pub mod health;
#[cfg(test)]
mod join_tests;
pub mod local;
pub mod node;
#[cfg(test)]
mod range_tests;
mod ranges;
mod refusals;
pub mod snat;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod topology_tests;

pub use refusals::{Refusal, Refusals};

use std::sync::Arc;

use crate::model::{Cidr, DesiredPort, Family, ObjectKey, PortKey, Service, ServicePort, Store};

use self::endpoints::Joins;
use self::frontends::Guard;

/// The service ports of a Service in every family it has, with what is desired of each; nothing if
/// the Service is unknown or does not count.
pub fn service_ports(store: &Store, key: &ObjectKey) -> Vec<(PortKey, DesiredPort)> {
    let Some(service) = store.service(key) else {
        return Vec::new();
    };
    let slices: Vec<_> = store.slices_of(key).collect();
    let guard = Guard::new(store, service);
    let mut ports = Vec::with_capacity(service.ports.len());
    // S-6: without a clusterIP in a family nothing of the Service exists in it.
    for family in service.cluster_ips.all().map(Family::of) {
        let zone = guard.node().map_or("", |node| &*node.zone);
        let mut joins = Joins::new(&slices, family, zone, endpoints::most(service));
        let source_ranges = ranges::of(service, family, guard.node(), &mut |_| ());
        for port in &service.ports {
            let key = PortKey {
                namespace: service.key.namespace.clone(),
                service: service.key.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            let desired = desired(service, port, family, &mut joins, &source_ranges, &guard);
            ports.push((key, desired));
        }
    }
    ports
}

fn desired(
    service: &Service,
    port: &ServicePort,
    family: Family,
    joins: &mut Joins<'_>,
    source_ranges: &Arc<[Cidr]>,
    guard: &Guard<'_>,
) -> DesiredPort {
    let internal_local = service.internal_local;
    let external_local = service.external_local();
    let is_external = port.node_port != 0
        || service.external_ips(family).next().is_some()
        || service.load_balancer_ips(family).next().is_some();
    // Clients on this node use the cluster set of external frontends whatever their policy (V-9,
    // V-10).
    let uses_cluster = !internal_local || is_external;
    let uses_local = internal_local || (external_local && is_external);
    let (has_any, backends) = joins.of(port, uses_cluster, uses_local);
    DesiredPort {
        created_s: service.created_s,
        frontends: frontends::of(service, port, family, guard, &mut |_| ()),
        internal_local,
        external_local,
        // V-4 and V-8 against V-3 and V-6: without any endpoint in the cluster it is a reject.
        drop_when_no_local: uses_local && has_any,
        affinity_timeout_s: service.affinity_timeout_s,
        source_ranges: source_ranges.clone(),
        backends,
    }
}
