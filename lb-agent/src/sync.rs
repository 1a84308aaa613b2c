//! When is what programmed? The loop that everything goes through.
//!
//! Events come from one queue; all that are queued are taken up together, and then one batch is
//! applied, so that a burst costs one commit and nothing in between is ever programmed.
//!
//! - Nothing is programmed before the source has told complete lists (contract L-3). What an
//!   earlier run left in force stays in force until then.
//! - Programs are attached once there is something in the maps.
//! - What went out of use is given to others only after a grace period, which is waited for on a
//!   thread of its own; meanwhile commits go on.
//! - The end of the loop leaves everything in place (L-7).

mod apply;
mod attach;
mod health_ports;
mod links;
mod node;
mod retry;
mod tell;
mod unread;
mod vital;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lb_common::abi::{ABI_VERSION, MetaWord};
use tokio::sync::{mpsc, oneshot};

use self::apply::{Element, log_failures};
use self::health_ports::HealthCheckPorts;
use self::links::Links;
pub use self::links::Outside;
use self::unread::Unread;
use crate::datapath::{Datapath, Error, Interface, interfaces, sys};
use crate::diff::{self, Op};
use crate::health::Health;
use crate::model::{DesiredPort, Dirty, ObjectKey, PortKey, Store};
use crate::namespaces;
use crate::plan::{Batch, Capacity, Planner, self_test};
use crate::policy::local::WrongFamily;
use crate::policy::node::NodePortAddresses;
use crate::policy::{self, Refusals};
use crate::source::{SourceEvent, Warning};

/// Everything that the loop reacts to.
#[derive(Debug)]
pub enum Event {
    /// What the source says.
    Source(SourceEvent),
    /// An interface came, changed its role or went.
    Interface(interfaces::Change),
    /// A grace period has passed, or could not be waited for.
    GraceDone(io::Result<()>),
    /// What became of XDP on an interface.
    Xdp(u32),
    /// Health check node ports can be had, or cannot any more.
    HealthPorts,
    /// Stop, and leave everything in place.
    Shutdown,
}

/// Where events come from, but for those of the loop itself. Each is bounded by who makes it.
#[derive(Debug)]
pub struct Inputs {
    /// The source, from [`crate::source::start`].
    pub source: mpsc::Receiver<SourceEvent>,
    /// The watch of interfaces, [`interfaces::watch`].
    pub interfaces: mpsc::Receiver<interfaces::Change>,
    /// Ready, or its sender dropped, when it is time to stop.
    pub shutdown: oneshot::Receiver<()>,
}

/// What the loop has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches applied.
    pub commits: u64,
    /// Operations that failed; they are tried again.
    pub failed_operations: u64,
    /// Reports on objects that are not served as they are.
    pub object_reports: u64,
    /// Reports on service ports that are not programmed as desired, and on conflicts.
    pub plan_reports: u64,
    /// Attachments that failed; they are tried again.
    pub failed_attachments: u64,
}

/// The state of the loop. `D` is the kernel, or maps in memory.
#[derive(Debug)]
pub struct Sync<D> {
    datapath: D,
    planner: Planner,
    store: Store,
    dirty: Dirty,
    /// The source has told complete lists.
    listed: bool,
    /// They left nothing out, so that what is in none of them is gone.
    whole: bool,
    /// Look for what is gone.
    sweep: bool,
    /// They are programmed.
    synced: bool,
    /// Programs are attached, the socket engine first, and interfaces are as they come.
    attached: bool,
    /// Why a hook of sockets that is needed could not be attached when that was last tried.
    sockets_failed: Option<String>,
    /// All interfaces, those that are ignored included.
    interfaces: BTreeMap<u32, Interface>,
    /// Those whose programs are to be looked at, there or gone.
    changed_interfaces: BTreeSet<u32>,
    /// Those that went; there may be others with their indices.
    gone_interfaces: BTreeSet<u32>,
    /// Those whose programs could not be attached or removed, with the reason as it was told.
    unsettled: BTreeMap<u32, String>,
    interfaces_listed: bool,
    links: Links,
    /// Why the agent cannot go on, if so.
    unfit: Option<WrongFamily>,
    /// The addresses of all interfaces, once they were told.
    addresses: Option<Vec<IpAddr>>,
    node_port_addresses: NodePortAddresses,
    /// What Services claim and do not get.
    refusals: Refusals,
    /// When the process started, until it was told how long it took to be in sync.
    started: Option<Instant>,
    /// The epoch whose grace period is waited for.
    grace: Option<u64>,
    /// It could not be waited for; that is tried again with everything else.
    grace_failed: bool,
    /// When what could not be done is tried again, whatever else happens until then.
    retry_at: Option<Instant>,
    /// Operations on elements of hashes that failed.
    failed: BTreeMap<Element, Op>,
    unread: Unread,
    /// What `META` tells of [`Self::tell_counts`].
    told: Option<[(MetaWord, usize); 5]>,
    counts: Counts,
    health: Health,
    health_ports: HealthCheckPorts,
    namespaces: Option<namespaces::Handle>,
    /// Where the datapath tells of XDP, while it does.
    xdp: Option<mpsc::Receiver<u32>>,
    /// Demotions of XDP that earlier runs counted.
    xdp_demotions: u64,
    /// How the thread that waits for a grace period tells that it has passed.
    grace_done: mpsc::Sender<io::Result<()>>,
    graces: mpsc::Receiver<io::Result<()>>,
}

impl<D: Datapath> Sync<D> {
    /// Takes over what is programmed. Blocks for a grace period if there is anything.
    pub fn new(mut datapath: D, capacity: Capacity) -> Result<Self, Error> {
        let found = datapath.snapshot()?;
        let (planner, retired) = Planner::adopt(capacity, &found);
        if !found.is_empty() {
            // A run that was killed may have taken things out of use a moment ago.
            datapath.grace().wait().map_err(Error::system("wait for a grace period"))?;
            tracing::info!(
                frontends = found.frontends.len(),
                service_ports = planner.programmed(),
                left_over = retired.len(),
                "took over what was programmed"
            );
        }
        log_failures(&datapath.apply(&[
            Op::Meta(MetaWord::AbiVersion, u64::from(ABI_VERSION)),
            Op::Meta(MetaWord::AgentPid, u64::from(std::process::id())),
            Op::Meta(MetaWord::Synced, 0),
        ]));
        let commits = found.meta[MetaWord::Commits as usize];
        let links = Links::new(datapath.told_interfaces()?);
        let (grace_done, graces) = mpsc::channel(1);
        let xdp = datapath.xdp_changed();
        let mut sync = Self {
            datapath,
            planner,
            store: Store::default(),
            dirty: Dirty::default(),
            listed: false,
            whole: false,
            sweep: false,
            synced: false,
            attached: false,
            sockets_failed: None,
            interfaces: BTreeMap::new(),
            changed_interfaces: BTreeSet::new(),
            gone_interfaces: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            interfaces_listed: false,
            links,
            unfit: None,
            addresses: None,
            node_port_addresses: NodePortAddresses::default(),
            refusals: Refusals::default(),
            started: Some(Instant::now()),
            grace: None,
            grace_failed: false,
            retry_at: None,
            failed: BTreeMap::new(),
            unread: Unread::default(),
            told: None,
            counts: Counts { commits, ..Counts::default() },
            health: Health::default(),
            health_ports: HealthCheckPorts::default(),
            namespaces: None,
            xdp,
            xdp_demotions: found.meta[MetaWord::XdpDemotions as usize],
            grace_done,
            graces,
        };
        // What fails is tried again: a source range that stays would let somebody in to the next owner
        // of its id.
        sync.run_ops(&diff::clear(&retired));
        if !found.frontends.is_empty() {
            sync.attach_all();
        }
        sync.schedule_retry();
        Ok(sync)
    }

    /// When the process started, if that was before [`Sync::new`].
    #[must_use]
    pub fn started_at(self, started: Instant) -> Self {
        Self { started: Some(started), ..self }
    }

    /// Which addresses of the node serve node ports, if not its primary ones.
    #[must_use]
    pub fn with_node_port_addresses(self, node_port_addresses: NodePortAddresses) -> Self {
        Self { node_port_addresses, ..self }
    }

    /// Whom to tell of commits and interfaces, for what they mean in other network namespaces.
    #[must_use]
    pub fn with_namespaces(self, namespaces: namespaces::Handle) -> Self {
        Self { namespaces: Some(namespaces), ..self }
    }

    /// Whom to tell what is queued and what is in force.
    #[must_use]
    pub fn with_health(self, health: Health) -> Self {
        Self { health, ..self }
    }

    /// Where to tell of what is wrong with single objects, beside the log.
    #[must_use]
    pub fn with_warnings(mut self, warnings: mpsc::Sender<Warning>) -> Self {
        self.health_ports.warnings = Some(warnings);
        self
    }

    /// Runs until it is told to stop, or until the source has ended; fails if what it was told of pods'
    /// addresses cannot be meant for this node. Everything stays in place.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<(), WrongFamily> {
        let mut interfaces = true;
        loop {
            let retry_at = self.retry_at;
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending::<()>().await,
                }
            };
            let first = tokio::select! {
                event = inputs.source.recv() => Some(event.map_or(Event::Shutdown, Event::Source)),
                change = inputs.interfaces.recv(), if interfaces => {
                    interfaces = change.is_some();
                    change.map(Event::Interface)
                }
                result = self.graces.recv() => result.map(Event::GraceDone),
                index = xdp::changed(&mut self.xdp) => Some(Event::Xdp(index)),
                () = self.health.ports().outcome() => Some(Event::HealthPorts),
                _ = &mut inputs.shutdown => Some(Event::Shutdown),
                () = retry => None,
            };
            // All that is queued is one burst.
            let mut burst: Vec<Event> = first.into_iter().collect();
            while let Ok(event) = inputs.source.try_recv() {
                burst.push(Event::Source(event));
            }
            while let Ok(change) = inputs.interfaces.try_recv() {
                burst.push(Event::Interface(change));
            }
            if !self.step(burst) {
                tracing::info!("stopped; what is programmed stays in force");
                return self.unfit.map_or(Ok(()), Err);
            }
        }
    }

    /// Takes up some events together; false if one says to stop, or leaves no way to go on. Without events, or when it is time,
    /// tries again what failed.
    pub fn step(&mut self, events: impl IntoIterator<Item = Event>) -> bool {
        let mut changes = Vec::new();
        let (mut any, mut alive) = (false, false);
        for event in events {
            any = true;
            match event {
                Event::Source(event) => {
                    alive = true;
                    match event {
                        SourceEvent::Batch(batch) => changes.extend(batch),
                        SourceEvent::Reports(reports) => self.log_objects(&reports),
                        SourceEvent::SyncedInPart => self.listed = true,
                        SourceEvent::Synced => {
                            (self.listed, self.whole, self.sweep) = (true, true, self.synced);
                        }
                        SourceEvent::Alive => {}
                    }
                }
                Event::Interface(change) => self.interface(change),
                Event::GraceDone(result) => self.grace_done(result),
                Event::Xdp(_) => self.xdp(),
                Event::HealthPorts => self.health_ports_outcome(),
                Event::Shutdown => return false,
            }
        }
        if alive {
            let seen = Op::Meta(MetaWord::SourceSeenMs, unix_ms());
            log_failures(&self.datapath.apply(&[seen]));
        }
        if !changes.is_empty() {
            self.tell_queued();
        }
        self.dirty.services.extend(self.unread.settle(&changes));
        let Dirty { services, node } = self.store.apply_all(changes);
        self.dirty.services.extend(services);
        self.dirty.node |= node;
        self.links.changed |= node;
        if let Err(error) = self.tell_links() {
            self.unfit = Some(error);
            return false;
        }
        self.settle_changed();
        let commits = self.counts.commits;
        self.commit();
        if !any || self.retry_is_due() {
            self.retry();
        }
        if let Err(error) = self.tell_links() {
            self.unfit = Some(error);
            return false;
        }
        self.start_grace();
        self.schedule_retry();
        self.tell_health_ports(self.counts.commits != commits);
        self.tell_counts();
        self.tell_synced();
        self.tell_health();
        true
    }

    /// What is counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The datapath.
    pub fn datapath(&self) -> &D {
        &self.datapath
    }

    /// What is known of the cluster.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn commit(&mut self) {
        if !self.listed {
            return;
        }
        if self.synced && !self.sweep && self.dirty.is_empty() && !self.planner.wants_retry() {
            return;
        }
        let started = Instant::now();
        let calls = sys::calls();
        let dirty = std::mem::take(&mut self.dirty);
        let sweep = std::mem::take(&mut self.sweep);
        if dirty.node {
            self.tell_node();
        }
        // Before the first plan, these are all Services.
        self.tell_refusals(&dirty.services);
        self.note_health_ports(&dirty.services);
        let batch = if self.synced && !sweep { self.plan(&dirty) } else { self.plan_all() };
        self.log_plan(&batch.reports);
        let first = !std::mem::replace(&mut self.synced, true);
        if !batch.is_empty() || first {
            let bytes_stored = self.apply(batch);
            let after = sys::calls();
            tracing::info!(
                commit = self.counts.commits,
                service_ports = self.planner.programmed(),
                conflicts = self.planner.conflicts(),
                unprogrammed = self.planner.failed(),
                bpf_calls = after.bpf - calls.bpf,
                membarrier_calls = after.membarrier - calls.membarrier,
                bytes_stored,
                took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                "committed"
            );
        }
        if first && !self.attached {
            self.attach_all();
        }
    }

    fn plan_all(&mut self) -> Batch {
        let keys: Vec<ObjectKey> = self.store.services().map(|s| s.key.clone()).collect();
        let store = &self.store;
        let services = keys.iter().flat_map(|key| policy::service_ports(store, key));
        // What was last read of these is in the maps only.
        let (unread, whole) = (&self.unread, self.whole);
        let is_kept = |key: &PortKey| !whole || unread.has_service(&key.namespace, &key.service);
        self.planner.plan_all_but(services.chain(self_test::ports()), is_kept)
    }

    fn plan(&mut self, dirty: &Dirty) -> Batch {
        let mut updates: Vec<(PortKey, Option<DesiredPort>)> = Vec::new();
        for service in &dirty.services {
            let ports = policy::service_ports(&self.store, service);
            for old in self.planner.ports_of(&service.namespace, &service.name) {
                if !ports.iter().any(|(key, _)| *key == old) {
                    updates.push((old, None));
                }
            }
            updates.extend(ports.into_iter().map(|(key, desired)| (key, Some(desired))));
        }
        self.planner.plan(updates)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;
