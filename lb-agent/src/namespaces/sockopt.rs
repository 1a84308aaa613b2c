//! What does a socket tell of the network namespace that it was made in?
#![expect(unsafe_code, reason = "getsockopt with options that no crate knows takes pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `SO_NETNS_COOKIE`, asm-generic/socket.h; kernel 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// The cookie of the network namespace that a socket belongs to; unique until the machine is
/// started anew. Fails with `ENOPROTOOPT` where the kernel has no such option.
pub(super) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = [0; 8];
    let length = option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    if length == cookie.len() {
        Ok(u64::from_ne_bytes(cookie))
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Reads an option into `buffer`, whose content goes to the kernel first: some options are asked
/// with arguments. Returns how many bytes the kernel says that it wrote, at most the buffer's.
pub(super) fn option(
    socket: impl AsFd,
    level: i32,
    name: i32,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    let mut length = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel reads and writes at most `length` bytes at the buffer, which are all of
    // them, and `length` itself; both live until the call returns and nobody else uses them.
    let result =
        unsafe { libc::getsockopt(fd, level, name, buffer.as_mut_ptr().cast(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn sockets_of_one_namespace_have_one_cookie() {
        let cookie = || netns_cookie(UdpSocket::bind("127.0.0.1:0").unwrap());
        match (cookie(), cookie()) {
            (Ok(a), Ok(b)) => assert!(a == b && a != 0, "{a} {b}"),
            // Before kernel 5.14.
            (Err(a), _) => assert_eq!(a.raw_os_error(), Some(libc::ENOPROTOOPT)),
            (Ok(_), Err(b)) => panic!("{b}"),
        }
    }

    #[test]
    fn an_option_that_is_none_is_an_error() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(option(&socket, libc::SOL_SOCKET, 9999, &mut [0; 8]).is_err());
    }
}
