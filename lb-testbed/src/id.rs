//! Which process made this namespace, cgroup or folder, and is it still there?
//!
//! Names end in `<pid>-<n>`: the maker's process id and a number unique within it.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

/// A fresh `<pid>-<n>`.
pub fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The process id in a name made of `prefix` and [`fresh`]; `None` for anybody else's name.
pub fn owner(name: &str, prefix: &str) -> Option<u32> {
    let (pid, n) = name.strip_prefix(prefix)?.split_once('-')?;
    n.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Whether the process runs; a zombie is dead, it only waits to be counted.
pub fn alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The command name is in parentheses and may hold anything, so the state is sought after it.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_read_from_our_names_only() {
        let name = format!("mr-{}", fresh());
        assert_eq!(owner(&name, "mr-"), Some(std::process::id()));
        for foreign in ["mr-", "mr-1", "mr-x-1", "mr-1-x", "cni-1-2", "mr-1-2-3"] {
            assert_eq!(owner(foreign, "mr-"), None, "{foreign}");
        }
    }

    #[test]
    fn this_process_is_alive_and_a_finished_one_is_not() {
        assert!(alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        crate::wait::until("a zombie", std::time::Duration::from_secs(10), || !alive(pid)).unwrap();
        child.wait().unwrap();
        assert!(!alive(pid));
    }
}
