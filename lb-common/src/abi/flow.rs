//! Flows of the packet engine: one record for each direction, each with the translation it applies.

use super::{BackendId, Ip, Mix};

/// At which hook of an interface a record applies.
pub struct FlowKind;

impl FlowKind {
    /// Packets that arrive from the interface (client to VIP; replies of a hairpin flow).
    pub const INGRESS: u8 = 1;
    /// Packets that leave by the interface (backend to client).
    pub const EGRESS: u8 = 2;
}

/// Key of the flow tables: the packet as seen, before translation. 16 or 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<const N: usize> {
    /// Source address.
    pub src: Ip<N>,
    /// Destination address.
    pub dst: Ip<N>,
    /// Source port, network order.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// See [`FlowKind`].
    pub kind: u8,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<FlowKey<1>>() == 16 && size_of::<FlowKey<4>>() == 40);

impl<const N: usize> FlowKey<N> {
    /// The key of what travels the other way, as seen at a hook of `kind`.
    #[inline(always)]
    #[must_use]
    pub const fn turned(&self, kind: u8) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            kind,
            pad: 0,
        }
    }
}

/// Value of the flow tables: 40 or 64 bytes. Fixed once inserted, but for [`Flow::live`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<const N: usize> {
    /// The only word written after insertion: coarse time and TCP state, see [`Live`]. A stray
    /// write to a reused element is harmless: it only ages that record wrongly.
    pub live: u64,
    /// Source address after translation.
    pub src: Ip<N>,
    /// Destination address after translation.
    pub dst: Ip<N>,
    /// Source port after translation, network order.
    pub sport: u16,
    /// Destination port after translation, network order.
    pub dport: u16,
    /// See the associated constants.
    pub flags: u32,
    /// The backend; TCP never depends on it.
    pub backend: BackendId,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// [`Flow::tag_for`] of the key and all of the above but `live`, and but the backend in the reply
    /// direction.
    pub tag: u32,
    /// The interface by which the client's packets arrive and its replies leave, with [`Flow::POD`] if it
    /// leads to a pod. Its bridge or bond instead where the client is off the node, or the flow is sent
    /// on. 0 for what is none of ours.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Flow<1>>() == 40 && size_of::<Flow<4>>() == 64);

impl<const N: usize> Flow<N> {
    /// The packet goes back out of the interface it came from (backend = client).
    pub const HAIRPIN: u32 = 1;
    /// This record is the reply direction.
    pub const REPLY: u32 = 1 << 1;
    /// The source is this node's, and the packet is sent on by the programs themselves: both
    /// directions are met where they arrive.
    pub const FORWARDED: u32 = 1 << 2;
    /// None of ours: an answer to what this node sent from a port that is a `NodePort` too.
    pub const FOREIGN: u32 = 1 << 3;

    /// In [`Flow::ifindex`]: the client is a pod of this node, and only what arrives or leaves by this
    /// interface is its own.
    pub const POD: u32 = 1 << 31;

    /// The interface alone.
    #[inline(always)]
    pub const fn interface(&self) -> u32 {
        self.ifindex & !Self::POD
    }

    /// Whether the client is a pod of this node.
    #[inline(always)]
    pub const fn is_pods(&self) -> bool {
        self.ifindex & Self::POD != 0
    }

    /// A record to be filled in.
    #[inline(always)]
    pub const fn empty() -> Self {
        Self {
            live: 0,
            src: [0; N],
            dst: [0; N],
            sport: 0,
            dport: 0,
            flags: 0,
            backend: 0,
            generation: 0,
            tag: 0,
            ifindex: 0,
        }
    }

    /// The tag of a record with these contents under `key`. It covers the translation too, so that
    /// a record torn by the reuse of its element is never applied.
    #[inline(always)]
    pub fn tag_for(&self, key: &FlowKey<N>) -> u32 {
        let ports = |sport: u16, dport: u16| ((sport as u64) << 16) | dport as u64;
        Mix::new()
            .ip(&key.src)
            .ip(&key.dst)
            .word(
                ports(key.sport, key.dport)
                    | ((key.proto as u64) << 32)
                    | ((key.kind as u64) << 40),
            )
            .ip(&self.src)
            .ip(&self.dst)
            .word(ports(self.sport, self.dport) | ((self.flags as u64) << 32))
            .word(self.ifindex as u64)
            .word(if self.flags & Self::REPLY == 0 {
                self.backend as u64 | ((self.generation as u64) << 32)
            } else {
                // Replies do without it: the record of an endpoint that comes back is the same.
                0
            })
            .tag()
    }

    /// Whether this record belongs to `key` and is whole.
    #[inline(always)]
    pub fn is_for(&self, key: &FlowKey<N>) -> bool {
        self.tag == self.tag_for(key)
    }
}

/// The word of a flow that changes: when it was last seen in the low half, in ticks of 256 jiffies
/// (0.26 s to 2.56 s, by the kernel's HZ); in the high one TCP state bits, and which next hop it has.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Live(pub u64);

impl Live {
    /// This direction sent FIN.
    pub const FIN: u32 = 1;
    /// This direction sent RST and nothing since.
    pub const RST: u32 = 1 << 1;
    /// The other direction sent RST, and this one nothing since.
    pub const CLOSING: u32 = 1 << 2;
    /// This direction accepted a connection (SYN with ACK).
    pub const ANSWERED: u32 = 1 << 3;
    /// All state bits.
    const STATE: u32 = 0xf;
    /// Ticks after which a flow is looked at as a whole again: 2 s to 20 s, by the kernel's HZ.
    pub const SPAN: u32 = 8;
    /// Where the next hop begins.
    const HOP: u32 = 36;

    /// A word without a next hop.
    #[inline(always)]
    pub const fn new(seen: u32, state: u32) -> Self {
        Self(seen as u64 | ((state as u64) << 32))
    }

    /// When the flow was last seen, in ticks of the jiffies counter.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn seen(self) -> u32 {
        self.0 as u32
    }

    /// Whether a packet of a flow with this tag may go on by what the packet before it was told, and the
    /// other direction's record need not be looked after. That ends every [`Live::SPAN`] ticks, not for
    /// all flows at once.
    #[inline(always)]
    pub const fn is_recent(self, now: u32, tag: u32) -> bool {
        now.wrapping_add(tag) / Self::SPAN == self.seen().wrapping_add(tag) / Self::SPAN
    }

    /// The same word, seen now.
    #[inline(always)]
    #[must_use]
    pub const fn seen_at(self, now: u32) -> Self {
        Self((self.0 >> 32 << 32) | now as u64)
    }

    /// TCP state bits.
    #[inline(always)]
    pub const fn state(self) -> u32 {
        (self.0 >> 32) as u32 & Self::STATE
    }

    /// The same word with a next hop ([`super::NextHop::name_for`], 28 bits).
    #[inline(always)]
    #[must_use]
    pub const fn with_hop(self, name: u32) -> Self {
        Self(self.without_hop().0 | (name as u64) << Self::HOP)
    }

    /// The same word without one.
    #[inline(always)]
    #[must_use]
    pub const fn without_hop(self) -> Self {
        Self(self.0 & ((1 << Self::HOP) - 1))
    }

    /// The next hop that was found since the flow was last looked at as a whole; 0: none.
    #[inline(always)]
    pub const fn hop(self) -> u32 {
        (self.0 >> Self::HOP) as u32
    }
}
