//! What do Millrace's decisions do with a connection?

use std::{cell::Cell, collections::BTreeSet, fmt, net::SocketAddr};

use lb_common::{
    abi::{NetnsRecord, V4, V6},
    decide, early, guard,
    host::{HostTables, Words, words},
    packet::SlicePacket,
    parse::Link,
    socket::{self, Address, Outcome},
    tables::{FrontendTables, SocketTables},
    verdict::Verdict,
};
use lb_testbed::{
    oracle::{
        Client, Engine, Place, Source,
        cluster::{Family, Protocol},
    },
    packet,
    traffic::{self, SYN},
};

use super::{node, pipeline::Agent};

/// The cookie of the node's own network namespace in the tables.
const NODE_NETNS: u64 = 1;

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `connect`.
    Connect,
    /// `sendmsg` on an unconnected socket.
    Send,
    /// A packet at the interface by which it arrives, and, if nobody takes it there, where it leaves
    /// the node.
    Packet,
    /// The same, which XDP meets before.
    Early,
    /// A packet of the node itself where it leaves the node.
    Leave,
}

impl Way {
    /// Who decides.
    pub(crate) fn engine(self) -> Engine {
        match self {
            Self::Connect | Self::Send => Engine::Socket,
            Self::Packet | Self::Early | Self::Leave => Engine::Packet,
        }
    }

    /// The ways that a client has.
    pub(crate) fn of(client: &Client, protocol: Protocol) -> &'static [Self] {
        match (client.place, protocol) {
            (Place::Pod, Protocol::Tcp) => &[Self::Connect, Self::Packet],
            (Place::Pod, Protocol::Udp) => &[Self::Connect, Self::Send, Self::Packet],
            (Place::Pod, Protocol::Sctp) => &[Self::Packet],
            (Place::Host, Protocol::Tcp) => &[Self::Connect, Self::Leave],
            (Place::Host, Protocol::Udp) => &[Self::Connect, Self::Send, Self::Leave],
            (Place::Host, Protocol::Sctp) => &[Self::Leave],
            (Place::Elsewhere, _) => &[Self::Packet, Self::Early],
        }
    }
}

/// What became of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Became {
    Untouched,
    Rejected,
    Dropped,
    /// It goes on, into the node's stack or, in a hairpin, back to the pod.
    To(SocketAddr, Source),
    /// It was sent out again to there, with an address of the node as its source.
    Out(SocketAddr),
    /// SCTP to an endpoint at another port: its `CRC32c` covers the ports, and is not computed anew.
    SctpPort,
    /// What should never become of it: a verdict's number.
    Odd(u8),
}

impl Became {
    /// The endpoint that it went to.
    pub(crate) fn endpoint(self) -> Option<SocketAddr> {
        match self {
            Self::To(at, _) | Self::Out(at) => Some(at),
            Self::Untouched | Self::Rejected | Self::Dropped | Self::SctpPort | Self::Odd(_) => {
                None
            }
        }
    }
}

impl fmt::Debug for Became {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => f.write_str("left alone"),
            Self::Rejected => f.write_str("rejected"),
            Self::Dropped => f.write_str("dropped"),
            Self::SctpPort => f.write_str("refused because its port would change"),
            Self::Odd(verdict) => write!(f, "verdict {verdict}"),
            Self::To(at, Source::Kept) => write!(f, "{at}"),
            Self::To(at, Source::Rewritten) => write!(f, "{at} from another source"),
            Self::Out(at) => write!(f, "sent out to {at} from the node"),
        }
    }
}

/// Asks the decisions, each time as a new socket or flow.
pub(crate) struct Decider<'a> {
    tables: &'a HostTables,
    /// The last sender: its source port or socket cookie is its own.
    next: &'a Cell<u64>,
    /// How often it was asked.
    pub(crate) decisions: Cell<u64>,
}

impl<'a> Decider<'a> {
    pub(crate) fn new(agent: &'a Agent) -> Self {
        Self { tables: &agent.tables, next: &agent.senders, decisions: Cell::new(0) }
    }

    /// A flow or socket that was not there before.
    pub(crate) fn sender(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// What becomes of one connection; `random` picks among the endpoints.
    pub(crate) fn once(
        &self,
        way: Way,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
        random: u32,
    ) -> Became {
        let id = self.sender();
        self.tables.clear_random();
        self.tables.push_random(random);
        let became = self.again(way, client, to, protocol, id);
        self.tables.clear_random();
        if way.engine() == Engine::Socket {
            socket::release(self.tables, protocol.number());
            self.tables.free_socket();
        }
        became
    }

    /// What becomes of what this flow or socket sends: one that has sent before, if `id` is the same.
    pub(crate) fn again(
        &self,
        way: Way,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
        id: u64,
    ) -> Became {
        self.decisions.set(self.decisions.get() + 1);
        match (way, words(to.ip())) {
            (Way::Leave, _) => self.leaving(client, to, protocol, id),
            (Way::Packet | Way::Early, _) => self.packet(way, client, to, protocol, id),
            (_, Words::V4(ip)) => self.socket::<V4>(way, client, ip, to, protocol, id),
            (_, Words::V6(ip)) => self.socket::<V6>(way, client, ip, to, protocol, id),
        }
    }

    /// What may become of connections whose expectation names `endpoints` endpoints; clients were
    /// silent for longer than any affinity lasts.
    pub(crate) fn all(
        &self,
        way: Way,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
        endpoints: usize,
    ) -> BTreeSet<Became> {
        // One more than there should be, so that one too many is met as well.
        let tries = endpoints as u64 + 1;
        (0..tries)
            .map(|index| {
                self.tables.advance_seconds(100_000);
                let random = u32::try_from(((index << 32) + (1 << 31)) / tries).unwrap();
                self.once(way, client, to, protocol, random)
            })
            .collect()
    }

    fn socket<const N: usize>(
        &self,
        way: Way,
        client: &Client,
        ip: [u32; N],
        to: SocketAddr,
        protocol: Protocol,
        cookie: u64,
    ) -> Became
    where
        HostTables: FrontendTables<N> + SocketTables,
    {
        self.tables.set_cookie(cookie);
        self.tables.set_netns(self.netns(client));
        let to = Address { ip, port: to.port().to_be() };
        let outcome = match way {
            Way::Send => socket::sendmsg(self.tables, &to),
            _ => socket::connect(self.tables, protocol.number(), &to),
        };
        match outcome {
            Outcome::Pass => Became::Untouched,
            Outcome::Reject => Became::Rejected,
            Outcome::Drop => Became::Dropped,
            Outcome::Translated(at) => {
                // What the application asks afterwards: its peer is who it asked for.
                if way == Way::Connect {
                    assert_eq!(socket::getpeername(self.tables, &at), Some(to));
                }
                assert_eq!(socket::recvmsg(self.tables, &at), Some(to));
                let ip = lb_agent::plan::address(&lb_common::select::widen(&at.ip), N == V6);
                Became::To(SocketAddr::new(ip, u16::from_be(at.port)), Source::Kept)
            }
        }
    }

    /// The network namespace of a client, known by its address, as the agent tells.
    fn netns(&self, client: &Client) -> u64 {
        let (of_pod, record) = match words(client.ip) {
            Words::V4([v4]) => (u64::from(v4), NetnsRecord { v4, ..NetnsRecord::default() }),
            Words::V6(v6) => (u64::from(v6[3]) << 8, NetnsRecord { v6, ..NetnsRecord::default() }),
        };
        let cookie = if client.place == Place::Host { NODE_NETNS } else { of_pod | 2 };
        self.tables.know_netns(cookie, record);
        cookie
    }

    fn packet(
        &self,
        way: Way,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
        id: u64,
    ) -> Became {
        let from = sender(client, id);
        let sent = traffic::packet(transport(protocol), from, to, SYN).build();
        let mut bytes = sent.clone();
        self.tables.set_interface(node::index(client.link));
        let mut packet = SlicePacket(&mut bytes);
        let mut verdict = Verdict::Left;
        if way == Way::Early {
            verdict = early::ingress(&mut packet, self.tables, Link::Ethernet);
        }
        if verdict != Verdict::Forwarded {
            assert_eq!(packet.0, &sent, "XDP must not write where it leaves a packet to tc");
            verdict = decide::ingress(&mut packet, self.tables, Link::Ethernet);
        }
        let reads = packet::parse(&bytes, packet::Link::Ethernet).expect("still a packet");
        let ports = reads.ports.expect("still with ports");
        match verdict {
            Verdict::Translated | Verdict::Reflected => {
                packet::checksums_ok(&bytes, packet::Link::Ethernet).expect("right checksums");
                let kept = (reads.src, ports[0]) == (from.ip(), from.port());
                let source = if kept { Source::Kept } else { Source::Rewritten };
                Became::To(SocketAddr::new(reads.dst, ports[1]), source)
            }
            Verdict::Forwarded => {
                packet::checksums_ok(&bytes, packet::Link::Ethernet).expect("right checksums");
                let egress = node::egress(reads.dst).expect("nobody else is routed");
                // M-b.
                assert_eq!(
                    reads.src,
                    node::snat_address(egress, Family::of(reads.dst)),
                    "{client:?}"
                );
                Became::Out(SocketAddr::new(reads.dst, ports[1]))
            }
            other => {
                assert_eq!(bytes, sent, "{other:?} must not write");
                match other {
                    Verdict::NotService => self.leaving(client, to, protocol, id),
                    Verdict::NoBackend | Verdict::UndefinedPort => Became::Rejected,
                    Verdict::NoLocalBackend | Verdict::SourceRange => Became::Dropped,
                    Verdict::SctpPort => Became::SctpPort,
                    other => Became::Odd(other as u8),
                }
            }
        }
    }
}

impl Decider<'_> {
    /// What becomes of a packet at the uplink's egress (V-12, V-13).
    fn leaving(&self, client: &Client, to: SocketAddr, protocol: Protocol, id: u64) -> Became {
        let mut bytes = traffic::packet(transport(protocol), sender(client, id), to, SYN).build();
        let mut packet = SlicePacket(&mut bytes);
        if !guard::suspects(&mut packet, self.tables, Link::Ethernet) {
            return Became::Untouched;
        }
        match guard::leaving(&packet, self.tables, Link::Ethernet) {
            None => Became::Untouched,
            Some(Verdict::UndefinedPort) => Became::Rejected,
            Some(Verdict::Unallocated) => Became::Dropped,
            Some(other) => Became::Odd(other as u8),
        }
    }
}

/// Where a flow comes from.
fn sender(client: &Client, id: u64) -> SocketAddr {
    SocketAddr::new(client.ip, 1024 + u16::try_from(id % 60_000).unwrap_or(0))
}

/// The transport of a packet.
pub(crate) fn transport(protocol: Protocol) -> traffic::Protocol {
    match protocol {
        Protocol::Tcp => traffic::Protocol::Tcp,
        Protocol::Udp => traffic::Protocol::Udp,
        Protocol::Sctp => traffic::Protocol::Sctp,
    }
}
