//! What is answered, as a pure function of what was told and of the time (contract H-2 to H-4).

use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{Family, Node};

/// An update that waits so long makes the proxy unhealthy (H-3): twice kube-proxy's `syncPeriod`.
const LATE: Duration = Duration::from_mins(1);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// May load balancers send to this node?
    Healthz,
    /// Does the proxy do its work?
    Livez,
}

impl Endpoint {
    /// The endpoint at a path.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/livez" => Some(Self::Livez),
            _ => None,
        }
    }
}

/// A moment, on the clock that only goes forward and on the one that people read.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// For people.
    pub wall: SystemTime,
}

impl Now {
    /// This moment.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// What was told so far.
#[derive(Clone, Debug)]
pub struct State {
    v4: Updates,
    v6: Updates,
    node_is_eligible: bool,
}

#[derive(Clone, Copy, Debug)]
struct Updates {
    /// When the oldest update that is not in force was queued.
    waiting_since: Option<Instant>,
    /// When everything was in force last.
    completed: SystemTime,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Code 200; else 503 (H-1).
    pub healthy: bool,
    /// JSON (H-2).
    pub body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Status,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4")]
    v4: FamilyStatus,
    #[serde(rename = "IPv6")]
    v6: FamilyStatus,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

impl State {
    /// Just started: healthy (H-3), on a node that nothing is known of (H-4).
    pub fn new(now: Now) -> Self {
        let updates = Updates { waiting_since: None, completed: now.wall };
        Self { v4: updates, v6: updates, node_is_eligible: false }
    }

    /// Something of a family is to be programmed.
    pub fn queued(&mut self, family: Family, now: Now) {
        self.updates(family).waiting_since.get_or_insert(now.instant);
    }

    /// All that was queued of a family is in force.
    pub fn completed(&mut self, family: Family, now: Now) {
        *self.updates(family) = Updates { waiting_since: None, completed: now.wall };
    }

    /// Whether load balancers may send to this node, as [`is_eligible`] tells.
    pub fn node_is_eligible(&mut self, eligible: bool) {
        self.node_is_eligible = eligible;
    }

    /// Whether the proxy does its work (H-3), whatever the node is about to do (H-14).
    pub fn proxy_is_healthy(&self, now: Now) -> bool {
        self.v4.is_healthy(now) && self.v6.is_healthy(now)
    }

    /// What is answered at that moment.
    pub fn answer(&self, endpoint: Endpoint, now: Now) -> Answer {
        let (v4, v6) = (self.v4.is_healthy(now), self.v6.is_healthy(now));
        let node_eligible = (endpoint == Endpoint::Healthz).then_some(self.node_is_eligible);
        let proxy_healthy = self.proxy_is_healthy(now);
        let healthy = proxy_healthy && node_eligible != Some(false);
        // Readers take an old time for a proxy that hangs, so that idleness must not show one.
        let shown = |healthy: bool, completed| rfc_3339(if healthy { now.wall } else { completed });
        let family = |healthy, updates: &Updates| FamilyStatus {
            last_updated: shown(healthy, updates.completed),
            healthy,
        };
        let body = Body {
            last_updated: shown(healthy, self.v4.completed.max(self.v6.completed)),
            current_time: rfc_3339(now.wall),
            node_eligible,
            healthy: proxy_healthy,
            status: Status { v4: family(v4, &self.v4), v6: family(v6, &self.v6) },
        };
        // Text and booleans always make JSON.
        let body = serde_json::to_string(&body).unwrap_or_default();
        Answer { healthy, body }
    }

    fn updates(&mut self, family: Family) -> &mut Updates {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Updates {
    fn is_healthy(&self, now: Now) -> bool {
        self.waiting_since.is_none_or(|since| now.instant.saturating_duration_since(since) < LATE)
    }
}

/// Whether load balancers may send to the node (H-4): known, not being deleted, and not about to be
/// removed by the cluster's autoscaler.
pub fn is_eligible(node: Option<&Node>) -> bool {
    node.is_some_and(|node| !node.deleting && !node.removal_planned)
}

fn rfc_3339(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}
