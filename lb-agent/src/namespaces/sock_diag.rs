//! Which UDP sockets of a network namespace are connected, and to what? And: end one of them.
//!
//! By netlink's `sock_diag`. A socket is named by its cookie, which no other socket ever has, so that
//! what is ended is what was seen.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{Attributes, Netlink};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `TCP_ESTABLISHED`, which says of a UDP socket that it is connected.
const ESTABLISHED: u32 = 1;
/// Bytes of `struct inet_diag_sockid`, and where its fields are.
const ID: usize = 48;
const ID_DPORT: usize = 2;
const ID_DST: usize = 20;
const ID_COOKIE: usize = 40;
/// Bytes of `struct inet_diag_msg` before and behind the id.
const BEFORE: usize = 4;
const BEHIND: usize = 20;

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connected {
    /// Its cookie.
    pub(super) cookie: u64,
    /// What it is connected to; IPv4 also where the socket is one of IPv6.
    pub(super) peer: SocketAddr,
    /// The cgroup it was made in; kernel 5.8.
    pub(super) cgroup: Option<u64>,
    family: u8,
    id: [u8; ID],
}

/// The socket diagnostics of one namespace, that of the thread that opens them.
#[derive(Debug)]
pub(super) struct SockDiag(Netlink);

/// Whether the kernel can end sockets; who may is another matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// They can.
    Yes,
    /// The kernel was built without `CONFIG_INET_DIAG_DESTROY` or without UDP's diagnostics.
    Not,
}

impl SockDiag {
    /// Opens them.
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// All connected UDP sockets.
    pub(super) fn connected(&mut self, mut each: impl FnMut(Connected)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            let request = request(family, 1 << ESTABLISHED, &[0; ID]);
            self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |message| {
                if let Some(socket) = connected(message) {
                    each(socket);
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }

    /// Ends a socket: its next call fails with ECONNABORTED. False if it is gone already.
    pub(super) fn destroy(&mut self, socket: &Connected) -> io::Result<bool> {
        match self.0.request(SOCK_DESTROY, &request(socket.family, u32::MAX, &socket.id)) {
            Ok(()) => Ok(true),
            // Another one has taken its addresses, or nobody.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel can end sockets: asks for one that is none.
    pub(super) fn support(&mut self) -> io::Result<Support> {
        // The cookie that stands for any socket is all ones, and this is none that is given out.
        let mut id = [0; ID];
        id[ID_COOKIE..].copy_from_slice(&(u64::MAX - 1).to_ne_bytes());
        let v4 = u8::try_from(libc::AF_INET).unwrap_or_default();
        match self.0.request(SOCK_DESTROY, &request(v4, u32::MAX, &id)) {
            Ok(()) => Ok(Support::Yes),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESTALE) => Ok(Support::Yes),
                Some(libc::EOPNOTSUPP | libc::EINVAL) => Ok(Support::Not),
                _ => Err(error),
            },
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let udp = u8::try_from(libc::IPPROTO_UDP).unwrap_or_default();
    let mut bytes = vec![family, udp, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn connected(message: &[u8]) -> Option<Connected> {
    let (&[family, state, ..], rest) = message.split_first_chunk::<BEFORE>()?;
    let (id, rest) = rest.split_first_chunk::<ID>()?;
    let attributes = Attributes(rest.get(BEHIND..)?);
    if u32::from(state) != ESTABLISHED {
        return None;
    }
    let bytes = id.get(ID_DST..)?.first_chunk::<16>()?;
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => bytes.first_chunk::<4>().copied()?.into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes).to_canonical(),
        _ => return None,
    };
    let port = id.get(ID_DPORT..)?.first_chunk().copied().map(u16::from_be_bytes)?;
    let cookie = id.get(ID_COOKIE..)?.first_chunk().copied().map(u64::from_ne_bytes)?;
    let cgroup = attributes.find(INET_DIAG_CGROUP_ID);
    let cgroup = cgroup.and_then(|bytes| bytes.first_chunk().copied()).map(u64::from_ne_bytes);
    Some(Connected { cookie, peer: SocketAddr::new(ip, port), cgroup, family, id: *id })
}

#[cfg(test)]
impl Connected {
    /// A socket as the kernel might tell of it.
    pub(super) fn test(cookie: u64, peer: SocketAddr) -> Self {
        Self { cookie, peer, cgroup: None, family: 2, id: [0; ID] }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::UdpSocket;

    use proptest::prelude::*;

    use super::*;

    /// The socket of this process that is connected to `peer`.
    fn find(diag: &mut SockDiag, peer: SocketAddr) -> Option<Connected> {
        let mut found = None;
        diag.connected(|socket| {
            if socket.peer == peer {
                found = Some(socket);
            }
        })
        .unwrap();
        found
    }

    #[test]
    fn a_connected_socket_is_seen_and_ended_and_no_other() {
        let test = "a_connected_socket_is_seen_and_ended_and_no_other";
        let mut diag = SockDiag::open().unwrap();
        let skip = |why: &str| drop(writeln!(io::stderr(), "skipped: {test}: {why}"));
        if diag.support().unwrap() == Support::Not {
            return skip("needs a kernel with CONFIG_INET_DIAG_DESTROY");
        }
        for (any, loopback) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")]
        {
            let ip: IpAddr = loopback.parse().unwrap();
            let servers =
                [(); 2].map(|()| UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap().local_addr());
            let [peer, other_peer] = servers.map(Result::unwrap);
            let target = |peer: SocketAddr| match (any, peer.ip()) {
                ("[::]:0", IpAddr::V4(v4)) => {
                    SocketAddr::new(v4.to_ipv6_mapped().into(), peer.port())
                }
                _ => peer,
            };
            let sockets = [peer, other_peer].map(|peer| {
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect(target(peer)).unwrap();
                socket
            });
            let seen = find(&mut diag, peer).unwrap();
            match diag.destroy(&seen) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return skip("needs root; run `cargo xtask test`");
                }
                ended => assert!(ended.unwrap()),
            }
            assert!(!diag.destroy(&seen).unwrap(), "it is not connected any more");
            let error = sockets[0].take_error().unwrap().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            assert!(find(&mut diag, other_peer).is_some(), "the other one stays");
            assert!(sockets[1].take_error().unwrap().is_none());
        }
    }

    #[test]
    fn a_socket_is_read_from_the_kernels_form() {
        let mut message = vec![2, 1, 0, 0];
        let mut id = [0; ID];
        id[ID_DPORT..4].copy_from_slice(&53_u16.to_be_bytes());
        id[ID_DST..24].copy_from_slice(&[10, 96, 0, 10]);
        id[ID_COOKIE..].copy_from_slice(&77_u64.to_ne_bytes());
        message.extend(id);
        message.extend([0; BEHIND]);
        message.extend([12, 0, 21, 0]);
        message.extend(99_u64.to_ne_bytes());
        let socket = connected(&message).unwrap();
        assert_eq!(socket.peer.to_string(), "10.96.0.10:53");
        assert_eq!((socket.cookie, socket.cgroup), (77, Some(99)));
        message[1] = 7;
        assert_eq!(connected(&message), None, "not connected");
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes: Vec<u8>) {
            connected(&bytes);
        }
    }
}
