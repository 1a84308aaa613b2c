//! Objects that come, change sides and go while they are watched.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::TryStreamExt;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::request::Lines;
use super::tests::{Answer, Rig, event, list, loopback, serve, service, slice, status, watch};
use super::*;
use crate::model::{Change, ObjectKey};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

/// Lists that answer `listed` by the plural of their kind, watches that say `events`; asked for a kind
/// beyond the first list and watch, the server hangs up.
fn scripted(
    listed: impl IntoIterator<Item = (&'static str, Vec<Value>)>,
    events: impl IntoIterator<Item = (&'static str, Vec<Value>)>,
) -> String {
    let mut listed: HashMap<_, _> = listed.into_iter().collect();
    let mut events: HashMap<_, _> = events.into_iter().collect();
    let mut open = Vec::new();
    serve(loopback(), move |asked| {
        if asked.is_watch() {
            let said = events.remove(asked.plural.as_str()).unwrap_or_default();
            let (answer, sender) = watch(&said);
            open.push(sender);
            return answer;
        }
        list("5", &listed.remove(asked.plural.as_str()).unwrap_or_default(), "")
    })
}

fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = json!("");
    object
}

const HEADLESS: &str = "service.kubernetes.io/headless";
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

fn bookmark() -> Value {
    event("BOOKMARK", &service("", "9", 1))
}

/// S-1, S-2, E-5: the API server tells it as a deletion, and as an addition when the label goes.
#[tokio::test]
async fn s_1_s_2_e_5_labels_toggled_live_take_objects_away_and_give_them_back() {
    for label in [OTHER_PROXY, HEADLESS] {
        let url = scripted(
            [
                ("services", vec![service("a", "1", 1), service("b", "1", 1)]),
                ("endpointslices", vec![slice("a-1", "a"), slice("b-1", "b")]),
            ],
            [
                (
                    "services",
                    vec![
                        event("DELETED", &labelled(service("a", "6", 1), label)),
                        event("DELETED", &labelled(service("b", "7", 1), label)),
                        event("ADDED", &service("b", "8", 2)),
                    ],
                ),
                (
                    "endpointslices",
                    vec![
                        event("DELETED", &labelled(slice("a-1", "a"), label)),
                        event("DELETED", &labelled(slice("b-1", "b"), label)),
                        event("ADDED", &slice("b-1", "b")),
                    ],
                ),
            ],
        );
        let mut rig = Rig::new(&url);
        rig.until(|rig| rig.port("b") == Some(2) && rig.store.counts().slices == 1).await;
        assert_eq!(rig.port("a"), None);
        assert_eq!(rig.store.slices_of(&ObjectKey::new("shop", "b")).count(), 1);
    }
}

/// S-4: a server that knows no selectors sends everything, and it is selected here.
#[tokio::test]
async fn s_4_e_5_without_selectors_it_is_selected_here() {
    let headless = |mut service: Value| {
        service["spec"]["clusterIP"] = json!("None");
        service
    };
    let url = scripted(
        [
            (
                "services",
                vec![
                    service("a", "1", 1),
                    headless(service("b", "1", 1)),
                    labelled(service("c", "1", 1), OTHER_PROXY),
                ],
            ),
            ("endpointslices", vec![slice("a-1", "a"), labelled(slice("b-1", "b"), HEADLESS)]),
        ],
        [
            (
                "services",
                vec![
                    event("MODIFIED", &labelled(service("a", "6", 1), OTHER_PROXY)),
                    event("MODIFIED", &service("b", "7", 2)),
                ],
            ),
            ("endpointslices", vec![event("MODIFIED", &labelled(slice("a-1", "a"), HEADLESS))]),
        ],
    );
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.port("b") == Some(2) && rig.store.counts().slices == 0).await;
    assert_eq!((rig.port("a"), rig.port("c")), (None, None));
}

fn node(name: &str, zone: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

/// L-6, T-11: the zone follows; a Node that is deleted keeps its last one.
#[tokio::test]
async fn l_6_t_11_this_node_is_followed_until_it_is_deleted() {
    let url = scripted(
        [("nodes", vec![node("here", "a")])],
        [(
            "nodes",
            vec![
                event("MODIFIED", &node("here", "b")),
                event("MODIFIED", &node("there", "c")),
                event("DELETED", &node("there", "c")),
                event("DELETED", &node("here", "b")),
            ],
        )],
    );
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.store.node().is_some_and(|node| node.deleting)).await;
    assert_eq!(rig.store.node().map(|node| &*node.zone), Some("b"));
}

/// L-3: Services and slices are waited for, and nobody else. What is not there is asked for once.
#[tokio::test]
async fn l_3_neither_the_node_nor_service_cidrs_are_waited_for() {
    for code in [403, 404] {
        let asked_for_cidrs = Arc::new(AtomicUsize::new(0));
        let count = asked_for_cidrs.clone();
        let mut open = Vec::new();
        let url = serve(loopback(), move |asked| match asked.plural.as_str() {
            "servicecidrs" => {
                count.fetch_add(1, Relaxed);
                Some(Answer::Whole(code, status(code)))
            }
            "nodes" => Some(Answer::Whole(503, status(503))),
            _ if asked.is_watch() => {
                let (answer, sender) = watch(&[bookmark()]);
                open.push(sender);
                answer
            }
            "services" => list("5", &[service("a", "1", 1)], ""),
            _ => list("5", &[slice("a-1", "a")], ""),
        });
        let mut rig = Rig::new(&url);
        rig.until(|rig| rig.synced && asked_for_cidrs.load(Relaxed) > 0).await;
        rig.until(|rig| rig.alive > 1).await; // Both watches go on.
        assert_eq!((rig.store.node(), rig.store.service_cidrs().count()), (None, 0));
        assert_eq!((asked_for_cidrs.load(Relaxed), rig.reports.len()), (1, 0));
    }
}

#[tokio::test]
async fn v_13_service_cidrs_are_followed() {
    let cidr =
        |name: &str, cidrs: &[&str]| json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
    let url = scripted(
        [("servicecidrs", vec![cidr("kubernetes", &["10.96.0.0/12", "fd00::/112"])])],
        [(
            "servicecidrs",
            vec![
                event("ADDED", &cidr("more", &["10.112.0.0/16", "nonsense"])),
                event("DELETED", &cidr("kubernetes", &[])),
            ],
        )],
    );
    let mut rig = Rig::new(&url);
    rig.until(|rig| rig.store.service_cidrs().any(|cidr| &*cidr.name == "more")).await;
    rig.until(|rig| rig.store.service_cidrs().count() == 1).await;
    let more = rig.store.service_cidrs().next().unwrap();
    assert_eq!(more.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.112.0.0/16"]);
    assert_eq!(
        rig.reports.iter().map(|report| &*report.field).collect::<Vec<_>>(),
        ["spec.cidrs[1]"]
    );
}

/// A reflector of slices that follows what is sent into the first channel, and says into the second.
fn follow() -> (mpsc::Sender<Value>, mpsc::Receiver<SourceEvent>) {
    let (lines, read) = mpsc::channel::<Value>(8);
    let (sender, events) = mpsc::channel(8);
    let config = Config::new("http://127.0.0.1:9".parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let converter = Mutex::new(Converter::new("here"));
    let shared = Arc::new(Shared { converter, unlisted: AtomicUsize::new(2) });
    let mut reflector = Reflector::new(client, Resource::slices(), shared, sender);
    let lines_read = unfold(read, |mut read| async {
        let line = read.recv().await?;
        Some((Ok::<_, std::io::Error>(format!("{line}\n").into_bytes()), read))
    });
    let stream = Box::pin(lines_read).into_async_read();
    tokio::spawn(async move { reflector.follow(Lines::new(stream)).await.is_ok() });
    (lines, events)
}

/// The names of what changes in the next batch, and how long it took to come.
async fn next_batch(events: &mut mpsc::Receiver<SourceEvent>) -> (Vec<String>, u128) {
    let began = Instant::now();
    let event = timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    let SourceEvent::Batch(changes) = event else { panic!("{event:?}") };
    let names = changes.iter().map(|change| match change {
        Change::SetSlice(slice) => format!("+{}", slice.key.name),
        Change::DropSlice(key) => format!("-{}", key.name),
        other => panic!("{other:?}"),
    });
    (names.collect(), began.elapsed().as_millis())
}

fn emptied(mut slice: Value) -> Value {
    slice["endpoints"] = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]);
    slice
}

#[tokio::test(start_paused = true)]
async fn e_18_endpoints_that_move_between_slices_are_never_away() {
    for first in
        [event("DELETED", &slice("a", "web")), event("MODIFIED", &emptied(slice("a", "web")))]
    {
        let (lines, mut events) = follow();
        lines.send(first).await.unwrap();
        let second = tokio::spawn(async move {
            sleep(std::time::Duration::from_millis(20)).await;
            lines.send(event("ADDED", &slice("b", "web"))).await.unwrap();
            lines // Else the watch ends.
        });
        let (names, took) = next_batch(&mut events).await;
        assert_eq!((names.len(), &*names[1]), (2, "+b"));
        assert!(took <= 50, "{took} ms");
        second.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn e_18_nothing_is_waited_for_while_endpoints_are_left() {
    let (lines, mut events) = follow();
    for said in
        [event("ADDED", &emptied(slice("new", "web"))), event("MODIFIED", &slice("a", "web"))]
    {
        lines.send(said).await.unwrap();
        assert_eq!(next_batch(&mut events).await.1, 0);
    }
    // What was the last one is gone for good a moment later.
    lines.send(event("DELETED", &slice("a", "web"))).await.unwrap();
    assert_eq!(next_batch(&mut events).await, (vec!["-a".to_owned()], 50));
}
