//! Next hops of flows that are sent on: to whom, out of which interface, and how much fits.

use super::Mix;

/// Elements of `NEXT_HOPS`; a power of two.
pub const NEXT_HOPS: u32 = 1 << 12;

/// Value of `NEXT_HOPS`: 40 bytes, at the place that follows from its contents
/// ([`NextHop::place`]). Another next hop may have the same place; [`NextHop::tag`] tells whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// [`NextHop::tag_for`] the next three.
    pub tag: u32,
    /// When the kernel itself last sent a packet there, and so looked after its neighbour: coarse time,
    /// in ticks.
    pub seen: u32,
    /// Index of the interface that packets leave by.
    pub egress: u32,
    /// Destination and source address of the Ethernet header, as they lie in the packet.
    pub ethernet: [u32; 3],
    /// Bytes of IP packet that fit, at least, and [`NextHop::EARLY`].
    pub limits: u32,
    /// [`NextHop::check_for`] the others but times.
    pub check: u32,
    /// When the kernel's routes last led there, for any packet: coarse time, in ticks.
    pub found: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<NextHop>() == 40);

impl NextHop {
    /// In [`NextHop::limits`]: an XDP program may send packets out of the interface.
    pub const EARLY: u32 = 1 << 31;

    /// The tag of these contents.
    #[inline(always)]
    pub fn tag_for(&self) -> u32 {
        let [a, b, c] = self.ethernet;
        let pair = |low: u32, high: u32| (low as u64) | ((high as u64) << 32);
        Mix::new().word(pair(self.egress, self.limits)).word(pair(a, b)).word(c as u64).tag()
    }

    /// Fills in tag and check.
    #[inline(always)]
    #[must_use]
    pub fn tagged(mut self) -> Self {
        self.tag = self.tag_for();
        self.check = self.check_for();
        self
    }

    /// Tells whether the value is whole, in less time than the tag takes: what another CPU writes
    /// meanwhile is another next hop, none that was chosen to have the same.
    #[inline(always)]
    const fn check_for(&self) -> u32 {
        let [a, b, c] = self.ethernet;
        let contents = self.egress.rotate_left(5)
            ^ self.limits.rotate_left(11)
            ^ a.rotate_left(17)
            ^ b.rotate_left(23)
            ^ c;
        !(self.tag ^ contents)
    }

    /// Whether the value is whole.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.check == self.check_for()
    }

    /// Which element of `NEXT_HOPS` it has.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        (self.tag >> 1) & (NEXT_HOPS - 1)
    }

    /// Whether a packet of `length` bytes fits.
    #[inline(always)]
    pub const fn fits(&self, length: u32) -> bool {
        length <= self.limits & !Self::EARLY
    }

    /// Whether an XDP program may send packets out of the interface.
    #[inline(always)]
    pub const fn is_early(&self) -> bool {
        self.limits & Self::EARLY != 0
    }

    /// What a flow's record keeps of it ([`super::Live::hop`]): its place, and 16 bits that nobody else's
    /// are, of the record's tag and of the interface that the flow's packets arrive by. A stray write
    /// to a record that is another flow's by now names nothing for that one.
    #[inline(always)]
    pub const fn name_for(&self, flow: u32, arrival: u32) -> u32 {
        let whose = self.tag ^ flow ^ arrival.wrapping_mul(0x9e37_79b9);
        self.place() | ((whose >> 16) * NEXT_HOPS)
    }
}
