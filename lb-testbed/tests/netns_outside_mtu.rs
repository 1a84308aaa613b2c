//! Packets that are too large, from outside: is their sender told, wherever that is found out, and do
//! fragments arrive?

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{Family, Spec, Topology, overlay::Overlay},
    matrix::Transport,
    north_south::{
        ENTRY, Exposed, Exposure, HERE, NorthSouth, OTHER, OUTSIDE, PORT, SOON, THERE, Way, cases,
    },
    packet::Packet,
    peer::STEP,
    require, wait,
    wire::Wire,
};

/// Rule C-7, production case 44: the way to the backend is narrower than the client believes. The entry
/// node tells the client, and it sends what fits.
fn connections_learn_what_fits(
    world: &NorthSouth,
    service: Exposed,
    overlay: Overlay,
) -> Result<()> {
    let mut client = world.peer(OUTSIDE)?;
    for case in cases().filter(|case| case.transport == Transport::Tcp) {
        for way in Way::ALL {
            let to = world.to(service, way, case.family);
            let what = format!("{overlay:?}, {case}, {to}");
            forget(world)?;
            let before = world.counter(0, Counter::PacketTooBig)?;
            let sock = client.tcp_connect(to).with_context(|| what.clone())?;
            client
                .bulk(sock.id, 2_000_000)
                .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            ensure!(
                world.counter(0, Counter::PacketTooBig)? > before,
                "{what}: nothing was too big: {:?}, {}",
                world.counters(0),
                route(world, to)?
            );
            let route = route(world, to)?;
            ensure!(route.contains(&format!("mtu {}", overlay.mtu())), "{what}: {route}");
        }
    }
    Ok(())
}

/// Rule C-7, production case 44: a link behind the entry node is narrower. What its router says of the
/// entry node's packet is told to the client as about its own.
#[test]
fn c_7_case_44_what_routers_beyond_the_entry_node_say_reaches_the_client() -> Result<()> {
    let test = "c_7_case_44_what_routers_beyond_the_entry_node_say_reaches_the_client";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let overlay = Overlay::Vxlan;
    let mut world = NorthSouth::new(Spec { overlay, ..Spec::default() })?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    for (number, node) in world.cluster.nodes().iter().enumerate() {
        node.netns.ip(&format!("link set {} mtu 1300", node.pods[0].host_interface))?;
        // The pod knows how large its own packets may be, and promises to take larger ones.
        node.pods[0].netns.ip(&format!(
            "link set eth0 mtu 1300\n\
                 route replace default via 10.244.{number}.1 advmss 1460\n\
                 route replace ::/0 via fd00:10:244:{number}::1 advmss 1440"
        ))?;
    }
    let mut client = world.peer(OUTSIDE)?;
    for case in cases().filter(|case| case.transport == Transport::Tcp) {
        for service in services {
            for way in Way::ALL {
                let to = world.to(service, way, case.family);
                let what = format!("{overlay:?}, {case}, {to}");
                let sock = client.tcp_connect(to).with_context(|| what.clone())?;
                client
                    .bulk(sock.id, 1_000_000)
                    .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
            }
        }
    }
    ensure!(world.counter(0, Counter::IcmpTranslated)? > 0, "{:?}", world.counters(0));
    Ok(())
}

/// Has both ends forget what they have heard of the ways to each other: a backend that knows of a narrow
/// one to the entry node asks for small packets from the first one on.
fn forget(world: &NorthSouth) -> Result<()> {
    for at in [OUTSIDE, HERE, THERE] {
        for family in ["-4", "-6"] {
            world.cluster.netns(at).ip_output(&[family, "route", "flush", "cache"])?;
        }
    }
    Ok(())
}

/// What the client's kernel knows of the way to a destination.
fn route(world: &NorthSouth, to: SocketAddr) -> Result<String> {
    world.cluster.netns(OUTSIDE).ip_output(&["route", "get", &to.ip().to_string()])
}

/// Rule C-7: datagrams larger than any link arrive whole, in both directions and at every backend.
#[test]
fn c_7_case_46_datagrams_in_pieces_arrive_on_every_path() -> Result<()> {
    if !require::root_or_skip("c_7_case_46_datagrams_in_pieces_arrive_on_every_path") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let places = [HERE, ENTRY, THERE, OTHER];
    let services = places.map(|at| (at, world.expose(&Exposure::new(&[at]))));
    world.start(&[])?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases().filter(|case| case.transport == Transport::Udp) {
        for (at, service) in services {
            for way in Way::ALL {
                let to = world.to(service, way, case.family);
                let sock = client.udp_connected(to)?;
                for size in [100, 1_400, 2_000, 3_000, 9_000] {
                    client.ask(&sock, &"x".repeat(size)).with_context(|| {
                        format!("{case}, {to}, {at:?}, {size} bytes: {:?}", world.counters(0))
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Rule C-7, production case 43: pieces that are too large for the overlay are cut smaller by the client,
/// once it has been told, so that a large datagram arrives soon.
fn datagrams_learn_what_fits(world: &NorthSouth, service: Exposed, overlay: Overlay) -> Result<()> {
    let mut client = world.peer(OUTSIDE)?;
    for case in cases().filter(|case| case.transport == Transport::Udp) {
        for way in Way::ALL {
            let to = world.to(service, way, case.family);
            let sock = client.udp_connected(to)?;
            for size in [1_400, 1_472, 2_000, 4_000] {
                let mut last = None;
                wait::until("a large datagram to get through", STEP, || {
                    // A datagram that was too large is lost, and its error is told by a later call.
                    let asked = client.ask_within(&sock, &"x".repeat(size), SOON / 20);
                    last = asked.err();
                    last.is_none()
                })
                .with_context(|| {
                    format!(
                        "{overlay:?}, {case}, {to}, {size} bytes: {last:?}, {:?}",
                        world.counters(0)
                    )
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn c_7_case_43_case_44_the_entry_node_tells_clients_what_fits_a_vxlan() -> Result<()> {
    if !require::root_or_skip("c_7_case_43_case_44_the_entry_node_tells_clients_what_fits_a_vxlan")
    {
        return Ok(());
    }
    what_fits(Topology::Bridge, Overlay::Vxlan)
}

#[test]
fn c_7_case_43_case_44_the_entry_node_tells_clients_what_fits_a_tunnel() -> Result<()> {
    if !require::root_or_skip("c_7_case_43_case_44_the_entry_node_tells_clients_what_fits_a_tunnel")
    {
        return Ok(());
    }
    what_fits(Topology::Routed, Overlay::Tunnel)
}

fn what_fits(topology: Topology, overlay: Overlay) -> Result<()> {
    let mut world = NorthSouth::new(Spec { topology, overlay, ..Spec::default() })?;
    let service = world.expose(&Exposure::new(&[THERE]));
    world.start(&[])?;
    datagrams_learn_what_fits(&world, service, overlay)?;
    connections_learn_what_fits(&world, service, overlay)
}

/// Departure (e): in order fragments go where their first one went; one that comes before it is dropped
/// with a reason.
#[test]
fn departure_e_fragments_follow_their_first_one() -> Result<()> {
    if !require::root_or_skip("departure_e_fragments_follow_their_first_one") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    let router = world.cluster.fabric().mac(world.cluster.client_side())?;
    let (mut id, mut port) = (1, 50_000);
    for family in Family::ALL {
        for service in services {
            let from = world.cluster.address(OUTSIDE, family);
            let mut send = |order: &[usize]| -> Result<(u16, Wire)> {
                (id, port) = (id + 1, port + 1);
                let mut packet = Packet::new(from, service.load_balancer(family))
                    .udp(port, PORT)
                    .payload(&[b'y'; 2_000]);
                packet.id = id;
                let mut wire = Wire::open(world.cluster.netns(OUTSIDE), "eth0", router)?;
                wire.send_fragments(&packet, 800, order)?;
                Ok((port, wire))
            };
            let (port, mut answers) = send(&[0, 1, 2])?;
            answers
                .wait("the answer to a datagram in three pieces", SOON, |frame| {
                    (frame.parsed.ports == Some([PORT, port])).then_some(())
                })
                .with_context(|| format!("{family}: {:?}", world.counters(0)))?;
            let before = world.counter(0, Counter::DropFragment)?;
            let (_, mut answers) = send(&[1, 0, 2])?;
            world.wait_counted(0, Counter::DropFragment, before, 1)?;
            let whole = answers.seen()?.into_iter().any(|frame| {
                frame.parsed.src == service.load_balancer(family)
                    && frame.parsed.protocol == lb_testbed::packet::protocol::UDP
            });
            ensure!(!whole, "{family}: answered, although a piece was dropped");
        }
    }
    Ok(())
}

/// Rule C-7: an answer of a backend elsewhere that is too large for a link to the client is cut to size
/// as well.
#[test]
fn c_7_a_narrow_link_to_the_client_is_told_to_the_backend() -> Result<()> {
    if !require::root_or_skip("c_7_a_narrow_link_to_the_client_is_told_to_the_backend") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let services = [HERE, ENTRY, THERE].map(|at| world.expose(&Exposure::new(&[at])));
    world.start(&[])?;
    // Its router knows that what is sent to it must be small; the client itself does not.
    world.cluster.fabric().ip(&format!(
        "route add {}/32 dev brc mtu lock 1300\nroute add {}/128 dev brc mtu lock 1300",
        world.cluster.address(OUTSIDE, Family::V4),
        world.cluster.address(OUTSIDE, Family::V6)
    ))?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        for service in services {
            let to = world.to(service, Way::LoadBalancer, case.family);
            let what = format!("{case}, {to}");
            match case.transport {
                Transport::Tcp => {
                    let sock = client.tcp_connect(to)?;
                    client
                        .bulk(sock.id, 1_000_000)
                        .with_context(|| format!("{what}: {:?}", world.counters(0)))?;
                }
                Transport::Udp => {
                    let sock = client.udp_connected(to)?;
                    wait::until(&format!("{what}: a large answer"), STEP, || {
                        client.ask_within(&sock, &"x".repeat(1_200), SOON / 20).is_ok()
                    })?;
                }
            }
        }
    }
    Ok(())
}
