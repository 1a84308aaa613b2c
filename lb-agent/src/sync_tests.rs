//! The loop against maps in memory: when is something programmed, attached, given up?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lb_common::abi;

use super::*;
use crate::convert;
use crate::datapath::fake::Fake;
use crate::datapath::roles::{Device, Role};
use crate::datapath::{Grace, Lacking};
use crate::health;
use crate::model::{
    Change, ClusterIps, Conditions, Endpoint, Endpoints, Family, Node, Protocol, Service,
    ServicePort, Slice, SlicePort,
};
use crate::plan::{Cidr, FrontKey, Snapshot, self_test};

pub(super) const CAPACITY: Capacity = Capacity {
    service_ports: 16,
    backends: 32,
    slots: 32,
    frontends: 16,
    addresses: 16,
    source_ranges: 16,
};

/// Maps in memory, in which frontends, ranges that go, interfaces and sockets can be made to fail.
#[derive(Debug)]
pub(super) struct Flaky {
    pub(super) fake: Fake,
    pub(super) refuse: bool,
    pub(super) refuse_sockets: bool,
    /// How often an interface's programs were to be taken off.
    pub(super) detaches: Arc<AtomicUsize>,
}

impl Datapath for Flaky {
    fn apply(&mut self, ops: &[Op]) -> Vec<(usize, Error)> {
        let refused = |op: &Op| {
            matches!(op, Op::FrontendPut(..) | Op::FrontendDelete(_) | Op::SourceRangeDelete(_))
        };
        let mut failed = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if self.refuse && refused(op) {
                failed.push((index, Error::Bounds { map: "FRONTENDS4", index: 0 }));
            } else {
                failed.extend(self.fake.apply(std::slice::from_ref(op)));
            }
        }
        failed
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        self.fake.snapshot()
    }

    fn grace(&self) -> Grace {
        self.fake.grace()
    }

    fn attach_sockets(&mut self) -> Result<(), Error> {
        if self.refuse_sockets {
            return Err(Error::NoProgram("connect4"));
        }
        self.fake.attach_sockets()
    }

    fn lacking(&self) -> &[Lacking] {
        self.fake.lacking()
    }

    fn attach(&mut self, interface: &Interface) -> Result<(), Error> {
        if self.refuse {
            return Err(Error::NoProgram("tc_ingress"));
        }
        self.fake.attach(interface)
    }

    fn detach(&mut self, index: u32) -> Result<(), Error> {
        self.detaches.fetch_add(1, Ordering::Relaxed);
        if self.refuse {
            return Err(Error::NoProgram("tc_ingress"));
        }
        self.fake.detach(index)
    }

    fn attached(&self) -> Vec<u32> {
        self.fake.attached()
    }

    fn told_interfaces(&self) -> Result<Vec<(u32, abi::Interface)>, Error> {
        self.fake.told_interfaces()
    }

    fn tell_interface(
        &mut self,
        index: u32,
        interface: Option<&abi::Interface>,
    ) -> Result<(), Error> {
        if self.refuse {
            return Err(Error::Bounds { map: "INTERFACES", index });
        }
        self.fake.tell_interface(index, interface)
    }

    fn set_local_cidrs(&mut self, family: Family, list: &[Cidr]) {
        self.fake.set_local_cidrs(family, list);
    }
}

pub(super) struct Rig {
    pub(super) sync: Sync<Flaky>,
}

impl Rig {
    pub(super) fn new(fake: Fake) -> Self {
        let flaky = Flaky { fake, refuse: false, refuse_sockets: false, detaches: Arc::default() };
        Self { sync: Sync::new(flaky, CAPACITY).unwrap() }
    }

    pub(super) fn step(&mut self, events: impl IntoIterator<Item = Event>) {
        assert!(self.sync.step(events));
    }

    /// Takes up that a grace period has passed.
    pub(super) fn grace(&mut self) {
        let result = self.sync.graces.blocking_recv().unwrap();
        assert!(result.is_ok());
        self.step([Event::GraceDone(result)]);
    }

    pub(super) fn fake(&mut self) -> &mut Fake {
        &mut self.sync.datapath.fake
    }

    pub(super) fn frontends(&mut self) -> Vec<String> {
        let of_cluster = |key: &&FrontKey| key.port() != self_test::PORT;
        self.fake().frontends.keys().filter(of_cluster).map(ToString::to_string).collect()
    }

    pub(super) fn backends(&mut self) -> Vec<String> {
        let fake = self.fake();
        let reach = fake.frontends.keys().filter_map(|key| fake.reach(key)).flatten();
        reach.map(|backend| crate::plan::address(&backend.addr, false).to_string()).collect()
    }
}

pub(super) fn service(name: &str, last_octet: u8, port: &str) -> Change {
    Change::SetService(Service {
        key: ObjectKey::new("default", name),
        created_s: 1,
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, last_octet].into()), v6: None },
        ports: [ServicePort { name: port.into(), port: 80, node_port: 0, protocol: Protocol::Tcp }]
            .into(),
        internal_local: false,
        affinity_timeout_s: None,
        external: None,
    })
}

pub(super) fn slice(service: &str, port: &str, last_octets: &[u8]) -> Change {
    let ready = Conditions::READY.with(Conditions::SERVING, true);
    let endpoint = |n: &u8| Endpoint { addr: [10, 0, 0, *n].into(), conditions: ready, zones: 0 };
    Change::SetSlice(Slice {
        key: ObjectKey::new("default", &format!("{service}-1")),
        service: service.into(),
        ports: [SlicePort { name: port.into(), port: 8080, protocol: Protocol::Tcp }].into(),
        endpoints: Endpoints::new(Family::V4, last_octets.iter().map(endpoint)),
        zone_sets: Box::default(),
    })
}

pub(super) fn changes(changes: Vec<Change>) -> Event {
    Event::Source(SourceEvent::Batch(changes))
}

pub(super) fn listed() -> Event {
    Event::Source(SourceEvent::Synced)
}

pub(super) fn web() -> Event {
    changes(vec![service("web", 1, "http"), slice("web", "http", &[1, 2])])
}

pub(super) fn pod_port(index: u32) -> Event {
    let name = format!("veth{index}");
    Event::Interface(interfaces::Change::Is(Interface {
        index,
        name,
        role: Role::PodPort,
        ethernet: true,
        device: Device::default(),
    }))
}

#[test]
fn nothing_is_programmed_before_the_lists_are_complete() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), pod_port(3)]);
    assert_eq!(rig.frontends(), Vec::<String>::new());
    assert!(!rig.fake().sockets && rig.fake().interfaces.is_empty());
    rig.step([listed()]);
    assert_eq!(rig.frontends(), ["10.96.0.1:80/tcp"]);
    assert_eq!(rig.backends(), ["10.0.0.1", "10.0.0.2"]);
    assert!(rig.fake().sockets);
    assert_eq!(rig.fake().attached(), [3]);
    assert_eq!(rig.fake().meta[MetaWord::Synced as usize], 1);
}

#[test]
fn a_burst_is_one_commit() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([listed()]);
    let commits = rig.sync.counts().commits;
    rig.step([
        web(),
        changes(vec![slice("web", "http", &[1])]),
        changes(vec![slice("web", "http", &[1, 7])]),
    ]);
    assert_eq!(rig.backends(), ["10.0.0.1", "10.0.0.7"]);
    assert_eq!(rig.sync.counts().commits, commits + 1);
    rig.step([changes(vec![slice("web", "http", &[1, 7])]), Event::Source(SourceEvent::Alive)]);
    assert_eq!(rig.sync.counts().commits, commits + 1, "nothing changed");
}

#[test]
fn a_service_that_goes_or_renames_its_port_leaves_nothing_behind() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), listed()]);
    rig.step([changes(vec![service("web", 1, "api"), slice("web", "api", &[5])])]);
    assert_eq!(rig.backends(), ["10.0.0.5"]);
    rig.step([changes(vec![Change::DropService(ObjectKey::new("default", "web"))])]);
    assert_eq!(rig.frontends(), Vec::<String>::new());
    while rig.sync.grace.is_some() {
        rig.grace();
    }
    let left = rig.fake().snapshot().unwrap();
    assert!(left.ports.iter().all(|row| row.name.starts_with(self_test::NAMESPACE)));
    let word = |backend: &lb_common::abi::Backend| lb_common::abi::BackendWord(backend.word);
    assert!(left.backends.iter().all(|(_, backend)| word(backend).flags() == 0));
}

#[test]
fn what_an_earlier_run_left_stays_until_the_lists_are_complete() {
    let mut first = Rig::new(Fake::new(CAPACITY));
    first.step([web(), changes(vec![service("old", 2, "http")]), listed()]);
    first.step([pod_port(3), pod_port(4)]);
    assert!(!first.sync.step([Event::Shutdown]));
    let mut fake = first.sync.datapath.fake;
    fake.sockets = false;
    let mut rig = Rig::new(fake);
    assert!(rig.fake().sockets, "programs are replaced at once where there is something to serve");
    rig.step([web(), pod_port(3), Event::Interface(interfaces::Change::Listed)]);
    assert_eq!(rig.fake().attached(), [3]);
    assert_eq!(rig.frontends().len(), 2);
    let applied = rig.fake().sets.clone();
    rig.step([listed()]);
    assert_eq!(rig.frontends(), ["10.96.0.1:80/tcp"]);
    assert_eq!(rig.fake().sets, applied, "the Service that is the same is not written");
}

#[test]
fn what_goes_out_of_use_is_reused_after_a_grace_period_only() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), listed()]);
    assert_eq!(rig.sync.grace, None, "nothing went out of use");
    rig.step([changes(vec![slice("web", "http", &[3, 4])])]);
    assert!(rig.sync.grace.is_some());
    rig.step([changes(vec![slice("web", "http", &[5, 6])])]);
    assert_eq!(rig.fake().backends[5..7].iter().filter(|b| b.word != 0).count(), 2);
    rig.grace();
    rig.grace();
    assert_eq!(rig.sync.planner.waiting(), None);
    rig.step([changes(vec![slice("web", "http", &[7, 8])])]);
    assert_eq!(rig.fake().backends[7].word, 0, "ids of the first set are used again");
}

#[test]
fn nothing_of_an_interface_is_taken_for_that_of_the_next_with_its_index() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([web(), pod_port(3), Event::Interface(interfaces::Change::Listed), listed()]);
    rig.step([pod_port(3)]);
    let detaches = rig.sync.datapath.detaches.clone();
    assert_eq!(detaches.load(Ordering::Relaxed), 0);
    rig.step([Event::Interface(interfaces::Change::Gone(3)), pod_port(3)]);
    assert_eq!((detaches.load(Ordering::Relaxed), rig.fake().attached()), (1, vec![3]));
}

#[test]
fn objects_are_skipped_until_they_can_be_read() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    let report = convert::Report {
        origin: convert::Origin::Api,
        kind: convert::Kind::Service.name(),
        namespace: "default".into(),
        name: "web".into(),
        field: "spec".into(),
        problem: "missing".into(),
        skipped: convert::Skipped::Object,
    };
    let skipped = |rig: &mut Rig| rig.fake().meta[MetaWord::SkippedObjects as usize];
    rig.step([Event::Source(SourceEvent::Reports(vec![report])), listed()]);
    assert_eq!((skipped(&mut rig), rig.sync.counts().object_reports), (1, 1));
    rig.step([web()]);
    assert_eq!(skipped(&mut rig), 0);
}

fn bad_service(name: &str) -> Event {
    let report = convert::Report {
        origin: convert::Origin::Api,
        kind: convert::Kind::Service.name(),
        namespace: "default".into(),
        name: name.into(),
        field: "spec".into(),
        problem: "missing".into(),
        skipped: convert::Skipped::Object,
    };
    Event::Source(SourceEvent::Reports(vec![report]))
}

#[test]
fn a_service_that_a_restart_cannot_read_stays_until_it_can_or_is_gone() {
    for gone in [
        Change::DropService(ObjectKey::new("default", "old")),
        Change::ReplaceServices { services: Vec::new(), keep: Vec::new() },
    ] {
        let mut first = Rig::new(Fake::new(CAPACITY));
        let third = service("third", 3, "http");
        first.step([web(), changes(vec![service("old", 2, "http"), third]), listed()]);
        let mut rig = Rig::new(first.sync.datapath.fake);
        rig.step([web(), bad_service("old"), listed()]);
        assert_eq!(rig.frontends(), ["10.96.0.1:80/tcp", "10.96.0.2:80/tcp"]);
        rig.step([web()]);
        assert_eq!(rig.frontends().len(), 2);
        rig.step([changes(vec![gone])]);
        assert!(!rig.frontends().contains(&"10.96.0.2:80/tcp".to_owned()));
        rig.step([changes(vec![service("old", 4, "http")])]);
        assert!(rig.frontends().contains(&"10.96.0.4:80/tcp".to_owned()));
    }
}

#[test]
fn what_an_earlier_run_left_stays_as_long_as_lists_are_known_in_part() {
    let mut first = Rig::new(Fake::new(CAPACITY));
    first.step([changes(vec![service("old", 2, "http")]), listed()]);
    let mut rig = Rig::new(first.sync.datapath.fake);
    rig.step([web(), Event::Source(SourceEvent::SyncedInPart)]);
    assert_eq!(rig.frontends(), ["10.96.0.1:80/tcp", "10.96.0.2:80/tcp"]);
    rig.step([listed()]);
    assert_eq!(rig.frontends(), ["10.96.0.1:80/tcp"]);
}

#[test]
fn what_is_not_programmed_is_told_without_a_commit() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    rig.step([listed()]);
    let told = |rig: &mut Rig, word: MetaWord| rig.fake().meta[word as usize];
    let commits = rig.sync.counts().commits;
    let many: Vec<u8> = (1..40).collect();
    rig.step([changes(vec![service("big", 1, "http"), slice("big", "http", &many)])]);
    rig.step([bad_service("x")]);
    assert_eq!(rig.sync.counts().commits, commits, "nothing fits, and nothing is committed");
    assert_eq!(told(&mut rig, MetaWord::Unprogrammed), 1);
    assert_eq!(told(&mut rig, MetaWord::SkippedObjects), 1);
    rig.step([changes(vec![slice("big", "http", &[1])])]);
    assert_eq!(told(&mut rig, MetaWord::Unprogrammed), 0);
}

#[tokio::test]
async fn the_loop_serves_until_it_is_told_to_stop() {
    let (source, events) = mpsc::channel(8);
    let (_links, interfaces) = mpsc::channel(8);
    let (stop, shutdown) = oneshot::channel();
    let sync = Sync::new(Fake::new(CAPACITY), CAPACITY).unwrap();
    let inputs = Inputs { source: events, interfaces, shutdown };
    for event in [web(), listed()] {
        let Event::Source(event) = event else { panic!("both are of the source") };
        source.send(event).await.unwrap();
    }
    let running = tokio::spawn(sync.run(inputs));
    source.send(SourceEvent::Alive).await.unwrap();
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

/// H-3, H-6: what is in force does not age; an operation that fails makes its family unhealthy, and
/// only until it succeeds.
#[test]
fn h_3_an_update_that_is_not_in_force_is_told_as_waiting() {
    let minute = Duration::from_mins(1);
    let mut rig = Rig::new(Fake::new(CAPACITY));
    let health = rig.sync.health.clone();
    let lives = || health.is_healthy_in(health::Endpoint::Livez, minute);
    rig.step([web()]);
    assert!(lives(), "an API server that does not tell everything is not our illness");
    rig.sync.datapath.refuse = true;
    rig.step([listed()]);
    assert!(!lives());
    rig.sync.datapath.refuse = false;
    rig.step([]);
    assert!(lives());
    rig.sync.datapath.refuse_sockets = true;
    rig.sync.attach_sockets();
    rig.step([changes(vec![slice("web", "http", &[1, 2])])]);
    assert!(!lives(), "sockets are not served");
}

#[test]
fn h_4_the_node_is_told_as_it_comes_and_goes() {
    let mut rig = Rig::new(Fake::new(CAPACITY));
    let health = rig.sync.health.clone();
    let ready = || health.is_healthy_in(health::Endpoint::Healthz, Duration::ZERO);
    assert!(!ready(), "not seen yet");
    let node = Node { name: "here".into(), ..Node::default() };
    rig.step([changes(vec![Change::SetNode(node.clone())])]);
    assert!(ready());
    rig.step([changes(vec![Change::SetNode(Node { removal_planned: true, ..node.clone() })])]);
    assert!(!ready());
    rig.step([changes(vec![Change::SetNode(node)])]);
    assert!(ready());
    rig.step([changes(vec![Change::DropNode])]);
    assert!(!ready());
}
