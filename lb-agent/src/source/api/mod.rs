//! The API server: Services, EndpointSlices, this Node and `ServiceCIDR`s, listed page by page and then
//! watched.
//!
//! Four reflectors run side by side and send into the same channel. What they receive is decoded
//! straight into the subset types of [`crate::convert`]; API objects are never kept, a list is never
//! in memory as a whole. Nothing is written but Events about Services ([`events`]).

mod backoff;
mod burst;
mod events;
#[cfg(test)]
mod live_tests;
mod reflect;
mod request;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::mpsc;

use self::reflect::Reflector;
use self::request::Resource;
use super::{Source, SourceError, SourceEvent, Warning};
use crate::convert::Converter;

/// The API server.
#[derive(Debug)]
pub struct ApiServer {
    kubeconfig: Option<PathBuf>,
    node_name: String,
    warnings: Option<mpsc::Receiver<Warning>>,
}

impl ApiServer {
    /// The API server that `kubeconfig` names, or the one of the cluster that this runs in.
    pub fn new(kubeconfig: Option<PathBuf>, node_name: impl Into<String>) -> Self {
        Self { kubeconfig, node_name: node_name.into(), warnings: None }
    }

    /// Writes what comes from here as Events of the Services it is about.
    #[must_use]
    pub fn with_warnings(self, warnings: mpsc::Receiver<Warning>) -> Self {
        Self { warnings: Some(warnings), ..self }
    }

    async fn config(&self) -> Result<Config, SourceError> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster().map_err(|source| SourceError::InCluster { source });
        };
        let unusable = |source| SourceError::Kubeconfig { path: path.clone(), source };
        let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
        let options = KubeConfigOptions::default();
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)
    }
}

impl Source for ApiServer {
    async fn run(
        self,
        converter: Converter,
        events: mpsc::Sender<SourceEvent>,
    ) -> Result<(), SourceError> {
        let mut config = self.config().await?;
        let agent = HeaderValue::from_static(concat!("millrace/", env!("CARGO_PKG_VERSION")));
        config.headers.push((USER_AGENT, agent));
        config.default_retry = false; // The reflectors have their own.
        tracing::info!(server = %config.cluster_url, "reading from the API server");
        let client = Client::try_from(config)
            .map_err(|source| SourceError::Client { source: Box::new(source) })?;
        if let Some(warnings) = self.warnings {
            // On its own: one that is never answered holds up nothing.
            tokio::spawn(events::write(client.clone(), self.node_name.clone(), warnings));
        }
        reflect_all(client, &self.node_name, converter, events).await;
        Ok(())
    }
}

/// Reflects everything until nobody listens any more.
async fn reflect_all(
    client: Client,
    node_name: &str,
    converter: Converter,
    events: mpsc::Sender<SourceEvent>,
) {
    let shared =
        Arc::new(Shared { converter: Mutex::new(converter), unlisted: AtomicUsize::new(2) });
    let reflector =
        |resource| Reflector::new(client.clone(), resource, shared.clone(), events.clone());
    tokio::join!(
        reflector(Resource::services()).run(),
        reflector(Resource::slices()).run(),
        reflector(Resource::node(node_name)).run(),
        reflector(Resource::service_cidrs()).run(),
    );
}

/// What the reflectors share.
struct Shared {
    converter: Mutex<Converter>,
    /// How many of Services and slices were not listed completely so far.
    unlisted: AtomicUsize,
}

impl Shared {
    /// Notes the first complete list of a kind, after it was sent; tells whether it was the last
    /// that was missing (contract L-3).
    fn listed(&self) -> bool {
        self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1
    }
}
