//! A BPF file system of a test's own: what is pinned there is gone when the guard is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{id, sys, wait};

/// Where the mounts of all tests are.
pub const DIR: &str = "/run/millrace-test";

/// A mounted BPF file system, unmounted on drop.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts a fresh one at `/run/millrace-test/<pid>-<n>`.
    pub fn new() -> Result<Self> {
        let path = Path::new(DIR).join(id::fresh());
        // Twice and more, since the last guard of another test may remove the common folder between.
        wait::until(&format!("{} to be made", path.display()), Duration::from_secs(2), || {
            fs::create_dir_all(&path).is_ok()
        })
        .context("are you root?")?;
        let bpffs = Self { path };
        sys::mount_bpffs(&bpffs.path)
            .with_context(|| format!("mount bpf at {}; are you root?", bpffs.path.display()))?;
        Ok(bpffs)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, as `lb-agent --bpffs` wants it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{} is left: {error:#}", self.path.display());
        }
    }
}

/// Mounts of this crate on this machine, with the process ids of their makers.
pub fn list() -> Vec<(PathBuf, u32)> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let owner = id::owner(entry.file_name().to_str()?, "")?;
            Some((entry.path(), owner))
        })
        .collect()
}

/// Unmounts and removes the folder, and the folder of all tests with the last one.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match sys::unmount(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
        other => other.with_context(|| format!("unmount {}", path.display()))?,
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.with_context(|| format!("remove {}", path.display()))?,
    }
    // It stays while another test uses it.
    drop(fs::remove_dir(DIR));
    Ok(())
}
