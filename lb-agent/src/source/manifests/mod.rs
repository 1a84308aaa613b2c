//! Manifests on disk: a file or a folder of YAML or JSON, watched for changes.
//!
//! The embedded default for a dev machine, and the way to replay what
//! `kubectl get services,endpointslices,nodes -A -o json` says of any cluster.

mod folder;
mod json;
mod pieces;
mod read;
#[cfg(test)]
mod tests;
mod watch;
mod yaml;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use self::folder::{Manifest, Outcome};
use self::watch::{Touched, Watch};
use super::{Source, SourceError, SourceEvent};
use crate::convert::Converter;

/// Changes that are sent at once while everything is read for the first time.
const BATCH: usize = 1024;
/// A folder that went away is looked for so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Manifests on disk.
#[derive(Clone, Debug)]
pub struct Manifests {
    path: PathBuf,
}

impl Manifests {
    /// The file at `path`, or all files in the folder at `path` that end in `.yaml`, `.yml` or
    /// `.json` and are not hidden.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Source for Manifests {
    async fn run(
        self,
        converter: Converter,
        events: mpsc::Sender<SourceEvent>,
    ) -> Result<(), SourceError> {
        let path = std::path::absolute(&self.path).unwrap_or(self.path);
        let at = |source: io::Error| SourceError::Path { path: path.clone(), source };
        let mut manifest = Manifest::new(path.clone(), converter).map_err(at)?;
        let watch = |source: notify::Error| SourceError::Watch { path: path.clone(), source };
        let mut watching = Watch::new().map_err(watch)?;
        // Watched first, read then: what changes in between is read twice, not never.
        watch_all(&mut watching, &manifest).map_err(watch)?;

        let (mut begun, mut synced) = (false, false);
        let mut touched = Touched::all();
        while !events.is_closed() {
            let (back, outcome) = tokio::task::spawn_blocking(move || read(manifest, touched))
                .await
                .map_err(|source| SourceError::Reader { source })?;
            manifest = back;
            if send(&events, outcome, begun).await.is_err() {
                break;
            }
            let complete = manifest.is_complete();
            let event = match (complete, manifest.can_begin()) {
                (true, _) if !synced => Some(SourceEvent::Synced),
                (false, true) if !begun => Some(SourceEvent::SyncedInPart),
                _ => None,
            };
            if let Some(event) = event {
                if !complete {
                    tracing::error!(
                        path = %path.display(),
                        "not all manifests can be read, so that nobody can tell what is gone: what \
                         an earlier run programmed stays in force where no manifest says otherwise; \
                         repair or remove those that are reported"
                    );
                }
                (begun, synced) = (true, complete);
                if events.send(event).await.is_err() {
                    break;
                }
            }
            touched = tokio::select! {
                touched = next(&mut watching, &manifest) => touched,
                // Nothing tells when a folder can be listed again.
                () = sleep(LOOK_AGAIN), if !begun => Touched::all(),
                () = events.closed() => break,
            };
            if !begun {
                // The folder may be another one by now; if it is not there, this is not the last try.
                drop(watch_all(&mut watching, &manifest));
            }
        }
        Ok(())
    }
}

/// Reads what was touched; blocks.
fn read(mut manifest: Manifest, touched: Touched) -> (Manifest, Outcome) {
    let outcome =
        if touched.anything { manifest.scan() } else { manifest.read_again(touched.files) };
    (manifest, outcome)
}

/// Sends what was read; everything at once after the first time, so that nothing in between is ever
/// planned (contract E-18).
async fn send(
    events: &mpsc::Sender<SourceEvent>,
    outcome: Outcome,
    at_once: bool,
) -> Result<(), mpsc::error::SendError<SourceEvent>> {
    let Outcome { changes, reports } = outcome;
    if !reports.is_empty() {
        events.send(SourceEvent::Reports(reports)).await?;
    }
    if at_once && changes.is_empty() {
        return events.send(SourceEvent::Alive).await;
    }
    if at_once {
        return events.send(SourceEvent::Batch(changes)).await;
    }
    let mut changes = changes.into_iter().peekable();
    while changes.peek().is_some() {
        events.send(SourceEvent::Batch(changes.by_ref().take(BATCH).collect())).await?;
    }
    Ok(())
}

/// Waits for what concerns the manifests.
async fn next(watching: &mut Watch, manifest: &Manifest) -> Touched {
    loop {
        let mut touched = watching.touched().await;
        // A link or a folder on the way was replaced, or events were lost: look at everything, and
        // watch what the path leads to now.
        let moved = touched.files.iter().any(|path| is_on_the_way(path, manifest));
        if touched.anything || moved {
            touched.anything = true;
            while let Err(error) = watch_all(watching, manifest) {
                tracing::warn!(
                    path = %manifest.path().display(), %error,
                    "the manifests went away; what was read of them stays until they are back"
                );
                sleep(LOOK_AGAIN).await;
            }
            return touched;
        }
        touched.files.retain(|path| manifest.is_manifest(path));
        if !touched.files.is_empty() {
            return touched;
        }
    }
}

/// Whether `path` is not a manifest, but may lead to one.
fn is_on_the_way(path: &Path, manifest: &Manifest) -> bool {
    let name = path.file_name().map_or(&b""[..], |name| name.as_encoded_bytes());
    if manifest.is_folder() {
        path == manifest.path() || name.starts_with(b"..")
    } else {
        path != manifest.path()
            && (name.starts_with(b"..")
                || manifest.path().starts_with(path)
                || std::fs::canonicalize(manifest.path()).is_ok_and(|real| real.starts_with(path)))
    }
}

fn watch_all(watching: &mut Watch, manifest: &Manifest) -> notify::Result<()> {
    let path = manifest.path();
    let mut folders = Vec::new();
    if manifest.is_folder() {
        folders.push(path.to_owned());
    }
    if !manifest.is_folder() || path.is_symlink() {
        folders.extend(path.parent().map(Path::to_owned));
    }
    if let Ok(real) = std::fs::canonicalize(path)
        && !manifest.is_folder()
    {
        folders.extend(real.parent().map(Path::to_owned));
    }
    folders.sort_unstable();
    folders.dedup();
    folders.iter().try_for_each(|folder| watching.add(folder))
}
