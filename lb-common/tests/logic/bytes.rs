//! Rewriting as such: what is done can be undone, to the last bit.

use lb_common::{
    abi::{Flow, FlowKind, V4, V6},
    packet::SlicePacket,
    parse::{Header, Headers, Ipv, Link, Network, headers, network},
    rewrite,
};
use lb_testbed::packet::{self, Packet};
use proptest::prelude::*;

use crate::setup::{ACK, NETS, Protocol, at, packet};

fn any_packet() -> impl Strategy<Value = Packet> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (
        any::<bool>(),
        protocol,
        any::<[u16; 2]>(),
        proptest::collection::vec(any::<u8>(), 0..80),
        0_usize..3,
        0_usize..4,
        any::<bool>(),
    )
        .prop_map(|(v6, protocol, [sport, dport], payload, vlans, extra, checksum)| {
            let net = NETS[usize::from(v6)];
            let mut made = packet(protocol, at(net.client, sport), at(net.vip, dport), ACK);
            if protocol == Protocol::Udp && !checksum && !v6 {
                made = made.udp_without_checksum(sport, dport);
            }
            for tag in 0..vlans {
                made = made.vlan(u16::try_from(tag).unwrap());
            }
            if v6 {
                for _ in 0..extra {
                    made = made.extension(60, &[0; 6]);
                }
            } else {
                made = made.options(&vec![1; extra * 4]);
            }
            made.payload(&payload)
        })
}

fn parsed<const N: usize>(bytes: &mut [u8], l3: usize) -> Headers<N>
where
    Ipv<N>: Header<N>,
{
    headers(&SlicePacket(bytes), l3, FlowKind::INGRESS).unwrap()
}

/// Rewrites a packet to another tuple and back; returns what it was in between.
fn there_and_back<const N: usize>(
    bytes: &mut [u8],
    l3: usize,
    to: ([u32; N], [u32; N]),
    ports: [u16; 2],
) -> Vec<u8>
where
    Ipv<N>: Header<N>,
{
    let before = parsed::<N>(bytes, l3);
    let [sport, dport] = ports;
    let there = Flow { src: to.0, dst: to.1, sport, dport, ..Flow::empty() };
    rewrite::apply(&mut SlicePacket(bytes), &before, &there).unwrap();
    let between = bytes.to_vec();
    let after = parsed::<N>(bytes, l3);
    let tuple = (after.key.src, after.key.dst, after.key.sport, after.key.dport);
    assert_eq!(tuple, (to.0, to.1, sport, dport));
    let key = before.key;
    let (sport, dport) = (key.sport, key.dport);
    let back = Flow { src: key.src, dst: key.dst, sport, dport, ..Flow::empty() };
    rewrite::apply(&mut SlicePacket(bytes), &after, &back).unwrap();
    between
}

proptest! {
    #[test]
    fn a_rewrite_keeps_checksums_right_and_its_reverse_restores_every_bit(
        made in any_packet(), addresses in any::<[u32; 8]>(), ports in any::<[u16; 2]>(),
    ) {
        let original = made.build();
        let mut bytes = original.clone();
        let [a, b, c, d, e, f, g, h] = addresses;
        let between = match network(&SlicePacket(&mut bytes), Link::Ethernet).unwrap() {
            Network::V4(l3) => there_and_back::<V4>(&mut bytes, l3, ([a], [b]), ports),
            Network::V6(l3) => {
                there_and_back::<V6>(&mut bytes, l3, ([a, b, c, d], [e, f, g, h]), ports)
            }
        };
        let checked = packet::checksums_ok(&between, packet::Link::Ethernet);
        prop_assert!(checked.is_ok(), "{checked:?}");
        let diff = packet::diff(&original, &bytes, packet::Link::Ethernet);
        prop_assert!(diff.is_empty(), "{}", diff);
    }
}
