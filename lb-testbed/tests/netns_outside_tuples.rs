//! Ports and tuples (production cases 35, 37 to 39): whose packet is it when two flows look alike?

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{At, Family, Place, Spec, Topology},
    firewall,
    matrix::{Case, Transport},
    north_south::{
        ENTRY, Exposed, Exposure, HERE, NEIGHBOUR, NorthSouth, OUTSIDE, SECOND, TARGET, THERE, Way,
        cases,
    },
    packet::Packet,
    peer::{Close, Peer, STEP, Sock},
    require,
    wire::Wire,
};

/// Where a server outside listens.
const SERVER: u16 = 9_000;

/// A connected socket of a client from a chosen port.
fn connect_from(client: &mut Peer, case: Case, from: SocketAddr, to: SocketAddr) -> Result<Sock> {
    match case.transport {
        Transport::Tcp => client.tcp_connect_from(Some(from), to, STEP),
        Transport::Udp => {
            let sock = client.udp_open_from(from)?;
            client.udp_connect(sock.id, to)
        }
    }
    .with_context(|| format!("{case}: from {from} to {to}"))
}

fn outside_server(world: &NorthSouth) -> Result<Peer> {
    world.cluster.serve(OUTSIDE, "outside", SERVER)
}

/// Production case 35: a process of the node talks to the world from a port that is a `NodePort` as well.
/// The answers are its own; the `NodePort` works beside it.
#[test]
fn case_35_a_process_of_the_node_may_use_a_node_port_as_source_port() -> Result<()> {
    if !require::root_or_skip("case_35_a_process_of_the_node_may_use_a_node_port_as_source_port") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    let _server = outside_server(&world)?;
    let mut host = world.peer(ENTRY)?;
    let mut client = world.peer(SECOND)?;
    for case in cases() {
        for service in services {
            let node = world.cluster.address(ENTRY, case.family);
            let from = SocketAddr::new(node, service.node_port());
            let to = SocketAddr::new(world.cluster.address(OUTSIDE, case.family), SERVER);
            let what = format!("{case}, from {from}");
            let sock = connect_from(&mut host, case, from, to)?;
            for round in 0..3 {
                let reply = host
                    .ask(&sock, &format!("round {round}"))
                    .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
                ensure!(reply.server == "outside" && reply.client == from, "{what}: {reply:?}");
                let reply = case
                    .once(&mut client, from)
                    .with_context(|| format!("{case}: the NodePort {from} beside it"))?;
                ensure!(reply.server != "outside", "{what}: {reply:?}");
            }
            if case.transport == Transport::Tcp {
                host.bulk(sock.id, 300_000).with_context(|| what.clone())?;
            }
            host.close(sock.id, Close::Reset)?;
        }
    }
    Ok(())
}

/// Production case 35: a CNI's masquerade chooses a `NodePort` as source port of a pod's connection.
#[test]
fn case_35_a_masquerade_may_choose_a_node_port() -> Result<()> {
    if !require::nft_or_skip("case_35_a_masquerade_may_choose_a_node_port") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[THERE]));
    world.start(&[])?;
    let port = service.node_port();
    firewall::run(
        &world.cluster,
        0,
        &format!(
            "table inet cni {{
                chain post {{
                    type nat hook postrouting priority srcnat;
                    ip saddr 10.244.0.0/16 meta l4proto {{ tcp, udp }} masquerade to :{port}
                    ip6 saddr fd00:10:244::/48 meta l4proto {{ tcp, udp }} masquerade to :{port}
                }}
            }}"
        ),
    )?;
    let _server = outside_server(&world)?;
    let mut pod = world.cluster.peer(NEIGHBOUR, Place::Outside)?;
    let mut client = world.peer(SECOND)?;
    for case in cases() {
        let node = SocketAddr::new(world.cluster.address(ENTRY, case.family), port);
        let to = SocketAddr::new(world.cluster.address(OUTSIDE, case.family), SERVER);
        let what = format!("{case}");
        let sock = case.connect(&mut pod, to)?;
        for round in 0..3 {
            let reply = pod
                .ask(&sock, &format!("round {round}"))
                .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            ensure!(reply.server == "outside" && reply.client == node, "{what}: {reply:?}");
            let reply = case.once(&mut client, node).with_context(|| what.clone())?;
            ensure!(reply.server == "there", "{what}: {reply:?}");
        }
        if case.transport == Transport::Tcp {
            pod.bulk(sock.id, 300_000).with_context(|| what.clone())?;
        }
        pod.close(sock.id, Close::Reset)?;
    }
    Ok(())
}

/// Two flows of clients that the backend could not tell apart: both go on, unharmed by the other.
fn both_go_on(
    world: &NorthSouth,
    what: &str,
    case: Case,
    server: &str,
    flows: &mut [(&mut Peer, Sock)],
) -> Result<()> {
    let mut seen = Vec::new();
    for round in 0..3 {
        for (client, sock) in flows.iter_mut() {
            let reply = client
                .ask(sock, &format!("{} round {round}", sock.id))
                .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            ensure!(reply.server == server, "{what}: {reply:?}");
            seen.push(reply.client);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    ensure!(seen.len() == flows.len(), "{what}: the backend sees {seen:?}");
    if case.transport == Transport::Tcp {
        for (client, sock) in flows {
            client.bulk(sock.id, 200_000).with_context(|| what.to_owned())?;
        }
    }
    Ok(())
}

/// Production cases 37 and 39: the same client address and port to two addresses of Services that share a
/// backend. The second flow gets another port towards the backend.
#[test]
fn case_37_case_39_one_client_port_and_two_vips_with_the_same_backend() -> Result<()> {
    let test = "case_37_case_39_one_client_port_and_two_vips_with_the_same_backend";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let places = [(HERE, "here"), (THERE, "there"), (ENTRY, "host")];
    let pairs = places.map(|(at, name)| {
        let one = world.expose(&Exposure::new(&[at]));
        (name, [one, world.expose(&Exposure::new(&[at]))])
    });
    world.start(&[])?;
    let mut first = world.peer(OUTSIDE)?;
    let mut second = world.peer(OUTSIDE)?;
    for (case, port) in cases().zip(45_000..) {
        for (name, services) in pairs {
            let what = format!("{case}, {name}");
            let from = SocketAddr::new(world.cluster.address(OUTSIDE, case.family), port);
            let to = services.map(|one: Exposed| world.to(one, Way::LoadBalancer, case.family));
            // Two sockets of one address and port are allowed where both are connected.
            let (a, b) = match case.transport {
                Transport::Tcp => (
                    connect_from(&mut first, case, from, to[0])?,
                    connect_from(&mut second, case, from, to[1])
                        .with_context(|| format!("{what}: {:?}", world.counters(0)))?,
                ),
                Transport::Udp => {
                    // A datagram socket shares its port with none, and talks to both in turn.
                    one_socket_two_vips(&world, &mut first, &what, from, to, name)?;
                    continue;
                }
            };
            both_go_on(&world, &what, case, name, &mut [(&mut first, a), (&mut second, b)])?;
            first.close(a.id, Close::Reset)?;
            second.close(b.id, Close::Reset)?;
        }
    }
    ensure!(world.counter(0, Counter::FlowReported)? > 0, "{:?}", world.counters(0));
    Ok(())
}

fn one_socket_two_vips(
    world: &NorthSouth,
    client: &mut Peer,
    what: &str,
    from: SocketAddr,
    to: [SocketAddr; 2],
    server: &str,
) -> Result<()> {
    let sock = client.udp_open_from(from)?;
    for round in 0..3 {
        for vip in to {
            let (reply, source) = client
                .ask_to(sock.id, vip, &format!("{vip} round {round}"), STEP)
                .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            ensure!(reply.server == server, "{what}: {reply:?}");
            ensure!(source == Some(vip), "{what}: asked {vip}, answered by {source:?}");
        }
    }
    client.close(sock.id, Close::Graceful)
}

/// Production case 38: two clients with the same source port, two addresses, one backend elsewhere: under
/// the node's address they are still two.
#[test]
fn case_38_two_clients_with_one_port_stay_apart_behind_one_address() -> Result<()> {
    if !require::root_or_skip("case_38_two_clients_with_one_port_stay_apart_behind_one_address") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Routed, ..Spec::default() })?;
    let services = [THERE; 2].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    let mut first = world.peer(OUTSIDE)?;
    let mut second = world.peer(SECOND)?;
    for (case, port) in cases().zip(46_000..) {
        for (a, b) in [(services[0], services[1]), (services[0], services[0])] {
            let what = format!("{case}, {a:?}, {b:?}");
            let from = |at: At| SocketAddr::new(world.cluster.address(at, case.family), port);
            let to = |service| world.to(service, Way::LoadBalancer, case.family);
            let one = connect_from(&mut first, case, from(OUTSIDE), to(a))?;
            let two = connect_from(&mut second, case, from(SECOND), to(b))?;
            both_go_on(&world, &what, case, "there", &mut [(&mut first, one), (&mut second, two)])?;
            first.close(one.id, Close::Reset)?;
            // The other one does not notice.
            let reply = second.ask(&two, "alone now").with_context(|| what.clone())?;
            ensure!(reply.server == "there", "{what}: {reply:?}");
            second.close(two.id, Close::Reset)?;
        }
    }
    Ok(())
}

/// SNAT with two addresses: when the ports of one are used up towards a backend, those of the other serve.
/// When all are, what is new is dropped and counted, and what there is goes on.
#[test]
fn two_snat_addresses_serve_twice_as_many_connections() -> Result<()> {
    // Of two times 1024.
    const CONNECTIONS: usize = 1_500;
    const MANY: u16 = TARGET + 1;
    if !require::root_or_skip("two_snat_addresses_serve_twice_as_many_connections") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let one = world.expose(&Exposure::new(&[THERE]));
    let many = world.expose(&Exposure::new(&[THERE]).target(MANY));
    let second: [IpAddr; 2] = ["172.18.0.200".parse()?, "fd00:172:18::200".parse()?];
    world.cluster.nodes()[0].netns.ip(&format!(
        "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad",
        second[0], second[1]
    ))?;
    let nodes = world.cluster.addresses(ENTRY);
    let addresses: Vec<String> = nodes.iter().chain(&second).map(IpAddr::to_string).collect();
    let mut flags = vec!["--snat-ports", "20000-21023"];
    for address in &addresses {
        flags.extend(["--snat-address", address]);
    }
    world.start(&flags)?;
    // The ports of the client lie next to each other, so that it is known where those for SNAT lie.
    world.cluster.netns(OUTSIDE).sysctls(&[("net.ipv4.ip_local_port_range", "30000 31999")])?;
    let mut server = world.peer(THERE)?;
    let mut client = world.peer(OUTSIDE)?;
    let router = world.cluster.fabric().mac(world.cluster.client_side())?;
    let mut wire = Wire::open(world.cluster.netns(OUTSIDE), "eth0", router)?;
    for family in Family::ALL {
        let at = SocketAddr::new(world.cluster.address(THERE, family), MANY);
        server.serve_many(at)?;
        let counters = || format!("{family}: {:?}", world.counters(0));
        let to = world.to(many, Way::LoadBalancer, family);
        client.connect_many(to, CONNECTIONS).with_context(counters)?;
        let seen = client.ask_many().with_context(counters)?;
        ensure!(seen.len() == CONNECTIONS, "{}: {} clients are seen", counters(), seen.len());
        let own = nodes[usize::from(family == Family::V6)];
        let other = second[usize::from(family == Family::V6)];
        for address in [own, other] {
            let count = seen.iter().filter(|client| client.ip() == address).count();
            ensure!((1..=1024).contains(&count), "{address}: {count} connections");
        }
        ensure!(seen.iter().all(|client| [own, other].contains(&client.ip())), "{family}");
        ensure!(seen.iter().all(|client| (20_000..21_024).contains(&client.port())), "{family}");
        // Datagrams have ports of their own, until they do not.
        let to = world.to(one, Way::LoadBalancer, family);
        let sock = client.udp_connected(to)?;
        client.ask(&sock, "before").with_context(counters)?;
        let before = world.counter(0, Counter::DropNoPort)?;
        let from = world.cluster.address(OUTSIDE, family);
        for port in 20_000..26_000 {
            wire.send(&Packet::new(from, to.ip()).udp(port, to.port()).payload(b"x"))?;
        }
        wire.clear()?;
        world.wait_counted(0, Counter::DropNoPort, before, 1)?;
        client.ask(&sock, "afterwards").with_context(counters)?;
        let again = client.ask_many().with_context(counters)?;
        ensure!(again == seen, "{family}: connections are seen as from elsewhere");
    }
    Ok(())
}
