//! What the socket engine remembers: the translation of a connected socket, and the peers of an
//! unconnected UDP socket. Addresses are four words; IPv4 is in the first, zeros behind it.

use super::{BackendId, Mix};

/// Names a record of `SOCKET_PEERS` or `HOST_SOCKET_PEERS` within its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketLink {
    /// VIP (forward) or backend (reverse).
    pub addr: [u32; 4],
    /// Its port, network order.
    pub port: u16,
    /// [`SocketLink::FORWARD`] or [`SocketLink::REVERSE`]; 0: none.
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
}

impl SocketLink {
    /// From the VIP that the application sends to, to the backend.
    pub const FORWARD: u8 = 1;
    /// From the backend that answers, to the VIP that the application knows.
    pub const REVERSE: u8 = 2;
}

/// Key of `SOCKET_PEERS` and `HOST_SOCKET_PEERS`, 32 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Which record of this socket.
    pub link: SocketLink,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<SocketKey>() == 32);

/// Value of `SOCKET_PEERS` and `HOST_SOCKET_PEERS`, 48 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer {
    /// Backend (forward) or VIP (reverse).
    pub addr: [u32; 4],
    /// The next record of the same socket.
    pub next: SocketLink,
    /// Backend id (forward).
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// Port, network order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<SocketPeer>() == 48);

/// Value of `SOCKETS`, the socket's own storage, freed with it, and of `UDP_SOCKETS` and
/// `HOST_UDP_SOCKETS`: 72 bytes. A new one is all zeros.
///
/// [`TcpSocket`] is what most sockets that are not UDP's have in its place.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketRecord {
    /// The VIP that the application connected to.
    pub vip: [u32; 4],
    /// The backend that the socket is connected to.
    pub peer: [u32; 4],
    /// First record of this socket in `SOCKET_PEERS`.
    pub head: SocketLink,
    /// Backend id.
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// The VIP's port, network order; 0: not connected through us.
    pub vip_port: u16,
    /// The backend's port.
    pub peer_port: u16,
    /// Number of records of this socket in `SOCKET_PEERS`.
    pub peers: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<SocketRecord>() == 72);

impl SocketRecord {
    /// What a new one holds.
    pub const EMPTY: Self = Self {
        vip: [0; 4],
        peer: [0; 4],
        head: SocketLink { addr: [0; 4], port: 0, kind: 0, family: 0 },
        backend: 0,
        generation: 0,
        vip_port: 0,
        peer_port: 0,
        peers: 0,
        pad: 0,
    };
}

/// Elements of `TCP_SOCKETS`; a power of two.
pub const TCP_SOCKETS: u32 = 1 << 16;

/// Value of `TCP_SOCKETS`, 48 bytes: the VIP of a connected socket, at the place that its cookie names
/// ([`TcpSocket::place`]). A socket whose place another one has keeps a [`SocketRecord`] in storage of
/// its own.
///
/// Two sockets that take one place at the same moment may leave parts of both there: a record counts
/// for its socket only if all of it is that socket's.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSocket {
    /// Whose it is, by cookie; 0: nobody's.
    pub cookie: u64,
    /// The VIP that the application connected to.
    pub vip: [u32; 4],
    /// The backend that the socket is connected to.
    pub peer: [u32; 4],
    /// The VIP's port, network order.
    pub vip_port: u16,
    /// The backend's port.
    pub peer_port: u16,
    /// Of all the others.
    pub check: u32,
}

const _: () = assert!(size_of::<TcpSocket>() == 48);

impl TcpSocket {
    /// Where the record of a socket lies: sockets that are opened one after the other lie beside each
    /// other.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        const LOW: u64 = TCP_SOCKETS as u64 - 1;
        (cookie & LOW) as u32
    }

    /// The record of a socket that is connected to `vip` by way of `peer`.
    #[inline(always)]
    pub fn new(
        cookie: u64,
        vip: &[u32; 4],
        peer: &[u32; 4],
        vip_port: u16,
        peer_port: u16,
    ) -> Self {
        let check = Self::check(cookie, vip, peer, vip_port, peer_port);
        Self { cookie, vip: *vip, peer: *peer, vip_port, peer_port, check }
    }

    /// What is known of this socket; `None` if the record is another's, or not whole.
    #[inline(always)]
    pub fn of(&self, cookie: u64) -> Option<SocketRecord> {
        let check = Self::check(cookie, &self.vip, &self.peer, self.vip_port, self.peer_port);
        if self.cookie != cookie || self.check != check {
            return None;
        }
        Some(SocketRecord {
            vip: self.vip,
            peer: self.peer,
            vip_port: self.vip_port,
            peer_port: self.peer_port,
            ..SocketRecord::EMPTY
        })
    }

    #[inline(always)]
    fn check(cookie: u64, vip: &[u32; 4], peer: &[u32; 4], vip_port: u16, peer_port: u16) -> u32 {
        let ports = (vip_port as u64) << 16 | peer_port as u64;
        Mix::new().word(cookie).ip(vip).ip(peer).word(ports).tag()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: [u32; 4] = [0x0a00_600a, 0, 0, 0];
    const PEER: [u32; 4] = [0x0500_010a, 0, 0, 0];

    #[test]
    fn a_record_is_its_own_sockets() {
        let record = TcpSocket::new(7, &VIP, &PEER, 80, 8080);
        let found =
            record.of(7).map(|found| (found.vip, found.peer, found.vip_port, found.peer_port));
        assert_eq!(found, Some((VIP, PEER, 80, 8080)));
        assert_eq!(record.of(7 + u64::from(TCP_SOCKETS)), None, "another at the same place");
        assert_eq!(TcpSocket::default().of(0), None, "nobody's");
    }

    #[test]
    fn a_record_of_parts_of_two_is_nobodys() {
        let other = 7 + u64::from(TCP_SOCKETS);
        assert_eq!(TcpSocket::place(7), TcpSocket::place(other));
        let one = TcpSocket::new(7, &VIP, &PEER, 80, 8080);
        let two = TcpSocket::new(other, &PEER, &VIP, 443, 8443);
        for torn in [
            TcpSocket { cookie: other, ..one },
            TcpSocket { vip: two.vip, ..one },
            TcpSocket { peer: two.peer, ..one },
            TcpSocket { vip_port: two.vip_port, ..one },
            TcpSocket { peer_port: two.peer_port, ..one },
            TcpSocket { check: two.check, ..one },
        ] {
            assert_eq!((torn.of(7), torn.of(other)), (None, None), "{torn:?}");
        }
    }
}
