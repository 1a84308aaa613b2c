//! When is what done about namespaces? The thread that looks after them.
//!
//! It looks which there are every few seconds, more often while pods come or are young, and never so
//! often that it would cost more than a twentieth of a CPU. UDP sockets are looked after one run at a
//! time; what changes meanwhile waits for one next run.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lb_common::abi::{MetaWord, NetnsRecord};

use super::changed::Changed;
use super::destroyer::Destroyer;
use super::ledger::{LOOK_YOUNG, Ledger};
use super::visit::visit;
use super::{Config, look, scan};
use crate::datapath::namespaces::NamespaceMaps;
use crate::datapath::{Error, Grace};

/// Between two looks at which namespaces there are, when nothing happens.
const CALM: Duration = Duration::from_secs(3);
/// The same for a while after interfaces have changed: a pod's processes come after its interface.
const EAGER: Duration = Duration::from_millis(250);
/// That while.
const EAGER_FOR: Duration = Duration::from_secs(10);
/// After a run that has not found all sockets.
const AGAIN: Duration = Duration::from_millis(200);
/// How many times longer than the last look the next pause is at least.
const PAUSES: u32 = 20;
/// The same for runs over sockets, within the second that they may take.
const RUN_PAUSES: u32 = 3;
const RUN_PAUSE_MAX: Duration = Duration::from_millis(500);

/// What the thread is told.
#[derive(Debug, Default)]
pub(super) struct Signal {
    told: Mutex<Told>,
    condition: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    /// The first commit of this process has been told.
    committed: bool,
    changed: Option<Changed>,
    interfaces: bool,
    stop: bool,
}

impl Signal {
    pub(super) fn committed(&self, changed: Changed) {
        let mut told = self.lock();
        let first = !std::mem::replace(&mut told.committed, true);
        let changed = if first { changed.at_start() } else { changed };
        // At first what died while no agent ran is looked for, whatever this commit changed.
        if first || !changed.is_empty() {
            told.changed.get_or_insert_default().add(changed);
            self.condition.notify_one();
        }
    }

    pub(super) fn interfaces_changed(&self) {
        self.lock().interfaces = true;
        self.condition.notify_one();
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.condition.notify_one();
    }

    /// What was told, at the latest at `deadline`. Changes are left for later until `runs_from`.
    fn wait(&self, deadline: Instant, runs_from: Instant) -> Told {
        let mut told = self.lock();
        loop {
            let now = Instant::now();
            let may_run = told.changed.is_some() && now >= runs_from;
            if told.stop || told.interfaces || may_run || now >= deadline {
                let changed = if may_run { told.changed.take() } else { None };
                let interfaces = std::mem::take(&mut told.interfaces);
                return Told { committed: told.committed, changed, interfaces, stop: told.stop };
            }
            let next = if told.changed.is_some() { deadline.min(runs_from) } else { deadline };
            let result = self.condition.wait_timeout(told, next.saturating_duration_since(now));
            told = result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Nothing is left half done by a panic here.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
#[derive(Debug)]
pub(super) struct Keeper {
    cgroup: PathBuf,
    maps: NamespaceMaps,
    grace: Grace,
    signal: Arc<Signal>,
    ledger: Ledger,
    destroyer: Destroyer,
    /// What `NETNS` holds.
    written: BTreeMap<u64, NetnsRecord>,
    /// Whether namespaces are looked at: not where the kernel has no cookies for them.
    looks: bool,
    /// What failed last, so that it is told once.
    failed: HashSet<&'static str>,
}

impl Keeper {
    pub(super) fn new(
        config: &Config,
        maps: NamespaceMaps,
        grace: Grace,
        signal: Arc<Signal>,
    ) -> Result<Self, Error> {
        let own = scan::own().map_err(Error::system("tell the own network namespace"))?;
        let looks = super::own_cookie();
        if let Err(error) = &looks {
            tracing::warn!(
                %error,
                "the kernel does not tell which network namespace is which (SO_NETNS_COOKIE, \
                 kernel 5.14): pods with a service mesh are not bypassed, and ClientIP affinity \
                 takes a pod's socket and its packets for two clients"
            );
        }
        // An earlier run's, most of them true.
        let written = maps.records()?.into_iter().collect();
        let bypass = config.bypass.iter().map(|cgroup| cgroup.id).collect();
        Ok(Self {
            cgroup: config.cgroup.clone(),
            maps,
            grace,
            signal,
            ledger: Ledger::new(own, config.scope),
            destroyer: Destroyer::new(config.cgroup.clone(), bypass),
            written,
            looks: looks.is_ok(),
            failed: HashSet::new(),
        })
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        let mut look_at = Instant::now();
        let mut eager_until = look_at;
        let mut runs_from = look_at;
        loop {
            let told = self.signal.wait(look_at, runs_from);
            if told.stop {
                return;
            }
            let began = Instant::now();
            if let Some(changed) = told.changed {
                self.scan(began);
                let again = self.destroy(&changed);
                let pause = (began.elapsed() * RUN_PAUSES).min(RUN_PAUSE_MAX);
                runs_from = Instant::now() + if again { pause.max(AGAIN) } else { pause };
                if again {
                    // With whatever comes until then.
                    self.signal.lock().changed.get_or_insert_default().add(changed);
                }
                continue;
            }
            if told.interfaces {
                eager_until = began + EAGER_FOR;
                look_at = look_at.min(began + EAGER);
            }
            if began < look_at {
                continue;
            }
            self.scan(began);
            self.look(began);
            self.write();
            let now = Instant::now();
            let pause = if now < eager_until {
                EAGER
            } else if self.ledger.has_young(now) {
                LOOK_YOUNG
            } else {
                CALM
            };
            look_at = now + pause.max(began.elapsed() * PAUSES);
        }
    }

    /// Which namespaces are there?
    fn scan(&mut self, now: Instant) {
        match scan::scan(&self.cgroup) {
            Ok(found) => {
                if found.hidden > 0 && self.failed.insert("hidden") {
                    tracing::warn!(
                        processes = found.hidden,
                        "the network namespaces of some processes cannot be told; run the agent \
                         with CAP_SYS_PTRACE"
                    );
                }
                if found.unseen > 0 && self.failed.insert("unseen") {
                    tracing::warn!(
                        processes = found.unseen,
                        "processes of the node are in another pid namespace, so that their network \
                         namespaces are not found; run the agent with hostPID"
                    );
                }
                self.ledger.found(&found, now);
                self.failed.remove("scan");
            }
            Err(error) => {
                if self.failed.insert("scan") {
                    tracing::warn!(%error, "which network namespaces there are cannot be told");
                }
            }
        }
    }

    /// Looks at those that are new, and now and then at the others.
    fn look(&mut self, now: Instant) {
        let due = self.ledger.due(now);
        if !self.looks || due.is_empty() {
            return;
        }
        // What the node's own redirects does not matter: nobody else could serve its sockets.
        for (place, result) in visit(&due, |place| look::look(place.pid.is_some())) {
            if let Err(error) = &result
                && error.kind() == std::io::ErrorKind::PermissionDenied
                && self.failed.insert("enter")
            {
                tracing::warn!(
                    netns = place.inode,
                    %error,
                    "a network namespace cannot be entered; run the agent with CAP_SYS_ADMIN and \
                     CAP_SYS_PTRACE: pods with a service mesh are not bypassed"
                );
            }
            self.ledger.seen(&place, result, now);
        }
    }

    /// Makes `NETNS` hold what is known.
    fn write(&mut self) {
        if !self.looks {
            return;
        }
        let wanted = self.ledger.records();
        let gone: Vec<u64> =
            self.written.keys().filter(|cookie| !wanted.contains_key(cookie)).copied().collect();
        for cookie in gone {
            if self.wrote(|maps| maps.remove(cookie)) {
                self.written.remove(&cookie);
            }
        }
        for (cookie, record) in wanted {
            if self.written.get(&cookie) != Some(&record)
                && self.wrote(|maps| maps.put(cookie, &record))
            {
                self.written.insert(cookie, record);
            }
        }
    }

    fn wrote(&mut self, write: impl FnOnce(&mut NamespaceMaps) -> Result<(), Error>) -> bool {
        match write(&mut self.maps) {
            Ok(()) => {
                self.failed.remove("write");
                true
            }
            Err(error) => {
                if self.failed.insert("write") {
                    tracing::warn!(%error, "tried again at the next look");
                }
                false
            }
        }
    }

    /// Ends sockets on what is gone. True if some were not found, and may be later.
    fn destroy(&mut self, changed: &Changed) -> bool {
        let began = Instant::now();
        // A program that chose by what was before may be about to write its record.
        if let Err(error) = self.grace.wait() {
            tracing::debug!(%error, "no grace period before UDP sockets are looked for");
        }
        match self.destroyer.run(&self.maps, &self.ledger, changed) {
            Ok(outcome) => {
                let sockets = outcome.dead_backend + outcome.vip;
                if sockets > 0 {
                    self.maps.add_meta(MetaWord::DestroyedSockets, sockets);
                    tracing::info!(
                        on_dead_backends = outcome.dead_backend,
                        to_changed_vips = outcome.vip,
                        namespaces = outcome.namespaces,
                        took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
                        "ended connected UDP sockets"
                    );
                }
                self.failed.remove("destroy");
                outcome.unfound > 0
            }
            Err(error) => {
                if self.failed.insert("destroy") {
                    tracing::warn!(%error, "UDP sockets on backends that are gone stay for now");
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(port: u32) -> Changed {
        Changed { ports: [port].into(), ..Changed::default() }
    }

    #[test]
    fn u10_the_first_commit_asks_for_a_run_and_later_ones_only_where_they_change_something() {
        let signal = Signal::default();
        let now = Instant::now();
        assert!(signal.wait(now, now).changed.is_none());
        signal.committed(Changed::default());
        assert_eq!(signal.wait(now, now).changed, Some(Changed::default()));
        signal.committed(Changed::default());
        assert!(signal.wait(now, now).changed.is_none());
        signal.committed(changed(1));
        signal.committed(changed(2));
        let told = signal.wait(now, now).changed.unwrap();
        assert_eq!(told.ports, [1, 2].into(), "one run for all that waits");
    }

    #[test]
    fn runs_keep_their_distance_and_looks_do_not_wait_for_them() {
        let signal = Signal::default();
        let now = Instant::now();
        signal.committed(changed(1));
        let later = now + Duration::from_mins(1);
        signal.interfaces_changed();
        let told = signal.wait(later, later);
        assert!(told.interfaces && told.changed.is_none());
        assert!(signal.wait(now, later).changed.is_none(), "kept");
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(signal.wait(later, soon).changed.is_some());
        assert!(Instant::now() >= soon);
        signal.stop();
        assert!(signal.wait(later, later).stop);
    }
}
