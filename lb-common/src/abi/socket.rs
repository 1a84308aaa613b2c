//! What the socket engine remembers: the translation of a connected socket, and the peers of an
//! unconnected UDP socket. Addresses are four words; IPv4 is in the first, zeros behind it.

use super::BackendId;

/// Names a record of `SOCKET_PEERS` within its socket.
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

/// Key of `SOCKET_PEERS`, 32 bytes.
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

/// Value of `SOCKET_PEERS`, 48 bytes.
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

/// Value of `SOCKETS`, the socket's own storage, freed with it, and of `UDP_SOCKETS`: 72 bytes. A new
/// one is all zeros.
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
