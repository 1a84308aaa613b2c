//! Which cgroups are left alone, and which are not?

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lb_common::abi::BypassCgroup;

use super::scan;
use crate::datapath::{self, hooks};

/// Levels that a hierarchy has at most; the kernel's default is no limit, and nobody has more.
const MAX_LEVELS: u32 = 512;

/// What the programs need to know a cgroup by: its id, which is the inode of its folder, and its
/// depth below the root of the hierarchy, as the kernel counts.
pub fn bypass(path: &Path) -> Result<BypassCgroup, datapath::Error> {
    hooks::open_cgroup(path)?;
    let failed = |what: &str| datapath::Error::system(format!("{what} {}", path.display()));
    let data = path.metadata().map_err(failed("use the cgroup"))?;
    let (device, id) = (data.dev(), data.ino());
    let mut folder = path.to_owned();
    for level in 0..MAX_LEVELS {
        // Only the root of all has no such file.
        if !folder.join("cgroup.events").exists() {
            return Ok(BypassCgroup { id, level, pad: 0 });
        }
        // By the kernel's own reckoning, so that links on the way do not matter.
        folder.push("..");
        if !folder.metadata().is_ok_and(|data| data.dev() == device) {
            break;
        }
    }
    let source = io::Error::other(
        "the mount does not show the root of the hierarchy; name the cgroup by a path below \
         /proc/1/root instead",
    );
    Err(failed("tell the depth of the cgroup")(source))
}

/// The ids of a cgroup and of all below it, but not those of `left_out` and what is below them.
pub(super) fn ids_below(cgroup: &Path, left_out: &[u64]) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    let mut out: HashSet<PathBuf> = HashSet::new();
    // Parents come before what is below them.
    for (folder, id) in scan::folders(cgroup)? {
        let below = folder.parent().is_some_and(|parent| out.contains(parent));
        if below || left_out.contains(&id) {
            out.insert(folder);
        } else {
            ids.insert(id);
        }
    }
    Ok(ids)
}

/// The folder of a cgroup with this id in or below another one; for people.
pub(super) fn path_of(id: u64, root: &Path) -> Option<PathBuf> {
    let folders = scan::folders(root).ok()?;
    folders.into_iter().find_map(|(folder, found)| (found == id).then_some(folder))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_left_out_is_left_out_with_all_below_it() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["a/b", "mesh/pod/container"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        let id = |name: &str| path(name).metadata().unwrap().ino();
        let ids = ids_below(root.path(), &[id("mesh")]).unwrap();
        assert_eq!(ids, [id(""), id("a"), id("a/b")].into());
        assert_eq!(path_of(id("a/b"), root.path()), Some(path("a/b")));
        assert_eq!(path_of(1, root.path()), None);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_by_name() {
        let error = bypass(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.starts_with("/proc is not a folder of cgroup2"), "{error}");
    }
}
