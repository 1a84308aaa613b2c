//! Headers of every shape: each is translated to exactly the packet that a builder makes of the
//! other addresses, or passes as it is.

use lb_common::{
    abi::Counter,
    host::{Words, words},
    parse::Link,
    tables::FlowTables,
    verdict::Verdict,
};
use lb_testbed::packet::{Packet, TcpFlags};

use crate::setup::{
    ACK, Hook, NETS, Net, PORT, Protocol, SPORT, SYN, TARGET, V4, V6, World, at, packet,
    readdressed,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const AUTHENTICATION: u8 = 51;

fn opening(net: Net, protocol: Protocol) -> Packet {
    packet(protocol, at(net.client, SPORT), at(net.vip, PORT), SYN)
}

#[track_caller]
fn goes_to_the_pod(net: Net, protocol: Protocol, packet: &Packet) {
    let (world, _) = World::single(net, protocol);
    let there = readdressed(packet, at(net.client, SPORT), at(net.pod, TARGET));
    world.becomes(Hook::Ingress, packet, &there);
}

#[track_caller]
fn passes(net: Net, packet: &Packet, reason: Verdict) {
    let (world, _) = World::single(net, Protocol::Tcp);
    for hook in [Hook::Ingress, Hook::Egress] {
        // Without any flow egress does not look at a packet, nor at one from who is no flow's backend.
        world.ingress(&opening(net, Protocol::Tcp));
        match words(packet.src) {
            Words::V4(ip) => world.tables.note_flows(&ip, false),
            Words::V6(ip) => world.tables.note_flows(&ip, false),
        }
        let (verdict, bytes) = world.run(hook, &packet.build(), Link::Ethernet);
        assert_eq!(verdict, reason, "{hook:?}");
        assert_eq!(bytes, packet.build());
    }
}

#[test]
fn a_first_packet_and_its_reply() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let (world, _) = World::single(net, protocol);
            let (client, vip, pod) =
                (at(net.client, SPORT), at(net.vip, PORT), at(net.pod, TARGET));
            let first = packet(protocol, client, vip, SYN);
            world.becomes(Hook::Ingress, &first, &readdressed(&first, client, pod));
            let reply = packet(protocol, pod, client, crate::setup::SYN_ACK);
            world.becomes(Hook::Egress, &reply, &readdressed(&reply, vip, client));
            assert_eq!(world.count(Counter::FlowCreated), 1);
        }
    }
}

#[test]
fn up_to_two_vlan_tags() {
    for net in NETS {
        let mut tagged = opening(net, Protocol::Tcp);
        for tags in 0..=2 {
            assert_eq!(tagged.vlans.len(), tags);
            goes_to_the_pod(net, Protocol::Tcp, &tagged);
            tagged = tagged.vlan(7);
        }
        passes(net, &tagged, Verdict::Unparsed);
        let mut service_tag = opening(net, Protocol::Tcp).vlan(9);
        service_tag.vlans.insert(0, (0x88a8, 5));
        goes_to_the_pod(net, Protocol::Tcp, &service_tag);
    }
}

#[test]
fn without_an_ethernet_header() {
    for net in NETS {
        let (world, _) = World::single(net, Protocol::Udp);
        let (client, pod) = (at(net.client, SPORT), at(net.pod, TARGET));
        let first = opening(net, Protocol::Udp).without_ethernet();
        let there = readdressed(&first, client, pod);
        let (verdict, bytes) = world.run(Hook::Ingress, &first.build(), Link::None);
        assert_eq!((verdict, bytes), (Verdict::Translated, there.build()));
        let reply = packet(Protocol::Udp, pod, client, ACK).without_ethernet();
        let back = readdressed(&reply, at(net.vip, PORT), client);
        let (verdict, bytes) = world.run(Hook::Egress, &reply.build(), Link::None);
        assert_eq!((verdict, bytes), (Verdict::Translated, back.build()));
        // An Ethernet frame there has neither version 4 nor 6 in its first byte.
        let (verdict, _) =
            world.run(Hook::Ingress, &opening(net, Protocol::Udp).build(), Link::None);
        assert_eq!(verdict, Verdict::NotTransport);
    }
}

#[test]
fn ipv4_options_of_every_length() {
    for words in 1..=10 {
        let options = vec![1; words * 4];
        for protocol in Protocol::BOTH {
            goes_to_the_pod(V4, protocol, &opening(V4, protocol).options(&options));
        }
    }
}

#[test]
fn tcp_options_are_payload_to_us() {
    for net in NETS {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0];
        goes_to_the_pod(net, Protocol::Tcp, &opening(net, Protocol::Tcp).tcp_options(&options));
    }
}

#[test]
fn ipv6_extension_headers_up_to_a_bound() {
    for protocol in Protocol::BOTH {
        let mut extended = opening(V6, protocol);
        for (count, kind) in [HOP_BY_HOP, ROUTING, DESTINATION, DESTINATION].into_iter().enumerate()
        {
            // The second byte of the content is a routing header's count of segments left.
            extended = extended.extension(kind, &vec![0; 6 + 8 * count]);
            goes_to_the_pod(V6, protocol, &extended);
        }
        passes(V6, &extended.extension(DESTINATION, &[0; 6]), Verdict::Unparsed);
    }
}

#[test]
fn ipv6_extension_headers_that_hide_the_ports() {
    let syn = opening(V6, Protocol::Tcp);
    // Authentication covers addresses; what is encrypted or unknown has no ports.
    passes(V6, &syn.clone().extension(AUTHENTICATION, &[0; 10]), Verdict::NotTransport);
    passes(V6, &syn.clone().extension(50, &[0; 6]), Verdict::NotTransport);
    // Segments left: the checksum covers the last segment's address, not the one in the header.
    passes(V6, &syn.clone().extension(ROUTING, &[0, 1, 0, 0, 0, 0]), Verdict::NotTransport);
    // Too long: the transport header begins behind what we look at.
    passes(V6, &syn.extension(DESTINATION, &[0; 1022]), Verdict::Unparsed);
}

#[test]
fn c_7_fragments_follow_the_first_one_which_has_the_ports() {
    for net in NETS {
        let client = at(net.client, SPORT);
        let datagram = opening(net, Protocol::Udp).payload(&[7; 100]);
        let there = readdressed(&datagram, client, at(net.pod, TARGET));
        let (world, _) = World::single(net, Protocol::Udp);
        for (fragment, expected) in datagram.fragments(64).iter().zip(there.fragments(64)) {
            let (verdict, bytes) = world.run(Hook::Ingress, fragment, Link::Ethernet);
            assert_eq!((verdict, bytes), (Verdict::Translated, expected));
        }
        // Another datagram, whose first fragment is still on its way.
        let mut late = datagram.fragments(64).remove(1);
        let id = if net.vip.contains(':') { 14 + 40 + 7 } else { 14 + 5 };
        late[id] ^= 1;
        assert_eq!(world.run(Hook::Ingress, &late, Link::Ethernet).1, late, "untouched");
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    // In IPv6 it is not allowed (RFC 8200 section 8.1), but neither is it ours to invent one.
    for net in NETS {
        let first = packet(Protocol::Udp, at(net.client, SPORT), at(net.vip, PORT), SYN)
            .udp_without_checksum(SPORT, PORT);
        goes_to_the_pod(net, Protocol::Udp, &first);
    }
}

#[test]
fn sctp_keeps_its_ports() {
    for net in NETS {
        let client = at(net.client, SPORT);
        let first = packet(Protocol::Sctp, client, at(net.vip, PORT), SYN);
        let (world, _) = World::with_backends(net, Protocol::Sctp, &[at(net.pod, PORT)]);
        world.becomes(Hook::Ingress, &first, &readdressed(&first, client, at(net.pod, PORT)));
        let reply = packet(Protocol::Sctp, at(net.pod, PORT), client, SYN);
        world.answers_as(&reply, at(net.vip, PORT));

        let (world, _) = World::single(net, Protocol::Sctp);
        assert_eq!(world.ingress(&first).0, Verdict::SctpPort);
        assert_eq!(world.tables.costs().map_updates, 0, "no record of what is dropped");
    }
}

#[test]
fn what_is_not_ours_passes() {
    for net in NETS {
        let between = |from, to, protocol| packet(protocol, at(from, 1), at(to, PORT), SYN);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            passes(net, &between(net.client, net.foreign, protocol), Verdict::NotService);
            passes(net, &between(net.foreign, net.client, protocol), Verdict::NotService);
        }
        // Another port, another protocol of a VIP.
        let other = packet(Protocol::Tcp, at(net.client, 1), at(net.vip, PORT + 1), SYN);
        passes(net, &other, Verdict::NotService);
        passes(net, &between(net.client, net.vip, Protocol::Udp), Verdict::NotService);
        let other = Packet::new(net.client, net.vip).other(47).payload(&[0; 40]);
        passes(net, &other, Verdict::NotTransport);
    }
    let mut arp = opening(V4, Protocol::Tcp).build();
    arp[12..14].copy_from_slice(&0x0806_u16.to_be_bytes());
    let (world, _) = World::single(V4, Protocol::Tcp);
    assert_eq!(world.run(Hook::Ingress, &arp, Link::Ethernet).0, Verdict::NotTransport);
}

#[test]
fn headers_that_contradict_themselves_pass() {
    let (world, _) = World::single(V4, Protocol::Tcp);
    let good = opening(V4, Protocol::Tcp).build();
    let ip = 14;
    let spoil = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        let (verdict, _) = world.run(Hook::Ingress, &bytes, Link::Ethernet);
        assert_eq!(verdict, Verdict::Unparsed, "byte {at} = {value:#x}");
    };
    spoil(ip, 0x65); // version 6 under the EtherType of IPv4
    spoil(ip, 0x44); // a header of 16 bytes
    spoil(ip + 3, 19); // a packet shorter than its header
    spoil(ip + 3, 39); // no room for a TCP header
    let (world, _) = World::single(V6, Protocol::Tcp);
    let mut bytes = opening(V6, Protocol::Tcp).build();
    bytes[ip + 5] = 19;
    assert_eq!(world.run(Hook::Ingress, &bytes, Link::Ethernet).0, Verdict::Unparsed);
}

#[test]
fn flags_other_than_syn_do_not_open() {
    for net in NETS {
        for flags in 0..64 {
            let (world, _) = World::single(net, Protocol::Tcp);
            let segment =
                packet(Protocol::Tcp, at(net.client, SPORT), at(net.vip, PORT), TcpFlags(flags));
            let opens = flags & 0x12 == 0x02;
            let expected = if opens { Verdict::Translated } else { Verdict::NoFlow };
            assert_eq!(world.ingress(&segment).0, expected, "flags {flags:#04x}");
            assert_eq!(world.count(Counter::DropNoFlow), u64::from(!opens));
        }
    }
}
