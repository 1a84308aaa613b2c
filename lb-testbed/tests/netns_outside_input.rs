//! Bad input that concerns packets, ports and external addresses: one test each.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    cluster::{At, Family, Spec, Topology},
    matrix::Transport,
    north_south::{
        AT_ONCE, ENTRY, Exposure, HERE, KUBELET, NorthSouth, OUTSIDE, PORT, SECOND, SILENCE, SOON,
        TARGET, THERE, Way, cases, told,
    },
    packet::{Packet, TcpFlags},
    require,
    wire::Wire,
};
use serde_json::json;

/// CVE-2020-8558: what comes from outside for the node's loopback addresses never reaches them, although
/// they answer on `NodePort`s for the node itself, and no setting of the kernel is changed for that.
#[test]
fn cve_2020_8558_loopback_addresses_are_not_reached_from_outside() -> Result<()> {
    if !require::root_or_skip("cve_2020_8558_loopback_addresses_are_not_reached_from_outside") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&["--node-port-addresses", "primary,localhost"])?;
    let mut host = world.peer(ENTRY)?;
    let loopback: [IpAddr; 2] = ["127.0.0.1".parse()?, "::1".parse()?];
    let inside = loopback.map(|ip| SocketAddr::new(ip, 9_100));
    host.serve("loopback", &inside)?;
    let node = world.cluster.nodes()[0].netns.mac("eth0")?;
    let mut wire = Wire::open(world.cluster.fabric(), "br0", node)?;
    for family in Family::ALL {
        let at = usize::from(family == Family::V6);
        let from = world.cluster.address(At::Fabric, family);
        for port in [9_100, services[0].node_port(), services[1].node_port(), PORT] {
            let packet = Packet::new(from, loopback[at]);
            wire.send(&packet.clone().tcp(40_000, port, TcpFlags::SYN))?;
            wire.send(&packet.payload(b"hello").udp(40_000, port))?;
        }
        // Whoever answers to this has dealt with the packets before it.
        let (echo, echo_answer) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        wire.send(&Packet::new(from, world.cluster.address(ENTRY, family)).icmp(
            echo,
            0,
            [0, 1, 0, 1],
        ))?;
        let mut answered = Vec::new();
        wire.wait("the node's answer to a ping", SOON, |frame| {
            if frame.parsed.dst == from && frame.parsed.ports.is_some() {
                answered.push(format!("{:?}", frame.parsed));
            }
            let kind = frame.bytes.get(frame.parsed.upper_at).copied();
            (frame.parsed.dst == from && kind == Some(echo_answer)).then_some(())
        })?;
        ensure!(answered.is_empty(), "{family}: {answered:?}");
    }
    let settings = world.cluster.run(ENTRY, || {
        ["all", "default", "eth0", "lo"].map(|interface| {
            let path = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
            fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
        })
    })?;
    ensure!(settings == ["0\n"; 4], "{settings:?}");
    for to in inside {
        ensure!(host.tcp_once(to)?.server == "loopback");
    }
    Ok(())
}

/// CVE-2020-8554: a Service claims addresses of pods and of another Service, loopback and their like, and
/// the kubelet's port at the node. None of it is taken from its owner, and that is told.
#[test]
fn cve_2020_8554_addresses_of_pods_and_services_and_the_kubelets_port_are_not_captured()
-> Result<()> {
    let test =
        "cve_2020_8554_addresses_of_pods_and_services_and_the_kubelets_port_are_not_captured";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let victim = world.expose(&Exposure::new(&[THERE]));
    let thieves =
        [TARGET, PORT, KUBELET].map(|port| (port, world.expose(&Exposure::new(&[ENTRY]))));
    let mut wanted: Vec<String> =
        ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1"].map(String::from).into();
    for family in Family::ALL {
        wanted.push(world.cluster.address(HERE, family).to_string());
        wanted.push(victim.cluster_ip(family).to_string());
        wanted.push(world.cluster.address(ENTRY, family).to_string());
    }
    for (port, thief) in thieves {
        let mut object = world.object(thief, &Exposure::new(&[ENTRY]));
        // At the other ports a node's own address may be claimed (C-4).
        let node = world.cluster.addresses(ENTRY).map(|ip| ip.to_string());
        let ips: Vec<_> =
            wanted.iter().filter(|ip| port == KUBELET || !node.contains(ip)).cloned().collect();
        object["spec"]["externalIPs"] = json!(ips);
        let ingress: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        object["status"]["loadBalancer"]["ingress"] = json!(ingress);
        for number in 0..2 {
            object["spec"]["ports"][number]["port"] = port.into();
        }
        world.manifest.set(object);
    }
    world.start(&[])?;
    let mut kubelet = world.peer(ENTRY)?;
    let at = world.cluster.addresses(ENTRY).map(|ip| SocketAddr::new(ip, KUBELET));
    kubelet.serve("kubelet", &at)?;
    for asker in [OUTSIDE, At::Pod(0, 1), ENTRY] {
        let mut client = world.peer(asker)?;
        for case in cases() {
            let mut owners = Vec::new();
            if case.transport == Transport::Tcp {
                let node = world.cluster.address(ENTRY, case.family);
                owners.push((SocketAddr::new(node, KUBELET), "kubelet"));
            }
            owners.push((SocketAddr::new(victim.cluster_ip(case.family), PORT), "there"));
            if asker != OUTSIDE {
                // Pods' addresses are none of the router's business.
                owners.push((
                    SocketAddr::new(world.cluster.address(HERE, case.family), TARGET),
                    "here",
                ));
            }
            for (to, name) in owners {
                let what = format!("{asker:?}, {case}, {to}");
                let reply = case.once(&mut client, to).with_context(|| what.clone())?;
                ensure!(reply.server == name, "{what}: {reply:?}");
            }
        }
    }
    let status = world.status(0)?;
    ensure!(status["sync"]["refused"].as_u64().is_some_and(|count| count > 0), "{status}");
    Ok(())
}

/// Rule C-4: an address of the node itself may be a Service's at some port; the node's own servers keep
/// all others.
#[test]
fn c_4_a_vip_that_is_the_nodes_own_address_takes_its_ports_only() -> Result<()> {
    if !require::root_or_skip("c_4_a_vip_that_is_the_nodes_own_address_takes_its_ports_only") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    for (service, at) in services.into_iter().zip([HERE, THERE]) {
        let mut object = world.object(service, &Exposure::new(&[at]));
        object["spec"]["externalIPs"] =
            json!(world.cluster.addresses(ENTRY).map(|ip| ip.to_string()));
        for number in 0..2 {
            object["spec"]["ports"][number]["port"] = (9_000 + service.node_port() % 100).into();
        }
        world.manifest.set(object);
    }
    world.start(&[])?;
    for asker in [OUTSIDE, At::Pod(0, 1), ENTRY] {
        let mut client = world.peer(asker)?;
        for case in cases() {
            let node = world.cluster.address(ENTRY, case.family);
            let ports = services.map(|service| 9_000 + service.node_port() % 100);
            for (port, name) in [(ports[0], "here"), (ports[1], "there"), (TARGET, "host")] {
                let to = SocketAddr::new(node, port);
                let what = format!("{asker:?}, {case}, {to}");
                let reply = case.once(&mut client, to).with_context(|| what.clone())?;
                ensure!(reply.server == name, "{what}: {reply:?}");
            }
        }
    }
    Ok(())
}

/// Section 3.4, R-2: ranges that mean nothing are passed over; where none is left in a family there is no
/// filter in it, and the Service beside it is as it was.
#[test]
fn r_2_source_ranges_of_nonsense_filter_nothing_and_harm_nobody() -> Result<()> {
    const NONSENSE: [&str; 7] =
        ["", "nonsense", "300.1.2.3/8", "192.0.2.10/33", "2001:db8::/129", "10.0.0.0", "-1/0"];
    if !require::root_or_skip("r_2_source_ranges_of_nonsense_filter_nothing_and_harm_nobody") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let other = world.expose(&Exposure::new(&[HERE]));
    let nonsense = world.expose(&Exposure::new(&[THERE]).ranges(&NONSENSE));
    let mixed = [&NONSENSE[..], &["  192.0.2.10/32 ", "2001:db8:2::10/128"]].concat();
    let mixed = world.expose(&Exposure::new(&[THERE]).ranges(&mixed));
    world.start(&[])?;
    let mut first = world.peer(OUTSIDE)?;
    let mut second = world.peer(SECOND)?;
    for case in cases() {
        for client in [&mut first, &mut second] {
            for service in [other, nonsense] {
                let to = world.to(service, Way::LoadBalancer, case.family);
                case.once(client, to).with_context(|| format!("{case}, {to}"))?;
            }
        }
        let to = world.to(mixed, Way::LoadBalancer, case.family);
        case.once(&mut first, to).with_context(|| format!("{case}, {to}"))?;
        let errno = told(&mut second, case, to, SILENCE)?;
        ensure!(errno.is_none(), "{case}, {to}: {errno:?}");
    }
    Ok(())
}

/// `NodePort`s at which somebody listens, and ports of nonsense: the first goes to the Service from outside
/// (N-8), the others cost themselves only.
#[test]
fn n_8_node_ports_of_nonsense_cost_themselves_only() -> Result<()> {
    if !require::root_or_skip("n_8_node_ports_of_nonsense_cost_themselves_only") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let good = world.expose(&Exposure::new(&[THERE]));
    let bad = world.expose(&Exposure::new(&[THERE]));
    let mut object = world.object(bad, &Exposure::new(&[THERE]));
    object["spec"]["ports"][0]["nodePort"] = 70_000.into();
    object["spec"]["ports"][1]["nodePort"] = (-1).into();
    world.manifest.set(object);
    world.start(&[])?;
    let mut host = world.peer(ENTRY)?;
    for family in Family::ALL {
        let own = SocketAddr::new(world.cluster.address(ENTRY, family), good.node_port());
        host.serve("listener", &[own])?;
    }
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        let to = world.to(good, Way::NodePort, case.family);
        let reply = case.once(&mut client, to).with_context(|| format!("{case}, {to}"))?;
        ensure!(reply.server == "there", "{case}, {to}: {reply:?}");
        if case.transport == Transport::Tcp {
            let to = SocketAddr::new(to.ip(), bad.node_port());
            let errno = told(&mut client, case, to, AT_ONCE)?;
            ensure!(errno == Some(libc::ECONNREFUSED), "{case}, {to}: {errno:?}");
        }
        for way in [Way::LoadBalancer, Way::ExternalIp] {
            let to = world.to(bad, way, case.family);
            let reply = case.once(&mut client, to).with_context(|| format!("{case}, {to}"))?;
            ensure!(reply.server == "there", "{case}, {to}: {reply:?}");
        }
    }
    Ok(())
}

/// IEEE 802.1Q section 6.9: a tag of VLAN 0 tells a priority and names no VLAN. Its frame is the host's,
/// as for the kernel; one of another VLAN, which the node has no interface of, is nobody's.
#[test]
fn frames_with_a_priority_are_served_and_those_of_other_vlans_are_not() -> Result<()> {
    if !require::root_or_skip("frames_with_a_priority_are_served_and_those_of_other_vlans_are_not")
    {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    let node = world.cluster.nodes()[0].netns.mac("eth0")?;
    let mut wire = Wire::open(world.cluster.fabric(), "br0", node)?;
    for (service, family) in services.into_iter().flat_map(|one| Family::ALL.map(|way| (one, way)))
    {
        let from = world.cluster.address(At::Fabric, family);
        for to in [Way::NodePort, Way::LoadBalancer].map(|way| world.to(service, way, family)) {
            let asks = |vlan, sport| {
                let packet = Packet::new(from, to.ip()).vlan(vlan);
                packet.payload(b"hello").udp(sport, to.port())
            };
            wire.clear()?;
            wire.send(&asks(7, 40_007))?;
            wire.send(&asks(0, 40_000))?;
            let mut answers = Vec::new();
            wire.wait(&format!("an answer of {to}"), SOON, |frame| {
                let [sport, dport] = frame.parsed.ports?;
                if frame.parsed.src == to.ip() && sport == to.port() {
                    answers.push(dport);
                }
                answers.contains(&40_000).then_some(())
            })
            .with_context(|| format!("{:?}", world.counters(0)))?;
            ensure!(answers == [40_000], "{to}: {answers:?}");
        }
    }
    Ok(())
}
