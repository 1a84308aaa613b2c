//! All state that a decision may touch, with time and randomness: kernel maps in the programs,
//! hash maps in tests, the pinned maps in `explain`.

use crate::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, BackendWord, Counter, FactsWord,
    Flow, FlowKey, FragmentKey, FragmentRecord, FrontendKey, FrontendWord, InterfaceWord, Ip, Live,
    NetnsRecord, NextHop, RefusalWord, ServiceCidr, ServicePortId, SetWord, SocketKey, SocketLink,
    SocketPeer, SocketRecord,
};
use crate::select::Choice;

/// What has no family: sets, backends, counters, time, randomness.
pub trait ServiceTables {
    /// Element of `SETS`; an index out of range reads as [`SetWord::REJECT`].
    fn set(&self, index: u32) -> SetWord;
    /// Element of `FACTS`.
    fn facts(&self, id: ServicePortId) -> FactsWord;
    /// A slot: the backend id at this index of `SLOTS`, 0 out of range.
    fn slot(&self, index: u32) -> BackendId;
    /// A backend.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// Only the word of a backend that changes; that of no backend has no flag.
    fn backend_word(&self, id: BackendId) -> BackendWord {
        self.backend(id).map_or_else(BackendWord::default, |backend| BackendWord(backend.word))
    }
    /// Coarse time since boot, in ticks of 256 jiffies.
    fn now(&self) -> u32;
    /// Seconds of the monotonic clock. Read for new connections of service ports with session
    /// affinity only.
    fn seconds(&self) -> u32;
    /// The backend that a client of a service port had last.
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord>;
    /// Notes it; `false` if the table refused.
    fn set_affinity(&self, key: &AffinityKey, record: &AffinityRecord) -> bool;
    /// A random number.
    fn random(&self) -> u32;
    /// Adds one to a counter.
    fn count(&self, counter: Counter);
}

/// Frontends of one family.
pub trait FrontendTables<const N: usize>: ServiceTables {
    /// One lookup; the caller checks the tag.
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord>;
    /// What an address may be, by its bits in `VIP_FILTER` ([`crate::abi::FILTER_VIP`],
    /// [`crate::abi::FILTER_NODE`]): a bit that is not set is certain.
    fn filter(&self, ip: &Ip<N>) -> u32;
    /// Whether an address may be in any table: `false` is certain.
    fn may_be_vip(&self, ip: &Ip<N>) -> bool {
        self.filter(ip) != 0
    }
    /// What an address is; the caller checks the tag.
    fn address(&self, ip: &Ip<N>) -> Option<AddressWord>;
    /// Whether a source is in one of the ranges that a service port lets through (V-5).
    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool;
}

/// The ranges that Services of one family get their addresses from.
pub trait GuardTables<const N: usize>: FrontendTables<N> {
    /// Element of `SERVICE_CIDRS4` or `SERVICE_CIDRS6`; a zero mask ends the list.
    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>>;
}

/// How the local detector goes by sources (contract 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalMode {
    /// By the interface that a packet arrives by.
    Interface,
    /// By ranges of addresses; a family without one has no detector.
    Range,
    /// There is none (M-9, V-d).
    None,
}

/// What is set for this node, and what its interfaces are.
pub trait NodeTables: RefusalTables {
    /// Index of the interface at hand.
    fn arrival(&self) -> u32;
    /// Whether the packet at hand comes from a socket of this node. Asked of packets that leave.
    fn own(&self) -> bool;
    /// What an interface is; `None` if nothing is known of it, [`InterfaceWord::TORN`] if that changes.
    fn interface(&self, ifindex: u32) -> Option<InterfaceWord>;
    /// The same for less, for every packet: in the moment when what is known of interfaces changes it may
    /// be another one's.
    fn interface_unchecked(&self, ifindex: u32) -> Option<InterfaceWord> {
        self.interface(ifindex)
    }
    /// Element of `NODE_PORTS`; 0 out of range.
    fn node_ports(&self, index: u32) -> u64;
    /// How pods of this node are told from other clients.
    fn local_mode(&self) -> LocalMode;
    /// Whether everything to a clusterIP gets a source of this node (M-6).
    fn masquerade_all(&self) -> bool;
    /// First port for SNAT, host order.
    fn snat_first(&self) -> u32;
    /// Number of ports for SNAT.
    fn snat_count(&self) -> u32;
    /// A random number of this node: others do not know which source port a flow gets.
    fn seed(&self) -> u32;
    /// By which interface the route leads that was found last.
    fn egress(&self) -> u32;
    /// Whether that is [`RouteStatus::Found`], or [`RouteStatus::NoNeighbour`].
    fn neighbour_known(&self) -> bool;
    /// The same number, of which the kernel's verifier knows nothing any more: it follows what comes
    /// next once, and not for each value that it has seen.
    fn forget(&self, value: u32) -> u32 {
        value
    }
    /// How many bytes of IP packet fit that route, known after [`RouteStatus::TooBig`].
    fn mtu(&self) -> u32;
    /// The next hop of the route that was found last, if its neighbour is known: all but tag and time.
    fn found_hop(&self) -> Option<NextHop>;
    /// Element of `NEXT_HOPS`; `None` out of range, and where packets have no Ethernet header.
    fn next_hop(&self, place: u32) -> Option<NextHop>;
    /// Its tag, and when it was seen.
    fn next_hop_seen(&self, place: u32) -> Option<(u32, u32)> {
        self.next_hop(place).map(|hop| (hop.tag, hop.seen))
    }
    /// Stores it.
    fn set_next_hop(&self, place: u32, hop: &NextHop);
    /// Stores [`NextHop::found`] alone, if it differs.
    fn set_next_hop_found(&self, place: u32, found: u32);
    /// Element of `SOURCES`; 0 out of range.
    fn source_known(&self, place: u32) -> u64;
    /// Stores it.
    fn set_source_known(&self, place: u32, word: u64);
    /// Makes a next hop that of the route found last.
    fn take_hop(&self, hop: &NextHop);
    /// Makes its neighbour unknown: the kernel looks for it when the packet is sent.
    fn forget_neighbour(&self);
}

/// Where a packet would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteStatus {
    /// To a neighbour whose link address is known.
    Found,
    /// To a neighbour whose link address is still to be asked for.
    NoNeighbour,
    /// To this node itself, or nobody knows where to.
    Local,
    /// To somewhere that it is too long for.
    TooBig,
    /// Nowhere: the routes say so.
    NoRoute,
}

/// What is asked about new flows from outside, and about packets that are sent on.
pub trait RouteTables<const N: usize>: FlowTables<N> + NodeTables {
    /// An address for packets that leave by an interface ([`crate::abi::address_in_turn`]).
    fn snat_address(&self, ifindex: u32, turn: u32) -> Ip<N>;
    /// Element of `LOCAL_CIDRS4` or `LOCAL_CIDRS6`; a zero mask ends the list.
    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>>;
    /// Looks for a route for an IP packet (or each segment of one) of `length` bytes: among those that
    /// leave by the interface `over` if `out`, else as if it arrived by that. What is found stays at
    /// hand until the next question, for who sends the packet.
    fn route(&self, from: &Ip<N>, to: &Ip<N>, over: u32, out: bool, length: u32) -> RouteStatus;
}

/// What limits answers to refused packets.
pub trait RefusalTables: ServiceTables {
    /// This CPU's word of `REJECTS`.
    fn refusals(&self) -> Option<RefusalWord>;
    /// Stores it.
    fn set_refusals(&self, word: RefusalWord);
}

/// Which flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// TCP flows whose client answered, and all others.
    Main,
    /// TCP flows of which only the SYN was seen.
    HalfOpen,
}

/// A looked-up flow record, still in its table.
pub trait FlowRef<const N: usize> {
    /// A copy. The caller checks [`Flow::is_for`] before it believes it.
    fn read(&self) -> Flow<N>;
    /// Only the tag.
    fn tag(&self) -> u32;
    /// Only its flags, to be checked with the rest.
    fn flags(&self) -> u32 {
        self.read().flags
    }
    /// Only the interface, likewise.
    fn ifindex(&self) -> u32 {
        self.read().ifindex
    }
    /// Whether it translates to the same addresses and ports as another record.
    fn translates_as(&self, other: &Flow<N>) -> bool {
        let own = self.read();
        own.src == other.src
            && own.dst == other.dst
            && own.sport == other.sport
            && own.dport == other.dport
    }
    /// Whether it leads to an address and port, network order.
    fn leads_to(&self, ip: &Ip<N>, port: u16) -> bool {
        let own = self.read();
        own.dst == *ip && own.dport == port
    }
    /// Only the word that changes.
    fn live(&self) -> Live;
    /// Stores the word that may change, in place.
    fn set_live(&self, live: Live);
}

/// Why an insertion did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The record is there now.
    Done,
    /// There was one, and it was to stay.
    Exists,
    /// The table refused it.
    Full,
}

/// Flows of one family.
pub trait FlowTables<const N: usize>: FrontendTables<N> {
    /// A looked-up record.
    type Ref: FlowRef<N>;
    /// Whether a flow was ever made on the interface at hand, or came in from outside by any: `false`
    /// is certain.
    fn has_flows(&self) -> bool;
    /// Whether a flow was ever made to a backend of this address: `false` is certain.
    fn has_flows_to(&self, backend: &Ip<N>) -> bool;
    /// Notes that a flow is made on the interface at hand, or from outside, whose replies may leave by
    /// any interface; to a backend of this address.
    fn note_flows(&self, backend: &Ip<N>, outside: bool);
    /// Looks a record up.
    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Self::Ref>;
    /// Inserts a record; `replace` says what happens to one that is there.
    fn insert_flow(
        &self,
        table: FlowTable,
        key: &FlowKey<N>,
        flow: &Flow<N>,
        replace: bool,
    ) -> Insert;
    /// The ports of a fragmented datagram; the caller checks the tag.
    fn fragment(&self, key: &FragmentKey<N>) -> Option<FragmentRecord>;
    /// Notes them; `false` if the table refused.
    fn set_fragment(&self, key: &FragmentKey<N>, record: &FragmentRecord) -> bool;
    /// Removes a record.
    fn remove_flow(&self, table: FlowTable, key: &FlowKey<N>);
}

/// What the socket engine remembers of the socket at hand.
pub trait SocketTables: ServiceTables {
    /// The socket's cookie.
    fn cookie(&self) -> u64;
    /// The cookie of its network namespace; 0 if the kernel does not tell.
    fn netns_cookie(&self) -> u64;
    /// The cookie of the node's own network namespace; 0 if unknown.
    fn node_netns(&self) -> u64;
    /// What is known of a network namespace.
    fn netns(&self, cookie: u64) -> Option<NetnsRecord>;
    /// Whether only sockets of the node's own network namespace are served.
    fn node_only(&self) -> bool;
    /// Whether the process at hand is in a cgroup whose sockets are left alone.
    fn cgroup_bypassed(&self) -> bool;
    /// Whether the socket is connected at the moment, be it through us or not.
    fn is_connected(&self) -> bool;
    /// The socket's own record, if it has one.
    fn record(&self) -> Option<SocketRecord>;
    /// Notes in it where the socket is connected to; `false` if there is no memory for a record.
    fn set_connected(&self, vip: &[u32; 4], vip_port: u16, to: &Choice) -> bool;
    /// Notes in it, if there is one, that the socket is not connected through us.
    fn set_disconnected(&self);
    /// Removes it, where it is not freed with the socket.
    fn remove_record(&self);
    /// Notes in it the first of the socket's peers and their number; `false` if there is no memory
    /// for a record.
    fn set_head(&self, head: &SocketLink, peers: u32) -> bool;
    /// A peer of an unconnected socket.
    fn peer(&self, key: &SocketKey) -> Option<SocketPeer>;
    /// Stores a peer; `false` if the table is full.
    fn set_peer(&self, key: &SocketKey, peer: &SocketPeer) -> bool;
    /// Removes a peer.
    fn remove_peer(&self, key: &SocketKey);
}
