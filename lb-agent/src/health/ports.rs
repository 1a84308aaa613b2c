//! What is told at which health check node port (contract H-8 to H-15), for the loop that decides it
//! and the thread that listens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use serde::Serialize;
use tokio::sync::Notify;

use crate::model::ObjectKey;
use crate::policy::health::{Place, Served};

/// What the loop wants, and what came of it.
#[derive(Debug, Default)]
pub struct Ports {
    state: Mutex<State>,
    wanted: Notify,
    outcome: Notify,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeSet<Place>,
    served: BTreeMap<u16, Served>,
    failing: BTreeMap<u16, String>,
    /// Goes up whenever other sockets are to listen.
    version: u64,
}

/// The sockets that are to listen: each of these ports at each of these places.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) ports: BTreeSet<u16>,
    pub(super) places: BTreeSet<Place>,
    /// Two of the same are the same.
    pub(super) version: u64,
}

/// A Service whose port cannot be had, at one of its places at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The Service.
    pub service: ObjectKey,
    /// Its port.
    pub port: u16,
    /// Where, and why not.
    pub error: String,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) weight: usize,
    /// JSON (H-11).
    pub(super) body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Ports {
    /// Where to listen from now on.
    pub fn listen_at(&self, places: BTreeSet<Place>) {
        let mut state = self.state();
        if state.places != places {
            state.places = places;
            state.version += 1;
            self.wanted.notify_one();
        }
    }

    /// What is told at a port from now on; nothing, and its sockets are closed (H-13).
    pub fn set(&self, port: u16, served: Option<Served>) {
        let mut state = self.state();
        let is_new = served.is_some();
        let was_there = match served {
            Some(served) => state.served.insert(port, served).is_some(),
            None => state.served.remove(&port).is_some(),
        };
        if is_new != was_there {
            state.version += 1;
            self.wanted.notify_one();
        }
    }

    /// A sync is complete: what could not be had is tried again (H-12).
    pub fn try_again(&self) {
        if !self.state().failing.is_empty() {
            self.wanted.notify_one();
        }
    }

    /// What cannot be had at the moment, by port.
    pub fn failures(&self) -> Vec<Failure> {
        let state = self.state();
        let failing = state.failing.iter().filter_map(|(port, error)| {
            let service = state.served.get(port)?.service.clone();
            Some(Failure { service, port: *port, error: error.clone() })
        });
        failing.collect()
    }

    /// What is told at a port.
    pub fn at(&self, port: u16) -> Option<Served> {
        self.state().served.get(&port).cloned()
    }

    /// Ready when [`Self::failures`] has become another since this was last waited for.
    pub async fn outcome(&self) {
        self.outcome.notified().await;
    }

    /// Ready when something else is wanted, or the same once more.
    pub(super) async fn asked(&self) {
        self.wanted.notified().await;
    }

    /// What is to listen, if that is not what it was in this version.
    pub(super) fn wanted(&self, but: Option<u64>) -> Option<Wanted> {
        let state = self.state();
        (but != Some(state.version)).then(|| Wanted {
            ports: state.served.keys().copied().collect(),
            places: state.places.clone(),
            version: state.version,
        })
    }

    /// What cannot be had, by port.
    pub(super) fn tell(&self, failing: BTreeMap<u16, String>) {
        let mut state = self.state();
        if state.failing != failing {
            state.failing = failing;
            self.outcome.notify_one();
        }
    }

    /// What is answered at a port (H-9); nothing while it is being closed.
    pub(super) fn told(&self, port: u16, proxy_is_healthy: bool) -> Option<Told> {
        let Served { service, local_endpoints } = self.at(port)?;
        let is_healthy = local_endpoints != 0 && proxy_is_healthy;
        let body = Body {
            service: Name { namespace: &service.namespace, name: &service.name },
            local_endpoints,
            service_proxy_healthy: proxy_is_healthy,
        };
        Some(Told {
            status: if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            weight: local_endpoints,
            // Text, numbers and booleans always make JSON.
            body: serde_json::to_string(&body).unwrap_or_default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
