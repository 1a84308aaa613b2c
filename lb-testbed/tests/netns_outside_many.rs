//! Production case 36: how many connections of one client fit through one node to one backend?

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{Family, Spec, Topology},
    north_south::{ENTRY, Exposure, NorthSouth, OUTSIDE, TARGET, THERE, Way},
    require,
};

const CONNECTIONS: usize = 25_000;
/// The server beside the one that answers at [`TARGET`].
const MANY: u16 = TARGET + 1;

#[test]
fn case_36_twenty_five_thousand_connections_of_one_client_to_one_backend() -> Result<()> {
    let test = "case_36_twenty_five_thousand_connections_of_one_client_to_one_backend";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let spec = Spec { topology: Topology::Routed, ..Spec::default() };
    let mut world = NorthSouth::new(spec)?;
    let service = world.expose(&Exposure::new(&[THERE]).target(MANY));
    world.write()?;
    let flags = [
        "--max-flows",
        "131072",
        "--max-half-open-flows",
        "8192",
        "--max-socket-peers",
        "4096",
        "--max-frontends",
        "1024",
        "--max-backends",
        "4096",
        "--max-slots",
        "8192",
        "--max-service-ports",
        "1024",
    ];
    let agent = world.agent(0, &flags)?.start()?;
    world.agents.push(agent);
    // What a client and a server with so many connections set as well.
    for at in [OUTSIDE, THERE] {
        world.cluster.netns(at).sysctls(&[
            ("net.ipv4.ip_local_port_range", "10000 65000"),
            ("net.core.somaxconn", "4096"),
        ])?;
    }
    // One process may not have as many sockets.
    let mut servers = [world.peer(THERE)?, world.peer(THERE)?];
    let mut clients = [world.peer(OUTSIDE)?, world.peer(OUTSIDE)?];
    let family = Family::V4;
    let at = SocketAddr::new(world.cluster.address(THERE, family), MANY);
    servers.iter_mut().try_for_each(|server| server.serve_many(at))?;
    let counters = || format!("{:?}", world.counters(0));
    let to = world.to(service, Way::LoadBalancer, family);
    for client in &mut clients {
        client.connect_many(to, CONNECTIONS / 2).with_context(counters)?;
    }
    for _ in 0..2 {
        let mut seen = BTreeSet::new();
        for client in &mut clients {
            seen.append(&mut client.ask_many().with_context(counters)?);
        }
        ensure!(seen.len() == CONNECTIONS, "{} clients are seen: {}", seen.len(), counters());
        let entry = world.cluster.address(ENTRY, family);
        ensure!(seen.iter().all(|client| client.ip() == entry), "{}", counters());
    }
    ensure!(world.counter(0, Counter::FlowForwarded)? >= CONNECTIONS as u64, "{}", counters());
    for bad in [Counter::DropNoPort, Counter::DropNoFlow, Counter::DropTableFull] {
        ensure!(world.counter(0, bad)? == 0, "{}", counters());
    }
    // The node itself goes on.
    let reply = world
        .peer(ENTRY)?
        .tcp_once(SocketAddr::new(world.cluster.address(THERE, family), TARGET))?;
    ensure!(reply.server == "there", "{reply:?}");
    Ok(())
}
