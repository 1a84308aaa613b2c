//! Does a connection to a cluster IP reach a pod, and does the client see nothing but the cluster
//! IP? Each engine × TCP, UDP × IPv4, IPv6 × bridge, routed.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr},
};

use anyhow::Result;
use lb_testbed::{
    cluster::{At, Family, Place, Topology},
    matrix::{Case, Engine, TOPOLOGIES, Transport},
    peer::{self, Close, STEP},
    require,
    rig::{CLIENT, FAR, NEAR, Rig, TARGET},
};

/// New flows until both backends must have been seen: the chance of a miss is 2⁻⁶³.
const ENOUGH: usize = 64;

#[test]
fn cluster_ips_reach_pods_on_a_bridge() -> Result<()> {
    every_case("cluster_ips_reach_pods_on_a_bridge", Topology::Bridge)
}

#[test]
fn cluster_ips_reach_routed_pods() -> Result<()> {
    every_case("cluster_ips_reach_routed_pods", Topology::Routed)
}

fn every_case(test: &str, topology: Topology) -> Result<()> {
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let rig = Rig::new(topology)?;
    for case in Case::all() {
        both_backends_are_reached(&rig, case)?;
        the_client_sees_the_cluster_ip_only(&rig, case)?;
        match case.transport {
            Transport::Tcp => much_data_goes_both_ways(&rig, case)?,
            Transport::Udp => unconnected_datagrams_are_answered_by_the_cluster_ip(&rig, case)?,
        }
    }
    Ok(())
}

fn both_backends_are_reached(rig: &Rig, case: Case) -> Result<()> {
    let mut client = rig.client(case.engine)?;
    let mut seen = BTreeSet::new();
    for _ in 0..ENOUGH {
        seen.insert(case.once(&mut client, rig.vip(case.family))?.server);
        if seen.len() == 2 {
            return Ok(());
        }
    }
    panic!("{case}: only {seen:?}");
}

fn the_client_sees_the_cluster_ip_only(rig: &Rig, case: Case) -> Result<()> {
    let mut client = rig.client(case.engine)?;
    let vip = rig.vip(case.family);
    let sock = case.connect(&mut client, vip)?;
    assert_eq!(sock.remote, Some(vip), "{case}: getpeername");
    let (reply, from) = client.ask_within(&sock, "hello", STEP)?;
    if case.transport == Transport::Udp {
        assert_eq!(from, Some(vip), "{case}: recvfrom");
    }
    let server = if reply.server == "near" { NEAR } else { FAR };
    let target = SocketAddr::new(rig.cluster.address(server, case.family), TARGET);
    assert_eq!(reply.local, target, "{case}");
    assert_eq!(reply.client.ip(), rig.cluster.address(CLIENT, case.family), "{case}: source kept");
    assert_eq!(reply.client.port(), sock.local.port(), "{case}: source port kept");
    for number in 0..10 {
        let again = client.ask(&sock, &format!("again {number}"))?;
        assert_eq!(again.server, reply.server, "{case}: a connected socket stays");
    }
    Ok(())
}

/// Segments larger than the MTU, whose checksums are filled in by the sending interface.
fn much_data_goes_both_ways(rig: &Rig, case: Case) -> Result<()> {
    let mut client = rig.client(case.engine)?;
    for close in [Close::Graceful, Close::Reset] {
        let sock = case.connect(&mut client, rig.vip(case.family))?;
        client.bulk(sock.id, 4_000_000)?;
        client.close(sock.id, Close::Write)?;
        assert_eq!(client.receive(sock.id, STEP)?, None, "{case}: the server's FIN");
        client.close(sock.id, close)?;
    }
    Ok(())
}

fn unconnected_datagrams_are_answered_by_the_cluster_ip(rig: &Rig, case: Case) -> Result<()> {
    let mut client = rig.client(case.engine)?;
    let vip = rig.vip(case.family);
    let sock = client.udp_open(vip)?;
    let mut servers = BTreeSet::new();
    for number in 0..20 {
        let (reply, from) = client.ask_to(sock.id, vip, &format!("request {number}"), STEP)?;
        assert_eq!(from, Some(vip), "{case}: recvfrom");
        servers.insert(reply.server);
    }
    assert_eq!(servers.len(), 1, "{case}: one socket stays on one backend: {servers:?}");
    // The same socket talks to a pod directly and to the Service in turn.
    let pod = SocketAddr::new(rig.cluster.address(NEAR, case.family), TARGET);
    let (reply, from) = client.ask_to(sock.id, pod, "direct", STEP)?;
    assert_eq!(reply.server, "near", "{case}");
    assert!(
        from == Some(pod) || (servers.contains("near") && from == Some(vip)),
        "{case}: a direct datagram was answered from {from:?}"
    );
    Ok(())
}

#[test]
fn datagrams_larger_than_the_mtu_arrive() -> Result<()> {
    if !require::root_or_skip("datagrams_larger_than_the_mtu_arrive") {
        return Ok(());
    }
    let rig = Rig::new(Topology::Bridge)?;
    for case in Case::of(Transport::Udp) {
        let mut client = rig.client(case.engine)?;
        let sock = case.connect(&mut client, rig.vip(case.family))?;
        for size in [100, 1_400, 3_000, 9_000] {
            client.ask(&sock, &"x".repeat(size))?;
        }
    }
    Ok(())
}

#[test]
fn mapped_addresses_are_served_as_ipv4() -> Result<()> {
    if !require::root_or_skip("mapped_addresses_are_served_as_ipv4") {
        return Ok(());
    }
    let rig = Rig::new(Topology::Bridge)?;
    let SocketAddr::V4(vip) = rig.vip(Family::V4) else { panic!("an IPv4 address") };
    let mapped: Ipv6Addr = vip.ip().to_ipv6_mapped();
    let vip = SocketAddr::new(mapped.into(), vip.port());
    for engine in Engine::ALL {
        let mut client = rig.client(engine)?;
        let sock = client.tcp_connect(vip)?;
        assert_eq!(sock.remote, Some(vip), "{engine:?}");
        client.ask(&sock, "hello")?;
        let sock = client.udp_connected(vip)?;
        assert_eq!(sock.remote, Some(vip), "{engine:?}");
        client.ask(&sock, "hello")?;
        let sock = client.udp_open(vip)?;
        let (_, from) = client.ask_to(sock.id, vip, "hello", STEP)?;
        assert_eq!(from, Some(vip), "{engine:?}");
    }
    Ok(())
}

#[test]
fn the_host_network_is_a_client_and_a_backend() -> Result<()> {
    if !require::root_or_skip("the_host_network_is_a_client_and_a_backend") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    // A process of the node that has no packet engine in its way is served at its socket.
    let mut host = rig.cluster.peer(At::Node(0), Place::InCgroup)?;
    for family in Family::ALL {
        let vip = rig.vip(family);
        for reply in [host.tcp_once(vip)?, host.udp_once(vip)?] {
            assert!(["near", "far"].contains(&reply.server.as_str()), "{reply:?}");
        }
    }
    let _server = rig.cluster.serve(At::Node(1), "host", TARGET)?;
    rig.manifest.endpoints("web", TARGET, &rig.cluster.addresses(At::Node(1)));
    rig.write()?;
    let (host, pods) = (rig.addresses(&[At::Node(1)]), rig.addresses(&[NEAR, FAR]));
    rig.wait_backends("default/web", &host, &pods)?;
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        assert_eq!(case.once(&mut client, rig.vip(case.family))?.server, "host", "{case}");
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_and_other_traffic_is_untouched() -> Result<()> {
    let test = "a_service_without_endpoints_refuses_and_other_traffic_is_untouched";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    rig.set_endpoints(&[])?;
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        let vip = rig.vip(case.family);
        // A datagram's sender learns of it with its next call.
        let error = case
            .connect(&mut client, vip)
            .and_then(|sock| client.ask_within(&sock, "hello", STEP))
            .unwrap_err();
        assert_eq!(peer::errno(&error), Some(libc::ECONNREFUSED), "{case}: {error:#}");
        for (at, server) in [(NEAR, "near"), (FAR, "far")] {
            let pod = SocketAddr::new(rig.cluster.address(at, case.family), TARGET);
            let reply = case.once(&mut client, pod)?;
            assert_eq!(reply.server, server, "{case}: pods are reached directly");
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_is_its_own_backend_reaches_itself() -> Result<()> {
    for topology in TOPOLOGIES {
        if !require::root_or_skip("a_pod_that_is_its_own_backend_reaches_itself") {
            return Ok(());
        }
        let mut rig = Rig::new(topology)?;
        let _own = rig.cluster.serve(CLIENT, "own", TARGET)?;
        rig.set_endpoints(&[CLIENT])?;
        for case in Case::all() {
            let mut client = rig.client(case.engine)?;
            let vip = rig.vip(case.family);
            let sock = case.connect(&mut client, vip)?;
            assert_eq!(sock.remote, Some(vip), "{topology}, {case}");
            for _ in 0..3 {
                let (reply, from) = client.ask_within(&sock, "me", STEP)?;
                assert_eq!(reply.server, "own", "{topology}, {case}");
                assert!(from.is_none_or(|from| from == vip), "{topology}, {case}: {from:?}");
            }
            if case.transport == Transport::Tcp {
                client.bulk(sock.id, 1_000_000)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_router_that_asks_for_smaller_packets_is_heard() -> Result<()> {
    if !require::root_or_skip("a_router_that_asks_for_smaller_packets_is_heard") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        rig.set_endpoints(&[FAR])?;
        // The last hop takes less than both ends believe, so the far node sends ICMP errors, which
        // tell of the pod's address and have to tell the client of the cluster IP.
        let far = &rig.cluster.nodes()[1];
        far.netns.ip(&format!("link set {} mtu 1300", far.pods[0].host_interface))?;
        for case in Case::of(Transport::Tcp) {
            let mut client = rig.client(case.engine)?;
            let pod = SocketAddr::new(rig.cluster.address(FAR, case.family), TARGET);
            for to in [rig.vip(case.family), pod] {
                // The kernel remembers what it has heard, per destination.
                for family in ["-4", "-6"] {
                    rig.cluster.netns(CLIENT).ip_output(&[family, "route", "flush", "cache"])?;
                }
                let sock = client.tcp_connect(to)?;
                client.bulk(sock.id, 200_000)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_direct_connection_is_not_taken_for_an_earlier_flow() -> Result<()> {
    if !require::root_or_skip("a_direct_connection_is_not_taken_for_an_earlier_flow") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    rig.set_endpoints(&[FAR])?;
    for family in Family::ALL {
        let mut client = rig.client(Engine::Packet)?;
        let from = Some(SocketAddr::new(rig.cluster.address(CLIENT, family), 45_678));
        let pod = SocketAddr::new(rig.cluster.address(FAR, family), TARGET);
        // The backend sees the same addresses and ports each time.
        for to in [rig.vip(family), pod, rig.vip(family), pod] {
            let sock = client.tcp_connect_from(from, to, STEP)?;
            assert_eq!(client.ask(&sock, "hello")?.server, "far", "{to}");
            client.close(sock.id, Close::Reset)?;
        }
    }
    Ok(())
}
