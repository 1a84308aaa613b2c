//! Is the proxy healthy, and how do load balancers and the kubelet learn it?
//!
//! A load balancer that probes `/healthz` (contract H-5) takes a node out when this answers 503, and
//! lets the connections that it has go on. `/livez` does not look at the node, so that an agent on a
//! node that is drained is not restarted: it is the one for a `livenessProbe`.
//!
//! - [`state`] decides; it is a pure function of what was told and of the time.
//! - [`Health`] is told by the loop, and asked by the server.
//! - [`server`] answers HTTP/1.1 on a thread of its own, so that a loop that hangs is told as such.
//! - [`Ports`] has the ports of Services that tell a load balancer how many endpoints are here.
//!
//! An API server that is away changes nothing here (H-6): only what is queued and not in force does.

mod clients;
mod listeners;
mod ports;
#[cfg(test)]
mod ports_tests;
pub mod server;
mod state;
#[cfg(test)]
mod tests;

pub use ports::{Failure, Ports};
pub use state::{Answer, Endpoint, Now, State, is_eligible};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Family;

/// What the loop tells and the server asks; all clones are the same.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    counts: [Count; 2],
    ports: Ports,
}

#[derive(Debug, Default)]
struct Count {
    healthy: AtomicU64,
    unhealthy: AtomicU64,
}

/// Answers of an endpoint so far: `proxy_healthz_total` and `proxy_livez_total` (H-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With code 200.
    pub healthy: u64,
    /// With code 503.
    pub unhealthy: u64,
}

impl Default for Health {
    fn default() -> Self {
        let shared = Shared {
            state: Mutex::new(State::new(Now::read())),
            counts: [(); 2].map(|()| Count::default()),
            ports: Ports::default(),
        };
        Self(Arc::new(shared))
    }
}

impl Health {
    /// Something of a family is to be programmed.
    pub fn queued(&self, family: Family) {
        self.state().queued(family, Now::read());
    }

    /// All that was queued of a family is in force.
    pub fn completed(&self, family: Family) {
        self.state().completed(family, Now::read());
    }

    /// Whether load balancers may send to this node, as [`is_eligible`] tells.
    pub fn node_is_eligible(&self, eligible: bool) {
        self.state().node_is_eligible(eligible);
    }

    /// What is answered now; counted.
    pub fn answer(&self, endpoint: Endpoint) -> Answer {
        let answer = self.state().answer(endpoint, Now::read());
        let count = self.count(endpoint);
        let count = if answer.healthy { &count.healthy } else { &count.unhealthy };
        count.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// The ports of Services.
    pub fn ports(&self) -> &Ports {
        &self.0.ports
    }

    /// What is answered at the port of a Service now; nothing while it is being closed.
    fn told_at(&self, port: u16) -> Option<ports::Told> {
        let proxy_is_healthy = self.state().proxy_is_healthy(Now::read());
        self.0.ports.told(port, proxy_is_healthy)
    }

    /// How often an endpoint has answered.
    pub fn counts(&self, endpoint: Endpoint) -> Counts {
        let count = self.count(endpoint);
        Counts {
            healthy: count.healthy.load(Ordering::Relaxed),
            unhealthy: count.unhealthy.load(Ordering::Relaxed),
        }
    }

    /// What is answered after so long, if nothing is told meanwhile.
    #[cfg(test)]
    pub(crate) fn is_healthy_in(&self, endpoint: Endpoint, time: std::time::Duration) -> bool {
        let Now { instant, wall } = Now::read();
        let then = Now { instant: instant + time, wall: wall + time };
        self.state().answer(endpoint, then).healthy
    }

    fn count(&self, endpoint: Endpoint) -> &Count {
        let [healthz, livez] = &self.0.counts;
        match endpoint {
            Endpoint::Healthz => healthz,
            Endpoint::Livez => livez,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
