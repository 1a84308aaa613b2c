//! Health check node ports over real sockets on loopback.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};

use super::clients::{Clients, Limits};
use super::{Health, listeners};
use crate::model::ObjectKey;
use crate::policy::health::{Place, Served};

const DEADLINE: Duration = Duration::from_secs(20);
const PATIENT: Limits = Limits { connections: 8, head: DEADLINE, connection: DEADLINE };
const LOOPBACK: Place = Place::At(IpAddr::V4(Ipv4Addr::LOCALHOST));

#[expect(clippy::unnecessary_wraps, reason = "it is what a port is told")]
fn served(name: &str, local_endpoints: usize) -> Option<Served> {
    Some(Served { service: ObjectKey::new("shop", name), local_endpoints })
}

/// The thread that listens; it ends with the test's process.
fn start(places: impl IntoIterator<Item = Place>) -> Health {
    let health = Health::default();
    health.ports().listen_at(places.into_iter().collect());
    let kept = health.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { listeners::keep(kept, Clients::new(PATIENT)).await })
    });
    health
}

/// Ports that are free on every address, as far as one can know.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> =
        (0..count).map(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::yield_now();
    }
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    Some(stream)
}

/// What came back for a request, until the server closed; nothing if nobody listens, or not for long
/// enough to take the connection.
fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = connect(address)?;
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).ok()?;
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The code and the number of endpoints in an answer at a port.
fn told(port: u16) -> Option<(u16, u64)> {
    let answer = ask(local(port), "GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body).unwrap();
    Some((head.split(' ').nth(1)?.parse().ok()?, body["localEndpoints"].as_u64()?))
}

fn is_closed(port: u16) -> bool {
    match TcpStream::connect(local(port)) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    }
}

#[test]
fn h_8_h_11_any_path_is_answered_with_headers_and_body() {
    let health = start([LOOPBACK]);
    let port = free_ports(1)[0];
    health.ports().set(port, served("web", 2));
    until("the port", || told(port));
    for request in ["GET /", "GET /any/path?and=query", "HEAD /healthz", "POST /x"] {
        let request = format!("{request} HTTP/1.1\r\nHost: echo-me\r\n\r\n");
        let answer = ask(local(port), &request).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let head = head.to_ascii_lowercase();
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(head.lines().any(|line| line == header), "{header}: {head}");
        }
        assert!(!answer.contains("echo-me"), "{answer}");
        if request.starts_with("HEAD") {
            assert_eq!(body, "");
            continue;
        }
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            body,
            json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": 2,
                "serviceProxyHealthy": true,
            })
        );
    }
}

#[test]
fn h_9_without_endpoints_or_with_a_proxy_that_hangs_it_is_503() {
    let health = Health::default();
    health.ports().set(32_000, served("web", 1));
    let status = |healthy| health.ports().told(32_000, healthy).unwrap();
    assert_eq!(status(true).status, StatusCode::OK);
    assert_eq!(status(false).status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(status(false).body.contains(r#""serviceProxyHealthy":false"#));
    health.ports().set(32_000, served("web", 0));
    assert_eq!(status(true).status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(status(true).body.contains(r#""serviceProxyHealthy":true"#));
    assert_eq!(health.ports().told(32_001, true), None);
}

#[test]
fn h_12_a_port_that_is_taken_is_told_tried_again_and_costs_nobody_else() {
    let ports = free_ports(2);
    let taken = TcpListener::bind(local(ports[0])).unwrap();
    let health = start([LOOPBACK]);
    health.ports().set(ports[0], served("web", 1));
    health.ports().set(ports[1], served("api", 1));
    until("the other port", || told(ports[1]));
    let failures = until("the failure", || {
        Some(health.ports().failures()).filter(|failures| !failures.is_empty())
    });
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].service, ObjectKey::new("shop", "web"));
    assert!(failures[0].error.contains(&local(ports[0]).to_string()), "{failures:?}");
    drop(taken);
    health.ports().try_again();
    let before_any_timer = Instant::now();
    until("the port", || told(ports[0]));
    until("nobody to fail", || health.ports().failures().is_empty().then_some(()));
    assert!(before_any_timer.elapsed() < Duration::from_secs(4), "at the next sync");

    // The loop hears of both.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, health.ports().outcome()).await.unwrap();
    });
}

#[test]
fn h_12_without_a_sync_it_is_tried_again_all_the_same() {
    let port = free_ports(1)[0];
    let taken = TcpListener::bind(local(port)).unwrap();
    let health = start([LOOPBACK]);
    health.ports().set(port, served("web", 1));
    until("the failure", || (!health.ports().failures().is_empty()).then_some(()));
    drop(taken);
    until("the port", || told(port));
}

#[test]
fn h_13_h_14_a_port_follows_its_service_and_no_node() {
    let health = start([LOOPBACK]);
    let port = free_ports(1)[0];
    assert!(is_closed(port));
    health.ports().set(port, served("web", 1));
    assert_eq!(until("the port", || told(port)), (200, 1));
    health.ports().set(port, served("web", 3));
    assert_eq!(told(port), Some((200, 3)), "at once");
    health.node_is_eligible(false);
    assert_eq!(told(port), Some((200, 3)), "H-14");
    health.ports().set(port, served("web", 0));
    assert_eq!(told(port), Some((503, 0)));

    let mut lingers = connect(local(port)).unwrap();
    assert_eq!(told(port), Some((503, 0)), "it was taken before this one");
    health.ports().set(port, None);
    until("the port to close", || is_closed(port).then_some(()));
    lingers.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    lingers.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    // Gone and there again in one burst: never in its own way.
    for _ in 0..100 {
        health.ports().set(port, served("web", 1));
        health.ports().set(port, None);
        health.ports().set(port, served("api", 2));
        assert_eq!(until("the port", || told(port)), (200, 2));
        assert_eq!(health.ports().failures(), []);
    }
}

#[test]
fn h_8_addresses_that_come_and_go_are_followed() {
    let at = |octet| Place::At([127, 0, 0, octet].into());
    let health = start([at(1), at(2)]);
    let port = free_ports(1)[0];
    health.ports().set(port, served("web", 1));
    let listens =
        |octet: u8| TcpStream::connect(SocketAddr::from(([127, 0, 0, octet], port))).is_ok();
    until("both", || (listens(1) && listens(2)).then_some(()));
    health.ports().listen_at([at(2), at(3)].into());
    until("the new one", || listens(3).then_some(()));
    assert!(!listens(1) && listens(2));
    // An address that the node does not have is told, and does not keep the others from listening.
    health.ports().listen_at([Place::At([192, 0, 2, 1].into()), at(4)].into());
    until("the one that is there", || listens(4).then_some(()));
    let failures = until("the failure", || {
        Some(health.ports().failures()).filter(|failures| !failures.is_empty())
    });
    assert!(failures[0].error.contains("192.0.2.1"), "{failures:?}");
    health.ports().listen_at(BTreeSet::new());
    until("nobody", || (!listens(4) && health.ports().failures().is_empty()).then_some(()));
}

#[test]
fn h_15_one_socket_answers_both_families() {
    let health = start([Place::Everywhere]);
    let port = free_ports(1)[0];
    health.ports().set(port, served("web", 1));
    until("the port", || told(port));
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = ask((Ipv6Addr::LOCALHOST, port).into(), request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let wanted = health.ports().wanted(None).unwrap();
    assert_eq!((wanted.ports, wanted.places), ([port].into(), [Place::Everywhere].into()));
}

#[test]
fn hundreds_of_services_cost_no_threads_and_share_the_places_of_clients() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let health = start([LOOPBACK]);
    let ports = free_ports(300);
    health.ports().set(ports[0], served("web", 1));
    until("the first port", || told(ports[0]));
    let before = threads();
    for (n, port) in ports.iter().enumerate() {
        health.ports().set(*port, served(&format!("web-{n}"), n));
    }
    for (n, port) in ports.iter().enumerate() {
        let (code, endpoints) = until("a port", || told(*port));
        assert_eq!((code == 200, endpoints), (n > 0, n as u64));
    }
    // Other tests come and go meanwhile, each with a few threads.
    assert!(threads() < before + 100, "{before} before, {} now", threads());

    // More clients that say nothing than there are places, over many ports: a probe is answered.
    let mut held: Vec<TcpStream> =
        ports[..100].iter().map(|port| connect(local(*port)).unwrap()).collect();
    assert_eq!(told(ports[200]), Some((200, 200)));
    let gone = held.len() - PATIENT.connections;
    for stream in &mut held[..gone] {
        let end = stream.read(&mut [0; 1]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    }
}
