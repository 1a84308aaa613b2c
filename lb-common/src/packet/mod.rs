//! How packet logic reads and writes a packet, whatever holds it: an skb, an XDP buffer, a slice.

mod slice;

pub use slice::SlicePacket;

/// Typed access at an offset from the first byte of the packet.
///
/// Values are raw: the bytes of the wire in an integer of the machine's order, so that equality
/// works and arithmetic does not. Every access is checked on its own; `None` means that the packet
/// ends before. Implementations keep a context, never a pointer: nothing survives a call that
/// moves the data.
pub trait Packet {
    /// Makes the headers reachable, where they may not be. Called once, before the first access, and
    /// only for packets that are looked at.
    fn make_reachable(&mut self) {}
    /// Reads one byte.
    fn u8(&self, at: usize) -> Option<u8>;
    /// Reads two bytes.
    fn u16(&self, at: usize) -> Option<u16>;
    /// Reads `N` consecutive 32-bit words with one check.
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]>;
    /// Writes two bytes.
    fn set_u16(&mut self, at: usize, value: u16) -> Option<()>;
    /// Writes `N` consecutive 32-bit words with one check.
    fn set_words<const N: usize>(&mut self, at: usize, value: &[u32; N]) -> Option<()>;
    /// Adjusts the transport checksum at `at` by two differences ([`crate::csum::Diff`]): of the
    /// addresses, which a partial checksum covers, and of the rest, which it does not.
    fn adjust_checksum(&mut self, at: usize, change: &ChecksumChange) -> Option<()>;
    /// Bytes of payload in each segment of a packet that stands for several; 0: it is one.
    fn segment(&self) -> u32 {
        0
    }
    /// Whether it came in a frame for another machine, which this one only listens to.
    fn for_others(&self) -> bool {
        false
    }
    /// Whether it lies in one piece, up to this byte: what does not may not leave by every interface.
    fn is_linear_until(&self, _end: usize) -> bool {
        true
    }
    /// Whether it came with the tag of a VLAN that lies outside of it: an interface of the VLAN will see
    /// it without.
    fn tagged(&self) -> bool {
        false
    }
    /// Notes a change that no checksum in the packet makes up for, by its difference: who keeps a
    /// sum of all bytes adjusts it.
    fn note_change(&mut self, _diff: u32) {}
}

/// A packet that can become another one.
pub trait Renew: Packet {
    /// Keeps what lies before the IP header at `l3` and makes room for exactly `length` bytes behind
    /// it, each of which has to be written. Whatever is noted outside of the packet about its
    /// segments and its checksums, the latter for a transport header at `l4`, is forgotten: the
    /// checksums that will be written are complete. `None`: it cannot be done, and what is left is
    /// good for nothing.
    fn renew(&mut self, l3: usize, l4: usize, length: usize) -> Option<()>;
}

/// What a rewrite does to a transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumChange {
    /// Difference of the pseudo header, unfolded (RFC 1071 sum of 16-bit words).
    pub pseudo: u32,
    /// Difference of the transport header.
    pub header: u32,
    /// UDP: zero means "no checksum" and stays, and a computed zero becomes 0xffff (RFC 768).
    pub udp: bool,
    /// The addresses are IPv6: no header checksum makes up for their change.
    pub ipv6: bool,
}
