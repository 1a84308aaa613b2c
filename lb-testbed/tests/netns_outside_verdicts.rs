//! What is refused, dropped or left alone of what clients outside send to Services, and what do they
//! see of it?

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{Family, Place, Spec, Topology},
    matrix::Transport,
    north_south::{
        AT_ONCE, ENTRY, Exposure, HERE, NEIGHBOUR, NorthSouth, OUTSIDE, PORT, SECOND, SILENCE,
        SOON, THERE, Way, cases, told,
    },
    packet::{
        Packet, TcpFlags,
        protocol::{SCTP, UDP},
    },
    require,
    rig::IN_FORCE_WITHIN,
    wait,
    wire::{Frame, Wire},
};

const GRE: u8 = 47;
/// What listens on the node itself.
const PROBED: u16 = 32_100;

/// Rules V-6, V-a: without any endpoint a client outside is told at once, by every address.
#[test]
fn v_6_v_a_without_endpoints_a_client_outside_is_refused_at_once() -> Result<()> {
    let test = "v_6_v_a_without_endpoints_a_client_outside_is_refused_at_once";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [Exposure::new(&[]), Exposure::new(&[]).local()];
    let services = services.map(|exposure| world.expose(&exposure));
    world.start(&[])?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        for (service, way) in services.into_iter().flat_map(|one| Way::ALL.map(|way| (one, way))) {
            let to = world.to(service, way, case.family);
            let errno = told(&mut client, case, to, AT_ONCE)?;
            let what = format!("{case}, {way:?} {to}");
            ensure!(
                errno == Some(libc::ECONNREFUSED),
                "{what}: {errno:?}, {:?}",
                world.counters(0)
            );
        }
    }
    Ok(())
}

/// Rules V-8, V-b, V-9, V-10, V-c: without an endpoint on the node, a client outside meets silence under
/// the Local policy, while the node's own clients are served by an endpoint elsewhere.
#[test]
fn v_8_drops_what_comes_from_outside_and_v_9_v_10_serve_who_is_inside() -> Result<()> {
    let test = "v_8_drops_what_comes_from_outside_and_v_9_v_10_serve_who_is_inside";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[THERE]).local());
    world.start(&[])?;
    let mut outside = world.peer(OUTSIDE)?;
    let mut pod = world.cluster.peer(NEIGHBOUR, Place::Outside)?;
    let mut host = world.peer(ENTRY)?;
    for case in cases() {
        for way in Way::ALL {
            let to = world.to(service, way, case.family);
            let what = format!("{case}, {way:?} {to}");
            let before = world.counter(0, Counter::DropNoLocalBackend)?;
            let errno = told(&mut outside, case, to, SILENCE)?;
            ensure!(errno.is_none(), "{what}: {errno:?}");
            world
                .wait_counted(0, Counter::DropNoLocalBackend, before, 1)
                .with_context(|| what.clone())?;
            for (at, client) in [(NEIGHBOUR, &mut pod), (ENTRY, &mut host)] {
                let reply = case.once(client, to).with_context(|| format!("{what}, {at:?}"))?;
                ensure!(reply.server == "there", "{what}, {at:?}: {reply:?}");
                let source = world.cluster.address(at, case.family);
                ensure!(reply.client.ip() == source, "{what}, {at:?}: {reply:?}");
            }
        }
    }
    // An endpoint on the node comes: the client outside is served, and seen.
    world.change_and_wait(service, &Exposure::new(&[HERE, THERE]).local())?;
    for case in cases() {
        for way in Way::ALL {
            for _ in 0..8 {
                let reply = case.once(&mut outside, world.to(service, way, case.family))?;
                ensure!(reply.server == "here", "{case}, {way:?}: {reply:?}");
                let source = world.cluster.address(OUTSIDE, case.family);
                ensure!(reply.client.ip() == source, "{case}, {way:?}: {reply:?}");
            }
        }
    }
    Ok(())
}

/// Rules V-5, R-1, R-2, R-4, R-6, R-7: ranges bind the load balancer's address and nothing else, do not
/// cut what is established, and are no filter where none of them means anything.
#[test]
fn v_5_r_1_r_2_r_6_r_7_source_ranges_bind_the_load_balancers_address() -> Result<()> {
    let test = "v_5_r_1_r_2_r_6_r_7_source_ranges_bind_the_load_balancers_address";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let only_first = ["192.0.2.10/32", "2001:db8:2::10/128"];
    let endpoints = [HERE, THERE];
    let ranged = world.expose(&Exposure::new(&endpoints).ranges(&only_first));
    let one_family = world.expose(&Exposure::new(&endpoints).ranges(&only_first[..1]));
    world.start(&[])?;
    let mut first = world.peer(OUTSIDE)?;
    let mut second = world.peer(SECOND)?;
    let mut open = Vec::new();
    for case in cases() {
        let to = world.to(ranged, Way::LoadBalancer, case.family);
        case.once(&mut first, to).with_context(|| format!("{case}: allowed"))?;
        let before = world.counter(0, Counter::DropSourceRange)?;
        let errno = told(&mut second, case, to, SILENCE)?;
        ensure!(errno.is_none(), "{case}: {errno:?}");
        world.wait_counted(0, Counter::DropSourceRange, before, 1)?;
        for way in [Way::NodePort, Way::ExternalIp] {
            case.once(&mut second, world.to(ranged, way, case.family))
                .with_context(|| format!("{case}, {way:?}: ranges are not for it"))?;
        }
        let to = world.to(one_family, Way::LoadBalancer, case.family);
        if case.family == Family::V4 {
            let errno = told(&mut second, case, to, SILENCE)?;
            ensure!(errno.is_none(), "{case}: {errno:?}");
        } else {
            case.once(&mut second, to).context("no range of this family")?;
            open.push((case, case.connect(&mut second, to)?, to));
        }
    }
    for (case, sock, _) in &open {
        second.ask(sock, "hello").with_context(|| case.to_string())?;
    }
    // The ranges exclude the second client now: what it has open goes on.
    world.change(one_family, &Exposure::new(&endpoints).ranges(&only_first));
    world.write()?;
    let (_, _, to) = open[0];
    wait::until("the new ranges to be in force", IN_FORCE_WITHIN, || {
        second.tcp_connect_from(None, to, SILENCE).is_err()
    })?;
    for (case, sock, _) in &open {
        second.ask(sock, "still allowed").with_context(|| format!("{case}: R-7"))?;
    }
    Ok(())
}

/// Rules V-12, V-i and production case 45: a port that an address of Services does not have is refused on
/// the uplink, and no such packet goes in circles between the node and its router.
#[test]
fn v_12_unknown_ports_of_vips_are_refused_and_never_loop() -> Result<()> {
    if !require::root_or_skip("v_12_unknown_ports_of_vips_are_refused_and_never_loop") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let service = world.expose(&Exposure::new(&[HERE]));
    world.start(&[])?;
    let mut client = world.peer(OUTSIDE)?;
    let fabric = world.cluster.fabric();
    let entry = &world.cluster.nodes()[0].netns;
    let mut wire = Wire::open(entry, "eth0", fabric.mac("br0")?)?;
    for case in cases() {
        let vips = [
            service.load_balancer(case.family),
            service.external_ip(case.family),
            service.cluster_ip(case.family),
        ];
        for vip in vips {
            let to = SocketAddr::new(vip, PORT + 1);
            let what = format!("{case}, {to}");
            wire.clear()?;
            let before = world.counter(0, Counter::DropUndefinedPort)?;
            let errno = told(&mut client, case, to, AT_ONCE)?;
            ensure!(
                errno == Some(libc::ECONNREFUSED),
                "{what}: {errno:?}, {:?}",
                world.counters(0)
            );
            let dropped = world.counter(0, Counter::DropUndefinedPort)? - before;
            let seen = wire.seen()?.iter().filter(|frame| frame.parsed.dst == vip).count();
            ensure!((seen, dropped) == (1, 1), "{what}: {seen} seen, {dropped} dropped");
        }
    }
    Ok(())
}

/// Production case 45: a VIP answers pings from outside; what has no port of a Service does not go in
/// circles.
#[test]
fn case_45_pings_of_vips_are_answered_and_other_protocols_never_loop() -> Result<()> {
    if !require::root_or_skip("case_45_pings_of_vips_are_answered_and_other_protocols_never_loop") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[THERE]));
    world.start(&[])?;
    let router = world.cluster.fabric().mac(world.cluster.client_side())?;
    let mut client = Wire::open(world.cluster.netns(OUTSIDE), "eth0", router)?;
    let entry = &world.cluster.nodes()[0].netns;
    let mut node = Wire::open(entry, "eth0", world.cluster.fabric().mac("br0")?)?;
    for family in Family::ALL {
        let (from, vip) = (world.cluster.address(OUTSIDE, family), service.load_balancer(family));
        let (echo, answer) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        let ping = Packet::new(from, vip).icmp(echo, 0, [1, 2, 0, 1]).payload(b"are you there?");
        client.send(&ping)?;
        client.wait(&format!("an answer of {vip} to a ping"), SOON, |frame| {
            let is =
                frame.parsed.src == vip && frame.bytes.get(frame.parsed.upper_at) == Some(&answer);
            is.then_some(())
        })?;
        node.clear()?;
        let about = Packet::new(vip, from).udp(PORT, 7);
        let unreachable = if family == Family::V4 { 3 } else { 1 };
        let strays = [
            // A port that nobody has.
            Packet::new(from, vip).other(SCTP).payload(&[0; 20]),
            Packet::new(from, vip).other(GRE).payload(&[0; 20]),
            Packet::new(from, vip).other(UDP).payload(&[0; 4]),
            Packet::new(from, vip).icmp(answer, 0, [1, 2, 0, 1]),
            Packet::new(from, vip).icmp_error(unreachable, 1, [0; 4], &about, 48),
        ];
        for (number, stray) in (1..).zip(&strays) {
            client.send(&stray.clone().ttl(200 + number))?;
        }
        client.send(&ping)?;
        // The ping's answer tells that what was sent before has been dealt with.
        client.wait("the answer to a ping", SOON, |frame| {
            (frame.parsed.src == vip && frame.bytes.get(frame.parsed.upper_at) == Some(&answer))
                .then_some(())
        })?;
        let seen = node.seen()?;
        // Whatever it is, it was sent with more hops than a ping has, and each passes one router.
        let passed = |frame: &&Frame| frame.parsed.dst == vip && frame.parsed.ttl > 100;
        let mut hops: Vec<u8> = seen.iter().filter(passed).map(|frame| frame.parsed.ttl).collect();
        hops.sort_unstable();
        ensure!(hops == [200, 201, 202, 203, 204], "{family}: {hops:?} on the uplink");
    }
    Ok(())
}

/// A `local` route for a balancer's address, as the agents of some clouds make them: what listens on the
/// node is reached there, as the health check ports that clouds probe; a Service is as before.
#[test]
fn a_local_route_takes_what_no_service_takes_of_an_address() -> Result<()> {
    if !require::root_or_skip("a_local_route_takes_what_no_service_takes_of_an_address") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[HERE]));
    world.start(&[])?;
    let entry = &world.cluster.nodes()[0].netns;
    let any = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), PROBED);
    let _listens = entry.run(|| TcpListener::bind(any))??;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases().filter(|case| case.transport == Transport::Tcp) {
        let vip = service.load_balancer(case.family);
        let probed = SocketAddr::new(vip, PROBED);
        let errno = told(&mut client, case, probed, AT_ONCE)?;
        ensure!(errno == Some(libc::ECONNREFUSED), "{case}, nobody has {vip}: {errno:?}");
        entry.ip(&format!("route add local {vip} dev lo"))?;
        client
            .tcp_connect_from(None, probed, SOON)
            .with_context(|| format!("{case}, {probed}: {:?}", world.counters(0)))?;
        let to = world.to(service, Way::LoadBalancer, case.family);
        case.once(&mut client, to).with_context(|| case.to_string())?;
    }
    Ok(())
}

/// Production case 70: the router sends an established connection to a node that does not know it. The
/// client is told so at once, by a reset that it believes, and starts anew; datagrams just go on.
#[test]
fn case_70_a_connection_that_comes_to_another_node_is_reset_at_once() -> Result<()> {
    if !require::root_or_skip("case_70_a_connection_that_comes_to_another_node_is_reset_at_once") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start_everywhere(&[])?;
    let mut client = world.peer(OUTSIDE)?;
    for service in services {
        world.cluster.route_to_node(&lb_testbed::north_south::LOAD_BALANCERS, 0)?;
        let mut open = Vec::new();
        for case in cases() {
            let to = world.to(service, Way::LoadBalancer, case.family);
            let sock = case.connect(&mut client, to)?;
            client.ask(&sock, "hello").with_context(|| case.to_string())?;
            open.push((case, to, sock));
        }
        world.cluster.route_to_node(&lb_testbed::north_south::LOAD_BALANCERS, 1)?;
        for (case, to, sock) in open {
            let what = format!("{case}, {to}");
            let before = world.counter(1, Counter::DropNoFlow)?;
            let asked = client.ask_within(&sock, "anybody there?", AT_ONCE);
            match case.transport {
                Transport::Tcp => {
                    let errno = asked.err().and_then(|error| lb_testbed::peer::errno(&error));
                    ensure!(
                        errno == Some(libc::ECONNRESET),
                        "{what}: {errno:?}, {:?}",
                        world.counters(1)
                    );
                    ensure!(world.counter(1, Counter::DropNoFlow)? > before, "{what}");
                    case.once(&mut client, to).with_context(|| format!("{what}: anew"))?;
                }
                Transport::Udp => {
                    asked.with_context(|| what.clone())?;
                }
            }
        }
    }
    // A segment of no connection at all is answered where it says that it wants to be.
    let router = world.cluster.fabric().mac(world.cluster.client_side())?;
    let mut wire = Wire::open(world.cluster.netns(SECOND), "eth0", router)?;
    for family in Family::ALL {
        let vip = services[0].load_balancer(family);
        let segment = Packet::new(world.cluster.address(SECOND, family), vip);
        wire.send(&segment.tcp(45_000, PORT, TcpFlags::ACK))?;
        let sequence = wire.wait("a reset", SOON, |frame| {
            let at = frame.parsed.upper_at;
            let is_reset = frame.parsed.ports == Some([PORT, 45_000])
                && frame.bytes.get(at + 13).is_some_and(|flags| flags & TcpFlags::RST.0 != 0);
            is_reset.then(|| frame.bytes.get(at + 4..at + 8).map(<[u8]>::to_vec)).flatten()
        })?;
        // RFC 9293 3.10.7.1: the sequence number of a reset is the acknowledgment it answers.
        ensure!(sequence == 0x0506_0708_u32.to_be_bytes(), "{family}: {sequence:x?}");
    }
    Ok(())
}
