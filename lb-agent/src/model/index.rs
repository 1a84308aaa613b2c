//! Whose clusterIP is an address that another Service claims as external?
//!
//! Anyone who may write a Service may claim any address as external, and would take over what is sent
//! to a clusterIP (CVE-2020-8554). Addresses are counted from when the first Service claims one.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{ObjectKey, Service};

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Who claims an address as external.
    claims: HashMap<IpAddr, Vec<ObjectKey>>,
    /// How many Services have an address as their clusterIP, once anybody has claimed one.
    cluster_ips: Option<HashMap<IpAddr, u32>>,
}

impl Index {
    /// Takes up a Service beside `others`.
    pub(super) fn add(&mut self, service: &Service, others: &HashMap<ObjectKey, Service>) {
        for addr in claimed(service) {
            self.claims.entry(addr).or_default().push(service.key.clone());
            self.cluster_ips.get_or_insert_with(|| count(others.values()));
        }
        if let Some(counts) = &mut self.cluster_ips {
            for addr in service.cluster_ips.all() {
                *counts.entry(addr).or_default() += 1;
            }
        }
    }

    /// Forgets a Service.
    pub(super) fn remove(&mut self, service: &Service) {
        for addr in claimed(service) {
            if let Some(keys) = self.claims.get_mut(&addr) {
                keys.retain(|key| *key != service.key);
                if keys.is_empty() {
                    self.claims.remove(&addr);
                }
            }
        }
        let Some(counts) = &mut self.cluster_ips else { return };
        for addr in service.cluster_ips.all() {
            if let Some(count) = counts.get_mut(&addr) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&addr);
                }
            }
        }
    }

    /// The other Services that claim a clusterIP of `service`.
    pub(super) fn rivals(&self, service: &Service) -> impl Iterator<Item = ObjectKey> {
        let claims = service.cluster_ips.all().filter_map(|addr| self.claims.get(&addr));
        claims.flatten().filter(|key| **key != service.key).cloned()
    }

    /// How many Services have `addr` as their clusterIP; 0 if nobody claims any address.
    pub(super) fn cluster_ips_at(&self, addr: IpAddr) -> u32 {
        let counts = self.cluster_ips.as_ref();
        counts.and_then(|counts| counts.get(&addr)).copied().unwrap_or(0)
    }
}

/// The addresses that a Service claims beside its clusterIPs; once each.
fn claimed(service: &Service) -> impl Iterator<Item = IpAddr> {
    let external = service.external.as_deref();
    let ips = external.map_or(&[][..], |external| &external.ips);
    let balanced = external.map_or(&[][..], |external| &external.load_balancer_ips);
    ips.iter().chain(balanced.iter().filter(|addr| !ips.contains(addr))).copied()
}

fn count<'a>(services: impl Iterator<Item = &'a Service>) -> HashMap<IpAddr, u32> {
    let mut counts = HashMap::new();
    for addr in services.flat_map(|service| service.cluster_ips.all()) {
        *counts.entry(addr).or_default() += 1;
    }
    counts
}
