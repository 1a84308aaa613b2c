//! When is tried again what failed?

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::super::tests::{CAPACITY, Flaky, Rig, changes, listed, pod_port, slice, web};
use super::super::{Event, Inputs};
use crate::datapath::fake::Fake;
use crate::datapath::{Datapath as _, interfaces};
use crate::model::{Change, ObjectKey};
use crate::plan::SourceRange;
use crate::source::SourceEvent;
use crate::sync::Sync;

#[test]
fn a_frontend_that_fails_is_tried_again_and_keeps_ids_in_use() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), listed()]);
    rig.sync.datapath.refuse = true;
    rig.step([changes(vec![Change::DropService(ObjectKey::new("default", "web"))])]);
    assert_eq!(rig.frontends().len(), 1);
    assert!(rig.sync.wants_retry() && rig.sync.grace.is_none());
    rig.step([]);
    assert_eq!((rig.frontends().len(), rig.sync.counts().failed_operations), (1, 2));
    rig.sync.datapath.refuse = false;
    rig.step([]);
    assert_eq!(rig.frontends().len(), 0);
    rig.grace();
    assert!(!rig.sync.wants_retry());
}

#[test]
fn a_range_that_a_crash_left_over_is_tried_to_be_cleared_until_it_is_gone() {
    let mut fake = Fake::new(CAPACITY);
    let range = crate::model::Cidr::of_one([203, 0, 113, 7].into());
    fake.source_ranges.insert(SourceRange { id: 3, range });
    let flaky = Flaky { fake, refuse: true, refuse_sockets: false, detaches: Arc::default() };
    let mut rig = Rig { sync: Sync::new(flaky, CAPACITY).unwrap() };
    assert!(rig.sync.retry_at.is_some());
    assert_eq!(rig.fake().source_ranges.len(), 1);
    rig.sync.datapath.refuse = false;
    rig.step([]);
    assert_eq!(rig.fake().source_ranges.len(), 0);
    assert_eq!(rig.sync.retry_at, None);
}

#[test]
fn an_interface_that_fails_is_tried_again_unless_it_is_gone() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([listed()]);
    rig.sync.datapath.refuse = true;
    rig.step([pod_port(3), pod_port(4)]);
    assert_eq!(rig.sync.counts().failed_attachments, 2);
    rig.sync.datapath.refuse = false;
    rig.step([Event::Interface(interfaces::Change::Gone(4))]);
    rig.step([]);
    assert_eq!(rig.fake().attached(), [3]);
    assert!(!rig.sync.wants_retry());
}

#[test]
fn an_interface_keeps_being_tried_until_its_programs_are_off() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([listed(), pod_port(3)]);
    rig.sync.datapath.refuse = true;
    rig.step([Event::Interface(interfaces::Change::Gone(3))]);
    rig.step([]);
    assert!(rig.sync.wants_retry());
    assert_eq!(rig.fake().attached(), [3]);
    rig.sync.datapath.refuse = false;
    rig.step([]);
    assert!(rig.fake().attached().is_empty());
    assert!(!rig.sync.wants_retry());
}

#[test]
fn hooks_of_sockets_that_fail_are_tried_again_and_keep_nothing_else_back() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.sync.datapath.refuse_sockets = true;
    rig.step([web(), pod_port(3), Event::Interface(interfaces::Change::Listed), listed()]);
    assert_eq!(rig.fake().attached(), [3]);
    assert!(!rig.fake().sockets && rig.sync.retry_at.is_some());
    assert!(rig.sync.started.is_some(), "not all is in force");
    rig.sync.datapath.refuse_sockets = false;
    rig.step([]);
    assert!(rig.fake().sockets && !rig.sync.wants_retry());
    assert!(rig.sync.started.is_none());
}

#[test]
fn a_grace_period_that_fails_is_not_tried_again_at_once() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), listed()]);
    rig.step([changes(vec![slice("web", "http", &[3, 4])])]);
    assert!(rig.sync.grace.is_some());
    rig.step([Event::GraceDone(Err(io::ErrorKind::PermissionDenied.into()))]);
    rig.step([Event::Source(SourceEvent::Alive)]);
    assert_eq!(rig.sync.grace, None, "it would fail again and again, as fast as it can");
    assert!(rig.sync.retry_at.is_some() && rig.sync.planner.waiting().is_some());
    rig.step([]);
    assert!(rig.sync.grace.is_some());
}

#[test]
fn a_steady_stream_of_events_does_not_put_off_what_failed() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), listed()]);
    rig.sync.datapath.refuse = true;
    rig.step([changes(vec![Change::DropService(ObjectKey::new("default", "web"))])]);
    rig.sync.datapath.refuse = false;
    let alive = || [Event::Source(SourceEvent::Alive)];
    let due = rig.sync.retry_at.unwrap();
    rig.step(alive());
    assert_eq!(rig.sync.retry_at, Some(due), "an event does not put it off");
    // The time has come, in the midst of events.
    rig.sync.retry_at = Some(Instant::now());
    rig.step(alive());
    assert_eq!(rig.frontends().len(), 0);
    rig.grace();
    assert_eq!(rig.sync.retry_at, None);
}

#[tokio::test(start_paused = true)]
async fn the_loop_wakes_up_by_itself_to_try_again() {
    let (source, events) = mpsc::channel(8);
    let (links, interfaces) = mpsc::channel(8);
    let (stop, shutdown) = oneshot::channel();
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([listed(), pod_port(3)]);
    rig.sync.datapath.refuse = true;
    rig.step([Event::Interface(interfaces::Change::Gone(3))]);
    let due = rig.sync.retry_at.unwrap() + Duration::from_millis(1);
    let detaches = rig.sync.datapath.detaches.clone();
    assert_eq!(detaches.load(Ordering::Relaxed), 1);
    let running = tokio::spawn(rig.sync.run(Inputs { source: events, interfaces, shutdown }));
    // Nobody sends anything; the clock is paused, and goes on to whatever timer is next.
    tokio::time::sleep_until(due.into()).await;
    assert!(detaches.load(Ordering::Relaxed) > 1);
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    drop((source, links));
}
