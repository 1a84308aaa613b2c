//! The socket of a call at a cgroup hook: what is remembered of it, and who it is.
#![expect(unsafe_code, reason = "socket storage and map values are raw pointers")]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
    bpf_sk_storage_get,
};
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, BYPASS_CGROUPS, Backend, BackendId, BackendWord,
    Counter, FactsWord, FrontendKey, FrontendWord, Ip, NetnsRecord, ServicePortId, SetWord,
    SocketKey, SocketLink, SocketPeer, SocketRecord, TcpSocket, proto,
};
use lb_common::select::Choice;
use lb_common::socket;
use lb_common::tables::{FrontendTables, ServiceTables, SocketTables};

use crate::tables::Maps;
use crate::{config, maps};

/// No interface is at hand before a packet exists.
const MAPS: Maps = Maps { ifindex: 0, context: ptr::null_mut(), framed: false };

/// `TCP_ESTABLISHED`, which the kernel says of connected UDP sockets too.
const ESTABLISHED: u32 = 1;

/// The maps, and the socket of this call.
pub struct Socket {
    /// Of the program.
    pub context: *mut c_void,
    /// In that context.
    pub sk: *mut bpf_sock,
    /// Records of UDP sockets are in a hash: it costs less than new storage for a socket, which may
    /// live for one query, and the agent finds in it who talks to a backend that is gone.
    udp: bool,
    /// Those of the node's own namespace are in tables that no pod can fill.
    host: bool,
}

/// Calls a method of the table of UDP sockets that has this socket's record, or of that of peers.
macro_rules! table {
    ($socket:expr, sockets.$method:ident($($argument:expr),*)) => {
        if $socket.host {
            maps::HOST_UDP_SOCKETS.$method($($argument),*)
        } else {
            maps::UDP_SOCKETS.$method($($argument),*)
        }
    };
    ($socket:expr, peers.$method:ident($($argument:expr),*)) => {
        if $socket.host {
            maps::HOST_SOCKET_PEERS.$method($($argument),*)
        } else {
            maps::SOCKET_PEERS.$method($($argument),*)
        }
    };
}

impl Socket {
    #[inline(always)]
    pub fn new(context: *mut c_void, sk: *mut bpf_sock, protocol: u32) -> Self {
        let mut socket = Self { context, sk, udp: protocol == u32::from(proto::UDP), host: false };
        socket.host = socket.udp && socket::in_node(&socket);
        socket
    }

    #[inline(always)]
    fn storage(&self, flags: u32) -> *mut SocketRecord {
        let map = ptr::from_ref(&maps::SOCKETS).cast_mut().cast();
        // SAFETY: the map of this program and the socket of its context; without a value to begin
        // with, new storage is all zeros.
        unsafe { bpf_sk_storage_get(map, self.sk.cast(), ptr::null_mut(), u64::from(flags)).cast() }
    }

    /// The place in `TCP_SOCKETS` that a socket may have, and whose it is.
    #[inline(always)]
    fn place(cookie: u64) -> Option<(*mut TcpSocket, u64)> {
        let place = maps::TCP_SOCKETS.get_ptr_mut(TcpSocket::place(cookie))?;
        // SAFETY: the verifier proved the pointer; owners come and go by whole words.
        Some((place, unsafe { (&raw const (*place).cookie).read_volatile() }))
    }

    /// Takes a place in `TCP_SOCKETS` for what `connect` did; `false` if another socket has it.
    #[inline(always)]
    fn take_place(&self, vip: &[u32; 4], vip_port: u16, to: &Choice) -> bool {
        let cookie = self.cookie();
        let Some((place, owner)) = Self::place(cookie) else { return false };
        if owner != 0 && owner != cookie {
            return false;
        }
        let record = TcpSocket::new(cookie, vip, &to.addr, vip_port, to.port);
        // SAFETY: the verifier proved the pointer; who writes there at the same time makes a record
        // that is nobody's.
        unsafe { place.write(record) };
        true
    }

    #[inline(always)]
    fn leave_place(&self) {
        let cookie = self.cookie();
        if let Some((place, owner)) = Self::place(cookie)
            && owner == cookie
        {
            // SAFETY: the verifier proved the pointer; the place is this socket's.
            unsafe { (&raw mut (*place).cookie).write_volatile(0) };
        }
    }

    /// The socket's record, or null.
    #[inline(always)]
    fn found(&self) -> *mut SocketRecord {
        if self.udp {
            table!(self, sockets.get_ptr_mut(self.cookie())).unwrap_or_default()
        } else {
            self.storage(0)
        }
    }

    /// Changes the socket's record, which is made if it has none; `false` without room for one.
    #[inline(always)]
    fn update(&self, change: impl Fn(*mut SocketRecord)) -> bool {
        if !self.udp {
            let record = self.storage(BPF_SK_STORAGE_GET_F_CREATE);
            if !record.is_null() {
                change(record);
            }
            return !record.is_null();
        }
        let cookie = self.cookie();
        if let Some(record) = table!(self, sockets.get_ptr_mut(cookie)) {
            change(record);
            return true;
        }
        let mut record = SocketRecord::EMPTY;
        change(&raw mut record);
        table!(self, sockets.insert(cookie, record, 0)).is_ok()
    }
}

/// Lies in memory that programs share and none writes.
static EMPTY: SocketRecord = SocketRecord::EMPTY;

/// Stores a field of a socket's storage that is not null.
macro_rules! set {
    ($record:expr, $field:ident, $value:expr) => {{
        // SAFETY: checked for null by the caller; only calls on this very socket write it, and
        // those that could race hold the socket's lock.
        unsafe { (&raw mut (*$record).$field).write($value) };
    }};
}

impl SocketTables for Socket {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context of this program.
        unsafe { bpf_get_socket_cookie(self.context) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the context of this program.
        unsafe { bpf_get_netns_cookie(self.context) }
    }

    #[inline(always)]
    fn node_netns(&self) -> u64 {
        config::node_netns()
    }

    #[inline(always)]
    fn netns(&self, cookie: u64) -> Option<NetnsRecord> {
        let record = maps::NETNS.get_ptr(cookie)?;
        // SAFETY: the verifier proved the pointer; the agent replaces records whole and rarely.
        Some(unsafe { record.read_volatile() })
    }

    #[inline(always)]
    fn node_only(&self) -> bool {
        config::node_only()
    }

    #[inline(always)]
    fn cgroup_bypassed(&self) -> bool {
        for index in 0..BYPASS_CGROUPS {
            let Some(bypass) = maps::BYPASS_CGROUPS.get_ptr(index) else { return false };
            // SAFETY: the verifier proved the index; the agent writes before it attaches.
            let bypass = unsafe { bypass.read_volatile() };
            if bypass.id == 0 {
                return false;
            }
            // SAFETY: a helper without pointers.
            if unsafe { bpf_get_current_ancestor_cgroup_id(bypass.level as i32) } == bypass.id {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        // SAFETY: a field of the context's socket, which is never null.
        let state = unsafe { (&raw const (*self.sk).state).read_volatile() };
        state == ESTABLISHED
    }

    #[inline(always)]
    fn record(&self) -> Option<SocketRecord> {
        if !self.udp {
            let cookie = self.cookie();
            if let Some((place, owner)) = Self::place(cookie)
                && owner == cookie
            {
                // SAFETY: the verifier proved the pointer; the record tells whether it is whole.
                return unsafe { place.read_volatile() }.of(cookie);
            }
        }
        let record = self.found();
        if record.is_null() {
            return None;
        }
        // SAFETY: checked for null; only calls on this very socket write it, and those that could race
        // hold the socket's lock.
        Some(unsafe { record.read_volatile() })
    }

    #[inline(always)]
    fn set_connected(&self, vip: &[u32; 4], vip_port: u16, to: &Choice) -> bool {
        if !self.udp && self.take_place(vip, vip_port, to) {
            return true;
        }
        self.update(|record| {
            set!(record, vip, *vip);
            set!(record, peer, to.addr);
            set!(record, backend, to.id);
            set!(record, generation, to.generation);
            set!(record, peer_port, to.port);
            set!(record, vip_port, vip_port);
        })
    }

    #[inline(always)]
    fn set_disconnected(&self) {
        if !self.udp {
            self.leave_place();
        }
        // A socket that has a place may have had none before.
        let record = self.found();
        if !record.is_null() {
            set!(record, vip_port, 0);
        }
    }

    #[inline(always)]
    fn set_head(&self, head: &SocketLink, peers: u32) -> bool {
        let mut record = self.found();
        if record.is_null() {
            // Made empty and filled in place: a whole one does not fit on this stack.
            record = if !self.udp {
                self.storage(BPF_SK_STORAGE_GET_F_CREATE)
            } else if table!(self, sockets.insert(self.cookie(), &EMPTY, 0)).is_ok() {
                self.found()
            } else {
                return false;
            };
        }
        if record.is_null() {
            return false;
        }
        set!(record, head, *head);
        set!(record, peers, peers);
        true
    }

    #[inline(always)]
    fn remove_record(&self) {
        if self.udp {
            // A record that is gone already is what was wanted.
            let _gone = table!(self, sockets.remove(self.cookie()));
        } else {
            self.leave_place();
        }
    }

    #[inline(always)]
    fn peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        let peer = table!(self, peers.get_ptr(key))?;
        // SAFETY: the verifier proved the pointer; only this socket's calls change its records.
        Some(unsafe { peer.read_volatile() })
    }

    #[inline(always)]
    fn set_peer(&self, key: &SocketKey, peer: &SocketPeer) -> bool {
        table!(self, peers.insert(key, peer, 0)).is_ok()
    }

    #[inline(always)]
    fn remove_peer(&self, key: &SocketKey) {
        // A record that is gone already is what was wanted.
        let _gone = table!(self, peers.remove(key));
    }
}

impl ServiceTables for Socket {
    #[inline(always)]
    fn set(&self, index: u32) -> SetWord {
        MAPS.set(index)
    }

    #[inline(always)]
    fn facts(&self, id: ServicePortId) -> FactsWord {
        MAPS.facts(id)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> BackendId {
        MAPS.slot(index)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        MAPS.backend(id)
    }

    #[inline(always)]
    fn backend_word(&self, id: BackendId) -> BackendWord {
        MAPS.backend_word(id)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        MAPS.now()
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        MAPS.seconds()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        MAPS.affinity(key)
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, record: &AffinityRecord) -> bool {
        MAPS.set_affinity(key, record)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        MAPS.random()
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        MAPS.count(counter);
    }
}

impl<const N: usize> FrontendTables<N> for Socket
where
    Maps: FrontendTables<N>,
{
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        FrontendTables::<N>::frontend(&MAPS, key)
    }

    #[inline(always)]
    fn filter(&self, ip: &Ip<N>) -> u32 {
        FrontendTables::<N>::filter(&MAPS, ip)
    }

    #[inline(always)]
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        FrontendTables::<N>::address(&MAPS, ip)
    }

    #[inline(always)]
    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        FrontendTables::<N>::source_allowed(&MAPS, id, source)
    }
}
