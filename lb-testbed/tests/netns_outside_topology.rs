//! Is the network outside of nodes, and between them, what the tests of traffic from outside believe?
//! Without agents.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_testbed::{
    address::{second_v4, second_v6},
    cluster::{At, Cluster, Family, Place, Spec, Topology, overlay::Overlay, uplink::Uplink},
    firewall::{self, Rules},
    matrix::TOPOLOGIES,
    north_south::SOON,
    packet::Packet,
    peer::Peer,
    require,
    wire::Wire,
};

const PORT: u16 = 8080;
const CLIENT: At = At::Client(0);
const FAR: At = At::Pod(1, 0);

fn ask(client: &mut Peer, to: SocketAddr) -> Result<SocketAddr> {
    let reply = client.udp_once(to).with_context(|| format!("ask {to} in a datagram"))?;
    let again = client.tcp_once(to).with_context(|| format!("ask {to} in a connection"))?;
    assert_eq!(reply.server, again.server);
    Ok(reply.client)
}

#[test]
fn pods_and_nodes_are_reached_by_every_overlay() -> Result<()> {
    if !require::root_or_skip("pods_and_nodes_are_reached_by_every_overlay") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        for overlay in [Overlay::None, Overlay::Vxlan, Overlay::Tunnel] {
            let spec = Spec {
                nodes: 3,
                pods_per_node: 1,
                topology,
                overlay,
                clients: 2,
                ..Spec::default()
            };
            let cluster = Cluster::build(spec)?;
            let _far = cluster.serve(FAR, "far", PORT)?;
            let _node = cluster.serve(At::Node(1), "node", PORT)?;
            for family in Family::ALL {
                let what = format!("{topology}, {overlay:?}, {family}");
                let far = SocketAddr::new(cluster.address(FAR, family), PORT);
                for at in [At::Pod(0, 0), At::Pod(1, 0), At::Pod(2, 0)] {
                    let mut pod = cluster.peer(at, Place::Outside)?;
                    let seen = ask(&mut pod, far).with_context(|| format!("{what}, {at:?}"))?;
                    assert_eq!(seen.ip(), cluster.address(at, family), "{what}");
                }
                let mut host = cluster.peer(At::Node(0), Place::Outside)?;
                let seen = ask(&mut host, far).with_context(|| what.clone())?;
                let wanted = match overlay {
                    Overlay::None => cluster.address(At::Node(0), family),
                    _ => cluster.overlay_address(0, family),
                };
                assert_eq!(seen.ip(), wanted, "{what}");
                let mut client = cluster.peer(At::Client(1), Place::Outside)?;
                let node = SocketAddr::new(cluster.address(At::Node(1), family), PORT);
                let seen = ask(&mut client, node).with_context(|| what.clone())?;
                assert_eq!(seen.ip(), cluster.address(At::Client(1), family), "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_pair_of_links_goes_on_when_one_is_pulled_out() -> Result<()> {
    if !require::root_or_skip("a_pair_of_links_goes_on_when_one_is_pulled_out") {
        return Ok(());
    }
    let spec = Spec { nodes: 1, uplink: Uplink::Pair, clients: 1, ..Spec::default() };
    let cluster = Cluster::build(spec)?;
    let _node = cluster.serve(At::Node(0), "node", PORT)?;
    let mut client = cluster.peer(CLIENT, Place::Outside)?;
    let mut open = Vec::new();
    for family in Family::ALL {
        let to = SocketAddr::new(cluster.address(At::Node(0), family), PORT);
        open.push(client.tcp_connect(to)?);
    }
    let taken = |link: &str| cluster.netns(At::Node(0)).received(link);
    for (active, idle) in [("eth0", "eth1"), ("eth1", "eth0")] {
        if active == "eth1" {
            cluster.fail_over(0)?;
        }
        let before = [taken(active)?, taken(idle)?];
        for sock in open.iter().cycle().take(20) {
            assert_eq!(client.ask(sock, "still there?")?.server, "node");
        }
        let more = [taken(active)? - before[0], taken(idle)? - before[1]];
        assert!(more[0] >= 20 && more[1] < 10, "by {active} and {idle}: {more:?}");
    }
    Ok(())
}

#[test]
fn two_uplinks_answer_by_the_one_that_was_asked() -> Result<()> {
    if !require::root_or_skip("two_uplinks_answer_by_the_one_that_was_asked") {
        return Ok(());
    }
    let spec =
        Spec { uplink: Uplink::Two, topology: Topology::Routed, clients: 1, ..Spec::default() };
    let cluster = Cluster::build(spec)?;
    let mut server = cluster.peer(At::Node(0), Place::Outside)?;
    let seconds = [second_v4(10).into(), second_v6(0x10).into()];
    let seconds = seconds.map(|ip| SocketAddr::new(ip, PORT));
    server.serve("second", &seconds)?;
    let mut client = cluster.peer(CLIENT, Place::Outside)?;
    for to in seconds {
        let seen = ask(&mut client, to)?;
        assert_eq!(
            seen.ip(),
            cluster.address(CLIENT, if to.is_ipv4() { Family::V4 } else { Family::V6 })
        );
    }
    Ok(())
}

/// What other programs' rules do to traffic that is no Service's: nothing, but that pods are hidden from
/// the world; and who was not told of cannot be reached.
#[test]
fn rules_of_others_hide_pods_from_the_world_and_let_the_rest_be() -> Result<()> {
    if !require::nft_or_skip("rules_of_others_hide_pods_from_the_world_and_let_the_rest_be") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        for overlay in [Overlay::None, Overlay::Vxlan] {
            let spec = Spec { topology, overlay, clients: 1, ..Spec::default() };
            let cluster = Cluster::build(spec)?;
            for node in 0..2 {
                firewall::apply(&cluster, node, &Rules::ALL)?;
            }
            let _far = cluster.serve(FAR, "far", PORT)?;
            let _node = cluster.serve(At::Node(1), "node", PORT)?;
            let _outside = cluster.serve(CLIENT, "outside", PORT)?;
            let _closed = cluster.serve(At::Node(1), "closed", PORT + 1)?;
            for family in Family::ALL {
                let what = format!("{topology}, {overlay:?}, {family}");
                let at = |at| SocketAddr::new(cluster.address(at, family), PORT);
                let mut pod = cluster.peer(At::Pod(0, 0), Place::Outside)?;
                let mut client = cluster.peer(CLIENT, Place::Outside)?;
                let seen = ask(&mut pod, at(FAR)).with_context(|| what.clone())?;
                assert_eq!(seen.ip(), cluster.address(At::Pod(0, 0), family), "{what}");
                let seen = ask(&mut pod, at(CLIENT)).with_context(|| what.clone())?;
                assert_eq!(seen.ip(), cluster.address(At::Node(0), family), "{what}");
                ask(&mut client, at(At::Node(1))).with_context(|| what.clone())?;
                let closed = SocketAddr::new(cluster.address(At::Node(1), family), PORT + 1);
                let patience = std::time::Duration::from_millis(200);
                assert!(client.tcp_connect_from(None, closed, patience).is_err(), "{what}");
            }
            for node in 0..2 {
                for table in ["invalid", "rpfilter"] {
                    let dropped = firewall::counted(&cluster, node, table)?;
                    assert_eq!(dropped, 0, "{}", firewall::list(&cluster, node)?);
                }
            }
        }
    }
    Ok(())
}

/// The tools of other tests: thousands of connections, and frames without sockets.
#[test]
fn many_connections_and_bare_frames_arrive() -> Result<()> {
    if !require::root_or_skip("many_connections_and_bare_frames_arrive") {
        return Ok(());
    }
    let spec = Spec { nodes: 1, topology: Topology::Routed, clients: 1, ..Spec::default() };
    let cluster = Cluster::build(spec)?;
    let node = At::Node(0);
    let mut server = cluster.peer(node, Place::Outside)?;
    let mut client = cluster.peer(CLIENT, Place::Outside)?;
    let to = SocketAddr::new(cluster.address(node, Family::V4), PORT);
    server.serve_many(to)?;
    client.connect_many(to, 500)?;
    for _ in 0..2 {
        assert_eq!(client.ask_many()?.len(), 500);
    }
    let router = cluster.fabric().mac(cluster.client_side())?;
    let mut wire = Wire::open(cluster.netns(CLIENT), "eth0", router)?;
    for family in Family::ALL {
        let (from, to) = (cluster.address(CLIENT, family), cluster.address(node, family));
        let (echo, answer) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        wire.send(&Packet::new(from, to).icmp(echo, 0, [0, 1, 0, 1]).payload(b"ping"))?;
        wire.wait("an answer to a ping", SOON, |frame| {
            let kind = frame.bytes.get(frame.parsed.upper_at).copied();
            (frame.parsed.src == to && kind == Some(answer)).then_some(())
        })?;
    }
    Ok(())
}
