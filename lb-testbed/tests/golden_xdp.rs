//! Golden packets that are sent on: what XDP makes of them is what tc makes of them and what the host
//! decides, byte for byte and record for record; and all else is passed as it came.
//!
//! In a network namespace with two links, because routes and neighbours are the kernel's own.

use std::{net::IpAddr, net::SocketAddr, os::fd::AsFd as _};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{AddressFlags, BackendFlags, Counter, Interface, InterfaceFlags},
    early,
    host::{HostPacket, HostRoute, HostTables, Words, words},
    parse,
    tables::RouteStatus,
    verdict::Verdict,
};
use lb_object::Settings;
use lb_testbed::{
    golden,
    netns::Netns,
    packet::{self, Link, Packet},
    require,
    testrun::{
        self, Output,
        kernel::{Kernel, flows_on_host},
    },
    traffic::{ACK, PORT, Protocol, SPORT, SYN, SYN_ACK, TARGET, at, packet as build},
};

const PASS: u32 = 2;
const TX: u32 = 3;
const REDIRECT: u32 = 4;
const TC_REDIRECT: u32 = 7;
/// Ethernet addresses: the next hop and our own, as on the first link and on the second.
const HOPS: [[u8; 12]; 2] =
    [[2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0x12, 2, 0, 0, 0, 0, 0x0b]];

/// Addresses of one family; the second backend is behind the second link.
struct Net {
    node: &'static str,
    client: &'static str,
    vip: &'static str,
    far: &'static str,
    other: &'static str,
    here: &'static str,
    strange: &'static str,
}

const NETS: [Net; 2] = [
    Net {
        node: "172.18.0.10",
        client: "192.0.2.10",
        vip: "203.0.113.1",
        far: "10.244.1.10",
        other: "10.244.2.10",
        here: "10.244.0.10",
        strange: "10.244.7.7",
    },
    Net {
        node: "fd00:172:18::10",
        client: "2001:db8:2::10",
        vip: "2001:db8:8::1",
        far: "fd00:10:244:1::a",
        other: "fd00:10:244:2::a",
        here: "fd00:10:244::a",
        strange: "fd00:10:244:7::7",
    },
];

/// A node in a namespace, the programs, and the same on the host.
struct World<'a> {
    netns: &'a Netns,
    links: [u32; 2],
    kernel: Kernel,
    tables: HostTables,
}

impl<'a> World<'a> {
    /// In the namespace of this thread.
    fn new(netns: &'a Netns) -> Result<Self> {
        netns.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        for (link, own, hop, v4, v6) in [
            ("u0", "0a", "11", "172.18.0", "fd00:172:18:"),
            ("u1", "0b", "12", "172.19.0", "fd00:172:19:"),
        ] {
            netns.ip(&format!(
                "link add {link} address 02:00:00:00:00:{own} type veth peer name {link}p\n\
                 addr add {v4}.10/24 dev {link}\n\
                 addr add {v6}:10/64 dev {link} nodad\n\
                 link set {link} up\n\
                 link set {link}p up\n\
                 neigh add {v4}.1 lladdr 02:00:00:00:00:{hop} dev {link} nud permanent\n\
                 neigh add {v6}:1 lladdr 02:00:00:00:00:{hop} dev {link} nud permanent"
            ))?;
        }
        netns.ip("route add default via 172.18.0.1\n\
             route add ::/0 via fd00:172:18::1\n\
             route add 10.244.2.0/24 via 172.19.0.1\n\
             route add fd00:10:244:2::/64 via fd00:172:19::1")?;
        let links = [netns.ifindex("u0")?, netns.ifindex("u1")?];
        let mut kernel = Kernel::prepare(&Settings::probe())?;
        for program in ["xdp_ingress", "tc_ingress"] {
            kernel.load(program)?;
        }
        kernel.fill_program_array()?;
        Ok(Self { netns, links, kernel, tables: HostTables::new() })
    }

    /// Without any flow. `with_xdp` says whether packets may leave by the second link from XDP.
    fn reset(&mut self, with_xdp: bool) -> Result<()> {
        self.tables = HostTables::new();
        let tables = &self.tables;
        tables.set_interface(self.links[0]);
        for (link, flags) in [
            (self.links[0], InterfaceFlags::OFF_NODE | InterfaceFlags::XDP),
            (
                self.links[1],
                InterfaceFlags::OFF_NODE | if with_xdp { InterfaceFlags::XDP } else { 0 },
            ),
        ] {
            let mut interface = Interface { flags, group: link, mtu: 1500, ..Interface::default() };
            for net in &NETS {
                match words(ip(net.node)?) {
                    Words::V4([ip]) => interface.v4[0] = ip,
                    Words::V6(ip) => interface.v6[0] = ip,
                }
            }
            tables.set_host_interface(link, interface);
        }
        for net in &NETS {
            tables.set_address(ip(net.node)?, AddressFlags::HOST);
            let to = |egress| HostRoute { status: RouteStatus::Found, egress, mtu: 1500 };
            tables.add_route(ip(net.far)?, 0, to(self.links[0]));
            tables.add_route(ip(net.other)?, 0, to(self.links[1]));
            for link in [0, self.links[0]] {
                tables.add_route(ip(net.client)?, link, to(self.links[0]));
            }
            for protocol in Protocol::BOTH {
                for (backend, port) in
                    [(net.far, PORT), (net.other, PORT + 1), (net.here, PORT + 2)]
                {
                    let vip = at(net.vip, port);
                    let id =
                        tables.add_service_port(protocol.number(), &[vip], &[at(backend, TARGET)]);
                    if backend == net.here {
                        for backend in tables.backends_of(id, lb_common::abi::Scope::Cluster) {
                            tables.set_flags(backend, BackendFlags::LOCAL);
                        }
                    }
                }
            }
        }
        self.tables.keep_neighbours();
        self.look_after_neighbours()?;
        self.kernel.reset()?;
        self.kernel.fill(&self.tables)
    }

    /// Gives the kernel a packet for each next hop; XDP leaves what goes to others.
    fn look_after_neighbours(&mut self) -> Result<()> {
        self.kernel.fill(&self.tables)?;
        for net in &NETS {
            for port in [PORT, PORT + 1] {
                let from = at(net.client, SPORT - 1);
                let packet = frame(Protocol::Udp, from, at(net.vip, port), SYN).build();
                let ran = self.kernel.run_at("tc_ingress", &packet, self.links[0])?;
                ensure!(ran.verdict == TC_REDIRECT, "tc returned {}", ran.verdict);
            }
        }
        Ok(())
    }

    /// What XDP does to a packet, in the kernel as on the host, with the records that both make.
    fn early(&mut self, input: &[u8]) -> Result<(Verdict, Output)> {
        let mut on_host = HostPacket(input.to_vec());
        let before = self.kernel.counters()?;
        let host_before = self.tables.counters();
        let verdict = early::ingress(&mut on_host, &self.tables, parse::Link::Ethernet);
        let ran = self.kernel.run_at("xdp_ingress", input, self.links[0])?;
        if verdict == Verdict::Forwarded {
            let diff = packet::diff(&on_host.0[14..], &ran.data[14..], Link::None);
            ensure!(diff.is_empty(), "XDP against the host: {diff}");
            packet::checksums_ok(&ran.data, Link::Ethernet)?;
        } else {
            ensure!(on_host.0 == input, "the host changed what it leaves: {verdict:?}");
            ensure!((ran.verdict, &ran.data[..]) == (PASS, input), "{verdict:?}: {}", ran.verdict);
        }
        let counted = golden::difference(&before, &self.kernel.counters()?);
        let on_host = golden::difference(&host_before, &self.tables.counters());
        ensure!(counted == on_host, "counted {counted:?} instead of {on_host:?}");
        let (flows, on_host) = (self.kernel.flows()?, flows_on_host(&self.tables));
        ensure!(flows == on_host, "records {flows:?} instead of {on_host:?}");
        Ok((verdict, ran))
    }

    /// A packet that is passed as it came.
    fn left(&mut self, input: &[u8]) -> Result<()> {
        let (verdict, _) = self.early(input)?;
        ensure!(verdict != Verdict::Forwarded, "it is sent on");
        Ok(())
    }
}

fn ip(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| text.to_owned())
}

fn frame(protocol: Protocol, from: SocketAddr, to: SocketAddr, flags: packet::TcpFlags) -> Packet {
    let packet = build(protocol, from, to, flags);
    Packet { macs: [[2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0x11]], ..packet }
}

/// The drivers of these links have queues for test runs only while a program is attached.
fn attached(world: &World<'_>) -> Result<Vec<std::os::fd::OwnedFd>> {
    let program = testrun::load_empty(testrun::Kind::Xdp, PASS.cast_signed(), 0)?;
    world.links.iter().map(|link| testrun::attach_xdp(program.as_fd(), *link)).collect()
}

#[test]
fn xdp_sends_on_as_tc_and_the_host_do() -> Result<()> {
    in_world("xdp_sends_on_as_tc_and_the_host_do", |world| {
        for net in &NETS {
            for protocol in Protocol::BOTH {
                let what = || format!("{protocol:?} to {}", net.vip);
                flow(world, net, protocol).with_context(what)?;
            }
        }
        Ok(())
    })
}

/// Request and reply of a flow, the first at tc too: there nothing may be different.
fn flow(world: &mut World<'_>, net: &Net, protocol: Protocol) -> Result<()> {
    let client = at(net.client, SPORT);
    let request = |flags| frame(protocol, client, at(net.vip, PORT), flags).build();
    world.reset(true)?;
    let by_tc = world.kernel.run_at("tc_ingress", &request(SYN), world.links[0])?;
    ensure!(by_tc.verdict == TC_REDIRECT, "tc returned {}", by_tc.verdict);

    world.reset(true)?;
    let (verdict, first) = world.early(&request(SYN))?;
    ensure!((verdict, first.verdict) == (Verdict::Forwarded, TX), "{verdict:?} {}", first.verdict);
    ensure!(first.data.starts_with(&HOPS[0]), "to {:x?}", &first.data[..12]);
    let diff = packet::diff(&by_tc.data, &first.data, Link::Ethernet);
    ensure!(diff.is_empty(), "XDP against tc: {diff}");
    let parsed = packet::parse(&first.data, Link::Ethernet)?;
    let [sport, dport] = parsed.ports.context("ports")?;
    ensure!((parsed.src, parsed.dst, dport) == (ip(net.node)?, ip(net.far)?, TARGET), "{parsed:?}");

    let reply = frame(protocol, at(net.far, TARGET), at(net.node, sport), SYN_ACK).build();
    let (verdict, back) = world.early(&reply)?;
    ensure!((verdict, back.verdict) == (Verdict::Forwarded, TX), "{verdict:?} {}", back.verdict);
    let parsed = packet::parse(&back.data, Link::Ethernet)?;
    ensure!((parsed.src, parsed.dst) == (ip(net.vip)?, ip(net.client)?), "{parsed:?}");
    ensure!(parsed.ports == Some([PORT, SPORT]), "{parsed:?}");
    // And an established packet, each way.
    for packet in
        [request(ACK), frame(protocol, at(net.far, TARGET), at(net.node, sport), ACK).build()]
    {
        let (verdict, ran) = world.early(&packet)?;
        ensure!((verdict, ran.verdict) == (Verdict::Forwarded, TX), "{verdict:?} {}", ran.verdict);
    }
    Ok(())
}

#[test]
fn xdp_sends_out_of_another_link_only_if_that_has_xdp() -> Result<()> {
    in_world("xdp_sends_out_of_another_link_only_if_that_has_xdp", |world| {
        for net in &NETS {
            for protocol in Protocol::BOTH {
                let to = at(net.vip, PORT + 1);
                let packet = frame(protocol, at(net.client, SPORT), to, SYN).build();
                world.reset(true)?;
                let (verdict, ran) = world.early(&packet)?;
                ensure!(
                    (verdict, ran.verdict) == (Verdict::Forwarded, REDIRECT),
                    "{verdict:?} {}",
                    ran.verdict
                );
                ensure!(ran.data.starts_with(&HOPS[1]), "to {:x?}", &ran.data[..12]);
                world.reset(false)?;
                let left = world.tables.counter(Counter::XdpLeft);
                world.left(&packet)?;
                ensure!(world.tables.counter(Counter::XdpLeft) == left + 1, "not counted");
            }
        }
        Ok(())
    })
}

#[test]
fn xdp_leaves_what_is_not_positively_its_own() -> Result<()> {
    in_world("xdp_leaves_what_is_not_positively_its_own", |world| {
        for net in &NETS {
            for protocol in Protocol::BOTH {
                world.reset(true)?;
                let client = at(net.client, SPORT);
                let vip = at(net.vip, PORT);
                let packet = |to| frame(protocol, client, to, SYN);
                // A backend here: recorded, and left.
                world.left(&packet(at(net.vip, PORT + 2)).build())?;
                ensure!(world.kernel.flows()?.len() == 2, "tc would choose again");
                // No port of the Service, no Service at all.
                world.left(&packet(at(net.vip, 7)).build())?;
                world.left(&packet(at(net.strange, PORT)).build())?;
                // A frame to a group; the host knows nothing of frames.
                let mut group = packet(vip).build();
                group[0] |= 1;
                let ran = world.kernel.run_at("xdp_ingress", &group, world.links[0])?;
                ensure!((ran.verdict, &ran.data) == (PASS, &group), "a group: {}", ran.verdict);
                // The last hop.
                world.left(&Packet { ttl: 1, ..packet(vip) }.build())?;
                // Cut off anywhere in its headers.
                let whole = packet(vip).build();
                let network = if client.is_ipv4() { 20 } else { 40 };
                // Of TCP, all but the urgent pointer.
                let transport = if protocol == Protocol::Tcp { 18 } else { 8 };
                for length in 14..14 + network + transport {
                    world.left(whole.get(..length).context("a part")?)?;
                }
            }
        }
        Ok(())
    })
}

/// Case 52, and frames of VLANs, in bytes.
#[test]
fn case_52_arp_ndp_and_tagged_frames_are_passed_as_they_came() -> Result<()> {
    in_world("case_52_arp_ndp_and_tagged_frames_are_passed_as_they_came", |world| {
        world.reset(true)?;
        let mut arp = vec![0xff; 6];
        arp.extend([2, 0, 0, 0, 0, 0x11, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0x11]);
        arp.extend([172, 18, 0, 1, 0, 0, 0, 0, 0, 0, 172, 18, 0, 10]);
        arp.resize(60, 0);
        world.left(&arp)?;
        for net in &NETS {
            let whole = frame(Protocol::Udp, at(net.client, SPORT), at(net.vip, PORT), SYN).build();
            let mut tagged = whole[..12].to_vec();
            tagged.extend([0x81, 0, 0, 7]);
            tagged.extend(&whole[12..]);
            world.left(&tagged)?;
        }
        // A neighbour solicitation for the node's own address.
        let mut ndp = vec![0x33, 0x33, 0xff, 0, 0, 0x10, 2, 0, 0, 0, 0, 0x11, 0x86, 0xdd];
        ndp.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
        ndp.extend("fd00:172:18::1".parse::<std::net::Ipv6Addr>()?.octets());
        ndp.extend("ff02::1:ff00:10".parse::<std::net::Ipv6Addr>()?.octets());
        ndp.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        ndp.extend("fd00:172:18::10".parse::<std::net::Ipv6Addr>()?.octets());
        world.left(&ndp)
    })
}

#[test]
fn xdp_leaves_what_has_no_neighbour_and_what_does_not_fit() -> Result<()> {
    in_world("xdp_leaves_what_has_no_neighbour_and_what_does_not_fit", |world| {
        for (net, hop) in NETS.iter().zip(["172.18.0.1", "fd00:172:18::1"]) {
            let to = at(net.vip, PORT);
            let packet = frame(Protocol::Udp, at(net.client, SPORT), to, SYN);
            world.reset(true)?;
            world.tables.add_route(
                ip(net.far)?,
                0,
                HostRoute { status: RouteStatus::NoNeighbour, egress: world.links[0], mtu: 1500 },
            );
            world.netns.ip(&format!("neigh del {hop} dev u0"))?;
            world.left(&packet.build())?;
            world
                .netns
                .ip(&format!("neigh add {hop} lladdr 02:00:00:00:00:11 dev u0 nud permanent"))?;
            world.reset(true)?;
            world.tables.add_route(
                ip(net.far)?,
                0,
                HostRoute { status: RouteStatus::TooBig, egress: world.links[0], mtu: 1400 },
            );
            world.netns.ip("link set u0 mtu 1400")?;
            world.left(&packet.payload(&[7; 1400]).build())?;
            world.netns.ip("link set u0 mtu 1500")?;
        }
        Ok(())
    })
}

/// Case 51: drivers that put only the Ethernet header into the first buffer.
#[test]
fn case_51_only_the_ethernet_header_is_linear() -> Result<()> {
    let test = "case_51_only_the_ethernet_header_is_linear";
    in_world(test, |world| {
        if !require::kernel_or_skip(test, (5, 18), "no XDP with several buffers") {
            return Ok(());
        }
        for net in &NETS {
            world.reset(true)?;
            let to = at(net.vip, PORT);
            let input = frame(Protocol::Udp, at(net.client, SPORT), to, SYN).build();
            let whole = world.kernel.run_at("xdp_ingress_frags", &input, world.links[0])?;
            ensure!(whole.verdict == TX, "with all of it: {}", whole.verdict);
            for linear in [14, 15, 33, 34, 41] {
                let Ok(ran) =
                    world.kernel.run_in_parts("xdp_ingress_frags", &input, world.links[0], linear)
                else {
                    require::skip(test, "this kernel (below 6.18) has no such test run");
                    return Ok(());
                };
                ensure!(ran.verdict == PASS, "{linear} bytes: {}", ran.verdict);
                ensure!(ran.data == input, "{linear} bytes: changed");
            }
        }
        Ok(())
    })
}

fn in_world(test: &str, work: impl FnOnce(&mut World<'_>) -> Result<()> + Send) -> Result<()> {
    let lacks = "no interface can be named to a test run of XDP";
    if !require::root_or_skip(test) || !require::kernel_or_skip(test, (5, 15), lacks) {
        return Ok(());
    }
    let netns = Netns::new()?;
    netns.run(|| {
        let mut world = World::new(&netns)?;
        let _attached = attached(&world)?;
        work(&mut world)
    })?
}
