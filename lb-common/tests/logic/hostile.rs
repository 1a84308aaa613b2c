//! Bytes from hostile senders. What is checked for every run is in `World::run`: what passes is
//! untouched, what is dropped is counted.

use lb_common::{abi::Counter, parse::Link, verdict::Verdict};
use lb_testbed::packet::Packet;
use proptest::prelude::*;

use crate::setup::{
    ACK, Hook, NETS, PORT, Protocol, SPORT, SYN, TARGET, V4, V6, World, at, packet, readdressed,
};

/// Packets to a VIP, in every shape that is translated.
fn shapes() -> Vec<(usize, Protocol, Packet)> {
    let mut shapes = Vec::new();
    for (family, net) in NETS.into_iter().enumerate() {
        for protocol in Protocol::BOTH {
            let plain = packet(protocol, at(net.client, SPORT), at(net.vip, PORT), SYN);
            shapes.push((family, protocol, plain.clone().vlan(1).vlan(2)));
            let long = if family == 0 {
                plain.clone().options(&[1; 40])
            } else {
                plain.clone().extension(0, &[0; 6]).extension(60, &[0; 14])
            };
            shapes.push((family, protocol, long));
            shapes.push((family, protocol, plain));
        }
    }
    shapes
}

#[test]
fn a_packet_cut_anywhere_is_translated_as_far_as_it_goes_or_left_alone() {
    for (family, protocol, whole) in shapes() {
        let net = NETS[family];
        let bytes = whole.build();
        let there = readdressed(&whole, at(net.client, SPORT), at(net.pod, TARGET)).build();
        for established in [false, true] {
            for length in 0..bytes.len() {
                let (world, _) = World::single(net, protocol);
                if established {
                    world.ingress(&whole);
                }
                let cut = &bytes[..length];
                let (verdict, after) = world.run(Hook::Ingress, cut, Link::Ethernet);
                match verdict {
                    Verdict::Translated => assert_eq!(after, there[..length]),
                    Verdict::Rewrite => {
                        assert_eq!(after, cut, "dropped, and still nothing was written");
                        assert_eq!(world.count(Counter::DropRewrite), 1);
                    }
                    Verdict::Unparsed => assert_eq!(after, cut),
                    other => panic!("{other:?} at {length} bytes"),
                }
            }
        }
    }
}

#[test]
fn a_reply_cut_anywhere_is_translated_as_far_as_it_goes_or_left_alone() {
    for net in NETS {
        for protocol in Protocol::BOTH {
            let (client, vip, pod) =
                (at(net.client, SPORT), at(net.vip, PORT), at(net.pod, TARGET));
            let (world, _) = World::single(net, protocol);
            world.ingress(&packet(protocol, client, vip, SYN));
            let whole = packet(protocol, pod, client, ACK);
            let (bytes, back) = (whole.build(), readdressed(&whole, vip, client).build());
            for length in 0..bytes.len() {
                let (verdict, after) = world.run(Hook::Egress, &bytes[..length], Link::Ethernet);
                let expected =
                    if verdict == Verdict::Translated { &back[..length] } else { &bytes[..length] };
                assert_eq!(after, expected, "{verdict:?} at {length} bytes");
            }
        }
    }
}

/// A world with Services of both families and a flow of each.
fn busy() -> World {
    let world = World::default();
    for net in NETS {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let (vip, pod) = (at(net.vip, PORT), at(net.pod, TARGET));
            world.tables.add_service_port(protocol.number(), &[vip], &[pod]);
            world.ingress(&packet(protocol, at(net.client, SPORT), vip, SYN));
        }
    }
    world
}

proptest! {
    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
        let world = busy();
        for link in [Link::Ethernet, Link::None] {
            for hook in [Hook::Ingress, Hook::Egress] {
                let (_, after) = world.run(hook, &bytes, link);
                prop_assert_eq!(after.len(), bytes.len());
            }
        }
    }

    #[test]
    fn packets_with_some_bytes_changed(
        shape in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let all = shapes();
        let (_, _, whole) = shape.get(&all);
        let mut bytes = whole.build();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let world = busy();
        for hook in [Hook::Ingress, Hook::Egress] {
            let (verdict, after) = world.run(hook, &bytes, Link::Ethernet);
            prop_assert_eq!(after.len(), bytes.len());
            if verdict == Verdict::Translated {
                // Behind a TCP header with its checksum nothing is ever written.
                let first_payload_byte = bytes.len().min(14 + 8 + 40 + 1024 + 18);
                prop_assert_eq!(&after[first_payload_byte..], &bytes[first_payload_byte..]);
                prop_assert_eq!(&after[..12], &bytes[..12], "only a hairpin swaps addresses");
            }
        }
    }
}

#[test]
fn foreign_traffic_is_identical_at_both_hooks_with_flows_around() {
    let world = busy();
    for net in [V4, V6] {
        for protocol in Protocol::BOTH {
            for flags in [SYN, ACK] {
                for (from, to) in [(net.foreign, net.client), (net.client, net.foreign)] {
                    let foreign = packet(protocol, at(from, 443), at(to, SPORT), flags);
                    assert_eq!(world.ingress(&foreign), (Verdict::NotService, foreign.build()));
                    assert_eq!(world.egress(&foreign), (Verdict::NotService, foreign.build()));
                }
            }
        }
    }
}

#[test]
fn foreign_traffic_costs_no_lookup_where_no_flow_was_made() {
    let (world, _) = World::single(V4, Protocol::Tcp);
    let foreign = packet(Protocol::Tcp, at(V4.foreign, 443), at(V4.client, SPORT), ACK);
    world.tables.reset_costs();
    world.ingress(&foreign);
    world.egress(&foreign);
    assert_eq!(world.tables.costs(), lb_common::host::Costs::default());
}
