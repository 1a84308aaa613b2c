//! Packets from outside through the real programs at tc: what the kernel makes of each is what the host
//! decides, byte for byte, counter for counter and record for record; and who is told something is told
//! the right thing.
//!
//! In a network namespace with two links, because routes and neighbours are the kernel's own.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{AddressFlags, BackendFlags, FrontendFlags, Interface, InterfaceFlags, Scope},
    decide,
    host::{HostPacket, HostRoute, HostTables, Words, words},
    parse,
    refuse::{self, Reason},
    tables::{NodeTables as _, RouteStatus},
    verdict::Verdict,
};
use lb_object::Settings;
use lb_testbed::{
    golden,
    packet::{self, Link, Packet},
    require,
    testrun::{
        kernel::{Kernel, flows_on_host},
        place,
    },
    traffic::{ACK, PORT, Protocol, SPORT, SYN, SYN_ACK, TARGET, at, packet as build},
};

/// Where clients are, and the way to the other node.
const UPLINK: u32 = 11;
const SECOND: u32 = 12;
/// Bytes that the way to the backend takes.
const MTU: u32 = 1_300;
/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

struct Net {
    node: &'static str,
    client: &'static str,
    vip: &'static str,
    backend: &'static str,
    here: &'static str,
    router: &'static str,
    any: &'static str,
}

const NETS: [Net; 2] = [
    Net {
        node: "172.19.0.10",
        client: "192.0.2.10",
        vip: "203.0.113.1",
        backend: "10.244.1.10",
        here: "10.244.0.10",
        router: "198.51.100.1",
        any: "0.0.0.0",
    },
    Net {
        node: "fd00:172:19::10",
        client: "2001:db8:2::10",
        vip: "2001:db8:8::1",
        backend: "fd00:10:244:1::a",
        here: "fd00:10:244::a",
        router: "2001:db8:9::1",
        any: "::",
    },
];

const LINES: &str = "addr add 172.18.0.10/24 dev u0
addr add fd00:172:18::10/64 dev u0 nodad
addr add 172.19.0.10/24 dev u1
addr add fd00:172:19::10/64 dev u1 nodad
neigh add 172.18.0.1 lladdr 02:00:00:00:00:11 dev u0 nud permanent
neigh add fd00:172:18::1 lladdr 02:00:00:00:00:11 dev u0 nud permanent
neigh add 172.19.0.1 lladdr 02:00:00:00:00:12 dev u1 nud permanent
neigh add fd00:172:19::1 lladdr 02:00:00:00:00:12 dev u1 nud permanent
route add default via 172.18.0.1
route add ::/0 via fd00:172:18::1
route add 10.244.1.0/24 via 172.19.0.1 mtu lock 1300
route add fd00:10:244:1::/64 via fd00:172:19::1 mtu lock 1300";

/// The programs, and the same on the host.
struct World {
    kernel: Kernel,
    tables: HostTables,
}

impl World {
    fn new() -> Result<Self> {
        let mut kernel = Kernel::prepare(&Settings::probe())?;
        for program in ["tc_ingress", "tc_ingress_l3", "tc_uplink_egress"] {
            kernel.load(program)?;
        }
        kernel.fill_program_array()?;
        Ok(Self { kernel, tables: HostTables::new() })
    }

    /// One Service with an external address and a node port, whose backend is on another node, and one
    /// of a backend here on the next port.
    fn reset(&mut self, net: &Net, protocol: Protocol) -> Result<()> {
        self.tables = HostTables::new();
        let tables = &self.tables;
        for link in [UPLINK, SECOND] {
            let flags = InterfaceFlags::OFF_NODE;
            let mut interface = Interface { flags, group: link, mtu: 1500, ..Interface::default() };
            match words(ip(net.node)?) {
                Words::V4([ip]) => interface.v4[0] = ip,
                Words::V6(ip) => interface.v6[0] = ip,
            }
            tables.set_host_interface(link, interface);
        }
        tables.set_address(ip(net.node)?, AddressFlags::HOST | AddressFlags::NODE);
        tables.set_address(ip(net.vip)?, AddressFlags::VIP);
        let to = |egress, mtu| HostRoute { status: RouteStatus::Found, egress, mtu };
        tables.add_route(ip(net.backend)?, 0, to(SECOND, MTU));
        for out in [0, UPLINK] {
            tables.add_route(ip(net.client)?, out, to(UPLINK, 1500));
        }
        tables.add_route(ip(net.vip)?, 0, to(UPLINK, 1500));
        for (index, backend) in [net.backend, net.here].into_iter().enumerate() {
            let number = protocol.number();
            let id = tables.add_service_port(number, &[], &[at(backend, TARGET)]);
            let port = if index == 0 { PORT } else { PORT + 1 };
            for frontend in [at(net.vip, port), at(net.any, 30_000 + port)] {
                tables.add_frontend_with(id, number, frontend, FrontendFlags::EXTERNAL);
            }
            if backend == net.here {
                for backend in tables.backends_of(id, Scope::Cluster) {
                    tables.set_flags(backend, BackendFlags::LOCAL);
                }
            }
        }
        self.look_after_neighbours(net, protocol)?;
        self.kernel.reset()?;
        self.kernel.fill(&self.tables)
    }

    /// Gives the kernel a packet for each next hop, as it wants one every few ticks: the programs write
    /// the Ethernet addresses of all others.
    fn look_after_neighbours(&mut self, net: &Net, protocol: Protocol) -> Result<()> {
        self.kernel.fill(&self.tables)?;
        let client = at(net.client, SPORT - 1);
        let asks = build(protocol, client, at(net.vip, PORT), SYN).build();
        let sent = self.kernel.run_at("tc_ingress", &asks, UPLINK)?;
        let (source, _) = ends(&sent.data, Link::Ethernet)?;
        let reply = build(protocol, at(net.backend, TARGET), source, SYN_ACK).build();
        for returned in [sent.verdict, self.kernel.run_at("tc_ingress", &reply, SECOND)?.verdict] {
            ensure!(returned.cast_signed() == REDIRECT, "tc_ingress returned {returned}");
        }
        Ok(())
    }

    /// What arrives by an interface.
    fn arrives(&mut self, ifindex: u32, input: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        self.run("tc_ingress", ifindex, input)
    }

    fn run(&mut self, program: &str, ifindex: u32, input: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let bare = program.ends_with("_l3");
        let link = if bare { parse::Link::None } else { parse::Link::Ethernet };
        self.tables.set_interface(ifindex);
        let (before, host_before) = (self.kernel.counters()?, self.tables.counters());
        let mut on_host = HostPacket(input.to_vec());
        let verdict = if program == "tc_uplink_egress" {
            decide::egress(&mut on_host, &self.tables, link)
        } else {
            decide::ingress(&mut on_host, &self.tables, link)
        };
        let mut answered = false;
        if verdict.is_reject() {
            let reason = Reason::for_verdict(verdict, || self.tables.mtu());
            let refusal = refuse::answer(&mut on_host, &self.tables, link, reason);
            answered = refusal == refuse::Refusal::Answered;
        }
        let ran = self.kernel.run_at(program, input, ifindex)?;
        let expected = match verdict {
            Verdict::Forwarded | Verdict::Reflected => REDIRECT,
            _ if answered => REDIRECT,
            verdict if verdict.drop_counter().is_some() => SHOT,
            _ => NEXT,
        };
        let returned = ran.verdict.cast_signed();
        ensure!(returned == expected, "{program} returned {returned} for {verdict:?}");
        let own = if verdict == Verdict::Forwarded { 14 } else { 0 };
        let (kernel_ip, host_ip) = match (verdict, bare) {
            // The program puts a header before it for the kernel to fill in.
            (Verdict::Forwarded, true) => (ran.data.get(14..), Some(&on_host.0[..])),
            _ => (ran.data.get(own..), on_host.0.get(own..)),
        };
        let (kernel_ip, host_ip) =
            (kernel_ip.context("a short packet")?, host_ip.context("a short packet")?);
        let kind = if own == 0 && !bare { Link::Ethernet } else { Link::None };
        let diff = packet::diff(host_ip, kernel_ip, kind);
        ensure!(diff.is_empty(), "{program}, {verdict:?}: {diff}");
        let counted = golden::difference(&before, &self.kernel.counters()?);
        let on_host = golden::difference(&host_before, &self.tables.counters());
        ensure!(counted == on_host, "{program}: counted {counted:?} instead of {on_host:?}");
        let (flows, on_host) = (self.kernel.flows()?, flows_on_host(&self.tables));
        ensure!(flows == on_host, "{program}: records {flows:?} instead of {on_host:?}");
        Ok((verdict, ran.data))
    }

    fn is(&mut self, verdict: Verdict, ifindex: u32, packet: &Packet) -> Result<Vec<u8>> {
        let (got, bytes) = self.arrives(ifindex, &packet.build())?;
        ensure!(got == verdict, "{got:?} instead of {verdict:?}");
        Ok(bytes)
    }
}

fn ip(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| text.to_owned())
}

fn ends(bytes: &[u8], link: Link) -> Result<(SocketAddr, SocketAddr)> {
    let parsed = packet::parse(bytes, link)?;
    let [sport, dport] = parsed.ports.context("no ports")?;
    Ok((SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport)))
}

fn in_world(
    test: &str,
    work: impl Fn(&mut World, &Net, Protocol) -> Result<()> + Sync,
) -> Result<()> {
    let lacks = "the interface that a packet arrived by cannot be named to a test run";
    if !require::root_or_skip(test)
        || !require::bpf_or_skip(test)
        || !require::kernel_or_skip(test, (5, 17), lacks)
    {
        return Ok(());
    }
    let netns = place::with_links(&[("u0", UPLINK, None), ("u1", SECOND, None)], LINES)?;
    netns.run(|| {
        let mut world = World::new()?;
        for net in &NETS {
            for protocol in Protocol::BOTH {
                world.reset(net, protocol)?;
                work(&mut world, net, protocol)
                    .with_context(|| format!("{protocol:?} to {}", net.vip))?;
            }
        }
        Ok(())
    })?
}

/// A flow to another node; what it is sent under.
fn begun(world: &mut World, net: &Net, protocol: Protocol) -> Result<SocketAddr> {
    let (client, vip, backend) =
        (at(net.client, SPORT), at(net.vip, PORT), at(net.backend, TARGET));
    let sent = world.is(Verdict::Forwarded, UPLINK, &build(protocol, client, vip, SYN))?;
    packet::checksums_ok(&sent, Link::Ethernet)?;
    ensure!(sent[..12] == [2, 0, 0, 0, 0, 0x12, 2, 0, 0, 0, 0, 2], "to {:?}", &sent[..12]);
    let (source, to) = ends(&sent, Link::Ethernet)?;
    ensure!(to == backend && source.ip() == ip(net.node)?, "{source} to {to}");
    let back = world.is(Verdict::Forwarded, SECOND, &build(protocol, backend, source, SYN_ACK))?;
    ensure!(ends(&back, Link::Ethernet)? == (vip, client));
    ensure!(back[..6] == [2, 0, 0, 0, 0, 0x11], "back to {:?}", &back[..6]);
    world.is(Verdict::Forwarded, UPLINK, &build(protocol, client, vip, ACK))?;
    Ok(source)
}

/// V-7, M-2: both directions, and the ends of a connection.
#[test]
fn v_7_m_2_a_flow_is_sent_on_and_its_replies_are() -> Result<()> {
    in_world("v_7_m_2_a_flow_is_sent_on_and_its_replies_are", |world, net, protocol| {
        let source = begun(world, net, protocol)?;
        let (client, vip) = (at(net.client, SPORT), at(net.vip, PORT));
        for flags in [ACK, packet::TcpFlags::FIN | ACK, packet::TcpFlags::RST, SYN] {
            world.is(Verdict::Forwarded, UPLINK, &build(protocol, client, vip, flags))?;
            let answer = build(protocol, at(net.backend, TARGET), source, ACK);
            world.is(Verdict::Forwarded, SECOND, &answer)?;
        }
        Ok(())
    })
}

/// Case 66 and RFC 1812: too long for the route, or the last router's to pass on.
#[test]
fn case_66_who_sends_too_much_or_too_far_is_told() -> Result<()> {
    in_world("case_66_who_sends_too_much_or_too_far_is_told", |world, net, protocol| {
        begun(world, net, protocol)?;
        let asks = build(protocol, at(net.client, SPORT), at(net.vip, PORT), ACK);
        let told = world.is(Verdict::TooBig, UPLINK, &asks.clone().payload(&[7; 1_350]))?;
        packet::checksums_ok(&told, Link::Ethernet)?;
        let at = 14 + if net.vip.contains(':') { 40 } else { 20 };
        ensure!(told[at + 4..at + 8] == MTU.to_be_bytes(), "told {:?}", &told[at..at + 8]);
        let told = world.is(Verdict::TimeExceeded, UPLINK, &asks.ttl(1))?;
        packet::checksums_ok(&told, Link::Ethernet)
    })
}

/// C-7: errors about the flow, from routers on either side.
#[test]
fn c_7_icmp_errors_are_sent_on() -> Result<()> {
    in_world("c_7_icmp_errors_are_sent_on", |world, net, protocol| {
        let source = begun(world, net, protocol)?;
        let v6 = net.vip.contains(':');
        let (kind, code, quoted) = if v6 { (2, 0, 48) } else { (3, 4, 28) };
        let (client, backend) = (at(net.client, SPORT), at(net.backend, TARGET));
        let sent = build(protocol, source, backend, ACK);
        let back = build(protocol, at(net.vip, PORT), client, ACK);
        for (ifindex, to, about) in [(SECOND, source.ip(), sent), (UPLINK, ip(net.vip)?, back)] {
            let error = Packet::new(ip(net.router)?, to);
            let error = error.icmp_error(kind, code, [0, 0, 5, 0], &about, quoted);
            let bytes = world.is(Verdict::Forwarded, ifindex, &error)?;
            packet::checksums_ok(&bytes, Link::Ethernet)?;
        }
        Ok(())
    })
}

/// C-7: in order, every piece.
#[test]
fn c_7_fragments_are_sent_on() -> Result<()> {
    in_world("c_7_fragments_are_sent_on", |world, net, protocol| {
        let source = begun(world, net, protocol)?;
        let asks = build(protocol, at(net.client, SPORT), at(net.vip, PORT), ACK);
        let answer = build(protocol, at(net.backend, TARGET), source, ACK);
        for (ifindex, packet) in [(UPLINK, asks), (SECOND, answer)] {
            for piece in packet.payload(&[7; 300]).fragments(80) {
                let (verdict, _) = world.arrives(ifindex, &piece)?;
                ensure!(verdict == Verdict::Forwarded, "{verdict:?}");
            }
        }
        Ok(())
    })
}

/// A link without an Ethernet header: one is put before the packet, for the kernel to fill in.
#[test]
fn what_arrives_without_an_ethernet_header_is_sent_on() -> Result<()> {
    in_world("what_arrives_without_an_ethernet_header_is_sent_on", |world, net, protocol| {
        // The test run takes what stands in place of link addresses for those of another machine, so
        // that no flow begins here.
        begun(world, net, protocol)?;
        for _ in 0..2 {
            let asks = build(protocol, at(net.client, SPORT), at(net.vip, PORT), ACK);
            let bytes = asks.without_ethernet().build();
            let (verdict, sent) = world.run("tc_ingress_l3", UPLINK, &bytes)?;
            ensure!(verdict == Verdict::Forwarded, "{verdict:?}");
            packet::checksums_ok(&sent[14..], Link::None)?;
        }
        Ok(())
    })
}

/// M-3: a backend here sees its client; the reply leaves where the client's packets came in, whichever
/// uplink the node would take.
#[test]
fn m_3_replies_of_backends_here_leave_where_the_flow_came_in() -> Result<()> {
    in_world("m_3_replies_of_backends_here_leave_where_the_flow_came_in", |world, net, protocol| {
        let (client, vip) = (at(net.client, SPORT), at(net.vip, PORT + 1));
        let bytes = world.is(Verdict::Translated, UPLINK, &build(protocol, client, vip, SYN))?;
        ensure!(ends(&bytes, Link::Ethernet)? == (client, at(net.here, TARGET)));
        let answer = build(protocol, at(net.here, TARGET), client, SYN_ACK).build();
        let (verdict, _) = world.run("tc_uplink_egress", UPLINK, &answer)?;
        ensure!(verdict == Verdict::Translated, "{verdict:?}");
        let (verdict, bytes) = world.run("tc_uplink_egress", SECOND, &answer)?;
        ensure!(verdict == Verdict::Forwarded, "{verdict:?}");
        ensure!(ends(&bytes, Link::Ethernet)? == (vip, client));
        ensure!(bytes[..6] == [2, 0, 0, 0, 0, 0x11], "to {:?}", &bytes[..6]);
        Ok(())
    })
}

/// Case 35: answers to what the node itself asked from a node port's number; and V-12 for a VIP.
#[test]
fn case_35_the_nodes_own_questions_are_answered() -> Result<()> {
    in_world("case_35_the_nodes_own_questions_are_answered", |world, net, protocol| {
        let (own, peer) = (at(net.node, 30_000 + PORT), at(net.router, 53));
        let (verdict, _) =
            world.run("tc_uplink_egress", UPLINK, &build(protocol, own, peer, SYN).build())?;
        ensure!(verdict == Verdict::NotService, "{verdict:?}");
        world.is(Verdict::NotService, UPLINK, &build(protocol, peer, own, SYN_ACK))?;
        let asks = build(protocol, at(net.client, SPORT), own, SYN);
        world.is(Verdict::Forwarded, UPLINK, &asks)?;
        let other = build(protocol, at(net.client, SPORT), at(net.vip, PORT + 7), SYN);
        world.is(Verdict::UndefinedPort, UPLINK, &other)?;
        Ok(())
    })
}

/// Case 45: a ping of a VIP is answered, unless all machines of the link hear it.
#[test]
fn case_45_pings_are_answered_to_who_meant_this_node() -> Result<()> {
    in_world("case_45_pings_are_answered_to_who_meant_this_node", |world, net, _| {
        let kind = if net.vip.contains(':') { 128 } else { 8 };
        let ping = Packet::new(net.client, net.vip).icmp(kind, 0, [0, 1, 0, 1]).payload(b"ping");
        let bytes = world.is(Verdict::Reflected, UPLINK, &ping)?;
        packet::checksums_ok(&bytes, Link::Ethernet)?;
        let mut to_all = ping.build();
        to_all[..6].fill(0xff);
        let ran = world.kernel.run_at("tc_ingress", &to_all, UPLINK)?;
        ensure!(ran.verdict.cast_signed() == NEXT, "{}", ran.verdict);
        ensure!(ran.data == to_all, "answered");
        // Case 45: nor does anything else go in circles.
        let stray = Packet::new(net.client, net.vip).other(47).payload(&[0; 40]);
        world.is(Verdict::UndefinedPort, UPLINK, &stray)?;
        Ok(())
    })
}

/// What comes by an interface whose description is being replaced is not taken for a pod's: neither is its
/// source kept, nor does it pass where a policy binds who is outside.
#[test]
fn v_8_v_12_an_interface_that_is_being_changed_is_none_of_a_pods() -> Result<()> {
    let test = "v_8_v_12_an_interface_that_is_being_changed_is_none_of_a_pods";
    in_world(test, |world, net, protocol| {
        let flags = InterfaceFlags::LOCAL_POD;
        let interface = Interface { flags, group: UPLINK, mtu: 1500, ..Interface::default() };
        let asks = build(protocol, at(net.client, SPORT), at(net.vip, PORT + 7), SYN);
        for torn in [false, true] {
            if torn {
                world.tables.set_torn_interface(UPLINK, interface);
            } else {
                world.tables.set_host_interface(UPLINK, interface);
            }
            world.kernel.fill(&world.tables)?;
            let expected = if torn { Verdict::UndefinedPort } else { Verdict::NotService };
            world.is(expected, UPLINK, &asks)?;
        }
        Ok(())
    })
}
