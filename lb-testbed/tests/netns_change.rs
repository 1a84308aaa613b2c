//! What happens to flows when the cluster changes?

use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_testbed::{
    agent::Source,
    cluster::{At, Family, Place, Topology},
    foreign::{Direction, Order, Policy},
    manifest::Manifest,
    matrix::{Case, Engine, TOPOLOGIES, Transport},
    peer::{LoadKind, Peer, STEP},
    require,
    rig::{CLIENT, FAR, NEAR, Rig, SPARE, TARGET},
    wait,
};

#[test]
fn new_connections_follow_the_endpoints() -> Result<()> {
    if !require::root_or_skip("new_connections_follow_the_endpoints") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    for (place, name) in [(FAR, "far"), (SPARE, "spare"), (NEAR, "near")] {
        rig.set_endpoints(&[place])?;
        for case in Case::all() {
            let mut client = rig.client(case.engine)?;
            for _ in 0..5 {
                assert_eq!(case.once(&mut client, rig.vip(case.family))?.server, name, "{case}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_established_connection_outlives_its_backend_in_the_list() -> Result<()> {
    if !require::root_or_skip("an_established_connection_outlives_its_backend_in_the_list") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        rig.set_endpoints(&[FAR])?;
        let mut established = Vec::new();
        for case in Case::of(Transport::Tcp) {
            let mut client = rig.client(case.engine)?;
            let sock = case.connect(&mut client, rig.vip(case.family))?;
            assert_eq!(client.ask(&sock, "before")?.server, "far", "{topology}, {case}");
            established.push((case, client, sock));
        }
        for endpoints in [&[NEAR, FAR, SPARE][..], &[SPARE], &[]] {
            rig.set_endpoints(endpoints)?;
            for (case, client, sock) in &mut established {
                assert_eq!(client.ask(sock, "after")?.server, "far", "{topology}, {case}");
            }
        }
        // The Service itself goes.
        for (kind, name) in
            [("Service", "web"), ("EndpointSlice", "web-ipv4"), ("EndpointSlice", "web-ipv6")]
        {
            assert!(rig.manifest.remove(kind, "default", name), "{kind} {name}");
        }
        rig.write()?;
        for agent in &rig.agents {
            wait::until("the Service to go", lb_testbed::rig::IN_FORCE_WITHIN, || {
                agent.command("services", &[]).is_ok_and(|text| !text.contains("default/web"))
            })?;
        }
        for (case, client, sock) in &mut established {
            client.bulk(sock.id, 500_000)?;
            assert_eq!(client.names(sock.id)?.remote, Some(rig.vip(case.family)), "{case}");
        }
    }
    Ok(())
}

#[test]
fn a_udp_socket_stays_while_its_backend_serves_and_moves_when_it_does_not() -> Result<()> {
    let test = "a_udp_socket_stays_while_its_backend_serves_and_moves_when_it_does_not";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        rig.set_endpoints(&[FAR])?;
        let mut unconnected = Vec::new();
        for case in Case::of(Transport::Udp) {
            let mut client = rig.client(case.engine)?;
            let vip = rig.vip(case.family);
            let sock = client.udp_open(vip)?;
            assert_eq!(client.ask_to(sock.id, vip, "first", STEP)?.0.server, "far", "{case}");
            unconnected.push((case, client, sock, vip));
        }
        rig.set_endpoints(&[NEAR, FAR, SPARE])?;
        for (case, client, sock, vip) in &mut unconnected {
            for _ in 0..10 {
                let (reply, from) = client.ask_to(sock.id, *vip, "grown", STEP)?;
                assert_eq!(
                    (reply.server.as_str(), from),
                    ("far", Some(*vip)),
                    "{topology}, {case}"
                );
            }
        }
        rig.set_endpoints(&[SPARE])?;
        for (case, client, sock, vip) in &mut unconnected {
            let (reply, from) = client.ask_to(sock.id, *vip, "moved", STEP)?;
            assert_eq!((reply.server.as_str(), from), ("spare", Some(*vip)), "{topology}, {case}");
        }
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_of_the_packet_engine_moves_with_its_next_datagram() -> Result<()> {
    let test = "a_connected_udp_socket_of_the_packet_engine_moves_with_its_next_datagram";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    rig.set_endpoints(&[FAR])?;
    let mut clients = Vec::new();
    for family in Family::ALL {
        let mut client = rig.client(Engine::Packet)?;
        let sock = client.udp_connected(rig.vip(family))?;
        assert_eq!(client.ask(&sock, "first")?.server, "far");
        clients.push((client, sock));
    }
    rig.set_endpoints(&[NEAR])?;
    for (client, sock) in &mut clients {
        assert_eq!(client.ask(sock, "moved")?.server, "near");
    }
    Ok(())
}

#[test]
fn traffic_does_not_notice_that_the_agent_is_killed_and_restarted() -> Result<()> {
    let test = "traffic_does_not_notice_that_the_agent_is_killed_and_restarted";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    // A pod for each engine, as it is in a cluster.
    let other = At::Pod(0, rig.cluster.add_pod(0)?);
    rig.start_agents()?;
    let mut loads = Vec::new();
    for (engine, at) in [(Engine::Socket, CLIENT), (Engine::Packet, other)] {
        for family in Family::ALL {
            let kinds =
                [LoadKind::TcpConnections, LoadKind::TcpEstablished, LoadKind::UdpUnconnected];
            for kind in kinds {
                let mut client = rig.cluster.peer(at, engine.place())?;
                let load = client.load(rig.vip(family), kind, Duration::from_secs(3))?;
                loads.push((engine, family, kind, client, load));
            }
        }
    }
    let deadline = Duration::from_secs(20);
    let all_go_on = |when: &str, loads: &mut Vec<_>| -> Result<()> {
        for (engine, family, kind, client, load) in loads {
            let client: &mut Peer = client;
            client
                .load_goes_on(*load, 20, deadline)
                .with_context(|| format!("{when}: {engine:?} engine, {family}, {kind:?}"))?;
        }
        Ok(())
    };
    all_go_on("at first", &mut loads)?;
    for _ in 0..2 {
        rig.agents[0].kill()?;
        // New connections are served while nobody is there.
        all_go_on("killed", &mut loads)?;
        rig.agents[0].restart()?;
        all_go_on("restarted", &mut loads)?;
    }
    // What has changed while the agent was away is in force after the restart.
    rig.agents[0].kill()?;
    rig.manifest.endpoints("web", TARGET, &rig.cluster.addresses(SPARE));
    rig.write()?;
    all_go_on("killed again", &mut loads)?;
    rig.agents[0].restart()?;
    rig.wait_endpoints(&[SPARE])?;
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        assert_eq!(case.once(&mut client, rig.vip(case.family))?.server, "spare", "{case}");
    }
    for (engine, family, kind, mut client, load) in loads {
        let stats = client.load_stop(load)?;
        assert_eq!(stats.failed, 0, "{engine:?}, {family}, {kind:?}: {stats:?}");
    }
    Ok(())
}

#[test]
fn a_pod_that_comes_later_is_served() -> Result<()> {
    if !require::root_or_skip("a_pod_that_comes_later_is_served") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        let late = At::Pod(0, rig.cluster.add_pod(0)?);
        for family in Family::ALL {
            let vip = rig.vip(family);
            let mut client = rig.cluster.peer(late, Place::Outside)?;
            // The agent hears of the interface some time after it is there.
            let what = format!("{topology}, {family}: the new pod to be served");
            wait::until(&what, lb_testbed::rig::IN_FORCE_WITHIN, || {
                client
                    .tcp_connect_from(None, vip, Duration::from_millis(200))
                    .is_ok_and(|sock| client.ask(&sock, "hello").is_ok())
            })?;
            assert!(client.udp_once(vip).is_ok());
        }
    }
    Ok(())
}

#[test]
fn other_programs_on_the_interface_see_pods_and_keep_their_say() -> Result<()> {
    let test = "other_programs_on_the_interface_see_pods_and_keep_their_say";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    // Attached before the agent comes, or after it, wherever the kernel puts the last one.
    for before in [true, false] {
        let mut rig = Rig::without_agents(Topology::Bridge)?;
        if !before {
            rig.start_agents()?;
        }
        let node = &rig.cluster.nodes()[0];
        let port = node.pods[0].host_interface.clone();
        let no_service = Policy::no_service_address();
        // Ours is first on ingress and last on egress: both ways others see pod addresses.
        let policies = [
            no_service.attach(&node.netns, &port, Direction::Ingress, Order::Last)?,
            no_service.attach(&node.netns, &port, Direction::Egress, Order::First)?,
        ];
        let nothing_to_far = Policy::nothing_to(&rig.cluster.addresses(FAR));
        let blocked = nothing_to_far.attach(&node.netns, &port, Direction::Ingress, Order::Last)?;
        if before {
            rig.start_agents()?;
        }
        rig.set_endpoints(&[NEAR])?;
        for case in Case::all() {
            let mut client = rig.client(case.engine)?;
            let reply = case.once(&mut client, rig.vip(case.family))?;
            assert_eq!(reply.server, "near", "before {before}, {case}");
        }
        rig.set_endpoints(&[FAR])?;
        for family in Family::ALL {
            for engine in Engine::ALL {
                let mut client = rig.client(engine)?;
                let vip = rig.vip(family);
                let blocked = client.tcp_connect_from(None, vip, Duration::from_millis(300));
                assert!(blocked.is_err(), "before {before}, {engine:?}, {family}: policy skipped");
            }
        }
        drop(blocked);
        for case in Case::all() {
            let mut client = rig.client(case.engine)?;
            let reply = case.once(&mut client, rig.vip(case.family))?;
            assert_eq!(reply.server, "far", "before {before}, {case}");
        }
        drop(policies);
    }
    Ok(())
}

#[test]
fn cleanup_leaves_no_trace_and_a_later_agent_starts_afresh() -> Result<()> {
    if !require::root_or_skip("cleanup_leaves_no_trace_and_a_later_agent_starts_afresh") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    let mut client = rig.client(Engine::Packet)?;
    let vip = rig.vip(Family::V4);
    client.tcp_once(vip)?;
    rig.agents[0].stop()?;
    client.tcp_once(vip)?;
    rig.agents[0].command("cleanup", &[])?;
    // The folder itself may go as well.
    let left: Vec<_> = std::fs::read_dir(&rig.cluster.nodes()[0].bpffs)
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    for engine in Engine::ALL {
        let mut client = rig.client(engine)?;
        let deadline = Duration::from_millis(300);
        assert!(client.tcp_connect_from(None, vip, deadline).is_err(), "{engine:?}");
    }
    rig.agents[0].restart()?;
    client.tcp_once(vip)?;
    Ok(())
}

#[test]
fn a_bad_file_keeps_the_last_good_state() -> Result<()> {
    if !require::root_or_skip("a_bad_file_keeps_the_last_good_state") {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let folder = rig.cluster.scratch().join("manifests");
    std::fs::create_dir(&folder)?;
    let (web, other) = (folder.join("web.json"), folder.join("other.json"));
    rig.manifest.write(&web)?;
    let agent = rig.agent(0, Source::Manifests(folder))?.start()?;
    let mut client = rig.client(Engine::Socket)?;
    client.tcp_once(rig.vip(Family::V4))?;

    let mark = agent.log().mark();
    lb_testbed::manifest::write_atomically(&web, "{\"kind\": \"List\", \"items\": [{]}\n")?;
    agent
        .log()
        .wait_from(mark, "report about the bad file", STEP, |line| line.contains("web.json"))?;
    client.tcp_once(rig.vip(Family::V4))?;

    // Another file is read although this one is bad.
    let vip = "10.96.0.77".parse()?;
    let near = rig.cluster.addresses(NEAR);
    Manifest::new().publish("other", &[vip], 81, TARGET, &near[..1]).write(&other)?;
    let to = std::net::SocketAddr::new(vip, 81);
    wait::until("the other file's Service", lb_testbed::rig::IN_FORCE_WITHIN, || {
        client.tcp_connect_from(None, to, Duration::from_millis(200)).is_ok()
    })?;
    assert_eq!(client.tcp_once(to)?.server, "near");
    client.tcp_once(rig.vip(Family::V4))?;
    Ok(())
}
