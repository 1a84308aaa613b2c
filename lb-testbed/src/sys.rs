//! The system calls that the standard library has no safe form of.
#![expect(unsafe_code, reason = "namespaces, mounts and bpf() are reached through libc only")]

pub(crate) mod packet;

use std::{
    ffi::{CString, c_int, c_ulong},
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::Command,
    ptr,
    time::Duration,
};

use lb_common::abi::TcpSocket;

/// What a child process does between fork and exec.
#[derive(Debug, Default)]
pub(crate) struct ChildSetup {
    /// Network namespace to enter.
    pub(crate) netns: Option<OwnedFd>,
    /// Opened `cgroup.procs` of the cgroup to join.
    pub(crate) cgroup_procs: Option<OwnedFd>,
}

/// Lets the child of `command` enter namespace and cgroup, and die with the thread that spawns it.
pub(crate) fn before_exec(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    let enter = move || {
        if let Some(procs) = &setup.cgroup_procs {
            // SAFETY: a two-byte constant, a descriptor that the closure owns; write() is
            // async-signal-safe.
            check(unsafe { libc::write(procs.as_raw_fd(), b"0\n".as_ptr().cast(), 2) })?;
        }
        if let Some(netns) = &setup.netns {
            // SAFETY: plain system call on a descriptor that the closure owns.
            check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) })?;
        }
        let signal = libc::SIGKILL as c_ulong;
        // SAFETY: plain system call without pointers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) })?;
        // The parent may have died before the line above; nobody would send the signal then.
        // SAFETY: plain system call without arguments.
        let now = unsafe { libc::getppid() };
        if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the closure only makes async-signal-safe system calls and does not allocate.
    unsafe { command.pre_exec(enter) };
}

/// Moves the calling thread into a fresh network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: plain system call; only the calling thread's namespace changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into the network namespace behind `netns`.
pub(crate) fn enter_net(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain system call on a borrowed descriptor.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Whether a thread of this process may make a network namespace.
pub(crate) fn may_make_namespaces() -> bool {
    std::thread::spawn(|| unshare_net().is_ok()).join().unwrap_or(false)
}

/// Has an interface of the calling thread's namespace fill in checksums of what it sends, or not.
pub(crate) fn offload_checksums(interface: &str, on: bool) -> io::Result<()> {
    const SET_TX_CHECKSUMS: u32 = 0x17;
    ethtool(interface, SET_TX_CHECKSUMS, on)
}

/// Has an interface of the calling thread's namespace put packets of a flow together when it
/// receives them (GRO), or not.
pub(crate) fn aggregate(interface: &str, on: bool) -> io::Result<()> {
    const SET_GRO: u32 = 0x2c;
    ethtool(interface, SET_GRO, on)
}

/// A command of linux/ethtool.h with one number.
fn ethtool(interface: &str, command: u32, on: bool) -> io::Result<()> {
    // linux/sockios.h
    const ETHTOOL: c_ulong = 0x8946;
    let mut request = Offload { name: [0; 16], value: ptr::null(), pad: [0; 16] };
    let value = [command, u32::from(on)];
    request.value = value.as_ptr();
    for (to, from) in request.name.iter_mut().take(15).zip(interface.bytes()) {
        *to = from;
    }
    let socket = std::net::UdpSocket::bind("[::]:0")?;
    // SAFETY: a request of the kernel's size with a terminated name; it points to two words that live
    // until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) }).map(drop)
}

/// `struct ifreq` with a pointer to a `struct ethtool_value`.
#[repr(C)]
struct Offload {
    name: [u8; 16],
    value: *const u32,
    pad: [u8; 16],
}

/// A fresh tun device of the calling thread's namespace; what is read and written are its packets.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    // linux/if_tun.h: TUNSETIFF, IFF_TUN | IFF_NO_PI
    const SET_INTERFACE: c_ulong = 0x4004_54ca;
    const TUN_WITHOUT_HEADER: u16 = 0x1001;
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = [0_u8; 40];
    for (to, from) in request.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    request[16..18].copy_from_slice(&TUN_WITHOUT_HEADER.to_ne_bytes());
    let at = request.as_mut_ptr();
    // SAFETY: a request of the size of `struct ifreq`, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE, at) })?;
    Ok(device)
}

/// Waits until one of these can be read; which ones.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let poll =
        |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut polls: Vec<_> = fds.iter().map(poll).collect();
    let count = libc::nfds_t::try_from(polls.len()).unwrap_or(0);
    // SAFETY: `count` elements, which live until the call returns.
    check(unsafe { libc::poll(polls.as_mut_ptr(), count, -1) })?;
    Ok(polls.iter().map(|poll| poll.revents != 0).collect())
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Mounts `from` over `to` as well.
pub(crate) fn bind_mount(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let (kind, data) = (ptr::null(), ptr::null());
    // SAFETY: both strings live until the call returns; kind and data are not read for a bind.
    check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind, libc::MS_BIND, data) }).map(drop)
}

/// Mounts a fresh BPF file system at `at`.
pub(crate) fn mount_bpffs(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    let (source, kind, data) = (c"millrace-test", c"bpf", c"mode=0700");
    // SAFETY: all strings live until the call returns.
    check(unsafe {
        libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast())
    })
    .map(drop)
}

/// Unmounts `at`, now for everybody who looks and for good when the last user is gone.
pub(crate) fn unmount(at: &Path) -> io::Result<()> {
    let at = c_path(at)?;
    // SAFETY: the string lives until the call returns.
    check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Sends a signal to one process.
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Zero and below address groups of processes, never meant here.
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Listens at an address together with others that do so as well: the kernel shares out connections.
pub(crate) fn tcp_listen_shared(at: SocketAddr) -> io::Result<TcpListener> {
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: plain system call without pointers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just opened and has no other owner.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    set_option(&listener, libc::SO_REUSEPORT, &1_i32)?;
    let (addr, len) = raw_addr(at);
    // SAFETY: the address lives until the call returns and is `len` bytes long.
    check(unsafe { libc::bind(fd, (&raw const addr).cast(), len) })?;
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::listen(fd, 4096) })?;
    Ok(listener)
}

/// A TCP connection from a chosen local address, with a deadline.
pub(crate) fn tcp_connect(
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let stream = tcp_socket(to)?;
    if let Some(from) = from {
        // As clients do that use one port again and again: it may still be in TIME_WAIT.
        set_option(&stream, libc::SO_REUSEADDR, &1_i32)?;
        let (addr, len) = raw_addr(from);
        // SAFETY: the address lives until the call returns and is `len` bytes long.
        check(unsafe { libc::bind(stream.as_raw_fd(), (&raw const addr).cast(), len) })?;
    }
    connect_within(&stream, to, timeout)?;
    Ok(stream)
}

/// A TCP connection by a socket whose cookie [`TcpSocket`] has the same place for as for that of
/// `other`: cookies are numbers in a row, so it is found among some tens of thousands.
pub(crate) fn tcp_connect_beside(
    other: &TcpStream,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    const TRIES: u32 = 1 << 22;
    let wanted = TcpSocket::place(cookie(other)?);
    for _ in 0..TRIES {
        let stream = tcp_socket(to)?;
        if TcpSocket::place(cookie(&stream)?) == wanted {
            connect_within(&stream, to, timeout)?;
            return Ok(stream);
        }
    }
    Err(io::Error::other(format!("none of {TRIES} sockets had place {wanted}")))
}

/// A socket for the family of `to`, not connected, whose calls do not wait.
fn tcp_socket(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call without pointers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Connects such a socket; its calls wait from then on.
fn connect_within(stream: &TcpStream, to: SocketAddr, timeout: Duration) -> io::Result<()> {
    let fd = stream.as_raw_fd();
    let (addr, len) = raw_addr(to);
    // SAFETY: the address lives until the call returns and is `len` bytes long.
    let connected = check(unsafe { libc::connect(fd, (&raw const addr).cast(), len) });
    if let Err(error) = connected {
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
        if !writable_within(fd, timeout)? {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    stream.set_nonblocking(false)
}

/// What the kernel calls a socket: a number that no other has had.
fn cookie(stream: &TcpStream) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_COOKIE);
    let value = (&raw mut cookie).cast();
    // SAFETY: the value lives until the call returns and is `len` bytes long.
    check(unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, value, &raw mut len) })?;
    Ok(cookie)
}

/// Makes `close()` send a reset and leave no `TIME_WAIT` behind.
pub(crate) fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    set_option(stream, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Sets an option of the socket level, whose value is a `T` to the kernel.
fn set_option<T>(stream: &impl AsRawFd, option: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    let value = ptr::from_ref(value).cast();
    // SAFETY: the value lives until the call returns and is `len` bytes long.
    check(unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, value, len) })
        .map(drop)
}

/// The `bpf` system call. `attr` is the kernel's `union bpf_attr` as far as `command` reads it.
///
/// # Safety
/// Every address in `attr` must point to memory of the length stated beside it, writable where the
/// command writes.
pub(crate) unsafe fn bpf<T>(command: c_int, attr: &mut T) -> io::Result<c_int> {
    // SAFETY: `attr` is valid for its own size; the caller answers for the addresses in it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        c_int::try_from(result).map_err(io::Error::other)
    }
}

/// The `bpf` system call for commands that return a new descriptor.
///
/// # Safety
/// As [`bpf`].
pub(crate) unsafe fn bpf_open<T>(command: c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `union bpf_attr` as `BPF_LINK_CREATE` reads it for XDP, cgroups and tcx; what only tcx has is zero.
#[repr(C)]
#[derive(Debug, Default)]
struct LinkAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// Attaches a program to an interface of this namespace, by its index, or to a cgroup, by its
/// descriptor, until the descriptor that is returned is closed.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: c_int = 28;
    let prog_fd = program.as_raw_fd().cast_unsigned();
    let mut attr = LinkAttr { prog_fd, target, attach_type, flags, ..LinkAttr::default() };
    // SAFETY: no addresses in this argument.
    unsafe { bpf_open(BPF_LINK_CREATE, &mut attr) }
}

fn writable_within(fd: RawFd, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: one element, which lives until the call returns.
    Ok(check(unsafe { libc::poll(&raw mut poll, 1, timeout_ms) })? > 0)
}

/// `AF_INET` and `AF_INET6` in the type of an address's first field.
const FAMILY_V4: libc::sa_family_t = 2;
const FAMILY_V6: libc::sa_family_t = 10;

fn raw_addr(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all bytes zero are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let at = &raw mut storage;
    let len = match addr {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: FAMILY_V4,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is larger and at least as aligned as each address type.
            unsafe { at.cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: FAMILY_V6,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: the storage is larger and at least as aligned as each address type.
            unsafe { at.cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, libc::socklen_t::try_from(len).unwrap_or_default())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn check<T: PartialOrd + Default>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}
