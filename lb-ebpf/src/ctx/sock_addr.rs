//! Calls on sockets at cgroup hooks: addresses in and out.
#![expect(unsafe_code, reason = "context fields are read and written by instructions")]

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::abi::{V4, V6};
use lb_common::socket::{self, Address, Outcome};
use lb_common::tables::FrontendTables;

use super::socket::Socket;
use crate::config;
use crate::tables::Maps;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = -111;
const EHOSTUNREACH: i32 = -113;

/// The context as far as a family has it: reads and writes the address of the call.
pub trait Call<const N: usize> {
    fn address(ctx: &SockAddrContext) -> Address<N>;
    fn set_address(ctx: &SockAddrContext, address: &Address<N>);
}

/// Selects the fields of a family.
pub struct Fields<const N: usize>;

/// Offset of a word of the context.
macro_rules! at {
    ($field:ident) => {
        offset_of!(bpf_sock_addr, $field)
    };
    ($field:ident, $word:literal) => {
        offset_of!(bpf_sock_addr, $field) + 4 * $word
    };
}

/// The compiler would make one access of those in two branches, through a pointer that it has moved,
/// and the verifier wants the context's own pointer with the offset in the instruction.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {{
        let call: *mut bpf_sock_addr = $ctx.sock_addr;
        let value: u64;
        // SAFETY: a field of this program's context, which the kernel lets it read as a word.
        unsafe {
            asm!(
                "{value} = *(u32 *)({call} + {offset})",
                value = lateout(reg) value,
                call = in(reg) call,
                offset = const at!($($field)+),
                options(nostack, readonly, preserves_flags),
            );
        }
        value as u32
    }};
}

macro_rules! write {
    ($ctx:expr, $value:expr, $($field:tt)+) => {{
        let call: *mut bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: a field of this program's context, which the kernel lets it write as a word.
        unsafe {
            asm!(
                "*(u32 *)({call} + {offset}) = {value}",
                call = in(reg) call,
                value = in(reg) u64::from($value),
                offset = const at!($($field)+),
                options(nostack, preserves_flags),
            );
        }
    }};
}

impl Call<V4> for Fields<V4> {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address<V4> {
        Address { ip: [read!(ctx, user_ip4)], port: read!(ctx, user_port) as u16 }
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address<V4>) {
        let [ip] = address.ip;
        write!(ctx, ip, user_ip4);
        write!(ctx, u32::from(address.port), user_port);
    }
}

impl Call<V6> for Fields<V6> {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address<V6> {
        Address {
            ip: [
                read!(ctx, user_ip6, 0),
                read!(ctx, user_ip6, 1),
                read!(ctx, user_ip6, 2),
                read!(ctx, user_ip6, 3),
            ],
            port: read!(ctx, user_port) as u16,
        }
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address<V6>) {
        let [a, b, c, d] = address.ip;
        write!(ctx, a, user_ip6, 0);
        write!(ctx, b, user_ip6, 1);
        write!(ctx, c, user_ip6, 2);
        write!(ctx, d, user_ip6, 3);
        write!(ctx, u32::from(address.port), user_port);
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
    Socket::new(ctx.as_ptr(), sk, read!(ctx, protocol))
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
    let protocol = read!(ctx, protocol) as u8;
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
    let protocol = unsafe { (*sk).protocol };
    socket::release(&Socket::new(ctx.as_ptr(), sk, protocol), protocol as u8);
    ALLOW
}
