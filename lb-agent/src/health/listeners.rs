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
use super::ports::{Told, Wanted};
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
    let mut sockets = Sockets::new(most(descriptor_limit().ok()));
    let mut version = None;
    let listen = |port, place| {
        listen(place, port).and_then(|listener| answer(listener, port, &health, &clients))
    };
    loop {
        let is_new = if let Some(wanted) = health.ports().wanted(version) {
            version = Some(wanted.version);
            sockets.close(&wanted).await;
            sockets.open(&wanted, listen);
            true
        } else {
            sockets.try_again(listen)
        };
        if is_new {
            health.ports().tell(sockets.failing());
        }
        let may_pass = !sockets.refused.is_empty();
        let retry = async { if may_pass { sleep(RETRY).await } else { pending().await } };
        tokio::select! {
            () = health.ports().asked() => {}
            () = retry => {}
        }
    }
}

/// What listens, and what does not.
struct Sockets {
    most: usize,
    open: BTreeMap<(u16, Place), JoinHandle<Infallible>>,
    /// Why these cannot be opened. With those that are open there are at most [`Self::most`].
    refused: BTreeMap<(u16, Place), String>,
    /// Ports that want more sockets than there may be, each with a place that it has none at.
    crowded: BTreeMap<u16, Place>,
}

impl Sockets {
    fn new(most: usize) -> Self {
        let (open, refused, crowded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { most, open, refused, crowded }
    }

    /// Closes what is not wanted any more.
    async fn close(&mut self, wanted: &Wanted) {
        let is_wanted = |(port, place): &(u16, Place)| {
            wanted.ports.contains(port) && wanted.places.contains(place)
        };
        let unwanted: Vec<_> = self.open.keys().filter(|key| !is_wanted(key)).copied().collect();
        for task in unwanted.iter().filter_map(|key| self.open.remove(key)) {
            task.abort();
            // Its socket is closed after that, so that the port is free for what follows.
            drop(task.await);
        }
    }

    /// Opens what is wanted as far as there may be as many: who was there first stays. Ports times
    /// places may be millions, of which no more are looked at than may be opened.
    fn open(
        &mut self,
        wanted: &Wanted,
        listen: impl Fn(u16, Place) -> io::Result<JoinHandle<Infallible>>,
    ) {
        self.refused.clear();
        self.crowded.clear();
        let mut room = self.most.saturating_sub(self.open.len());
        for &port in &wanted.ports {
            for &place in &wanted.places {
                if self.open.contains_key(&(port, place)) {
                    continue;
                }
                if room == 0 {
                    self.crowded.insert(port, place);
                    break;
                }
                room -= 1;
                match listen(port, place) {
                    Ok(task) => drop(self.open.insert((port, place), task)),
                    Err(error) => {
                        self.refused.insert((port, place), describe(place, port, &error));
                    }
                }
            }
        }
    }

    /// Opens what was refused, if it is not any more; whether anything is otherwise now.
    fn try_again(
        &mut self,
        listen: impl Fn(u16, Place) -> io::Result<JoinHandle<Infallible>>,
    ) -> bool {
        let mut changed = false;
        let open = &mut self.open;
        self.refused.retain(|&(port, place), told| match listen(port, place) {
            Ok(task) => {
                open.insert((port, place), task);
                changed = true;
                false
            }
            Err(error) => {
                let error = describe(place, port, &error);
                changed |= *told != error;
                *told = error;
                true
            }
        });
        changed
    }

    /// Why ports cannot be had at some place, one reason for each.
    fn failing(&self) -> BTreeMap<u16, String> {
        let mut failing = BTreeMap::new();
        for ((port, _), error) in &self.refused {
            failing.entry(*port).or_insert_with(|| error.clone());
        }
        for (port, place) in &self.crowded {
            let error = || describe(*place, *port, &too_many(self.most));
            failing.entry(*port).or_insert_with(error);
        }
        failing
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
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn health_checks_leave_descriptors_to_everything_else() {
        assert_eq!(most(Some(1024)), 512);
        assert_eq!(most(Some(libc::RLIM_INFINITY)), MOST);
        assert_eq!(most(None), MOST);
        assert!(too_many(512).to_string().contains("limit of open files"));
        assert!(too_many(MOST).to_string().contains("--node-port-addresses"));
    }

    /// Thousands of addresses times thousands of ports: what does not fit costs nothing.
    #[tokio::test]
    async fn no_more_sockets_are_tried_than_there_may_be_and_only_those_that_failed_again() {
        let tried = Cell::new(0);
        let here = Place::At(IpAddr::from([127, 0, 0, 1]));
        let listen = |_, place| {
            tried.set(tried.get() + 1);
            if place == here { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(task()) }
        };
        let places: BTreeSet<Place> = (1..=u16::MAX)
            .map(|n| Place::At(Ipv4Addr::from(0x7f00_0000 + u32::from(n)).into()))
            .collect();
        let mut wanted = Wanted { ports: (1..=u16::MAX).collect(), places, version: 1 };
        let mut sockets = Sockets::new(4);
        sockets.open(&wanted, listen);
        assert_eq!((tried.take(), sockets.open.len(), sockets.refused.len()), (4, 3, 1));
        assert_eq!(sockets.failing().len(), usize::from(u16::MAX));
        assert!(!sockets.try_again(listen), "nothing is otherwise");
        assert_eq!(tried.take(), 1);
        assert!(sockets.try_again(|_, _| Ok(task())));
        assert_eq!((sockets.open.len(), sockets.refused.len()), (4, 0));
        // Who is there first stays, whoever comes before it in order.
        wanted = Wanted { ports: [1, 7].into(), places: [Place::Everywhere].into(), version: 2 };
        let mut sockets = Sockets::new(1);
        sockets
            .open(&Wanted { ports: [7].into(), places: wanted.places.clone(), version: 1 }, listen);
        sockets.close(&wanted).await;
        sockets.open(&wanted, listen);
        assert_eq!(sockets.open.keys().next(), Some(&(7, Place::Everywhere)));
        assert_eq!(sockets.failing().into_keys().collect::<Vec<_>>(), [1]);
    }

    fn task() -> JoinHandle<Infallible> {
        tokio::spawn(pending())
    }
}
