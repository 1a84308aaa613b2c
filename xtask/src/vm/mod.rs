//! `vm`: do the kernel programs load and decide alike on other kernels?
//!
//! QEMU and kernels are Debian packages, unpacked below `target/vm` beside the system. A machine
//! has no disk: an initramfs holds the test binaries, which run as its only process.

mod cards;
mod initramfs;
mod packages;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::preflight::Facts;
use crate::sh::{self, Finished, say};
use crate::{build, setup, workspace};

/// From start to power-off; emulated machines take 4 to 12 minutes where nothing else runs.
const LIMIT: Duration = Duration::from_hours(1);
const MEMORY_MIB: u32 = 2048;
const CPUS: u32 = 2;

/// Run the tests of packets and of network cards on other kernels, in emulated machines
///
/// Fetches QEMU and the kernels from Debian once and unpacks them below target/vm; nothing is
/// installed.
/// Run as root, the machines have network cards, and XDP is tried on them.
/// Arguments after `--` go to the test binaries, for example a part of a test's name.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this kernel
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Fetch QEMU and the kernel again, in their newest versions
    #[arg(long)]
    refresh: bool,
    /// Run this test binary instead of those of the project
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Arguments of the test binaries
    #[arg(last = true, value_name = "TEST ARGUMENTS")]
    tests: Vec<String>,
}

/// A kernel to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// The oldest that the programs are made for, from Debian 11
    #[value(name = "5.10")]
    Oldest,
    /// The newest of Debian sid
    Newest,
}

impl Kernel {
    pub(crate) const ALL: [Self; 2] = [Self::Oldest, Self::Newest];

    fn suite(self) -> &'static str {
        match self {
            Self::Oldest => "bullseye",
            Self::Newest => "sid",
        }
    }

    /// How versions of this kernel begin.
    fn version(self) -> &'static str {
        match self {
            Self::Oldest => "5.10.",
            Self::Newest => "",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oldest => "5.10",
            Self::Newest => "newest",
        })
    }
}

/// Runs the command.
pub(crate) fn main(arguments: &Arguments) -> Result<std::process::ExitCode> {
    let binaries = if let Some(binary) = &arguments.binary {
        vec![binary.clone()]
    } else {
        setup::ensure(&Facts::gather())?;
        tests()?
    };
    let kernels = arguments.kernel.map_or_else(|| Kernel::ALL.to_vec(), |kernel| vec![kernel]);
    let mut failed = false;
    for kernel in kernels {
        let machine = Machine::prepare(kernel, arguments.refresh)?;
        let finished = machine.run(&binaries, &arguments.tests)?;
        println!("{}", finished.transcript.trim_end());
        let verdict = if finished.success { "passed" } else { &finished.status };
        println!("kernel {kernel}: {verdict}\n");
        failed |= !finished.success;
    }
    Ok(std::process::ExitCode::from(u8::from(failed)))
}

/// The test binaries of `lb-testbed/tests/golden*.rs` and `cards.rs`, freshly built, with the agent.
pub(crate) fn tests() -> Result<Vec<PathBuf>> {
    build::all(false, false)?;
    let mut cargo = sh::cargo()?;
    cargo.args(["test", "--no-run", "--package", "lb-testbed"]);
    cargo.args(["--test", "golden*", "--test", "cards"]);
    cargo.arg("--message-format=json-render-diagnostics");
    let finished = sh::run("building the tests for other kernels", &mut cargo)?;
    let binaries = executables(&finished.stdout);
    if binaries.is_empty() {
        bail!("lb-testbed/tests holds no golden*.rs, so there is nothing to run");
    }
    Ok(binaries)
}

/// Paths of what cargo built, from its messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// A machine with one kernel, ready to boot.
pub(crate) struct Machine {
    kernel: Kernel,
    /// The root of QEMU's own unpacked files.
    qemu: PathBuf,
    /// The root of the kernel's unpacked packages.
    files: PathBuf,
}

impl Machine {
    /// Fetches what is not there yet. An error means that it cannot be had here.
    pub(crate) fn prepare(kernel: Kernel, refresh: bool) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the emulated machines are x86-64 only; this is {}", std::env::consts::ARCH);
        }
        let folder = workspace::target().join("vm");
        let qemu = folder.join("qemu");
        packages::unpack(&qemu, refresh, &packages::qemu())?;
        let files = folder.join(format!("kernel-{kernel}"));
        packages::unpack(&files, refresh, &packages::kernel(kernel.suite(), kernel.version()))?;
        Ok(Self { kernel, qemu, files })
    }

    /// Boots, runs each binary with one test at a time, and powers off.
    pub(crate) fn run(&self, binaries: &[PathBuf], arguments: &[String]) -> Result<Finished> {
        let lack = cards::lack();
        if let Some(lack) = &lack {
            say("cards", &format!("none, so that XDP is not tried: {lack}"));
        }
        let image = initramfs::Image {
            busybox: self.qemu.join("usr/bin/busybox"),
            kernel: &self.files,
            binaries,
            arguments,
            ip: if lack.is_none() { cards::ip() } else { None },
        };
        let initrd = workspace::target().join(format!("vm/initramfs-{}", self.kernel));
        fs::write(&initrd, image.build()?)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let vmlinuz = packages::find(&self.files, |name| name.starts_with("vmlinuz"))
            .with_context(|| format!("{} holds no kernel", self.files.display()))?;
        let what = format!("tests on kernel {}", self.kernel);
        say("boot", &sh::text(&vmlinuz));
        let mut qemu = self.command(&vmlinuz, &initrd, lack.is_none());
        let mut finished = sh::attempt(&what, &mut qemu, Some(LIMIT))?;
        finished.transcript = printable(&finished.transcript);
        judge(&mut finished, binaries.len());
        Ok(finished)
    }

    fn command(&self, vmlinuz: &Path, initrd: &Path, with_cards: bool) -> Command {
        let root = &self.qemu;
        let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib", "lib/x86_64-linux-gnu"]
            .map(|folder| sh::text(&root.join(folder)))
            .join(":");
        // QEMU runs with the C library of its own Debian release, whatever this system has.
        let loader = root.join("usr/lib64/ld-linux-x86-64.so.2");
        let mut command = if with_cards { cards::plugged(&loader) } else { Command::new(loader) };
        command
            .args(["--library-path", &libraries])
            .arg(root.join("usr/bin/qemu-system-x86_64"))
            .arg("-L")
            .arg(root.join("usr/share/qemu"))
            .arg("-L")
            .arg(root.join("usr/share/seabios"))
            // Emulation: nested KVM is missing or unreliable on many machines.
            .args(["-accel", "tcg", "-cpu", "max", "-smp", &CPUS.to_string()])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(["-nic", "none", "-nographic", "-no-reboot"])
            .arg("-kernel")
            .arg(vmlinuz)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", "console=ttyS0 quiet panic=-1"]);
        if with_cards {
            command.args(cards::arguments());
        }
        sh::clean(&mut command);
        command
    }
}

/// Console output without carriage returns and escape sequences: the firmware's clear the screen.
fn printable(console: &str) -> String {
    let mut parts = console.split('\x1b');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `ESC [ parameters letter`, or `ESC letter`.
        let rest = part.strip_prefix('[').unwrap_or(part);
        let end = rest.find(|c: char| c.is_ascii_alphabetic());
        text.push_str(end.and_then(|end| rest.get(end + 1..)).unwrap_or_default());
    }
    text.replace('\r', "")
}

/// QEMU's own exit code says nothing of the tests: their marks on the console do.
fn judge(finished: &mut Finished, binaries: usize) {
    let marks: Vec<&str> = finished
        .transcript
        .lines()
        .filter_map(|line| line.trim().strip_prefix(initramfs::MARK))
        .map(str::trim)
        .collect();
    if finished.success && marks.len() < binaries {
        finished.status = String::from("the machine stopped before its tests ended");
    } else if let Some(code) = marks.iter().find(|code| **code != "0") {
        finished.status = format!("tests ended with exit code {code}");
    } else {
        return;
    }
    finished.success = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(success: bool, transcript: &str) -> Finished {
        let mut finished = Finished {
            success,
            status: "stopped after 180 s".into(),
            stdout: String::new(),
            transcript: transcript.into(),
        };
        judge(&mut finished, 2);
        finished
    }

    #[test]
    fn all_marks_must_be_there_and_zero() {
        let mark = initramfs::MARK;
        assert!(console(true, &format!("a\n{mark} 0\n{mark} 0\n")).success);
        let failed = console(true, &format!("{mark} 0\n{mark} 101\n"));
        assert!(!failed.success && failed.status.contains("101"));
        let panicked = console(true, &format!("{mark} 0\nKernel panic"));
        assert!(!panicked.success && panicked.status.contains("before"));
        let hung = console(false, &format!("{mark} 0\n"));
        assert!(!hung.success && hung.status.contains("180 s"));
    }

    #[test]
    fn the_firmwares_escape_sequences_are_taken_out() {
        let console = "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\ntest a ... ok\r\n";
        assert_eq!(printable(console), "SeaBIOS\ntest a ... ok\n");
    }

    #[test]
    fn test_binaries_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/t/debug/testbed-peer"}
{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/debug/deps/golden-1"}
not json
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [PathBuf::from("/t/debug/deps/golden-1")]);
    }
}
