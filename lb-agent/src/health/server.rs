//! The HTTP server of [`Health`] (contract H-1, H-7), and the thread that answers all health checks.
//!
//! kube-proxy also emits an Event `FailedToStartProxierHealthcheck` when it cannot listen. That would
//! reach the API server from every node of a cluster at once; the log line stands in for it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode};
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::clients::{Clients, LIMITS};
use super::{Endpoint, Health, listeners};
use crate::policy::health::Place;

/// The port where load balancers look.
pub const PORT: u16 = 10_256;

/// Where to listen is tried again after this time (H-7).
const RETRY: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 << 10;

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error(
        "cannot listen on {address} for health checks: {source}; stop what uses it, or choose \
         another address with --healthz-bind-address"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread, or no event loop on it.
    #[error("cannot start the server of health checks: {0}")]
    Start(io::Error),
}

/// Serves on a thread of its own until the process ends, in the network namespace of the caller: the
/// ports of Services, and `address` if there is one.
///
/// An address that cannot be had is an error if `hard_fail` says so; else it is logged, and tried
/// again until it can be had.
pub fn start(address: Option<SocketAddr>, hard_fail: bool, health: Health) -> Result<(), Error> {
    let first = address.filter(|_| hard_fail).map(listen).transpose()?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let run = move || {
        runtime.block_on(async {
            let clients = Clients::new(LIMITS);
            tokio::spawn(listeners::keep(health.clone(), clients.clone()));
            let Some(address) = address else { return std::future::pending().await };
            let listener = match first {
                Some(listener) => listener,
                None => listen_patiently(address).await,
            };
            let Err(error) = serve(listener, health, &clients).await;
            tracing::error!(%error, "nobody answers health checks");
        });
    };
    let thread = thread::Builder::new().name("health".into()).stack_size(STACK_BYTES);
    thread.spawn(run).map(drop).map_err(Error::Start)
}

/// Listens on an address. An unspecified one means both families, as it does for kube-proxy.
pub(super) fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let is_any = address.ip().is_unspecified();
    let place = if is_any { Place::Everywhere } else { Place::At(address.ip()) };
    listeners::listen(place, address.port()).map_err(|source| Error::Bind { address, source })
}

async fn listen_patiently(address: SocketAddr) -> std::net::TcpListener {
    let mut told: Option<String> = None;
    loop {
        match listen(address) {
            Ok(listener) => {
                if told.is_some() {
                    tracing::info!(%address, "health checks are answered now");
                }
                return listener;
            }
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(error, "will be tried again every {} s", RETRY.as_secs());
                    told = Some(error);
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Serves for ever.
pub(super) async fn serve(
    listener: std::net::TcpListener,
    health: Health,
    clients: &Clients,
) -> io::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(clients.serve(listener, move |method, path| answer(method, path, &health)).await)
}

fn answer(method: &Method, path: &str, health: &Health) -> Response<String> {
    let plain = |status, text: &str| {
        respond(status, HeaderValue::from_static("text/plain; charset=utf-8"), text.to_owned())
    };
    let Some(endpoint) = Endpoint::at(path) else {
        return plain(StatusCode::NOT_FOUND, "there are /healthz and /livez\n");
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "ask with GET or HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let answer = health.answer(endpoint);
    let status = if answer.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond(status, HeaderValue::from_static("application/json"), answer.body)
}

pub(super) fn respond(
    status: StatusCode,
    content_type: HeaderValue,
    body: String,
) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
