//! What users of other load balancers have met in production, with real sockets: what needs the
//! kernel's own TCP states, racing datagrams or full tables to show. The rest is in
//! `lb-common/tests/logic`, by the same numbers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_testbed::{
    agent::Source,
    cluster::{At, Family, Place, Topology},
    manifest::Service,
    matrix::{Case, Engine, TOPOLOGIES, Transport},
    peer::{self, Close, LoadKind, Peer, Reply, STEP},
    require,
    rig::{CLIENT, FAR, NEAR, PORT, Rig, SPARE, TARGET},
    wait,
};

/// A client's port in all connections of a test.
const FIXED: u16 = 45_000;
/// A port that no kernel gives to a socket that asks for none.
const FIXED_UDP: u16 = 20_000;

/// Production case 7: a host-network client of DNS whose only backend is on another node.
#[test]
fn case_7_host_network_datagrams_reach_a_backend_on_another_node() -> Result<()> {
    let test = "case_7_host_network_datagrams_reach_a_backend_on_another_node";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        rig.set_endpoints(&[FAR])?;
        let mut host = rig.cluster.peer(At::Node(0), Place::InCgroup)?;
        for family in Family::ALL {
            let vip = rig.vip(family);
            let connected = host.udp_connected(vip)?;
            assert_eq!(connected.remote, Some(vip), "{topology}, {family}: getpeername");
            let (reply, from) = host.ask_within(&connected, "connected", STEP)?;
            assert_eq!((reply.server.as_str(), from), ("far", Some(vip)), "{topology}, {family}");
            let open = host.udp_open(vip)?;
            for _ in 0..5 {
                let (reply, from) = host.ask_to(open.id, vip, "unconnected", STEP)?;
                assert_eq!((reply.server.as_str(), from), ("far", Some(vip)), "{family}");
            }
            // Others have been cured by leaving UDP out: then the datagram leaves for the VIP.
            assert_eq!(reply.client.ip(), rig.cluster.address(At::Node(0), family));
        }
    }
    Ok(())
}

/// Rule U-11: two queries at once on one socket, as a resolver asks for both kinds of addresses. Each
/// is answered, although both are first packets.
#[test]
fn u_11_two_queries_at_once_on_one_socket_are_both_answered() -> Result<()> {
    if !require::root_or_skip("u_11_two_queries_at_once_on_one_socket_are_both_answered") {
        return Ok(());
    }
    let rig = Rig::new(Topology::Bridge)?;
    for case in Case::of(Transport::Udp) {
        let mut client = rig.client(case.engine)?;
        let vip = rig.vip(case.family);
        let mut servers = BTreeSet::new();
        for round in 0..100 {
            let sock = client.udp_open(vip)?;
            let connected = round % 2 == 0;
            if connected {
                client.udp_connect(sock.id, vip)?;
            }
            for query in ["A", "AAAA"] {
                if connected {
                    client.send(sock.id, query)?;
                } else {
                    client.send_to(sock.id, vip, query)?;
                }
            }
            let mut asked = BTreeSet::from(["A".to_owned(), "AAAA".to_owned()]);
            for _ in 0..2 {
                let (text, from) = client
                    .receive(sock.id, STEP)
                    .with_context(|| format!("{case}, round {round}: still waiting for {asked:?}"))?
                    .context("a datagram")?;
                let reply: Reply = serde_json::from_str(&text)?;
                assert_eq!(from, Some(vip), "{case}");
                assert!(asked.remove(&reply.data), "{case}: {} twice", reply.data);
                servers.insert(reply.server);
            }
            client.close(sock.id, Close::Graceful)?;
        }
        assert_eq!(servers.len(), 2, "{case}: sockets are spread");
    }
    Ok(())
}

/// Production case 57, and rules V-3, V-4 with departure c: callers inside of the kernel (NFS, SMB) did
/// not survive the error that a refused connection gave them. Here every refused call fails with one
/// of the two errors that a network gives too, whatever the caller.
#[test]
fn case_57_refused_calls_fail_with_errors_that_networks_give() -> Result<()> {
    if !require::root_or_skip("case_57_refused_calls_fail_with_errors_that_networks_give") {
        return Ok(());
    }
    // Endpoints that name no node are elsewhere, for every node.
    for (policy, endpoints, expected) in [
        ("Cluster", &[][..], libc::ECONNREFUSED),
        ("Local", &[], libc::ECONNREFUSED),
        ("Local", &[FAR], libc::EHOSTUNREACH),
    ] {
        let mut rig = Rig::without_agents(Topology::Bridge)?;
        let vips = Family::ALL.map(|family| rig.vip(family).ip());
        let service = Service::new("default", "web", &vips)
            .port("tcp", "TCP", PORT, TARGET)
            .port("udp", "UDP", PORT, TARGET)
            .spec("internalTrafficPolicy", policy);
        rig.manifest.set(service);
        rig.change_endpoints(endpoints)?;
        rig.start_agents()?;
        for at in [CLIENT, At::Node(0)] {
            for family in Family::ALL {
                let mut client = rig.cluster.peer(at, Place::InCgroup)?;
                let vip = rig.vip(family);
                let sock = client.udp_open(vip)?;
                let calls = [
                    ("TCP connect", client.tcp_connect(vip).err()),
                    ("UDP connect", client.udp_connected(vip).err()),
                    ("sendto", client.send_to(sock.id, vip, "hello").err()),
                ];
                for (call, error) in calls {
                    let errno = error.as_ref().and_then(peer::errno);
                    let what = format!("{policy}, {endpoints:?}, {at:?}, {family}, {call}");
                    assert_eq!(errno, Some(expected), "{what}: {error:?}");
                }
            }
        }
    }
    Ok(())
}

/// Production case 66: a port that a client uses for one connection after the other, while its kernel
/// (`TIME_WAIT`) and the server's may still wait for segments of the one before.
#[test]
fn case_66_connections_from_one_port_never_fail() -> Result<()> {
    if !require::root_or_skip("case_66_connections_from_one_port_never_fail") {
        return Ok(());
    }
    let rig = Rig::new(Topology::Bridge)?;
    for case in Case::of(Transport::Tcp) {
        let mut client = rig.client(case.engine)?;
        let vip = rig.vip(case.family);
        let from = SocketAddr::new(rig.cluster.address(CLIENT, case.family), FIXED);
        let mut servers = BTreeSet::new();
        for round in 0..60 {
            let close = if round % 3 == 0 { Close::Reset } else { Close::Graceful };
            // The client's own kernel may refuse as long as it waits for the server's FIN.
            let sock = wait::until_some("the client's kernel to give the port away", STEP, || {
                let result = client.tcp_connect_from(Some(from), vip, STEP);
                let errno = result.as_ref().err().and_then(peer::errno);
                (errno != Some(libc::EADDRNOTAVAIL)).then_some(result)
            })?
            .with_context(|| format!("{case}, connection {round}"))?;
            servers.insert(client.ask(&sock, "hello")?.server);
            client.close(sock.id, close)?;
        }
        assert_eq!(servers.len(), 2, "{case}: each connection is chosen for anew");
    }
    Ok(())
}

/// Production case 68: the backend goes between two connections of one tuple, whose first one was
/// never ended properly.
#[test]
fn case_68_a_backend_goes_between_two_connections_of_one_port() -> Result<()> {
    if !require::root_or_skip("case_68_a_backend_goes_between_two_connections_of_one_port") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        let order = [(FAR, "far"), (SPARE, "spare"), (NEAR, "near"), (FAR, "far")];
        for (place, name) in order {
            rig.set_endpoints(&[place])?;
            for case in Case::of(Transport::Tcp) {
                let mut client = rig.client(case.engine)?;
                let vip = rig.vip(case.family);
                let from = SocketAddr::new(rig.cluster.address(CLIENT, case.family), FIXED);
                let sock = client.tcp_connect_from(Some(from), vip, STEP)?;
                assert_eq!(client.ask(&sock, "hello")?.server, name, "{topology}, {case}");
                client.close(sock.id, Close::Reset)?;
            }
        }
    }
    Ok(())
}

/// Production case 71: the tables are full of a client's flows, each of which evicts another. What is
/// no Service's knows nothing of it, and new connections to Services are served as before.
#[test]
fn case_71_full_tables_cut_nobody_off() -> Result<()> {
    if !require::root_or_skip("case_71_full_tables_cut_nobody_off") {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let state = rig.cluster.scratch().join("state.json");
    let mut small = rig.cluster.agent(0, Source::Manifests(state))?;
    for size in ["--max-flows", "--max-half-open-flows", "--max-socket-peers"] {
        small = small.arg(size).arg("1024");
    }
    let _agent = small.start()?;
    // A machine outside speaks to the node, as an administrator and the API server do.
    let _node = rig.cluster.serve_in(At::Node(0), Place::Outside, "node", 22)?;
    let mut outside = rig.cluster.peer(At::Fabric, Place::Outside)?;
    for family in Family::ALL {
        let vip = rig.vip(family);
        let mut flood = rig.client(Engine::Packet)?;
        let load = flood.load(vip, LoadKind::UdpSockets, STEP)?;
        for _ in 0..2 {
            flood.load_goes_on(load, 1_024, Duration::from_mins(1))?;
            let ssh = SocketAddr::new(rig.cluster.address(At::Node(0), family), 22);
            assert_eq!(outside.tcp_once(ssh)?.server, "node", "{family}");
            for case in Case::all().filter(|case| case.family == family) {
                case.once(&mut rig.client(case.engine)?, vip)?;
            }
            for (at, server) in [(NEAR, "near"), (FAR, "far")] {
                let pod = SocketAddr::new(rig.cluster.address(at, family), TARGET);
                for engine in Engine::ALL {
                    directly(&mut rig.client(engine)?, pod, server)?;
                    // A probe by the node itself, as kubelet sends them.
                    directly(&mut rig.cluster.peer(At::Node(0), engine.place())?, pod, server)?;
                }
            }
        }
        let stats = flood.load_stop(load)?;
        assert_eq!(stats.failed, 0, "{family}: {stats:?}");
    }
    Ok(())
}

/// A connection and a datagram to a pod itself. The datagram comes from a port that no flow of the
/// flood has: replies to a live flow of a Service are its own, whoever uses its port by now.
fn directly(client: &mut Peer, pod: SocketAddr, server: &str) -> Result<()> {
    assert_eq!(client.tcp_once(pod)?.server, server, "{pod}");
    let sock = client.udp_open_from(SocketAddr::new(any(pod), FIXED_UDP))?;
    let (reply, from) = client.ask_to(sock.id, pod, "directly", STEP)?;
    assert_eq!((reply.server.as_str(), from), (server, Some(pod)));
    client.close(sock.id, Close::Graceful)
}

fn any(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Rule L-13: a second agent for a node ends with an error that says so, and disturbs nothing.
#[test]
fn l_13_a_second_agent_of_a_node_is_refused() -> Result<()> {
    if !require::root_or_skip("l_13_a_second_agent_of_a_node_is_refused") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    let state = rig.cluster.scratch().join("state.json");
    let mut second = rig.agent(0, Source::Manifests(state))?.start_unsynced()?;
    second.log().wait("error about the other agent", STEP, |line| {
        line.contains("another lb-agent works on") && line.contains("--bpffs")
    })?;
    wait::until("the second agent to end", STEP, || !second.is_running())?;
    assert!(rig.agents[0].is_running());
    rig.set_endpoints(&[SPARE])?;
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        assert_eq!(case.once(&mut client, rig.vip(case.family))?.server, "spare", "{case}");
    }
    Ok(())
}
