//! How many connections per second go through a ClusterIP, as a share of those that go directly to
//! the pod while nothing of Millrace is loaded?
//!
//! Client and server are single threads on one CPU, in pods of one node. Each exchange is a
//! connection with one byte there and one byte back, closed by the client first. Ports in
//! `TIME_WAIT` are therefore the client's, who may take them again after a second; the server would
//! refuse some of them for a second each, since the client numbers packets to the ClusterIP and to
//! the pod differently.

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ChildStdin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Figure, Plan, Reach,
    samples::{Progress, median, quartiles, say},
    sys,
};
use crate::{
    agent::{Agent, Source},
    cluster::{At, Cluster, Family, Spec, Topology},
    manifest::Manifest,
    matrix::Engine,
    process::{Launch, Process},
};

pub(super) const IDS: [&str; 2] = ["crr_socket_ratio", "crr_packet_ratio"];

const CLIENT: At = At::Pod(0, 0);
const SERVER: At = At::Pod(0, 1);
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// How long one run of exchanges may take.
const WITHIN: Duration = Duration::from_mins(2);

/// A client process of one engine, and its share in each pair of runs.
struct Client {
    engine: Engine,
    family: Family,
    process: Process,
    stdin: ChildStdin,
    mark: usize,
    direct: SocketAddr,
    vip: SocketAddr,
    direct_per_s: Vec<f64>,
    vip_per_s: Vec<f64>,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let (pairs, count) = (plan.pick(41, 2), plan.pick(2_000, 100));
    let method = format!(
        "exchanges per second through the ClusterIP over those to the pod with nothing of Millrace \
         loaded; client and server in pods of one node, both on one CPU at priority -20; {pairs} pairs of runs of \
         {count} after a quarter of that to warm up, direct and through Millrace in turn; median of \
         the ratios of the pairs"
    );
    let mut all = Vec::new();
    for topology in [Topology::Routed, Topology::Bridge] {
        let clients = run(plan, topology, pairs, count)
            .with_context(|| format!("{topology} pods, {pairs} pairs"))?;
        all.extend(clients.into_iter().map(|client| (topology, client)));
    }
    let mut figures = Vec::new();
    for (id, engine, reach) in [(IDS[0], Engine::Socket, 0.97), (IDS[1], Engine::Packet, 0.90)] {
        let reach = Reach::AtLeast(reach);
        let singles: Vec<Figure> = all
            .iter()
            .filter(|(_, client)| client.engine == engine)
            .map(|(topology, client)| {
                let name = format!("{id}.{topology}_{}", client.family).to_lowercase();
                client
                    .figure(name)
                    .reach(reach)
                    .method(format!("{}, {topology} pods; {method}", client.family))
            })
            .collect();
        // Both ends of a connection on one link is what a bridge makes of the direct way alone:
        // through any ClusterIP it goes by the gateway. Routed pods compare like with like.
        let like = |figure: &&Figure| figure.id().contains("routed");
        let worst = singles.iter().filter(like).filter_map(Figure::value).min_by(f64::total_cmp);
        figures.push(Figure::new(id, worst.context("no figure")?, "ratio").reach(reach).method(
            format!(
                "the worse of IPv4 and IPv6 between routed pods, where both ways take the same \
                 hops; {method}"
            ),
        ));
        figures.extend(singles);
    }
    Ok(figures)
}

fn run(plan: &Plan, topology: Topology, pairs: u32, count: u32) -> Result<Vec<Client>> {
    say(&format!("crr: a cluster of {topology} pods"));
    let cluster = Cluster::build(Spec { nodes: 1, topology, ..Spec::default() })?;
    cluster
        .netns(CLIENT)
        .sysctls(&[("net.ipv4.tcp_tw_reuse", "1"), ("net.ipv4.tcp_max_tw_buckets", "262144")])?;
    let manifest = cluster.scratch().join("state.json");
    let vips = [Family::V4, Family::V6].map(|family| vip(family).ip());
    Manifest::new()
        .publish("web", &vips, PORT, TARGET, &cluster.addresses(SERVER))
        .write(&manifest)?;
    let _server = server(plan, &cluster)?;
    let mut clients = Vec::new();
    for engine in Engine::ALL {
        for family in Family::ALL {
            clients.push(Client::start(plan, &cluster, engine, family)?);
        }
    }
    let mut progress = Progress::new(format!("crr, {topology} pods: pairs"), pairs);
    for pair in 0..pairs {
        progress.step(pair);
        // Who comes first in a pair alternates, so that a drift of the machine favours neither.
        for through in [pair % 2 == 1, pair % 2 == 0] {
            let agent = through.then(|| start(&cluster, &manifest)).transpose()?;
            for client in &mut clients {
                let to = if through { client.vip } else { client.direct };
                client.per_second(to, count / 4)?;
                let rate = client.per_second(to, count)?;
                (if through { &mut client.vip_per_s } else { &mut client.direct_per_s }).push(rate);
            }
            if let Some(agent) = agent {
                unload(agent)?;
            }
        }
    }
    Ok(clients)
}

fn start(cluster: &Cluster, manifest: &std::path::Path) -> Result<Agent> {
    cluster.agent(0, Source::Manifests(manifest.to_owned()))?.start()
}

fn unload(mut agent: Agent) -> Result<()> {
    agent.stop()?;
    agent.command("cleanup", &[]).map(drop)
}

fn server(plan: &Plan, cluster: &Cluster) -> Result<Process> {
    let addresses = cluster.addresses(SERVER).map(|ip| SocketAddr::new(ip, TARGET).to_string());
    let server = Launch::new("the server", &plan.this)
        .args(["role", "crr-server"])
        .args(addresses)
        .netns(cluster.netns(SERVER))?
        .cgroup(cluster.outside())?
        .spawn()?;
    server.stdout().wait("line of the server", Duration::from_secs(10), |line| line == "ready")?;
    sys::give_cpu(server.pid(), plan.cpu)?;
    Ok(server)
}

impl Client {
    fn start(plan: &Plan, cluster: &Cluster, engine: Engine, family: Family) -> Result<Self> {
        let cgroup = match engine {
            Engine::Socket => &cluster.nodes()[0].cgroup,
            Engine::Packet => cluster.outside(),
        };
        let mut process = Launch::new("a client", &plan.this)
            .args(["role", "crr-client"])
            .netns(cluster.netns(CLIENT))?
            .cgroup(cgroup)?
            .spawn()?;
        sys::give_cpu(process.pid(), plan.cpu)?;
        let stdin = process.take_stdin().context("a client has a standard input")?;
        Ok(Self {
            engine,
            family,
            process,
            stdin,
            mark: 0,
            direct: SocketAddr::new(cluster.address(SERVER, family), TARGET),
            vip: vip(family),
            direct_per_s: Vec::new(),
            vip_per_s: Vec::new(),
        })
    }

    fn per_second(&mut self, to: SocketAddr, count: u32) -> Result<f64> {
        writeln!(self.stdin, "{to} {count}")
            .with_context(|| format!("the client has ended: {}", self.process.stderr().tail(5)))?;
        let (line, mark) = self
            .process
            .stdout()
            .wait_from(self.mark, "answer of the client", WITHIN, |_| true)
            .with_context(|| self.process.stderr().tail(5))
            .with_context(|| format!("{count} exchanges with {to}"))?;
        self.mark = mark;
        let seconds: f64 = line.parse().with_context(|| format!("understand {line:?}"))?;
        ensure!(seconds > 0.0, "{count} exchanges in no time");
        Ok(f64::from(count) / seconds)
    }

    fn figure(&self, id: String) -> Figure {
        let pairs = self.vip_per_s.iter().zip(&self.direct_per_s);
        let ratios: Vec<f64> = pairs.map(|(vip, direct)| vip / direct).collect();
        let [low, high] = quartiles(&ratios);
        Figure::new(id, median(&ratios), "ratio").note(format!(
            "quartiles {low:.3} and {high:.3}; direct {:.0} per s, through the ClusterIP {:.0} per s",
            median(&self.direct_per_s),
            median(&self.vip_per_s)
        ))
    }
}

fn vip(family: Family) -> SocketAddr {
    let ip = match family {
        Family::V4 => super::object::vip4_address(10).into(),
        Family::V6 => super::object::vip6_address(10).into(),
    };
    SocketAddr::new(ip, PORT)
}

/// The server process: one thread for each address, which serves one connection after the other.
pub(super) fn serve(args: &[String]) -> Result<String> {
    let mut threads = Vec::new();
    for address in args {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listen at {address}"))?;
        threads.push(std::thread::spawn(move || serve_at(&listener)));
    }
    let mut output = std::io::stdout();
    writeln!(output, "ready")?;
    output.flush()?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of the server panicked"))?;
    }
    Ok(String::new())
}

fn serve_at(listener: &TcpListener) {
    let mut byte = [0];
    for mut stream in listener.incoming().flatten() {
        let exchange = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
        // A failing exchange is the client's to report; who closes first is the client.
        drop(exchange.and_then(|()| stream.read(&mut byte)));
    }
}

/// The client process: each line of input is an address and a number of exchanges, each line of
/// output the seconds that they took.
pub(super) fn ask(args: &[String]) -> Result<String> {
    ensure!(args.is_empty(), "role crr-client takes no arguments");
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("read a command")?;
        let Some((to, count)) = line.split_once(' ') else { bail!("a command {line:?}") };
        let (to, count): (SocketAddr, usize) = (to.parse()?, count.parse()?);
        let start = Instant::now();
        for number in 0..count {
            exchange(to).with_context(|| format!("exchange {number} with {to}"))?;
        }
        writeln!(output, "{}", start.elapsed().as_secs_f64())?;
        output.flush()?;
    }
    Ok(String::new())
}

fn exchange(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("connect")?;
    stream.write_all(&[7]).context("send")?;
    let mut answer = [0; 2];
    let size = stream.read(&mut answer).context("receive")?;
    ensure!(size == 1 && answer[0] == 7, "{size} bytes came back");
    Ok(())
}
