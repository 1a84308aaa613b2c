//! Keeps the listener equal to one kind of objects on the API server: list, watch, and again.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use kube::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use super::backoff::Backoff;
use super::burst::{BATCH, Batch};
use super::request::{Event, Lines, Page, RequestError, Resource, Status, Versioned};
use crate::convert::{self, Converter, Findings, Kind, Object, Origin, Report, Skipped};
use crate::model::{Change, ObjectKey};
use crate::source::SourceEvent;

/// A watch that ends sooner is a failure.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// When an API server is asked again for what it does not have, or does not show to us.
const ABSENT_AGAIN: Duration = Duration::from_mins(5);

const BAD_REQUEST: u16 = 400;
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const GONE: u16 = 410;

/// Why a step ended.
pub(super) enum Stop {
    /// Nobody listens.
    Unheard,
    /// The API server does not know the version any more, or the list changed too much while it was
    /// read: list again.
    Expired,
    /// Something failed: wait and try again.
    Failed(RequestError),
}

impl From<RequestError> for Stop {
    fn from(error: RequestError) -> Self {
        if error.code() == Some(GONE) { Self::Expired } else { Self::Failed(error) }
    }
}

impl From<mpsc::error::SendError<SourceEvent>> for Stop {
    fn from(_: mpsc::error::SendError<SourceEvent>) -> Self {
        Self::Unheard
    }
}

impl From<serde_json::Error> for Stop {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(error.into())
    }
}

pub(super) struct Reflector {
    client: Client,
    resource: Resource,
    shared: Arc<Shared>,
    events: mpsc::Sender<SourceEvent>,
    backoff: Backoff,
    /// The version to watch from; none: list first.
    version: Option<String>,
    was_listed: bool,
    is_failing: bool,
}

impl Reflector {
    pub(super) fn new(
        client: Client,
        resource: Resource,
        shared: Arc<Shared>,
        events: mpsc::Sender<SourceEvent>,
    ) -> Self {
        let (backoff, version) = (Backoff::default(), None);
        let (was_listed, is_failing) = (false, false);
        Self { client, resource, shared, events, backoff, version, was_listed, is_failing }
    }

    /// Reflects until nobody listens any more.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = self.reflect() => {}
            () = events.closed() => {}
        }
    }

    async fn reflect(&mut self) {
        loop {
            let stopped = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            match stopped {
                Ok(()) => continue,
                Err(Stop::Unheard) => return,
                Err(Stop::Expired) => {
                    tracing::debug!(resource = self.resource.plural, "listing again");
                    self.version = None;
                }
                Err(Stop::Failed(error)) if self.is_absent(&error) => {
                    self.absent(&error);
                    sleep(ABSENT_AGAIN).await;
                    continue;
                }
                Err(Stop::Failed(error)) => self.failed(&error),
            }
            // Expired ones wait too: a server that forgets everything at once must not be hurried.
            sleep(self.backoff.next()).await;
        }
    }

    async fn list(&mut self) -> Result<(), Stop> {
        let mut list = List::default();
        let mut token: Option<String> = None;
        let version = loop {
            let text = match self.resource.page(&self.client, token.as_deref()).await {
                Err(error) if error.code() == Some(BAD_REQUEST) && self.may_ask_for_more() => {
                    tracing::info!(
                        resource = self.resource.plural, %error,
                        "the API server refuses the field selector; selecting here instead"
                    );
                    self.resource.fields = None;
                    continue;
                }
                answer => answer?,
            };
            let page: Page<'_> = serde_json::from_str(&text)?;
            self.convert_page(&page, &mut list);
            let next = page.metadata.r#continue.as_str();
            if next.is_empty() {
                break page.metadata.resource_version.as_str().to_owned();
            }
            token = Some(next.to_owned());
        };
        self.deliver(list).await?;
        self.answered();
        self.backoff.reset();
        self.version = Some(version);
        if !self.was_listed {
            self.was_listed = true;
            // Nobody waits for the others (L-3).
            if self.resource.kind.is_namespaced() && self.shared.listed() {
                self.events.send(SourceEvent::Synced).await?;
            }
        }
        Ok(())
    }

    /// Whether everything can be asked for where a part is refused. Not for Nodes: one of thousands
    /// is of interest.
    fn may_ask_for_more(&self) -> bool {
        self.resource.kind == Kind::Service && self.resource.fields.is_some()
    }

    fn convert_page(&self, page: &Page<'_>, list: &mut List) {
        let mut converter = self.shared.converter.lock().unwrap_or_else(PoisonError::into_inner);
        for item in page.items.iter().flatten() {
            let read = convert_one(
                &mut converter,
                self.resource.kind,
                item.get().as_bytes(),
                &mut list.reports,
            );
            match read {
                Read::Object(Object::Service(service)) => list.services.push(service),
                Read::Object(Object::Slice(slice)) => list.slices.push(slice),
                Read::Object(Object::Node(node)) => list.node = Some(node),
                Read::Object(Object::ServiceCidr(cidr)) => list.service_cidrs.push(cidr),
                Read::Undecodable(key) => list.keep.extend(key),
                Read::Object(Object::Ignored(..)) => {}
            }
        }
    }

    async fn deliver(&self, list: List) -> Result<(), Stop> {
        let List { services, slices, node, service_cidrs: cidrs, keep, reports } = list;
        if !reports.is_empty() {
            self.events.send(SourceEvent::Reports(reports)).await?;
        }
        let change = match self.resource.kind {
            Kind::Service => Change::ReplaceServices { services, keep },
            Kind::Slice => Change::ReplaceSlices { slices, keep },
            Kind::Node => match node {
                Some(node) => Change::SetNode(node),
                // One that could not be read is still there.
                None if !keep.is_empty() => return Ok(()),
                None => Change::DropNode,
            },
            Kind::ServiceCidr => Change::ReplaceServiceCidrs { cidrs, keep },
        };
        Ok(self.events.send(SourceEvent::Batch(vec![change])).await?)
    }

    async fn watch(&mut self, version: String) -> Result<(), Stop> {
        let lines = self.resource.watch(&self.client, &version).await?;
        self.answered();
        self.follow(lines).await
    }

    /// Hands on what a watch says, until it ends.
    pub(super) async fn follow(&mut self, mut lines: Lines) -> Result<(), Stop> {
        let began = Instant::now();
        let mut received = false;
        while let Some(line) = lines.next().await? {
            tracing::debug!(resource = self.resource.plural, "reading");
            let mut batch = Batch::default();
            let mut outcome = self.take(line, &mut batch);
            // What has arrived already goes together, and what is about to where it matters.
            while outcome.is_ok() && batch.changes.len() < BATCH {
                let next = match batch.wait_until {
                    Some(until) => timeout_at(until, lines.next()).await.ok(),
                    None => lines.next().now_or_never(),
                };
                match next {
                    Some(Ok(Some(line))) => outcome = self.take(line, &mut batch),
                    Some(Ok(None)) | None => break,
                    Some(Err(error)) => outcome = Err(error.into()),
                }
            }
            // What came before a failure is true all the same.
            let Batch { changes, reports, version, .. } = batch;
            if !reports.is_empty() {
                self.events.send(SourceEvent::Reports(reports)).await?;
            }
            if version.is_some() {
                received = true;
                self.backoff.reset();
                self.version = version;
                let event = if changes.is_empty() {
                    SourceEvent::Alive
                } else {
                    SourceEvent::Batch(changes)
                };
                self.events.send(event).await?;
            }
            outcome?;
        }
        if began.elapsed() >= SHORT_WATCH {
            self.backoff.reset();
        } else if !received {
            return Err(Stop::Failed(RequestError::ShortWatch));
        }
        Ok(())
    }

    /// Adds what one event says to `batch`.
    fn take(&self, line: &[u8], batch: &mut Batch) -> Result<(), Stop> {
        let event: Event<'_> = serde_json::from_slice(line)?;
        let object = event.object.get().as_bytes();
        let kind = event.kind.as_str();
        if kind == "ERROR" {
            let status: Status<'_> = serde_json::from_slice(object)?;
            let message = status.message.as_str().to_owned();
            return Err(RequestError::Status { code: status.code, message }.into());
        }
        let version: Versioned<'_> = serde_json::from_slice(object)?;
        batch.version = Some(version.metadata.resource_version.as_str().to_owned());
        let mut converter = self.shared.converter.lock().unwrap_or_else(PoisonError::into_inner);
        let of = self.resource.kind;
        let change = match kind {
            "ADDED" | "MODIFIED" => {
                match convert_one(&mut converter, of, object, &mut batch.reports) {
                    Read::Object(Object::Service(service)) => Some(Change::SetService(service)),
                    Read::Object(Object::Slice(slice)) => Some(Change::SetSlice(slice)),
                    Read::Object(Object::Node(node)) => Some(Change::SetNode(node)),
                    Read::Object(Object::ServiceCidr(cidr)) => Some(Change::SetServiceCidr(cidr)),
                    // Another node's says nothing of this one's; what is held of one that cannot be
                    // read stays.
                    Read::Object(Object::Ignored(Kind::Node, _)) | Read::Undecodable(_) => None,
                    Read::Object(Object::Ignored(kind, key)) => Some(drop_change(kind, key)),
                }
            }
            "DELETED" => identity(&mut converter, of, object)
                .filter(|key| of != Kind::Node || converter.is_this_node(&key.name))
                .map(|key| drop_change(of, key)),
            _ => None, // BOOKMARK, and what may come one day.
        };
        if let Some(change) = change {
            batch.push(change, kind == "ADDED");
        }
        Ok(())
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(resource = self.resource.plural, "the API server answers again");
        }
    }

    /// Whether the API server does not have a kind that need not be there, or does not show it to us.
    fn is_absent(&self, error: &RequestError) -> bool {
        let refused = matches!(error.code(), Some(FORBIDDEN | NOT_FOUND));
        self.resource.is_optional && refused
    }

    fn absent(&mut self, error: &RequestError) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::info!(
                resource = self.resource.plural, %error,
                "not there, or not shown: done without; if the API server has it, grant list and \
                 watch, as ClusterRole system:node-proxier does"
            );
        }
    }

    fn failed(&mut self, error: &RequestError) {
        if std::mem::replace(&mut self.is_failing, true) {
            tracing::debug!(resource = self.resource.plural, %error, "still no answer");
            return;
        }
        let advice = match error.code() {
            Some(401) => "; check the credentials",
            Some(403) => "; grant list and watch, as ClusterRole system:node-proxier does",
            _ => "",
        };
        tracing::warn!(
            resource = self.resource.plural, %error,
            "cannot read from the API server{advice}; the last state stands, trying again"
        );
    }
}

/// A complete list, converted.
#[derive(Default)]
struct List {
    services: Vec<crate::model::Service>,
    slices: Vec<crate::model::Slice>,
    node: Option<crate::model::Node>,
    service_cidrs: Vec<crate::model::ServiceCidr>,
    keep: Vec<ObjectKey>,
    reports: Vec<Report>,
}

enum Read {
    Object(Object),
    /// It cannot be decoded; who it is, if that can be told.
    Undecodable(Option<ObjectKey>),
}

fn convert_one(
    converter: &mut Converter,
    kind: Kind,
    bytes: &[u8],
    reports: &mut Vec<Report>,
) -> Read {
    let mut findings = Findings::default();
    match convert::json(bytes) {
        Ok(raw) => {
            let object = converter.object(kind, &raw, &mut findings);
            if !findings.is_empty() {
                let skipped = match &object {
                    Some(Object::Ignored(..)) | None => Skipped::Object,
                    Some(_) => Skipped::Part,
                };
                let name = (kind.name(), &*raw.metadata.namespace, &*raw.metadata.name);
                reports.extend(findings.report(&Origin::Api, name, skipped));
            }
            object.map_or(Read::Undecodable(None), Read::Object)
        }
        Err(error) => {
            findings.add(&error.field, error.problem);
            let who = convert::json_identity(bytes).unwrap_or_default();
            let name = (kind.name(), &*who.metadata.namespace, &*who.metadata.name);
            reports.extend(findings.report(&Origin::Api, name, Skipped::Object));
            Read::Undecodable(identity(converter, kind, bytes))
        }
    }
}

/// The key of an object, whatever else is wrong with it.
fn identity(converter: &mut Converter, kind: Kind, bytes: &[u8]) -> Option<ObjectKey> {
    let who = convert::json_identity(bytes)?;
    converter.key(kind, &who.metadata.namespace, &who.metadata.name, &mut Findings::default())
}

fn drop_change(kind: Kind, key: ObjectKey) -> Change {
    match kind {
        Kind::Service => Change::DropService(key),
        Kind::Slice => Change::DropSlice(key),
        Kind::Node => Change::DropNode,
        Kind::ServiceCidr => Change::DropServiceCidr(key.name),
    }
}
