//! What is asked of the API server, and how are its answers read?

use std::pin::Pin;
use std::time::Duration;

use futures_util::io::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::convert::Kind;
use crate::convert::raw::Text;

/// Not another proxy's, and not meant for none (contract S-1, S-2, E-5).
const LABELS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
/// Objects in a page of a list. The API bounds pages by nothing else: ten thousand endpoints in slices of a
/// hundred, as their controller makes them, are 4 MB of text, and a page of nothing but full slices 18 MB,
/// of which one is held at a time.
const PAGE: u32 = 500;
/// A page that takes longer is asked for again.
const PAGE_TIMEOUT: Duration = Duration::from_mins(1);
/// The server ends a watch after this, so that a balancer in between may move it.
const WATCH_S: u32 = 290;
/// The server sends a bookmark every minute; a connection without any is dead.
const WATCH_SILENCE: Duration = Duration::from_secs(90);
/// The longest event that is read. The API server refuses objects far below that.
const LONGEST_EVENT: usize = 64 << 20;

/// A kind of objects on the API server, as far as it is of interest.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// As in URLs and RBAC rules.
    pub(super) plural: &'static str,
    path: &'static str,
    labels: Option<&'static str>,
    pub(super) fields: Option<String>,
    /// An API server may lack it, or not show it to us.
    pub(super) is_optional: bool,
}

impl Resource {
    pub(super) fn services() -> Self {
        Self {
            kind: Kind::Service,
            plural: "services",
            path: "/api/v1/services",
            labels: Some(LABELS),
            fields: Some("spec.clusterIP!=None".to_owned()),
            is_optional: false,
        }
    }

    pub(super) fn slices() -> Self {
        Self {
            kind: Kind::Slice,
            plural: "endpointslices",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            labels: Some(LABELS),
            fields: None,
            is_optional: false,
        }
    }

    /// They came with Kubernetes 1.33.
    pub(super) fn service_cidrs() -> Self {
        Self {
            kind: Kind::ServiceCidr,
            plural: "servicecidrs",
            path: "/apis/networking.k8s.io/v1/servicecidrs",
            labels: None,
            fields: None,
            is_optional: true,
        }
    }

    pub(super) fn node(name: &str) -> Self {
        Self {
            kind: Kind::Node,
            plural: "nodes",
            path: "/api/v1/nodes",
            labels: None,
            fields: Some(format!("metadata.name={name}")),
            is_optional: false,
        }
    }

    /// The text of the page of the list behind `token`.
    pub(super) async fn page(
        &self,
        client: &Client,
        token: Option<&str>,
    ) -> Result<String, RequestError> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = self.labels.map(str::to_owned);
        params.field_selector.clone_from(&self.fields);
        params.continue_token = token.map(str::to_owned);
        let request = Request::new(self.path).list(&params).map_err(kube::Error::BuildRequest)?;
        timeout(PAGE_TIMEOUT, client.request_text(request))
            .await
            .map_err(|_| RequestError::Silent { after: PAGE_TIMEOUT })?
            .map_err(RequestError::Request)
    }

    /// The events after `version`.
    pub(super) async fn watch(
        &self,
        client: &Client,
        version: &str,
    ) -> Result<Lines, RequestError> {
        let params = WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            send_initial_events: false,
        };
        let request =
            Request::new(self.path).watch(&params, version).map_err(kube::Error::BuildRequest)?;
        let stream = timeout(PAGE_TIMEOUT, client.request_stream(request))
            .await
            .map_err(|_| RequestError::Silent { after: PAGE_TIMEOUT })??;
        Ok(Lines::new(stream))
    }
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata<'a>,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// Its `metadata`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub(super) struct PageMetadata<'a> {
    pub(super) resource_version: Text<'a>,
    pub(super) r#continue: Text<'a>,
}

/// An event of a watch.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Text<'a>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// The object of an `ERROR` event.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Status<'a> {
    pub(super) code: u16,
    pub(super) message: Text<'a>,
}

/// The object of a `BOOKMARK` event, or what it shares with any other.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Versioned<'a> {
    pub(super) metadata: PageMetadata<'a>,
}

/// The lines of a watch.
pub(super) struct Lines {
    stream: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    complete: bool,
}

impl Lines {
    pub(super) fn new(stream: impl AsyncBufRead + Send + 'static) -> Self {
        Self { stream: Box::pin(stream), line: Vec::new(), complete: false }
    }

    /// The next line; nothing when the server ended the watch. What was read stays if the future is
    /// dropped.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, RequestError> {
        if std::mem::take(&mut self.complete) {
            self.line.clear();
            self.line.shrink_to(1 << 20);
        }
        loop {
            let chunk = timeout(WATCH_SILENCE, self.stream.fill_buf())
                .await
                .map_err(|_| RequestError::Silent { after: WATCH_SILENCE })?
                .map_err(RequestError::Stream)?;
            if chunk.is_empty() {
                // A line that was cut off was not an event.
                return Ok(None);
            }
            let end = chunk.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let used = end.unwrap_or(chunk.len());
            self.line.extend_from_slice(chunk.get(..used).unwrap_or_default());
            self.stream.consume_unpin(used);
            if end.is_some() {
                self.complete = true;
                return Ok(Some(&self.line));
            }
            if self.line.len() > LONGEST_EVENT {
                return Err(RequestError::TooLong);
            }
        }
    }
}

/// Why the API server did not help.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{}", chain(.0))]
    Request(#[from] kube::Error),
    #[error("the connection broke: {0}")]
    Stream(std::io::Error),
    #[error("nothing came for {} s", after.as_secs())]
    Silent { after: Duration },
    #[error("the watch ended at once")]
    ShortWatch,
    #[error("an event of more than {} MiB came", LONGEST_EVENT >> 20)]
    TooLong,
    #[error("the answer is not what an API server says: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("the API server said {code}: {message}")]
    Status { code: u16, message: String },
}

impl RequestError {
    /// The HTTP status that the API server gave as a reason.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Request(kube::Error::Api(status)) => Some(status.code),
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// An error with what is behind it, which says most.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
