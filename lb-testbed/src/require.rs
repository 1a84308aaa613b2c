//! What does a test need that this machine may lack? It is skipped with a printed reason then.
//!
//! Reasons go to the standard error stream itself: the test harness would hide printed lines of a
//! test that passes, and a skipped test passes.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::sys;

/// True when this process may make namespaces, mounts and cgroups; otherwise says that `test` is
/// skipped and what to do.
#[must_use]
pub fn root_or_skip(test: &str) -> bool {
    if !sys::is_root() {
        skip(test, "needs root; run `cargo xtask test`, which uses sudo");
        return false;
    }
    if !sys::may_make_namespaces() {
        skip(test, "needs CAP_SYS_ADMIN to make network namespaces; run it outside the container");
        return false;
    }
    if crate::cgroup::mount_point().is_err() {
        skip(test, "needs a cgroup2 mount; `mount -t cgroup2 none /sys/fs/cgroup/unified`");
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        skip(test, "needs the `ip` command; `apt install iproute2`");
        return false;
    }
    true
}

/// [`root_or_skip`], and `nft` to write rules with.
#[must_use]
pub fn nft_or_skip(test: &str) -> bool {
    if !root_or_skip(test) {
        return false;
    }
    if Command::new("nft").arg("--version").output().is_err() {
        skip(test, "needs the `nft` command; `apt install nftables`");
        return false;
    }
    true
}

/// True when this process may load programs; otherwise says that `test` is skipped and what to do.
#[must_use]
pub fn bpf_or_skip(test: &str) -> bool {
    if !sys::is_root() {
        skip(test, "needs root to load programs; run `cargo xtask test`, which uses sudo");
        return false;
    }
    true
}

/// True from this version of the kernel on, by its release; otherwise says that `test` is skipped.
/// `lacks` tells what the older ones do not have.
#[must_use]
pub fn kernel_or_skip(test: &str, (major, minor): (u32, u32), lacks: &str) -> bool {
    let there = is_kernel(major, minor);
    if !there {
        skip(test, &format!("{lacks}: this kernel is below {major}.{minor}"));
    }
    there
}

/// Whether the running kernel's release is at least this version.
#[must_use]
pub fn is_kernel(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0_u32);
    (next(), next()) >= (major, minor)
}

/// The folder with etcd, kube-apiserver, kube-controller-manager and kubectl, or says that `test`
/// is skipped.
#[must_use]
pub fn kubernetes_or_skip(test: &str) -> Option<PathBuf> {
    let Some(dir) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        skip(
            test,
            "needs a Kubernetes control plane; install `setup-envtest` and set \
             KUBEBUILDER_ASSETS=$(setup-envtest use -p path)",
        );
        return None;
    };
    let missing: Vec<_> = crate::apiserver::BINARIES
        .iter()
        .filter(|name| !Path::new(&dir).join(name).is_file())
        .copied()
        .collect();
    if missing.is_empty() {
        return Some(dir);
    }
    skip(test, &format!("KUBEBUILDER_ASSETS={} lacks {}", dir.display(), missing.join(", ")));
    None
}

/// Says that `test` is skipped, and why.
pub fn skip(test: &str, reason: &str) {
    // A closed standard error stream must not fail a skipped test.
    drop(writeln!(io::stderr(), "skipped: {test}: {reason}"));
}
