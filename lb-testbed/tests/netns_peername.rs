//! Does a TCP socket know the VIP that it asked for, whatever the others do?

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    agent::Agent,
    cluster::{Family, Place, Topology},
    peer::{Close, Peer, Sock},
    require,
    rig::{CLIENT, Rig},
    wait,
};
use serde_json::Value;

/// How long the kernel may take to release what was closed.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

fn sees_vip(peer: &mut Peer, rig: &Rig, family: Family, what: &str, sock: &Sock) -> Result<()> {
    let remote = peer.names(sock.id)?.remote;
    ensure!(remote == Some(rig.vip(family)), "{family}, {what}: sees {remote:?}");
    peer.ask(sock, what)?;
    Ok(())
}

/// How many sockets have a place in the table.
fn places(agent: &Agent) -> Result<u64> {
    let (_, text) = agent.command_any("status", &["--output", "json"])?;
    let status: Value = serde_json::from_str(&text)?;
    let maps = status["maps"].as_array().context("maps")?;
    let fill = maps.iter().find(|fill| fill["map"] == "TCP_SOCKETS").context("TCP_SOCKETS")?;
    fill["used"].as_u64().context("used")
}

/// The place of a socket's record follows from its cookie; two sockets may have the same one.
#[test]
fn two_sockets_that_share_a_place_both_see_the_vip() -> Result<()> {
    if !require::root_or_skip("two_sockets_that_share_a_place_both_see_the_vip") {
        return Ok(());
    }
    let rig = Rig::new(Topology::Routed)?;
    let [agent, ..] = rig.agents.as_slice() else { unreachable!("a rig has nodes") };
    for family in Family::ALL {
        ensure!(places(agent)? == 0, "{family}: nobody has a place");
        let vip = rig.vip(family);
        let mut peer = rig.cluster.peer(CLIENT, Place::InCgroup)?;
        let first = peer.tcp_connect(vip)?;
        let second = peer.tcp_connect_beside(first.id, vip)?;
        sees_vip(&mut peer, &rig, family, "first", &first)?;
        sees_vip(&mut peer, &rig, family, "second", &second)?;
        ensure!(places(agent)? == 1, "{family}: the second has storage of its own");
        // Its place is free again: the next one has it, and the second keeps what it has.
        peer.close(first.id, Close::Graceful)?;
        ensure!(places(agent)? == 0, "{family}: the place goes with its socket");
        let third = peer.tcp_connect_beside(second.id, vip)?;
        sees_vip(&mut peer, &rig, family, "third", &third)?;
        sees_vip(&mut peer, &rig, family, "second, beside the third", &second)?;
        ensure!(places(agent)? == 1, "{family}: the third has the place");
        peer.close(third.id, Close::Reset)?;
        sees_vip(&mut peer, &rig, family, "second, alone", &second)?;
        drop(peer);
        wait::until("all places to be free", RELEASED_WITHIN, || {
            places(agent).is_ok_and(|places| places == 0)
        })?;
    }
    Ok(())
}
