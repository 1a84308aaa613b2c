//! What did a killed test leave? Namespaces, cgroups, mounts and folders that no living process
//! owns are removed.

use std::{fmt, path::Path};

use crate::{bpffs, cgroup, id, netns, scratch};

/// Whose remains are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of processes that have ended.
    TheDead,
    /// Everybody's: no test is running.
    Everyone,
}

/// What was found and what became of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Names and paths removed.
    pub removed: Vec<String>,
    /// Names and paths left, with the reason.
    pub failed: Vec<String>,
}

/// Removes what killed runs have left, processes in their cgroups included.
pub fn sweep(whose: Whose) -> Report {
    let mut report = Report::default();
    let wanted = |owner: u32| whose == Whose::Everyone || !id::alive(owner);
    // Cgroups first: the processes in them use all the rest.
    for (path, _) in cgroup::list().into_iter().filter(|(_, owner)| wanted(*owner)) {
        report.note(&path, cgroup::remove(&path));
    }
    for (path, _) in bpffs::list().into_iter().filter(|(_, owner)| wanted(*owner)) {
        report.note(&path, bpffs::remove(&path));
    }
    for (name, _) in netns::list().into_iter().filter(|(_, owner)| wanted(*owner)) {
        report.note(&Path::new(netns::DIR).join(&name), netns::remove(&name));
    }
    for (path, _) in scratch::list().into_iter().filter(|(_, owner)| wanted(*owner)) {
        report.note(&path, scratch::remove(&path));
    }
    report
}

/// Everything of this crate that exists now and was made by the process `pid`.
pub fn owned_by(pid: u32) -> Vec<String> {
    let paths = cgroup::list().into_iter().chain(bpffs::list()).chain(scratch::list());
    let namespaces = netns::list().into_iter();
    paths
        .map(|(path, owner)| (path.display().to_string(), owner))
        .chain(namespaces)
        .filter_map(|(name, owner)| (owner == pid).then_some(name))
        .collect()
}

impl Report {
    fn note(&mut self, path: &Path, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.removed.push(path.display().to_string()),
            Err(error) => self.failed.push(format!("{}: {error:#}", path.display())),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for path in &self.removed {
            writeln!(f, "removed {path}")?;
        }
        for failure in &self.failed {
            writeln!(f, "left {failure}")?;
        }
        Ok(())
    }
}
