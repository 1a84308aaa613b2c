//! Packet sockets: frames of an interface as they are.
#![expect(unsafe_code, reason = "packet sockets are reached through libc only")]

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::check;

/// Room for what a burst of packets leaves unread, bytes.
const ROOM: c_int = 8 << 20;
/// `ETH_P_ALL`, as the field of an address has it.
const EVERY_PROTOCOL: u16 = 3_u16.to_be();

/// Every frame of an interface of the calling thread's namespace, both ways; does not wait.
pub(crate) fn open(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call without pointers; protocol zero receives nothing until bound.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just opened and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default();
    let room = ROOM;
    let room = (&raw const room).cast();
    // SAFETY: the value lives until the call returns and is `size` bytes long.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room, size) })?;
    // SAFETY: all bytes zero are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = 17; // AF_PACKET
    address.sll_protocol = EVERY_PROTOCOL;
    address.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    let at = (&raw const address).cast();
    // SAFETY: the address lives until the call returns and is `size` bytes long.
    check(unsafe { libc::bind(socket.as_raw_fd(), at, size) })?;
    Ok(socket)
}

/// Lets this process have as many files open as it may allow itself.
pub(crate) fn allow_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives until the call returns.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}
