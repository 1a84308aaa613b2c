//! System calls of measurements that the standard library has no form of, or none without extra
//! work around it that would be timed too.
#![expect(unsafe_code, reason = "sockets and affinity take addresses of structs")]

use std::{
    fs, io,
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::sys;

/// `BPF_CGROUP_INET4_CONNECT`.
pub(super) const INET4_CONNECT: u32 = 10;

/// Gives a CPU to every thread of a process, before all others that want it; threads made later
/// inherit that.
pub(super) fn give_cpu(pid: u32, cpu: usize) -> Result<()> {
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
        let name = task.with_context(|| format!("list {tasks}"))?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match give(id, cpu) {
            // A thread that has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result.with_context(|| format!("bind thread {id} to CPU {cpu}"))?,
        }
    }
    Ok(())
}

/// Gives a CPU to the calling thread alone.
pub(super) fn take_cpu(cpu: usize) -> Result<()> {
    give(0, cpu).with_context(|| format!("bind this thread to CPU {cpu}"))
}

/// Affinity and the best of the ordinary priorities; `thread` 0 is the calling one.
fn give(thread: libc::pid_t, cpu: usize) -> io::Result<()> {
    // SAFETY: all bytes zero are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is exclusively ours; a CPU beyond its size is ignored.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives until the call returns and has the size stated.
    check(unsafe { libc::sched_setaffinity(thread, size_of_val(&set), &raw const set) })?;
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, thread.cast_unsigned(), -20) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The highest CPU that this process may run on; interrupts and other work prefer low ones.
pub(super) fn last_cpu() -> Result<usize> {
    // SAFETY: all bytes zero are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives until the call returns and has the size stated.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("ask for the CPUs of this process");
    }
    let size = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: the set is initialised, and no CPU is beyond its size.
    let of_ours = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    (0..size).rev().find(of_ours).context("this process may run on no CPU")
}

/// An IPv4 socket: `libc::SOCK_STREAM` or `libc::SOCK_DGRAM`.
pub(super) fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address as the kernel takes it, made before anything is timed.
pub(super) fn raw_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: 2, // AF_INET
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// `connect()` and nothing around it.
#[inline]
pub(super) fn connect(socket: &OwnedFd, to: &libc::sockaddr_in) -> io::Result<()> {
    let at: *const libc::sockaddr_in = to;
    // SAFETY: the address lives until the call returns and is as long as stated.
    let result = unsafe { libc::connect(socket.as_raw_fd(), at.cast(), 16) };
    check(result)
}

const _: () = assert!(size_of::<libc::sockaddr_in>() == 16);

/// Attaches a program to a cgroup until the descriptor is closed.
pub(super) fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> Result<OwnedFd> {
    let target = cgroup.as_raw_fd().cast_unsigned();
    sys::link_create(program, target, attach_type, 0).context("attach a program to a cgroup")
}
