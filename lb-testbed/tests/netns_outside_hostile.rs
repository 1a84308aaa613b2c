//! Production case 53: a node with all the rules that CNIs, container runtimes, distributions and
//! administrators write, and strict reverse path filters. Everything works as without.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    cluster::{At, Cluster, Family, Place, Spec, Topology, overlay::Overlay},
    firewall::{self, Rules},
    matrix::Transport,
    north_south::{
        ENTRY, Exposed, Exposure, HERE, NEIGHBOUR, NorthSouth, OTHER, OUTSIDE, PORT, STRANGER,
        TARGET, THERE, Way, cases,
    },
    peer::{Close, Peer, STEP},
    require,
};

const PLACES: [(At, &str); 4] =
    [(HERE, "here"), (ENTRY, "host"), (THERE, "there"), (OTHER, "other-host")];

/// A cluster of hostile nodes, with a Service for each place.
fn hostile(topology: Topology, overlay: Overlay) -> Result<(NorthSouth, Vec<(String, Exposed)>)> {
    let mut world = NorthSouth::new(Spec { topology, overlay, ..Spec::default() })?;
    let services = PLACES.map(|(at, name)| (name.to_owned(), world.expose(&Exposure::new(&[at]))));
    for node in 0..world.cluster.nodes().len() {
        firewall::apply(&world.cluster, node, &Rules::ALL)?;
    }
    world.start_everywhere(&[])?;
    Ok((world, services.into()))
}

/// Whether netfilter took anything for invalid, or for coming by the wrong way.
fn unharmed(cluster: &Cluster) -> Result<()> {
    for node in 0..cluster.nodes().len() {
        for table in ["invalid", "rpfilter"] {
            let dropped = firewall::counted(cluster, node, table)?;
            ensure!(dropped == 0, "node {node}: {}", firewall::list(cluster, node)?);
        }
    }
    Ok(())
}

fn works(client: &mut Peer, what: &str, to: SocketAddr, server: &str) -> Result<()> {
    for case in cases().filter(|case| (case.family == Family::V4) == to.is_ipv4()) {
        let what = || format!("{what}, {case}, {to}, {server}");
        let sock = case.connect(client, to).with_context(what)?;
        for round in 0..3 {
            let (reply, from) =
                client.ask_within(&sock, &format!("round {round}"), STEP).with_context(what)?;
            ensure!(reply.server == server, "{}: {reply:?}", what());
            ensure!(from.is_none_or(|from| from == to), "{}: from {from:?}", what());
        }
        match case.transport {
            Transport::Tcp => {
                client.bulk(sock.id, 100_000).with_context(what)?;
                client.close(sock.id, Close::Write)?;
                ensure!(client.receive(sock.id, STEP).with_context(what)?.is_none());
            }
            Transport::Udp => {
                // Fits every overlay with all headers.
                client.ask(&sock, &"x".repeat(1_100)).with_context(what)?;
            }
        }
        client.close(sock.id, Close::Graceful)?;
    }
    Ok(())
}

/// Clients outside by every address, a pod of another node that its CNI masquerades, and that node itself;
/// then the node's own clients, pods by either engine and processes, and the world as they see it.
fn everybody_is_served(test: &str, topology: Topology, overlay: Overlay) -> Result<()> {
    if !require::nft_or_skip(test) {
        return Ok(());
    }
    let (world, services) = hostile(topology, overlay)?;
    let _server = world.cluster.serve(OUTSIDE, "outside", 9_000)?;
    let counters = || format!("{overlay:?}: {:?}", world.counters(0));
    for (at, place) in [
        (OUTSIDE, Place::Outside),
        (STRANGER, Place::Outside),
        (STRANGER, Place::InCgroup),
        (OTHER, Place::InCgroup),
        (NEIGHBOUR, Place::Outside),
        (NEIGHBOUR, Place::InCgroup),
        (ENTRY, Place::InCgroup),
    ] {
        let mut client = world.cluster.peer(at, place)?;
        let what = format!("{at:?}, {place:?}");
        for family in Family::ALL {
            for (name, service) in &services {
                for way in Way::ALL {
                    let to = world.to(*service, way, family);
                    works(&mut client, &what, to, name).with_context(counters)?;
                }
                if at != OUTSIDE {
                    let vip = SocketAddr::new(service.cluster_ip(family), PORT);
                    works(&mut client, &what, vip, name).with_context(counters)?;
                }
            }
            if at != OUTSIDE {
                let pod = SocketAddr::new(world.cluster.address(THERE, family), TARGET);
                works(&mut client, &what, pod, "there").with_context(counters)?;
                let outside = SocketAddr::new(world.cluster.address(OUTSIDE, family), 9_000);
                works(&mut client, &what, outside, "outside").with_context(counters)?;
            }
        }
    }
    unharmed(&world.cluster)
}

#[test]
fn case_53_everybody_is_served_by_nodes_with_everybodys_rules() -> Result<()> {
    let test = "case_53_everybody_is_served_by_nodes_with_everybodys_rules";
    everybody_is_served(test, Topology::Bridge, Overlay::None)
}

#[test]
fn case_53_everybody_is_served_through_an_overlay_by_nodes_with_everybodys_rules() -> Result<()> {
    let test = "case_53_everybody_is_served_through_an_overlay_by_nodes_with_everybodys_rules";
    everybody_is_served(test, Topology::Routed, Overlay::Vxlan)
}

/// What is sent on to another node never becomes a packet of the node's own: connection tracking does not
/// know of it, and a rule that forwards nothing at all does not stop it.
#[test]
fn forwarded_flows_never_meet_the_nodes_netfilter() -> Result<()> {
    if !require::nft_or_skip("forwarded_flows_never_meet_the_nodes_netfilter") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let service = world.expose(&Exposure::new(&[THERE]));
    world.start(&[])?;
    let nothing = "table inet nothing {
        chain pre { type filter hook prerouting priority raw; ip saddr 192.0.2.0/24 counter drop;
            ip6 saddr 2001:db8:2::/64 counter drop; }
        chain forward { type filter hook forward priority filter; policy drop; ct state new counter; }
    }";
    firewall::run(&world.cluster, 0, nothing)?;
    let before = firewall::tracked(&world.cluster, 0)?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        for way in Way::ALL {
            let to = world.to(service, way, case.family);
            let what = || format!("{case}, {to}: {:?}", world.counters(0));
            // The next hop is asked for by the node itself, and its answer passes the rules.
            for _ in 0..20 {
                let reply = case.once(&mut client, to).with_context(what)?;
                ensure!(reply.server == "there", "{case}: {reply:?}");
            }
        }
    }
    let counted = firewall::counted(&world.cluster, 0, "nothing")?;
    ensure!(counted == 0, "{}", firewall::list(&world.cluster, 0)?);
    let more = firewall::tracked(&world.cluster, 0)?.saturating_sub(before);
    ensure!(more < 10, "{more} connections are tracked");
    Ok(())
}
