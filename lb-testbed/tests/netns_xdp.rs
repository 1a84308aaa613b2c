//! XDP on the uplinks of nodes: what it takes, what it leaves, and what keeps it off.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{At, Family, Spec},
    kube_proxy::nft_file,
    north_south::{ENTRY, Exposure, HERE, NorthSouth, OUTSIDE, TARGET, THERE, Way},
    one_armed::{OneArmed, fit_for_xdp, xdp_of},
    packet::Parsed,
    peer::LoadKind,
    require, wait,
    wire::Wire,
};

const SOON: Duration = Duration::from_secs(10);
const XDP: [&str; 2] = ["--xdp-interfaces", "eth0"];

fn has_port(parsed: &Parsed, port: u16) -> bool {
    parsed.ports.is_some_and(|ports| ports.contains(&port))
}

/// A cluster, and what makes the other ends of its nodes' uplinks fit for XDP.
struct Fit {
    rig: NorthSouth,
    _fit: Vec<OwnedFd>,
}

/// Nodes whose uplinks may have XDP.
fn cluster() -> Result<Fit> {
    let rig = NorthSouth::new(Spec::default())?;
    let ports = 0..rig.cluster.nodes().len();
    let fit = ports.map(|node| fit_for_xdp(rig.cluster.fabric(), &format!("n{node}")));
    let fit = fit.collect::<Result<_>>()?;
    Ok(Fit { rig, _fit: fit })
}

fn wait_for_xdp(rig: &NorthSouth, node: usize) -> Result<()> {
    let mut last = String::new();
    wait::until("XDP to run", SOON, || {
        let xdp = rig.status(node).map(|status| xdp_of(&status, "eth0"));
        last = format!("{xdp:?}");
        xdp.is_ok_and(|xdp| xdp["runs"] == true && xdp["mode"] == "native")
    })
    .with_context(|| format!("status said {last}"))
}

#[test]
fn xdp_forwards_both_ways_and_leaves_the_rest_to_tc() -> Result<()> {
    if !require::root_or_skip("xdp_forwards_both_ways_and_leaves_the_rest_to_tc") {
        return Ok(());
    }
    let mut fit = cluster()?;
    let rig = &mut fit.rig;
    let remote = rig.expose(&Exposure::new(&[THERE]));
    let local = rig.expose(&Exposure::new(&[HERE]));
    rig.start(&XDP)?;
    wait_for_xdp(rig, 0)?;
    let mut client = rig.peer(OUTSIDE)?;
    let node = rig.cluster.netns(ENTRY);
    let mut wire = Wire::open(node, "eth0", [0; 6])?;
    for way in Way::ALL {
        for family in Family::ALL {
            let to = rig.to(remote, way, family);
            // The first ones make neighbours known.
            client.tcp_once(to).with_context(|| format!("{way:?} {family}"))?;
            let forwarded = rig.counter(0, Counter::FlowForwarded)?;
            let left = rig.counter(0, Counter::XdpLeft)?;
            wire.clear()?;
            for reply in [client.tcp_once(to)?, client.udp_once(to)?] {
                assert_eq!(reply.server, "there", "{way:?} {family}");
                assert_eq!(reply.client.ip(), rig.cluster.address(ENTRY, family));
            }
            let frames = wire.seen()?;
            let seen = frames.iter().filter(|frame| {
                has_port(&frame.parsed, to.port()) || has_port(&frame.parsed, TARGET)
            });
            // Now and then one, for the kernel to look after the neighbour.
            let seen = seen.count() as u64;
            assert!(seen <= 2, "{way:?} {family}: the kernel made packets of {seen} frames");
            assert_eq!(rig.counter(0, Counter::XdpLeft)?, left + seen, "{way:?} {family}");
            assert_eq!(rig.counter(0, Counter::FlowForwarded)?, forwarded + 2);

            // To a backend here: the kernel sees it, and the server sees the client itself.
            let to = rig.to(local, way, family);
            for reply in [client.tcp_once(to)?, client.udp_once(to)?] {
                assert_eq!(reply.server, "here", "{way:?} {family}");
                assert_eq!(reply.client.ip(), rig.cluster.address(OUTSIDE, family));
            }
            let frames = wire.seen()?;
            ensure!(
                frames.iter().any(|frame| has_port(&frame.parsed, to.port())),
                "{way:?} {family}: nothing was left to tc"
            );
        }
    }
    // No Service at all.
    for family in Family::ALL {
        let to = (rig.cluster.address(ENTRY, family), TARGET).into();
        assert_eq!(client.tcp_once(to)?.server, "host");
        assert_eq!(client.udp_once(to)?.server, "host");
    }
    // TCP that is as long as it gets, both ways.
    let sock = client.tcp_connect(rig.to(remote, Way::NodePort, Family::V4))?;
    client.bulk(sock.id, 4 << 20)?;
    Ok(())
}

/// Case 52: neighbours are found under XDP, from either side, in both families.
#[test]
fn case_52_arp_and_ndp_pass_under_xdp() -> Result<()> {
    if !require::root_or_skip("case_52_arp_and_ndp_pass_under_xdp") {
        return Ok(());
    }
    let mut rig = OneArmed::by_veth()?;
    rig.start(&XDP)?;
    let xdp = rig.wait_xdp_probed("eth0")?;
    ensure!(xdp["mode"] == "native", "{xdp}");
    ensure!(xdp["state"].as_str().is_some_and(|state| state.ends_with(", proven")), "{xdp}");
    for round in 0..3 {
        for netns in [&rig.node, &rig.world] {
            netns.ip("neigh flush dev eth0")?;
        }
        rig.exchange().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// L-7, and an upgrade in place: not one request is lost while the agent is gone and comes back.
#[test]
fn xdp_goes_on_while_the_agent_is_killed_and_started_again() -> Result<()> {
    if !require::root_or_skip("xdp_goes_on_while_the_agent_is_killed_and_started_again") {
        return Ok(());
    }
    let mut fit = cluster()?;
    let rig = &mut fit.rig;
    let remote = rig.expose(&Exposure::new(&[THERE]));
    rig.start(&XDP)?;
    wait_for_xdp(rig, 0)?;
    let mut client = rig.peer(OUTSIDE)?;
    let program = |rig: &NorthSouth| -> Result<(u64, serde_json::Value)> {
        let status = rig.status(0)?;
        let xdp = xdp_of(&status, "eth0");
        Ok((xdp["program"]["id"].as_u64().context("a program")?, xdp))
    };
    let (first, _) = program(rig)?;
    for family in Family::ALL {
        let to = rig.to(remote, Way::NodePort, family);
        client.tcp_once(to)?;
        let load = client.load(to, LoadKind::TcpConnections, SOON)?;
        client.load_goes_on(load, 20, SOON)?;
        rig.agents[0].kill()?;
        client.load_goes_on(load, 20, SOON)?;
        rig.agents[0].restart()?;
        wait::until("the program to be replaced", SOON, || {
            program(rig).is_ok_and(|(id, xdp)| id != first && xdp["runs"] == true)
        })?;
        client.load_goes_on(load, 20, SOON)?;
        let stats = client.load_stop(load)?;
        assert_eq!(stats.failed, 0, "{family}: {stats:?}");
    }
    Ok(())
}

#[test]
fn cleanup_takes_xdp_off_and_a_node_without_names_has_none() -> Result<()> {
    if !require::root_or_skip("cleanup_takes_xdp_off_and_a_node_without_names_has_none") {
        return Ok(());
    }
    let mut rig = OneArmed::by_veth()?;
    rig.start(&XDP)?;
    rig.wait_xdp_probed("eth0")?;
    let shown = |rig: &OneArmed| rig.node.ip_output(&["-d", "link", "show", "dev", "eth0"]);
    ensure!(shown(&rig)?.contains("prog/xdp"), "{}", shown(&rig)?);
    rig.agent()?.stop()?;
    ensure!(shown(&rig)?.contains("prog/xdp"), "it ended with the agent");
    // A veth that is not named any more loses it.
    rig.start(&[])?;
    wait::until("XDP to be taken off", SOON, || {
        shown(&rig).is_ok_and(|text| !text.contains("prog/xdp"))
    })?;
    rig.exchange()?;
    rig.agent()?.stop()?;
    rig.start(&XDP)?;
    rig.wait_xdp_probed("eth0")?;
    rig.agent()?.stop()?;
    rig.agent()?.command("cleanup", &[])?;
    ensure!(!shown(&rig)?.contains("prog/xdp"), "{}", shown(&rig)?);
    Ok(())
}

/// Case 50: drivers without XDP, and with too few queues. The agent goes on, tc does the work, the
/// reason is told, and a change of the link leads to another attempt.
#[test]
fn case_50_what_refuses_xdp_is_demoted_and_the_agent_goes_on() -> Result<()> {
    if !require::root_or_skip("case_50_what_refuses_xdp_is_demoted_and_the_agent_goes_on") {
        return Ok(());
    }
    let mut rig = OneArmed::by_veth()?;
    rig.node.ip(&format!(
        "link add mv0 link eth0 type macvlan mode private\n\
         link set mv0 up\n\
         link add q0 numrxqueues 1 numtxqueues 1 type veth peer name q1 numrxqueues 4 numtxqueues 4 \
         netns {}\n\
         link set q0 up",
        rig.world.name()
    ))?;
    rig.world.ip("link set q1 up")?;
    let roles = ["--interfaces", "mv0=uplink,q0=uplink", "--xdp-interfaces", "eth0,mv0,q0"];
    rig.start(&roles)?;
    rig.wait_xdp_probed("eth0")?;
    for (interface, reason) in [("mv0", "the driver has no XDP"), ("q0", "too few queues")] {
        let xdp = rig.wait_xdp(interface, |xdp| xdp["demoted"] == true)?;
        ensure!(xdp["state"].as_str().is_some_and(|state| state.contains(reason)), "{xdp}");
        ensure!(xdp["mode"] == "none" && xdp["runs"] == false, "{xdp}");
    }
    assert_eq!(rig.demotions()?, 2);
    rig.exchange()?;
    rig.node.ip("link set mv0 mtu 1400")?;
    wait::until("another attempt after the MTU changed", SOON, || {
        rig.demotions().is_ok_and(|count| count == 3)
    })?;
    let status = rig.status()?;
    ensure!(status["agent"]["running"] == true && status["sync"]["synced"] == true, "{status}");
    Ok(())
}

/// Case 47: a neighbour that had answered does not answer any more once XDP is there.
#[test]
fn case_47_who_falls_silent_under_xdp_has_it_taken_off() -> Result<()> {
    if !require::nft_or_skip("case_47_who_falls_silent_under_xdp_has_it_taken_off") {
        return Ok(());
    }
    let mut rig = OneArmed::by_veth()?;
    rig.node.sysctls(&[("net.ipv6.conf.eth0.disable_ipv6", "1")])?;
    let mac = rig.world.mac("eth0")?.map(|byte| format!("{byte:02x}")).join(":");
    // The node itself does not ask: only the first question is answered.
    rig.node.ip(&format!("neigh replace 172.18.0.1 lladdr {mac} dev eth0 nud permanent"))?;
    nft_file(
        &rig.world,
        "table arp t {\n\
           chain c {\n\
             type filter hook input priority 0;\n\
             arp operation request limit rate 1/day burst 1 packets accept\n\
             arp operation request drop\n\
           }\n\
         }\n",
    )?;
    rig.start(&XDP)?;
    let xdp = rig.wait_xdp("eth0", |xdp| xdp["demoted"] == true)?;
    ensure!(xdp["state"].as_str().is_some_and(|s| s.contains("did not answer any more")), "{xdp}");
    ensure!(xdp["mode"] == "none", "{xdp}");
    assert_eq!(rig.demotions()?, 1);
    Ok(())
}

/// Where nobody answers in the first place, nothing is proven, and nothing is lost.
#[test]
fn xdp_without_a_neighbour_is_kept_and_called_unproven() -> Result<()> {
    if !require::root_or_skip("xdp_without_a_neighbour_is_kept_and_called_unproven") {
        return Ok(());
    }
    let mut rig = OneArmed::by_veth()?;
    rig.world.sysctls(&[("net.ipv4.conf.eth0.arp_ignore", "8")])?;
    rig.node.sysctls(&[("net.ipv6.conf.eth0.disable_ipv6", "1")])?;
    rig.start(&XDP)?;
    let xdp = rig.wait_xdp_probed("eth0")?;
    ensure!(xdp["state"].as_str().is_some_and(|state| state.contains("unproven")), "{xdp}");
    Ok(())
}

/// XDP never runs where a pod is, whatever is asked for.
#[test]
fn a_pod_port_that_is_named_gets_no_xdp() -> Result<()> {
    if !require::root_or_skip("a_pod_port_that_is_named_gets_no_xdp") {
        return Ok(());
    }
    let mut fit = cluster()?;
    let rig = &mut fit.rig;
    rig.expose(&Exposure::new(&[THERE]));
    let pod_port = rig.cluster.nodes()[0].pods[0].host_interface.clone();
    rig.start(&["--xdp-interfaces", &format!("eth0,{pod_port}")])?;
    wait_for_xdp(rig, 0)?;
    let shown =
        rig.cluster.netns(At::Node(0)).ip_output(&["-d", "link", "show", "dev", &pod_port])?;
    ensure!(!shown.contains("xdp"), "{shown}");
    assert_eq!(xdp_of(&rig.status(0)?, &pod_port), serde_json::Value::Null);
    Ok(())
}
