//! The kernel's datapath of one node: its maps, programs and links.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use lb_common::abi::{self, InterfaceFlags, MetaWord, map};
use tokio::sync::mpsc;

use super::batch::Hash;
use super::flows::Flows;
use super::hooks::{self, RELEASE, SOCKET_HOOKS, SocketHook};
use super::outside::{Forwarding, OutsideMaps, sources};
use super::roles::Interface;
use super::xdp::Xdp;
use super::{Datapath, Error, Grace, Maps, Scope, Sizes, load, process, sys, xdp};
use crate::diff::Op;
use crate::model::Family;
use crate::plan::{Cidr, Snapshot};

/// What a node's datapath is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder for pins, on a BPF file system; this node's alone.
    pub bpffs: PathBuf,
    /// The cgroup whose processes the socket engine serves.
    pub cgroup: PathBuf,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// Whose sockets the socket engine serves.
    pub scope: Scope,
    /// The cookie of the node's own network namespace; 0 if the kernel does not tell.
    pub node_netns: u64,
    /// Where XDP is wanted.
    pub xdp: xdp::Config,
    /// As whom packets are sent on.
    pub forwarding: Forwarding,
}

/// The programs at the hooks of interfaces; those that they go on with are loaded with `PROGRAMS`.
const INTERFACE_PROGRAMS: [&str; 6] = [
    "tc_ingress",
    "tc_egress",
    "tc_ingress_l3",
    "tc_egress_l3",
    "tc_uplink_egress",
    "tc_uplink_egress_l3",
];

/// A hook that could not be had, and what that costs.
#[derive(Debug)]
pub struct Lacking {
    /// The program.
    pub hook: &'static str,
    /// What is lost.
    pub costs: &'static str,
    /// Why.
    pub error: Error,
}

impl Lacking {
    /// Whether it may be had later: the program is loaded, only attaching it failed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self.error, Error::Program { .. })
    }
}

/// A loaded datapath. Dropping it leaves everything in force: maps and links are pinned.
#[derive(Debug)]
pub struct BpfDatapath {
    folder: PathBuf,
    cgroup: File,
    ebpf: Ebpf,
    maps: Arc<Maps>,
    outside: OutsideMaps,
    flows: Flows,
    grace: Grace,
    /// Indices of the interfaces that have programs, or a part of them.
    attached: BTreeSet<u32>,
    /// The hooks of sockets that this run has attached.
    sockets: BTreeSet<&'static str>,
    lacking: Vec<Lacking>,
    scope: Scope,
    tcx: bool,
    /// Before the lock, so that nobody else attaches while its thread still does.
    xdp: Xdp,
    _lock: load::Lock,
}

impl BpfDatapath {
    /// Loads programs and opens or makes the maps; nothing is attached yet. Call it on a thread
    /// in the node's network namespace, as everything else here.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let cgroup = hooks::open_cgroup(&config.cgroup)?;
        let lock = load::prepare(&config.bpffs)?;
        let folder = load::folder(&config.bpffs);
        let seed = load::seed(&folder)?;
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let mut ebpf = load::load(&folder, config, seed as u32)?;
        #[cfg(feature = "program-log")]
        super::program_log::follow(&mut ebpf);
        let mut lacking = Vec::new();
        for hook in SOCKET_HOOKS {
            match (load::load_program(&mut ebpf, hook.name), hook.costs) {
                (Err(error @ Error::Program { .. }), Some(costs)) => {
                    lacking.push(Lacking { hook: hook.name, costs, error });
                }
                (result, _) => result?,
            }
        }
        for name in INTERFACE_PROGRAMS {
            load::load_program(&mut ebpf, name)?;
        }
        lb_object::fill_program_array(&mut ebpf)
            .map_err(|source| Error::Program { name: "tc_translate", source: Box::new(source) })?;
        let maps = Arc::new(Maps::open(&folder)?);
        maps.set_meta(MetaWord::SnatSeed, seed);
        let outside = OutsideMaps::open(&folder)?;
        let grace = Grace::probe().map_err(Error::system("wait for a grace period"))?;
        let flows = Flows::open(&folder, grace.clone())?;
        let told = outside.interfaces()?.into_iter();
        let senders = told.filter(|(_, told)| told.flags & InterfaceFlags::XDP != 0);
        let senders = senders.map(|(index, _)| index).collect();
        let xdp = Xdp::new(config.xdp.clone(), folder.clone(), senders)
            .map_err(Error::system(format!("read the folder {}/links", folder.display())))?;
        // From an earlier run; those that are gone by now are found out by the first list.
        let attached = hooks::pinned_interfaces(&folder)
            .map_err(Error::system(format!("read the folder {}/links", folder.display())))?;
        Ok(Self {
            folder,
            cgroup,
            ebpf,
            maps,
            outside,
            flows,
            grace,
            attached: attached.into_iter().collect(),
            sockets: BTreeSet::new(),
            lacking,
            scope: config.scope,
            tcx: true,
            xdp,
            _lock: lock,
        })
    }

    /// Attaches to interfaces by clsact filters, as on kernels before 6.6, even where tcx exists.
    #[must_use]
    pub fn without_tcx(mut self) -> Self {
        self.tcx = false;
        self
    }

    /// The maps, for who shares them: each mapping of their memory counts as this process's.
    pub fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// System calls that this thread has made so far, for benchmarks.
    pub fn calls() -> sys::Calls {
        sys::calls()
    }
}

impl Datapath for BpfDatapath {
    fn apply(&mut self, ops: &[Op]) -> Vec<(usize, Error)> {
        self.maps.apply(ops)
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        self.maps.snapshot()
    }

    fn grace(&self) -> Grace {
        self.grace.clone()
    }

    fn attach_sockets(&mut self) -> Result<(), Error> {
        if self.scope == Scope::Off {
            return self.take_sockets_off();
        }
        let mut failed = None;
        for hook in SOCKET_HOOKS {
            let lacking = self.lacking.iter().position(|lacking| lacking.hook == hook.name);
            let refused =
                lacking.and_then(|at| self.lacking.get(at)).is_some_and(|l| !l.may_pass());
            if refused || self.sockets.contains(hook.name) {
                continue;
            }
            let program = load::program_fd(&self.ebpf, hook.name)?;
            let result = hooks::attach_socket(&self.folder, &hook, program, &self.cgroup)
                .map_err(hooks::explain_cgroup)
                .map_err(Error::system(format!("attach {} to the cgroup", hook.name)));
            match (result, hook.costs, lacking) {
                (Ok(()), _, lacking) => {
                    self.sockets.insert(hook.name);
                    if let Some(at) = lacking {
                        self.lacking.remove(at);
                        tracing::info!(hook = hook.name, "a hook is not missing any more");
                    }
                }
                // The others are of use even so.
                (Err(error), None, _) => failed = failed.or(Some(error)),
                (Err(error), Some(costs), None) => {
                    tracing::warn!(hook = hook.name, %error, costs, "a hook is missing");
                    self.lacking.push(Lacking { hook: hook.name, costs, error });
                }
                (Err(_), Some(_), Some(_)) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn lacking(&self) -> &[Lacking] {
        &self.lacking
    }

    fn attach(&mut self, interface: &Interface) -> Result<(), Error> {
        // First, because what stops half-way has to be taken off as well.
        self.attached.insert(interface.index);
        let attached = hooks::attach_interface(&self.folder, &mut self.ebpf, interface, self.tcx);
        // XDP goes where it does not belong any more, whatever comes of tc.
        if attached.is_ok() || !self.xdp.wants(interface) {
            self.xdp.settle(interface, &mut self.ebpf);
        }
        attached
    }

    fn detach(&mut self, index: u32) -> Result<(), Error> {
        self.xdp.forget(index);
        if !self.attached.contains(&index) {
            return Ok(());
        }
        // As it is called now: it may be of an earlier run, or have another name by now.
        let name = process::interface_name(index);
        hooks::detach_interface(&self.folder, index, name.as_deref())
            .map_err(Error::system(format!("take the programs off interface {index}")))?;
        // Last, so that the next attempt after a failure does something.
        self.attached.remove(&index);
        Ok(())
    }

    fn attached(&self) -> Vec<u32> {
        self.attached.iter().copied().chain(self.xdp.known()).collect()
    }

    fn told_interfaces(&self) -> Result<Vec<(u32, abi::Interface)>, Error> {
        self.outside.interfaces()
    }

    fn tell_interface(
        &mut self,
        index: u32,
        interface: Option<&abi::Interface>,
    ) -> Result<(), Error> {
        // Before anything is sent under them: answers to an address that counts as nobody's are lost.
        // Whether `ADDRESSES` has it, or has room for it, does not matter for that.
        if let Some(interface) = interface {
            self.maps.note_own_addresses(sources(interface));
        }
        let told = self.outside.tell(index, interface);
        if told.is_ok() {
            let may_send = interface.is_some_and(|told| told.flags & InterfaceFlags::XDP != 0);
            self.xdp.told(index, may_send);
        }
        told
    }

    fn set_local_cidrs(&mut self, family: Family, list: &[Cidr]) {
        self.outside.set_local_cidrs(family, list);
    }

    fn end_flows(&mut self, gone: &[IpAddr]) {
        self.flows.end(gone);
    }

    fn xdp_flags(&self, index: u32) -> u32 {
        self.xdp.state(index).flags()
    }

    fn xdp_demotions(&self) -> u64 {
        self.xdp.demotions()
    }

    fn xdp_changed(&mut self) -> Option<mpsc::Receiver<u32>> {
        self.xdp.changed()
    }
}

impl BpfDatapath {
    /// Takes off what an earlier run has attached of the socket engine. What forgets sockets as they are
    /// closed stays as long as there are any to forget, until the next start.
    fn take_sockets_off(&self) -> Result<(), Error> {
        let Some(release) = SOCKET_HOOKS.iter().find(|hook| hook.name == RELEASE) else {
            return detach_sockets(&self.folder, |_| true);
        };
        let refused = self.lacking.iter().any(|lacking| lacking.hook == RELEASE);
        let attached = hooks::socket_pin(&self.folder, release).exists();
        if !attached || refused || !remembers_sockets(&self.folder) {
            return detach_sockets(&self.folder, |_| true);
        }
        detach_sockets(&self.folder, |hook| hook.name != RELEASE)?;
        let program = load::program_fd(&self.ebpf, RELEASE)?;
        hooks::attach_socket(&self.folder, release, program, &self.cgroup)
            .map_err(Error::system(format!("attach {RELEASE} to the cgroup")))
    }
}

/// Whether there are records of UDP sockets.
fn remembers_sockets(folder: &Path) -> bool {
    let sockets = [map::UDP_SOCKETS, map::HOST_UDP_SOCKETS];
    let peers = [map::SOCKET_PEERS, map::HOST_SOCKET_PEERS];
    sockets.iter().chain(&peers).any(|name| {
        let Ok(fd) = sys::object_get(&folder.join(name)) else { return false };
        Hash::to_read(fd.as_fd()).is_ok_and(|hash| hash.next_key(None).is_ok())
    })
}

/// Takes hooks of the socket engine off. Forward translation ends before reverse translation, the
/// other way round than it began.
fn detach_sockets(folder: &Path, which: impl Fn(&SocketHook) -> bool) -> Result<(), Error> {
    for hook in SOCKET_HOOKS.iter().rev().filter(|hook| which(hook)) {
        let pin = hooks::socket_pin(folder, hook);
        let what = format!("take {} off the cgroup", hook.name);
        hooks::detach(&pin).map_err(Error::system(what))?;
    }
    Ok(())
}

/// Takes everything of this node away: links, programs, maps and folders. `interfaces` are those
/// that exist, index and name. Fails while an agent works on the folder, unless it is to be forced.
pub fn cleanup(bpffs: &Path, interfaces: &[(u32, String)], force: bool) -> Result<(), Error> {
    let mut versions: Vec<PathBuf> = Vec::new();
    let failed = |what: &Path| Error::system(format!("remove {}", what.display()));
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(bpffs)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed(bpffs))?;
        let name = entry.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix('v'));
        if version.is_some_and(|version| version.parse::<u32>().is_ok()) {
            versions.push(entry.path());
        }
    }
    for folder in versions {
        let lock = File::open(&folder).map_err(failed(&folder))?;
        if sys::lock(lock.as_fd()).is_err() && !force {
            return Err(Error::InUse(folder));
        }
        for index in hooks::pinned_interfaces(&folder).unwrap_or_default() {
            let name = interfaces.iter().find(|(i, _)| *i == index).map(|(_, name)| name.as_str());
            hooks::detach_interface(&folder, index, name).map_err(failed(&folder))?;
        }
        for index in xdp::pinned(&folder).unwrap_or_default() {
            hooks::detach(&xdp::pin(&folder, index)).map_err(failed(&folder))?;
        }
        detach_sockets(&folder, |_| true)?;
        fs::remove_dir_all(&folder).map_err(failed(&folder))?;
    }
    // Only what is ours: a folder that holds anything else stays.
    if fs::read_dir(bpffs).is_ok_and(|mut entries| entries.next().is_none())
        && bpffs.parent().is_some_and(load::is_bpffs)
    {
        fs::remove_dir(bpffs).map_err(failed(bpffs))?;
    }
    Ok(())
}
