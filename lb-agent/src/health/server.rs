//! The HTTP server of [`Health`] (contract H-1, H-7).
//!
//! Its port is open to the network, so everything about it is bounded: connections, the time that
//! each may take, the size of a request's head. It speaks HTTP/1.1 only, and nothing that a client
//! sends comes back.
//!
//! kube-proxy also emits an Event `FailedToStartProxierHealthcheck` when it cannot listen. Events go
//! through the API server, which this agent only reads so far; the log line stands in for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{Endpoint, Health};

/// The port where load balancers look.
pub const PORT: u16 = 10_256;

/// Where to listen is tried again after this time (H-7).
const RETRY: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;
/// After a failed `accept`, as when file descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);
/// The least that the HTTP library can work with.
const HEAD_BYTES: usize = 8192;
const HEADERS: usize = 64;
const STACK_BYTES: usize = 256 << 10;

/// How much a client may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time, in all; the oldest ends for one more.
    pub(super) connections: usize,
    /// Time to send the head of a request, idleness before it included.
    pub(super) head: Duration,
    /// Time in all.
    pub(super) connection: Duration,
}

/// A prober asks once and leaves; these are for those that linger.
const LIMITS: Limits =
    Limits { connections: 64, head: Duration::from_secs(5), connection: Duration::from_secs(15) };

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

/// Serves on a thread of its own until the process ends, in the network namespace of the caller.
///
/// An address that cannot be had is an error if `hard_fail` says so; else it is logged, and tried
/// again until it can be had.
pub fn start(address: SocketAddr, hard_fail: bool, health: Health) -> Result<(), Error> {
    let first = if hard_fail { Some(listen(address)?) } else { None };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
    let run = move || {
        runtime.block_on(async {
            let listener = match first {
                Some(listener) => listener,
                None => listen_patiently(address).await,
            };
            let Err(error) = serve(listener, health, LIMITS).await;
            tracing::error!(%error, "nobody answers health checks");
        });
    };
    let thread = thread::Builder::new().name("health".into()).stack_size(STACK_BYTES);
    thread.spawn(run).map(drop).map_err(Error::Start)
}

/// Listens on an address. An unspecified one means both families, as it does for kube-proxy.
pub(super) fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
    let listener = if address.ip().is_unspecified() {
        match bind(both) {
            Err(error) if address.is_ipv4() && is_without_ipv6(&error) => bind(address),
            outcome => outcome,
        }
    } else {
        bind(address)
    };
    listener.map_err(|source| Error::Bind { address, source })
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Connections of an earlier run do not keep the address.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The kernel has no IPv6, or has it switched off.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
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
    limits: Limits,
) -> io::Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .max_header_size(HEAD_BYTES)
        .max_headers(HEADERS);
    let mut held: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        // The oldest gives way: a probe takes milliseconds, and who holds every place must not keep
        // a load balancer from asking.
        held.retain(|connection| !connection.is_finished());
        if held.len() >= limits.connections
            && let Some(oldest) = held.pop_front()
        {
            oldest.abort();
        }
        let health = health.clone();
        let answer = move |request: Request<hyper::body::Incoming>| {
            let response = answer(request.method(), request.uri().path(), &health);
            async move { Ok::<_, Infallible>(response) }
        };
        let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer));
        let connection = tokio::spawn(async move {
            // However it ends, it was the client's choice or its time was over.
            drop(timeout(limits.connection, connection).await);
        });
        held.push_back(connection.abort_handle());
    }
}

/// The HTTP library leaves the body out where the method is HEAD.
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

fn respond(status: StatusCode, content_type: HeaderValue, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
