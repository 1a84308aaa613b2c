//! Packets at tc hooks.
#![expect(unsafe_code, reason = "helpers are foreign functions")]

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Counter, ProgramSlot};
use lb_common::csum;
use lb_common::established::Rest;
use lb_common::guard;
use lb_common::look::Next;
use lb_common::packet::{ChecksumChange, Packet, Renew};
use lb_common::parse::Link;
use lb_common::refuse::{self, Reason, Refusal};
use lb_common::tables::{NodeTables as _, ServiceTables as _};
use lb_common::verdict::Verdict;

use super::direct::{self, Bounds};
use crate::tables::Maps;
use crate::{config, maps};

unsafe extern "C" {
    /// The kernel's own structure behind a context (kernel 6.2). The agent fits the call to the
    /// kernel, or makes it return null.
    fn bpf_cast_to_kern_ctx(context: *mut c_void) -> *mut c_void;
}

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the next program sees the packet.
const NEXT: i32 = -1;
/// `TCX_DROP` and `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// `BPF_F_IPV6` (kernel 6.16 and stable ones): no header checksum makes up for the addresses.
const IPV6: u64 = 1 << 7;
const EINVAL: i64 = -22;

/// Bytes of Ethernet, IPv4 and TCP headers without options. What this machine sends has its headers
/// in the linear part, and often nothing else: a pull there would copy payload for nothing.
const SHORTEST: usize = 14 + 20 + 20;
/// The same for everything that is not IPv4: up to two VLAN tags, IPv6.
const SHORTEST_OTHER: usize = 14 + 8 + 40 + 20;
/// Bytes pulled when the linear part is shorter: room for options and extensions too.
const PULL: u32 = 192;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// The part of a VLAN tag that names the VLAN. 0 names none: the tag tells a priority only (IEEE 802.1Q
/// section 6.9), and the kernel takes it off.
const VLAN_ID: u32 = 0xfff;
/// The frame was sent to this machine.
const PACKET_HOST: u32 = 0;
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;

/// A packet in an skb.
pub struct Skb(TcContext);

/// `CHECKSUM_COMPLETE`: the skb carries a sum of the whole packet, which only the kernel can adjust.
const COMPLETE: u8 = 2;
/// `CHECKSUM_PARTIAL`: the checksum is completed when the packet leaves the machine.
const PARTIAL: u8 = 3;

impl Skb {
    /// What the kernel knows about the packet's checksum (`skb->ip_summed`), if that can be read:
    /// two loads, where the helpers that do without cost more than the rest of the program.
    #[inline(always)]
    fn summed(&self) -> Option<u8> {
        let place = config::skb_summed();
        if place == 0 {
            return None;
        }
        // SAFETY: the context of this program; the call returns null where the kernel has none.
        let skb = unsafe { bpf_cast_to_kern_ctx(self.0.skb.skb.cast()) }.cast::<u8>();
        if skb.is_null() {
            return None;
        }
        // SAFETY: the verifier checks that this byte holds the member that the agent found there.
        let byte = unsafe { skb.add((place >> 8) as usize).read_volatile() };
        Some((byte >> (place & 7)) & 3)
    }

    /// Adds a difference to the sum of the whole packet.
    #[inline(always)]
    fn add_to_sum(&self, diff: u32) {
        // Packets without such a sum answer with an error: there was nothing to do.
        // SAFETY: a helper on this program's context.
        let _nothing_to_do = unsafe { bpf_csum_update(self.0.skb.skb, diff) };
    }

    /// Adjusts a checksum by the kernel's helpers, whatever its kind.
    #[inline(always)]
    fn adjust_by_helpers(&self, at: usize, change: &ChecksumChange) -> Option<()> {
        if change.udp && self.u16(at)? == 0 {
            // The helper below would leave the sum of the whole packet as it is, but only the
            // IPv4 header's checksum makes up for a change, that of the addresses.
            self.add_to_sum(change.header);
            if change.ipv6 {
                self.add_to_sum(change.pseudo);
            }
            return Some(());
        }
        let skb = self.0.skb.skb;
        let udp = if change.udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | udp;
        let diff = u64::from(change.pseudo);
        // SAFETY: a helper on this program's context.
        let mut result = unsafe {
            bpf_l4_csum_replace(
                skb,
                at as u32,
                0,
                diff,
                if change.ipv6 { pseudo | IPV6 } else { pseudo },
            )
        };
        let flagged = change.ipv6 && result != EINVAL;
        if change.ipv6 && !flagged {
            // SAFETY: a helper on this program's context.
            result = unsafe { bpf_l4_csum_replace(skb, at as u32, 0, diff, pseudo) };
        }
        if result != 0 {
            return None;
        }
        if change.header != 0
            // SAFETY: a helper on this program's context.
            && unsafe { bpf_l4_csum_replace(skb, at as u32, 0, u64::from(change.header), udp) } != 0
        {
            return None;
        }
        if change.ipv6 && !flagged {
            // With CHECKSUM_COMPLETE the helper assumes that an IPv4 header checksum made up for
            // the addresses and adjusts the sum of the whole packet; undo that.
            self.add_to_sum(change.pseudo);
        }
        Some(())
    }
}

impl Bounds for Skb {
    // Volatile, so that the compiler never passes these on in place of the context: as numbers of
    // 32 bits they are no pointers to the verifier.
    #[inline(always)]
    fn data(&self) -> usize {
        let skb = self.0.skb.skb;
        // SAFETY: a field of this program's context.
        (unsafe { (&raw const (*skb).data).read_volatile() }) as usize
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        let skb = self.0.skb.skb;
        // SAFETY: a field of this program's context.
        (unsafe { (&raw const (*skb).data_end).read_volatile() }) as usize
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn make_reachable(&mut self) {
        let linear = self.data_end().wrapping_sub(self.data());
        if linear >= SHORTEST_OTHER {
            return;
        }
        let skb = self.0.skb.skb;
        // SAFETY: a field of this program's context.
        let ipv4 = unsafe { (*skb).protocol } == ETH_P_IP;
        let total = self.0.len();
        if !(ipv4 && linear >= SHORTEST) && (linear as u32) < total {
            // Failure leaves the packet as it is, and what cannot be read passes untouched.
            let _best_effort = self.0.pull_data(total.min(PULL));
        }
    }

    #[inline(always)]
    fn u8(&self, at: usize) -> Option<u8> {
        direct::u8(self, at)
    }

    #[inline(always)]
    fn u16(&self, at: usize) -> Option<u16> {
        direct::u16(self, at)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        direct::words(self, at)
    }

    #[inline(always)]
    fn set_u16(&mut self, at: usize, value: u16) -> Option<()> {
        direct::set_u16(self, at, value)
    }

    #[inline(always)]
    fn set_words<const N: usize>(&mut self, at: usize, value: &[u32; N]) -> Option<()> {
        direct::set_words(self, at, value)
    }

    #[inline(always)]
    fn adjust_checksum(&mut self, at: usize, change: &ChecksumChange) -> Option<()> {
        let adjusted = match self.summed() {
            None | Some(COMPLETE) => return self.adjust_by_helpers(at, change),
            Some(PARTIAL) => csum::adjusted_partial(self.u16(at)?, change),
            Some(_) => csum::adjusted(self.u16(at)?, change),
        };
        match adjusted {
            Some(new) => self.set_u16(at, new),
            None => Some(()),
        }
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        let skb = self.0.skb.skb;
        // SAFETY: a field of this program's context.
        unsafe { (&raw const (*skb).gso_size).read_volatile() }
    }

    #[inline(always)]
    fn for_others(&self) -> bool {
        let skb = self.0.skb.skb;
        // SAFETY: a field of this program's context.
        (unsafe { (&raw const (*skb).pkt_type).read_volatile() }) != PACKET_HOST
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        let skb = self.0.skb.skb;
        // SAFETY: fields of this program's context.
        unsafe {
            (&raw const (*skb).vlan_present).read_volatile() != 0
                && (&raw const (*skb).vlan_tci).read_volatile() & VLAN_ID != 0
        }
    }

    #[inline(always)]
    fn note_change(&mut self, diff: u32) {
        // Two loads tell for most packets that the helper would do nothing.
        if matches!(self.summed(), None | Some(COMPLETE)) {
            self.add_to_sum(diff);
        }
    }
}

impl Renew for Skb {
    /// Grown at its tail and then cut behind the link header. Growing ends offloads of segmentation
    /// and a sum of the whole packet (`CHECKSUM_COMPLETE`). Only what is cut beyond the place where a
    /// checksum would be completed (`CHECKSUM_PARTIAL`) makes the kernel forget that it was to be.
    #[inline(always)]
    fn renew(&mut self, l3: usize, l4: usize, length: usize) -> Option<()> {
        let skb = self.0.skb.skb;
        let long = (l3 as u32).wrapping_add(length as u32).wrapping_add(l4 as u32);
        // SAFETY: a helper on this program's context.
        let cut = unsafe { bpf_skb_change_tail(skb, long, 0) };
        // A packet that was as long, or longer, has to grow too.
        // SAFETY: as above.
        let grown = unsafe { bpf_skb_change_tail(skb, long.wrapping_add(4), 0) };
        if cut != 0 || grown != 0 {
            return None;
        }
        let surplus = (l4 as i32).wrapping_add(4);
        // SAFETY: as above.
        let fits = unsafe { bpf_skb_adjust_room(skb, surplus.wrapping_neg(), BPF_ADJ_ROOM_MAC, 0) };
        (fits == 0).then_some(())
    }
}

/// Runs the first half of a decision, and goes on with the program of the second half if it does not
/// end there.
#[inline(always)]
pub fn look(
    ctx: TcContext,
    link: Link,
    slot: impl FnOnce(Next) -> ProgramSlot,
    look: impl FnOnce(&mut Skb, &Maps, Link) -> Result<Next, Verdict>,
) -> i32 {
    let mut skb = Skb(ctx);
    let maps = maps_of(&skb, link);
    match look(&mut skb, &maps, link) {
        Ok(next) => {
            go_on(&skb.0, slot(next));
            maps.count(Counter::ProgramMissing);
            NEXT
        }
        Err(_) => NEXT,
    }
}

#[inline(always)]
fn maps_of(skb: &Skb, link: Link) -> Maps {
    let context = skb.0.skb.skb;
    // SAFETY: a field of this program's context.
    let ifindex = unsafe { (*context).ifindex };
    Maps { ifindex, context: context.cast(), framed: link == Link::Ethernet }
}

/// Runs a decision and does what it says.
#[inline(always)]
pub fn run(
    ctx: TcContext,
    link: Link,
    decide: impl FnOnce(&mut Skb, &Maps, Link) -> Verdict,
) -> i32 {
    let mut skb = Skb(ctx);
    let maps = maps_of(&skb, link);
    let verdict = decide(&mut skb, &maps, link);
    act(skb, &maps, link, verdict)
}

/// Runs the part of a decision that is for the usual packet of an established flow, and goes on with
/// another program where that does not tell. It has no functions of its own, so that every kernel takes
/// it.
#[inline(always)]
pub fn established(
    ctx: TcContext,
    link: Link,
    decide: impl FnOnce(&mut Skb, &Maps, Link) -> Result<Verdict, Rest>,
    slot: impl FnOnce(Rest) -> ProgramSlot,
) -> i32 {
    let mut skb = Skb(ctx);
    let maps = maps_of(&skb, link);
    match decide(&mut skb, &maps, link) {
        Ok(Verdict::Forwarded) => send(&mut skb, &maps, link),
        Ok(verdict) => passed(verdict, maps.ifindex),
        Err(rest) => {
            go_on(&skb.0, slot(rest));
            maps.count(Counter::ProgramMissing);
            NEXT
        }
    }
}

/// Runs a part of a decision, and goes on with the program in `slot` if that does not tell. Where a
/// program that has functions of its own may not go on with another, it does what that one does.
#[inline(always)]
pub fn run_or(
    ctx: TcContext,
    link: Link,
    decide: impl FnOnce(&mut Skb, &Maps, Link) -> Option<Verdict>,
    slot: ProgramSlot,
    rest: impl FnOnce(&mut Skb, &Maps, Link) -> Verdict,
) -> i32 {
    let mut skb = Skb(ctx);
    let maps = maps_of(&skb, link);
    let verdict = match decide(&mut skb, &maps, link) {
        Some(verdict) => verdict,
        None if config::jumps() => {
            go_on(&skb.0, slot);
            maps.count(Counter::ProgramMissing);
            return NEXT;
        }
        None => rest(&mut skb, &maps, link),
    };
    act(skb, &maps, link, verdict)
}

/// Does what a verdict says.
#[inline(always)]
fn act(mut skb: Skb, maps: &Maps, link: Link, verdict: Verdict) -> i32 {
    let ifindex = maps.ifindex;
    #[cfg(feature = "log")]
    if verdict != Verdict::NotService {
        aya_log_ebpf::debug!(&skb.0, "interface {} verdict {}", ifindex, verdict as u32);
    }
    if verdict == Verdict::Forwarded {
        return send_apart(&mut skb, maps, link);
    }
    if verdict.is_reject() && config::jumps() {
        set_note(&skb.0, Reason::for_verdict(verdict, || maps.mtu()).word());
        let slot = match link {
            Link::Ethernet => ProgramSlot::RefuseIngress,
            Link::None => ProgramSlot::RefuseIngressL3,
        };
        go_on(&skb.0, slot);
        maps.count(Counter::RefusalUnanswered);
    }
    passed(verdict, ifindex)
}

/// What a verdict means to the kernel, where nothing is sent and nobody told.
#[inline(always)]
fn passed(verdict: Verdict, ifindex: u32) -> i32 {
    if verdict == Verdict::Reflected {
        // SAFETY: a helper without pointers; flags 0: out of the interface.
        return (unsafe { bpf_redirect(ifindex, 0) }) as i32;
    }
    if verdict.drop_counter().is_some() { SHOT } else { NEXT }
}

/// [`send`] as a function of its own.
#[inline(never)]
fn send_apart(skb: &mut Skb, maps: &Maps, link: Link) -> i32 {
    send(skb, maps, link)
}

/// Sends a packet to the next hop of the route that was found last.
#[inline(always)]
fn send(skb: &mut Skb, maps: &Maps, link: Link) -> i32 {
    let context = skb.0.skb.skb;
    // The tag belongs to the way that it came.
    for _ in 0..2 {
        // SAFETY: a field of this program's context; a helper on it.
        if unsafe { (*context).vlan_present != 0 && bpf_skb_vlan_pop(context) != 0 } {
            return SHOT;
        }
    }
    if link == Link::Ethernet
        && let Some(addresses) = maps.ethernet()
    {
        if skb.set_words(0, &addresses).is_none() {
            return SHOT;
        }
        // SAFETY: a helper without pointers; flags 0: out of the interface. Where that has no
        // Ethernet header the kernel takes it off.
        return (unsafe { bpf_redirect(maps.egress(), 0) }) as i32;
    }
    // The kernel wants to see a header before it writes its own.
    // SAFETY: a helper on this program's context.
    if link == Link::None && unsafe { bpf_skb_change_head(context, ETHERNET, 0) } != 0 {
        return SHOT;
    }
    maps.redirect_to_neighbour() as i32
}

/// Leaves a word to the program that goes on.
#[inline(always)]
fn set_note(ctx: &TcContext, note: u32) {
    let skb = ctx.skb.skb;
    // SAFETY: a field of this program's context, which the kernel lets it write.
    unsafe { (&raw mut (*skb).cb[0]).write_volatile(note) };
}

/// The word that the program before left.
#[inline(always)]
fn note(ctx: &TcContext) -> u32 {
    let skb = ctx.skb.skb;
    // SAFETY: a field of this program's context.
    unsafe { (&raw const (*skb).cb[0]).read_volatile() }
}

/// Goes on with another program; returns only where nothing is in the slot.
#[inline(always)]
fn go_on(ctx: &TcContext, slot: ProgramSlot) {
    // SAFETY: a helper on this program's context.
    unsafe { maps::PROGRAMS.tail_call(ctx, slot as u32) };
}

/// Answers a packet that was refused at ingress, out of its interface.
#[inline(always)]
pub fn refuse(ctx: TcContext, link: Link) -> i32 {
    let mut skb = Skb(ctx);
    let maps = maps_of(&skb, link);
    let reason = Reason::of(note(&skb.0));
    refused(&mut skb, &maps, link, 0, reason)
}

#[inline(always)]
fn refused(skb: &mut Skb, maps: &Maps, link: Link, direction: u64, reason: Reason) -> i32 {
    match refuse::answer(skb, maps, link, reason) {
        // SAFETY: a helper without pointers.
        Refusal::Answered => (unsafe { bpf_redirect(maps.ifindex, direction) }) as i32,
        Refusal::Silent => SHOT,
    }
}

/// Goes on with another program, which calls [`leaving`], if the packet may be one that must not
/// leave; else returns.
#[inline(always)]
pub fn guard(ctx: &TcContext, link: Link, next: ProgramSlot) {
    let mut skb = Skb(TcContext::new(ctx.skb.skb));
    let maps = maps_of(&skb, link);
    if guard::suspects(&mut skb, &maps, link) {
        go_on(ctx, next);
        maps.count(Counter::ProgramMissing);
    }
}

/// What becomes of a packet that must not leave. Its sender is on this node: the answer arrives by
/// the interface that the packet would have left by, as if it came from where the packet was to go.
#[inline(always)]
pub fn leaving(ctx: &TcContext, link: Link) -> Option<i32> {
    if !config::jumps() {
        // This program has functions of its own, so here it cannot go on with another.
        return Some(NEXT);
    }
    let mut skb = Skb(TcContext::new(ctx.skb.skb));
    let maps = maps_of(&skb, link);
    let verdict = guard::leaving(&skb, &maps, link)?;
    if verdict.is_reject() {
        return Some(refused(&mut skb, &maps, link, u64::from(BPF_F_INGRESS), Reason::Port));
    }
    Some(SHOT)
}
