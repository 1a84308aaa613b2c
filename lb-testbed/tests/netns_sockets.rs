//! What becomes of sockets in the network namespaces of a node: of connected UDP sockets whose
//! backend goes, and of those that are to be left alone.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::{datapath, plan::address};
use lb_testbed::{
    agent::{Agent, Source},
    cluster::{At, Family, Place, Topology},
    manifest::{Endpoint, EndpointSlice, Service},
    matrix::{Case, Engine, TOPOLOGIES},
    mesh,
    netns::Netns,
    peer::{self, Peer, STEP, Sock},
    require,
    rig::{CLIENT, FAR, IN_FORCE_WITHIN, NEAR, PORT, Rig, SPARE, TARGET},
    wait,
};
use serde_json::Value;

/// A process of the node itself.
const HOST: At = At::Node(0);
/// How long an agent may take to see a file, commit, and end sockets, on a busy machine.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// What the agent logs about that.
const ENDED: &str = "ended connected UDP sockets";

/// A connected UDP socket, and whom it talks to.
struct Client {
    what: String,
    peer: Peer,
    sock: Sock,
    server: String,
}

impl Client {
    /// Connects and asks until it talks to one of `servers`.
    fn connect(rig: &Rig, at: At, family: Family, servers: &[&str]) -> Result<Self> {
        let what = format!("{at:?}, {family}");
        let mut peer = rig.cluster.peer(at, Place::InCgroup)?;
        for _ in 0..100 {
            let sock = peer.udp_connected(rig.vip(family)).with_context(|| what.clone())?;
            let server = peer.ask(&sock, "who").with_context(|| what.clone())?.server;
            if servers.contains(&server.as_str()) {
                return Ok(Self { what, peer, sock, server });
            }
            peer.close(sock.id, peer::Close::Graceful)?;
        }
        anyhow::bail!("{what}: never reached one of {servers:?}")
    }

    /// Waits, as a resolver does for an answer, until the socket is ended under it.
    fn ends(&mut self) -> Result<()> {
        let what = &self.what;
        let error = self.peer.receive(self.sock.id, ENDED_WITHIN).err();
        let error = error.with_context(|| format!("{what}: something was received"))?;
        let errno = peer::errno(&error);
        ensure!(errno == Some(libc::ECONNABORTED), "{what}: not ended: {error:#}");
        Ok(())
    }

    /// The same socket connects anew; whom it talks to then.
    fn connect_again(&mut self, rig: &Rig, family: Family) -> Result<String> {
        self.sock = self.peer.udp_connect(self.sock.id, rig.vip(family))?;
        Ok(self.peer.ask(&self.sock, "again")?.server)
    }

    /// Asks on the socket as it is: it still talks to whom it did, and sees the VIP.
    fn is_untouched(&mut self, rig: &Rig, family: Family) -> Result<()> {
        let what = self.what.clone();
        let reply = self.peer.ask(&self.sock, "still there").with_context(|| what.clone())?;
        ensure!(reply.server == self.server, "{what}: moved to {}", reply.server);
        let remote = self.peer.names(self.sock.id)?.remote;
        ensure!(remote == Some(rig.vip(family)), "{what}: sees {remote:?}");
        Ok(())
    }
}

fn places() -> impl Iterator<Item = (At, Family)> {
    [CLIENT, HOST].into_iter().flat_map(|at| Family::ALL.map(|family| (at, family)))
}

/// Of the day, from the beginning of a line of a log: `2026-01-31T23:59:59.123456Z`.
fn micros(line: &str) -> Result<u64> {
    let time = line.get(11..26).with_context(|| format!("no time in {line}"))?;
    let mut fields = time.split([':', '.']).map(str::parse::<u64>);
    let mut next = || fields.next().context("a field of a time")?.context("a number");
    let (hours, minutes, seconds, rest) = (next()?, next()?, next()?, next()?);
    Ok(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + rest)
}

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

/// Contract U-1, U-2, U-7, U-8; production cases 1, 2 and 5.
#[test]
fn u2_u7_sockets_on_a_removed_backend_end_and_all_others_stay() -> Result<()> {
    let test = "u2_u7_sockets_on_a_removed_backend_end_and_all_others_stay";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    let mut leaving = Vec::new();
    let mut staying = Vec::new();
    for (at, family) in places() {
        leaving.push((family, Client::connect(&rig, at, family, &["far"])?));
        staying.push((family, Client::connect(&rig, at, family, &["near"])?));
    }
    // To the same backend, but not through a Service.
    let mut direct = rig.cluster.peer(CLIENT, Place::InCgroup)?;
    let address = SocketAddr::new(rig.cluster.address(FAR, Family::V4), TARGET);
    let sock = direct.udp_connected(address)?;
    assert_eq!(direct.ask(&sock, "direct")?.server, "far");
    rig.set_endpoints(&[NEAR, FAR, SPARE])?;
    for (family, client) in leaving.iter_mut().chain(&mut staying) {
        client.is_untouched(&rig, *family)?;
    }
    rig.change_endpoints(&[NEAR, SPARE])?;
    for (family, client) in &mut leaving {
        client.ends()?;
        let server = client.connect_again(&rig, *family)?;
        assert!(["near", "spare"].contains(&server.as_str()), "{}: {server}", client.what);
    }
    for (family, client) in &mut staying {
        client.is_untouched(&rig, *family)?;
    }
    assert_eq!(direct.ask(&sock, "direct")?.server, "far", "its address alone is no reason");
    let log = rig.agents[0].log();
    let ended = log.wait("line about ended sockets", STEP, |line| line.contains(ENDED))?;
    let lines = log.tail(1000);
    let committed = lines.lines().take_while(|line| **line != *ended);
    let committed = committed.filter(|line| line.contains("committed")).last().context("commit")?;
    let took = micros(&ended)?.checked_sub(micros(committed)?).context("midnight")?;
    assert!(took < 1_000_000, "{took} us from commit to end:\n{committed}\n{ended}");
    wait::until("the count of ended sockets", STEP, || {
        status(&rig.agents[0]).is_ok_and(|status| status["ended_sockets"] == 4)
    })?;
    Ok(())
}

/// Contract U-8: a socket that connects by what was in force a moment ago is found as well.
#[test]
fn u8_no_socket_that_connects_while_a_backend_goes_stays_on_it() -> Result<()> {
    const SOCKETS: usize = 600;
    if !require::root_or_skip("u8_no_socket_that_connects_while_a_backend_goes_stays_on_it") {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    let vip = rig.vip(Family::V4);
    let mut client = rig.cluster.peer(CLIENT, Place::InCgroup)?;
    let mut sockets = Vec::new();
    rig.change_endpoints(&[NEAR])?;
    let mark = rig.agents[0].log().mark();
    let committed = |line: &str| line.contains("committed");
    // Over and over, until well after the commit; each on whom the programs chose then.
    let mut after = 0;
    while after < SOCKETS / 4 && sockets.len() < SOCKETS {
        sockets.push(client.udp_connected(vip)?);
        let log = rig.agents[0].log();
        after += usize::from(log.wait_from(mark, "commit", Duration::ZERO, committed).is_ok());
    }
    rig.wait_endpoints(&[NEAR])?;
    let mut left = sockets.len();
    for sock in &sockets {
        let what = format!("socket {} of {left} to leave the backend that is gone", sock.id);
        wait::until(&what, ENDED_WITHIN, || match client.ask(sock, "who") {
            Ok(reply) => reply.server == "near",
            Err(error) => matches!(
                peer::errno(&error),
                Some(libc::ECONNABORTED | libc::EDESTADDRREQ | libc::ENOTCONN)
            ),
        })?;
        left -= 1;
    }
    Ok(())
}

/// Contract U-6 and the deletion of a Service.
#[test]
fn u6_sockets_end_when_nobody_serves_any_more_and_when_the_service_goes() -> Result<()> {
    let test = "u6_sockets_end_when_nobody_serves_any_more_and_when_the_service_goes";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Routed)?;
    let mut clients = Vec::new();
    for (at, family) in places() {
        clients.push((family, Client::connect(&rig, at, family, &["near", "far"])?));
    }
    rig.change_endpoints(&[])?;
    for (family, client) in &mut clients {
        client.ends()?;
        let error = client.connect_again(&rig, *family).err().context("connected to nobody")?;
        assert_eq!(peer::errno(&error), Some(libc::ECONNREFUSED), "{}: {error:#}", client.what);
    }
    rig.set_endpoints(&[FAR])?;
    for (family, client) in &mut clients {
        assert_eq!(client.connect_again(&rig, *family)?, "far", "{}", client.what);
    }
    for (kind, name) in
        [("Service", "web"), ("EndpointSlice", "web-ipv4"), ("EndpointSlice", "web-ipv6")]
    {
        assert!(rig.manifest.remove(kind, "default", name), "{kind} {name}");
    }
    rig.write()?;
    for (_, client) in &mut clients {
        client.ends()?;
    }
    Ok(())
}

/// Contract U-10 (a restart must not flush what lives, and a start finds what died meanwhile).
#[test]
fn u10_a_new_agent_ends_what_died_while_none_ran_and_nothing_else() -> Result<()> {
    let test = "u10_a_new_agent_ends_what_died_while_none_ran_and_nothing_else";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::new(Topology::Bridge)?;
    let (mut leaving, mut staying) = (Vec::new(), Vec::new());
    for (at, family) in places() {
        leaving.push((family, Client::connect(&rig, at, family, &["far"])?));
        staying.push((family, Client::connect(&rig, at, family, &["near"])?));
    }
    rig.agents[0].kill()?;
    rig.agents[0].restart()?;
    for (family, client) in leaving.iter_mut().chain(&mut staying) {
        client.is_untouched(&rig, *family)?;
    }
    rig.agents[0].kill()?;
    rig.change_endpoints(&[NEAR, SPARE])?;
    for (family, client) in leaving.iter_mut().chain(&mut staying) {
        client.is_untouched(&rig, *family)?;
    }
    rig.agents[0].restart()?;
    for (_, client) in &mut leaving {
        client.ends()?;
    }
    for (family, client) in &mut staying {
        client.is_untouched(&rig, *family)?;
    }
    Ok(())
}

/// Departure f of the design; contract U-5 for sockets that asked before there was a Service.
#[test]
fn sockets_that_asked_for_a_vip_before_there_was_anyone_end_when_it_changes() -> Result<()> {
    let test = "sockets_that_asked_for_a_vip_before_there_was_anyone_end_when_it_changes";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    let mut before = Vec::new();
    for (at, family) in places() {
        let mut peer = rig.cluster.peer(at, Place::InCgroup)?;
        let sock = peer.udp_connected(rig.vip(family))?;
        before.push(Client {
            what: format!("{at:?}, {family}"),
            peer,
            sock,
            server: String::new(),
        });
    }
    let mut outside = rig.cluster.peer(CLIENT, Place::Outside)?;
    let other = outside.udp_connected(rig.vip(Family::V4))?;
    // On the node, to a Service that comes later; nobody else could serve it then.
    let vip = SocketAddr::new("10.96.0.99".parse()?, PORT);
    let mut early = rig.cluster.peer(HOST, Place::InCgroup)?;
    let sock = early.udp_connected(vip)?;
    let mut early = Client { what: "early".into(), peer: early, sock, server: String::new() };
    rig.start_agents()?;
    let ended = |line: &str| line.contains(ENDED);
    assert!(!rig.agents[0].log().tail(1000).lines().any(ended), "a start is no reason");
    rig.change_endpoints(&[NEAR])?;
    for client in &mut before {
        client.ends()?;
    }
    // What the packet engine serves moves by itself.
    assert_eq!(outside.ask(&other, "moved")?.server, "near");
    assert_eq!(outside.names(other.id)?.remote, Some(rig.vip(Family::V4)));
    let near = rig.cluster.addresses(NEAR);
    rig.manifest.publish("late", &[vip.ip()], PORT, TARGET, &near[..1]);
    rig.write()?;
    early.ends()?;
    early.sock = early.peer.udp_connect(early.sock.id, vip)?;
    assert_eq!(early.peer.ask(&early.sock, "late")?.server, "near");
    Ok(())
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
