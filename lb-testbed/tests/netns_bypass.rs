//! Which sockets does the socket engine leave alone, and what does it know of namespaces?

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_agent::{datapath, plan::address};
use lb_testbed::{
    agent::{Agent, Source},
    cluster::{At, Family, Place, Topology},
    manifest::{Endpoint, EndpointSlice, Service},
    matrix::{Case, Engine, TOPOLOGIES},
    mesh,
    netns::Netns,
    peer::Peer,
    require,
    rig::{CLIENT, FAR, IN_FORCE_WITHIN, NEAR, PORT, Rig, SPARE, TARGET},
    wait,
};
use serde_json::Value;

/// A process of the node itself.
const HOST: At = At::Node(0);

/// The status of an agent that has no problem.
fn status(agent: &Agent) -> Result<Value> {
    let text = agent.command("status", &["--output", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("understand {text}"))
}

fn counter(agent: &Agent, name: &str) -> Result<u64> {
    let status = status(agent)?;
    let counters = status["counters"].as_array().context("counters")?;
    let counter = counters.iter().find(|counter| counter["name"] == name);
    counter.and_then(|counter| counter["value"].as_u64()).with_context(|| name.to_owned())
}

/// Production case 56, and case 57's remedy.
#[test]
fn a_pod_that_redirects_what_it_sends_is_bypassed_while_it_does() -> Result<()> {
    const PROXY: u16 = 15001;
    let test = "a_pod_that_redirects_what_it_sends_is_bypassed_while_it_does";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    let pod = At::Pod(0, rig.cluster.add_pod(0)?);
    rig.start_agents()?;
    let vips = Family::ALL.map(|family| rig.vip(family));
    let IpAddr::V4(vip4) = vips[0].ip() else { anyhow::bail!("{vips:?}") };
    // The proxy sees the VIP only if nobody has translated before the namespace's own rules.
    let mut proxy = rig.cluster.peer(pod, Place::InCgroup)?;
    proxy.serve("proxy", &[SocketAddr::new("127.0.0.1".parse()?, PROXY)])?;
    let netns: &Netns = rig.cluster.netns(pod);
    mesh::redirect(netns, vip4, PROXY)?;
    let agent = &rig.agents[0];
    agent.log().wait("line about the bypass", IN_FORCE_WITHIN, |line| {
        line.contains("bypassed: the packet engine serves its sockets")
    })?;
    let shown = status(agent)?;
    let bypassed = shown["bypassed"]["namespaces"].as_array().context("namespaces")?;
    let [bypassed] = &bypassed[..] else { anyhow::bail!("{shown}") };
    assert_eq!(bypassed["pid"], proxy.pid(), "{shown}");
    let why = bypassed["why"].as_str().context("why")?;
    assert!(why.starts_with("nat REDIRECT rules in OUTPUT"), "{why}");
    let text = agent.command("status", &[])?;
    assert!(text.contains("its sockets are left alone; the packet engine serves it"), "{text}");
    let flows = counter(agent, "flow_created")?;
    for case in Case::all().filter(|case| case.engine == Engine::Socket) {
        let mut client = rig.cluster.peer(pod, case.engine.place())?;
        let vip = rig.vip(case.family);
        let sock = case.connect(&mut client, vip)?;
        assert_eq!(sock.remote, Some(vip), "{case}");
        let server = client.ask(&sock, "hello")?.server;
        match case.family {
            Family::V4 => assert_eq!(server, "proxy", "{case}"),
            Family::V6 => assert!(["near", "far"].contains(&server.as_str()), "{case}: {server}"),
        }
    }
    assert_eq!(counter(agent, "flow_created")?, flows + 2, "both of IPv6 by the packet engine");
    assert!(counter(agent, "socket_bypassed")? >= 4);
    // Its rules go, as when it is taken out of the mesh.
    mesh::remove(netns)?;
    agent.log().wait("line about the end of the bypass", IN_FORCE_WITHIN, |line| {
        line.contains("no longer bypassed")
    })?;
    let translated = counter(agent, "socket_translated")?;
    let mut client = rig.cluster.peer(pod, Place::InCgroup)?;
    assert_ne!(client.tcp_once(vips[0])?.server, "proxy");
    assert_eq!(counter(agent, "socket_translated")?, translated + 1);
    Ok(())
}

#[test]
fn a_cgroup_that_is_bypassed_is_left_to_the_packet_engine_with_all_below_it() -> Result<()> {
    let test = "a_cgroup_that_is_bypassed_is_left_to_the_packet_engine_with_all_below_it";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let node = &rig.cluster.nodes()[0];
    let vm = node.cgroup.child("vm")?;
    let inner = vm.child("inner")?;
    let source = Source::Manifests(rig.cluster.scratch().join("state.json"));
    let agent = rig.agent(0, source)?.arg("--bypass-cgroup").arg(vm.path()).start()?;
    let shown = status(&agent)?;
    assert_eq!(shown["bypassed"]["cgroups"][0]["path"], vm.path().display().to_string(), "{shown}");
    let pod = rig.cluster.netns(CLIENT);
    for (cgroup, bypassed) in [(&vm, 1), (&inner, 1), (&node.cgroup, 0)] {
        let before = (counter(&agent, "socket_bypassed")?, counter(&agent, "flow_created")?);
        let mut client = Peer::start("client", pod, cgroup)?;
        client.tcp_once(rig.vip(Family::V4))?;
        let after = (counter(&agent, "socket_bypassed")?, counter(&agent, "flow_created")?);
        let what = cgroup.path().display();
        assert_eq!(after, (before.0 + bypassed, before.1 + bypassed), "{what}");
    }
    Ok(())
}

#[test]
fn the_socket_engine_can_be_kept_to_the_host_or_off() -> Result<()> {
    if !require::root_or_skip("the_socket_engine_can_be_kept_to_the_host_or_off") {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let source = || Source::Manifests(rig.cluster.scratch().join("state.json"));
    let vip = rig.vip(Family::V4);
    // What an earlier run attached is taken off where it is not wanted any more, and put back.
    for (scope, in_pod, on_host) in
        [("all", 1, 1), ("host", 0, 1), ("off", 0, 0), ("host", 0, 1), ("all", 1, 1)]
    {
        let mut agent = rig.agent(0, source())?.arg("--socket-engine").arg(scope).start()?;
        let shown = status(&agent)?;
        assert_eq!(shown["socket_engine"], scope, "{shown}");
        let hooks = shown["socket_hooks"].as_array().context("hooks")?;
        assert!(hooks.iter().all(|hook| hook["runs"] == (scope != "off")), "{scope}: {shown}");
        let translated = |agent: &Agent| counter(agent, "socket_translated");
        let before = translated(&agent)?;
        let mut pod = rig.cluster.peer(CLIENT, Place::InCgroup)?;
        pod.tcp_once(vip).with_context(|| format!("{scope}: in a pod"))?;
        assert_eq!(translated(&agent)?, before + in_pod, "{scope}: in a pod");
        let mut host = rig.cluster.peer(HOST, Place::InCgroup)?;
        let reached = host.tcp_connect_from(None, vip, Duration::from_millis(500));
        assert_eq!(reached.is_ok(), on_host == 1, "{scope}: on the host: {reached:?}");
        assert_eq!(translated(&agent)?, before + in_pod + on_host, "{scope}: on the host");
        agent.stop()?;
    }
    Ok(())
}

/// What the node's agent tells programs of namespaces: IPv4 and IPv6 address of each.
fn known(rig: &Rig, node: usize) -> Result<Vec<[IpAddr; 2]>> {
    let folder = datapath::folder(&rig.cluster.nodes()[node].bpffs);
    let records = datapath::namespaces::told(&folder)?.namespaces;
    let mut known: Vec<_> = records
        .into_iter()
        .map(|(_, record)| [address(&[record.v4, 0, 0, 0], false), address(&record.v6, true)])
        .collect();
    known.sort_unstable();
    Ok(known)
}

#[test]
fn each_namespace_is_known_by_its_addresses_while_it_has_processes() -> Result<()> {
    let test = "each_namespace_is_known_by_its_addresses_while_it_has_processes";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let rig = Rig::new(topology)?;
        // The node has more addresses than these: that of its bridge, or of each pod's gateway.
        let expect = |places: &[At]| {
            let mut all: Vec<_> = places.iter().map(|at| rig.cluster.addresses(*at)).collect();
            all.sort_unstable();
            let what = format!("{topology}: {all:?} to be known");
            wait::until(&what, IN_FORCE_WITHIN, || known(&rig, 0).is_ok_and(|known| known == all))
                .with_context(|| format!("known: {:?}", known(&rig, 0)))
        };
        expect(&[HOST, NEAR])?;
        let client = rig.cluster.peer(CLIENT, Place::InCgroup)?;
        expect(&[HOST, NEAR, CLIENT])?;
        drop(client);
        expect(&[HOST, NEAR])?;
        // Nodes share a kernel here; each knows its own.
        let mut others: Vec<_> =
            [At::Node(1), FAR, SPARE].map(|at| rig.cluster.addresses(at)).into();
        others.sort_unstable();
        assert_eq!(known(&rig, 1)?, others, "{topology}");
    }
    Ok(())
}

/// Contract A-1: a client is one client, by whichever engine it comes.
#[test]
fn a1_both_engines_send_a_pod_to_one_backend() -> Result<()> {
    const PORTS: u16 = 6;
    if !require::root_or_skip("a1_both_engines_send_a_pod_to_one_backend") {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    let vips: [IpAddr; 2] = ["10.96.0.55".parse()?, "fd00:10:96::55".parse()?];
    let mut service = Service::new("default", "sticky", &vips).spec("sessionAffinity", "ClientIP");
    let ports: Vec<String> = (0..PORTS).map(|port| format!("p{port}")).collect();
    for (port, name) in (PORT..).zip(&ports) {
        service = service.port(name, "TCP", port, TARGET);
    }
    rig.manifest.set(service);
    for (family, slice) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let mut slice = EndpointSlice::new("default", &format!("sticky-{slice}"), "sticky", slice);
        for name in &ports {
            slice = slice.port(name, "TCP", TARGET);
        }
        for at in [NEAR, FAR, SPARE] {
            slice = slice.endpoint(Endpoint::ready(rig.cluster.address(at, family)));
        }
        rig.manifest.set(slice);
    }
    rig.write()?;
    rig.start_agents()?;
    let mut by_socket = rig.cluster.peer(CLIENT, Place::InCgroup)?;
    let mut by_packet = rig.cluster.peer(CLIENT, Place::Outside)?;
    let pod = rig.cluster.addresses(CLIENT);
    wait::until("the pod to be known", IN_FORCE_WITHIN, || {
        known(&rig, 0).is_ok_and(|known| known.contains(&pod))
    })?;
    for (vip, port) in vips.iter().flat_map(|vip| (PORT..PORT + PORTS).map(move |port| (vip, port)))
    {
        let to = SocketAddr::new(*vip, port);
        // The first one to ask decides.
        let (first, second) = if port % 2 == 0 {
            (&mut by_socket, &mut by_packet)
        } else {
            (&mut by_packet, &mut by_socket)
        };
        let server = first.tcp_once(to)?.server;
        assert_eq!(second.tcp_once(to)?.server, server, "{to}");
    }
    Ok(())
}
