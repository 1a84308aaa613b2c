//! Production case 53: a node with all the rules that CNIs, container runtimes, distributions and
//! administrators write, and strict reverse path filters. Everything works as without.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    cluster::{At, Cluster, Place, Spec, Topology, overlay::Overlay},
    firewall::{self, Rules},
    matrix::{TOPOLOGIES, Transport},
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
    world.start(&[])?;
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
    for case in
        cases().filter(|case| (case.family == lb_testbed::cluster::Family::V4) == to.is_ipv4())
    {
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
                client.bulk(sock.id, 300_000).with_context(what)?;
                client.close(sock.id, Close::Write)?;
                ensure!(client.receive(sock.id, STEP).with_context(what)?.is_none());
            }
            Transport::Udp => {
                for size in [1_400, 3_000] {
                    client.ask(&sock, &"x".repeat(size)).with_context(what)?;
                }
            }
        }
        client.close(sock.id, Close::Graceful)?;
    }
    Ok(())
}

#[test]
fn case_53_clients_outside_are_served_by_a_node_with_everybodys_rules() -> Result<()> {
    let test = "case_53_clients_outside_are_served_by_a_node_with_everybodys_rules";
    if !require::nft_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let (world, services) = hostile(topology, Overlay::None)?;
        let mut client = world.peer(OUTSIDE)?;
        for family in lb_testbed::cluster::Family::ALL {
            for (name, service) in &services {
                for way in Way::ALL {
                    let to = world.to(*service, way, family);
                    works(&mut client, &format!("{topology}, {way:?}"), to, name)
                        .with_context(|| format!("{:?}", world.counters(0)))?;
                }
            }
        }
        unharmed(&world.cluster)?;
    }
    Ok(())
}

/// With an overlay, and a client that is a pod of another node, whose CNI masquerades it.
#[test]
fn case_53_clients_of_other_nodes_and_overlays_are_served_as_well() -> Result<()> {
    if !require::nft_or_skip("case_53_clients_of_other_nodes_and_overlays_are_served_as_well") {
        return Ok(());
    }
    for (topology, overlay) in
        [(Topology::Bridge, Overlay::Vxlan), (Topology::Routed, Overlay::Tunnel)]
    {
        let (world, services) = hostile(topology, overlay)?;
        for (at, place) in [
            (OUTSIDE, Place::Outside),
            (STRANGER, Place::Outside),
            (STRANGER, Place::InCgroup),
            (OTHER, Place::InCgroup),
        ] {
            let mut client = world.cluster.peer(at, place)?;
            for case in cases() {
                for (name, service) in &services {
                    for way in Way::ALL {
                        let to = world.to(*service, way, case.family);
                        let what =
                            || format!("{topology}, {overlay:?}, {at:?}, {case}, {to}, {name}");
                        let sock = case.connect(&mut client, to).with_context(what)?;
                        for round in 0..3 {
                            let reply = client
                                .ask(&sock, &format!("round {round}"))
                                .with_context(|| format!("{}: {:?}", what(), world.counters(0)))?;
                            ensure!(&reply.server == name, "{}: {reply:?}", what());
                        }
                        client.close(sock.id, Close::Graceful)?;
                    }
                }
            }
        }
        unharmed(&world.cluster)?;
    }
    Ok(())
}

/// The node's own clients beside it: pods by either engine, and processes; the world as a pod sees it.
#[test]
fn case_53_the_nodes_own_clients_are_served_by_a_node_with_everybodys_rules() -> Result<()> {
    let test = "case_53_the_nodes_own_clients_are_served_by_a_node_with_everybodys_rules";
    if !require::nft_or_skip(test) {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let (world, services) = hostile(topology, Overlay::None)?;
        let _server = world.cluster.serve(OUTSIDE, "outside", 9_000)?;
        for (at, place) in
            [(NEIGHBOUR, Place::Outside), (NEIGHBOUR, Place::InCgroup), (ENTRY, Place::InCgroup)]
        {
            let mut client = world.cluster.peer(at, place)?;
            for family in lb_testbed::cluster::Family::ALL {
                let what = format!("{topology}, {at:?}, {place:?}");
                for (name, service) in &services {
                    let vip = SocketAddr::new(service.cluster_ip(family), PORT);
                    works(&mut client, &what, vip, name)?;
                    works(&mut client, &what, world.to(*service, Way::NodePort, family), name)?;
                }
                let pod = SocketAddr::new(world.cluster.address(THERE, family), TARGET);
                works(&mut client, &what, pod, "there")?;
                let outside = SocketAddr::new(world.cluster.address(OUTSIDE, family), 9_000);
                works(&mut client, &what, outside, "outside")?;
            }
        }
        unharmed(&world.cluster)?;
    }
    Ok(())
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
