//! What is refused in packets: what do real sockets see, and how soon? Clients outside of the node's
//! cgroup, and processes of the node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    cluster::{At, Family, Topology},
    manifest::Service,
    matrix::{Case, Engine, TOPOLOGIES, Transport},
    peer::{self, Peer},
    require,
    rig::{CLIENT, FAR, PORT, Rig, TARGET},
    wait,
};
use serde_json::{Value, json};

/// Sooner than a client sends its SYN again (one second, RFC 6298): it was told, and did not give up.
const AT_ONCE: Duration = Duration::from_millis(900);
/// How long a client waits for what does not come.
const SILENCE: Duration = Duration::from_millis(300);
/// How long it takes to see what a packet did.
const SOON: Duration = Duration::from_secs(5);
/// A port that `web` does not have.
const OTHER_PORT: u16 = 81;
/// A process of the node.
const HOST: At = At::Node(0);

/// An address of the cluster's range that no Service has.
fn unallocated(family: Family) -> SocketAddr {
    let text = if family == Family::V4 { "10.96.200.200" } else { "fd00:10:96::c8c8" };
    let ip: IpAddr = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    SocketAddr::new(ip, PORT)
}

fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
    })
}

/// Asks once; the error number, if the client was told anything within the deadline.
fn told(
    client: &mut Peer,
    transport: Transport,
    to: SocketAddr,
    patience: Duration,
) -> Option<i32> {
    let error = match transport {
        Transport::Tcp => client.tcp_connect_from(None, to, patience).err(),
        Transport::Udp => {
            // What comes back for a datagram is told by the next call.
            let sock = client.udp_connected(to).ok()?;
            client.ask_within(&sock, "hello", patience).err()
        }
    };
    let errno = error.and_then(|error| peer::errno(&error));
    errno.filter(|errno| ![libc::ETIMEDOUT, libc::EAGAIN].contains(errno))
}

/// Counters of node-0, as `status` shows them.
fn counters(rig: &Rig) -> Result<BTreeMap<String, u64>> {
    let status = rig.agents[0].command("status", &["--output", "json"])?;
    let status: Value = serde_json::from_str(&status).context("read the status")?;
    let list = status["counters"].as_array().context("no counters")?;
    let pair =
        |counter: &Value| Some((counter["name"].as_str()?.to_owned(), counter["value"].as_u64()?));
    list.iter().map(|counter| pair(counter).with_context(|| format!("{counter}"))).collect()
}

/// Waits until a counter has gone up.
fn wait_counted(rig: &Rig, name: &str, before: u64) -> Result<()> {
    wait::until(&format!("{name} to go up from {before}"), SOON, || {
        counters(rig).is_ok_and(|all| all.get(name).is_some_and(|now| *now > before))
    })
}

fn count(rig: &Rig, name: &str) -> Result<u64> {
    Ok(counters(rig)?.get(name).copied().unwrap_or(0))
}

/// Rules V-3, V-6, V-a, V-j: the packets of a client that the socket engine does not see are answered.
#[test]
fn v_3_v_a_a_client_in_packets_is_refused_at_once() -> Result<()> {
    if !require::root_or_skip("v_3_v_a_a_client_in_packets_is_refused_at_once") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut rig = Rig::new(topology)?;
        rig.set_endpoints(&[])?;
        // A checksum that the client left to its interface is not there yet when its packet is refused;
        // that of the answer is, whether the way back would fill one in or not.
        for offload in [[true, true], [true, false], [false, false]] {
            let port = &rig.cluster.nodes()[0].pods[0].host_interface;
            rig.cluster.netns(CLIENT).offload_checksums("eth0", offload[0])?;
            rig.cluster.netns(HOST).offload_checksums(port, offload[1])?;
            for case in Case::all().filter(|case| case.engine == Engine::Packet) {
                let mut client = rig.client(case.engine)?;
                let errno = told(&mut client, case.transport, rig.vip(case.family), AT_ONCE);
                let what = format!("{topology}, {case}, offload {offload:?}");
                ensure!(
                    errno == Some(libc::ECONNREFUSED),
                    "{what}: {errno:?}, {:?}",
                    counters(&rig)
                );
            }
        }
        ensure!(count(&rig, "refusal_answered")? >= 8);
    }
    Ok(())
}

/// Rules V-4 and V-b: silence, and a counter.
#[test]
fn v_4_v_b_a_local_policy_without_endpoint_here_is_met_with_silence() -> Result<()> {
    let test = "v_4_v_b_a_local_policy_without_endpoint_here_is_met_with_silence";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Bridge)?;
    let vips = Family::ALL.map(|family| rig.vip(family).ip());
    let service = Service::new("default", "web", &vips)
        .port("tcp", "TCP", PORT, TARGET)
        .port("udp", "UDP", PORT, TARGET)
        .spec("internalTrafficPolicy", "Local");
    rig.manifest.set(service);
    rig.change_endpoints(&[FAR])?;
    rig.start_agents()?;
    rig.wait_endpoints(&[FAR])?;
    let answered = count(&rig, "refusal_answered")?;
    for case in Case::all().filter(|case| case.engine == Engine::Packet) {
        let before = count(&rig, "drop_no_local_backend")?;
        let mut client = rig.client(case.engine)?;
        let errno = told(&mut client, case.transport, rig.vip(case.family), SILENCE);
        ensure!(errno.is_none(), "{case}: {errno:?}");
        wait_counted(&rig, "drop_no_local_backend", before).with_context(|| case.to_string())?;
    }
    assert_eq!(count(&rig, "refusal_answered")?, answered);
    Ok(())
}

/// Rules V-12 and V-i: whoever sends to a port that the Service does not have is told, where the packet
/// would leave the node; with ranges of addresses known, and without.
#[test]
fn v_12_v_i_a_port_that_a_service_does_not_have_is_refused() -> Result<()> {
    if !require::root_or_skip("v_12_v_i_a_port_that_a_service_does_not_have_is_refused") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        for ranges in [false, true] {
            let mut rig = Rig::without_agents(topology)?;
            if ranges {
                rig.manifest.set(service_cidr());
            }
            rig.write()?;
            rig.start_agents()?;
            for (at, engine) in
                [(CLIENT, Engine::Packet), (CLIENT, Engine::Socket), (HOST, Engine::Socket)]
            {
                let mut client = rig.cluster.peer(at, engine.place())?;
                for case in Case::all().filter(|case| case.engine == engine) {
                    let what = format!("{topology}, {at:?}, {case}, ranges known: {ranges}");
                    let to = SocketAddr::new(rig.vip(case.family).ip(), OTHER_PORT);
                    let before = count(&rig, "drop_undefined_port")?;
                    let errno = told(&mut client, case.transport, to, AT_ONCE);
                    ensure!(
                        errno == Some(libc::ECONNREFUSED),
                        "{what}: {errno:?}, {:?}",
                        counters(&rig)
                    );
                    ensure!(count(&rig, "drop_undefined_port")? > before, "{what}");
                    // The port that it has works.
                    let reply = case.once(&mut client, rig.vip(case.family)).context(what)?;
                    ensure!(["near", "far"].contains(&reply.server.as_str()), "{reply:?}");
                }
            }
        }
    }
    Ok(())
}

/// Rule V-13: silence, and a counter; what is no Service's passes.
#[test]
fn v_13_an_address_that_no_service_has_is_dropped() -> Result<()> {
    if !require::root_or_skip("v_13_an_address_that_no_service_has_is_dropped") {
        return Ok(());
    }
    let mut rig = Rig::without_agents(Topology::Routed)?;
    rig.manifest.set(service_cidr());
    rig.write()?;
    rig.start_agents()?;
    for (at, engine) in [(CLIENT, Engine::Packet), (HOST, Engine::Socket)] {
        let mut client = rig.cluster.peer(at, engine.place())?;
        for case in Case::all().filter(|case| case.engine == engine) {
            let before = count(&rig, "drop_unallocated_address")?;
            let errno = told(&mut client, case.transport, unallocated(case.family), SILENCE);
            ensure!(errno.is_none(), "{at:?}, {case}: {errno:?}");
            wait_counted(&rig, "drop_unallocated_address", before)
                .with_context(|| format!("{at:?}, {case}"))?;
            // Another node is outside of the range, and nobody listens there: it says so itself.
            let node = SocketAddr::new(rig.cluster.address(At::Node(1), case.family), PORT);
            let errno = told(&mut client, case.transport, node, AT_ONCE);
            ensure!(errno == Some(libc::ECONNREFUSED), "{at:?}, {case}: {errno:?} by the node");
        }
    }
    Ok(())
}
