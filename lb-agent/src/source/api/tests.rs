//! The source against a scripted API server on loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::{Dirty, ObjectKey, Store};

/// What the server answers to one request.
pub(super) enum Answer {
    /// A status and a body.
    Whole(u16, Value),
    /// Events, until the sender is dropped.
    Watch(std_mpsc::Receiver<Value>),
}

/// A request: the last part of its path, and its query, decoded as far as it matters here.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) plural: String,
    query: HashMap<String, String>,
}

impl Asked {
    pub(super) fn is_watch(&self) -> bool {
        self.query.contains_key("watch")
    }

    pub(super) fn get(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }
}

/// Serves on `listener` what `script` says; a request for which it says nothing hangs up.
pub(super) fn serve(
    listener: TcpListener,
    script: impl FnMut(&Asked) -> Option<Answer> + Send + 'static,
) -> String {
    let url = format!("http://{}", listener.local_addr().unwrap());
    let script = Arc::new(Mutex::new(script));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let script = script.clone();
            thread::spawn(move || {
                let asked = read_request(&stream);
                let answer = asked.and_then(|asked| (script.lock().unwrap())(&asked));
                // The client may hang up at any time.
                let _sent = answer.map(|answer| send(stream, answer));
            });
        }
    });
    url
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let agent = lines.take_while(|line| !line.is_empty()).any(|line| {
        line.eq_ignore_ascii_case(concat!("user-agent: millrace/", env!("CARGO_PKG_VERSION")))
    });
    assert!(agent, "no User-Agent in {first}");
    let (path, query) = first.split(' ').nth(1)?.split_once('?')?;
    let decode = |text: &str| {
        text.replace("%21", "!").replace("%3D", "=").replace("%2C", ",").replace("%2F", "/")
    };
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect();
    Some(Asked { plural: path.rsplit('/').next()?.to_owned(), query })
}

fn send(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    let head = "Content-Type: application/json\r\nConnection: close\r\n";
    match answer {
        Answer::Whole(status, body) => {
            let body = body.to_string();
            let length = body.len();
            write!(stream, "HTTP/1.1 {status} x\r\n{head}Content-Length: {length}\r\n\r\n{body}")
        }
        Answer::Watch(events) => {
            write!(stream, "HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n")?;
            for event in events {
                let line = format!("{event}\n");
                write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
            }
            write!(stream, "0\r\n\r\n")
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a script returns")]
pub(super) fn list(version: &str, items: &[Value], token: &str) -> Option<Answer> {
    let metadata = json!({"resourceVersion": version, "continue": token});
    Some(Answer::Whole(200, json!({"kind": "AnyList", "metadata": metadata, "items": items})))
}

pub(super) fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "x"})
}

/// A watch that says these and stays open for as long as what it returns second lives.
pub(super) fn watch(events: &[Value]) -> (Option<Answer>, std_mpsc::Sender<Value>) {
    let (sender, receiver) = std_mpsc::channel();
    for event in events {
        sender.send(event.clone()).unwrap();
    }
    (Some(Answer::Watch(receiver)), sender)
}

pub(super) fn service(name: &str, version: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}
    })
}

pub(super) fn slice(name: &str, service: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"]}]
    })
}

pub(super) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

pub(super) struct Rig {
    events: mpsc::Receiver<SourceEvent>,
    pub(super) store: Store,
    pub(super) synced: bool,
    pub(super) alive: usize,
    pub(super) reports: Vec<crate::convert::Report>,
    /// Names of dirty Services, from when the source was in sync.
    dirty: Vec<String>,
}

impl Rig {
    pub(super) fn new(url: &str) -> Self {
        let mut config = Config::new(url.parse().unwrap());
        config.default_retry = false;
        let agent = concat!("millrace/", env!("CARGO_PKG_VERSION"));
        config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
        let client = Client::try_from(config).unwrap();
        let (sender, events) = mpsc::channel(8);
        tokio::spawn(reflect_all(client, "here", Converter::new("here"), sender));
        let (store, reports, dirty) = (Store::default(), Vec::new(), Vec::new());
        Self { events, store, synced: false, alive: 0, reports, dirty }
    }

    async fn step(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
        match event.await.expect("the source says nothing").expect("the source ended") {
            SourceEvent::Batch(batch) => {
                let mut dirty = Dirty::default();
                for change in batch {
                    self.store.apply(change, &mut dirty);
                }
                if self.synced {
                    self.dirty.extend(dirty.services.iter().map(|key| key.name.to_string()));
                }
            }
            SourceEvent::Reports(reports) => self.reports.extend(reports),
            SourceEvent::SyncedInPart => panic!("the API server knows what there is"),
            SourceEvent::Synced => {
                assert!(!self.synced);
                self.synced = true;
            }
            SourceEvent::Alive => self.alive += 1,
        }
    }

    pub(super) async fn until(&mut self, mut reached: impl FnMut(&Self) -> bool) {
        while !reached(self) {
            self.step().await;
        }
    }

    pub(super) fn port(&self, name: &str) -> Option<u16> {
        Some(self.store.service(&ObjectKey::new("shop", name))?.ports.first()?.port)
    }
}

pub(super) fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[tokio::test]
async fn pages_are_put_together_and_the_selectors_are_the_contracts() {
    let mut watches = Vec::new();
    let url = serve(loopback(), move |asked| {
        let no_other_proxy =
            "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
        match asked.plural.as_str() {
            "nodes" => assert_eq!(asked.get("fieldSelector"), "metadata.name=here"),
            "servicecidrs" => return Some(Answer::Whole(404, status(404))),
            _ => assert_eq!(asked.get("labelSelector"), no_other_proxy),
        }
        if asked.is_watch() {
            assert_eq!(asked.get("allowWatchBookmarks"), "true");
            let (answer, open) = watch(&[]);
            watches.push(open);
            return answer;
        }
        match (asked.plural.as_str(), asked.get("continue")) {
            ("services", "") => {
                assert_eq!(asked.get("fieldSelector"), "spec.clusterIP!=None");
                list("5", &[service("a", "1", 1)], "more")
            }
            ("services", "more") => list("5", &[service("b", "2", 2)], ""),
            ("endpointslices", _) => list("5", &[slice("a-1", "a")], ""),
            _ => list("5", &[json!({"metadata": {"name": "here"}})], ""),
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.synced && rig.store.node().is_some()).await;
    assert_eq!((rig.port("a"), rig.port("b")), (Some(1), Some(2)));
    assert_eq!(rig.store.counts().endpoints, 1);
}

#[tokio::test]
async fn in_sync_is_said_only_when_both_lists_are_complete() {
    let (go, wait) = std_mpsc::channel::<()>();
    let mut watches = Vec::new();
    let mut wait = Some(wait);
    let url = serve(loopback(), move |asked| {
        if asked.is_watch() {
            let (answer, open) = watch(&[event("BOOKMARK", &service("", "6", 1))]);
            watches.push(open);
            return answer;
        }
        match asked.plural.as_str() {
            "services" => list("5", &[service("a", "1", 1)], ""),
            "endpointslices" if wait.as_ref().is_some_and(|wait| wait.try_recv().is_err()) => {
                Some(Answer::Whole(503, status(503)))
            }
            "endpointslices" => {
                wait = None;
                list("5", &[slice("a-1", "a")], "")
            }
            _ => list("5", &[], ""),
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.alive > 0).await; // Services are listed and watched by now.
    assert!(!rig.synced);
    go.send(()).unwrap();
    rig.until(|rig| rig.synced).await;
    assert_eq!(rig.store.counts().slices, 1);
}

#[tokio::test]
async fn events_are_followed_and_an_expired_version_leads_to_a_new_list() {
    let mut watches = Vec::new();
    let mut lists = 0;
    let url = serve(loopback(), move |asked| {
        let of_services = asked.plural == "services";
        let (answer, open) = match (of_services, asked.is_watch(), asked.get("resourceVersion")) {
            (true, true, "5") => watch(&[
                event("MODIFIED", &service("a", "6", 11)),
                event("ADDED", &service("c", "7", 3)),
                event("DELETED", &service("b", "8", 2)),
                event("ERROR", &status(410)),
            ]),
            (true, false, _) => {
                lists += 1;
                return match lists {
                    1 => list("5", &[service("a", "1", 1), service("b", "2", 2)], ""),
                    _ => list("9", &[service("a", "6", 11), service("d", "9", 4)], ""),
                };
            }
            (_, true, _) => watch(&[]),
            (false, false, _) => return list("5", &[], ""),
        };
        watches.push(open);
        answer
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.port("d") == Some(4)).await;
    assert_eq!((rig.port("a"), rig.port("b"), rig.port("c")), (Some(11), None, None));
    // What the new list says of the same Service again is no change.
    assert!(rig.dirty.iter().filter(|name| *name == "a").count() <= 1, "{:?}", rig.dirty);
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let mut watches = Vec::new();
    let url = serve(loopback(), move |asked| {
        if asked.plural != "services" {
            let (answer, open) = watch(&[]);
            watches.push(open);
            return if asked.is_watch() { answer } else { list("5", &[], "") };
        }
        match (asked.is_watch(), asked.get("resourceVersion")) {
            (false, _) => list("5", &[], ""),
            (true, "5") => watch(&[event("ADDED", &service("a", "6", 1))]).0,
            (true, "6") => watch(&[event("BOOKMARK", &service("", "70", 1))]).0,
            (true, version) => {
                assert_eq!(version, "70");
                let (answer, open) = watch(&[event("MODIFIED", &service("a", "71", 2))]);
                watches.push(open);
                answer
            }
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.port("a") == Some(2)).await;
    assert!(rig.alive > 0);
}

#[tokio::test]
async fn a_refused_field_selector_is_done_without() {
    let mut watches = Vec::new();
    let url = serve(loopback(), move |asked| {
        if asked.plural == "services" && !asked.get("fieldSelector").is_empty() {
            return Some(Answer::Whole(400, status(400)));
        }
        if asked.is_watch() {
            let (answer, open) = watch(&[]);
            watches.push(open);
            return answer;
        }
        let mut headless = service("headless", "2", 2);
        headless["spec"]["clusterIP"] = json!("None");
        match asked.plural.as_str() {
            "services" => list("5", &[service("a", "1", 1), headless], ""),
            _ => list("5", &[], ""),
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.synced).await;
    assert_eq!((rig.port("a"), rig.port("headless")), (Some(1), None));
}

#[tokio::test]
async fn a_list_that_expires_between_pages_starts_over() {
    let mut watches = Vec::new();
    let mut expired = false;
    let url = serve(loopback(), move |asked| {
        if asked.is_watch() {
            let (answer, open) = watch(&[]);
            watches.push(open);
            return answer;
        }
        match (asked.plural.as_str(), asked.get("continue")) {
            ("services", "") if !expired => list("5", &[service("old", "1", 1)], "more"),
            ("services", "more") => {
                expired = true;
                Some(Answer::Whole(410, status(410)))
            }
            ("services", _) => list("9", &[service("new", "8", 2)], ""),
            _ => list("5", &[], ""),
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.synced).await;
    assert_eq!((rig.port("old"), rig.port("new")), (None, Some(2)));
}

#[tokio::test]
async fn a_bad_object_is_told_keeps_its_last_good_state_and_stops_no_other() {
    let bad = |name| {
        let mut bad = service(name, "6", 1);
        bad["spec"]["ports"][0]["port"] = json!("eighty");
        bad
    };
    let mut watches = Vec::new();
    let mut lists = 0;
    let url = serve(loopback(), move |asked| {
        if asked.plural != "services" {
            let (answer, open) = watch(&[]);
            watches.push(open);
            return if asked.is_watch() { answer } else { list("5", &[], "") };
        }
        if asked.is_watch() {
            let (answer, open) = match asked.get("resourceVersion") {
                "5" => watch(&[event("MODIFIED", &bad("a")), event("ERROR", &status(410))]),
                _ => watch(&[]),
            };
            watches.push(open);
            return answer;
        }
        lists += 1;
        match lists {
            1 => list("5", &[service("a", "1", 1), bad("b"), service("c", "2", 2)], ""),
            _ => list("9", &[bad("a"), service("d", "2", 4)], ""),
        }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.port("d").is_some()).await;
    assert_eq!((rig.port("a"), rig.port("b"), rig.port("c")), (Some(1), None, None));
    let told: Vec<_> =
        rig.reports.iter().map(|report| (report.name.as_str(), report.field.as_str())).collect();
    let field = "spec.ports[0].port";
    assert_eq!(told, [("b", field), ("a", field), ("a", field)]);
}

#[tokio::test]
async fn an_api_server_that_is_away_at_the_start_is_waited_for() {
    let mut watches = Vec::new();
    let mut hung_up = HashMap::<String, u32>::new();
    let url = serve(loopback(), move |asked| {
        let times = hung_up.entry(asked.plural.clone()).or_default();
        *times += 1;
        if *times <= 3 {
            return None;
        }
        let (answer, open) = watch(&[]);
        watches.push(open);
        if asked.is_watch() { answer } else { list("5", &[], "") }
    });
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.synced).await;
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let (sender, events) = mpsc::channel(8);
    let client = Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
    let source = tokio::spawn(reflect_all(client, "here", Converter::new("here"), sender));
    drop(events);
    tokio::time::timeout(Duration::from_secs(20), source).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_is_an_error_that_names_it() {
    let (sender, _events) = mpsc::channel(8);
    let source = ApiServer::new(Some("/nowhere/kubeconfig".into()), "here");
    let error = source.run(Converter::new("here"), sender).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/kubeconfig"), "{error}");
}
