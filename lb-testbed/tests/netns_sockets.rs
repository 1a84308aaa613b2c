//! What becomes of connected UDP sockets whose backend goes, in any network namespace of a node?

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    agent::{Agent, Source},
    cluster::{At, Family, Place, Topology},
    peer::{self, Peer, STEP, Sock},
    require,
    rig::{CLIENT, FAR, NEAR, PORT, Rig, SPARE, TARGET},
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
        let vip = rig.vip(family);
        let remote = self.peer.names(self.sock.id)?.remote;
        ensure!(remote == Some(vip), "{what}: sees {remote:?}");
        // From another backend than the one that it is connected to, it would hear nothing.
        let named = self.peer.ask_to(self.sock.id, vip, "named", STEP);
        let (reply, from) = named.with_context(|| format!("{what}: with the VIP's name"))?;
        ensure!(
            reply.server == self.server && from == Some(vip),
            "{what}: {reply:?} from {from:?}"
        );
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

/// Of the smallest tables of sockets that the agent makes.
const ROOM: u64 = 1024;

/// A pod that opens as many UDP sockets as it can takes nothing from processes of the node, which only
/// the socket engine serves; and pods are then served by the packet engine. Production case 2.
#[test]
fn case_2_a_pod_that_fills_the_tables_of_sockets_takes_no_room_of_the_node() -> Result<()> {
    let test = "case_2_a_pod_that_fills_the_tables_of_sockets_takes_no_room_of_the_node";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let source = Source::Manifests(rig.cluster.scratch().join("state.json"));
    let room = ROOM.to_string();
    let agent = rig.cluster.agent(0, source)?;
    let agent = agent.arg("--max-udp-sockets").arg(&room).arg("--max-socket-peers").arg(&room);
    let agent = agent.start()?;
    let fill = |name: &str| -> Result<(u64, u64)> {
        let (_, text) = agent.command_any("status", &["--output", "json"])?;
        let status: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let maps = status["maps"].as_array().context("maps")?;
        let fill = maps.iter().find(|fill| fill["map"] == name).with_context(|| text.clone())?;
        Ok((fill["used"].as_u64().context("used")?, fill["max"].as_u64().context("max")?))
    };

    // Sockets of several processes, because one may not have so many descriptors.
    let vip = rig.vip(Family::V4);
    let mut hostile = Vec::new();
    for _ in 0..3 {
        let mut peer = rig.cluster.peer(CLIENT, Place::InCgroup)?;
        for _ in 0..400 {
            let sock = peer.udp_open(vip)?;
            peer.send_to(sock.id, vip, "flood")?;
            peer.udp_connect(sock.id, vip)?;
        }
        hostile.push(peer);
    }
    for name in ["UDP_SOCKETS", "SOCKET_PEERS"] {
        assert_eq!(fill(name)?, (ROOM, ROOM), "{name}");
    }

    for (at, family) in places() {
        let what = format!("{at:?}, {family}");
        let vip = rig.vip(family);
        let mut peer = rig.cluster.peer(at, Place::InCgroup)?;
        let connected = peer.udp_connected(vip)?;
        peer.ask(&connected, "connected").with_context(|| what.clone())?;
        let remote = peer.names(connected.id)?.remote;
        ensure!(remote == Some(vip), "{what}: connected to {remote:?}");
        let unconnected = peer.udp_open(vip)?;
        let (_, from) =
            peer.ask_to(unconnected.id, vip, "who", STEP).with_context(|| what.clone())?;
        ensure!(from == Some(vip), "{what}: answered by {from:?}");
        let own = [fill("HOST_UDP_SOCKETS")?, fill("HOST_SOCKET_PEERS")?];
        let expected = if at == HOST { [(2, ROOM), (2, ROOM)] } else { [(0, ROOM), (0, ROOM)] };
        ensure!(own == expected, "{what}: {own:?}");
        peer.close(connected.id, peer::Close::Graceful)?;
        peer.close(unconnected.id, peer::Close::Graceful)?;
    }
    // Closed sockets leave nothing behind.
    for name in ["HOST_UDP_SOCKETS", "HOST_SOCKET_PEERS"] {
        let gone = || fill(name).is_ok_and(|(used, _)| used == 0);
        wait::until(name, ENDED_WITHIN, gone)?;
    }
    drop(hostile);
    for name in ["UDP_SOCKETS", "SOCKET_PEERS"] {
        let gone = || fill(name).is_ok_and(|(used, _)| used == 0);
        wait::until(name, ENDED_WITHIN, gone)?;
    }
    Ok(())
}
