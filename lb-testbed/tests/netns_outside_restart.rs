//! Does traffic from outside notice that agents are killed, restarted, or that Services change?

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    cluster::{Family, Spec, Topology},
    north_south::{ENTRY, Exposed, Exposure, HERE, NorthSouth, OUTSIDE, SECOND, THERE, Way},
    peer::{LoadId, LoadKind, Peer},
    require,
};

/// How long one request of a load may take: a lost SYN would cost a second.
const PATIENCE: Duration = Duration::from_secs(5);
const KINDS: [LoadKind; 4] = [
    LoadKind::TcpConnections,
    LoadKind::TcpEstablished,
    LoadKind::UdpConnected,
    LoadKind::UdpSockets,
];

fn loads(
    world: &NorthSouth,
    client: &mut Peer,
    services: &[Exposed],
) -> Result<Vec<(LoadId, String)>> {
    let mut loads = Vec::new();
    for service in services {
        for family in Family::ALL {
            for (kind, way) in KINDS.into_iter().zip(Way::ALL.into_iter().cycle()) {
                let to = world.to(*service, way, family);
                let what = format!("{kind:?} to {to}");
                loads.push((client.load(to, kind, PATIENCE)?, what));
            }
        }
    }
    Ok(loads)
}

fn go_on(
    world: &NorthSouth,
    client: &mut Peer,
    loads: &[(LoadId, String)],
    more: u64,
) -> Result<()> {
    for (load, what) in loads {
        client
            .load_goes_on(*load, more, PATIENCE * 2)
            .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
    }
    Ok(())
}

fn none_failed(world: &NorthSouth, client: &mut Peer, loads: Vec<(LoadId, String)>) -> Result<()> {
    for (load, what) in loads {
        let stats = client.load_stop(load)?;
        ensure!(stats.failed == 0, "{what}: {stats:?}, {:?}", world.counters(0));
    }
    Ok(())
}

/// Rules G-4, F-1: SIGKILL of the agents and a restart, while clients outside connect and talk.
#[test]
fn g_4_clients_outside_do_not_notice_that_the_agent_is_killed_and_restarted() -> Result<()> {
    let test = "g_4_clients_outside_do_not_notice_that_the_agent_is_killed_and_restarted";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let services = [HERE, THERE, ENTRY].map(|at| world.expose(&Exposure::new(&[at])));
    // Maps of the default sizes: a full one gives up flows, which is not what is asked here.
    world.write()?;
    let agent = world.agent(0, &[])?.start()?;
    world.agents.push(agent);
    let mut client = world.peer(OUTSIDE)?;
    let loads = loads(&world, &mut client, &services)?;
    go_on(&world, &mut client, &loads, 20)?;
    for _ in 0..2 {
        world.agents[0].kill()?;
        go_on(&world, &mut client, &loads, 20).context("without an agent")?;
        world.agents[0].restart()?;
        go_on(&world, &mut client, &loads, 20).context("with a new agent")?;
    }
    none_failed(&world, &mut client, loads)
}

/// Rules F-1, F-3, U-3: endpoints come and go; connections stay with theirs, datagrams move on, and
/// nothing new fails.
#[test]
fn f_1_u_3_connections_from_outside_stay_and_datagrams_move_when_endpoints_change() -> Result<()> {
    let test = "f_1_u_3_connections_from_outside_stay_and_datagrams_move_when_endpoints_change";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[HERE]));
    world.start(&[])?;
    let mut client = world.peer(SECOND)?;
    let mut at = (HERE, "here");
    for next in [(THERE, "there"), (HERE, "here"), (THERE, "there")] {
        let mut open = Vec::new();
        for case in lb_testbed::north_south::cases() {
            for way in Way::ALL {
                let to = world.to(service, way, case.family);
                let sock = case.connect(&mut client, to)?;
                let reply = client.ask(&sock, "hello").with_context(|| format!("{case}, {to}"))?;
                ensure!(reply.server == at.1, "{case}, {to}: {reply:?}");
                open.push((case, to, sock));
            }
        }
        world.change_and_wait(service, &Exposure::new(&[next.0]))?;
        for (case, to, sock) in open {
            let what = format!("{case}, {to}, from {} to {}", at.1, next.1);
            let reply = client
                .ask(&sock, "and now?")
                .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            let wanted = if sock.is_tcp { at.1 } else { next.1 };
            ensure!(reply.server == wanted, "{what}: {reply:?}");
            let reply = case.once(&mut client, to).with_context(|| what.clone())?;
            ensure!(reply.server == next.1, "{what}: {reply:?}");
            client.close(sock.id, lb_testbed::peer::Close::Reset)?;
        }
        at = next;
    }
    Ok(())
}

/// Rules A-1 and following: a client outside stays with its backend by its address, over all ways in.
#[test]
fn a_1_affinity_holds_for_clients_outside() -> Result<()> {
    if !require::root_or_skip("a_1_affinity_holds_for_clients_outside") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[HERE, THERE]).affinity());
    world.start(&[])?;
    for at in [OUTSIDE, SECOND] {
        let mut client = world.peer(at)?;
        for case in lb_testbed::north_south::cases() {
            for way in Way::ALL {
                let to = world.to(service, way, case.family);
                let first = case.once(&mut client, to).with_context(|| format!("{case}, {to}"))?;
                for _ in 0..16 {
                    let again = case.once(&mut client, to)?;
                    ensure!(again.server == first.server, "{case}, {to}: {again:?}");
                }
            }
        }
    }
    Ok(())
}
