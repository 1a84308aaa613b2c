//! What this node does not give the agent, and what that costs.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Lacking {
    pub(super) what: &'static str,
    pub(super) costs: &'static str,
}

/// Capabilities, by their numbers in linux/capability.h.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// What a process with these effective capabilities cannot do.
const CAPABILITIES: [(u64, Lacking); 5] = [
    (
        CAP_BPF | CAP_SYS_ADMIN,
        Lacking { what: "CAP_BPF", costs: "no maps and no programs: nothing can be programmed" },
    ),
    (
        CAP_NET_ADMIN,
        Lacking { what: "CAP_NET_ADMIN", costs: "no programs on interfaces: no packet engine" },
    ),
    (
        CAP_PERFMON | CAP_SYS_ADMIN,
        Lacking { what: "CAP_PERFMON", costs: "the kernel may refuse to load programs" },
    ),
    (
        CAP_SYS_ADMIN,
        Lacking {
            what: "CAP_SYS_ADMIN",
            costs: "no --netns, what runs at a hook cannot be told from its id, and namespaces of pods \
                    cannot be entered: pods with a service mesh are not bypassed, and their UDP \
                    sockets stay on backends that are gone",
        },
    ),
    (
        CAP_SYS_PTRACE,
        Lacking {
            what: "CAP_SYS_PTRACE",
            costs: "namespaces of pods are not found: pods with a service mesh are not bypassed, and \
                    UDP sockets of pods stay on backends that are gone; and process 1 cannot be \
                    asked for the root cgroup: in a container, name it by --cgroup",
        },
    ),
];

/// What the process `pid` lacks; this one if that cannot be read.
pub(super) fn capabilities(pid: Option<u32>) -> Vec<Lacking> {
    let status = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let status = status.or_else(|| fs::read_to_string("/proc/self/status").ok());
    let effective = status.as_deref().and_then(effective);
    effective.map(missing).unwrap_or_default()
}

fn missing(effective: u64) -> Vec<Lacking> {
    let lacks = CAPABILITIES.iter().filter(|(any_of, _)| effective & any_of == 0);
    lacks.map(|(_, lacking)| lacking.clone()).collect()
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Who holds the lock of a folder, as the kernel tells: an agent at work.
///
/// Read from `/proc/locks`, because to try the lock would be to take it, and an agent that starts
/// at that moment would find it taken.
pub(super) fn lock_holder(folder: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let data = fs::metadata(folder).ok()?;
    let device = (libc::major(data.dev()), libc::minor(data.dev()));
    holder(&fs::read_to_string("/proc/locks").ok()?, device, data.ino())
}

fn holder(locks: &str, (major, minor): (u32, u32), inode: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let (pid, found) = (fields.nth(2)?, fields.next()?);
        (kind == "FLOCK" && found == file).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_capability_includes_the_newer_ones() {
        let names = |effective| missing(effective).iter().map(|l| l.what).collect::<Vec<_>>();
        assert_eq!(names(u64::MAX), [""; 0]);
        assert_eq!(names(CAP_SYS_ADMIN | CAP_NET_ADMIN | CAP_SYS_PTRACE), [""; 0]);
        assert_eq!(
            names(CAP_BPF | CAP_PERFMON | CAP_NET_ADMIN),
            ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]
        );
        assert_eq!(names(0).len(), CAPABILITIES.len());
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some((1 << 41) - 1));
    }

    #[test]
    fn the_holder_of_a_lock_is_found_by_device_and_inode() {
        let locks = "\
            1: POSIX  ADVISORY  WRITE 9 00:1a:77 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 4711 00:1a:77 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 12 00:1a:78 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF\n";
        assert_eq!(holder(locks, (0, 0x1a), 77), Some(4711));
        assert_eq!(holder(locks, (8, 1), 77), Some(13));
        assert_eq!(holder(locks, (0, 0x1a), 79), None);
    }
}
