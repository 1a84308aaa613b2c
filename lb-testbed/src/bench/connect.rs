//! What does the program at connect4 add to `connect()`?
//!
//! The measuring process runs in a network namespace and a cgroup of its own, and attaches there in
//! turn: nothing, an empty program, ours. Each sample is the mean over a batch of sockets that were
//! made before and are closed after it; the least sample of each kind counts.

use std::{
    fmt::Write as _,
    fs::File,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::Counter;
use serde::{Deserialize, Serialize};

use super::{
    Figure, Plan, Reach,
    object::{self, Object, PORT, TARGET},
    samples::Progress,
    sys::{self, INET4_CONNECT},
};
use crate::{
    cgroup::Cgroup,
    netns::Netns,
    process::Launch,
    testrun::{self, Kind},
};

pub(super) const IDS: [&str; 2] = ["connect4_miss_ratio", "connect4_hit_ratio"];

/// Sockets of one sample.
const BATCH: u16 = 32;
/// Samples of each kind before the next program is attached.
const SAMPLES: u16 = 16;
const BACKENDS: u8 = 10;
/// How long the measuring process may take.
const WITHIN: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// Least nanoseconds of one call with one transport protocol.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Least {
    bare: f64,
    empty: f64,
    miss: f64,
    hit: f64,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let netns = Netns::new()?;
    let mut lines = String::new();
    for host in 0..BACKENDS {
        writeln!(lines, "addr add {}/32 dev lo", backend(host).ip())?;
    }
    netns.ip(&lines)?;
    let cgroup = Cgroup::new()?;
    let rounds = plan.pick(60, 2);
    let output = Launch::new("the process that connects", &plan.this)
        .args(["role", "connect"])
        .arg(cgroup.path())
        .args([rounds.to_string(), plan.cpu.to_string()])
        .netns(&netns)?
        .cgroup(&cgroup)?
        .output(WITHIN)?;
    let [udp, tcp]: [Least; 2] = serde_json::from_str(output.trim())
        .with_context(|| format!("understand what the measuring process says: {output:?}"))?;

    let method = |which: &str| {
        format!(
            "(with our program - with an empty one) / bare, {which}; fresh sockets, batches of \
             {BATCH}, attached in turn over {rounds} rounds, least batch of {} each; {} Services \
             with {BACKENDS} backends, records written",
            rounds * u32::from(SAMPLES),
            object::SERVICES
        )
    };
    let mut figures = Vec::new();
    let ratios = [
        ("a destination of no Service", 0.10, (|least| least.miss) as fn(&Least) -> f64),
        ("a Service's address", 0.40, |least| least.hit),
    ];
    for (id, (what, reach, of)) in IDS.into_iter().zip(ratios) {
        let ratio = |least: &Least| (of(least) - least.empty) / least.bare;
        let reach = Reach::AtMost(reach);
        figures.push(
            Figure::new(id, ratio(&udp).max(ratio(&tcp)), "ratio")
                .reach(reach)
                .method(method(&format!("{what}; the worse of UDP and TCP"))),
        );
        for (name, least) in [("udp", &udp), ("tcp", &tcp)] {
            let Least { bare, empty, .. } = least;
            figures.push(
                Figure::new(format!("{id}.{name}"), ratio(least), "ratio")
                    .reach(reach)
                    .method(method(&format!("{what}, {name}, same namespace, loopback")))
                    .note(format!(
                        "bare {bare:.0} ns, empty {empty:.0} ns, ours {:.0} ns",
                        of(least)
                    )),
            );
        }
    }
    Ok(figures)
}

/// The measuring process: arguments are its cgroup, the number of rounds and the CPU.
pub(super) fn role(args: &[String]) -> Result<String> {
    let [cgroup, rounds, cpu] = args else { bail!("role connect: CGROUP ROUNDS CPU") };
    let cgroup = File::open(Path::new(cgroup)).with_context(|| format!("open {cgroup}"))?;
    let rounds: u32 = rounds.parse().context("rounds")?;
    let backends: Vec<SocketAddrV4> = (0..BACKENDS).map(backend).collect();
    let mut object = Object::load(&["connect4"])?;
    let addresses: Vec<SocketAddr> = backends.iter().map(|at| SocketAddr::V4(*at)).collect();
    object.fill_services(&addresses)?;
    sys::take_cpu(cpu.parse().context("CPU")?)?;

    let least = [Transport::Udp, Transport::Tcp].map(|transport| {
        Bench {
            transport,
            listener: listener()?,
            object: &object,
            cgroup: &cgroup,
            backends: &backends,
        }
        .run(rounds)
    });
    let [udp, tcp] = least;
    let answer = [udp?, tcp?];
    let unrecorded = object.counter(Counter::SocketUnrecorded)?;
    ensure!(unrecorded == 0, "{unrecorded} sockets have no record");
    serde_json::to_string(&answer).context("write the answer")
}

struct Bench<'a> {
    transport: Transport,
    listener: TcpListener,
    object: &'a Object,
    cgroup: &'a File,
    backends: &'a [SocketAddrV4],
}

impl Bench<'_> {
    fn run(&self, rounds: u32) -> Result<Least> {
        let empty = testrun::load_empty(Kind::CgroupSockAddr, 1, INET4_CONNECT)?;
        let vips: Vec<SocketAddrV4> = (0..u32::from(BACKENDS))
            .map(|n| SocketAddrV4::new(object::vip4_address(n), PORT))
            .collect();
        let mut least = Least { bare: f64::MAX, empty: f64::MAX, miss: f64::MAX, hit: f64::MAX };
        let mut progress = Progress::new(format!("connect, {:?}", self.transport), rounds);
        for round in 0..rounds {
            progress.step(round);
            self.samples(&mut least.bare, self.backends)?;
            {
                let _attached =
                    sys::attach_to_cgroup(empty.as_fd(), self.cgroup.as_fd(), INET4_CONNECT)?;
                self.samples(&mut least.empty, self.backends)?;
            }
            let ours = self.object.program("connect4")?;
            let _attached = sys::attach_to_cgroup(ours, self.cgroup.as_fd(), INET4_CONNECT)?;
            let translated = self.object.counter(Counter::SocketTranslated)?;
            self.samples(&mut least.miss, self.backends)?;
            let missed = self.object.counter(Counter::SocketTranslated)?;
            ensure!(missed == translated, "a pod's address was translated");
            self.samples(&mut least.hit, &vips)?;
            let hit = self.object.counter(Counter::SocketTranslated)? - missed;
            let expected = u64::from(BATCH * SAMPLES);
            ensure!(hit == expected, "{hit} of {expected} connections were translated");
        }
        Ok(least)
    }

    fn samples(&self, least: &mut f64, targets: &[SocketAddrV4]) -> Result<()> {
        for _ in 0..SAMPLES {
            *least = least.min(self.sample(targets)?);
        }
        Ok(())
    }

    /// Nanoseconds of one `connect()`, in the mean over a batch.
    fn sample(&self, targets: &[SocketAddrV4]) -> Result<f64> {
        let kind = match self.transport {
            Transport::Udp => libc::SOCK_DGRAM,
            Transport::Tcp => libc::SOCK_STREAM,
        };
        let sockets: Vec<OwnedFd> =
            (0..BATCH).map(|_| sys::socket(kind)).collect::<Result<_, _>>().context("socket")?;
        let targets: Vec<_> =
            targets.iter().cycle().take(BATCH.into()).map(|to| sys::raw_address(*to)).collect();
        let start = Instant::now();
        for (socket, to) in sockets.iter().zip(&targets) {
            sys::connect(socket, to).context("connect")?;
        }
        let elapsed = start.elapsed();
        self.close(sockets)?;
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(BATCH))
    }

    /// Resets connections, so that no port is kept busy by `TIME_WAIT`.
    fn close(&self, sockets: Vec<OwnedFd>) -> Result<()> {
        if self.transport == Transport::Udp {
            return Ok(());
        }
        for socket in sockets {
            let stream = TcpStream::from(socket);
            crate::sys::reset_on_close(&stream).context("SO_LINGER")?;
            let (_accepted, from) = self.listener.accept().context("accept")?;
            ensure!(from.ip().is_ipv4(), "a connection from {from}");
        }
        Ok(())
    }
}

fn listener() -> Result<TcpListener> {
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET));
    TcpListener::bind(at).with_context(|| format!("listen at {at}"))
}

fn backend(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 10 + host), TARGET)
}
