//! What do the programs of the packet engine cost for a packet of a known flow, and for one of no
//! Service?

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    Figure, Plan, Reach,
    object::{self, Object, PORT, TARGET},
    samples::{Progress, largest},
    sys,
};
use crate::{
    packet::{self, Link, Packet, TcpFlags},
    testrun::{self, Kind},
};

pub(super) const IDS: [&str; 2] = ["tc_established_ns", "tc_foreign_ns"];

/// `TCX_NEXT`: whether translated or not, other programs see the packet.
const NEXT: u32 = u32::MAX;
/// The interface of a test run: loopback.
const INTERFACE: u32 = 1;
const CLIENT_PORT: u16 = 40_000;

/// One packet through one program.
struct Case {
    name: String,
    program: &'static str,
    has_flows: bool,
    packet: Vec<u8>,
    /// Source, destination and their ports afterwards; none for a packet that stays as it is.
    becomes: Option<(IpAddr, IpAddr, [u16; 2])>,
}

/// Who talks to whom, in one family.
struct Ends {
    family: &'static str,
    client: IpAddr,
    vip: IpAddr,
    backend: IpAddr,
    stranger: IpAddr,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    // A thread of its own is bound to the CPU: what other groups start later must not inherit it.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::take_cpu(plan.cpu)?;
            measure_here(plan)
        });
        thread.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

fn measure_here(plan: &Plan) -> Result<Vec<Figure>> {
    let mut object = Object::load(&["tc_ingress", "tc_egress"])?;
    let ends = [ends4(), ends6()];
    for end in &ends {
        ensure!(object::is_alone(end.stranger), "{} has the bit of a VIP", end.stranger);
        ensure!(object::is_alone(end.client), "{} has the bit of a VIP", end.client);
    }
    object.fill_services(&ends.each_ref().map(|end| (end.backend, TARGET).into()))?;
    object.fill_flows()?;
    begin_flows(&object, &ends)?;

    let empty = testrun::load_empty(Kind::SchedCls, NEXT.cast_signed(), 0)?;
    let runs = plan.pick(20_000, 200);
    let setup = format!(
        "BPF_PROG_TEST_RUN with repeat 1, {runs} times, each beside an empty program; difference \
         of the minima; {} Services and {} flows of each family loaded; 64 bytes of payload; output \
         bytes verified first",
        object::SERVICES,
        object::FLOWS
    );
    let mut figures = Vec::new();
    let established = established(&ends);
    let foreign = foreign(&ends)?;
    let mut progress = Progress::new("packets", (established.len() + foreign.len()) as u64);
    let mut measured = Vec::new();
    for (case, done) in established.iter().chain(&foreign).zip(0_u64..) {
        progress.step(done);
        object.set_has_flows(INTERFACE, case.has_flows)?;
        measured.push(cost(object.program(case.program)?, empty.as_fd(), case, runs)?);
    }
    let (of_established, of_foreign) = measured.split_at(established.len());
    let over = |[least, empty]: &[f64; 2]| least - empty;
    let single = |id: &str, case: &Case, cost: &[f64; 2]| {
        Figure::new(format!("{id}.{}", case.name), over(cost), "ns")
            .method(setup.clone())
            .note(format!("least {:.0} ns, of an empty program {:.0} ns", cost[0], cost[1]))
    };
    let worst = |costs: &[[f64; 2]]| largest(&costs.iter().map(over).collect::<Vec<_>>());

    figures.push(
        Figure::new(IDS[0], worst(of_established), "ns").reach(Reach::AtMost(120.0)).method(
            format!("the worst of TCP and UDP, IPv4 and IPv6, ingress and egress; {setup}"),
        ),
    );
    figures.extend(established.iter().zip(of_established).map(|(c, cost)| single(IDS[0], c, cost)));

    let foreign = foreign.iter().zip(of_foreign);
    let of = |which: fn(&Case) -> bool| -> Vec<[f64; 2]> {
        foreign.clone().filter(|(case, _)| which(case)).map(|(_, cost)| *cost).collect()
    };
    let by_filter = of(|case| !case.name.ends_with(COLLISION));
    figures.push(Figure::new(IDS[1], worst(&by_filter), "ns").reach(Reach::AtMost(40.0)).method(
        format!(
            "the worst of TCP and UDP, IPv4 and IPv6, ingress, egress of an interface without \
             flows and egress of one with; at ingress the destination's bit of the filter is not \
             set, as for 98 of 100 addresses at this size; {setup}"
        ),
    ));
    let usual = of(|case| !case.name.ends_with(COLLISION) && !case.name.ends_with(WITH_FLOWS));
    figures.push(
        Figure::new(format!("{}.usual", IDS[1]), worst(&usual), "ns")
            .reach(Reach::AtMost(40.0))
            .method(format!("the worst where the interface has no flows; {setup}")),
    );
    figures.extend(foreign.map(|(case, cost)| single(IDS[1], case, cost)));
    Ok(figures)
}

const WITH_FLOWS: &str = "egress_with_flows";
const COLLISION: &str = "ingress_vip_bit_set";

fn ends4() -> Ends {
    Ends {
        family: "ipv4",
        client: Ipv4Addr::new(10, 244, 0, 5).into(),
        vip: object::vip4_address(10).into(),
        backend: Ipv4Addr::new(10, 244, 1, 7).into(),
        stranger: Ipv4Addr::new(10, 244, 3, 10).into(),
    }
}

fn ends6() -> Ends {
    let pod = |net, host| Ipv6Addr::new(0xfd00, 0x10, 0x244, net, 0, 0, 0, host).into();
    Ends {
        family: "ipv6",
        client: pod(0, 5),
        vip: object::vip6_address(10).into(),
        backend: pod(1, 7),
        stranger: pod(3, 0x10),
    }
}

/// Lets the programs make the flows: a handshake, a datagram.
fn begin_flows(object: &Object, ends: &[Ends]) -> Result<()> {
    let (there, back) = ([CLIENT_PORT, PORT], [TARGET, CLIENT_PORT]);
    for &Ends { client, vip, backend, .. } in ends {
        let tcp = |src, dst, [sport, dport]: [u16; 2], flags| {
            Packet::new(src, dst).tcp(sport, dport, flags).build()
        };
        let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
        for (program, packet) in [
            ("tc_ingress", tcp(client, vip, there, syn)),
            ("tc_egress", tcp(backend, client, back, syn | ack)),
            ("tc_ingress", tcp(client, vip, there, ack)),
            ("tc_ingress", Packet::new(client, vip).udp(CLIENT_PORT, PORT).build()),
        ] {
            let output = testrun::once(object.program(program)?, &packet)?;
            ensure!(output.verdict == NEXT && output.data != packet, "no flow to {vip} came about");
        }
    }
    Ok(())
}

fn established(ends: &[Ends]) -> Vec<Case> {
    let of_end = |end: &Ends| {
        let &Ends { client, vip, backend, .. } = end;
        let to_vip = [CLIENT_PORT, PORT];
        let reply = [TARGET, CLIENT_PORT];
        both(client, vip, to_vip)
            .into_iter()
            .map(|(transport, packet)| Case {
                name: format!("{}_{transport}_ingress", end.family),
                program: "tc_ingress",
                has_flows: true,
                packet,
                becomes: Some((client, backend, [CLIENT_PORT, TARGET])),
            })
            .chain(both(backend, client, reply).into_iter().map(|(transport, packet)| Case {
                name: format!("{}_{transport}_egress", end.family),
                program: "tc_egress",
                has_flows: true,
                packet,
                becomes: Some((vip, client, [PORT, CLIENT_PORT])),
            }))
            .collect::<Vec<_>>()
    };
    ends.iter().flat_map(of_end).collect()
}

fn foreign(ends: &[Ends]) -> Result<Vec<Case>> {
    let case = |name: String, program, has_flows, packet| Case {
        name,
        program,
        has_flows,
        packet,
        becomes: None,
    };
    let mut cases = Vec::new();
    for Ends { family, client, stranger, .. } in ends {
        for (transport, packet) in both(*client, *stranger, [CLIENT_PORT, PORT]) {
            let name = format!("{family}_{transport}_ingress");
            cases.push(case(name, "tc_ingress", false, packet));
        }
        for (transport, packet) in both(*stranger, *client, [TARGET, CLIENT_PORT]) {
            let name = format!("{family}_{transport}_egress");
            cases.push(case(name, "tc_egress", false, packet.clone()));
            let name = format!("{family}_{transport}_{WITH_FLOWS}");
            cases.push(case(name, "tc_egress", true, packet));
        }
    }
    let client = Ipv4Addr::new(10, 244, 0, 5).into();
    for (transport, packet) in both(client, object::collision4()?.into(), [CLIENT_PORT, PORT]) {
        cases.push(case(format!("ipv4_{transport}_{COLLISION}"), "tc_ingress", false, packet));
    }
    Ok(cases)
}

fn both(src: IpAddr, dst: IpAddr, [sport, dport]: [u16; 2]) -> [(&'static str, Vec<u8>); 2] {
    let tcp = Packet::new(src, dst).tcp(sport, dport, TcpFlags::ACK);
    let udp = Packet::new(src, dst).udp(sport, dport);
    [("tcp", tcp), ("udp", udp)].map(|(name, packet)| (name, packet.payload(&[1; 64]).build()))
}

/// Least nanoseconds of the program and of an empty one; the kernel's clock may tick in tens.
fn cost(
    program: BorrowedFd<'_>,
    empty: BorrowedFd<'_>,
    case: &Case,
    runs: u32,
) -> Result<[f64; 2]> {
    verify(program, case).with_context(|| case.name.clone())?;
    let (mut least, mut least_empty) = (u128::MAX, u128::MAX);
    for _ in 0..runs {
        least_empty = least_empty.min(testrun::once(empty, &case.packet)?.duration.as_nanos());
        least = least.min(testrun::once(program, &case.packet)?.duration.as_nanos());
    }
    let nanos = |value: u128| u32::try_from(value).map(f64::from).context("a duration");
    Ok([nanos(least)?, nanos(least_empty)?])
}

/// A program that does not do its work is fast: what comes out is checked first.
fn verify(program: BorrowedFd<'_>, case: &Case) -> Result<()> {
    let output = testrun::once(program, &case.packet)?;
    ensure!(output.verdict == NEXT, "the verdict is {}", output.verdict.cast_signed());
    let Some((src, dst, ports)) = case.becomes else {
        ensure!(output.data == case.packet, "a foreign packet was changed");
        return Ok(());
    };
    packet::checksums_ok(&output.data, Link::Ethernet)?;
    let parsed = packet::parse(&output.data, Link::Ethernet)?;
    ensure!(
        (parsed.src, parsed.dst, parsed.ports) == (src, dst, Some(ports)),
        "{} came out",
        packet::describe(&output.data, Link::Ethernet)
    );
    let payload = |bytes: &[u8]| bytes.get(bytes.len().saturating_sub(64)..).map(<[u8]>::to_vec);
    ensure!(payload(&output.data) == payload(&case.packet), "the payload was changed");
    Ok(())
}
