//! Which network namespaces do the processes of this node have?
//!
//! The processes are those in or below the node's cgroup; other nodes on the same kernel have their
//! own. A namespace without a process is of no interest: nobody opens sockets there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

/// Cgroups that are looked at, those near the root first: more than any node has. Whoever makes more
/// hides his own.
const MAX_CGROUPS: usize = 1 << 17;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Inode of each namespace, and a process in it: the one with the lowest number.
    pub(super) namespaces: BTreeMap<u64, u32>,
    /// Processes whose namespace could not be told.
    pub(super) hidden: u32,
    /// Processes that this process cannot even name, because they are in another pid namespace.
    pub(super) unseen: u32,
}

/// Looks at every process in or below a cgroup.
pub(super) fn scan(cgroup: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for (folder, _) in folders(cgroup)? {
        // A cgroup may have gone since, and one with threads of a process lists it elsewhere.
        let Ok(processes) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            // So are processes of other pid namespaces listed.
            if pid == 0 {
                found.unseen += 1;
                continue;
            }
            match namespace_of(pid) {
                Ok(inode) => {
                    let first = found.namespaces.entry(inode).or_insert(pid);
                    *first = pid.min(*first);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.hidden += 1,
                // It has ended.
                Err(_) => {}
            }
        }
    }
    Ok(found)
}

/// The folders of a cgroup and of all below it, each with its id, which is its inode.
pub(super) fn folders(cgroup: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut folders = vec![(cgroup.to_owned(), fs::metadata(cgroup)?.ino())];
    let mut next = 0;
    while let Some((folder, _)) = folders.get(next) {
        next += 1;
        // Gone since its parent was read.
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        let below: Vec<_> = below.map(|entry| (entry.path(), entry.ino())).collect();
        folders.extend(below);
        if folders.len() > MAX_CGROUPS {
            folders.truncate(MAX_CGROUPS);
            break;
        }
    }
    Ok(folders)
}

/// The inode of the network namespace of a process.
fn namespace_of(pid: u32) -> io::Result<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    link.to_str().and_then(inode).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The inode of this thread's network namespace.
pub(super) fn own() -> io::Result<u64> {
    let link = fs::read_link("/proc/thread-self/ns/net")?;
    link.to_str().and_then(inode).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// What a process is called; empty if it has ended.
pub(super) fn process_name(pid: u32) -> String {
    plain(&fs::read(format!("/proc/{pid}/comm")).unwrap_or_default())
}

/// A name that its owner chose, as logs and terminals may have it.
fn plain(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name.trim_ascii_end());
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_in_all_cgroups_below_and_their_namespaces_once() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path().join("kubepods/pod1");
        fs::create_dir_all(&pods).unwrap();
        fs::create_dir_all(root.path().join("empty")).unwrap();
        let me = std::process::id();
        // 0 is a process that cannot be seen from here; the last has ended.
        fs::write(root.path().join("cgroup.procs"), "0\n").unwrap();
        fs::write(pods.join("cgroup.procs"), format!("{me}\n{me}\n4194999\n")).unwrap();
        let found = scan(root.path()).unwrap();
        assert_eq!(found.namespaces, [(own().unwrap(), me)].into());
        assert_eq!((found.hidden, found.unseen), (0, 1));
        assert_eq!(folders(root.path()).unwrap().len(), 4);
        assert!(scan(&root.path().join("none")).is_err());
    }

    #[test]
    fn an_inode_is_read_from_a_link_of_the_kernels_form_only() {
        assert_eq!(inode("net:[4026531840]"), Some(4_026_531_840));
        for bad in ["", "net:[]", "net:[x]", "mnt:[1]", "net:[1", "/a/path"] {
            assert_eq!(inode(bad), None, "{bad}");
        }
        assert!(!process_name(std::process::id()).is_empty());
        assert_eq!(process_name(u32::MAX), "");
    }

    #[test]
    fn a_process_cannot_write_to_a_terminal_by_its_name() {
        assert_eq!(plain(b"envoy\n"), "envoy");
        assert_eq!(plain(b"\x1b[2J\x9b1m\xffx\n"), "?[2J\u{fffd}1m\u{fffd}x");
        assert_eq!(plain("a\u{9b}\nb\n".as_bytes()), "a??b");
    }
}
