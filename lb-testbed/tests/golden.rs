//! Golden packets through the real kernel programs: bytes, verdict, counters and records are those
//! that the host's decisions give, at every step.
//!
//! Needs root and nothing else: no file beside it, no mount. The BPF test run of an L3 program needs
//! no Ethernet header: the kernel only steps over the first 14 bytes and back.

#[path = "golden/verifier.rs"]
mod verifier;

use std::{io::ErrorKind, os::fd::AsFd as _};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Counter, REFUSALS_PER_TICK},
    host::HostTables,
    verdict::Verdict,
};
use lb_object::Settings;
use lb_testbed::{
    golden::{self, Case, Hook, Shot, Step},
    packet::Link,
    require,
    testrun::{
        self,
        kernel::{Kernel, flows_on_host},
    },
    traffic::{PORT, Protocol, SPORT, SYN, V4, at, packet},
};

/// Which programs see packets, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Tc,
    /// tc, with packets that carry a sum of all their bytes.
    TcSummed,
    /// XDP, and then tc, which sees what XDP passed.
    Xdp,
}

/// The program at tc for a packet.
fn program_for(shot: &Shot) -> &'static str {
    match (shot.hook, shot.link) {
        (Hook::Ingress, Link::Ethernet) => "tc_ingress",
        (Hook::Egress, Link::Ethernet) => "tc_egress",
        (Hook::Ingress, Link::None) => "tc_ingress_l3",
        (Hook::Egress, Link::None) => "tc_egress_l3",
        (Hook::Uplink, Link::Ethernet) => "tc_uplink_egress",
        (Hook::Uplink, Link::None) => "tc_uplink_egress_l3",
    }
}

const PROGRAMS: [&str; 7] = [
    "tc_ingress",
    "tc_egress",
    "tc_ingress_l3",
    "tc_egress_l3",
    "tc_uplink_egress",
    "tc_uplink_egress_l3",
    "xdp_ingress",
];

/// What the program at tc returns for a packet.
fn action(shot: &Shot) -> i32 {
    // TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC: the next program sees the packet
    if shot.verdict == Verdict::Reflected || shot.answered {
        7
    } else if shot.verdict.drop_counter().is_some() {
        2
    } else {
        -1
    }
}

/// What the running kernel has, and what every kernel has.
fn settings() -> Vec<(&'static str, Settings)> {
    let probed = Settings::probe();
    // Whether programs jump is a matter of the architecture as well.
    let none = Settings { jumps: probed.jumps, ..Settings::default() };
    let whole = Settings { jumps: false, ..probed };
    let mut settings = vec![("all that this kernel has", probed)];
    for (what, less) in [("what every kernel has", none), ("programs that do not jump", whole)] {
        if settings.iter().all(|(_, more)| *more != less) {
            settings.push((what, less));
        }
    }
    settings
}

/// Whether a case shows something else where programs do not jump: nobody answers what is refused.
fn needs_jumps(case: &Case) -> bool {
    case.steps.iter().any(|step| match step {
        Step::Shot(shot) => {
            let stopped = shot.verdict.drop_counter().is_some();
            shot.verdict.is_reject() || (shot.hook == Hook::Uplink && stopped)
        }
        Step::Change(_) => false,
    })
}

#[test]
fn every_program_loads() -> Result<()> {
    if !require::bpf_or_skip("every_program_loads") {
        return Ok(());
    }
    for (what, settings) in settings() {
        let mut kernel = Kernel::prepare(&settings)?;
        let names = kernel.names();
        let all = if require::is_kernel(5, 18) { 43 } else { 40 };
        ensure!(names.len() == all, "programs: {names:?}");
        println!("with {what}:");
        for name in names {
            match kernel.load(&name).with_context(|| format!("with {what}"))? {
                Some(verified) => println!("  {name}: {verified} instructions verified"),
                None => println!("  {name}"),
            }
        }
    }
    Ok(())
}

#[test]
fn golden_packets_at_tc_and_xdp() -> Result<()> {
    let test = "golden_packets_at_tc_and_xdp";
    if !require::bpf_or_skip(test) {
        return Ok(());
    }
    let mut engines = vec![Engine::Tc, Engine::Xdp];
    if runs_summed()? {
        engines.push(Engine::TcSummed);
    } else {
        require::skip(
            test,
            "packets with CHECKSUM_COMPLETE: this kernel (below 6.15) has no such test run",
        );
    }
    for (what, settings) in settings() {
        let mut kernel = Kernel::prepare(&settings)?;
        for program in PROGRAMS {
            kernel.load(program)?;
        }
        kernel.fill_program_array()?;
        for case in golden::cases() {
            if !settings.jumps && needs_jumps(&case) {
                continue;
            }
            for engine in &engines {
                play(&mut kernel, *engine, &case)
                    .with_context(|| format!("{}, {engine:?}, with {what}", case.name))?;
            }
        }
    }
    Ok(())
}

/// Marks belong to others, whatever becomes of a packet: none of their bits is read, set or cleared,
/// kube-proxy's own (0x4000) included.
#[test]
fn m_c_the_mark_of_a_packet_stays() -> Result<()> {
    if !require::bpf_or_skip("m_c_the_mark_of_a_packet_stays") {
        return Ok(());
    }
    let mut kernel = Kernel::prepare(&Settings::probe())?;
    for program in PROGRAMS {
        kernel.load(program)?;
    }
    kernel.fill_program_array()?;
    for case in golden::cases() {
        for mark in [0, 0x4000, u32::MAX] {
            kernel.reset()?;
            let tables = HostTables::new();
            for step in &case.steps {
                let shot = match step {
                    Step::Change(change) => {
                        change(&tables);
                        kernel.fill(&tables)?;
                        continue;
                    }
                    Step::Shot(shot) => shot,
                };
                let program = program_for(shot);
                let (ran, after) = match kernel.run_marked(program, &shot.input, mark) {
                    Err(error) if refused(&error, shot) => continue,
                    ran => ran.with_context(|| case.name.clone())?,
                };
                ensure!(after == mark, "{}, {program}: {mark:#x} became {after:#x}", case.name);
                shot.check_bytes(&format!("{}, mark {mark:#x}", case.name), &ran.data)?;
            }
        }
    }
    Ok(())
}

/// A flood of what is refused is answered as often as a tick allows, on each CPU, and then dropped.
#[test]
fn v_a_refusals_are_answered_so_often_and_no_more() -> Result<()> {
    const FLOOD: u64 = 20_000;
    if !require::bpf_or_skip("v_a_refusals_are_answered_so_often_and_no_more") {
        return Ok(());
    }
    let mut kernel = Kernel::prepare(&Settings::probe())?;
    kernel.load("tc_ingress")?;
    kernel.fill_program_array()?;
    let tables = HostTables::new();
    let vip = at(V4.vip, PORT);
    tables.add_service_port(Protocol::Udp.number(), &[vip], &[]);
    kernel.fill(&tables)?;
    let refused = packet(Protocol::Udp, at(V4.client, SPORT), vip, SYN).build();
    for _ in 0..FLOOD {
        let ran = kernel.run("tc_ingress", &refused)?;
        // TC_ACT_REDIRECT, TC_ACT_SHOT
        let answered = ran.verdict == 7;
        ensure!(answered || (ran.verdict, &ran.data) == (2, &refused), "{}", ran.verdict);
    }
    let counters = kernel.counters()?;
    let count = |wanted| counters.iter().find(|(c, _)| *c == wanted).map_or(0, |(_, n)| *n);
    let told = count(Counter::RefusalAnswered);
    ensure!(told >= u64::from(REFUSALS_PER_TICK), "{counters:?}");
    ensure!(count(Counter::RefusalSuppressed) == FLOOD - told && told < FLOOD, "{counters:?}");
    ensure!(count(Counter::DropNoBackend) == FLOOD, "{counters:?}");
    Ok(())
}

/// Runs a case through the programs, and beside them through the host's decisions.
fn play(kernel: &mut Kernel, engine: Engine, case: &Case) -> Result<()> {
    kernel.reset()?;
    let tables = HostTables::new();
    for (index, step) in case.steps.iter().enumerate() {
        match step {
            Step::Change(change) => {
                change(&tables);
                kernel.fill(&tables)?;
            }
            Step::Shot(shot) => {
                let program = program_for(shot);
                let what = format!("step {index}, {program}");
                let before = kernel.counters()?;
                if engine == Engine::Xdp && is_early(shot) {
                    early(kernel, &tables, shot).with_context(|| what.clone())?;
                }
                let (verdict, output) = shot.on_host(&tables);
                shot.check(&format!("{what} on the host"), verdict, &output)?;
                // What leaves has no such sum, and without an Ethernet header the test run sums up
                // from a wrong place.
                let summed = engine == Engine::TcSummed && !shot.answered && is_early(shot);
                let ran = if summed {
                    kernel.run_summed(program, &shot.input)
                } else {
                    kernel.run(program, &shot.input)
                };
                let ran = match ran {
                    Err(error) if refused(&error, shot) => continue,
                    ran => ran.context(what.clone())?,
                };
                let (returned, expected) = (ran.verdict.cast_signed(), action(shot));
                ensure!(returned == expected, "{what}: returned {returned} for {verdict:?}");
                shot.check_bytes(&what, &ran.data)?;
                let counts = golden::difference(&before, &kernel.counters()?);
                shot.check_counts(&what, &counts)?;
                let (flows, on_host) = (kernel.flows()?, flows_on_host(&tables));
                ensure!(
                    flows == on_host,
                    "{what}: records\n{}\ninstead of\n{}",
                    flows.join("\n"),
                    on_host.join("\n")
                );
            }
        }
    }
    Ok(())
}

/// Whether XDP sees a packet before tc does.
fn is_early(shot: &Shot) -> bool {
    (shot.hook, shot.link) == (Hook::Ingress, Link::Ethernet)
}

/// XDP sees the packet first, on the host and in the kernel: nothing here is sent on, so that it is
/// passed as it came, with the same records made.
fn early(kernel: &Kernel, tables: &HostTables, shot: &Shot) -> Result<()> {
    if shot.input.len() < 14 {
        // No test run is made of less than an Ethernet header.
        return Ok(());
    }
    let (verdict, output) = shot.early_on_host(tables);
    ensure!(verdict.drop_counter().is_none(), "XDP would drop: {verdict:?}");
    ensure!(verdict != Verdict::Forwarded && output == shot.input, "XDP acts: {verdict:?}");
    let ran = kernel.run("xdp_ingress", &shot.input)?;
    // XDP_PASS
    ensure!(ran.verdict == 2, "xdp_ingress returned {}", ran.verdict);
    ensure!(ran.data == shot.input, "xdp_ingress changed the packet");
    let (flows, on_host) = (kernel.flows()?, flows_on_host(tables));
    ensure!(flows == on_host, "xdp_ingress: records {flows:?} instead of {on_host:?}");
    Ok(())
}

/// Whether this kernel makes test runs with `CHECKSUM_COMPLETE`.
fn runs_summed() -> Result<bool> {
    let program = testrun::load_empty(testrun::Kind::SchedCls, -1, 0)?;
    let packet = [0; 64];
    testrun::once(program.as_fd(), &packet)?;
    Ok(testrun::once_summed(program.as_fd(), &packet).is_ok())
}

/// Newer kernels start no test run over an IP packet that is shorter than its header; the programs
/// may still meet one, so older kernels and the host run it.
fn refused(error: &anyhow::Error, shot: &Shot) -> bool {
    let invalid = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::InvalidInput);
    invalid && shot.verdict == Verdict::Unparsed && shot.input.len() < 14 + 40
}
