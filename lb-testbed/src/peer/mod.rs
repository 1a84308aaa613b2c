//! Sockets in another namespace and another cgroup, driven from a test step by step.
//!
//! A [`Peer`] is a process of its own (`testbed-peer`), since cgroup programs see processes. A test
//! tells it what to do with which socket, and every step has a deadline.

mod exec;
mod load;
mod many;
mod server;
mod wire;

use std::{
    collections::BTreeSet,
    env,
    fmt::{self, Write as _},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ChildStdin,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::wire::{Answer, Command};
pub use self::{
    exec::obey,
    wire::{Close, LoadId, LoadKind, Reply, SocketId, Stats},
};
use crate::{
    cgroup::Cgroup,
    netns::Netns,
    process::{Launch, Process},
    wait,
};

/// Deadline of a step that the test does not give one.
pub const STEP: Duration = Duration::from_secs(5);
/// How much longer than a step's own deadline the answer about it may take.
const GRACE: Duration = Duration::from_secs(10);

/// A process that holds sockets for a test; ends with it.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    stdin: ChildStdin,
    mark: usize,
}

/// A socket of a peer and its names, as the process itself sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sock {
    /// Its number.
    pub id: SocketId,
    /// getsockname.
    pub local: SocketAddr,
    /// getpeername.
    pub remote: Option<SocketAddr>,
    /// TCP, where requests are lines; else UDP, where they are datagrams.
    pub is_tcp: bool,
}

/// Why a step failed, as the kernel said it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step and the error, in words.
    pub what: String,
    /// The error number.
    pub errno: Option<i32>,
}

impl Peer {
    /// Starts one in a namespace and a cgroup.
    pub fn start(label: &str, netns: &Netns, cgroup: &Cgroup) -> Result<Self> {
        let launch = Launch::new(label, binary()?).netns(netns)?.cgroup(cgroup)?;
        let mut process = launch.spawn()?;
        let stdin = process.take_stdin().context("a peer has a standard input")?;
        Ok(Self { process, stdin, mark: 0 })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Kills it, with all its sockets, as a crash does.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Serves TCP and UDP at each address, answering as `name`, until the peer is dropped.
    pub fn serve(&mut self, name: &str, addrs: &[SocketAddr]) -> Result<()> {
        let command = Command::Serve { name: name.into(), addrs: addrs.to_vec() };
        self.done(&command, STEP)
    }

    /// Opens a TCP connection.
    pub fn tcp_connect(&mut self, to: SocketAddr) -> Result<Sock> {
        self.tcp_connect_from(None, to, STEP)
    }

    /// Opens a TCP connection from a chosen address, with a deadline.
    pub fn tcp_connect_from(
        &mut self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        deadline: Duration,
    ) -> Result<Sock> {
        self.sock(&Command::TcpConnect { to, from, timeout_ms: millis(deadline) }, deadline)
    }

    /// Opens a TCP connection by a socket that the socket engine has the same place for as for another.
    pub fn tcp_connect_beside(&mut self, sock: SocketId, to: SocketAddr) -> Result<Sock> {
        let deadline = STEP * 4;
        let timeout_ms = millis(deadline);
        self.sock(&Command::TcpConnectBeside { sock, to, timeout_ms }, deadline)
    }

    /// Opens an unconnected UDP socket for the family of `to`, at any address and port.
    pub fn udp_open(&mut self, to: SocketAddr) -> Result<Sock> {
        self.udp_open_from(exec::any(to))
    }

    /// Opens an unconnected UDP socket at a chosen address.
    pub fn udp_open_from(&mut self, from: SocketAddr) -> Result<Sock> {
        self.sock(&Command::UdpOpen { from }, STEP)
    }

    /// Connects a UDP socket.
    pub fn udp_connect(&mut self, sock: SocketId, to: SocketAddr) -> Result<Sock> {
        self.sock(&Command::UdpConnect { sock, to }, STEP)
    }

    /// Opens and connects a UDP socket.
    pub fn udp_connected(&mut self, to: SocketAddr) -> Result<Sock> {
        let sock = self.udp_open(to)?;
        self.udp_connect(sock.id, to)
    }

    /// Sends on a connected socket, as it is; a TCP server waits for a line feed.
    pub fn send(&mut self, sock: SocketId, data: &str) -> Result<()> {
        self.done(&Command::Send { sock, data: data.into() }, STEP)
    }

    /// Sends a datagram.
    pub fn send_to(&mut self, sock: SocketId, to: SocketAddr, data: &str) -> Result<()> {
        self.done(&Command::SendTo { sock, to, data: data.into() }, STEP)
    }

    /// Receives a line or a datagram, and for UDP its source; `None` at the end of a TCP stream.
    pub fn receive(
        &mut self,
        sock: SocketId,
        deadline: Duration,
    ) -> Result<Option<(String, Option<SocketAddr>)>> {
        let command = Command::Receive { sock, timeout_ms: millis(deadline) };
        match self.execute(&command, deadline)? {
            Answer::Data { data, from } => Ok(Some((data, from))),
            Answer::End => Ok(None),
            other => bail!("{command:?} was answered with {other:?}"),
        }
    }

    /// Sends one request on a connected socket and receives the server's reply.
    pub fn ask(&mut self, sock: &Sock, data: &str) -> Result<Reply> {
        self.ask_within(sock, data, STEP).map(|(reply, _)| reply)
    }

    /// As [`Peer::ask`] with a deadline; for UDP also the source that the client sees.
    pub fn ask_within(
        &mut self,
        sock: &Sock,
        data: &str,
        deadline: Duration,
    ) -> Result<(Reply, Option<SocketAddr>)> {
        let end = if sock.is_tcp { "\n" } else { "" };
        self.send(sock.id, &format!("{data}{end}"))?;
        self.reply(sock.id, data, deadline)
    }

    /// Sends one request as a datagram; the reply, and its source as the client sees it.
    pub fn ask_to(
        &mut self,
        sock: SocketId,
        to: SocketAddr,
        data: &str,
        deadline: Duration,
    ) -> Result<(Reply, Option<SocketAddr>)> {
        self.send_to(sock, to, data)?;
        self.reply(sock, data, deadline)
    }

    /// Opens a connection, asks once, closes it: where does a new connection go?
    pub fn tcp_once(&mut self, to: SocketAddr) -> Result<Reply> {
        let sock = self.tcp_connect(to)?;
        let reply = self.ask(&sock, "once")?;
        self.close(sock.id, Close::Graceful)?;
        Ok(reply)
    }

    /// Sends one datagram from a fresh socket: where does a new UDP flow go?
    pub fn udp_once(&mut self, to: SocketAddr) -> Result<Reply> {
        let sock = self.udp_open(to)?;
        let (reply, from) = self.ask_to(sock.id, to, "once", STEP)?;
        ensure!(from == Some(to), "sent to {to}, the reply came from {from:?}");
        self.close(sock.id, Close::Graceful)?;
        Ok(reply)
    }

    /// Sends bytes over TCP and gets them back, all of them checked.
    pub fn bulk(&mut self, sock: SocketId, bytes: u64) -> Result<()> {
        let deadline = Duration::from_secs(10);
        self.done(&Command::Bulk { sock, bytes, timeout_ms: millis(deadline) }, deadline)
    }

    /// getsockname and getpeername now.
    pub fn names(&mut self, sock: SocketId) -> Result<Sock> {
        self.sock(&Command::Names { sock }, STEP)
    }

    /// Closes a socket.
    pub fn close(&mut self, sock: SocketId, how: Close) -> Result<()> {
        self.done(&Command::Close { sock, how }, STEP)
    }

    /// Starts a load; `deadline` is that of one request.
    pub fn load(&mut self, to: SocketAddr, kind: LoadKind, deadline: Duration) -> Result<LoadId> {
        let command = Command::LoadStart { to, kind, timeout_ms: millis(deadline) };
        match self.execute(&command, STEP)? {
            Answer::Load { load } => Ok(load),
            other => bail!("{command:?} was answered with {other:?}"),
        }
    }

    /// What a load has done so far.
    pub fn load_stats(&mut self, load: LoadId) -> Result<Stats> {
        self.stats(&Command::LoadStats { load }, STEP)
    }

    /// Waits until a load has had `more` further answers.
    pub fn load_goes_on(&mut self, load: LoadId, more: u64, deadline: Duration) -> Result<Stats> {
        let goal = self.load_stats(load)?.answered + more;
        let what = format!("{more} more answers to the load");
        let stats = wait::until_some(&what, deadline, || {
            let stats = self.load_stats(load);
            (!stats.as_ref().is_ok_and(|stats| stats.answered < goal)).then_some(stats)
        });
        match stats {
            Ok(stats) => stats,
            Err(late) => {
                let stats = self.load_stats(load)?;
                Err(late.context(format!("so far: {stats:?}")))
            }
        }
    }

    /// Stops a load; what it has done, the last request included.
    pub fn load_stop(&mut self, load: LoadId) -> Result<Stats> {
        self.stats(&Command::LoadStop { load }, Duration::from_mins(1))
    }

    /// `count` times connect, request, reply, close, as fast as one thread can.
    pub fn crr(&mut self, to: SocketAddr, count: u32) -> Result<Stats> {
        let command = Command::Crr { to, count, timeout_ms: millis(STEP) };
        self.stats(&command, Duration::from_mins(2))
    }

    /// Answers on any number of connections at an address, beside other peers that do so as well.
    pub fn serve_many(&mut self, addr: SocketAddr) -> Result<()> {
        self.done(&Command::ServeMany { addr }, STEP)
    }

    /// Opens so many connections and keeps them all.
    pub fn connect_many(&mut self, to: SocketAddr, count: usize) -> Result<()> {
        let command = Command::ConnectMany { to, count, timeout_ms: millis(STEP) };
        self.done(&command, Duration::from_mins(1))
    }

    /// Asks on all of them, and checks every answer; as whom the server sees their clients.
    pub fn ask_many(&mut self) -> Result<BTreeSet<SocketAddr>> {
        match self.execute(&Command::AskMany, Duration::from_mins(1))? {
            Answer::Clients { seen } => Ok(seen),
            other => bail!("the question was answered with {other:?}"),
        }
    }

    fn reply(
        &mut self,
        sock: SocketId,
        data: &str,
        deadline: Duration,
    ) -> Result<(Reply, Option<SocketAddr>)> {
        let (reply, from) =
            self.receive(sock, deadline)?.context("the server has closed the connection")?;
        let reply: Reply =
            serde_json::from_str(&reply).with_context(|| format!("understand {reply:?}"))?;
        ensure!(reply.data == data, "sent {data:?}, got back {:?}", reply.data);
        Ok((reply, from))
    }

    fn done(&mut self, command: &Command, deadline: Duration) -> Result<()> {
        match self.execute(command, deadline)? {
            Answer::Done => Ok(()),
            other => bail!("{command:?} was answered with {other:?}"),
        }
    }

    fn sock(&mut self, command: &Command, deadline: Duration) -> Result<Sock> {
        match self.execute(command, deadline)? {
            Answer::Socket { sock, local, remote, is_tcp } => {
                Ok(Sock { id: sock, local, remote, is_tcp })
            }
            other => bail!("{command:?} was answered with {other:?}"),
        }
    }

    fn stats(&mut self, command: &Command, deadline: Duration) -> Result<Stats> {
        match self.execute(command, deadline)? {
            Answer::Stats(stats) => Ok(stats),
            other => bail!("{command:?} was answered with {other:?}"),
        }
    }

    fn execute(&mut self, command: &Command, deadline: Duration) -> Result<Answer> {
        let mut line = serde_json::to_string(command).context("write a command")?;
        line.push('\n');
        self.stdin
            .write_all(line.as_bytes())
            .with_context(|| format!("the peer has ended: {}", self.process.stderr().tail(5)))?;
        let stdout = self.process.stdout();
        let (answer, mark) = stdout
            .wait_from(self.mark, "answer", deadline + GRACE, |_| true)
            .with_context(|| format!("{command:?}"))?;
        self.mark = mark;
        match serde_json::from_str(&answer).with_context(|| format!("understand {answer:?}"))? {
            Answer::Failed { what, errno } => Err(Failure { what, errno }.into()),
            answer => Ok(answer),
        }
    }
}

/// The error number of a step that failed in the kernel.
pub fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<Failure>()?.errno
}

/// The program `testbed-peer`: `MILLRACE_PEER`, or beside the program that runs now.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MILLRACE_PEER") {
        return Ok(path.into());
    }
    beside_this("testbed-peer").context("build it: `cargo build -p lb-testbed --bins`")
}

/// A program in the folder of this one or the one above, where cargo puts binaries.
pub(crate) fn beside_this(name: &str) -> Result<PathBuf> {
    let this = env::current_exe().context("find the running program")?;
    let mut tried = String::new();
    for dir in this.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        write!(tried, " {}", path.display()).context("write to a string")?;
    }
    bail!("no program {name}; tried{tried}")
}

fn millis(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}
