//! What the node's own clients see of NodePorts, load balancer addresses and externalIPs: pods by
//! either engine, and processes of the node.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_testbed::{
    agent::Source,
    cluster::{At, Family, Place, Topology},
    manifest::{Endpoint, EndpointSlice, Service},
    matrix::{Case, Engine, TOPOLOGIES, Transport},
    peer::{self, Peer, STEP},
    require,
    rig::{CLIENT, FAR, IN_FORCE_WITHIN, NEAR, PORT, Rig, SPARE, TARGET},
    wait,
};
use serde_json::{Value, json};

const NODE_PORT: u16 = 30_080;
/// A process of the node itself.
const HOST: At = At::Node(0);

fn external_ip(family: Family) -> IpAddr {
    address(family, "198.51.100.7", "2001:db8:7::7")
}

fn load_balancer(family: Family) -> IpAddr {
    address(family, "198.51.100.8", "2001:db8:7::8")
}

fn address(family: Family, v4: &str, v6: &str) -> IpAddr {
    let text = if family == Family::V4 { v4 } else { v6 };
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// `web` with everything by which it can be reached, under the Local policy.
fn expose(rig: &mut Rig) {
    let vips = Family::ALL.map(|family| rig.vip(family).ip());
    let service = Service::new("default", "web", &vips)
        .port("tcp", "TCP", PORT, TARGET)
        .port("udp", "UDP", PORT, TARGET)
        .spec("type", "LoadBalancer")
        .spec("externalTrafficPolicy", "Local")
        .spec("externalIPs", json!(Family::ALL.map(|family| external_ip(family).to_string())));
    let mut service = Value::from(service);
    for port in 0..2 {
        service["spec"]["ports"][port]["nodePort"] = NODE_PORT.into();
    }
    let ingress = Family::ALL.map(|family| json!({"ip": load_balancer(family).to_string()}));
    service["status"]["loadBalancer"]["ingress"] = json!(ingress);
    rig.manifest.set(service);
}

/// A cluster whose `web` is exposed and has these endpoints.
fn exposed(topology: Topology, endpoints: &[At]) -> Result<Rig> {
    let mut rig = Rig::without_agents(topology)?;
    expose(&mut rig);
    rig.change_endpoints(endpoints)?;
    rig.start_agents()?;
    rig.wait_endpoints(endpoints)?;
    Ok(rig)
}

/// By what `web` is reached from outside of its cluster, as far as node-0's clients are concerned.
fn destinations(rig: &Rig, family: Family) -> [SocketAddr; 3] {
    [
        SocketAddr::new(rig.cluster.address(HOST, family), NODE_PORT),
        SocketAddr::new(external_ip(family), PORT),
        SocketAddr::new(load_balancer(family), PORT),
    ]
}

/// Every kind of client that node-0 has.
fn clients(rig: &Rig) -> Result<Vec<(At, Engine, Peer)>> {
    [(CLIENT, Engine::Socket), (CLIENT, Engine::Packet), (HOST, Engine::Socket)]
        .into_iter()
        .map(|(at, engine)| Ok((at, engine, rig.cluster.peer(at, engine.place())?)))
        .collect()
}

/// Rules V-9, V-10, V-c, V-f, X-1, X-2, M-4, M-5: without an endpoint on the node, its clients reach
/// one elsewhere, and the backend sees the client's own address, which is the node's for the node.
#[test]
fn v_9_v_10_v_c_clients_of_the_node_reach_external_destinations_under_the_local_policy()
-> Result<()> {
    let test =
        "v_9_v_10_v_c_clients_of_the_node_reach_external_destinations_under_the_local_policy";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let rig = exposed(topology, &[FAR])?;
        for (at, engine, mut client) in clients(&rig)? {
            for case in Case::all().filter(|case| case.engine == engine) {
                for to in destinations(&rig, case.family) {
                    let what = format!("{topology}, {at:?}, {case}, {to}");
                    let sock = case.connect(&mut client, to).context(what.clone())?;
                    assert_eq!(sock.remote, Some(to), "{what}: getpeername");
                    let (reply, from) =
                        client.ask_within(&sock, "hello", STEP).context(what.clone())?;
                    assert_eq!(reply.server, "far", "{what}");
                    assert!(from.is_none_or(|from| from == to), "{what}: answered by {from:?}");
                    let source = rig.cluster.address(at, case.family);
                    assert_eq!(reply.client.ip(), source, "{what}: source");
                }
            }
        }
    }
    Ok(())
}

/// Rule C-5: nothing listens on the port, while the Service is there or afterwards.
#[test]
fn c_5_nothing_listens_on_node_ports_and_they_are_gone_with_their_service() -> Result<()> {
    let test = "c_5_nothing_listens_on_node_ports_and_they_are_gone_with_their_service";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = exposed(Topology::Bridge, &[NEAR])?;
    let mut host = rig.cluster.peer(HOST, Place::InCgroup)?;
    let mut pod = rig.client(Engine::Packet)?;
    for family in Family::ALL {
        let node_port = destinations(&rig, family)[0];
        assert_eq!(host.tcp_once(node_port)?.server, "near");
        assert_eq!(pod.tcp_once(node_port)?.server, "near");
    }
    assert_eq!(bound(&rig)?, Vec::<String>::new());
    rig.manifest.remove("Service", "default", "web");
    rig.write()?;
    for family in Family::ALL {
        let node_port = destinations(&rig, family)[0];
        for client in [&mut host, &mut pod] {
            // By the node's kernel, as for any port that nobody listens on.
            wait::until("the NodePort to go", IN_FORCE_WITHIN, || {
                let result = client.tcp_connect_from(None, node_port, Duration::from_millis(300));
                result.err().and_then(|error| peer::errno(&error)) == Some(libc::ECONNREFUSED)
            })?;
        }
    }
    assert_eq!(bound(&rig)?, Vec::<String>::new());
    Ok(())
}

/// The node's sockets that are bound to the NodePort, as the kernel lists them.
fn bound(rig: &Rig) -> Result<Vec<String>> {
    let port = format!(":{NODE_PORT:04X} ");
    rig.cluster.run(HOST, || -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
            let local = |line: &&str| {
                line.split_whitespace().nth(1).is_some_and(|at| format!("{at} ").contains(&port))
            };
            lines.extend(text.lines().filter(local).map(str::to_owned));
        }
        Ok(lines)
    })?
}

/// Rule U-3: datagrams to a NodePort, an externalIP and a load balancer's address leave a backend
/// that is gone, from one and the same socket.
#[test]
fn u_3_datagrams_to_external_destinations_leave_a_backend_that_is_gone() -> Result<()> {
    let test = "u_3_datagrams_to_external_destinations_leave_a_backend_that_is_gone";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = exposed(Topology::Bridge, &[FAR])?;
    let mut open = Vec::new();
    for family in Family::ALL {
        for (at, engine, mut client) in clients(&rig)? {
            for to in destinations(&rig, family) {
                let sock = client.udp_open(to)?;
                let what = format!("{at:?}, {engine:?} engine, {to}");
                let (reply, from) = client.ask_to(sock.id, to, "first", STEP).context(what)?;
                assert_eq!((reply.server.as_str(), from), ("far", Some(to)));
                open.push((sock.id, to));
            }
            open.sort_by_key(|(id, _)| *id);
            let socks = std::mem::take(&mut open);
            rig.set_endpoints(&[SPARE])?;
            for (sock, to) in socks {
                let what = format!("{at:?}, {engine:?} engine, {to}");
                for _ in 0..2 {
                    let (reply, from) =
                        client.ask_to(sock, to, "moved", STEP).context(what.clone())?;
                    assert_eq!((reply.server.as_str(), from), ("spare", Some(to)), "{what}");
                }
            }
            rig.set_endpoints(&[FAR])?;
        }
    }
    Ok(())
}

/// Rule M-d: a process of the node and a host-network backend of the same node.
#[test]
fn m_d_a_process_of_the_node_reaches_a_backend_of_the_node() -> Result<()> {
    if !require::root_or_skip("m_d_a_process_of_the_node_reaches_a_backend_of_the_node") {
        return Ok(());
    }
    let mut rig = exposed(Topology::Bridge, &[FAR])?;
    let _server = rig.cluster.serve(HOST, "host", TARGET)?;
    rig.manifest.endpoints("web", TARGET, &rig.cluster.addresses(HOST));
    rig.write()?;
    rig.wait_backends("default/web", &rig.addresses(&[HOST]), &rig.addresses(&[FAR]))?;
    let mut host = rig.cluster.peer(HOST, Place::InCgroup)?;
    for case in Case::all().filter(|case| case.engine == Engine::Socket) {
        let mut all = destinations(&rig, case.family).to_vec();
        all.push(rig.vip(case.family));
        for to in all {
            let reply = case.once(&mut host, to)?;
            assert_eq!(reply.server, "host", "{case}, {to}");
        }
    }
    Ok(())
}

/// Rules N-6 and N-7, CVE-2020-8558: NodePorts on loopback are for processes of the node, where they
/// are asked for, and no setting of the kernel lets others in.
#[test]
fn n_7_cve_2020_8558_loopback_node_ports_are_the_nodes_own() -> Result<()> {
    if !require::root_or_skip("n_7_cve_2020_8558_loopback_node_ports_are_the_nodes_own") {
        return Ok(());
    }
    for asked_for in [false, true] {
        let mut rig = Rig::without_agents(Topology::Bridge)?;
        expose(&mut rig);
        rig.change_endpoints(&[FAR])?;
        let state = rig.cluster.scratch().join("state.json");
        let mut spec = rig.agent(0, Source::Manifests(state))?;
        if asked_for {
            spec = spec.arg("--node-port-addresses").arg("primary,localhost");
        }
        let _agent = spec.start()?;
        let mut host = rig.cluster.peer(HOST, Place::InCgroup)?;
        for case in Case::all().filter(|case| case.engine == Engine::Socket) {
            let loopback = address(case.family, "127.0.0.1", "::1");
            let to = SocketAddr::new(loopback, NODE_PORT);
            let what = format!("asked for: {asked_for}, {case}");
            if asked_for {
                let sock = case.connect(&mut host, to).context(what.clone())?;
                assert_eq!(sock.remote, Some(to), "{what}");
                assert_eq!(host.ask(&sock, "hello").context(what.clone())?.server, "far", "{what}");
            } else {
                refused(&mut host, case, to);
            }
            for engine in Engine::ALL {
                refused(&mut rig.client(engine)?, Case { engine, ..case }, to);
            }
            // Its address works in any case.
            let to = destinations(&rig, case.family)[0];
            assert_eq!(case.once(&mut host, to)?.server, "far", "{what}");
        }
        let settings = rig.cluster.run(HOST, || {
            ["all", "default", "eth0"].map(|interface| {
                let path = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
                fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
            })
        })?;
        assert_eq!(settings, ["0\n"; 3]);
    }
    Ok(())
}

/// Nobody answers: the client's own kernel says so.
fn refused(client: &mut Peer, case: Case, to: SocketAddr) {
    let errno = match case.transport {
        Transport::Tcp => client.tcp_connect(to).err().and_then(|error| peer::errno(&error)),
        Transport::Udp => client
            .udp_connected(to)
            .and_then(|sock| client.ask(&sock, "hello"))
            .err()
            .and_then(|error| peer::errno(&error)),
    };
    assert_eq!(errno, Some(libc::ECONNREFUSED), "{case}, {to}");
}

/// Section 1.3: an SCTP Service is programmed, and the kernel's SCTP module is left where it is.
#[test]
fn sctp_is_programmed_without_the_kernels_module() -> Result<()> {
    let test = "sctp_is_programmed_without_the_kernels_module";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let module = Path::new("/sys/module/sctp");
    if module.exists() {
        require::skip(test, "the module is there already, by somebody else");
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    let vips = Family::ALL.map(|family| rig.vip(family).ip());
    let service = Service::new("default", "signals", &vips).port("m3ua", "SCTP", 2905, 2905);
    rig.manifest.set(service);
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let slice = EndpointSlice::new("default", &format!("signals-{kind}"), "signals", kind)
            .port("m3ua", "SCTP", 2905)
            .endpoint(Endpoint::ready(rig.cluster.address(FAR, family)));
        rig.manifest.set(slice);
    }
    rig.write()?;
    rig.start_agents()?;
    rig.wait_backends("default/signals", &rig.addresses(&[FAR]), &[])?;
    assert!(!module.exists(), "loaded");
    Ok(())
}
