//! How much may who asks for health take of this node?
//!
//! The ports are open to the network, so everything about them is bounded, over all of them together:
//! connections, the time that each may take, the size of a request's head. They speak HTTP/1.1 only,
//! and nothing that a client sends comes back.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// After a failed `accept`, as when file descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);
/// The least that the HTTP library can work with.
const HEAD_BYTES: usize = 8192;
const HEADERS: usize = 64;

/// How much clients may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time, in all; the oldest ends for one more.
    pub(super) connections: usize,
    /// Time to send the head of a request, idleness before it included.
    pub(super) head: Duration,
    /// Time in all.
    pub(super) connection: Duration,
}

/// A prober asks once and leaves; these are for those that linger. Some hundred Services may be asked
/// for at the same moment.
pub(super) const LIMITS: Limits =
    Limits { connections: 256, head: Duration::from_secs(5), connection: Duration::from_secs(15) };

/// The connections of all ports; all clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    held: Arc<Mutex<VecDeque<AbortHandle>>>,
    http: http1::Builder,
    limits: Limits,
}

impl Clients {
    pub(super) fn new(limits: Limits) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES)
            .max_header_size(HEAD_BYTES)
            .max_headers(HEADERS);
        Self { held: Arc::default(), http, limits }
    }

    /// Answers who comes to `listener`, for ever: method and path are what an answer depends on. The
    /// HTTP library leaves the body out where the method is HEAD.
    pub(super) async fn serve<F>(&self, listener: TcpListener, answer: F) -> Infallible
    where
        F: Fn(&Method, &str) -> Response<String> + Clone + Send + Sync + 'static,
    {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.hold(stream, answer.clone()),
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            }
            // Who is here is answered before the next one comes, who might need the place.
            tokio::task::yield_now().await;
        }
    }

    fn hold<F>(&self, stream: TcpStream, answer: F)
    where
        F: Fn(&Method, &str) -> Response<String> + Send + Sync + 'static,
    {
        let answer = move |request: Request<Incoming>| {
            let response = answer(request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        };
        let connection = self.http.serve_connection(TokioIo::new(stream), service_fn(answer));
        let time = self.limits.connection;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest gives way: a probe takes milliseconds, and who holds every place must not keep a
        // load balancer from asking.
        held.retain(|connection| !connection.is_finished());
        if held.len() >= self.limits.connections
            && let Some(oldest) = held.pop_front()
        {
            oldest.abort();
        }
        let connection = tokio::spawn(async move {
            // However it ends, it was the client's choice or its time was over.
            drop(timeout(time, connection).await);
        });
        held.push_back(connection.abort_handle());
    }
}
