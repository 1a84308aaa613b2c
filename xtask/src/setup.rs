//! `setup`: what building and testing needs, fetched or built once and checked ever after.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::debian;
use crate::preflight::{self, Facts};
use crate::sh::{self, say};
use crate::workspace;

/// The linker of the kernel programs; it must be built for the LLVM major version of the compiler.
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVM: u32 = 22;

/// Set up this checkout: compiler component, BPF linker, optional packages
///
/// Does nothing that is already done.
/// Everything it builds goes below target/; only rustup's own toolchain and, with --packages,
/// Debian packages are touched outside.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Install the Debian packages that some tests use (as root, where apt-get is there)
    #[arg(long)]
    packages: bool,
}

/// Runs the command.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let facts = Facts::gather();
    ensure(&facts)?;
    debian::test_packages(&facts, arguments.packages)?;
    for problem in facts.problems(&preflight::DATAPATH) {
        say("note", &format!("to load programs here: {problem}"));
    }
    Ok(())
}

/// What every build needs: compiler, its sources, a C linker, the BPF linker.
pub(crate) fn ensure(facts: &Facts) -> Result<()> {
    facts.require(&preflight::BUILD)?;
    let sysroot = toolchain()?;
    rust_src(&sysroot)?;
    bpf_linker(&sysroot)
}

/// The linker that [`ensure`] built.
pub(crate) fn bpf_linker_path() -> PathBuf {
    workspace::tools().join("bin/bpf-linker")
}

fn toolchain() -> Result<PathBuf> {
    let version = workspace::toolchain()?;
    if let Ok(sysroot) = sysroot() {
        say("ok", &format!("Rust {version}"));
        return Ok(sysroot);
    }
    say("install", &format!("Rust {version}, through rustup"));
    let components = ["rustfmt", "clippy", "rust-src"];
    let mut rustup = rustup();
    rustup.args(["toolchain", "install", &version, "--profile", "minimal"]);
    for component in components {
        rustup.args(["--component", component]);
    }
    sh::run(&format!("fetching Rust {version}"), &mut rustup)?;
    sysroot()
}

/// The folder of the pinned compiler.
pub(crate) fn sysroot() -> Result<PathBuf> {
    let version = workspace::toolchain()?;
    sh::query(sh::rustc()?.args(["--print", "sysroot"]))
        .map(PathBuf::from)
        .with_context(|| format!("rustc {version} does not run; try `cargo xtask setup`"))
}

fn rustup() -> Command {
    let mut command = Command::new("rustup");
    sh::clean(&mut command);
    command
}

/// There is no compiled `core` for the BPF target: it is built from source with the programs.
fn rust_src(sysroot: &Path) -> Result<()> {
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if core.exists() {
        say("ok", "component rust-src");
        return Ok(());
    }
    say("install", "component rust-src, through rustup");
    let version = workspace::toolchain()?;
    sh::run(
        "fetching rust-src",
        rustup().args(["component", "add", "rust-src", "--toolchain", &version]),
    )?;
    Ok(())
}

fn bpf_linker(sysroot: &Path) -> Result<()> {
    let stamp = format!("bpf-linker {BPF_LINKER} for the LLVM in {}\n", sysroot.display());
    let stamp_path = workspace::tools().join("bpf-linker.stamp");
    let built = fs::read_to_string(&stamp_path).is_ok_and(|found| found == stamp);
    if built && bpf_linker_runs() {
        say("ok", &format!("bpf-linker {BPF_LINKER}"));
        return Ok(());
    }
    say("build", &format!("bpf-linker {BPF_LINKER} into target/tools, about a minute"));
    let llvm = llvm_folder(sysroot)?;
    let tools = workspace::tools();
    let scratch = tools.join("build");
    let mut install = sh::cargo()?;
    install
        .args(["install", "bpf-linker", "--locked", "--force", "--version"])
        .arg(BPF_LINKER)
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{BPF_LINKER_LLVM}"))
        .arg("--root")
        .arg(&tools)
        .env("LLVM_PREFIX", &llvm)
        .env("CARGO_TARGET_DIR", &scratch)
        .env_remove("RUSTFLAGS")
        // The linker finds the compiler's LLVM at run time where it is now.
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}/lib", sysroot.display()));
    sh::run("building bpf-linker", &mut install)?;
    if !bpf_linker_runs() {
        bail!(
            "{} was built but does not run; delete {} and try again",
            bpf_linker_path().display(),
            tools.display()
        );
    }
    if scratch.exists() {
        fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot delete {}", scratch.display()))?;
    }
    fs::write(&stamp_path, stamp)
        .with_context(|| format!("cannot write {}", stamp_path.display()))?;
    Ok(())
}

fn bpf_linker_runs() -> bool {
    let mut command = Command::new(bpf_linker_path());
    command.arg("--version");
    sh::clean(&mut command);
    sh::query(&mut command).is_some_and(|version| version.contains(BPF_LINKER))
}

/// A folder laid out as an LLVM installation, with nothing in it but the compiler's own libLLVM.
///
/// rustup ships the library without the name that linkers look for.
fn llvm_folder(sysroot: &Path) -> Result<PathBuf> {
    let library = compilers_llvm(&sysroot.join("lib"))?;
    let folder = workspace::tools().join("llvm");
    let lib = folder.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    symlink(&library, &link).with_context(|| format!("cannot make {}", link.display()))?;
    Ok(folder)
}

fn compilers_llvm(lib: &Path) -> Result<PathBuf> {
    let wanted = format!("libLLVM.so.{BPF_LINKER_LLVM}");
    let entries = fs::read_dir(lib).with_context(|| format!("cannot list {}", lib.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
        .map(|entry| entry.path())
        .with_context(|| {
            format!(
                "{} holds no {wanted}*: the compiler must come from rustup (a distribution's \
                 compiler brings no LLVM of its own); see https://rustup.rs",
                lib.display()
            )
        })
}
