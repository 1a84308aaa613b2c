//! Where does the state of the cluster come from?
//!
//! A [`Source`] sends [`SourceEvent`]s until nobody listens any more. Whoever listens applies them
//! to a [`crate::model::Store`] and programs nothing before [`SourceEvent::Synced`] or
//! [`SourceEvent::SyncedInPart`]: until then what is pinned stays in force (contract L-3, L-12). A source that loses its origin (an API server that
//! is away, a file that is broken) goes on trying and sends nothing: the last state stands (L-11).

mod api;
mod manifests;

pub use api::ApiServer;
pub use manifests::Manifests;

use std::future::Future;
use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::convert::{Converter, Report};
use crate::model::{Change, ObjectKey};

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Changes that belong together: apply all of them before planning.
    Batch(Vec<Change>),
    /// What is wrong with the input, told once for each time it is read.
    Reports(Vec<Report>),
    /// Everything that could be read at the start was delivered, but something is there of which
    /// nobody can tell which objects it holds: what was programmed before stays in force, whether it
    /// was delivered or not. Sent once at most, before [`SourceEvent::Synced`].
    SyncedInPart,
    /// Everything that exists at the start was delivered. Sent once.
    Synced,
    /// The origin answered, with nothing new.
    Alive,
}

/// Why a source cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The manifests are not there.
    #[error("cannot read manifests at {}: {source}; name a file or folder that exists", path.display())]
    Path {
        /// What was named.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The manifests cannot be watched.
    #[error(
        "cannot watch {} for changes: {source}; if a limit of inotify is reached, raise \
         fs.inotify.max_user_instances or fs.inotify.max_user_watches",
        path.display()
    )]
    Watch {
        /// The folder.
        path: PathBuf,
        /// Why it cannot be watched.
        source: notify::Error,
    },
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// There is no service account.
    #[error("not in a cluster ({source}); name a kubeconfig with --kubeconfig or use --manifests")]
    InCluster {
        /// What is missing.
        source: kube::config::InClusterError,
    },
    /// The configuration makes no client.
    #[error("cannot make a client for the API server: {source}")]
    Client {
        /// Why.
        source: Box<kube::Error>,
    },
    /// Reading failed in a way that it never should.
    #[error("the reader of Services broke down: {source}; this is a fault of Millrace, report it")]
    Reader {
        /// How it ended.
        source: tokio::task::JoinError,
    },
}

/// What is wrong with a Service on this node, for those who look at the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The Service.
    pub service: ObjectKey,
    /// A word for programs, as kube-proxy has it.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub note: String,
}

/// Where the state of the cluster comes from.
pub trait Source: Send + 'static {
    /// Sends events until nobody listens any more, which is the only way it ends well.
    fn run(
        self,
        converter: Converter,
        events: mpsc::Sender<SourceEvent>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// Events that wait at most: a source that is faster than its listener waits in turn, so that a
/// large cluster is never in memory twice.
const EVENTS_IN_FLIGHT: usize = 8;

/// Starts a source in the current runtime. What it reads goes through `converter`, which knows the
/// node.
pub fn start(
    source: impl Source,
    converter: Converter,
) -> (mpsc::Receiver<SourceEvent>, JoinHandle<Result<(), SourceError>>) {
    let (sender, receiver) = mpsc::channel(EVENTS_IN_FLIGHT);
    (receiver, tokio::spawn(source.run(converter, sender)))
}
