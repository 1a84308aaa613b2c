//! Who makes one connection after the other, as fast as it can, and who answers.
//!
//! Client and server are single threads on one CPU. Each exchange is a connection with one byte there
//! and one byte back, closed by the client first. Ports in `TIME_WAIT` are therefore the client's, who
//! may take them again after a second; the server would refuse some of them for a second each, since
//! the client numbers packets to different addresses differently.

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ChildStdin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Plan, sys};
use crate::{
    cluster::{At, Cluster},
    matrix::Engine,
    process::{Launch, Process},
};

/// How long one run of exchanges may take.
const WITHIN: Duration = Duration::from_mins(2);

/// A client process.
#[derive(Debug)]
pub(super) struct Asker {
    process: Process,
    stdin: ChildStdin,
    mark: usize,
}

impl Asker {
    /// At a place of a cluster; the socket engine of its node sees it or not.
    pub(super) fn start(plan: &Plan, cluster: &Cluster, at: At, engine: Engine) -> Result<Self> {
        let cgroup = match (engine, at) {
            (Engine::Socket, At::Pod(node, _) | At::Node(node)) => &cluster.nodes()[node].cgroup,
            _ => cluster.outside(),
        };
        cluster.netns(at).sysctls(&[
            ("net.ipv4.tcp_tw_reuse", "1"),
            ("net.ipv4.tcp_max_tw_buckets", "262144"),
        ])?;
        let mut process = Launch::new("a client", &plan.this)
            .args(["role", "crr-client"])
            .netns(cluster.netns(at))?
            .cgroup(cgroup)?
            .spawn()?;
        sys::give_cpu(process.pid(), plan.cpu)?;
        let stdin = process.take_stdin().context("a client has a standard input")?;
        Ok(Self { process, stdin, mark: 0 })
    }

    /// Exchanges per second, over so many after a quarter of that to warm up.
    pub(super) fn per_second(&mut self, to: SocketAddr, count: u32) -> Result<f64> {
        self.run(to, count / 4)?;
        Ok(f64::from(count) / self.run(to, count)?)
    }

    fn run(&mut self, to: SocketAddr, count: u32) -> Result<f64> {
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
        Ok(seconds)
    }
}

/// Starts a server at a place of a cluster.
pub(super) fn server(plan: &Plan, cluster: &Cluster, at: At, port: u16) -> Result<Process> {
    let addresses = cluster.addresses(at).map(|ip| SocketAddr::new(ip, port).to_string());
    let server = Launch::new("the server", &plan.this)
        .args(["role", "crr-server"])
        .args(addresses)
        .netns(cluster.netns(at))?
        .cgroup(cluster.outside())?
        .spawn()?;
    server.stdout().wait("line of the server", Duration::from_secs(10), |line| line == "ready")?;
    sys::give_cpu(server.pid(), plan.cpu)?;
    Ok(server)
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

/// One exchange.
fn exchange(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("connect")?;
    stream.write_all(&[7]).context("send")?;
    let mut answer = [0; 2];
    let size = stream.read(&mut answer).context("receive")?;
    ensure!(size == 1 && answer[0] == 7, "{size} bytes came back");
    Ok(())
}
