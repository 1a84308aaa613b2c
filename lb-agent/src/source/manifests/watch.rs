//! When should which files be read again?
//!
//! Folders are watched, never files: an editor that renames a new file over the old one, or a
//! kubelet that swaps the symbolic link `..data` of a `ConfigMap`, would leave a watch on a file that
//! nobody sees any more.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, Event, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// A file is read once nothing happened for so long.
const QUIET: Duration = Duration::from_millis(20);
/// But never later than this after the first event: there may always be another.
const PATIENCE: Duration = Duration::from_millis(500);
/// A file that is open for writing is waited for so long: half of it may look like a whole.
const WRITING: Duration = Duration::from_secs(5);
/// More touched files than this are not told apart.
const MOST_TOUCHED: usize = 4096;

/// What was touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Files by name.
    pub(super) files: HashSet<PathBuf>,
    /// Something else: look at everything.
    pub(super) anything: bool,
    /// Files that are being written at this moment.
    open: HashSet<PathBuf>,
    any_event: bool,
}

impl Touched {
    /// Everything, as at the start or when events were lost.
    pub(super) fn all() -> Self {
        Self { anything: true, any_event: true, ..Self::default() }
    }

    fn add(&mut self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            _ => {
                *self = Self::all();
                return;
            }
        };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    self.open.remove(path);
                }
            }
            EventKind::Access(_) => return, // Reading, our own among it.
            EventKind::Modify(ModifyKind::Data(_)) => self.open.extend(event.paths.iter().cloned()),
            _ => {}
        }
        self.any_event = true;
        self.files.extend(event.paths);
        if self.files.len() > MOST_TOUCHED {
            *self = Self::all();
        }
    }
}

/// Watches folders.
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    touched: Mutex<Touched>,
    happened: Notify,
}

impl Shared {
    fn with<T>(&self, what: impl FnOnce(&mut Touched) -> T) -> T {
        // Whoever panicked while holding it left nothing half done.
        what(&mut self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watch {
    /// A watch on nothing.
    pub(super) fn new() -> notify::Result<Self> {
        let shared = Arc::new(Shared::default());
        let told = shared.clone();
        let watcher = notify::recommended_watcher(move |event| {
            told.with(|touched| touched.add(event));
            told.happened.notify_one();
        })?;
        Ok(Self { watcher, shared })
    }

    /// Watches `folder`, as the path leads to it now; again if it does already.
    pub(super) fn add(&mut self, folder: &Path) -> notify::Result<()> {
        // A watch stays with the folder that it was set on, not with the path.
        let _not_watched_before = self.watcher.unwatch(folder);
        self.watcher.watch(folder, RecursiveMode::NonRecursive)
    }

    /// Waits until something happened and is over, and tells what was touched.
    pub(super) async fn touched(&self) -> Touched {
        loop {
            self.shared.happened.notified().await;
            let (latest, closed) = (Instant::now() + PATIENCE, Instant::now() + WRITING);
            loop {
                let quiet = (Instant::now() + QUIET).min(latest);
                tokio::select! {
                    () = self.shared.happened.notified() => {}
                    () = sleep_until(quiet) => {
                        let writing = self.shared.with(|touched| !touched.open.is_empty());
                        if !writing || Instant::now() >= closed {
                            break;
                        }
                        // Whoever writes will close the file, which is another event.
                        tokio::select! {
                            () = self.shared.happened.notified() => {}
                            () = sleep_until(closed) => {}
                        }
                    }
                }
            }
            let touched = self.shared.with(std::mem::take);
            if touched.any_event {
                return touched;
            }
        }
    }
}
