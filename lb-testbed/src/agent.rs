//! The agent under test: started as a process, watched until it is in sync, stopped or killed,
//! asked with its own commands.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    cgroup::Cgroup,
    netns::Netns,
    peer,
    process::{Launch, Lines, Process},
};

/// How long a debug build on a busy machine may take to be in sync.
pub const SYNC_WITHIN: Duration = Duration::from_mins(2);
/// How long one of the agent's short commands may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);
/// How long the agent may take to end when asked to.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Where the agent gets Services from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file or folder of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubeconfig(PathBuf),
}

/// How to start an agent.
#[derive(Debug)]
pub struct AgentSpec {
    binary: PathBuf,
    node: String,
    source: Source,
    place: Vec<OsString>,
    args: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    cgroup_path: Option<PathBuf>,
    netns_path: Option<PathBuf>,
}

/// A running agent; killed on drop, its log printed when the test is failing.
#[derive(Debug)]
pub struct Agent {
    spec: AgentSpec,
    process: Process,
}

impl AgentSpec {
    /// An agent for a node of this name.
    pub fn new(node: &str, source: Source) -> Result<Self> {
        Ok(Self {
            binary: binary()?,
            node: node.into(),
            source,
            place: Vec::new(),
            args: Vec::new(),
            environment: Vec::new(),
            cgroup_path: None,
            netns_path: None,
        })
    }

    /// The namespace that is its node.
    #[must_use]
    pub fn netns(self, path: &Path) -> Self {
        self.place("--netns", path)
    }

    /// The cgroup whose sockets it serves.
    #[must_use]
    pub fn cgroup(self, path: &Path) -> Self {
        self.place("--cgroup", path)
    }

    /// Where it pins its maps and links.
    #[must_use]
    pub fn bpffs(self, path: &Path) -> Self {
        self.place("--bpffs", path)
    }

    /// The cgroup that its own process runs in.
    pub fn runs_in(mut self, cgroup: &Cgroup) -> Result<Self> {
        self.cgroup_path = Some(cgroup.path().to_owned());
        Ok(self)
    }

    /// The network namespace that its own process is started in, where the API server is there.
    #[must_use]
    pub fn starts_in(mut self, netns: &Netns) -> Self {
        self.netns_path = Some(netns.path());
        self
    }

    /// A further argument of `run`.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts it and waits until it has programmed a complete list.
    pub fn start(self) -> Result<Agent> {
        let agent = self.start_unsynced()?;
        agent.wait_synced(SYNC_WITHIN)?;
        Ok(agent)
    }

    /// Starts it without waiting.
    pub fn start_unsynced(self) -> Result<Agent> {
        let process = self.spawn()?;
        Ok(Agent { spec: self, process })
    }

    fn spawn(&self) -> Result<Process> {
        let (flag, path) = match &self.source {
            Source::Manifests(path) => ("--manifests", path),
            Source::Kubeconfig(path) => ("--kubeconfig", path),
        };
        self.launch()?
            .arg("run")
            .args(&self.place)
            .args(["--node-name", &self.node])
            .arg(flag)
            .arg(path)
            .args(&self.args)
            .spawn()
    }

    fn launch(&self) -> Result<Launch> {
        let mut launch = Launch::new(&format!("lb-agent of {}", self.node), &self.binary);
        if let Some(path) = &self.cgroup_path {
            launch = launch.cgroup_at(path)?;
        }
        if let Some(path) = &self.netns_path {
            launch = launch.netns_at(path)?;
        }
        for (name, value) in &self.environment {
            launch = launch.env(name, value);
        }
        Ok(launch)
    }

    fn place(mut self, flag: &str, path: &Path) -> Self {
        self.place.extend([OsString::from(flag), path.into()]);
        self
    }
}

impl Agent {
    /// Waits until this process has programmed a complete list.
    pub fn wait_synced(&self, deadline: Duration) -> Result<()> {
        let synced = |line: &str| line.contains("synced");
        self.process
            .stderr()
            .wait("line with \"synced\" from the agent", deadline, synced)
            .map(drop)
    }

    /// Its log.
    pub fn log(&self) -> &Lines {
        self.process.stderr()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Kills it as `kill -9` does; what is pinned stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(STOP_WITHIN)
    }

    /// Starts it again after [`Agent::kill`] or [`Agent::stop`], and waits until it is in sync.
    pub fn restart(&mut self) -> Result<()> {
        self.process = self.spec.spawn()?;
        self.wait_synced(SYNC_WITHIN)
    }

    /// Runs one of its other commands (`status`, `services`, `explain`, `cleanup`) for this node;
    /// its standard output.
    pub fn command(&self, command: &str, args: &[&str]) -> Result<String> {
        self.launch(command, args)?
            .output(COMMAND_WITHIN)
            .with_context(|| format!("lb-agent {command} {}", args.join(" ")))
    }

    /// As [`Agent::command`], whatever its exit status; that and its standard output.
    pub fn command_any(&self, command: &str, args: &[&str]) -> Result<(ExitStatus, String)> {
        self.launch(command, args)?
            .output_any(COMMAND_WITHIN)
            .with_context(|| format!("lb-agent {command} {}", args.join(" ")))
    }

    fn launch(&self, command: &str, args: &[&str]) -> Result<Launch> {
        Ok(self.spec.launch()?.arg(command).args(&self.spec.place).args(args))
    }
}

/// The program `lb-agent`: `MILLRACE_AGENT`, or beside the program that runs now.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MILLRACE_AGENT") {
        return Ok(path.into());
    }
    peer::beside_this("lb-agent").context("build it: `cargo xtask build`")
}
