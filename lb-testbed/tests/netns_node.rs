//! What do programs know of the node they run on, as that changes?

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_agent::datapath::{self, outside};
use lb_common::abi::{Interface, InterfaceFlags};
use lb_testbed::{
    address::{node_v4, node_v6},
    agent::{Agent, Source},
    cluster::{Family, Place, Topology},
    netns::Netns,
    peer::Close,
    require,
    rig::{CLIENT, IN_FORCE_WITHIN, Rig},
    wait,
};
use serde_json::Value;

/// The first node, with a view of what programs are told there.
struct Told<'a> {
    rig: &'a Rig,
}

impl Told<'_> {
    fn netns(&self) -> &Netns {
        &self.rig.cluster.nodes()[0].netns
    }

    /// What programs know of an interface, if they believe it.
    fn record(&self, index: u32) -> Option<Interface> {
        let folder = datapath::folder(&self.rig.cluster.nodes()[0].bpffs);
        let all = outside::OutsideMaps::open(&folder).ok()?.interfaces().ok()?;
        all.into_iter().find(|(of, record)| *of == index && record.is_for(index)).map(|(_, r)| r)
    }

    /// Waits until what programs know of an interface is right.
    fn wait(&self, index: u32, what: &str, is_right: impl Fn(&Interface) -> bool) -> Result<()> {
        wait::until(what, IN_FORCE_WITHIN, || self.record(index).is_some_and(|r| is_right(&r)))
            .with_context(|| format!("{:?}", self.record(index)))
    }
}

fn sends_as(record: &Interface, addresses: &[&str]) -> bool {
    let wanted: Vec<IpAddr> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
    outside::sources(record) == wanted
}

fn has(record: &Interface, flags: u32) -> bool {
    record.flags & (InterfaceFlags::OFF_NODE | InterfaceFlags::LOCAL_POD) == flags
}

fn status(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// M-b: links, masters, addresses and indices come and go.
#[test]
fn m_b_programs_are_told_of_interfaces_as_netlink_tells_of_them() -> Result<()> {
    if !require::root_or_skip("m_b_programs_are_told_of_interfaces_as_netlink_tells_of_them") {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let source = Source::Manifests(rig.cluster.scratch().join("state.json"));
    let agent = rig.agent(0, source)?.start()?;
    let told = Told { rig: &rig };
    let netns = told.netns();
    let (node4, node6) = (node_v4(0).to_string(), node_v6(0).to_string());
    let eth0 = netns.ifindex("eth0")?;
    let own = [node4.as_str(), node6.as_str()];
    told.wait(eth0, "the uplink", |record| {
        has(record, InterfaceFlags::OFF_NODE) && record.group == eth0 && sends_as(record, &own)
    })?;
    let pod = netns.ifindex(&rig.cluster.nodes()[0].pods[0].host_interface)?;
    let bridge = told.record(pod).context("a pod's interface")?.group;
    ensure!(bridge != pod, "it is a port of a bridge");
    told.wait(pod, "a pod's", |record| has(record, InterfaceFlags::LOCAL_POD))?;
    told.wait(bridge, "the bridge", |record| has(record, 0) && record.group == bridge)?;

    // A new interface without an address has the node's, then its own.
    netns.ip("link add x0 mtu 1400 type veth peer name y0\nlink set x0 up\nlink set y0 up")?;
    let x0 = netns.ifindex("x0")?;
    told.wait(x0, "one without addresses", |r| r.mtu == 1400 && sends_as(r, &own))?;
    netns.ip("addr add 203.0.113.1/24 dev x0\naddr add 203.0.113.2/24 dev x0")?;
    told.wait(x0, "its address", |r| sends_as(r, &["203.0.113.1", &node6]))?;
    netns.ip("addr add fd00:99::1/64 dev x0 nodad\nlink set x0 mtu 1300")?;
    told.wait(x0, "its addresses", |r| {
        r.mtu == 1300 && sends_as(r, &["203.0.113.1", "fd00:99::1"])
    })?;
    netns.sysctls(&[("net.ipv4.conf.x0.promote_secondaries", "1")])?;
    netns.ip("addr del 203.0.113.1/24 dev x0")?;
    told.wait(x0, "what was promoted", |r| sends_as(r, &["203.0.113.2", "fd00:99::1"]))?;
    netns.ip("addr del 203.0.113.2/24 dev x0")?;
    told.wait(x0, "the node's", |r| sends_as(r, &[&node4, "fd00:99::1"]))?;

    // A port has its master's addresses, and loses them with it.
    netns.ip("link add x1 type bridge\naddr add 203.0.113.9/24 dev x1\nlink set x0 down")?;
    netns.ip("addr flush dev x0\nlink set x0 master x1")?;
    let x1 = netns.ifindex("x1")?;
    told.wait(x0, "its master's", |r| r.group == x1 && sends_as(r, &["203.0.113.9", &node6]))?;
    netns.ip("link set x0 nomaster")?;
    told.wait(x0, "its own", |r| r.group == x0 && sends_as(r, &own))?;

    // Another interface takes the index, at once.
    netns.ip(&format!("link del x0\nlink add x2 mtu 1234 index {x0} type veth peer name y2"))?;
    told.wait(x0, "another interface", |r| r.mtu == 1234)?;
    netns.ip("link del x2\nlink del x1")?;
    wait::until("nothing of what is gone", IN_FORCE_WITHIN, || {
        told.record(x0).is_none() && told.record(x1).is_none()
    })?;

    // What is not routed by the node is a problem that is told.
    netns.sysctls(&[("net.ipv4.conf.eth0.forwarding", "0")])?;
    let (_, text) = agent.command_any("status", &["--output", "json"])?;
    let shown = status(&text)?;
    let problems = shown["problems"].to_string();
    ensure!(problems.contains("net.ipv4.conf.eth0.forwarding=1"), "{problems}");
    Ok(())
}

/// M-b, M-6, section 4.3: what the flags say is in force, and what cannot be is told.
#[test]
fn snat_addresses_are_used_once_they_are_assigned_and_a_detector_is_told_to_programs() -> Result<()>
{
    let test = "snat_addresses_are_used_once_they_are_assigned_and_a_detector_is_told_to_programs";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let told = Told { rig: &rig };
    let netns = told.netns();
    let source = Source::Manifests(rig.cluster.scratch().join("state.json"));
    let pods = &rig.cluster.nodes()[0].pods;
    let args = [
        "--snat-address=192.0.2.77,192.0.2.78",
        "--snat-ports=2048-9999",
        "--detect-local-mode=InterfaceNamePrefix",
        &format!("--pod-interface-name-prefix={}", pods[0].host_interface),
        "--masquerade-all",
    ];
    let agent =
        args.iter().fold(rig.agent(0, source)?, lb_testbed::agent::AgentSpec::arg).start()?;
    let (node4, node6) = (node_v4(0).to_string(), node_v6(0).to_string());
    let eth0 = netns.ifindex("eth0")?;
    told.wait(eth0, "the interface's own", |r| sends_as(r, &[&node4, &node6]))?;
    let (_, text) = agent.command_any("status", &["--output", "json"])?;
    let shown = status(&text)?;
    let problems = shown["problems"].to_string();
    ensure!(problems.contains("--snat-address: 2 addresses are assigned to no"), "{problems}");
    assert_eq!(shown["outside"]["snat_ports"], "2048-9999", "{shown}");
    assert_eq!(shown["outside"]["local_detector"], "interface-name-prefix", "{shown}");
    assert_eq!(shown["outside"]["masquerade_all"], true, "{shown}");
    netns.ip("addr add 192.0.2.78/32 dev lo")?;
    told.wait(eth0, "the second one", |r| sends_as(r, &["192.0.2.78", &node6]))?;
    netns.ip("addr add 192.0.2.77/32 dev lo")?;
    told.wait(eth0, "both", |r| sends_as(r, &["192.0.2.77", "192.0.2.78", &node6]))?;
    agent.log().wait("line about them", IN_FORCE_WITHIN, |line| {
        line.contains("all addresses of --snat-address are assigned")
    })?;
    for (pod, local) in [(&pods[0], InterfaceFlags::LOCAL_POD), (&pods[1], 0)] {
        let index = netns.ifindex(&pod.host_interface)?;
        told.wait(index, "what the detector says", |record| has(record, local))?;
    }
    Ok(())
}

#[test]
fn sockets_of_an_engine_that_is_off_are_forgotten_when_they_are_closed() -> Result<()> {
    let test = "sockets_of_an_engine_that_is_off_are_forgotten_when_they_are_closed";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let rig = Rig::without_agents(Topology::Bridge)?;
    let source = || Source::Manifests(rig.cluster.scratch().join("state.json"));
    let mut agent = rig.agent(0, source())?.start()?;
    let mut client = rig.cluster.peer(CLIENT, Place::InCgroup)?;
    let vip = rig.vip(Family::V4);
    let sock = client.udp_connected(vip)?;
    let used = |agent: &Agent, runs: bool| -> Result<u64> {
        let (_, text) = agent.command_any("status", &["--output", "json"])?;
        let shown = status(&text)?;
        for hook in shown["socket_hooks"].as_array().context("hooks")? {
            let expected = runs || hook["program"] == "sock_release";
            ensure!(hook["runs"] == expected, "{hook}");
        }
        let problems = shown["problems"].to_string();
        ensure!(!problems.contains("although"), "{problems}");
        let maps = shown["maps"].as_array().context("maps")?;
        let fill = maps.iter().find(|fill| fill["map"] == "UDP_SOCKETS").context("UDP_SOCKETS")?;
        fill["used"].as_u64().context("used")
    };
    let before = used(&agent, true)?;
    ensure!(before > 0, "the socket is remembered");
    agent.stop()?;
    let mut agent = rig.agent(0, source())?.arg("--socket-engine=off").start()?;
    assert_eq!(used(&agent, false)?, before);
    client.close(sock.id, Close::Graceful)?;
    wait::until("the record to be gone", IN_FORCE_WITHIN, || {
        used(&agent, false).is_ok_and(|now| now < before)
    })?;
    drop(client);
    wait::until("no record", IN_FORCE_WITHIN, || used(&agent, false).is_ok_and(|now| now == 0))?;
    // With nothing left to forget, the next start takes the last hook off.
    agent.stop()?;
    let agent = rig.agent(0, source())?.arg("--socket-engine=off").start()?;
    let (_, text) = agent.command_any("status", &["--output", "json"])?;
    let shown = status(&text)?;
    let hooks = shown["socket_hooks"].as_array().context("hooks")?;
    ensure!(hooks.iter().all(|hook| hook["runs"] == false), "{shown}");
    Ok(())
}
