//! Sockets at cgroup hooks: addresses in and out, and the socket's own state.
#![expect(unsafe_code, reason = "context fields and socket storage are raw pointers")]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
    bpf_set_retval, bpf_sk_storage_get,
};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, BYPASS_CGROUPS, Backend, BackendId, BackendWord,
    Counter, FactsWord, FrontendKey, FrontendWord, Ip, NetnsRecord, ServicePortId, SetWord,
    SocketKey, SocketLink, SocketPeer, SocketRecord, V4, V6, proto,
};
use lb_common::select::Choice;
use lb_common::socket::{self, Address, Outcome};
use lb_common::tables::{FrontendTables, ServiceTables, SocketTables};

use crate::tables::Maps;
use crate::{config, maps};

/// No interface is at hand before a packet exists.
const MAPS: Maps = Maps { ifindex: 0 };

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = -111;
const EHOSTUNREACH: i32 = -113;

/// The maps, and the socket of this call.
struct Socket {
    context: *mut c_void,
    sk: *mut bpf_sock,
    /// Records of UDP sockets are in a hash: it costs less than new storage for a socket, which may
    /// live for one query, and the agent finds in it who talks to a backend that is gone.
    udp: bool,
}

impl Socket {
    #[inline(always)]
    fn storage(&self, flags: u32) -> *mut SocketRecord {
        let map = ptr::from_ref(&maps::SOCKETS).cast_mut().cast();
        // SAFETY: the map of this program and the socket of its context; without a value to begin
        // with, new storage is all zeros.
        unsafe { bpf_sk_storage_get(map, self.sk.cast(), ptr::null_mut(), u64::from(flags)).cast() }
    }

    /// The socket's record, or null.
    #[inline(always)]
    fn found(&self) -> *mut SocketRecord {
        if self.udp {
            maps::UDP_SOCKETS.get_ptr_mut(self.cookie()).unwrap_or_default()
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
        if let Some(record) = maps::UDP_SOCKETS.get_ptr_mut(cookie) {
            change(record);
            return true;
        }
        let mut record = SocketRecord::EMPTY;
        change(&raw mut record);
        maps::UDP_SOCKETS.insert(cookie, record, 0).is_ok()
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
    fn record(&self) -> Option<SocketRecord> {
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
        let record = self.found();
        if !record.is_null() {
            set!(record, vip_port, 0);
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would be on the stack")]
    fn set_head(&self, head: &SocketLink, peers: u32) -> bool {
        let mut record = self.found();
        if record.is_null() {
            // Made empty and filled in place: a whole one does not fit on this stack.
            record = if !self.udp {
                self.storage(BPF_SK_STORAGE_GET_F_CREATE)
            } else if maps::UDP_SOCKETS.insert(self.cookie(), &EMPTY, 0).is_ok() {
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
            let _gone = maps::UDP_SOCKETS.remove(self.cookie());
        }
    }

    #[inline(always)]
    fn peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        let peer = maps::SOCKET_PEERS.get_ptr(key)?;
        // SAFETY: the verifier proved the pointer; only this socket's calls change its records.
        Some(unsafe { peer.read_volatile() })
    }

    #[inline(always)]
    fn set_peer(&self, key: &SocketKey, peer: &SocketPeer) -> bool {
        maps::SOCKET_PEERS.insert(key, peer, 0).is_ok()
    }

    #[inline(always)]
    fn remove_peer(&self, key: &SocketKey) {
        // A record that is gone already is what was wanted.
        let _gone = maps::SOCKET_PEERS.remove(key);
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
    fn may_be_vip(&self, ip: &Ip<N>) -> bool {
        FrontendTables::<N>::may_be_vip(&MAPS, ip)
    }

    #[inline(always)]
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        FrontendTables::<N>::address(&MAPS, ip)
    }
}

/// The context as far as a family has it: reads and writes the address of the call.
pub trait Call<const N: usize> {
    fn address(ctx: &SockAddrContext) -> Address<N>;
    fn set_address(ctx: &SockAddrContext, address: &Address<N>);
}

/// Selects the fields of a family.
pub struct Fields<const N: usize>;

#[inline(always)]
fn read(field: *const u32) -> u32 {
    // SAFETY: a field of this program's context, which the kernel lets it read as a word.
    unsafe { field.read_volatile() }
}

#[inline(always)]
fn write(field: *mut u32, value: u32) {
    // SAFETY: a field of this program's context, which the kernel lets it write as a word.
    unsafe { field.write_volatile(value) };
}

macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {{
        let call: *mut bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: only the address of a field is taken.
        unsafe { &raw mut (*call).$($field)+ }
    }};
}

impl Call<V4> for Fields<V4> {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address<V4> {
        Address { ip: [read(field!(ctx, user_ip4))], port: read(field!(ctx, user_port)) as u16 }
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address<V4>) {
        let [ip] = address.ip;
        write(field!(ctx, user_ip4), ip);
        write(field!(ctx, user_port), u32::from(address.port));
    }
}

impl Call<V6> for Fields<V6> {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address<V6> {
        Address {
            ip: [
                read(field!(ctx, user_ip6[0])),
                read(field!(ctx, user_ip6[1])),
                read(field!(ctx, user_ip6[2])),
                read(field!(ctx, user_ip6[3])),
            ],
            port: read(field!(ctx, user_port)) as u16,
        }
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address<V6>) {
        let [a, b, c, d] = address.ip;
        write(field!(ctx, user_ip6[0]), a);
        write(field!(ctx, user_ip6[1]), b);
        write(field!(ctx, user_ip6[2]), c);
        write(field!(ctx, user_ip6[3]), d);
        write(field!(ctx, user_port), u32::from(address.port));
    }
}

/// An IPv4-mapped address of an IPv6 call; never for an IPv4 call.
#[inline(always)]
fn as_v4<const N: usize>(address: &Address<N>) -> Option<Address<V4>> {
    let ip = socket::unmapped(&address.ip.as_slice().try_into().ok()?)?;
    Some(Address { ip, port: address.port })
}

#[inline(always)]
fn socket_of(ctx: &SockAddrContext) -> Socket {
    let call: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: a field of this program's context.
    let sk = unsafe { (*call).__bindgen_anon_1.sk };
    let udp = read(field!(ctx, protocol)) == u32::from(proto::UDP);
    Socket { context: ctx.as_ptr(), sk, udp }
}

#[inline(always)]
fn finish<const N: usize>(ctx: &SockAddrContext, outcome: Outcome<N>) -> i32
where
    Fields<N>: Call<N>,
{
    match outcome {
        Outcome::Pass => ALLOW,
        Outcome::Translated(address) => {
            Fields::<N>::set_address(ctx, &address);
            ALLOW
        }
        Outcome::Reject => refuse(ECONNREFUSED),
        Outcome::Drop => refuse(EHOSTUNREACH),
    }
}

#[inline(always)]
fn refuse(errno: i32) -> i32 {
    if config::set_retval() {
        // SAFETY: a helper without pointers.
        let _always_zero = unsafe { bpf_set_retval(errno) };
    }
    REFUSE
}

/// The outcome for the IPv4 address inside an IPv6 call.
#[inline(always)]
fn finish_mapped(ctx: &SockAddrContext, outcome: Outcome<V4>) -> i32 {
    finish::<V6>(
        ctx,
        match outcome {
            Outcome::Translated(address) => Outcome::Translated(mapped(&address)),
            Outcome::Pass => Outcome::Pass,
            Outcome::Reject => Outcome::Reject,
            Outcome::Drop => Outcome::Drop,
        },
    )
}

#[inline(always)]
fn mapped(address: &Address<V4>) -> Address<V6> {
    Address { ip: socket::mapped(address.ip), port: address.port }
}

#[inline(always)]
pub fn connect<const N: usize>(ctx: &SockAddrContext) -> i32
where
    Fields<N>: Call<N>,
    Maps: FrontendTables<N>,
{
    let socket = socket_of(ctx);
    let address = Fields::<N>::address(ctx);
    let protocol = read(field!(ctx, protocol)) as u8;
    if N == V6
        && let Some(address) = as_v4(&address)
    {
        return finish_mapped(ctx, socket::connect(&socket, protocol, &address));
    }
    finish(ctx, socket::connect(&socket, protocol, &address))
}

#[inline(always)]
pub fn sendmsg<const N: usize>(ctx: &SockAddrContext) -> i32
where
    Fields<N>: Call<N>,
    Maps: FrontendTables<N>,
{
    let socket = socket_of(ctx);
    let address = Fields::<N>::address(ctx);
    if N == V6
        && let Some(address) = as_v4(&address)
    {
        return finish_mapped(ctx, socket::sendmsg(&socket, &address));
    }
    finish(ctx, socket::sendmsg(&socket, &address))
}

#[inline(always)]
pub fn recvmsg<const N: usize>(ctx: &SockAddrContext) -> i32
where
    Fields<N>: Call<N>,
{
    let socket = socket_of(ctx);
    let address = Fields::<N>::address(ctx);
    if N == V6
        && let Some(address) = as_v4(&address)
    {
        if let Some(vip) = socket::recvmsg(&socket, &address) {
            Fields::<V6>::set_address(ctx, &mapped(&vip));
        }
    } else if let Some(vip) = socket::recvmsg(&socket, &address) {
        Fields::<N>::set_address(ctx, &vip);
    }
    ALLOW
}

#[inline(always)]
pub fn getpeername<const N: usize>(ctx: &SockAddrContext) -> i32
where
    Fields<N>: Call<N>,
{
    let socket = socket_of(ctx);
    let address = Fields::<N>::address(ctx);
    if N == V6
        && let Some(address) = as_v4(&address)
    {
        if let Some(vip) = socket::getpeername(&socket, &address) {
            Fields::<V6>::set_address(ctx, &mapped(&vip));
        }
    } else if let Some(vip) = socket::getpeername(&socket, &address) {
        Fields::<N>::set_address(ctx, &vip);
    }
    ALLOW
}

#[inline(always)]
pub fn release(ctx: &SockContext) -> i32 {
    let sk = ctx.sock;
    // SAFETY: a field of this program's context.
    let udp = unsafe { (*sk).protocol } == u32::from(proto::UDP);
    socket::release(&Socket { context: ctx.as_ptr(), sk, udp });
    ALLOW
}
