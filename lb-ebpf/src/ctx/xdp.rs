//! Packets at XDP hooks: complete checksums, no metadata.
#![expect(unsafe_code, reason = "context fields are read through a raw pointer")]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Counter, EarlySlot};
use lb_common::csum;
use lb_common::early;
use lb_common::established::Rest;
use lb_common::packet::{ChecksumChange, Packet};
use lb_common::parse::Link;
use lb_common::tables::{NodeTables as _, ServiceTables as _};
use lb_common::verdict::Verdict;

use super::direct::{self, Bounds};
use crate::tables::Maps;

/// The bit of an Ethernet address that tells a group, in its first two bytes.
const GROUP: u16 = 0x0100_u16.to_be();

/// A packet in an XDP buffer. Of one in several buffers, the first is seen: headers that do not lie in
/// it are left to tc.
pub struct Buffer(XdpContext);

impl Bounds for Buffer {
    // Volatile for the reason given at the skb's.
    #[inline(always)]
    fn data(&self) -> usize {
        let xdp = self.0.ctx;
        // SAFETY: a field of this program's context.
        (unsafe { (&raw const (*xdp).data).read_volatile() }) as usize
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        let xdp = self.0.ctx;
        // SAFETY: a field of this program's context.
        (unsafe { (&raw const (*xdp).data_end).read_volatile() }) as usize
    }
}

impl Packet for Buffer {
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
        let old = self.u16(at)?;
        match csum::adjusted(old, change) {
            Some(new) => self.set_u16(at, new),
            None => Some(()),
        }
    }

    #[inline(always)]
    fn is_linear_until(&self, end: usize) -> bool {
        // Older verifiers do not let an unknown number be added to a pointer.
        end <= self.data_end().wrapping_sub(self.data())
    }

    /// A frame to a group is meant for more than this machine. A card hands over no other machine's
    /// frames, unless somebody listens to all of them.
    #[inline(always)]
    fn for_others(&self) -> bool {
        self.u16(0).is_none_or(|first| first & GROUP != 0)
    }
}

/// Runs the part of the decision that most packets end with, and goes on with one of the programs in
/// `others` if that does not tell.
#[inline(always)]
pub fn run(ctx: XdpContext, others: &ProgramArray) -> u32 {
    let (mut buffer, maps) = opened(ctx);
    let rest = match early::established(&mut buffer, &maps, Link::Ethernet) {
        Ok(verdict) => return act(buffer, &maps, verdict),
        Err(rest) => rest,
    };
    // Constants each: a jump to a place that the kernel knows costs nothing.
    // SAFETY: a helper on this program's context.
    unsafe {
        match rest {
            Rest::Begin => others.tail_call(&buffer.0, EarlySlot::Begin as u32),
            Rest::Forward => others.tail_call(&buffer.0, EarlySlot::Forward as u32),
        }
    };
    // Nothing is in the slot: tc decides.
    maps.count(Counter::ProgramMissing);
    XDP_PASS
}

/// Runs a part of the rest of the decision.
#[inline(always)]
pub fn run_rest(ctx: XdpContext, decide: impl FnOnce(&mut Buffer, &Maps, Link) -> Verdict) -> u32 {
    let (mut buffer, maps) = opened(ctx);
    let verdict = decide(&mut buffer, &maps, Link::Ethernet);
    act(buffer, &maps, verdict)
}

#[inline(always)]
fn opened(ctx: XdpContext) -> (Buffer, Maps) {
    let context = ctx.ctx.cast();
    // SAFETY: a field of this program's context.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    (Buffer(ctx), Maps { ifindex, context, framed: true })
}

/// Does what a verdict says. What is not sent on goes on as it came, with nothing noted beside it: packets
/// of one flow whose notes differ are not put together (GRO).
#[inline(always)]
fn act(mut buffer: Buffer, maps: &Maps, verdict: Verdict) -> u32 {
    if verdict != Verdict::Forwarded {
        return XDP_PASS;
    }
    let sent = maps.ethernet().and_then(|addresses| buffer.set_words(0, &addresses));
    if sent.is_none() {
        // It is rewritten, and its route was found with an address: this cannot be.
        return XDP_ABORTED;
    }
    let egress = maps.egress();
    if egress == maps.ifindex {
        return XDP_TX;
    }
    // SAFETY: a helper without pointers.
    (unsafe { bpf_redirect(egress, 0) }) as u32
}
