//! By which way do packets of clients outside come and go: pairs of links, two networks, a virtual
//! address on the link, addresses that come and go?

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    address::{second_v4, second_v6},
    cluster::{At, Cluster, Family, Spec, Topology, overlay::Overlay, uplink::Uplink},
    matrix::Transport,
    north_south::{
        AT_ONCE, ENTRY, Exposure, HERE, LOAD_BALANCERS, NorthSouth, OTHER, OUTSIDE, PORT, SILENCE,
        THERE, Way, cases, told,
    },
    peer::Peer,
    require,
    rig::IN_FORCE_WITHIN,
    wait,
};

const PLACES: [(At, &str); 4] =
    [(HERE, "here"), (ENTRY, "host"), (THERE, "there"), (OTHER, "other-host")];

/// Peers 4.3, bond: flows go on when the active link of a pair is pulled out, and new ones come.
#[test]
fn a_pair_of_links_carries_flows_on_when_one_is_pulled_out() -> Result<()> {
    if !require::root_or_skip("a_pair_of_links_carries_flows_on_when_one_is_pulled_out") {
        return Ok(());
    }
    let spec = Spec { uplink: Uplink::Pair, ..Spec::default() };
    let mut world = NorthSouth::new(spec)?;
    let services = PLACES.map(|(at, name)| (name, world.expose(&Exposure::new(&[at]))));
    // A bridge over pairs of interfaces looks like that of a CNI.
    world.start(&["--interfaces", "eth0=uplink,eth1=uplink"])?;
    let mut client = world.peer(OUTSIDE)?;
    let mut open = Vec::new();
    for case in cases() {
        for (name, service) in services {
            for way in Way::ALL {
                let to = world.to(service, way, case.family);
                let what = format!("{case}, {way:?}, {name}");
                let counters = || format!("{what}: {:?}", world.counters(0));
                let sock = case.connect(&mut client, to).with_context(counters)?;
                let reply = client.ask(&sock, "hello").with_context(counters)?;
                ensure!(reply.server == name, "{what}: {reply:?}");
                open.push((what, case, to, name, sock, reply.client));
            }
        }
    }
    world.cluster.fail_over(0)?;
    world.cluster.fail_over(1)?;
    for (what, case, to, name, sock, source) in open {
        let counters = || format!("{what} after the change: {:?}", world.counters(0));
        let reply = client.ask(&sock, "still there?").with_context(counters)?;
        ensure!((reply.server.as_str(), reply.client) == (name, source), "{what}: {reply:?}");
        let reply = case.once(&mut client, to).with_context(counters)?;
        ensure!(reply.server == name, "{what}: {reply:?}");
    }
    Ok(())
}

/// Peers 4.3, policy routing: replies leave by the uplink that the flow came in by, whatever the routes
/// say of the client. The router takes nothing of the second network's on the link of the first.
#[test]
fn m_3_replies_leave_by_the_uplink_that_the_flow_came_in_by() -> Result<()> {
    if !require::root_or_skip("m_3_replies_leave_by_the_uplink_that_the_flow_came_in_by") {
        return Ok(());
    }
    for (topology, overlay) in
        [(Topology::Routed, Overlay::None), (Topology::Bridge, Overlay::Vxlan)]
    {
        let spec = Spec { uplink: Uplink::Two, topology, overlay, ..Spec::default() };
        let mut world = NorthSouth::new(spec)?;
        let services = PLACES.map(|(at, name)| (name, world.expose(&Exposure::new(&[at]))));
        world.start(&["--node-port-addresses", "all", "--interfaces", "eth1=uplink"])?;
        // VIPs come in by the second network as well.
        let (v4, v6): (IpAddr, IpAddr) = (second_v4(10).into(), second_v6(0x10).into());
        for (range, via) in LOAD_BALANCERS.into_iter().zip([v4, v6]) {
            let route = format!("route replace {range} via {via} dev br1");
            world.cluster.fabric().ip(&route)?;
        }
        let mut client = world.peer(OUTSIDE)?;
        for case in cases() {
            for (name, service) in services {
                let second = if case.family == Family::V4 { v4 } else { v6 };
                let node_port = SocketAddr::new(second, service.node_port());
                for to in [node_port, world.to(service, Way::LoadBalancer, case.family)] {
                    let what = format!("{topology}, {overlay:?}, {case}, {to}, {name}");
                    let entry = &world.cluster.nodes()[0].netns;
                    let before = entry.sent("eth1")?;
                    let counters = || format!("{what}: {:?}", world.counters(0));
                    let sock = case.connect(&mut client, to).with_context(counters)?;
                    for _ in 0..10 {
                        let reply = client.ask(&sock, "hello").with_context(counters)?;
                        ensure!(reply.server == name, "{what}: {reply:?}");
                    }
                    let sent = entry.sent("eth1")? - before;
                    ensure!(sent >= 10, "{what}: {sent} packets left by eth1");
                    if case.transport == Transport::Tcp {
                        client.bulk(sock.id, 300_000).with_context(counters)?;
                    }
                }
            }
        }
        // By the first network all is as ever.
        for case in cases() {
            for (name, service) in services {
                let to = world.to(service, Way::NodePort, case.family);
                let reply = case.once(&mut client, to).with_context(|| format!("{case}, {to}"))?;
                ensure!(reply.server == name, "{case}, {to}: {reply:?}");
            }
        }
    }
    Ok(())
}

/// Production case 41: under the Local policy a load balancer's address is reached that the node answers
/// for on its own link, as announcers at layer 2 do; and by a client on that link.
#[test]
fn case_41_a_local_load_balancers_address_on_the_link_is_reached() -> Result<()> {
    if !require::root_or_skip("case_41_a_local_load_balancers_address_on_the_link_is_reached") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[HERE]).local());
    world.start(&[])?;
    // What an ARP answer or a neighbour advertisement of the announcer leaves behind.
    let mac = world.cluster.nodes()[0].netns.mac("eth0")?;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let fabric = world.cluster.fabric();
    for (family, bits) in [(Family::V4, 32), (Family::V6, 128)] {
        let vip = service.load_balancer(family);
        fabric.ip(&format!(
            "route add {vip}/{bits} dev br0\nneigh replace {vip} lladdr {mac} dev br0 nud permanent"
        ))?;
    }
    for at in [OUTSIDE, At::Fabric] {
        let mut client = world.peer(at)?;
        for case in cases() {
            let to = world.to(service, Way::LoadBalancer, case.family);
            let what = format!("{at:?}, {case}");
            let sock = case.connect(&mut client, to).with_context(|| what.clone())?;
            let reply = client.ask(&sock, "hello").with_context(|| what.clone())?;
            ensure!(reply.server == "here", "{what}: {reply:?}");
            ensure!(reply.client == sock.local, "{what}: {reply:?}");
        }
    }
    Ok(())
}

/// Rules N-2 to N-4, V-11 and production case 42, as decided: by default the node's primary addresses
/// answer on `NodePort`s; a secondary one answers where the list covers it, as soon as it is there and
/// as long; a load balancer's address never does.
#[test]
fn case_42_n_2_n_4_v_11_which_addresses_answer_on_node_ports() -> Result<()> {
    if !require::root_or_skip("case_42_n_2_n_4_v_11_which_addresses_answer_on_node_ports") {
        return Ok(());
    }
    for all in [false, true] {
        let mut world = NorthSouth::new(Spec::default())?;
        let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
        let flags: &[&str] = if all { &["--node-port-addresses", "all"] } else { &[] };
        world.start(flags)?;
        let secondary: [IpAddr; 2] = ["172.18.0.110".parse()?, "fd00:172:18::110".parse()?];
        let mut client = world.peer(OUTSIDE)?;
        let change = |cluster: &Cluster, what: &str| {
            cluster.nodes()[0].netns.ip(&format!(
                "addr {what} {}/24 dev eth0\naddr {what} {}/64 dev eth0{}",
                secondary[0],
                secondary[1],
                if what == "add" { " nodad" } else { "" }
            ))
        };
        change(&world.cluster, "add")?;
        for case in cases() {
            for service in services {
                let ip = secondary[usize::from(case.family == Family::V6)];
                let to = SocketAddr::new(ip, service.node_port());
                let what = format!("{case}, {to}, all: {all}");
                if all {
                    wait::until(&format!("{what} to answer"), IN_FORCE_WITHIN, || {
                        answers(&mut client, case, to)
                    })?;
                } else {
                    // Nobody listens: the node's kernel says so.
                    wait::until(&format!("{what} to be refused"), IN_FORCE_WITHIN, || {
                        let errno = told(&mut client, case, to, AT_ONCE);
                        matches!(errno, Ok(Some(libc::ECONNREFUSED)))
                    })?;
                }
                let to = SocketAddr::new(service.load_balancer(case.family), service.node_port());
                let before = world.counter(0, Counter::DropUndefinedPort)?;
                let errno = told(&mut client, case, to, AT_ONCE)?;
                ensure!(errno == Some(libc::ECONNREFUSED), "{case}, {to}: {errno:?}");
                ensure!(world.counter(0, Counter::DropUndefinedPort)? > before, "{case}, {to}");
            }
        }
        change(&world.cluster, "del")?;
        let to = SocketAddr::new(secondary[0], services[0].node_port());
        wait::until("the address to be gone", IN_FORCE_WITHIN, || {
            client.tcp_connect_from(None, to, SILENCE).is_err()
        })?;
        for case in cases() {
            for service in services {
                let to = world.to(service, Way::NodePort, case.family);
                case.once(&mut client, to).with_context(|| format!("{case}, {to} afterwards"))?;
            }
        }
    }
    Ok(())
}

fn answers(client: &mut Peer, case: lb_testbed::matrix::Case, to: SocketAddr) -> bool {
    case.connect(client, to).and_then(|sock| client.ask_within(&sock, "hello", SILENCE)).is_ok()
}

/// Production case 40, rules V-9, V-10, C-4: every kind of client reaches the load balancer's address of a
/// Local Service whose endpoint is on the node it asks from, the host's own processes included.
#[test]
fn case_40_every_client_reaches_a_local_service_by_each_of_its_addresses() -> Result<()> {
    let test = "case_40_every_client_reaches_a_local_service_by_each_of_its_addresses";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [(HERE, "here"), (ENTRY, "host")];
    let services = services.map(|(at, name)| (name, world.expose(&Exposure::new(&[at]).local())));
    world.start_everywhere(&[])?;
    for at in [ENTRY, OTHER, At::Pod(0, 1), At::Pod(1, 1), OUTSIDE, At::Fabric] {
        let mut client = world.peer(at)?;
        for case in cases() {
            for (name, service) in services {
                for way in Way::ALL {
                    let to = world.to(service, way, case.family);
                    let what = format!("{at:?}, {case}, {way:?} {to}, {name}");
                    let reply = case.once(&mut client, to).with_context(|| what.clone())?;
                    ensure!(reply.server == name, "{what}: {reply:?}");
                }
                let to = SocketAddr::new(service.cluster_ip(case.family), PORT);
                if !matches!(at, At::Fabric) {
                    let reply = case.once(&mut client, to)?;
                    ensure!(reply.server == name, "{at:?}, {case}, {to}: {reply:?}");
                }
            }
        }
    }
    Ok(())
}
