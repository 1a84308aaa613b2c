//! What the tests share: addresses of both families, a world of one client and its Services.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Counter, ServicePortId},
    decide,
    host::{HostTables, OfFamily},
    packet::SlicePacket,
    parse::Link,
    tables::FlowTable,
    verdict::Verdict,
};
use lb_testbed::packet::{self as built, Packet, TcpFlags, Upper};
pub(crate) use lb_testbed::traffic::{
    ACK, FIN_ACK, NETS, Net, PORT, Protocol, RST, SPORT, SYN, SYN_ACK, TARGET, V4, V6, at, packet,
    readdressed,
};

/// Where the packet comes from and goes to.
pub(crate) fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let parsed = built::parse(bytes, built::Link::Ethernet).unwrap();
    let [sport, dport] = parsed.ports.unwrap();
    (SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport))
}

pub(crate) fn destination(bytes: &[u8]) -> SocketAddr {
    ends(bytes).1
}

/// A hook of the packet engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

/// Tables, and packets run through them.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) tables: HostTables,
}

impl World {
    /// One Service of one backend, `pod`, at `vip`.
    pub(crate) fn single(net: Net, protocol: Protocol) -> (Self, ServicePortId) {
        Self::with_backends(net, protocol, &[at(net.pod, TARGET)])
    }

    /// One Service at `vip`.
    pub(crate) fn with_backends(
        net: Net,
        protocol: Protocol,
        backends: &[SocketAddr],
    ) -> (Self, ServicePortId) {
        let world = Self::default();
        let frontends = [at(net.vip, PORT)];
        let id = world.tables.add_service_port(protocol.number(), &frontends, backends);
        (world, id)
    }

    /// What becomes of bytes. Whatever the decision is: what passes is untouched, what is dropped is
    /// counted once, nothing else is counted as a drop.
    pub(crate) fn run(&self, hook: Hook, bytes: &[u8], link: Link) -> (Verdict, Vec<u8>) {
        let drops_before = self.drops();
        let mut after = bytes.to_vec();
        let mut slice = SlicePacket(&mut after);
        let verdict = match hook {
            Hook::Ingress => decide::ingress(&mut slice, &self.tables, link),
            Hook::Egress => decide::egress(&mut slice, &self.tables, link),
        };
        let dropped = self.drops() - drops_before;
        assert_eq!(dropped, u64::from(verdict.drop_counter().is_some()), "{verdict:?}");
        let written =
            [Verdict::Translated, Verdict::Reflected, Verdict::Forwarded, Verdict::Rewrite];
        if !written.contains(&verdict) {
            assert_eq!(after, bytes, "{verdict:?} must not write");
        }
        (verdict, after)
    }

    pub(crate) fn ingress(&self, packet: &Packet) -> (Verdict, Vec<u8>) {
        self.run(Hook::Ingress, &packet.build(), Link::Ethernet)
    }

    pub(crate) fn egress(&self, packet: &Packet) -> (Verdict, Vec<u8>) {
        self.run(Hook::Egress, &packet.build(), Link::Ethernet)
    }

    /// The packet is translated, and the result is exactly this other packet.
    #[track_caller]
    pub(crate) fn becomes(&self, hook: Hook, from: &Packet, to: &Packet) {
        let (verdict, bytes) = self.run(hook, &from.build(), Link::Ethernet);
        assert_eq!(verdict, Verdict::Translated);
        let diff = built::diff(&to.build(), &bytes, built::Link::Ethernet);
        assert!(diff.is_empty(), "{diff}");
    }

    /// Where a packet is sent; it is translated, with right checksums.
    #[track_caller]
    pub(crate) fn sent_to(&self, packet: &Packet) -> SocketAddr {
        let (verdict, bytes) = self.ingress(packet);
        assert_eq!(verdict, Verdict::Translated);
        built::checksums_ok(&bytes, built::Link::Ethernet).unwrap();
        destination(&bytes)
    }

    /// The same packet is sent back to the client as from `vip`.
    #[track_caller]
    pub(crate) fn answers_as(&self, reply: &Packet, vip: SocketAddr) {
        let client = SocketAddr::new(reply.dst, ports(reply)[1]);
        self.becomes(Hook::Egress, reply, &readdressed(reply, vip, client));
    }

    /// A TCP connection from the client, until after its third packet; where it went.
    #[track_caller]
    pub(crate) fn connect(&self, client: SocketAddr, vip: SocketAddr) -> SocketAddr {
        let backend = self.sent_to(&packet(Protocol::Tcp, client, vip, SYN));
        self.answers_as(&packet(Protocol::Tcp, backend, client, SYN_ACK), vip);
        assert_eq!(self.sent_to(&packet(Protocol::Tcp, client, vip, ACK)), backend);
        backend
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.tables.counter(counter)
    }

    fn drops(&self) -> u64 {
        let told = [Counter::PacketTooBig, Counter::TimeExceeded];
        let drops = Counter::ALL
            .iter()
            .filter(|counter| counter.name().starts_with("drop_") || told.contains(counter));
        drops.map(|counter| self.count(*counter)).sum()
    }
}

fn ports(packet: &Packet) -> [u16; 2] {
    match packet.upper {
        Upper::Tcp { ports, .. } | Upper::Udp { ports, .. } | Upper::Sctp { ports, .. } => ports,
        Upper::Icmp { .. } | Upper::Other(_) => [0; 2],
    }
}

/// The ends of a connection: a client, a VIP and its two backends.
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) first: SocketAddr,
    pub(crate) last: SocketAddr,
}

pub(crate) fn ends_in(net: Net) -> Ends {
    Ends {
        client: at(net.client, SPORT),
        vip: at(net.vip, PORT),
        first: at(net.pod, TARGET),
        last: at(net.pod2, TARGET),
    }
}

pub(crate) fn of_two(net: Net, protocol: Protocol) -> (World, u32, Ends) {
    let ends = ends_in(net);
    let (world, id) = World::with_backends(net, protocol, &[ends.first, ends.last]);
    (world, id, ends)
}

fn lengths<const N: usize>(tables: &HostTables) -> (usize, usize)
where
    HostTables: OfFamily<N>,
{
    let length = |table| tables.flows::<N>(table).len();
    (length(FlowTable::Main), length(FlowTable::HalfOpen))
}

/// Records in the main and in the half-open table, of both families.
pub(crate) fn records(world: &World) -> (usize, usize) {
    let (four, six) = (lengths::<1>(&world.tables), lengths::<4>(&world.tables));
    (four.0 + six.0, four.1 + six.1)
}

pub(crate) fn tcp(from: SocketAddr, to: SocketAddr, flags: TcpFlags) -> Packet {
    packet(Protocol::Tcp, from, to, flags)
}

pub(crate) fn udp(from: SocketAddr, to: SocketAddr) -> Packet {
    packet(Protocol::Udp, from, to, ACK)
}

/// The words of an address in the width of a family.
pub(crate) fn ip<const N: usize>(address: &str) -> [u32; N] {
    let mut words = [0; N];
    let octets = match address.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    assert_eq!(octets.len(), N * 4, "{address} is of the other family");
    for (word, bytes) in words.iter_mut().zip(octets.chunks(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    words
}
