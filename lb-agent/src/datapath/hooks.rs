//! Which program runs at which hook, and how is it put there?
//!
//! Every attachment is a pinned link, so that it outlives the agent, and a restart replaces its
//! program in place: the hook never misses a packet. Only where the kernel has no tcx (before 6.6)
//! a filter of the clsact qdisc takes its place, found again by a fixed priority and handle.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcHandle,
};
use aya::programs::{Program, ProgramError, TcAttachType, tc};
use aya_obj::generated::{BPF_F_AFTER, BPF_F_BEFORE, bpf_attach_type};

use super::roles::Role;
use super::sys::{self, Target};
use super::{Error, Interface, load};

/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;

/// A hook of sockets.
#[derive(Clone, Copy, Debug)]
pub struct SocketHook {
    /// Name of the program and of the pin of its link.
    pub name: &'static str,
    /// Where it attaches.
    pub attach_type: bpf_attach_type,
    /// What is lost without it; nothing if the socket engine is of no use then.
    pub costs: Option<&'static str>,
}

/// What forgets a socket when it is closed.
pub const RELEASE: &str = "sock_release";

/// All hooks of sockets. Reverse translation comes before forward translation, so that no socket is
/// translated whose application would then see a backend's address.
pub const SOCKET_HOOKS: [SocketHook; 9] = [
    hook(
        RELEASE,
        bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        "records of unconnected UDP sockets stay until the map is full",
    ),
    hook(
        "recvmsg4",
        bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
        "UDP replies show the backend's IPv4 address",
    ),
    hook(
        "recvmsg6",
        bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
        "UDP replies show the backend's IPv6 address",
    ),
    hook(
        "getpeername4",
        bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        "getpeername shows the backend's IPv4 address",
    ),
    hook(
        "getpeername6",
        bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
        "getpeername shows the backend's IPv6 address",
    ),
    needed("sendmsg4", bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    needed("sendmsg6", bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    needed("connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    needed("connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
];

const fn hook(name: &'static str, attach_type: bpf_attach_type, costs: &'static str) -> SocketHook {
    SocketHook { name, attach_type, costs: Some(costs) }
}

const fn needed(name: &'static str, attach_type: bpf_attach_type) -> SocketHook {
    SocketHook { name, attach_type, costs: None }
}

/// A direction of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that arrive by the interface: ours run first, before everyone sees them.
    Ingress,
    /// Packets that leave by it: ours run last.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The program for an interface of this role, with an Ethernet header or without; nothing where
    /// none belongs.
    pub const fn program(self, role: Role, ethernet: bool) -> Option<&'static str> {
        Some(match (role, self, ethernet) {
            (Role::Ignored(_), _, _) => return None,
            // What an interface is, this program reads from `INTERFACES`.
            (_, Self::Ingress, true) => "tc_ingress",
            (_, Self::Ingress, false) => "tc_ingress_l3",
            (Role::PodPort, Self::Egress, true) => "tc_egress",
            (Role::PodPort, Self::Egress, false) => "tc_egress_l3",
            (Role::Uplink | Role::Overlay, Self::Egress, true) => "tc_uplink_egress",
            (Role::Uplink | Role::Overlay, Self::Egress, false) => "tc_uplink_egress_l3",
        })
    }

    /// The kernel's name of the hook.
    pub const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
        }
    }

    const fn order(self) -> u32 {
        match self {
            Self::Ingress => BPF_F_BEFORE,
            Self::Egress => BPF_F_AFTER,
        }
    }

    const fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Filters run in the order of their priorities.
    const fn priority(self) -> u16 {
        match self {
            Self::Ingress => 1,
            Self::Egress => 0xfff0,
        }
    }
}

/// The handle of our clsact filters: ours even after a restart.
const HANDLE: TcHandle = TcHandle::new(0, 0x4d52);

/// Opens a cgroup folder.
pub fn open_cgroup(path: &Path) -> Result<File, Error> {
    let magic = sys::file_system(path)
        .map_err(Error::system(format!("use {} as a cgroup", path.display())))?;
    if magic != CGROUP2 {
        return Err(Error::NotCgroup2(path.to_owned()));
    }
    File::open(path).map_err(Error::system(format!("open the cgroup {}", path.display())))
}

/// The pin of the link of a socket hook.
pub fn socket_pin(folder: &Path, hook: &SocketHook) -> PathBuf {
    folder.join("links").join(hook.name)
}

/// The pin of the link of one direction of an interface. By index: names may have dots, which a BPF
/// file system does not take.
pub fn interface_pin(folder: &Path, direction: Direction, index: u32) -> PathBuf {
    folder.join("links").join(format!("{}_{index}", direction.label()))
}

/// The program of the clsact filter of one direction of an interface is pinned here, so that
/// `cleanup` finds it.
pub(super) fn clsact_pin(folder: &Path, direction: Direction, index: u32) -> PathBuf {
    folder.join("links").join(format!("clsact_{}_{index}", direction.label()))
}

/// Puts a program on a cgroup, or in place of the one that is there.
pub(super) fn attach_socket(
    folder: &Path,
    hook: &SocketHook,
    program: BorrowedFd<'_>,
    cgroup: &File,
) -> io::Result<()> {
    let id = cgroup.metadata()?.ino();
    let target = Target::Cgroup(cgroup.as_fd());
    let is_it = |info: &sys::LinkInfo| info.cgroup() == id;
    attach(&socket_pin(folder, hook), program, target, hook.attach_type, 0, is_it)
}

/// Says what is likely to keep a program off a cgroup; the kernel's codes tell little.
pub(super) fn explain_cgroup(error: io::Error) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "another program may be attached to a cgroup above without allowing others below it \
             (`bpftool cgroup tree` shows it), or CAP_NET_ADMIN is missing"
        }
        Some(libc::E2BIG) => {
            "the cgroup has as many programs as the kernel allows (`bpftool cgroup tree` shows them)"
        }
        Some(libc::ENODEV | libc::ENOENT) => {
            "the cgroup may have been removed; start the agent again, or with another --cgroup"
        }
        Some(libc::ENOSPC) => "the BPF file system may be full",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {why}"))
}

/// Puts the packet engine on an interface, or in place of what is there of it.
pub(super) fn attach_interface(
    folder: &Path,
    ebpf: &mut Ebpf,
    interface: &Interface,
    tcx: bool,
) -> Result<(), Error> {
    for direction in Direction::ALL {
        let Some(name) = direction.program(interface.role, interface.ethernet) else {
            // It may have had another role before.
            detach_direction(folder, direction, interface.index, Some(&interface.name))
                .map_err(Error::system(format!("take a program off {}", interface.name)))?;
            continue;
        };
        let what = || Error::system(format!("attach {name} to {}", interface.name));
        if !tcx {
            attach_clsact(folder, ebpf, interface, direction, name).map_err(what())?;
            continue;
        }
        let result = attach(
            &interface_pin(folder, direction, interface.index),
            load::program_fd(ebpf, name)?,
            Target::Interface(interface.index),
            direction.attach_type(),
            direction.order(),
            |info| info.ifindex() == interface.index,
        );
        match result {
            Ok(()) => {}
            // A kernel that does not know tcx.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                attach_clsact(folder, ebpf, interface, direction, name).map_err(what())?;
            }
            Err(error) => return Err(what()(error)),
        }
    }
    Ok(())
}

/// Replaces the program of a pinned link if it is still on this target, else makes a new link.
fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: bpf_attach_type,
    flags: u32,
    is_it: impl Fn(&sys::LinkInfo) -> bool,
) -> io::Result<()> {
    let old = match sys::object_get(pin) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(old) = &old
        && sys::link_info(old.as_fd()).is_ok_and(|info| is_it(&info))
        && sys::link_update(old.as_fd(), program).is_ok()
    {
        return Ok(());
    }
    let link = sys::link_create(program, target, attach_type, flags)?;
    if old.is_some() {
        detach(pin)?;
    }
    sys::object_pin(link.as_fd(), pin)
}

fn attach_clsact(
    folder: &Path,
    ebpf: &mut Ebpf,
    interface: &Interface,
    direction: Direction,
    name: &str,
) -> io::Result<()> {
    let program = ebpf.program_mut(name);
    let Some(Program::SchedClassifier(program)) = program else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // Refused where it is there already, and then it is there.
    let qdisc = tc::qdisc_add_clsact(&interface.name);
    tracing::debug!(interface = interface.name, ?qdisc, "clsact qdisc");
    let options = NlOptions { priority: direction.priority(), handle: HANDLE, classid: None };
    let attach_type = direction.clsact();
    let link = program
        .attach_with_options(&interface.name, attach_type, TcAttachOptions::Netlink(options))
        .or_else(|_| replace_clsact(program, interface, direction))
        .map_err(io::Error::other)?;
    let link = program.take_link(link).map_err(io::Error::other)?;
    // Dropping it would remove the filter.
    std::mem::forget(link);
    let pin = clsact_pin(folder, direction, interface.index);
    if !pin.exists() {
        let fd = program.fd().map_err(io::Error::other)?;
        sys::object_pin(fd.as_fd(), &pin)?;
    }
    Ok(())
}

fn replace_clsact(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: Direction,
) -> Result<tc::SchedClassifierLinkId, ProgramError> {
    let (priority, attach_type) = (direction.priority(), direction.clsact());
    let link = SchedClassifierLink::attached(&interface.name, attach_type, priority, HANDLE, None)?;
    program.attach_to_link(link)
}

/// Takes the packet engine off an interface, or forgets one that is gone. `name` is that of the
/// interface if it still exists.
pub(super) fn detach_interface(folder: &Path, index: u32, name: Option<&str>) -> io::Result<()> {
    Direction::ALL
        .into_iter()
        .try_for_each(|direction| detach_direction(folder, direction, index, name))
}

fn detach_direction(
    folder: &Path,
    direction: Direction,
    index: u32,
    name: Option<&str>,
) -> io::Result<()> {
    detach(&interface_pin(folder, direction, index))?;
    let clsact = clsact_pin(folder, direction, index);
    if clsact.exists() {
        if let Some(name) = name {
            let (priority, attach_type) = (direction.priority(), direction.clsact());
            // Dropping it removes the filter.
            drop(SchedClassifierLink::attached(name, attach_type, priority, HANDLE, None));
        }
        remove(&clsact)?;
    }
    Ok(())
}

/// The interfaces on which a pin says that the packet engine is.
pub fn pinned_interfaces(folder: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join("links"))? {
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("clsact_").or(Some(name)));
        let index = index.and_then(|name| {
            let labels = Direction::ALL.iter();
            labels.filter_map(|d| name.strip_prefix(d.label())).find_map(|n| n.strip_prefix('_'))
        });
        found.extend(index.and_then(|index| index.parse::<u32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Ends a pinned link, if there is one.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    if let Ok(link) = sys::object_get(pin)
        && let Err(error) = sys::link_detach(link.as_fd())
    {
        // Gone with its interface or cgroup, or a kernel that detaches with the pin only.
        tracing::debug!(pin = %pin.display(), %error, "not detached");
    }
    remove(pin)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_program_off_a_cgroup_is_named() {
        let text = |code| explain_cgroup(io::Error::from_raw_os_error(code)).to_string();
        assert!(text(libc::EPERM).contains("os error 1"), "{}", text(libc::EPERM));
        assert!(text(libc::EPERM).contains("a cgroup above"));
        assert!(text(libc::E2BIG).contains("as many programs"));
        assert!(text(libc::ENODEV).contains("--cgroup"));
        assert!(!text(libc::EIO).contains("cgroup"), "nothing is made up");
    }
}
