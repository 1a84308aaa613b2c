//! The layout of every map: what the agent writes and the kernel programs read.
//!
//! Rules (design section 3): `repr(C)`, no implicit padding, no `bool`, no enum, no reference.
//! Addresses and ports are in network byte order, as the bytes lie in a packet; everything else is
//! in the machine's order. A value that decides is one aligned 64-bit word, loaded once, or cannot
//! change while it is visible. A change of anything here bumps [`ABI_VERSION`]: the agent pins its
//! maps in a folder of that name and never reinterprets another one.

mod address;
mod backend;
mod client;
mod counter;
mod filter;
mod flow;
mod fragment;
mod frontend;
mod hop;
mod interface;
mod meta;
mod programs;
mod refusal;
mod set;
mod socket;

pub use address::{AddressFlags, AddressWord, LOCAL_CIDRS, SERVICE_CIDRS, ServiceCidr};
pub use backend::{Backend, BackendFlags, BackendId, BackendWord};
pub use client::{
    AffinityKey, AffinityRecord, BYPASS_CGROUPS, BypassCgroup, NetnsFlags, NetnsRecord,
    client_of_cookie,
};
pub use counter::{COUNTERS, Counter};
pub use filter::{
    FILTER_NODE, FILTER_VIP, FILTER_WORDS, FLOW_PORTS, FLOW_SOURCE_FLAGS, FLOW_SOURCES,
    NODE_PORT_WORDS, filter_place, flow_port, flow_source, node_port_place,
};
pub use flow::{Flow, FlowKey, FlowKind, Live};
pub use fragment::{FragmentKey, FragmentRecord};
pub use frontend::{
    Found, FrontendFlags, FrontendKey, FrontendWord, ServicePortId, SourceRangeKey,
};
pub use hop::{NEXT_HOPS, NextHop};
pub use interface::{
    Interface, InterfaceFlags, InterfaceWord, SNAT_ADDRESSES, SOURCES, address_in_turn,
};
pub use meta::{META_WORDS, MetaWord, NAME_LEN, Name};
pub use programs::{EarlySlot, ProgramSlot};
pub use refusal::{REFUSALS_PER_TICK, RefusalWord};
pub use set::{FactsFlags, FactsWord, SCOPES, Scope, SetWord};
pub use socket::{SocketKey, SocketLink, SocketPeer, SocketRecord, TCP_SOCKETS, TcpSocket};

/// Version of this layout; the name of the pin folder is `v` followed by it.
pub const ABI_VERSION: u32 = 4;

/// Words of an IPv4 address in keys and records.
pub const V4: usize = 1;
/// Words of an IPv6 address in keys and records.
pub const V6: usize = 4;

/// An address as 32-bit words whose bytes in memory are the bytes on the wire; `N` is [`V4`] or [`V6`].
pub type Ip<const N: usize> = [u32; N];

/// IP protocol numbers that Services know (IANA protocol numbers).
pub mod proto {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// `ICMPv6`, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;
}

/// Names of the maps, as pinned; `docs/maps.md` describes each.
pub mod map {
    /// Hash: IPv4 frontend key to frontend word.
    pub const FRONTENDS4: &str = "FRONTENDS4";
    /// Hash: IPv6 frontend key to frontend word.
    pub const FRONTENDS6: &str = "FRONTENDS6";
    /// Hash: IPv4 address to address word.
    pub const ADDRESSES4: &str = "ADDRESSES4";
    /// Hash: IPv6 address to address word.
    pub const ADDRESSES6: &str = "ADDRESSES6";
    /// Array of IPv4 ranges that Services get their addresses from.
    pub const SERVICE_CIDRS4: &str = "SERVICE_CIDRS4";
    /// Array of IPv6 ranges that Services get their addresses from.
    pub const SERVICE_CIDRS6: &str = "SERVICE_CIDRS6";
    /// LRU hash: which backend a client of a service port with session affinity has.
    pub const AFFINITY: &str = "AFFINITY";
    /// Hash: what is known of a network namespace, by its cookie.
    pub const NETNS: &str = "NETNS";
    /// Array of cgroups whose processes the socket engine leaves alone.
    pub const BYPASS_CGROUPS: &str = "BYPASS_CGROUPS";
    /// Array of set words, by service port id and scope.
    pub const SETS: &str = "SETS";
    /// Array of facts words, by service port id.
    pub const FACTS: &str = "FACTS";
    /// Array of 64-bit elements, each two 32-bit slots.
    pub const SLOTS: &str = "SLOTS";
    /// Array of backends, by backend id.
    pub const BACKENDS: &str = "BACKENDS";
    /// Array of names, by service port id; never read by a kernel program.
    pub const NAMES: &str = "NAMES";
    /// Array of words that tell the state of the agent; never read by a kernel program.
    pub const META: &str = "META";
    /// Array of 64-bit words: the bit set of ports that are `NodePort`s.
    pub const NODE_PORTS: &str = "NODE_PORTS";
    /// Hash: what an interface is, by its index.
    pub const INTERFACES: &str = "INTERFACES";
    /// Array of IPv4 ranges that pods get their addresses from.
    pub const LOCAL_CIDRS4: &str = "LOCAL_CIDRS4";
    /// Array of IPv6 ranges that pods get their addresses from.
    pub const LOCAL_CIDRS6: &str = "LOCAL_CIDRS6";
    /// Longest prefix match: IPv4 sources that a service port lets through.
    pub const SOURCE_RANGES4: &str = "SOURCE_RANGES4";
    /// Longest prefix match: IPv6 sources that a service port lets through.
    pub const SOURCE_RANGES6: &str = "SOURCE_RANGES6";
    /// Array of 64-bit words: two bits for each hash of an address.
    pub const VIP_FILTER: &str = "VIP_FILTER";
    /// Array of 64-bit words: interfaces on which flows were made.
    pub const FLOW_PORTS: &str = "FLOW_PORTS";
    /// Array of flags: addresses of backends to which flows were made.
    pub const FLOW_SOURCES: &str = "FLOW_SOURCES";
    /// LRU hash: IPv4 flows.
    pub const FLOWS4: &str = "FLOWS4";
    /// LRU hash: IPv6 flows.
    pub const FLOWS6: &str = "FLOWS6";
    /// LRU hash: ports of fragmented IPv4 datagrams.
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    /// LRU hash: ports of fragmented IPv6 datagrams.
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    /// LRU hash: half-open IPv4 TCP flows.
    pub const HALF_OPEN4: &str = "HALF_OPEN4";
    /// LRU hash: half-open IPv6 TCP flows.
    pub const HALF_OPEN6: &str = "HALF_OPEN6";
    /// Array: what `connect` translated on other sockets than UDP's, by their cookies.
    pub const TCP_SOCKETS: &str = "TCP_SOCKETS";
    /// Socket storage: the same for those that find no place in `TCP_SOCKETS`.
    pub const SOCKETS: &str = "SOCKETS";
    /// Hash: what the engine knows of a UDP socket, by its cookie.
    pub const UDP_SOCKETS: &str = "UDP_SOCKETS";
    /// Hash: the same for UDP sockets of the node's own network namespace.
    pub const HOST_UDP_SOCKETS: &str = "HOST_UDP_SOCKETS";
    /// Hash: what an unconnected UDP socket's datagrams to a VIP were translated to.
    pub const SOCKET_PEERS: &str = "SOCKET_PEERS";
    /// Hash: the same for UDP sockets of the node's own network namespace.
    pub const HOST_SOCKET_PEERS: &str = "HOST_SOCKET_PEERS";
    /// Program array: what the programs at the tc hooks go on with.
    pub const PROGRAMS: &str = "PROGRAMS";
    /// Program array: what the program at XDP goes on with.
    pub const XDP_PROGRAMS: &str = "XDP_PROGRAMS";
    /// Program array: the same for the one that takes packets in several buffers.
    pub const XDP_PROGRAMS_FRAGS: &str = "XDP_PROGRAMS_FRAGS";
    /// Per-CPU array of one word: how many refusals were answered in this tick.
    pub const REJECTS: &str = "REJECTS";
    /// Array of next hops of flows that are sent on.
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    /// Array of sources from outside that begin flows.
    pub const SOURCES: &str = "SOURCES";
    /// Per-CPU array of one element: the question to the kernel's routes at hand, and its answer.
    pub const HOP: &str = "HOP";
    /// Per-CPU array of counters.
    pub const COUNTERS: &str = "COUNTERS";
}

/// Mixes 64-bit words into a tag: a multiply for each, in two chains that take turns, so that a word
/// waits only for the one before the last; no 128-bit arithmetic.
///
/// A tag tells a record of this key from one that a reused element holds by now; it is no defence
/// against an adversary, who cannot choose what a reused element holds.
#[derive(Clone, Copy)]
pub struct Mix {
    next: u64,
    last: u64,
}

impl Mix {
    const FACTOR: u64 = 0xff51_afd7_ed55_8ccd;
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

    /// A fresh state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { next: 1, last: Self::GOLDEN }
    }

    /// Adds one word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u64) -> Self {
        Self { next: self.last, last: self.next.wrapping_mul(Self::FACTOR).wrapping_add(word) }
    }

    /// Adds an address.
    #[inline(always)]
    #[must_use]
    pub fn ip<const N: usize>(self, ip: &Ip<N>) -> Self {
        let mut mix = self;
        let mut words = ip.iter();
        while let Some(&low) = words.next() {
            let high = match words.next() {
                Some(&high) => high,
                None => 0,
            };
            mix = mix.word(((high as u64) << 32) | low as u64);
        }
        mix
    }

    /// The tag: never zero, so that zeroed memory never matches.
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        let sum = self.last.wrapping_mul(Self::GOLDEN).wrapping_add(self.next);
        let mixed = (sum ^ (sum >> 32)).wrapping_mul(Self::FACTOR);
        (mixed >> 32) as u32 | 1
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self::new()
    }
}
