//! What comes from outside to an address of Services and is nothing that Services know (contract V-12,
//! production case 45).

use lb_common::{
    abi::{AddressFlags, Counter, REFUSALS_PER_TICK},
    decide,
    packet::{ChecksumChange, SlicePacket},
    parse::Link,
    tables::RouteStatus,
    verdict::Verdict,
};
use lb_testbed::packet::Packet;

use crate::outside_setup::{Outside, POD, UPLINK, route};
use crate::setup::{ACK, NETS, Net, PORT, Protocol, SYN, TARGET, at, packet};

const GRE: u8 = 47;
const ESP: u8 = 50;
const NO_NEXT_HEADER: u8 = 59;

/// Packets to the VIP that no Service takes.
fn strays(net: Net) -> Vec<(&'static str, Packet)> {
    let v6 = net.vip.contains(':');
    let to = || Packet::new(net.client, net.vip);
    let about = packet(Protocol::Udp, at(net.vip, PORT), at(net.client, 7), ACK);
    let (answer, error, quoted) = if v6 { (129, 1, 48) } else { (0, 3, 28) };
    let mut strays = vec![
        ("GRE", to().other(GRE).payload(&[0; 40])),
        ("ESP", to().other(ESP).payload(&[7; 40])),
        ("no bytes at all", to().other(GRE)),
        ("half a UDP header", to().other(17).payload(&[0, 80, 0, 80])),
        ("half a TCP header", to().other(6).payload(&[1; 12])),
        ("an answer to no ping", to().icmp(answer, 0, [0, 1, 0, 1])),
        ("an unknown message", to().icmp(200, 0, [0; 4])),
        ("an error about no flow", to().icmp_error(error, 1, [0; 4], &about, quoted)),
        ("an error about nothing", to().icmp(error, 1, [0; 4])),
    ];
    if v6 {
        let hidden = to().extension(0, &[0; 6]).extension(60, &[0; 6]);
        strays.push(("no next header", to().other(NO_NEXT_HEADER)));
        strays
            .push(("a way with stops", to().extension(43, &[0, 1, 0, 0, 0, 0]).tcp(7, PORT, SYN)));
        let later = hidden.extension(44, &[1, 0, 0, 0, 0, 7]);
        strays.push(("a hidden fragment", later.other(17).payload(&[0; 40])));
    } else {
        strays.push(("router advertisement", to().icmp(9, 0, [0; 4])));
    }
    strays
}

fn verdict(outside: &Outside, ifindex: u32, packet: &Packet) -> Verdict {
    outside.tables().set_interface(ifindex);
    outside.world.ingress(packet).0
}

#[test]
fn v_12_case_45_nothing_goes_in_circles_between_the_node_and_its_router() {
    for net in NETS {
        for (what, packet) in strays(net) {
            let outside = Outside::new(net, Protocol::Tcp);
            assert_eq!(verdict(&outside, UPLINK, &packet), Verdict::UndefinedPort, "{what}");
            // From a pod it leaves by another interface than it came by.
            let left = verdict(&outside, POD, &packet);
            assert!(left.drop_counter().is_none(), "{what}: {left:?}");
            // What the interface of a VLAN will see.
            let tagged = packet.clone().vlan(7);
            assert_eq!(verdict(&outside, UPLINK, &tagged), left, "{what}");
            // C-4: an address that the node has itself.
            let both = AddressFlags::VIP | AddressFlags::HOST;
            outside.tables().set_address(outside.vip().ip(), both);
            assert_eq!(verdict(&outside, UPLINK, &packet), left, "{what}");
        }
    }
}

/// The first of several fragments is known by no ports either.
#[test]
fn v_12_case_45_no_fragment_goes_in_circles() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let gre = Packet::new(net.client, net.vip).other(GRE).payload(&[0; 80]);
        for (bytes, expected) in
            gre.fragments(40).iter().zip([Verdict::UndefinedPort, Verdict::EarlyFragment])
        {
            outside.tables().set_interface(UPLINK);
            let hook = crate::setup::Hook::Ingress;
            assert_eq!(outside.world.run(hook, bytes, Link::Ethernet).0, expected);
        }
    }
}

/// Where the agent of a load balancer has told the node by a `local` route that the address is its own,
/// the stack answers: so are the probes of a health check port at it.
#[test]
fn what_a_local_route_takes_goes_into_the_stack() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        route(outside.tables(), net.vip, 0, RouteStatus::Local, 0);
        for (what, packet) in strays(net) {
            let verdict = verdict(&outside, UPLINK, &packet);
            assert!(verdict.drop_counter().is_none(), "{what}: {verdict:?}");
        }
        for flags in [SYN, ACK] {
            let probe = packet(Protocol::Tcp, outside.client(), at(net.vip, TARGET + 1), flags);
            assert_eq!(verdict(&outside, UPLINK, &probe), Verdict::NotService);
        }
        // A port of a Service is served all the same.
        assert_eq!(verdict(&outside, UPLINK, &outside.asks(SYN)), Verdict::Forwarded);
    }
}

/// RFC 4861 section 7.1: what a router on the link asks its neighbours itself.
#[test]
fn neighbour_discovery_is_left_to_who_answers_for_the_vip() {
    let net = NETS[1];
    let outside = Outside::new(net, Protocol::Tcp);
    let asks = Packet::new(net.client, net.vip).icmp(135, 0, [0; 4]).payload(&[7; 16]);
    assert_eq!(verdict(&outside, UPLINK, &asks.clone().ttl(255)), Verdict::NotTransport);
    assert_eq!(verdict(&outside, UPLINK, &asks.ttl(254)), Verdict::UndefinedPort);
}

/// A ping of the VIP.
fn ping(net: Net, from: &str) -> Packet {
    let kind = if net.vip.contains(':') { 128 } else { 8 };
    Packet::new(from, net.vip).icmp(kind, 0, [0, 1, 0, 1]).payload(b"ping")
}

/// A frame that this machine hears and was not meant for it alone.
struct Overheard<'a>(SlicePacket<'a>);

impl lb_common::packet::Packet for Overheard<'_> {
    fn u8(&self, at: usize) -> Option<u8> {
        self.0.u8(at)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.0.u16(at)
    }

    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        self.0.words(at)
    }

    fn set_u16(&mut self, at: usize, value: u16) -> Option<()> {
        self.0.set_u16(at, value)
    }

    fn set_words<const N: usize>(&mut self, at: usize, value: &[u32; N]) -> Option<()> {
        self.0.set_words(at, value)
    }

    fn adjust_checksum(&mut self, at: usize, change: &ChecksumChange) -> Option<()> {
        self.0.adjust_checksum(at, change)
    }

    fn for_others(&self) -> bool {
        true
    }
}

/// A ping to all machines of a link is answered by none, nor is one of another VLAN, nor one from nobody.
#[test]
fn pings_are_answered_as_far_as_flows_would_begin() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Tcp);
        let asks = ping(net, net.client);
        assert_eq!(verdict(&outside, UPLINK, &asks), Verdict::Reflected);
        assert_eq!(verdict(&outside, UPLINK, &asks.clone().vlan(7)), Verdict::NotService);
        let group = if net.vip.contains(':') { "ff02::1" } else { "224.0.0.1" };
        assert_eq!(verdict(&outside, UPLINK, &ping(net, group)), Verdict::NotService);
        let mut bytes = asks.build();
        let heard = decide::ingress(
            &mut Overheard(SlicePacket(&mut bytes)),
            outside.tables(),
            Link::Ethernet,
        );
        assert_eq!((heard, bytes), (Verdict::NotService, asks.build()));
    }
}

/// As many as refusals, so that nobody is flooded through us; those beyond are dropped.
#[test]
fn pings_are_answered_as_often_as_others_are_told() {
    let net = NETS[0];
    let outside = Outside::new(net, Protocol::Tcp);
    for _ in 0..REFUSALS_PER_TICK {
        assert_eq!(verdict(&outside, UPLINK, &ping(net, net.client)), Verdict::Reflected);
    }
    assert_eq!(verdict(&outside, UPLINK, &ping(net, net.client)), Verdict::UndefinedPort);
    outside.tables().advance(1);
    assert_eq!(verdict(&outside, UPLINK, &ping(net, net.client)), Verdict::Reflected);
    assert_eq!(outside.world.count(Counter::EchoAnswered), u64::from(REFUSALS_PER_TICK) + 1);
}
