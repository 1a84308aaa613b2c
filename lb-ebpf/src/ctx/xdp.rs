//! Packets at XDP hooks: complete checksums, no metadata.
#![expect(unsafe_code, reason = "context fields are read through a raw pointer")]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::XdpContext;
use lb_common::csum;
use lb_common::decide::{self, Next};
use lb_common::packet::{ChecksumChange, Packet};
use lb_common::parse::Link;
use lb_common::verdict::Verdict;

use super::direct::{self, Bounds};
use crate::tables::Maps;

/// A packet in an XDP buffer.
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
}

/// Runs the ingress decision and does what it says.
#[inline(always)]
pub fn run(ctx: XdpContext) -> u32 {
    // SAFETY: a field of this program's context.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let mut buffer = Buffer(ctx);
    // Replies leave by the same interface, where the tc program asks whether there are flows. ICMP
    // and fragments are left to it too.
    let maps = Maps { ifindex, context: buffer.0.ctx.cast() };
    let verdict = match decide::look_at_ingress(&mut buffer, &maps, Link::Ethernet) {
        Ok(Next::Translate) => decide::translate_ingress(&mut buffer, &maps, Link::Ethernet),
        Ok(Next::Icmp | Next::Fragment) => Verdict::NotTransport,
        Err(verdict) => verdict,
    };
    if verdict == Verdict::Reflected {
        XDP_TX
    } else if verdict.drop_counter().is_some() {
        XDP_DROP
    } else {
        XDP_PASS
    }
}
