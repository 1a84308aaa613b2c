//! The only place that touches BPF: maps, programs, links and interfaces.

mod batch;
mod bpf;
pub mod fake;
mod flows;
mod grace;
pub mod hooks;
pub mod inspect;
pub mod interfaces;
mod load;
mod maps;
pub mod mmap;
pub mod namespaces;
mod netlink;
pub mod outside;
mod process;
#[cfg(feature = "program-log")]
mod program_log;
pub mod roles;
pub mod routes;
mod scope;
mod snapshot;
pub mod status;
#[cfg(test)]
mod stress_tests;
pub mod sys;
pub mod xdp;

pub use self::bpf::{BpfDatapath, Config, Lacking, cleanup};
pub use self::grace::Grace;
pub use self::load::{Sizes, folder};
pub use self::maps::Maps;
pub use self::process::{descriptor_limit, enter_netns, keep_memory_small, raise_descriptor_limit};
pub use self::roles::Interface;
pub use self::scope::Scope;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::sync::mpsc;

use lb_common::abi;

use crate::diff::Op;
use crate::model::Family;
use crate::plan::{Cidr, Snapshot};

/// What the sync loop needs of the kernel.
pub trait Datapath {
    /// Applies operations in order. What fails is returned by index, and everything else is
    /// applied: operations that can fail do not depend on each other.
    fn apply(&mut self, ops: &[Op]) -> Vec<(usize, Error)>;

    /// Everything that is programmed.
    fn snapshot(&self) -> Result<Snapshot, Error>;

    /// What waits for a grace period, for use on another thread.
    fn grace(&self) -> Grace;

    /// Puts the socket engine on the node's cgroup, or replaces its programs in place. Called again,
    /// tries what is not attached yet; fails as long as a hook is missing that is needed.
    fn attach_sockets(&mut self) -> Result<(), Error>;

    /// The hooks that could not be had so far.
    fn lacking(&self) -> &[Lacking];

    /// Puts the packet engine on an interface, as its role wants it, or replaces its programs in
    /// place.
    fn attach(&mut self, interface: &Interface) -> Result<(), Error>;

    /// Forgets an interface that is gone or has another role by now. After a failure, and after that
    /// of [`Self::attach`], it is still one of [`Self::attached`].
    fn detach(&mut self, index: u32) -> Result<(), Error>;

    /// Indices of the interfaces that have programs, those of an earlier run included.
    fn attached(&self) -> Vec<u32>;

    /// What programs are told of interfaces, by index.
    fn told_interfaces(&self) -> Result<Vec<(u32, abi::Interface)>, Error>;

    /// Tells programs of an interface, or that there is none with this index.
    fn tell_interface(
        &mut self,
        index: u32,
        interface: Option<&abi::Interface>,
    ) -> Result<(), Error>;

    /// Makes these the ranges of pods' addresses of a family.
    fn set_local_cidrs(&mut self, family: Family, list: &[Cidr]);

    /// Ends flows that are sent on under addresses that are not the node's any more, in a while. Call it
    /// when no program is told of them.
    fn end_flows(&mut self, _gone: &[IpAddr]) {}

    /// The bits of `INTERFACES` that tell what became of XDP on an interface, and whether packets may
    /// be sent out of it by XDP.
    fn xdp_flags(&self, _index: u32) -> u32 {
        0
    }

    /// How often an interface was demoted from XDP to tc.
    fn xdp_demotions(&self) -> u64 {
        0
    }

    /// Tells indices of interfaces whose [`Self::xdp_flags`] are others than before, for who asks first.
    fn xdp_changed(&mut self) -> Option<mpsc::Receiver<u32>> {
        None
    }
}

/// What went wrong with the kernel, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder for pins is on another file system.
    #[error(
        "{0} is not on a BPF file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or give another folder by --bpffs"
    )]
    NotBpffs(PathBuf),
    /// The cgroup is of another kind.
    #[error(
        "{0} is not a folder of cgroup2; mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or give its folder by --cgroup"
    )]
    NotCgroup2(PathBuf),
    /// A second agent for the same node.
    #[error(
        "another lb-agent works on {0}; stop it first, or give this one a folder of its own by --bpffs"
    )]
    InUse(PathBuf),
    /// A pinned map that this agent would misread.
    #[error(
        "the pinned map {path} has {field} {found}, but this agent needs {needed}; start anew with `lb-agent cleanup`"
    )]
    OtherMap {
        /// The pin.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// What it is.
        found: u32,
        /// What it should be.
        needed: u32,
    },
    /// The object with the kernel programs is missing or damaged.
    #[error(transparent)]
    Prepare(#[from] lb_object::Error),
    /// The object with the kernel programs is refused.
    #[error("the kernel programs cannot be loaded: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// A program is refused.
    #[error("the kernel refuses the program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program that should be in the object is not.
    #[error(
        "the object has no program {0} of the expected type; build lb-agent and lb-ebpf from the same commit"
    )]
    NoProgram(&'static str),
    /// A store outside of a map.
    #[error("{map} has no element {index}; this is a bug")]
    Bounds {
        /// The map.
        map: &'static str,
        /// The element.
        index: u32,
    },
    /// A system call.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted, and on what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Says what was attempted.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::System { what: what.into(), source }
    }
}
