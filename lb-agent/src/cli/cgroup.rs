//! Where is the root of all cgroups of this node?
//!
//! A mount of cgroup2 shows the tree from the root of the cgroup namespace in which it was made. So
//! in a container the folder that looks like the root may be the container's own cgroup, and the
//! socket engine on it would serve nobody else. What process 1 has mounted is asked first: that is
//! the host's, where the agent is in the host's pid namespace.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lb_agent::datapath::hooks;

/// The folder of the root cgroup, as far up as this process can see.
pub(super) fn root() -> Option<PathBuf> {
    let mut found: Option<(usize, PathBuf)> = None;
    for process in ["1", "self"] {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        for (ups, mount) in roots(&mounts) {
            let Some(path) = reach(process, &mount) else { continue };
            if found.as_ref().is_none_or(|(best, _)| ups > *best) {
                found = Some((ups, path));
            }
        }
    }
    found.map(|(_, path)| path)
}

/// Whether a cgroup is the root of the whole machine: only the root has no `cgroup.events`.
pub(super) fn is_machine_root(path: &Path) -> bool {
    !path.join("cgroup.events").exists()
}

/// How to reach what a process has mounted at `mount`.
fn reach(process: &str, mount: &Path) -> Option<PathBuf> {
    let inside = mount.strip_prefix("/").ok()?;
    let there = Path::new("/proc").join(process).join("root").join(inside);
    let usable = |path: &Path| hooks::open_cgroup(path).is_ok();
    // The short name where it leads to the same folder.
    if usable(mount) && (same(mount, &there) || process == "self") {
        return Some(mount.to_owned());
    }
    usable(&there).then_some(there)
}

fn same(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    id(a).is_some() && id(a) == id(b)
}

/// The mount points of cgroup2 that show a whole tree, each with the number of levels that its root
/// lies above the root of this process's cgroup namespace.
fn roots(mountinfo: &str) -> Vec<(usize, PathBuf)> {
    let each = mountinfo.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        if rest.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = fields.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let mut parts = root.split('/').filter(|part| !part.is_empty());
        // Anything else shows a part of the tree only.
        parts.clone().all(|part| part == "..").then_some(())?;
        Some((parts.by_ref().count(), PathBuf::from(unescape(mount))))
    });
    each.collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_told_from_parts_of_the_tree() {
        let mounts = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
            42 31 0:38 /kubepods/pod1 /a/part rw - cgroup2 cgroup2 rw\n\
            43 31 0:38 /../.. /host\\040s/cgroup rw - cgroup2 cgroup2 rw\n\
            44 31 0:38 /../../other /another/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            roots(mounts),
            [(0, "/sys/fs/cgroup/unified".into()), (2, "/host s/cgroup".into())]
        );
    }
}
