//! What does the XDP program cost for a packet that it sends on, for the first one of a flow, and for
//! one of no Service? And where every packet is of another flow than the one before?
//!
//! Test runs in a network namespace with one link, whose other end is router, client and backends:
//! what is sent on goes back out of it (`XDP_TX`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_common::abi::{Counter, InterfaceFlags};

use super::{
    Figure, Plan, Reach,
    object::{self, Object, PORT, TARGET},
    samples::{Progress, largest},
    sys,
};
use crate::{
    netns::Netns,
    packet::{self, Link, Packet, Parsed, TcpFlags},
    testrun::{
        self, Input, Kind, Output,
        spread::{Order, Spread},
    },
};

pub(super) const IDS: [&str; 5] =
    ["xdp_established_ns", "xdp_foreign_ns", "xdp_new_flow_ns", "xdp_64k_ns", "xdp_1m_ns"];

const PROGRAM: &str = "xdp_ingress";
/// Sees what the one above leaves, and has the kernel look after neighbours.
const BEHIND: &str = "tc_ingress";
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const TC_REDIRECT: u32 = 7;
const CLIENT_PORT: u16 = 40_000;
/// Backends of each family: enough source ports for a million flows under one address.
const BACKENDS: u8 = 200;
/// Flows that tables of the agent's default size hold with ease: each has two records.
const MANY: u32 = 64_000;
const MOST: u32 = 1_000_000;
/// Records of the flow tables for the latter: two for each, and room, as buckets are to be short.
const ROOM: u32 = 1 << 22;

/// Who talks to whom, in one family.
struct Ends {
    family: &'static str,
    node: IpAddr,
    client: IpAddr,
    vip: IpAddr,
    stranger: IpAddr,
}

/// What is measured with.
struct Bench {
    object: Object,
    empty: OwnedFd,
    /// The link.
    index: u32,
    runs: u32,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let netns = Netns::new()?;
    netns.ip(
        "link add u0 address 02:00:00:00:00:0a type veth peer name u1 address 02:00:00:00:00:01\n\
         addr add 172.18.0.10/24 dev u0\n\
         addr add fd00:172:18::10/64 dev u0 nodad\n\
         link set u0 up\n\
         link set u1 up\n\
         neigh add 172.18.0.1 lladdr 02:00:00:00:00:01 dev u0 nud permanent\n\
         neigh add fd00:172:18::1 lladdr 02:00:00:00:00:01 dev u0 nud permanent\n\
         route add default via 172.18.0.1\n\
         route add ::/0 via fd00:172:18::1",
    )?;
    netns.sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    let index = netns.ifindex("u0")?;
    netns.run(|| {
        sys::take_cpu(plan.cpu)?;
        measure_here(plan, index)
    })?
}

fn measure_here(plan: &Plan, index: u32) -> Result<Vec<Figure>> {
    let ends = [ends4(), ends6()];
    for end in &ends {
        ensure!(object::is_alone(end.stranger), "{} has the bit of a VIP", end.stranger);
    }
    // The queues of a veth are only there while a program is attached.
    let empty = testrun::load_empty(Kind::Xdp, XDP_TX.cast_signed(), testrun::ATTACH_XDP)?;
    let _attached = testrun::attach_xdp(empty.as_fd(), index)?;
    let runs = plan.pick(20_000, 200);
    let rounds = plan.pick(15, 3);
    let mut bench = Bench { object: filled(&ends, index, None)?, empty, index, runs };
    let mut figures = bench.single(&ends)?;
    figures.push(bench.spread(IDS[3], MANY, 160.0, rounds)?);
    if plan.quick {
        figures.push(Figure::missing(IDS[4], "ns", "left out of a quick run".to_owned()));
        return Ok(figures);
    }
    bench.object = filled(&ends, index, Some(ROOM))?;
    figures.push(bench.spread(IDS[4], MOST, 550.0, rounds)?);
    Ok(figures)
}

/// The programs with Services, backends and the link in their tables; the flow tables have so many
/// records, if not as many as by default.
fn filled(ends: &[Ends; 2], index: u32, records: Option<u32>) -> Result<Object> {
    let mut object = Object::load_with(&[PROGRAM, BEHIND], records)?;
    let backends = (1..=BACKENDS).flat_map(|n| [backend4(n), backend6(n)]);
    object.fill_services(&backends.map(|ip| SocketAddr::new(ip, TARGET)).collect::<Vec<_>>())?;
    let flags = InterfaceFlags::OFF_NODE | InterfaceFlags::XDP;
    object.set_interface(index, flags, &ends.each_ref().map(|end| end.node))?;
    Ok(object)
}

impl Bench {
    /// Test runs of one packet each.
    fn single(&mut self, ends: &[Ends]) -> Result<Vec<Figure>> {
        let setup = format!(
            "BPF_PROG_TEST_RUN with repeat 1, {} times, each beside an empty program; difference of \
             the minima; {} Services of each family loaded; 64 bytes of payload; output bytes \
             verified first",
            self.runs,
            object::SERVICES,
        );
        let mut figures = Vec::new();
        let mut progress = Progress::new("XDP", 3_u64);
        progress.step(0);
        let mut cases = Vec::new();
        for end in ends {
            cases.extend(self.established(end)?);
        }
        let what = "the worst of TCP and UDP, IPv4 and IPv6, request and reply of a NodePort-like \
                    flow that is sent on: route, both addresses, both ports, hop count, checksums";
        figures.extend(self.figure(IDS[0], 80.0, &format!("{what}; {setup}"), &cases)?);
        progress.step(1);
        let foreign: Vec<Case> = ends.iter().flat_map(foreign).collect();
        let what = "the worst of TCP and UDP, IPv4 and IPv6 to an address of no Service";
        figures.extend(self.figure(IDS[1], 25.0, &format!("{what}; {setup}"), &foreign)?);
        progress.step(2);
        let what = "the worst of a SYN and a first datagram, IPv4 and IPv6: frontend, backend, \
                    route, a source port, two records; each run is another flow";
        let mut costs = Vec::new();
        for end in ends {
            for tcp in [true, false] {
                let name = format!("{}_{}", end.family, if tcp { "tcp" } else { "udp" });
                let cost = self.new_flow(end, tcp).with_context(|| name.clone())?;
                costs.push((name, cost));
            }
        }
        figures.extend(report(IDS[2], 500.0, &format!("{what}; {setup}"), &costs));
        Ok(figures)
    }

    fn figure(&self, id: &str, reach: f64, method: &str, cases: &[Case]) -> Result<Vec<Figure>> {
        let mut costs = Vec::new();
        for case in cases {
            let cost = self.cost(case).with_context(|| case.name.clone())?;
            costs.push((case.name.clone(), cost));
        }
        Ok(report(id, reach, method, &costs))
    }

    /// Requests and replies of flows that the program is made to begin.
    fn established(&self, end: &Ends) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for tcp in [true, false] {
            let name = if tcp { "tcp" } else { "udp" };
            let there = |flags| transport(end.client, end.vip, [CLIENT_PORT, PORT], tcp, flags);
            let opens = if tcp { TcpFlags::SYN } else { TcpFlags::ACK };
            let sent = self.forwarded(&there(opens))?;
            let [sport, _] = sent.ports.context("ports")?;
            let back = |flags| transport(sent.dst, end.node, [TARGET, sport], tcp, flags);
            // A connection is established when both sides have said so.
            self.forwarded(&back(opens | TcpFlags::ACK))?;
            let (request, reply) = (there(TcpFlags::ACK), back(TcpFlags::ACK));
            self.forwarded(&request)?;
            let came = self.forwarded(&reply)?;
            ensure!((came.src, came.dst) == (end.vip, end.client), "{came:?} came back");
            ensure!(came.ports == Some([PORT, CLIENT_PORT]), "{came:?} came back");
            for (way, packet) in [("request", request), ("reply", reply)] {
                let name = format!("{}_{name}_{way}", end.family);
                cases.push(Case { name, packet, verdict: XDP_TX });
            }
        }
        Ok(cases)
    }

    /// What the program makes of a packet that it has to send on.
    fn forwarded(&self, packet: &[u8]) -> Result<Parsed> {
        let output = self.early(packet)?;
        let came = || packet::describe(&output.data, Link::Ethernet);
        ensure!(output.verdict == XDP_TX, "the verdict is {}: {}", output.verdict, came());
        packet::checksums_ok(&output.data, Link::Ethernet)?;
        ensure!(output.data.starts_with(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 10]), "{}", came());
        packet::parse(&output.data, Link::Ethernet)
    }

    /// What the program makes of a packet, once more if it left it for the sake of the neighbour.
    fn early(&self, packet: &[u8]) -> Result<Output> {
        let left = self.object.counter(Counter::XdpLeft)?;
        let output = self.run(self.object.program(PROGRAM)?, packet)?;
        if self.object.counter(Counter::XdpLeft)? == left {
            return Ok(output);
        }
        self.look_after_neighbour()?;
        self.run(self.object.program(PROGRAM)?, packet)
    }

    /// Sends a packet by tc to the next hop of all, by the kernel's own hand every few seconds.
    fn look_after_neighbour(&self) -> Result<()> {
        let ends = ends4();
        let packet = transport(ends.client, ends.vip, [9, PORT], false, TcpFlags::ACK);
        let output = testrun::once_at(self.object.program(BEHIND)?, &packet, self.index)?;
        ensure!(output.verdict == TC_REDIRECT, "tc returned {}", output.verdict);
        Ok(())
    }

    fn run(&self, program: BorrowedFd<'_>, data: &[u8]) -> Result<Output> {
        testrun::once_early_at(program, data, self.index)
    }

    /// Least nanoseconds of the program and of an empty one.
    fn cost(&self, case: &Case) -> Result<[f64; 2]> {
        let output = self.early(&case.packet)?;
        ensure!(output.verdict == case.verdict, "the verdict is {}", output.verdict);
        ensure!((output.data == case.packet) == (case.verdict == XDP_PASS), "bytes changed or not");
        self.least(|_| case.packet.clone(), case.verdict)
    }

    fn new_flow(&self, end: &Ends, tcp: bool) -> Result<[f64; 2]> {
        let before = self.object.counter(Counter::FlowForwarded)?;
        let least = self.least(
            |run| {
                let port = u16::try_from(1024 + run % 60_000).unwrap_or(u16::MAX);
                transport(end.client, end.vip, [port, PORT], tcp, TcpFlags::SYN)
            },
            XDP_TX,
        )?;
        let begun = self.object.counter(Counter::FlowForwarded)? - before;
        ensure!(begun + 1 >= u64::from(self.runs), "{begun} flows of {} began", self.runs);
        Ok(least)
    }

    fn least(&self, packet: impl Fn(u32) -> Vec<u8>, verdict: u32) -> Result<[f64; 2]> {
        let mut least = [Duration::MAX; 2];
        for run in 0..self.runs {
            let packet = packet(run);
            let empty = self.run(self.empty.as_fd(), &packet)?;
            let ours = self.early(&packet)?;
            ensure!(ours.verdict == verdict, "run {run}: the verdict is {}", ours.verdict);
            least = [least[0].min(ours.duration), least[1].min(empty.duration)];
        }
        let nanos = |value: Duration| u32::try_from(value.as_nanos()).map(f64::from);
        Ok([nanos(least[0]).context("a duration")?, nanos(least[1]).context("a duration")?])
    }

    /// Packets of many flows, one after the other, each of another flow than the one before.
    fn spread(&self, id: &str, flows: u32, reach: f64, rounds: u32) -> Result<Figure> {
        let ends = ends4();
        let (IpAddr::V4(vip), program) = (ends.vip, self.object.program(PROGRAM)?) else {
            return Err(anyhow!("no address of IPv4"));
        };
        let packet = transport(ends.client, ends.vip, [CLIENT_PORT, PORT], false, TcpFlags::ACK);
        // Records lie in memory as they were made: in another order than they are met.
        let begin = Spread::new(program, vip, flows, Order::Numbered)?;
        let ours = Spread::new(program, vip, flows, Order::Scrambled)?;
        let empty = Spread::new(self.empty.as_fd(), vip, flows, Order::Scrambled)?;
        self.look_after_neighbour()?;
        let before = self.object.counter(Counter::FlowForwarded)?;
        self.round(&begin, &packet, flows)?;
        let begun = self.object.counter(Counter::FlowForwarded)? - before;
        ensure!(begun == u64::from(flows), "{begun} flows of {flows} began");
        let mut costs = Vec::new();
        for _ in 0..rounds {
            let with = self.round(&ours, &packet, flows)?;
            let without = self.round(&empty, &packet, flows)?;
            costs.push(with - without);
        }
        let again = self.object.counter(Counter::FlowForwarded)? - before;
        ensure!(again == begun, "{} flows began again", again - begun);
        costs.sort_by(f64::total_cmp);
        let at = |part: usize| costs.get(costs.len() * part / 4).copied().unwrap_or(f64::NAN);
        Ok(Figure::new(id, at(2), "ns")
            .reach(Reach::AtMost(reach))
            .method(format!(
                "established UDP flows over IPv4 that are sent on, {flows} of them in flow tables {} \
                 records; met in a scrambled order, which is not that in which they began, no two \
                 packets of one flow in a row; each of {rounds} rounds is one \
                 BPF_PROG_TEST_RUN with repeat {flows}, timed by the kernel, of a program that writes \
                 the next header and goes on with ours by a tail call, less the same that goes on \
                 with an empty one; median of the differences; verdict and counters verified",
                if flows == MANY { "with the default number of".to_owned() } else { format!("of {ROOM}") },
            ))
            .note(format!("quartiles {:.0} and {:.0} ns", at(1), at(3))))
    }

    /// Mean nanoseconds of a packet, over one of each flow.
    fn round(&self, spread: &Spread, packet: &[u8], flows: u32) -> Result<f64> {
        let context = testrun::xdp_context(packet, self.index)?;
        let input = Input { data: packet, context: &context, repeat: flows };
        let left = self.object.counter(Counter::XdpLeft)?;
        let mut output = testrun::run(spread.program(), &input)?;
        // Every few seconds a packet is left for the sake of the neighbour, and here all that follow.
        if self.object.counter(Counter::XdpLeft)? != left {
            self.look_after_neighbour()?;
            output = testrun::run(spread.program(), &input)?;
        }
        ensure!(output.verdict == XDP_TX, "the verdict is {}", output.verdict);
        Ok(f64::from(u32::try_from(output.duration.as_nanos()).context("a duration")?))
    }
}

/// One packet and what becomes of it.
struct Case {
    name: String,
    packet: Vec<u8>,
    verdict: u32,
}

fn foreign(end: &Ends) -> Vec<Case> {
    let each = [true, false].map(|tcp| Case {
        name: format!("{}_{}", end.family, if tcp { "tcp" } else { "udp" }),
        packet: transport(end.client, end.stranger, [CLIENT_PORT, PORT], tcp, TcpFlags::ACK),
        verdict: XDP_PASS,
    });
    each.into()
}

fn report(id: &str, reach: f64, method: &str, costs: &[(String, [f64; 2])]) -> Vec<Figure> {
    let over = |[least, empty]: &[f64; 2]| least - empty;
    let worst = largest(&costs.iter().map(|(_, cost)| over(cost)).collect::<Vec<_>>());
    let head = Figure::new(id, worst, "ns").reach(Reach::AtMost(reach)).method(method.to_owned());
    let each = costs.iter().map(|(name, cost)| {
        Figure::new(format!("{id}.{name}"), over(cost), "ns")
            .method(method.to_owned())
            .note(format!("least {:.0} ns, of an empty program {:.0} ns", cost[0], cost[1]))
    });
    std::iter::once(head).chain(each).collect()
}

fn transport(src: IpAddr, dst: IpAddr, ports: [u16; 2], tcp: bool, flags: TcpFlags) -> Vec<u8> {
    let packet = Packet::new(src, dst);
    let packet =
        if tcp { packet.tcp(ports[0], ports[1], flags) } else { packet.udp(ports[0], ports[1]) };
    let packet = Packet { macs: [[2, 0, 0, 0, 0, 10], [2, 0, 0, 0, 0, 1]], ..packet };
    packet.payload(&[1; 64]).build()
}

fn backend4(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 1, n).into()
}

fn backend6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, n.into()).into()
}

fn ends4() -> Ends {
    Ends {
        family: "ipv4",
        node: Ipv4Addr::new(172, 18, 0, 10).into(),
        client: Ipv4Addr::new(192, 0, 2, 10).into(),
        vip: object::vip4_address(10).into(),
        stranger: Ipv4Addr::new(10, 244, 3, 10).into(),
    }
}

fn ends6() -> Ends {
    Ends {
        family: "ipv6",
        node: Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10).into(),
        client: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10).into(),
        vip: object::vip6_address(10).into(),
        stranger: Ipv6Addr::new(0xfd00, 0x10, 0x244, 3, 0, 0, 0, 0x10).into(),
    }
}
