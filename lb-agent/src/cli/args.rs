//! What a node is: the flags that every command knows, each checked before anything is done.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use clap::Args;
use lb_agent::datapath::{self, hooks, sys};

use super::cgroup;
use super::error::Error;

/// `NSFS_MAGIC`, linux/magic.h: what a path to a namespace is on.
const NSFS: u64 = 0x6e73_6673;

/// Which node.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node")]
pub(super) struct NodeArgs {
    /// Network namespace of the node, as /run/netns/NAME [default: that of this process]
    ///
    /// Only the network namespace is entered; mounts stay those of this process.
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    pub(super) netns: Option<PathBuf>,
    /// Cgroup whose processes the socket engine serves [default: the root that process 1 sees]
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    cgroup: Option<PathBuf>,
    /// Folder for pinned maps and links, on a BPF file system; this node's alone
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/millrace", value_parser = pins)]
    pub(super) bpffs: PathBuf,
}

impl NodeArgs {
    /// Moves this process to the node's network namespace. Call it before any thread starts.
    pub(super) fn enter(&self) -> Result<(), Error> {
        let Some(path) = &self.netns else { return Ok(()) };
        let refuse = |reason| Error::flag("--netns", format!("{} {reason}", path.display()));
        let file =
            File::open(path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        if !sys::file_system(path).is_ok_and(|magic| magic == NSFS) {
            return Err(refuse("is not a namespace; `ip netns add` makes one".into()));
        }
        datapath::enter_netns(&file).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => refuse("is a namespace of another kind".into()),
            Some(libc::EPERM) => refuse("cannot be entered without CAP_SYS_ADMIN".into()),
            _ => refuse(format!("cannot be entered: {error}")),
        })
    }

    /// The node's cgroup: as given, or found.
    pub(super) fn cgroup(&self) -> Result<PathBuf, Error> {
        let Some(path) = &self.cgroup else {
            return cgroup::root().ok_or_else(|| {
                Error::flag(
                    "--cgroup",
                    "no cgroup2 mount was found; mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or name one",
                )
            });
        };
        match hooks::open_cgroup(path) {
            Ok(_) => Ok(path.clone()),
            Err(error) => Err(Error::flag("--cgroup", error.to_string())),
        }
    }

    /// Whether the cgroup was given.
    pub(super) fn names_cgroup(&self) -> bool {
        self.cgroup.is_some()
    }

    /// The folder with the maps of this ABI version.
    pub(super) fn folder(&self) -> PathBuf {
        datapath::folder(&self.bpffs)
    }
}

/// A path that means the same wherever this process goes.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path".into()) }
}

/// A path that a BPF file system takes: it refuses names with dots.
fn pins(text: &str) -> Result<PathBuf, String> {
    let path = absolute(text)?;
    match path.file_name() {
        Some(name) if name.as_encoded_bytes().contains(&b'.') && !path.exists() => {
            Err("a BPF file system takes no names with dots".into())
        }
        Some(_) => Ok(path),
        None => Err("must name a folder".into()),
    }
}

/// The name of this machine as Kubernetes writes it: lower-case, without spaces around it.
pub(super) fn host_name() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase())
}

/// A name that a Node object can have: a DNS subdomain, RFC 1123.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        ends(bytes.first())
            && ends(bytes.last())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a Node is named by at most 253 lower-case letters, digits, `-` and `.`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_those_that_the_api_takes() {
        for good in ["a", "node-1", "ip-10-0-0-1.eu-west-1.compute.internal", "0"] {
            assert_eq!(node_name(good).as_deref(), Ok(good));
        }
        let long = "x".repeat(254);
        for bad in ["", "Node", "-a", "a-", "a..b", "a_b", "ä", long.as_str()] {
            assert!(node_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn folders_for_pins_are_absolute_and_without_dots() {
        assert_eq!(pins("/sys/fs/bpf/x"), Ok("/sys/fs/bpf/x".into()));
        for bad in ["", "x", "./x", "/", "/no-such-folder/a.b"] {
            assert!(pins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_no_namespace_and_a_folder_no_cgroup() {
        let node = NodeArgs {
            netns: Some("/proc/self/status".into()),
            cgroup: Some("/proc".into()),
            bpffs: "/sys/fs/bpf/x".into(),
        };
        let (netns, cgroup) = (node.enter().unwrap_err(), node.cgroup().unwrap_err());
        assert!(netns.to_string().starts_with("--netns: /proc/self/status is not"), "{netns}");
        assert!(cgroup.to_string().starts_with("--cgroup: /proc is not"), "{cgroup}");
    }
}
