//! Network namespaces: made, entered, wired, removed.
//!
//! A namespace is a name under `/run/netns`, so that `ip -n NAME` works on it. It is entered by a
//! thread of our own: `ip netns exec` remounts /sys and loses cgroup2 and bpffs.

use std::{
    fs, io,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{id, sys};

/// Where iproute2 keeps the names of namespaces.
pub const DIR: &str = "/run/netns";
/// What names of this crate's namespaces begin with.
pub const PREFIX: &str = "mr-";

/// A network namespace, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A fresh namespace with its loopback interface up and IPv6 addresses usable at once.
    pub fn new() -> Result<Self> {
        let name = format!("{PREFIX}{}", id::fresh());
        let path = Path::new(DIR).join(&name);
        fs::create_dir_all(DIR).with_context(|| format!("make {DIR}"))?;
        fs::File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        // From here on the guard removes what there is, whatever fails.
        let netns = Self { name };
        on_thread(|| {
            sys::unshare_net()?;
            sys::bind_mount(Path::new("/proc/thread-self/ns/net"), &path)
        })?
        .with_context(|| format!("make network namespace {}; are you root?", netns.name))?;
        netns.sysctls(&[
            // Duplicate address detection would keep addresses unusable for a second or two.
            ("net.ipv6.conf.all.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.dad_transmits", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
        ])?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, `mr-<pid>-<n>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, as `lb-agent --netns` wants it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// A descriptor of it, which keeps it alive.
    pub fn open(&self) -> Result<OwnedFd> {
        let path = self.path();
        fs::File::open(&path).map(OwnedFd::from).with_context(|| format!("open {}", path.display()))
    }

    /// Runs `work` inside, on a thread of its own. Do not start processes there: see
    /// [`crate::process`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let netns = self.open()?;
        on_thread(|| sys::enter_net(netns.as_fd()).map(|()| work()))?
            .with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Runs lines of `ip` commands inside, each without the leading `ip`; stops at the first error.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.batch("ip", lines)
    }

    /// Runs lines of `bridge` commands inside, each without the leading `bridge`.
    pub fn bridge(&self, lines: &str) -> Result<()> {
        self.batch("bridge", lines)
    }

    fn batch(&self, program: &str, lines: &str) -> Result<()> {
        let mut child = Command::new(program)
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run `{program}`; install the package iproute2"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe means that it has stopped at an error, which is reported below.
            drop(stdin.write_all(format!("{}\n", lines.trim()).as_bytes()));
        }
        let output = child.wait_with_output().with_context(|| format!("wait for `{program}`"))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let error = error.trim();
            bail!("{program} -n {} failed: {error}\nthe lines were:\n{lines}", self.name);
        }
        Ok(())
    }

    /// What one `ip` command prints, run inside.
    pub fn ip_output(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("ip")
            .args(["-n", &self.name])
            .args(args)
            .output()
            .context("run `ip`; install the package iproute2")?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("ip -n {} {} failed: {}", self.name, args.join(" "), error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets sysctls of this namespace, `net.…` only: the others belong to the whole machine.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        if let Some((name, _)) = settings.iter().find(|(name, _)| !name.starts_with("net.")) {
            bail!("{name} is no sysctl of a network namespace");
        }
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                fs::write(&path, value).with_context(|| format!("set {name} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Keeps what bridges of this namespace switch from netfilter, as a switch of metal does. Where the
    /// kernel has `br_netfilter`, it is on in every new namespace.
    pub fn plain_bridges(&self) -> Result<()> {
        let hooks = ["iptables", "ip6tables", "arptables"];
        let names = hooks.map(|hook| format!("net.bridge.bridge-nf-call-{hook}"));
        let there = self.run(|| Path::new("/proc/sys/net/bridge").exists())?;
        if there {
            self.sysctls(&names.each_ref().map(|name| (name.as_str(), "0")))
        } else {
            Ok(())
        }
    }

    /// Has an interface inside fill in checksums of what it sends, or not.
    pub fn offload_checksums(&self, interface: &str, on: bool) -> Result<()> {
        self.run(|| sys::offload_checksums(interface, on))?
            .with_context(|| format!("set who fills in the checksums of {interface}"))
    }

    /// How many packets an interface inside has received.
    pub fn received(&self, interface: &str) -> Result<u64> {
        self.statistic(interface, "rx", "packets")
    }

    /// How many packets an interface inside has sent.
    pub fn sent(&self, interface: &str) -> Result<u64> {
        self.statistic(interface, "tx", "packets")
    }

    fn statistic(&self, interface: &str, way: &str, what: &str) -> Result<u64> {
        let text = self.ip_output(&["-s", "-j", "link", "show", "dev", interface])?;
        let links: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("understand {text}"))?;
        let statistic = &links[0]["stats64"][way][what];
        statistic.as_u64().with_context(|| format!("no {way} {what} in {text}"))
    }

    /// The hardware address of an interface inside.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let text = self.ip_output(&["-j", "link", "show", "dev", interface])?;
        let links: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("understand {text}"))?;
        let address = links[0]["address"].as_str().with_context(|| format!("address in {text}"))?;
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(address.split(':')) {
            *byte = u8::from_str_radix(part, 16).with_context(|| format!("read {address}"))?;
        }
        Ok(mac)
    }

    /// Has an interface inside put packets of a flow together when it receives them (GRO), or not.
    /// A veth needs it, or an XDP program, to take what XDP sends to it.
    pub fn aggregate(&self, interface: &str, on: bool) -> Result<()> {
        self.run(|| sys::aggregate(interface, on))?
            .with_context(|| format!("set whether {interface} puts packets together"))
    }

    /// The index of an interface inside.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let output = self.ip_output(&["-o", "link", "show", "dev", interface])?;
        output
            .split_once(':')
            .and_then(|(index, _)| index.trim().parse().ok())
            .with_context(|| format!("no index in {output:?}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("network namespace {} is left: {error:#}", self.name);
        }
    }
}

/// Removes the name; the namespace itself goes with its last process and socket.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = Path::new(DIR).join(name);
    match sys::unmount(&path) {
        // Never mounted (its maker was killed in between), or gone already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
        other => other.with_context(|| format!("unmount {}", path.display()))?,
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("remove {}", path.display())),
    }
}

/// Names of this crate's namespaces on this machine, with the process ids of their makers.
pub fn list() -> Vec<(String, u32)> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let owner = id::owner(&name, PREFIX)?;
            Some((name, owner))
        })
        .collect()
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        scope.spawn(work).join().map_err(|panic| {
            // The message was printed where it happened; only that it happened is passed on.
            drop(panic);
            anyhow!("the thread in the namespace panicked")
        })
    })
}
