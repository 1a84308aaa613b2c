//! How does a test run another program? In a namespace and a cgroup, with its output kept, dead
//! when the test is dead.
//!
//! The kernel's parent-death signal fires when the *thread* that forked ends, so every fork here is
//! made by one thread that lives as long as the process.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    cgroup::Cgroup,
    netns::Netns,
    sys::{self, ChildSetup},
    wait,
};

/// Lines of output kept per process and stream; older ones are dropped.
const KEPT_LINES: usize = 5_000;

/// A program to be started.
#[derive(Debug)]
pub struct Launch {
    label: String,
    command: Command,
    setup: ChildSetup,
}

/// A running program; killed on drop, its output printed when the test is failing.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// Output of one stream, line by line.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    shared: Arc<(Mutex<Kept>, Condvar)>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    /// Lines ever seen; the index of the line after the last one kept.
    seen: usize,
    ended: bool,
}

impl Launch {
    /// Prepares `program`; `label` names it in messages.
    pub fn new(label: &str, program: impl AsRef<Path>) -> Self {
        let mut command = Command::new(program.as_ref());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { label: label.into(), command, setup: ChildSetup::default() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Starts it in this network namespace.
    pub fn netns(self, netns: &Netns) -> Result<Self> {
        self.netns_at(&netns.path())
    }

    /// Starts it in the network namespace of this file.
    pub fn netns_at(mut self, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        self.setup.netns = Some(file.into());
        Ok(self)
    }

    /// Starts it in this cgroup.
    pub fn cgroup(self, cgroup: &Cgroup) -> Result<Self> {
        self.cgroup_at(cgroup.path())
    }

    /// Starts it in the cgroup of this folder.
    pub fn cgroup_at(mut self, path: &Path) -> Result<Self> {
        let path = path.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        self.setup.cgroup_procs = Some(file.into());
        Ok(self)
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Process> {
        let Self { label, mut command, setup } = self;
        sys::before_exec(&mut command, setup);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = on_spawner(move || command.spawn())?
            .with_context(|| format!("start {label}: cannot run {program}"))?;
        let stdout = child.stdout.take().map(Lines::collect).unwrap_or_default();
        let stderr = child.stderr.take().map(Lines::collect).unwrap_or_default();
        Ok(Process { label, child, stdout, stderr })
    }

    /// Runs it to its end; its standard output, or an error with its standard error stream.
    pub fn output(self, deadline: Duration) -> Result<String> {
        let (process, status) = self.end(deadline)?;
        if !status.success() {
            bail!("{} failed with {status}: {}", process.label, process.stderr.tail(20));
        }
        Ok(process.stdout.tail(KEPT_LINES))
    }

    /// Runs it to its end, whichever it is; its exit status and standard output.
    pub fn output_any(self, deadline: Duration) -> Result<(ExitStatus, String)> {
        let (process, status) = self.end(deadline)?;
        Ok((status, process.stdout.tail(KEPT_LINES)))
    }

    fn end(self, deadline: Duration) -> Result<(Process, ExitStatus)> {
        let mut process = self.spawn()?;
        drop(process.take_stdin());
        let status = process.wait(deadline)?;
        process.stdout.ended(deadline)?;
        process.stderr.ended(deadline)?;
        Ok((process, status))
    }
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output.
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// Its standard error stream.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// The writing end of its standard input; once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {} (pid {})", self.label, self.child.id());
        wait::until_some(&what, deadline, || self.child.try_wait().transpose())?
            .context("wait for a child process")
    }

    /// Asks it to end with SIGTERM and waits; kills it at the deadline and reports that.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            sys::kill(self.child.id(), libc::SIGTERM)
                .with_context(|| format!("stop {}", self.label))?;
        }
        self.wait(deadline).inspect_err(|_| self.kill_quietly())
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.label))?;
        self.child.wait().with_context(|| format!("wait for {}", self.label))?;
        Ok(())
    }

    fn kill_quietly(&mut self) {
        // Both fail only for a process that has been waited for already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_quietly();
        if thread::panicking() {
            for (stream, lines) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
                let tail = lines.tail(200);
                if !tail.is_empty() {
                    eprintln!("--- {} {stream}, last lines ---\n{tail}", self.label);
                }
            }
        }
    }
}

impl Lines {
    /// Reads `stream` to its end on a thread of its own.
    fn collect(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let target = lines.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut raw = Vec::new();
            while stream.read_until(b'\n', &mut raw).is_ok_and(|n| n > 0) {
                target.push(String::from_utf8_lossy(&raw).trim_end().to_owned());
                raw.clear();
            }
            target.lock().ended = true;
            target.shared.1.notify_all();
        });
        lines
    }

    /// How many lines there were so far: a mark for [`Lines::wait_from`].
    pub fn mark(&self) -> usize {
        self.lock().seen
    }

    /// The first line since the beginning that satisfies `wanted`; waits for it.
    pub fn wait(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        self.wait_from(0, what, deadline, wanted).map(|(line, _)| line)
    }

    /// The first line from `mark` on that satisfies `wanted`, and the mark after it.
    pub fn wait_from(
        &self,
        mark: usize,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(String, usize)> {
        let end = Instant::now() + deadline;
        let mut next = mark;
        let mut kept = self.lock();
        loop {
            let first = kept.seen - kept.lines.len();
            for (index, line) in kept.lines.iter().enumerate().skip(next.saturating_sub(first)) {
                if wanted(line) {
                    return Ok((line.clone(), first + index + 1));
                }
            }
            next = kept.seen;
            let left = end.saturating_duration_since(Instant::now());
            if kept.ended || left.is_zero() {
                let why = if kept.ended { "the process ended" } else { "the time is over" };
                let tail = tail_of(&kept, 20);
                bail!("no {what} within {deadline:?} ({why}); last lines:\n{tail}");
            }
            kept = self.shared.1.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last lines, joined.
    pub fn tail(&self, lines: usize) -> String {
        tail_of(&self.lock(), lines)
    }

    /// Every line kept.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    fn ended(&self, deadline: Duration) -> Result<()> {
        wait::until("the end of an output stream", deadline, || self.lock().ended)
    }

    fn push(&self, line: String) {
        let mut kept = self.lock();
        if kept.lines.len() == KEPT_LINES {
            kept.lines.pop_front();
        }
        kept.lines.push_back(line);
        kept.seen += 1;
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tail_of(kept: &Kept, lines: usize) -> String {
    let skip = kept.lines.len().saturating_sub(lines);
    kept.lines.iter().skip(skip).flat_map(|line| [line, "\n"]).collect()
}

/// Runs `job` on the thread that outlives all others.
fn on_spawner(
    job: impl FnOnce() -> io::Result<Child> + Send + 'static,
) -> Result<io::Result<Child>> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        jobs
    });
    let (answer, child) = mpsc::sync_channel(1);
    let gone = |_| anyhow!("the thread that starts processes is gone");
    spawner
        .send(Box::new(move || {
            // Nobody waits for the answer only when the asking thread is gone.
            drop(answer.send(job()));
        }))
        .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    child.recv().map_err(gone)
}
