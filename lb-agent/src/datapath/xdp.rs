//! On which interfaces does XDP run, and how is it known that packets still arrive there?
//!
//! XDP is an engine more, never one that is needed: what it does not do, tc does. So nothing here
//! fails. An interface whose driver refuses, or that nobody answers on once the program is there, is
//! demoted to tc, counted and told about, and tried again when its link changes.

mod neighbours;
mod probe;
mod socket;
mod state;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::Ebpf;
use rtnetlink::new_connection;
use tokio::sync::{Notify, mpsc, watch};

pub use self::neighbours::Attached;
pub use self::state::{Reason, State};
use super::roles::{Interface, Kind, Role};
use super::{Error, load};

/// How XDP is attached, `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By the interface's driver, before the kernel makes a packet of a frame.
    #[default]
    Native,
    /// By the kernel, for any interface: slower than tc, for tests of what only XDP does.
    Generic,
    /// Nowhere.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// Where XDP is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How it is attached.
    pub mode: Mode,
    /// Names of the interfaces, `--xdp-interfaces`; none: every uplink with a driver.
    pub interfaces: Option<BTreeSet<String>>,
}

impl Config {
    /// Whether XDP belongs on an interface.
    ///
    /// Never on one that leads to a pod: on a veth it halves throughput and corrupts checksums that
    /// are still to be filled in. A veth that is an uplink has to be named. Where there are VLANs,
    /// cards may take tags off before XDP sees a packet, which then looks like one without.
    pub fn wants(&self, interface: &Interface) -> bool {
        let chosen = match &self.interfaces {
            Some(_) => self.names(interface),
            None => interface.device.kind == Kind::Physical,
        };
        self.mode != Mode::Off && unfit(interface).is_none() && chosen
    }

    /// Whether an interface is named as one that is to get XDP.
    fn names(&self, interface: &Interface) -> bool {
        self.interfaces.as_ref().is_some_and(|names| names.contains(&interface.name))
    }
}

/// Why XDP does not belong on an interface, whoever names it.
fn unfit(interface: &Interface) -> Option<&'static str> {
    let Interface { role, ethernet, device, .. } = interface;
    if *role != Role::Uplink {
        Some("it is no uplink; if it leads out of the node, say so by --interfaces NAME=uplink")
    } else if !ethernet {
        Some("its frames have no Ethernet header")
    } else if device.has_vlan {
        Some("there are VLANs on it, whose tags cards may take off before XDP sees a packet")
    } else {
        None
    }
}

/// The pin of the link of an interface.
pub fn pin(folder: &Path, index: u32) -> PathBuf {
    folder.join("links").join(format!("xdp_{index}"))
}

/// Indices of the interfaces that XDP is pinned on.
pub(super) fn pinned(folder: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join("links"))? {
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("xdp_"));
        found.extend(index.and_then(|index| index.parse::<u32>().ok()));
    }
    Ok(found)
}

/// What every link of this thread's network namespace runs at XDP, by index.
pub async fn attached() -> Result<BTreeMap<u32, Attached>, Error> {
    let (connection, handle, _messages) =
        new_connection().map_err(Error::system("open a netlink socket"))?;
    let driver = tokio::spawn(connection);
    let found = neighbours::all(&handle).await;
    driver.abort();
    found.map_err(Error::system("list links"))
}

/// The two variants of the program, as far as the kernel loads them.
#[derive(Debug, Default)]
struct Programs {
    /// That takes packets in several buffers (kernel 5.18).
    frags: Option<OwnedFd>,
    plain: Option<OwnedFd>,
}

impl Programs {
    /// Loads both. What the kernel refuses is done without.
    fn load(ebpf: &mut Ebpf) -> Self {
        Self { frags: load(ebpf, true), plain: load(ebpf, false) }
    }
}

fn load(ebpf: &mut Ebpf, frags: bool) -> Option<OwnedFd> {
    let loaded = lb_object::load_early(ebpf, frags)
        .map_err(|source| Error::Program { name: "xdp_ingress", source: Box::new(source) })
        .and_then(|name| load::program_fd(ebpf, name))
        .and_then(|fd| {
            fd.try_clone_to_owned().map_err(Error::system("keep a descriptor of a program"))
        });
    match loaded {
        Ok(fd) => Some(fd),
        Err(error) => {
            tracing::info!(frags, %error, "the kernel has no such XDP");
            None
        }
    }
}

/// What is to be done about an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ask {
    /// One of this index is gone: nothing of it may be taken for that of another that has come since.
    forget: bool,
    /// How the interface is to be settled, if there is one; the last word counts.
    settle: Option<Interface>,
}

/// What the thread that attaches shares with who asks it to.
#[derive(Debug)]
struct Shared {
    /// What is to be done, by interface.
    asked: Mutex<BTreeMap<u32, Ask>>,
    asks: Notify,
    closed: watch::Sender<bool>,
    states: Mutex<BTreeMap<u32, State>>,
    /// Interfaces that programs send out of by XDP, as `INTERFACES` has it.
    senders: watch::Sender<BTreeSet<u32>>,
    demotions: AtomicU64,
    changes: mpsc::Sender<u32>,
    /// Once an interface was wanted.
    programs: OnceLock<Programs>,
}

impl Shared {
    fn ask_to_settle(&self, interface: Interface) {
        let index = interface.index;
        lock(&self.asked).entry(index).or_default().settle = Some(interface);
        self.asks.notify_one();
    }

    fn ask_to_forget(&self, index: u32) {
        lock(&self.asked).insert(index, Ask { forget: true, settle: None });
        // Until the thread has come to it, nobody takes what is told of this one for another's.
        lock(&self.states).remove(&index);
        self.asks.notify_one();
    }

    fn take(&self) -> BTreeMap<u32, Ask> {
        std::mem::take(&mut lock(&self.asked))
    }

    async fn asked(&self) {
        self.asks.notified().await;
    }

    async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // Ends with an error if the sender is gone, which is as good.
        let _ends = closed.wait_for(|closed| *closed).await;
    }

    /// Ready when no program sends out of an interface by XDP: what is sent out of one without XDP is
    /// dropped by its driver, and nobody is told. After a while in any case, as who tells programs may
    /// be gone.
    async fn nobody_sends(&self, index: u32) {
        let mut senders = self.senders.subscribe();
        let left = senders.wait_for(|senders| !senders.contains(&index));
        if tokio::time::timeout(TOLD, left).await.is_err() {
            tracing::warn!(index, "XDP is taken off although programs may still send by it");
        }
    }

    /// Takes note of what became of XDP on an interface.
    async fn tell(&self, index: u32, state: State) {
        let before = match state {
            State::Unwanted => lock(&self.states).remove(&index).unwrap_or_default(),
            _ => lock(&self.states).insert(index, state).unwrap_or_default(),
        };
        if matches!(state, State::Demoted(_)) {
            self.demotions.fetch_add(1, Ordering::Relaxed);
        }
        if before != state || matches!(state, State::Demoted(_)) {
            // Nobody listens any more: then nobody wants to know.
            let _nobody_listens = self.changes.send(index).await.is_err();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is whole after each store, whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// XDP on this node's interfaces.
#[derive(Debug)]
pub(super) struct Xdp {
    config: Config,
    folder: PathBuf,
    shared: Arc<Shared>,
    /// Interfaces whose state may not be [`State::Unwanted`].
    known: BTreeSet<u32>,
    /// Interfaces that are named and do not get it, with the reason as it was told.
    unfit: BTreeMap<u32, &'static str>,
    thread: Option<JoinHandle<()>>,
    changed: Option<mpsc::Receiver<u32>>,
}

/// How long programs may be told of an interface until its XDP is taken off.
const TOLD: Duration = Duration::from_secs(5);

/// Changes that wait at most; the thread waits with more.
const CHANGES: usize = 64;

impl Xdp {
    /// Nothing is attached yet. Programs may send out of `senders` by XDP.
    pub(super) fn new(config: Config, folder: PathBuf, senders: BTreeSet<u32>) -> io::Result<Self> {
        let (changes, changed) = mpsc::channel(CHANGES);
        let shared = Shared {
            asked: Mutex::default(),
            asks: Notify::new(),
            closed: watch::Sender::new(false),
            states: Mutex::default(),
            senders: watch::Sender::new(senders),
            demotions: AtomicU64::new(0),
            changes,
            programs: OnceLock::new(),
        };
        let known = pinned(&folder)?.into_iter().collect();
        Ok(Self {
            config,
            folder,
            shared: Arc::new(shared),
            known,
            unfit: BTreeMap::new(),
            thread: None,
            changed: Some(changed),
        })
    }

    /// Whether XDP belongs on an interface.
    pub(super) fn wants(&self, interface: &Interface) -> bool {
        self.config.wants(interface)
    }

    /// Makes an interface have XDP if that is wanted, and none otherwise; on another thread, in a
    /// while. The first one that is wanted has the programs loaded: to verify them takes time.
    pub(super) fn settle(&mut self, interface: &Interface, ebpf: &mut Ebpf) {
        let index = interface.index;
        if self.config.wants(interface) {
            self.known.insert(index);
            self.shared.programs.get_or_init(|| Programs::load(ebpf));
        } else {
            if let Some(reason) = unfit(interface)
                && self.config.names(interface)
                && self.unfit.insert(index, reason) != Some(reason)
            {
                let name = &interface.name;
                tracing::warn!(interface = name, reason, "--xdp-interfaces: no XDP here");
            }
            if !self.known.remove(&index) {
                return;
            }
        }
        self.start();
        self.shared.ask_to_settle(interface.clone());
    }

    /// Forgets an interface that is gone, or takes XDP off it.
    pub(super) fn forget(&mut self, index: u32) {
        self.unfit.remove(&index);
        if self.known.remove(&index) {
            self.start();
            self.shared.ask_to_forget(index);
        }
    }

    /// Indices of the interfaces that have XDP, or have it of an earlier run.
    pub(super) fn known(&self) -> impl Iterator<Item = u32> {
        self.known.iter().copied()
    }

    /// What became of XDP on an interface.
    pub(super) fn state(&self, index: u32) -> State {
        lock(&self.shared.states).get(&index).copied().unwrap_or_default()
    }

    /// Programs know from now on whether they may send out of an interface by XDP.
    pub(super) fn told(&self, index: u32, may_send: bool) {
        self.shared.senders.send_if_modified(|senders| {
            if may_send { senders.insert(index) } else { senders.remove(&index) }
        });
    }

    /// How often an interface was demoted to tc.
    pub(super) fn demotions(&self) -> u64 {
        self.shared.demotions.load(Ordering::Relaxed)
    }

    /// Tells indices of interfaces whose [`Self::state`] is another one, for who asks first.
    pub(super) fn changed(&mut self) -> Option<mpsc::Receiver<u32>> {
        self.changed.take()
    }

    fn start(&mut self) {
        if self.thread.is_some() {
            return;
        }
        let (config, folder) = (self.config.clone(), self.folder.clone());
        let shared = Arc::clone(&self.shared);
        // In the network namespace of this thread.
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result =
                runtime.and_then(|runtime| runtime.block_on(worker::work(config, folder, shared)));
            if let Err(error) = result {
                tracing::error!(%error, "XDP is not attached anywhere: tc does its work");
            }
        };
        match thread::Builder::new().name("xdp".to_owned()).spawn(run) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                tracing::error!(%error, "no thread for XDP: tc does its work");
            }
        }
    }
}

impl Drop for Xdp {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that attaches XDP panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::datapath::roles::{Device, Reason as Ignored};

    fn interface(name: &str, kind: Kind, role: Role) -> Interface {
        let device = Device { kind, running: true, ..Device::default() };
        Interface { index: 7, name: name.into(), role, ethernet: true, device }
    }

    /// Case 50: bonds, teams and VLANs are no interfaces of ours to begin with, or not for XDP.
    #[test]
    fn only_uplinks_with_a_driver_get_xdp_unless_named() {
        let native = Config::default();
        assert!(native.wants(&interface("eth0", Kind::Physical, Role::Uplink)));
        for other in [
            interface("veth0", Kind::Veth, Role::Uplink),
            interface("veth1", Kind::Veth, Role::PodPort),
            interface("eth0.7", Kind::Vlan, Role::Uplink),
            interface("vxlan0", Kind::Tunnel, Role::Overlay),
            interface("bond0", Kind::Master, Role::Ignored(Ignored::Master)),
            interface("eth0", Kind::Physical, Role::Ignored(Ignored::VlanParent)),
        ] {
            assert!(!native.wants(&other), "{other:?}");
        }
        let mut carrier = interface("eth0", Kind::Physical, Role::Uplink);
        carrier.device.has_vlan = true;
        assert!(!native.wants(&carrier), "cards take tags off");
    }

    #[test]
    fn a_veth_gets_xdp_when_named_and_never_a_pod_port() {
        let named = Config { interfaces: Some(["veth0".to_owned()].into()), ..Config::default() };
        assert!(named.wants(&interface("veth0", Kind::Veth, Role::Uplink)));
        let pod_port = interface("veth0", Kind::Veth, Role::PodPort);
        assert!(!named.wants(&pod_port) && named.names(&pod_port));
        assert!(unfit(&pod_port).unwrap().contains("--interfaces NAME=uplink"));
        assert!(!named.wants(&interface("eth0", Kind::Physical, Role::Uplink)), "not named");
        let off = Config { mode: Mode::Off, ..named };
        assert!(!off.wants(&interface("veth0", Kind::Veth, Role::Uplink)));
    }

    fn empty<const N: usize>(test: &str, senders: [u32; N]) -> Xdp {
        let folder = std::env::temp_dir().join(format!("xdp-{test}-{}", std::process::id()));
        fs::create_dir_all(folder.join("links")).unwrap();
        let xdp = Xdp::new(Config::default(), folder.clone(), senders.into()).unwrap();
        fs::remove_dir_all(folder).unwrap();
        xdp
    }

    #[test]
    fn xdp_stays_until_no_program_sends_by_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let xdp = empty("senders", [7]);
            let mut waits = std::pin::pin!(xdp.shared.nobody_sends(7));
            assert!(waits.as_mut().now_or_never().is_none());
            xdp.told(8, true);
            xdp.told(9, false);
            assert!(waits.as_mut().now_or_never().is_none(), "others are told of");
            assert!(xdp.shared.nobody_sends(9).now_or_never().is_some());
            xdp.told(7, false);
            assert!(waits.as_mut().now_or_never().is_some());
            xdp.told(7, true);
            assert!(xdp.shared.nobody_sends(7).now_or_never().is_none());
        });
    }

    /// An interface goes and another one comes with its index before the thread has looked.
    #[test]
    fn what_is_known_of_an_interface_that_is_gone_is_not_taken_for_anothers() {
        let xdp = empty("asks", []);
        let runs = State::Runs { native: true, frags: true, proven: true };
        lock(&xdp.shared.states).insert(7, runs);
        xdp.shared.ask_to_settle(interface("eth0", Kind::Physical, Role::Uplink));
        assert_eq!(xdp.state(7), runs);
        xdp.shared.ask_to_forget(7);
        assert_eq!(xdp.state(7), State::Unwanted);
        let other = interface("eth1", Kind::Physical, Role::Uplink);
        xdp.shared.ask_to_settle(other.clone());
        let ask = Ask { forget: true, settle: Some(other) };
        assert_eq!(xdp.shared.take(), [(7, ask)].into());
        xdp.shared.ask_to_settle(interface("eth1", Kind::Physical, Role::Uplink));
        xdp.shared.ask_to_forget(7);
        assert_eq!(xdp.shared.take(), [(7, Ask { forget: true, settle: None })].into());
    }
}
