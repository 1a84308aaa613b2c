//! The kernel programs: entry points of a few lines each over `lb-common`.
//!
//! A panic handler that loops makes the verifier refuse any program in which a panic is reachable.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::redundant_closure,
    reason = "with closures each program has a decision of its own in it, and no call to a shared one"
)]

mod config;
mod ctx;
mod maps;
mod routes;
mod tables;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext, XdpContext};
use lb_common::abi::{FlowKind, ProgramSlot, V4, V6};
use lb_common::established::Rest;
use lb_common::look::{self, Next};
use lb_common::parse::Link;
use lb_common::{decide, early, fragment, icmp};

use ctx::{sock_addr, tc, xdp as xdp_hook};

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[expect(unsafe_code, reason = "the kernel reads the licence from this section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// What each hook goes on with.
#[inline(always)]
fn next_ingress(next: Next) -> ProgramSlot {
    match next {
        Next::Translate => ProgramSlot::TranslateIngress,
        Next::Icmp => ProgramSlot::IcmpIngress,
        Next::Fragment => ProgramSlot::FragmentIngress,
    }
}

#[inline(always)]
fn next_ingress_l3(next: Next) -> ProgramSlot {
    match next {
        Next::Translate => ProgramSlot::TranslateIngressL3,
        Next::Icmp => ProgramSlot::IcmpIngressL3,
        Next::Fragment => ProgramSlot::FragmentIngressL3,
    }
}

#[inline(always)]
fn next_egress(next: Next) -> ProgramSlot {
    match next {
        Next::Translate => ProgramSlot::TranslateEgress,
        Next::Icmp => ProgramSlot::IcmpEgress,
        Next::Fragment => ProgramSlot::FragmentEgress,
    }
}

#[inline(always)]
fn next_egress_l3(next: Next) -> ProgramSlot {
    match next {
        Next::Translate => ProgramSlot::TranslateEgressL3,
        Next::Icmp => ProgramSlot::IcmpEgressL3,
        Next::Fragment => ProgramSlot::FragmentEgressL3,
    }
}

/// What the programs of established flows go on with at ingress.
#[inline(always)]
fn rest_ingress(rest: Rest) -> ProgramSlot {
    match rest {
        Rest::Forward => ProgramSlot::ForwardIngress,
        Rest::Begin => ProgramSlot::BeginIngress,
    }
}

#[inline(always)]
fn rest_ingress_l3(rest: Rest) -> ProgramSlot {
    match rest {
        Rest::Forward => ProgramSlot::ForwardIngressL3,
        Rest::Begin => ProgramSlot::BeginIngressL3,
    }
}

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    tc::look(ctx, Link::Ethernet, next_ingress, |p, t, link| look::look_at_ingress(p, t, link))
}

#[classifier]
pub fn tc_translate_ingress(ctx: TcContext) -> i32 {
    tc::established(
        ctx,
        Link::Ethernet,
        |p, t, link| decide::established_ingress(p, t, link),
        rest_ingress,
    )
}

#[classifier]
pub fn tc_forward_ingress(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::Ethernet,
        |p, t, link| decide::forward_ingress(p, t, link),
        ProgramSlot::BeginIngress,
        |p, t, link| decide::begin_ingress(p, t, link),
    )
}

#[classifier]
pub fn tc_begin_ingress(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::Ethernet, |p, t, link| decide::begin_ingress(p, t, link))
}

#[classifier]
pub fn tc_icmp_ingress(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::Ethernet, |p, t, link| icmp::at_hook(p, t, link, FlowKind::INGRESS))
}

#[classifier]
pub fn tc_fragment_ingress(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::Ethernet,
        |p, t, link| fragment::without_ports(p, t, link, FlowKind::INGRESS),
        ProgramSlot::ForwardIngress,
        |p, t, link| decide::rest_ingress(p, t, link),
    )
}

#[classifier]
pub fn tc_ingress_l3(ctx: TcContext) -> i32 {
    tc::look(ctx, Link::None, next_ingress_l3, |p, t, link| look::look_at_ingress(p, t, link))
}

#[classifier]
pub fn tc_translate_ingress_l3(ctx: TcContext) -> i32 {
    tc::established(
        ctx,
        Link::None,
        |p, t, link| decide::established_ingress(p, t, link),
        rest_ingress_l3,
    )
}

#[classifier]
pub fn tc_forward_ingress_l3(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::None,
        |p, t, link| decide::forward_ingress(p, t, link),
        ProgramSlot::BeginIngressL3,
        |p, t, link| decide::begin_ingress(p, t, link),
    )
}

#[classifier]
pub fn tc_begin_ingress_l3(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::None, |p, t, link| decide::begin_ingress(p, t, link))
}

#[classifier]
pub fn tc_icmp_ingress_l3(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::None, |p, t, link| icmp::at_hook(p, t, link, FlowKind::INGRESS))
}

#[classifier]
pub fn tc_fragment_ingress_l3(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::None,
        |p, t, link| fragment::without_ports(p, t, link, FlowKind::INGRESS),
        ProgramSlot::ForwardIngressL3,
        |p, t, link| decide::rest_ingress(p, t, link),
    )
}

#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    tc::look(ctx, Link::Ethernet, next_egress, |p, t, link| look::look_at_egress(p, t, link))
}

#[classifier]
pub fn tc_translate_egress(ctx: TcContext) -> i32 {
    tc::established(
        ctx,
        Link::Ethernet,
        |p, t, link| decide::established_egress(p, t, link).ok_or(Rest::Begin),
        |_| ProgramSlot::BeginEgress,
    )
}

#[classifier]
pub fn tc_begin_egress(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::Ethernet, |p, t, link| decide::begin_egress(p, t, link))
}

#[classifier]
pub fn tc_icmp_egress(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::Ethernet, |p, t, link| icmp::at_hook(p, t, link, FlowKind::EGRESS))
}

#[classifier]
pub fn tc_fragment_egress(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::Ethernet,
        |p, t, link| fragment::without_ports(p, t, link, FlowKind::EGRESS),
        ProgramSlot::BeginEgress,
        |p, t, link| decide::begin_egress(p, t, link),
    )
}

#[classifier]
pub fn tc_egress_l3(ctx: TcContext) -> i32 {
    tc::look(ctx, Link::None, next_egress_l3, |p, t, link| look::look_at_egress(p, t, link))
}

#[classifier]
pub fn tc_translate_egress_l3(ctx: TcContext) -> i32 {
    tc::established(
        ctx,
        Link::None,
        |p, t, link| decide::established_egress(p, t, link).ok_or(Rest::Begin),
        |_| ProgramSlot::BeginEgressL3,
    )
}

#[classifier]
pub fn tc_begin_egress_l3(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::None, |p, t, link| decide::begin_egress(p, t, link))
}

#[classifier]
pub fn tc_icmp_egress_l3(ctx: TcContext) -> i32 {
    tc::run(ctx, Link::None, |p, t, link| icmp::at_hook(p, t, link, FlowKind::EGRESS))
}

#[classifier]
pub fn tc_fragment_egress_l3(ctx: TcContext) -> i32 {
    tc::run_or(
        ctx,
        Link::None,
        |p, t, link| fragment::without_ports(p, t, link, FlowKind::EGRESS),
        ProgramSlot::BeginEgressL3,
        |p, t, link| decide::begin_egress(p, t, link),
    )
}

#[classifier]
pub fn tc_refuse(ctx: TcContext) -> i32 {
    tc::refuse(ctx, Link::Ethernet)
}

#[classifier]
pub fn tc_refuse_l3(ctx: TcContext) -> i32 {
    tc::refuse(ctx, Link::None)
}

#[classifier]
pub fn tc_uplink_egress(ctx: TcContext) -> i32 {
    tc::guard(&ctx, Link::Ethernet, ProgramSlot::RefuseEgress);
    tc::look(ctx, Link::Ethernet, next_egress, |p, t, link| look::look_at_uplink(p, t, link))
}

#[classifier]
pub fn tc_refuse_egress(ctx: TcContext) -> i32 {
    match tc::leaving(&ctx, Link::Ethernet) {
        Some(action) => action,
        None => tc::look(ctx, Link::Ethernet, next_egress, |p, t, link| {
            look::look_at_uplink(p, t, link)
        }),
    }
}

#[classifier]
pub fn tc_uplink_egress_l3(ctx: TcContext) -> i32 {
    tc::guard(&ctx, Link::None, ProgramSlot::RefuseEgressL3);
    tc::look(ctx, Link::None, next_egress_l3, |p, t, link| look::look_at_uplink(p, t, link))
}

#[classifier]
pub fn tc_refuse_egress_l3(ctx: TcContext) -> i32 {
    match tc::leaving(&ctx, Link::None) {
        Some(action) => action,
        None => {
            tc::look(ctx, Link::None, next_egress_l3, |p, t, link| look::look_at_uplink(p, t, link))
        }
    }
}

#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    xdp_hook::run(ctx, &maps::XDP_PROGRAMS)
}

#[xdp]
pub fn xdp_begin(ctx: XdpContext) -> u32 {
    xdp_hook::run_rest(ctx, |p, t, link| early::begin(p, t, link))
}

#[xdp]
pub fn xdp_forward(ctx: XdpContext) -> u32 {
    xdp_hook::run_rest(ctx, |p, t, link| early::forward(p, t, link))
}

/// The same for packets in several buffers (kernel 5.18).
#[xdp(frags)]
pub fn xdp_ingress_frags(ctx: XdpContext) -> u32 {
    xdp_hook::run(ctx, &maps::XDP_PROGRAMS_FRAGS)
}

#[xdp(frags)]
pub fn xdp_begin_frags(ctx: XdpContext) -> u32 {
    xdp_hook::run_rest(ctx, |p, t, link| early::begin(p, t, link))
}

#[xdp(frags)]
pub fn xdp_forward_frags(ctx: XdpContext) -> u32 {
    xdp_hook::run_rest(ctx, |p, t, link| early::forward(p, t, link))
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    sock_addr::connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    sock_addr::connect::<V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::recvmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::recvmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sock_addr::getpeername::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sock_addr::getpeername::<V6>(&ctx)
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    sock_addr::release(&ctx)
}
