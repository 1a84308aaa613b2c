//! The sockets of health check node ports: opened, closed and tried again as [`Ports`] has it, each a
//! task of the one thread that answers health checks (contract H-8, H-12, H-13).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Health;
use super::clients::Clients;
use super::ports::Told;
use super::server::respond;
use crate::datapath::descriptor_limit;
use crate::policy::health::Place;

/// What cannot be had is tried again after this time, if no sync comes before.
const RETRY: Duration = Duration::from_secs(5);
/// Sockets in all: whoever writes Services must not use up the agent's file descriptors.
const MOST: usize = 4096;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Serves for ever.
pub(super) async fn keep(health: Health, clients: Clients) -> Infallible {
    let mut open: BTreeMap<(u16, Place), JoinHandle<Infallible>> = BTreeMap::new();
    let most = most(descriptor_limit().ok());
    loop {
        let wanted = health.ports().wanted();
        let unwanted: Vec<_> = open.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for task in unwanted.iter().filter_map(|key| open.remove(key)) {
            task.abort();
            // Its socket is closed after that, so that the port is free for what follows.
            drop(task.await);
        }
        let mut failing = BTreeMap::new();
        for (port, place) in wanted {
            if open.contains_key(&(port, place)) {
                continue;
            }
            let task = if open.len() < most {
                listen(place, port).and_then(|listener| answer(listener, port, &health, &clients))
            } else {
                Err(too_many(most))
            };
            match task {
                Ok(task) => drop(open.insert((port, place), task)),
                Err(error) => {
                    failing.entry(port).or_insert_with(|| describe(place, port, &error));
                }
            }
        }
        let retry = async { if failing.is_empty() { pending().await } else { sleep(RETRY).await } };
        health.ports().tell(failing.clone());
        tokio::select! {
            () = health.ports().asked() => {}
            () = retry => {}
        }
    }
}

/// How many sockets there may be where the process may have so many descriptors: half of them are for
/// who asks, and for everything else.
fn most(descriptors: Option<u64>) -> usize {
    let half = descriptors.and_then(|limit| usize::try_from(limit / 2).ok());
    half.map_or(MOST, |half| half.min(MOST))
}

fn too_many(most: usize) -> io::Error {
    let what_to_do = if most < MOST {
        "raise the hard limit of open files of lb-agent"
    } else {
        "choose fewer addresses by --node-port-addresses, or `all`, which takes one for each port"
    };
    io::Error::other(format!("there are {most} sockets for health checks already: {what_to_do}"))
}

fn describe(place: Place, port: u16, error: &io::Error) -> String {
    match place {
        Place::Everywhere => format!("cannot listen on port {port}: {error}"),
        Place::At(addr) => format!("cannot listen on {}: {error}", SocketAddr::new(addr, port)),
    }
}

fn answer(
    listener: TcpListener,
    port: u16,
    health: &Health,
    clients: &Clients,
) -> io::Result<JoinHandle<Infallible>> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (health, clients) = (health.clone(), clients.clone());
    Ok(tokio::spawn(async move {
        clients.serve(listener, move |_, _| response(health.told_at(port))).await
    }))
}

/// H-11. The connection ends with it: probers of many Services would hold too many.
fn response(told: Option<Told>) -> Response<String> {
    let mut response = if let Some(Told { status, weight, body }) = told {
        let mut response = respond(status, HeaderValue::from_static("application/json"), body);
        response.headers_mut().insert(WEIGHT, HeaderValue::from(weight));
        response
    } else {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        let body = "no Service has this port any more\n".to_owned();
        respond(StatusCode::SERVICE_UNAVAILABLE, text, body)
    };
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Listens at a place.
pub(super) fn listen(place: Place, port: u16) -> io::Result<TcpListener> {
    match place {
        Place::Everywhere => {
            match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), false) {
                Err(error) if is_without_ipv6(&error) => {
                    bind(SocketAddr::new(IpAddr::from([0; 4]), port), true)
                }
                outcome => outcome,
            }
        }
        Place::At(addr) => bind(SocketAddr::new(addr, port), true),
    }
}

fn bind(address: SocketAddr, one_family: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(one_family)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_leave_descriptors_to_everything_else() {
        assert_eq!(most(Some(1024)), 512);
        assert_eq!(most(Some(libc::RLIM_INFINITY)), MOST);
        assert_eq!(most(None), MOST);
        assert!(too_many(512).to_string().contains("limit of open files"));
        assert!(too_many(MOST).to_string().contains("--node-port-addresses"));
    }
}
