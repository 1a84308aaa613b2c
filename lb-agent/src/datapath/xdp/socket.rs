//! A socket for whole frames, to ask neighbours and to hear their answers.
#![expect(unsafe_code, reason = "packet sockets and their filters are not in std")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longer than any answer; what is beyond is cut off.
const FRAME: usize = 256;

/// `linux/if_packet.h`, kernel 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// `BPF_LD | BPF_ABS` of two bytes and of one, `BPF_JMP | BPF_JEQ`, `BPF_RET`.
const LOAD2: u16 = 0x28;
const LOAD1: u16 = 0x30;
const IS: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Answers to ARP requests, and neighbour advertisements (ICMPv6 type 136 without extension
/// headers): a socket that heard everything would cost a busy node dearly.
const ANSWERS: [libc::sock_filter; 11] = [
    op(LOAD2, 0, 0, 12),
    op(IS, 0, 2, 0x0806),
    op(LOAD2, 0, 0, 20),
    op(IS, 5, 6, 2),
    op(IS, 0, 5, 0x86dd),
    op(LOAD1, 0, 0, 20),
    op(IS, 0, 3, 58),
    op(LOAD1, 0, 0, 54),
    op(IS, 0, 1, 136),
    // All of the frame, or nothing.
    op(RETURN, 0, 0, 0xffff),
    op(RETURN, 0, 0, 0),
];

/// A socket that sends frames out of one interface and hears answers of neighbours there.
pub(super) struct Frames(AsyncFd<OwnedFd>);

impl Frames {
    /// Opens one, in this thread's network namespace and runtime.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Of protocol 0, which hears nothing: the filter comes before the first frame.
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us just now; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut filter = ANSWERS;
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or(0),
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program points to as many operations as it says, which live until the call
        // returns; the kernel copies them.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size::<libc::sock_fprog>(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // What leaves by the interface proves nothing, as answers of pods behind a bridge to others.
        let on: libc::c_int = 1;
        // SAFETY: the option is a live number of the size given.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                size::<libc::c_int>(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // Frames of all kinds: those of one kind are not seen on a port of a bridge.
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(0),
            sll_protocol: 0x0003_u16.to_be(),
            sll_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a live struct of the size given.
        let result = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size::<libc::sockaddr_ll>())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor stays the same and open for as long as it is owned here.
        let frames = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        frames.map(Self).map_err(io::Error::from)
    }

    /// Sends a frame. One that finds no room is lost, as on any wire.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the bytes live until the call returns, and the length is theirs.
        let sent = unsafe {
            libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits for the next answer.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|fd| {
                let mut frame = vec![0_u8; FRAME];
                // SAFETY: the buffer has the length given and is ours alone.
                let length = unsafe {
                    libc::recv(fd.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0)
                };
                let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
                frame.truncate(length);
                Ok(frame)
            });
            if let Ok(result) = received {
                return result;
            }
        }
    }
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
