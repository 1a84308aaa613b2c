//! Cgroups: found, made, joined, removed with all that runs in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{id, sys, wait};

/// What names of this crate's cgroups begin with.
pub const PREFIX: &str = "millrace-test-";
/// How long killed processes may take to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A cgroup, removed on drop together with its children and all processes in them.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A fresh `millrace-test-<pid>-<n>` below the cgroup2 mount.
    pub fn new() -> Result<Self> {
        Self::make(mount_point()?.join(format!("{PREFIX}{}", id::fresh())))
    }

    /// A cgroup within this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    /// Its folder, as `lb-agent --cgroup` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        let procs = self.path.join("cgroup.procs");
        fs::write(&procs, pid.to_string())
            .with_context(|| format!("move process {pid} into {}", procs.display()))
    }

    /// Ids of the processes in it, children not included.
    pub fn processes(&self) -> Vec<u32> {
        processes(&self.path)
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)
            .with_context(|| format!("make cgroup {}; are you root?", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("cgroup {} is left: {error:#}", self.path.display());
        }
    }
}

/// Where cgroup2 is mounted, whatever the layout of the machine.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the list of mounts")?;
    find_mount(&mounts).context(
        "no cgroup2 mount found; mount one: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )
}

/// This crate's cgroups on this machine, with the process ids of their makers.
pub fn list() -> Vec<(PathBuf, u32)> {
    let Some(entries) = mount_point().ok().and_then(|at| fs::read_dir(at).ok()) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let owner = id::owner(entry.file_name().to_str()?, PREFIX)?;
            Some((entry.path(), owner))
        })
        .collect()
}

/// Kills what runs in a cgroup and its children, then removes them.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let children = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("list {}", path.display()))?,
    };
    for child in children {
        let child = child.with_context(|| format!("list {}", path.display()))?;
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path())?;
        }
    }
    let what = format!("processes to leave {}", path.display());
    wait::until(&what, EMPTY_WITHIN, || {
        // A process may fork while it is being killed, hence again and again until none is left.
        for pid in processes(path) {
            // It fails for a process that has just gone.
            drop(sys::kill(pid, libc::SIGKILL));
        }
        // The kernel lets go of a dying process a moment after it has left the list.
        matches!(
            fs::remove_dir(path).map_err(|error| error.kind()),
            Ok(()) | Err(io::ErrorKind::NotFound)
        )
    })
}

fn processes(path: &Path) -> Vec<u32> {
    let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The mount point field of the first cgroup2 line: fields after a lone `-` begin with the type.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        (rest.split(' ').next() == Some("cgroup2"))
            .then(|| fields.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let hybrid = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount("32 31 0:29 / /x rw - cgroup cgroup2 rw,cpu\n"), None);
    }
}
