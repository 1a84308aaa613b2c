//! What the socket engine remembers: the translation of a connected socket, and the peers of an
//! unconnected UDP socket. Addresses are four words; IPv4 is in the first, zeros behind it.

use super::BackendId;

/// Key of `SOCKET_PEERS`, 32 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Socket cookie.
    pub cookie: u64,
    /// VIP (forward) or backend (reverse).
    pub addr: [u32; 4],
    /// Its port, network order.
    pub port: u16,
    /// [`SocketKey::FORWARD`] or [`SocketKey::REVERSE`].
    pub kind: u8,
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<SocketKey>() == 32);

impl SocketKey {
    /// From the VIP that the application sends to, to the backend.
    pub const FORWARD: u8 = 1;
    /// From the backend that answers, to the VIP that the application knows.
    pub const REVERSE: u8 = 2;
}

/// Value of `SOCKET_PEERS`, 48 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer {
    /// Backend (forward) or VIP (reverse).
    pub addr: [u32; 4],
    /// Next record of the same socket: its key's address. `next_kind` 0 ends the list.
    pub next_addr: [u32; 4],
    /// Backend id (forward).
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// Port, network order.
    pub port: u16,
    /// Next record's port.
    pub next_port: u16,
    /// Next record's kind; 0: none.
    pub next_kind: u8,
    /// Next record's family.
    pub next_family: u8,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<SocketPeer>() == 48);

/// Value of `SOCKETS`, the socket's own storage, freed with it: 64 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    /// The VIP that the application connected to.
    pub vip: [u32; 4],
    /// The backend that the socket is connected to.
    pub peer: [u32; 4],
    /// First record of this socket in `SOCKET_PEERS`.
    pub head_addr: [u32; 4],
    /// Backend id.
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// The VIP's port, network order; 0: not connected through us.
    pub vip_port: u16,
    /// The backend's port.
    pub peer_port: u16,
    /// First record's port.
    pub head_port: u16,
    /// First record's kind; 0: none.
    pub head_kind: u8,
    /// First record's family.
    pub head_family: u8,
}

const _: () = assert!(size_of::<SocketRecord>() == 64);
