//! Runs other programs: quiet when they work, with a progress line when they take their time, and
//! with everything they said when they fail.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::preflight;
use crate::workspace;

/// What a finished program left.
pub(crate) struct Finished {
    /// Did it exit with 0?
    pub(crate) success: bool,
    /// Why not, for people.
    pub(crate) status: String,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Standard output and standard error in the order in which they came.
    pub(crate) transcript: String,
}

/// Prints one line of what is being done: a short verb, then its object.
pub(crate) fn say(verb: &str, text: &str) {
    eprintln!("{verb:>10}  {text}");
}

/// Cargo of the pinned toolchain, run in the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new("cargo");
    command.env("RUSTUP_TOOLCHAIN", workspace::toolchain()?).current_dir(workspace::root());
    clean(&mut command);
    Ok(command)
}

/// The compiler of the pinned toolchain.
pub(crate) fn rustc() -> Result<Command> {
    let mut command = Command::new("rustc");
    command.env("RUSTUP_TOOLCHAIN", workspace::toolchain()?);
    clean(&mut command);
    Ok(command)
}

/// The target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let version = query(rustc()?.arg("-vV")).context("rustc does not run")?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}

/// Takes away what `cargo run` set for this process.
///
/// `LD_LIBRARY_PATH` names the compiler's own libraries: a tool that only works with it would pass
/// every check here and fail when cargo starts it.
pub(crate) fn clean(command: &mut Command) {
    for name in ["LD_LIBRARY_PATH", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
}

/// Runs `command` and fails, showing what it said, unless it exits with 0.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Finished> {
    let finished = attempt(what, command, None)?;
    if !finished.success {
        eprintln!("{}", finished.transcript.trim_end());
        let status = &finished.status;
        match preflight::network_advice(&finished.transcript) {
            Some(advice) => bail!("{what}: {status}. {advice}"),
            None => bail!("{what}: {status}; its output is above"),
        }
    }
    Ok(finished)
}

/// Runs `command` to its end, or to `limit`, whatever its exit code.
pub(crate) fn attempt(
    what: &str,
    command: &mut Command,
    limit: Option<Duration>,
) -> Result<Finished> {
    let program = command.get_program().to_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| not_started(what, &program))?;
    collect(what, child, limit)
}

/// Standard output of a quick query, or `None` when the program is missing or fails.
pub(crate) fn query(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Is there a program of this name in `PATH`, or where Debian keeps those for root?
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| folder.join(name).is_file())
}

/// Asks for the password now, on the terminal, rather than below a progress line.
pub(crate) fn sudo_ticket() -> Result<()> {
    let status = Command::new("sudo")
        .arg("-v")
        .status()
        .context("cannot start sudo; run this as root, or install sudo")?;
    if !status.success() {
        bail!("sudo refused; run this as root, or as a user who may use sudo");
    }
    Ok(())
}

/// A path as text for messages and environment variables.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

fn not_started(what: &str, program: &OsStr) -> String {
    let program = program.display();
    format!("{what}: cannot start `{program}`; is it installed and in PATH?")
}

enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
}

fn collect(what: &str, mut child: Child, limit: Option<Duration>) -> Result<Finished> {
    let (sender, events) = sync_channel(1024);
    if let Some(pipe) = child.stdout.take() {
        forward(pipe, sender.clone(), Event::Out);
    }
    if let Some(pipe) = child.stderr.take() {
        forward(pipe, sender.clone(), Event::Err);
    }
    drop(sender);

    let mut progress = Progress::new(what);
    let mut stdout = Vec::new();
    let mut transcript = Vec::new();
    let overrun = drain(&mut child, &events, limit, &mut progress, |event| match event {
        Event::Out(line) => {
            stdout.extend_from_slice(&line);
            transcript.extend_from_slice(&line);
        }
        Event::Err(line) => transcript.extend_from_slice(&line),
    })?;
    let status = child.wait().with_context(|| format!("{what}: cannot wait for its end"))?;
    let success = status.success() && !overrun;
    progress.end(success);
    let status = match (overrun, limit) {
        (true, Some(limit)) => format!("stopped after {} s", limit.as_secs()),
        _ => format!("failed ({status})"),
    };
    Ok(Finished {
        success,
        status,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        transcript: String::from_utf8_lossy(&transcript).into_owned(),
    })
}

/// Passes on every line until both pipes close; true when the time limit ended it.
fn drain(
    child: &mut Child,
    events: &Receiver<Event>,
    limit: Option<Duration>,
    progress: &mut Progress,
    mut sink: impl FnMut(Event),
) -> Result<bool> {
    let started = Instant::now();
    let mut idle_after_exit = 0;
    loop {
        match events.recv_timeout(Duration::from_millis(500)) {
            Ok(event) => {
                let (Event::Out(line) | Event::Err(line)) = &event;
                progress.detail(line);
                sink(event);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                // A grandchild that outlives the program may hold the pipes open for ever.
                if child.try_wait()?.is_some() {
                    idle_after_exit += 1;
                    if idle_after_exit > 4 {
                        return Ok(false);
                    }
                }
            }
        }
        progress.tick();
        if limit.is_some_and(|limit| started.elapsed() > limit) {
            child.kill().context("cannot stop it")?;
            return Ok(true);
        }
    }
}

fn forward(
    pipe: impl Read + Send + 'static,
    sender: SyncSender<Event>,
    wrap: impl Fn(Vec<u8>) -> Event + Send + 'static,
) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            if sender.send(wrap(std::mem::take(&mut line))).is_err() {
                return;
            }
        }
    });
}

/// One line for whatever takes longer than a second: rewritten in place on a terminal, repeated
/// now and then in a log.
struct Progress<'a> {
    what: &'a str,
    started: Instant,
    shown: Option<Instant>,
    detail: String,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn new(what: &'a str) -> Self {
        Self {
            what,
            started: Instant::now(),
            shown: None,
            detail: String::new(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn detail(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        // Machine-readable lines say nothing to people.
        if !line.trim().is_empty() && !line.starts_with('{') {
            self.detail = line.trim().chars().take(60).collect();
        }
    }

    fn tick(&mut self) {
        let (first, pause) = if self.terminal { (1, 1) } else { (1, 30) };
        let due = match self.shown {
            None => self.started.elapsed() >= Duration::from_secs(first),
            Some(shown) => shown.elapsed() >= Duration::from_secs(pause),
        };
        if !due {
            return;
        }
        let again = self.shown.replace(Instant::now()).is_some();
        let seconds = self.started.elapsed().as_secs();
        let Self { what, detail, .. } = self;
        if self.terminal {
            eprint!("\r\x1b[2K{:>10}  {what} ({seconds} s) {detail}", "");
            // Only this line is lost when standard error is gone.
            drop(std::io::stderr().flush());
        } else if again {
            say("", &format!("{what} ({seconds} s) {detail}"));
        } else {
            say("", &format!("{what} ..."));
        }
    }

    fn end(&self, success: bool) {
        if self.shown.is_none() {
            return;
        }
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        let verb = if success { "done" } else { "failed" };
        let seconds = self.started.elapsed().as_secs_f64();
        say(verb, &format!("{} ({seconds:.1} s)", self.what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_kept_apart_and_together() -> Result<()> {
        let finished = attempt("two lines", &mut shell("echo out; echo err >&2"), None)?;
        assert!(finished.success);
        assert_eq!(finished.stdout, "out\n");
        assert!(finished.transcript.contains("err\n"));
        Ok(())
    }

    #[test]
    fn a_failure_keeps_its_output_and_says_the_code() -> Result<()> {
        let finished = attempt("fails", &mut shell("echo why; exit 3"), None)?;
        assert!(!finished.success);
        assert!(finished.status.contains('3'), "{}", finished.status);
        assert_eq!(finished.transcript, "why\n");
        Ok(())
    }

    #[test]
    fn a_time_limit_ends_the_program() -> Result<()> {
        let limit = Some(Duration::from_millis(300));
        let mut command = Command::new("sleep");
        command.arg("60");
        let finished = attempt("sleeps", &mut command, limit)?;
        assert!(!finished.success);
        assert!(finished.status.contains("stopped after"));
        Ok(())
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = attempt("try", &mut Command::new("no-such-program-here"), None);
        let message = error.err().map(|error| format!("{error:#}"));
        assert!(message.is_some_and(|message| message.contains("no-such-program-here")));
    }
}
