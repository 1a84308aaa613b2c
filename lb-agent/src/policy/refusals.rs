//! What do Services claim that is not served, and has that been told?

use std::collections::BTreeMap;

use super::endpoints;
use super::frontends::{self, Guard};
use super::ranges;
use crate::model::{Family, ObjectKey, Service, Store};

/// Something that a Service claims and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The field that claims it.
    pub field: String,
    /// What, and why not.
    pub problem: String,
}

/// What is refused at the moment, so that each refusal is told once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    told: BTreeMap<ObjectKey, Vec<Refusal>>,
}

impl Refusals {
    /// Looks at a Service again, or for the first time. Returns the refusals that are new.
    pub fn update(&mut self, store: &Store, key: &ObjectKey) -> Vec<Refusal> {
        let now = refused(store, key);
        let before = if now.is_empty() {
            self.told.remove(key)
        } else {
            self.told.insert(key.clone(), now.clone())
        };
        let before = before.unwrap_or_default();
        now.into_iter().filter(|refusal| !before.contains(refusal)).collect()
    }

    /// How much is refused.
    pub fn len(&self) -> usize {
        self.told.values().map(Vec::len).sum()
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

/// What a Service claims and does not get, sorted.
fn refused(store: &Store, key: &ObjectKey) -> Vec<Refusal> {
    let Some(service) = store.service(key) else { return Vec::new() };
    let mut found: Vec<Refusal> = too_many_endpoints(store, service).into_iter().collect();
    if frontends::claims_anything(service) {
        let guard = Guard::new(store, service);
        for family in service.cluster_ips.all().map(Family::of) {
            ranges::of(service, family, guard.node(), &mut |refusal| found.push(refusal));
            for port in &service.ports {
                frontends::of(service, port, family, &guard, &mut |refusal| found.push(refusal));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn too_many_endpoints(store: &Store, service: &Service) -> Option<Refusal> {
    let most = endpoints::most(service);
    let of_family = |family| {
        let slices = store.slices_of(&service.key).filter(move |slice| slice.family() == family);
        slices.map(|slice| slice.endpoints.len()).sum::<usize>()
    };
    let listed = service.cluster_ips.all().map(|addr| of_family(Family::of(addr))).max()?;
    (listed > most).then(|| Refusal {
        field: "spec.ports".to_owned(),
        problem: format!(
            "so many of them have room for {most} endpoints each, and slices list {listed}: split \
             the Service"
        ),
    })
}
