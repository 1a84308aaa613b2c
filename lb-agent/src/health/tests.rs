//! What is answered when, and that no client can make the server misbehave.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::clients::{Clients, Limits};
use super::server::{self, listen};
use super::*;
use crate::model::Node;

const SECOND: Duration = Duration::from_secs(1);
/// When nothing should take long.
const DEADLINE: Duration = Duration::from_secs(20);

/// So many seconds after 2026-11-21T14:00:00Z.
fn at(seconds: u64) -> Now {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_269_600 + seconds);
    Now { instant: *START + Duration::from_secs(seconds), wall }
}

fn ask(state: &State, endpoint: Endpoint, seconds: u64) -> (bool, Value) {
    let Answer { healthy, body } = state.answer(endpoint, at(seconds));
    (healthy, serde_json::from_str(&body).unwrap())
}

fn healthy(state: &State, endpoint: Endpoint, seconds: u64) -> bool {
    ask(state, endpoint, seconds).0
}

/// On a node that load balancers may send to.
fn started() -> State {
    let mut state = State::new(at(0));
    state.node_is_eligible(true);
    state
}

#[test]
fn h_2_the_body_has_the_fields_that_clients_look_for() {
    let state = started();
    let (healthy, body) = ask(&state, Endpoint::Healthz, 30);
    assert!(healthy);
    let now = "2026-11-21T14:00:30Z";
    let family = serde_json::json!({"lastUpdated": now, "healthy": true});
    assert_eq!(
        body,
        serde_json::json!({
            "lastUpdated": now,
            "currentTime": now,
            "nodeEligible": true,
            "healthy": true,
            "status": {"IPv4": family, "IPv6": family},
        })
    );
    let (_, body) = ask(&state, Endpoint::Livez, 30);
    assert_eq!(body.get("nodeEligible"), None, "livez knows no node");
    assert_eq!(body["lastUpdated"], now);
}

#[test]
fn h_2_an_unhealthy_family_shows_when_it_was_completed_last() {
    let mut state = started();
    state.completed(Family::V4, at(5));
    state.completed(Family::V6, at(7));
    state.queued(Family::V4, at(10));
    let (healthy, body) = ask(&state, Endpoint::Healthz, 100);
    assert!(!healthy);
    assert_eq!(body["lastUpdated"], "2026-11-21T14:00:07Z");
    assert_eq!(body["currentTime"], "2026-11-21T14:01:40Z");
    assert_eq!(body["healthy"], false);
    assert_eq!(body["status"]["IPv4"]["lastUpdated"], "2026-11-21T14:00:05Z");
    assert_eq!(body["status"]["IPv4"]["healthy"], false);
    assert_eq!(body["status"]["IPv6"]["lastUpdated"], "2026-11-21T14:01:40Z");
    assert_eq!(body["status"]["IPv6"]["healthy"], true);
}

#[test]
fn h_3_an_update_of_either_family_that_waits_for_a_minute_is_unhealthy_until_it_is_completed() {
    for family in [Family::V4, Family::V6] {
        let mut state = started();
        state.queued(family, at(10));
        state.queued(family, at(60)); // The oldest counts.
        for endpoint in [Endpoint::Healthz, Endpoint::Livez] {
            assert!(healthy(&state, endpoint, 69), "{endpoint:?}");
            assert!(!healthy(&state, endpoint, 70), "{endpoint:?}");
        }
        state.completed(family, at(71));
        assert!(healthy(&state, Endpoint::Livez, 100_000), "idle is healthy");
        state.queued(family, at(100_001));
        assert!(healthy(&state, Endpoint::Livez, 100_060), "counted from when it was queued");
    }
}

#[test]
fn h_3_just_started_is_healthy_whatever_happens_on_the_clock_on_the_wall() {
    let state = State::new(at(1000));
    assert!(healthy(&state, Endpoint::Livez, 1000));
    assert!(healthy(&state, Endpoint::Livez, 0), "a clock that went back");
}

fn node() -> Node {
    Node { name: "node-1".into(), ..Node::default() }
}

#[test]
fn h_4_only_healthz_looks_at_the_node() {
    let mut state = State::new(at(0));
    let (ok, body) = ask(&state, Endpoint::Healthz, 1);
    assert_eq!((ok, &body["nodeEligible"]), (false, &Value::Bool(false)), "not seen yet");
    assert_eq!(body["healthy"], true, "the proxy itself is well");
    assert_eq!(body["lastUpdated"], "2026-11-21T14:00:00Z");
    assert!(healthy(&state, Endpoint::Livez, 1));
    state.node_is_eligible(true);
    assert!(healthy(&state, Endpoint::Healthz, 2));
    state.queued(Family::V4, at(3));
    assert!(!healthy(&state, Endpoint::Healthz, 63), "an eligible node does not make it healthy");
}

#[test]
fn h_4_a_node_that_goes_is_not_eligible() {
    assert!(!is_eligible(None));
    assert!(is_eligible(Some(&node())));
    assert!(!is_eligible(Some(&Node { deleting: true, ..node() })));
    assert!(!is_eligible(Some(&Node { removal_planned: true, ..node() })));
}

/// H-6: without an API server nothing is queued, and what was queued before is in force.
#[test]
fn h_6_silence_is_no_illness() {
    let state = started();
    let day = 86_400;
    assert!(
        healthy(&state, Endpoint::Healthz, 7 * day) && healthy(&state, Endpoint::Livez, 7 * day)
    );
}

#[test]
fn h_7_answers_are_counted_by_endpoint_and_code() {
    let health = Health::default();
    health.answer(Endpoint::Healthz);
    health.node_is_eligible(true);
    health.answer(Endpoint::Healthz);
    health.answer(Endpoint::Healthz);
    health.answer(Endpoint::Livez);
    assert_eq!(health.counts(Endpoint::Healthz), Counts { healthy: 2, unhealthy: 1 });
    assert_eq!(health.counts(Endpoint::Livez), Counts { healthy: 1, unhealthy: 0 });
}

/// A server on loopback; it ends with the test's process.
struct Server {
    address: SocketAddr,
    health: Health,
}

const PATIENT: Limits = Limits { connections: 8, head: DEADLINE, connection: DEADLINE };

impl Server {
    fn start(limits: Limits) -> Self {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (address, health) = (listener.local_addr().unwrap(), Health::default());
        health.node_is_eligible(true);
        let served = health.clone();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { server::serve(listener, served, &Clients::new(limits)).await })
        });
        Self { address, health }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends bytes and the end of the stream; what came back until the server closed.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may answer and close before it has read everything.
        let _sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        read_all(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.exchange(
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    }

    /// It still does what it is there for.
    fn assert_serves(&self) {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self.get("/livez");
            if answer.starts_with("HTTP/1.1 200 OK\r\n") {
                return;
            }
            // Places of clients that have just left may not be free yet: the connection is closed.
            assert!(answer.is_empty() && Instant::now() < end, "{answer:?}");
        }
    }
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server did not close: {error}"),
    }
    String::from_utf8(answer).unwrap()
}

/// Whether the server closes the connection before it times out here.
fn is_closed(stream: &mut TcpStream) -> bool {
    let is_end = |result: io::Result<usize>| match result {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    is_end(stream.read(&mut [0; 1]))
}

#[test]
fn h_1_paths_codes_and_headers() {
    let server = Server::start(PATIENT);
    for path in ["/healthz", "/livez", "/healthz?verbose"] {
        let answer = server.get(path);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let head = head.to_ascii_lowercase();
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(body["lastUpdated"].is_string(), "{body}");
    }
    server.health.node_is_eligible(false);
    let answer = server.get("/healthz");
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(server.get("/livez").starts_with("HTTP/1.1 200 OK\r\n"), "H-4");
    let head = server.exchange(b"HEAD /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(server.exchange(b"GET /livez HTTP/1.0\r\n\r\n").contains(" 200 OK\r\n"));
}

#[test]
fn nothing_that_was_sent_comes_back() {
    let server = Server::start(PATIENT);
    for path in ["/", "/echo-me", "/healthz/echo-me", "//livez", "/metrics", "/%68ealthz"] {
        let answer = server.get(path);
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        assert!(!answer.contains("echo-me"), "{answer}");
    }
    for method in ["POST", "DELETE", "OPTIONS", "CONNECT", "ECHO-ME"] {
        let request =
            format!("{method} /livez HTTP/1.1\r\nHost: echo-me\r\nConnection: close\r\n\r\n");
        let answer = server.exchange(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert!(!answer.to_lowercase().contains("echo-me"), "{answer}");
    }
    assert_eq!(server.health.counts(Endpoint::Livez), Counts::default(), "none of it counts");
}

/// CVE-2023-44487: no HTTP/2, by whatever way it is asked for.
#[test]
fn http_2_is_not_spoken() {
    let server = Server::start(PATIENT);
    let answer = server.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let upgrade = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = server.exchange(upgrade.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    server.assert_serves();
}

#[test]
fn garbage_and_endless_heads_end_the_connection_and_nothing_else() {
    let server = Server::start(PATIENT);
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let long = format!("GET /livez HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(1 << 20));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let endless = "x".repeat(1 << 20);
    let tls = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec();
    let zeros = vec![0; 1 << 16];
    let inputs = [many.into(), long.into(), path.into(), endless.into(), tls, zeros];
    for (index, input) in inputs.iter().enumerate() {
        let answer = server.exchange(input);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{index}: {answer}");
    }
    // Any bytes, the same in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        let answer = server.exchange(&bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{bytes:?}: {answer}");
        let answer = server.exchange(&[b"GET /livez HTTP/1.1\r\n", &bytes[..]].concat());
        assert!(!answer.contains(" 500 "), "{bytes:?}: {answer}");
    }
    server.assert_serves();
}

#[test]
fn requests_that_are_sent_together_are_answered_in_order() {
    let server = Server::start(PATIENT);
    let one = |path, last| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{last}\r\n");
    let all = one("/livez", "").repeat(20) + &one("/nothing", "Connection: close\r\n");
    let answer = server.exchange(all.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 20, "{answer}");
    assert!(answer.rfind("404 Not Found") > answer.rfind("200 OK"), "{answer}");
}

#[test]
fn a_client_that_sends_slowly_or_nothing_is_left_in_time() {
    let server = Server::start(Limits { head: SECOND / 4, ..PATIENT });
    let start = Instant::now();
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(b"GET /livez HT").unwrap();
    let mut idle = server.connect();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_all(&mut silent);
    read_all(&mut slow);
    let answer = read_all(&mut idle);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(start.elapsed() < DEADLINE);
    server.assert_serves();
}

#[test]
fn a_client_that_never_stops_asking_has_its_time_only() {
    let server = Server::start(Limits { connection: SECOND / 2, ..PATIENT });
    let mut stream = server.connect();
    let end = Instant::now() + DEADLINE;
    let mut buffer = [0; 4096];
    loop {
        let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
        if asked.is_err() || !matches!(stream.read(&mut buffer), Ok(1..)) {
            break;
        }
        assert!(Instant::now() < end, "nobody ends this connection");
    }
    // The same for one that sends a body without end, in pieces.
    let mut stream = server.connect();
    let head = b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).unwrap();
    while stream.write_all(b"1\r\nx\r\n").is_ok() {
        assert!(Instant::now() < end, "nobody ends this connection");
    }
    server.assert_serves();
}

#[test]
fn a_probe_is_answered_though_others_hold_every_connection() {
    let server = Server::start(PATIENT);
    let mut held: Vec<TcpStream> = (0..PATIENT.connections).map(|_| server.connect()).collect();
    // All of them have a place: each is answered.
    for stream in &mut held {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).unwrap() > 0);
    }
    let start = Instant::now();
    assert!(server.get("/livez").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(start.elapsed() < DEADLINE / 2, "at once");
    assert!(is_closed(&mut held[0]), "the oldest gave way");
    // Many more than there are places, none of which asks: the number stays bounded.
    let mut more: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    let kept = PATIENT.connections;
    assert!(more[..100 - kept].iter_mut().all(is_closed));
    assert!(start.elapsed() < DEADLINE, "at once");
    server.assert_serves();
}

/// H-7: an unspecified address means both families.
#[test]
fn h_7_an_unspecified_address_listens_in_both_families() {
    for address in [Ipv4Addr::UNSPECIFIED.into(), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
        let listener = listen(SocketAddr::new(address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }
}

#[test]
fn h_7_an_address_in_use_is_fatal_only_if_asked_for_and_served_once_it_is_free() {
    let taken = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = taken.local_addr().unwrap();
    let error = server::start(Some(address), true, Health::default()).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
    assert!(error.contains("--healthz-bind-address"), "{error}");

    let health = Health::default();
    server::start(Some(address), false, health).unwrap();
    drop(taken);
    let end = Instant::now() + DEADLINE;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
            let answer = read_all(&mut stream);
            assert!(answer.contains(" 200 OK\r\n"), "{answer}");
            return;
        }
        assert!(Instant::now() < end, "nobody listens on {address}");
        thread::yield_now();
    }
}
