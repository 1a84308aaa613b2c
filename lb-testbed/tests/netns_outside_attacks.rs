//! What happens to established flows and to memory while somebody outside misbehaves?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    cluster::{At, Family, Spec, Topology},
    north_south::{
        AT_ONCE, Exposed, Exposure, HERE, NorthSouth, OUTSIDE, PORT, SECOND, SOON, THERE, Way,
        cases,
    },
    packet::{Packet, TcpFlags, Upper},
    peer::{LoadId, LoadKind, Peer, Sock},
    require,
    wire::Wire,
};
use serde_json::Value;

/// Packets of an attack, in each family.
const PACKETS: u32 = 20_000;

/// Flows of well-behaved clients, which an attack must not harm.
struct Victims {
    client: Peer,
    loads: Vec<LoadId>,
    socks: Vec<Sock>,
}

/// What an attacker has.
struct Attack {
    world: NorthSouth,
    services: [Exposed; 2],
    wire: Wire,
}

impl Attack {
    /// Services with a backend here and one elsewhere, and somebody on the network of the nodes, where
    /// no router asks whose address a packet claims.
    fn prepare() -> Result<Self> {
        let spec = Spec { topology: Topology::Routed, ..Spec::default() };
        let mut world = NorthSouth::new(spec)?;
        let services = [HERE, THERE].map(|at| world.expose(&Exposure::new(&[at])));
        world.start(&[])?;
        // Who is claimed to have sent something does not exist.
        world
            .cluster
            .fabric()
            .ip("route add blackhole 100.64.0.0/10\nroute add blackhole 2001:db8:64::/48")?;
        let node = world.cluster.nodes()[0].netns.mac("eth0")?;
        let wire = Wire::open(world.cluster.fabric(), "br0", node)?;
        Ok(Self { world, services, wire })
    }

    /// Established connections and associations to both backends, half of them with traffic.
    fn victims(&self) -> Result<Victims> {
        let mut client = self.world.peer(OUTSIDE)?;
        let (mut loads, mut socks) = (Vec::new(), Vec::new());
        for service in self.services {
            for case in cases() {
                let to = self.world.to(service, Way::LoadBalancer, case.family);
                let sock = case.connect(&mut client, to)?;
                client.ask(&sock, "before").with_context(|| case.to_string())?;
                socks.push(sock);
            }
            for family in Family::ALL {
                let to = self.world.to(service, Way::LoadBalancer, family);
                for kind in [LoadKind::TcpEstablished, LoadKind::UdpConnected] {
                    loads.push(client.load(to, kind, SOON)?);
                }
            }
        }
        for load in &loads {
            client.load_goes_on(*load, 10, SOON)?;
        }
        Ok(Victims { client, loads, socks })
    }

    /// Sends an attack's packets, one of each family in turn.
    fn storm(&mut self, mut packet: impl FnMut(u32, Family) -> Packet) -> Result<()> {
        for number in 0..PACKETS {
            for family in Family::ALL {
                self.wire.send(&packet(number, family))?;
            }
        }
        self.wire.clear()
    }

    /// That nothing was lost meanwhile, new connections still come, and no map holds more than it may.
    fn survived(&self, mut victims: Victims, what: &str) -> Result<()> {
        let counters = || format!("{what}: {:?}", self.world.counters(0));
        for sock in &victims.socks {
            victims.client.ask_within(sock, "afterwards", AT_ONCE).with_context(counters)?;
        }
        for load in victims.loads {
            victims.client.load_goes_on(load, 10, SOON).with_context(counters)?;
            let stats = victims.client.load_stop(load)?;
            ensure!(stats.failed == 0, "{}: {stats:?}", counters());
        }
        for case in cases() {
            for service in self.services {
                let to = self.world.to(service, Way::LoadBalancer, case.family);
                case.once(&mut victims.client, to).with_context(counters)?;
            }
        }
        let status = self.world.status(0)?;
        let maps = status["maps"].as_array().context("maps in the status")?;
        ensure!(!maps.is_empty());
        for map in maps {
            let of = |field: &str| map[field].as_u64().with_context(|| format!("{field} in {map}"));
            ensure!(of("used")? <= of("max")?, "{what}: {map}");
        }
        ensure!(status["agent"]["running"] == Value::Bool(true), "{what}: {status}");
        Ok(())
    }
}

/// An address that nobody has.
fn nobody(number: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(0x6440_0000 + number).into(),
        Family::V6 => {
            let low = u128::from(number);
            Ipv6Addr::from(0x2001_0db8_0064_0000_0000_0000_0000_0000 + low).into()
        }
    }
}

fn port(number: u32) -> u16 {
    1024 + u16::try_from(number % 60_000).unwrap_or(0)
}

#[test]
fn established_flows_lose_nothing_in_a_syn_flood() -> Result<()> {
    if !require::root_or_skip("established_flows_lose_nothing_in_a_syn_flood") {
        return Ok(());
    }
    let mut attack = Attack::prepare()?;
    let victims = attack.victims()?;
    let services = attack.services;
    // Twice as many as half-open flows fit, and more than flows fit.
    attack.storm(|number, family| {
        let service = services[usize::from(number % 2 == 1)];
        let vip = service.load_balancer(family);
        Packet::new(nobody(number, family), vip).tcp(port(number), PORT, TcpFlags::SYN)
    })?;
    let created = attack.world.counter(0, Counter::FlowCreated)?
        + attack.world.counter(0, Counter::FlowForwarded)?;
    ensure!(created > u64::from(PACKETS), "{:?}", attack.world.counters(0));
    attack.survived(victims, "SYN flood")
}

#[test]
fn established_flows_go_on_during_a_port_scan_over_a_vip() -> Result<()> {
    if !require::root_or_skip("established_flows_go_on_during_a_port_scan_over_a_vip") {
        return Ok(());
    }
    let mut attack = Attack::prepare()?;
    let victims = attack.victims()?;
    let before = attack.world.counter(0, Counter::DropUndefinedPort)?;
    let vip = attack.services[0];
    let scanner = |family| attack_address(family);
    let in_before = attack.world.cluster.nodes()[0].netns.received("eth0")?;
    attack.storm(|number, family| {
        let packet = Packet::new(scanner(family), vip.load_balancer(family));
        let dport = 1_000 + u16::try_from(number).unwrap_or(0);
        if number % 2 == 0 {
            packet.tcp(40_000, dport, TcpFlags::SYN)
        } else {
            packet.udp(40_000, dport).payload(b"?")
        }
    })?;
    // Each of them is refused and counted; none is recorded, none goes on to a router.
    attack.world.wait_counted(0, Counter::DropUndefinedPort, before, 2 * u64::from(PACKETS))?;
    let taken = attack.world.cluster.nodes()[0].netns.received("eth0")? - in_before;
    ensure!(taken < 5 * u64::from(PACKETS), "{taken} packets for {PACKETS} in two families");
    let told = attack.world.counter(0, Counter::RefusalSuppressed)?;
    ensure!(told > 0, "each was answered: {:?}", attack.world.counters(0));
    attack.survived(victims, "port scan")
}

fn attack_address(family: Family) -> IpAddr {
    nobody(1, family)
}

/// Production case 65: resets that no end has sent, for every flow there is and for many that are not.
#[test]
fn case_65_established_flows_go_on_in_a_storm_of_resets() -> Result<()> {
    if !require::root_or_skip("case_65_established_flows_go_on_in_a_storm_of_resets") {
        return Ok(());
    }
    let mut attack = Attack::prepare()?;
    let mut victims = attack.victims()?;
    let mut targets = Vec::new();
    for sock in victims.socks.clone().iter().filter(|sock| sock.is_tcp) {
        targets.push((victims.client.names(sock.id)?.local, sock.remote.context("a VIP")?));
    }
    let services = attack.services;
    attack.storm(|number, family| {
        let is_v4 = family == Family::V4;
        let of_family: Vec<_> =
            targets.iter().filter(|(from, _)| from.is_ipv4() == is_v4).collect();
        let mut packet = if number % 4 == 0 {
            let at = usize::try_from(number).unwrap_or(0) / 4 % of_family.len();
            let (from, to) = of_family[at];
            Packet::new(from.ip(), to.ip()).tcp(from.port(), to.port(), TcpFlags::RST)
        } else {
            let vip = services[usize::from(number % 2 == 1)].load_balancer(family);
            Packet::new(nobody(number, family), vip).tcp(port(number), PORT, TcpFlags::RST)
        };
        if let Upper::Tcp { seq, .. } = &mut packet.upper {
            // Anywhere but in the window, which is some tens of KiB wide at a random place.
            *seq = number.wrapping_mul(0x9e37_79b9);
        }
        packet
    })?;
    ensure!(attack.world.counter(0, Counter::DropNoFlow)? > 0, "{:?}", attack.world.counters(0));
    // A reset is never answered, or two of them would never end.
    attack.survived(victims, "storm of resets")
}

#[test]
fn established_flows_go_on_while_fragments_without_a_first_one_come() -> Result<()> {
    if !require::root_or_skip("established_flows_go_on_while_fragments_without_a_first_one_come") {
        return Ok(());
    }
    let mut attack = Attack::prepare()?;
    let victims = attack.victims()?;
    let before = attack.world.counter(0, Counter::DropFragment)?;
    let vip = attack.services[1];
    let mut sent = 0;
    for number in 0..PACKETS {
        for family in Family::ALL {
            let mut packet = Packet::new(nobody(number, family), vip.load_balancer(family))
                .udp(40_000, PORT)
                .payload(&[0; 100]);
            packet.id = u16::try_from(number % 65_536).unwrap_or(0);
            attack.wire.send_fragments(&packet, 64, &[1])?;
            sent += 1;
        }
    }
    attack.wire.clear()?;
    attack.world.wait_counted(0, Counter::DropFragment, before, sent)?;
    attack.survived(victims, "fragments without a first one")
}

/// Production case 71: with full tables of flows, what is not for a Service goes on: to the node itself,
/// and from it.
#[test]
fn case_71_full_tables_leave_all_other_traffic_alone() -> Result<()> {
    if !require::root_or_skip("case_71_full_tables_leave_all_other_traffic_alone") {
        return Ok(());
    }
    let mut attack = Attack::prepare()?;
    let _server = attack.world.cluster.serve(SECOND, "outside", 9_000)?;
    let services = attack.services;
    attack.storm(|number, family| {
        let vip = services[usize::from(number % 2 == 1)].load_balancer(family);
        Packet::new(nobody(number, family), vip).udp(port(number), PORT).payload(b"x")
    })?;
    let mut client = attack.world.peer(OUTSIDE)?;
    let mut host = attack.world.peer(At::Node(0))?;
    for case in cases() {
        let node = attack.world.cluster.address(At::Node(0), case.family);
        let reply =
            case.once(&mut client, (node, 8080).into()).with_context(|| case.to_string())?;
        ensure!(reply.server == "host", "{case}: {reply:?}");
        let outside = attack.world.cluster.address(SECOND, case.family);
        let reply =
            case.once(&mut host, (outside, 9_000).into()).with_context(|| case.to_string())?;
        ensure!(reply.server == "outside", "{case}: {reply:?}");
    }
    Ok(())
}
