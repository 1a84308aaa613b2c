//! `build`: the kernel programs as one object, then the agent with that object inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::object;
use crate::preflight::Facts;
use crate::setup;
use crate::sh::{self, say};
use crate::workspace;

const TARGET: &str = "bpfel-unknown-none";

/// Build the kernel programs and the agent that carries them
///
/// The programs become target/bpf/lb-ebpf.o, which is checked for code that the kernel would
/// refuse; the agent becomes target/debug/lb-agent, or target/release/lb-agent.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Optimise the agent; the kernel programs always are
    #[arg(long)]
    pub(crate) release: bool,
    /// Build the kernel programs with log calls (slower; for looking at single packets)
    #[arg(long)]
    pub(crate) debug: bool,
    /// Compare the instruction counts of the programs with docs/instructions.json
    #[arg(long, conflicts_with_all = ["record", "debug"])]
    check: bool,
    /// Write the instruction counts of the programs to docs/instructions.json
    #[arg(long, conflicts_with = "debug")]
    record: bool,
}

/// Runs the command.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&Facts::gather())?;
    let object = programs(arguments.debug)?;
    let counts = object::inspect(&object)?;
    print!("{}", counts.table());
    if arguments.record {
        counts.record()?;
    }
    if arguments.check {
        counts.compare_with_record()?;
    }
    agent(arguments.release, arguments.debug)
}

/// Programs and agent without the table, for the commands that need them built; the agent's path.
pub(crate) fn all(release: bool, debug: bool) -> Result<PathBuf> {
    let object = programs(debug)?;
    object::inspect(&object)?;
    agent(release, debug)?;
    Ok(workspace::agent(release))
}

/// Builds the kernel programs; their object's path.
pub(crate) fn programs(debug: bool) -> Result<PathBuf> {
    let mut cargo = bpf_cargo("build")?;
    cargo.args(["--profile", "bpf"]);
    if debug {
        cargo.args(["--features", "log"]);
    }
    sh::run("building the kernel programs", &mut cargo)?;
    let built = workspace::bpf().join(TARGET).join("bpf/lb-ebpf");
    let object = if debug { workspace::debug_object() } else { workspace::object() };
    let stripped = workspace::bpf().join("stripped.o");
    strip(&built, &stripped)?;
    copy_if_changed(&stripped, &object)?;
    Ok(object)
}

/// Takes out the debug information for debuggers, most of the file; BTF stays. So does what it
/// tells of lines, without its relocations: these would name the places that it names already.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let sysroot = setup::sysroot()?;
    let host = sh::host()?;
    let mut objcopy = Command::new(sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy"));
    objcopy.args(["--strip-debug", "--remove-section=.rel.BTF.ext"]).arg(from).arg(to);
    // The compiler's own tool does not say where the compiler's LLVM is.
    objcopy.env("LD_LIBRARY_PATH", sysroot.join("lib"));
    sh::run("stripping the kernel programs", &mut objcopy)?;
    Ok(())
}

/// A cargo command for the kernel programs: `build` or `clippy`.
pub(crate) fn bpf_cargo(command: &str) -> Result<Command> {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // Becomes BTF, which maps with typed values and readable verifier logs need.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The default CPU lacks 32-bit jumps and atomics that return a value.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", setup::bpf_linker_path().display()),
    ];
    // The object must not depend on where things are on this machine.
    for (folder, name) in
        [(workspace::root(), "."), (workspace::cargo_home(), "cargo"), (setup::sysroot()?, "rust")]
    {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }

    let mut cargo = sh::cargo()?;
    cargo
        .args([command, "--package", "lb-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core"])
        // `build-std` and inline BPF assembly are unstable; the compiler stays the pinned one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", workspace::bpf());
    Ok(cargo)
}

/// Builds the agent. `lb-object/build.rs` finds the object at its usual place by itself: naming it
/// in the environment would make every build by plain cargo a different one.
fn agent(release: bool, debug: bool) -> Result<()> {
    let mut cargo = sh::cargo()?;
    cargo.args(["build", "--package", "lb-agent"]);
    if release {
        cargo.arg("--release");
    }
    if debug {
        cargo.args(["--features", "program-log"]);
        cargo.env("MILLRACE_BPF_OBJECT", workspace::debug_object());
    }
    sh::run("building the agent", &mut cargo)?;
    say("built", &sh::text(&workspace::agent(release)));
    Ok(())
}

/// An unchanged file keeps its time, and so spares a build of what embeds it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if new.is_empty() {
        bail!("{} is empty", from.display());
    }
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
