//! Does a client outside reach a Service by each of its addresses, wherever the backend is, and as whom
//! does the backend see it?

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{At, Family, Spec, Topology, overlay::Overlay},
    matrix::{Case, Transport},
    north_south::{
        ENTRY, Exposed, Exposure, HERE, NorthSouth, OTHER, OUTSIDE, PORT, SILENCE, SOON, STRANGER,
        TARGET, THERE, Way, cases,
    },
    peer::{Close, Peer, STEP},
    require, wait,
};

/// Where forwarded flows get their ports from, unless told otherwise.
const SNAT_PORTS: std::ops::RangeInclusive<u16> = 1024..=29_999;

/// Who answers, and as whom it sees a client.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Kept,
    As(IpAddr),
}

/// Asks in every way; the client sees nothing but what it asked for.
fn reached(
    world: &NorthSouth,
    client: &mut Peer,
    service: Exposed,
    server: (&str, At),
    case: Case,
    seen: Seen,
) -> Result<()> {
    for way in Way::ALL {
        let to = world.to(service, way, case.family);
        let what = format!("{case}, {way:?} {to}, backend {server:?}");
        let counters = || format!("{what}: {:?}", world.counters(0));
        let sock = case.connect(client, to).with_context(counters)?;
        for round in 0..3 {
            let (reply, from) =
                client.ask_within(&sock, &format!("round {round}"), STEP).with_context(counters)?;
            ensure!(reply.server == server.0, "{what}: {reply:?}");
            ensure!(from.is_none_or(|from| from == to), "{what}: answered by {from:?}");
            let local = SocketAddr::new(world.cluster.address(server.1, case.family), TARGET);
            ensure!(reply.local == local, "{what}: {reply:?}");
            match seen {
                Seen::Kept => ensure!(reply.client == sock.local, "{what}: {reply:?}"),
                Seen::As(ip) => {
                    ensure!(reply.client.ip() == ip, "{what}: {reply:?}, wanted {ip}");
                    ensure!(SNAT_PORTS.contains(&reply.client.port()), "{what}: {reply:?}");
                }
            }
        }
        if case.transport == Transport::Tcp {
            client.bulk(sock.id, 500_000).with_context(counters)?;
            client.close(sock.id, Close::Write)?;
            let end = client.receive(sock.id, STEP).with_context(counters)?;
            ensure!(end.is_none(), "{what}: {end:?} instead of the end");
        }
        client.close(sock.id, Close::Graceful)?;
    }
    Ok(())
}

/// Rules M-2 with departure (a), M-3, V-7, V-8, C-1, C-2, C-3, X-1, X-2, N-9: a backend on the node sees
/// the client, one elsewhere sees the entry node; pods and processes, both policies, by every address.
fn every_backend(topology: Topology, overlay: Overlay) -> Result<(NorthSouth, [Exposed; 2])> {
    let mut world = NorthSouth::new(Spec { topology, overlay, ..Spec::default() })?;
    let places = [(HERE, "here"), (ENTRY, "host"), (THERE, "there"), (OTHER, "other-host")];
    let services = places.map(|(at, name)| (at, name, world.expose(&Exposure::new(&[at]))));
    let local = [(HERE, "here"), (ENTRY, "host")];
    let local = local.map(|(at, name)| (at, name, world.expose(&Exposure::new(&[at]).local())));
    world.start(&[])?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        for (at, name, service) in services.into_iter().chain(local) {
            let seen = match at {
                HERE | ENTRY => Seen::Kept,
                THERE if overlay != Overlay::None => {
                    Seen::As(world.cluster.overlay_address(0, case.family))
                }
                _ => Seen::As(world.cluster.address(ENTRY, case.family)),
            };
            reached(&world, &mut client, service, (name, at), case, seen)
                .with_context(|| format!("{topology}, {overlay:?}"))?;
        }
    }
    ensure!(world.counter(0, Counter::FlowForwarded)? > 0, "{:?}", world.counters(0));
    ensure!(world.counter(0, Counter::FlowTableFull)? == 0, "{:?}", world.counters(0));
    Ok((world, [services[0].2, services[2].2]))
}

/// Rules C-1, M-2, V-7: a pod of another node that asks this node's `NodePort` is outside of this node.
fn pods_of_other_nodes(world: &NorthSouth, services: [Exposed; 2]) -> Result<()> {
    for case in cases() {
        let mut client = world.cluster.peer(STRANGER, case.engine.place())?;
        for (service, name) in services.into_iter().zip(["here", "there"]) {
            let to = world.to(service, Way::NodePort, case.family);
            let what = format!("{case}, a pod of another node, {name}");
            let sock = case.connect(&mut client, to).with_context(|| what.clone())?;
            let reply = client.ask(&sock, "hello").with_context(|| what.clone())?;
            ensure!(reply.server == name, "{what}: {reply:?}");
            if name == "here" {
                ensure!(reply.client == sock.local, "{what}: {reply:?}");
            } else {
                let entry = world.cluster.address(ENTRY, case.family);
                ensure!(reply.client.ip() == entry, "{what}: {reply:?}");
            }
        }
    }
    Ok(())
}

/// Rules M-6 to M-9: who comes from outside and asks for a cluster IP is masqueraded where its backend is
/// elsewhere; a backend on the node sees it, as departure (a) has it, unless everybody is masqueraded.
fn cluster_ips(world: &NorthSouth, services: [Exposed; 2], masquerade_all: bool) -> Result<()> {
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        for (service, name) in services.into_iter().zip(["here", "there"]) {
            let to = SocketAddr::new(service.cluster_ip(case.family), PORT);
            let what = format!("{case}, {to}, {name}, masquerade all: {masquerade_all}");
            let counters = || format!("{what}: {:?}", world.counters(0));
            let sock = case.connect(&mut client, to).with_context(counters)?;
            let reply = client.ask(&sock, "hello").with_context(counters)?;
            ensure!(reply.server == name, "{what}: {reply:?}");
            let kept = reply.client == sock.local;
            ensure!(kept == (name == "here" && !masquerade_all), "{what}: {reply:?}");
        }
    }
    Ok(())
}

#[test]
fn c_1_m_2_m_3_v_7_v_8_x_1_backends_on_bridges_see_who_they_should() -> Result<()> {
    if !require::root_or_skip("c_1_m_2_m_3_v_7_v_8_x_1_backends_on_bridges_see_who_they_should") {
        return Ok(());
    }
    let (world, services) = every_backend(Topology::Bridge, Overlay::None)?;
    pods_of_other_nodes(&world, services)
}

#[test]
fn m_2_m_3_m_7_v_7_v_8_x_1_routed_backends_see_who_they_should() -> Result<()> {
    if !require::root_or_skip("m_2_m_3_m_7_v_7_v_8_x_1_routed_backends_see_who_they_should") {
        return Ok(());
    }
    let (world, services) = every_backend(Topology::Routed, Overlay::None)?;
    cluster_ips(&world, services, false)
}

#[test]
fn m_2_m_3_v_7_v_8_x_1_backends_behind_vxlan_see_who_they_should() -> Result<()> {
    if !require::root_or_skip("m_2_m_3_v_7_v_8_x_1_backends_behind_vxlan_see_who_they_should") {
        return Ok(());
    }
    every_backend(Topology::Bridge, Overlay::Vxlan).map(drop)
}

#[test]
fn m_2_m_3_v_7_v_8_x_1_backends_behind_a_device_without_link_headers_see_who_they_should()
-> Result<()> {
    let test =
        "m_2_m_3_v_7_v_8_x_1_backends_behind_a_device_without_link_headers_see_who_they_should";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    every_backend(Topology::Routed, Overlay::Tunnel).map(drop)
}

#[test]
fn m_6_cluster_ips_asked_from_outside_are_masqueraded_if_all_are() -> Result<()> {
    if !require::root_or_skip("m_6_cluster_ips_asked_from_outside_are_masqueraded_if_all_are") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&["--masquerade-all"])?;
    cluster_ips(&world, services, true)
}

/// A client that goes on sending does not keep a flow under an address that moved elsewhere: it gets
/// another one.
#[test]
fn flows_do_not_outlive_the_address_that_they_are_sent_on_under() -> Result<()> {
    if !require::root_or_skip("flows_do_not_outlive_the_address_that_they_are_sent_on_under") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[THERE]));
    let lent = ["172.18.0.50", "fd00:172:18::50"];
    let node = world.cluster.netns(ENTRY);
    node.ip(&format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad", lent[0], lent[1]))?;
    world.start(&["--snat-address", &lent.join(",")])?;
    let mut client = world.peer(OUTSIDE)?;
    let mut socks = Vec::new();
    for (family, lent) in Family::ALL.into_iter().zip(lent) {
        let sock = client.udp_connected(world.to(service, Way::NodePort, family))?;
        let reply = client.ask(&sock, "under an address that it has")?;
        ensure!(reply.client.ip().to_string() == lent, "{family}: {reply:?}");
        socks.push((family, sock));
    }
    let node = world.cluster.netns(ENTRY);
    node.ip(&format!("addr del {}/24 dev eth0\naddr del {}/64 dev eth0", lent[0], lent[1]))?;
    for (family, sock) in socks {
        let own = world.cluster.address(ENTRY, family);
        wait::until(&format!("the client to be seen as {own}"), SOON, || {
            let reply = client.ask_within(&sock, "and under another one", SILENCE);
            reply.is_ok_and(|(reply, _)| reply.client.ip() == own)
        })
        .with_context(|| format!("{family}: {:?}", world.counters(0)))?;
    }
    Ok(())
}
