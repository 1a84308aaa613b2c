//! `test`: every check and every test, cheapest first, each as one stage of a report.

mod matrix;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::preflight::{self, DATAPATH, Facts};
use crate::sh::{self, say};
use crate::{build, debian, object, run, setup, tidy, vm, workspace};
use report::{Outcome, Report};

/// Tests of real sockets in namespaces, once they are built; far more than they take on a slow
/// machine.
const ROOT_LIMIT: Duration = Duration::from_mins(45);

/// What names a folder with kube-apiserver and etcd, by the convention of `setup-envtest`.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Set up, build and run every check and every test
///
/// Tests of the kernel programs need root: they run through sudo when this is not root.
/// Two virtual machines run them on other kernels, where QEMU and kernels can be had.
/// What is skipped is told, with the reason; where the variable CI is set, only the API server's
/// tests may be.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains this, and no other check
    filter: Option<String>,
    /// Leave out the virtual machines
    #[arg(long)]
    no_vm: bool,
    /// Run only the matrix of the Service contract, real clients against real Services, and show
    /// what became of each
    #[arg(long, conflicts_with = "filter")]
    matrix: bool,
}

/// Runs the command.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let facts = Facts::gather();
    if arguments.matrix {
        return matrix::show(&facts);
    }
    let datapath = facts.problems(&DATAPATH);
    if !facts.root && datapath.is_empty() {
        say("sudo", "tests of the kernel programs need root");
        sh::sudo_ticket()?;
    }
    let tests = Tests {
        filter: arguments.filter.as_deref(),
        lack: (!datapath.is_empty()).then(|| preflight::list(&datapath)),
        sudo: !facts.root,
    };

    let mut report = Report::new(std::env::var_os("CI").is_some());
    report.stage("setup", || {
        setup::ensure(&facts)?;
        debian::test_packages(&facts, facts.root)?;
        Ok(Outcome::done())
    });
    if !report.failed() {
        report.stage("build", || build::all(false, false).map(|_| Outcome::done()));
    }
    if report.failed() {
        return Ok(report.finish());
    }
    if tests.filter.is_none() {
        checks(&mut report);
    }
    report.stage("host tests", || tests.host());
    report.stage("sweep", || tests.sweep());
    report.stage("root tests", || tests.root());
    report.stage("API server tests", || tests.api_server());
    report.stage("leftovers", || tests.leftovers());
    virtual_machines(&mut report, arguments);
    Ok(report.finish())
}

/// Everything that reads the sources or the object without running them.
fn checks(report: &mut Report) {
    report.stage("format", || {
        Ok(Outcome::of(&sh::attempt(
            "checking the format",
            sh::cargo()?.args(["fmt", "--all", "--check"]),
            None,
        )?))
    });
    report.stage("clippy", || {
        let mut clippy = sh::cargo()?;
        clippy.args(["clippy", "--workspace", "--exclude", "lb-ebpf"]).args([
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        Ok(Outcome::of(&sh::attempt("clippy", &mut clippy, None)?))
    });
    report.stage("clippy, BPF target", || {
        let mut clippy = build::bpf_cargo("clippy")?;
        clippy.args(["--", "-D", "warnings"]);
        let what = "clippy of the kernel programs";
        Ok(Outcome::of(&sh::attempt(what, &mut clippy, None)?))
    });
    report.stage("tidy", || tidy::check().map(|()| Outcome::done()));
    report.stage("instructions", || {
        object::inspect(&workspace::object())?.compare_with_record()?;
        Ok(Outcome::done())
    });
    report.stage("dependencies", || {
        if sh::query(sh::cargo()?.args(["deny", "--version"])).is_none() {
            return Ok(Outcome::skipped_anywhere(
                "cargo-deny is not installed; get it with `cargo install cargo-deny --locked`",
            ));
        }
        let mut deny = sh::cargo()?;
        // Advisories change without us, and come from the network: they are no test of a change.
        deny.args(["deny", "--workspace", "check", "bans", "licenses", "sources"]);
        Ok(Outcome::of(&sh::attempt("cargo deny", &mut deny, None)?))
    });
}

fn virtual_machines(report: &mut Report, arguments: &Arguments) {
    let reason = if arguments.no_vm {
        Some("left out by --no-vm")
    } else if arguments.filter.is_some() {
        Some("left out with a filter; use `cargo xtask vm -- FILTER`")
    } else {
        None
    };
    for kernel in vm::Kernel::ALL {
        report.stage(&format!("kernel {kernel}"), || {
            if let Some(reason) = reason {
                return Ok(Outcome::skipped_anywhere(reason));
            }
            let machine = match vm::Machine::prepare(kernel, false) {
                Ok(machine) => machine,
                Err(error) => return Ok(Outcome::skipped(&format!("{error:#}"))),
            };
            Ok(Outcome::of(&machine.run(&vm::tests()?, &[])?))
        });
    }
}

/// How tests run here.
struct Tests<'a> {
    filter: Option<&'a str>,
    /// Why tests of the kernel programs cannot run, if they cannot.
    lack: Option<String>,
    sudo: bool,
}

impl Tests<'_> {
    /// Tests that need nothing.
    fn host(&self) -> Result<Outcome> {
        let mut cargo = sh::cargo()?;
        cargo.args(["test", "--no-fail-fast"]);
        for package in ["lb-common", "lb-object", "lb-agent", "xtask"] {
            cargo.args(["--package", package]);
        }
        cargo.arg("--").args(self.filter);
        Ok(Outcome::of(&sh::attempt("host tests", &mut cargo, None)?))
    }

    /// Removes what a killed run left, or this one would trip over it.
    fn sweep(&self) -> Result<Outcome> {
        if let Some(lack) = &self.lack {
            return Ok(Outcome::skipped(lack));
        }
        let report = self.run_sweep()?;
        for line in report.lines() {
            say("swept", line);
        }
        Ok(Outcome::done())
    }

    /// Tests with real namespaces, sockets and programs.
    fn root(&self) -> Result<Outcome> {
        if let Some(lack) = &self.lack {
            return Ok(Outcome::skipped(lack));
        }
        let targets: Vec<String> =
            testbed_targets()?.into_iter().filter(|target| !is_api_server(target)).collect();
        self.testbed("tests in namespaces", &["--lib", "--bins"], &targets)
    }

    /// Tests against a real control plane.
    fn api_server(&self) -> Result<Outcome> {
        let targets: Vec<String> =
            testbed_targets()?.into_iter().filter(|target| is_api_server(target)).collect();
        if let Some(reason) = no_assets() {
            return Ok(Outcome::skipped_anywhere(&reason));
        }
        if let Some(lack) = &self.lack {
            return Ok(Outcome::skipped(lack));
        }
        if targets.is_empty() {
            return Ok(Outcome::skipped("lb-testbed/tests holds no *apiserver*.rs"));
        }
        self.testbed("tests with an API server", &[], &targets)
    }

    /// Builds tests of lb-testbed for as long as it takes, and runs them for a limited time.
    fn testbed(&self, what: &str, others: &[&str], targets: &[String]) -> Result<Outcome> {
        let cargo = || {
            let mut cargo = self.privileged_cargo("test")?;
            cargo.args(["--package", "lb-testbed", "--no-fail-fast"]).args(others);
            for target in targets {
                cargo.args(["--test", target]);
            }
            anyhow::Ok(cargo)
        };
        let built = sh::attempt(&format!("building {what}"), cargo()?.arg("--no-run"), None)?;
        if !built.success {
            return Ok(Outcome::of(&built));
        }
        let mut run = cargo()?;
        run.arg("--").args(self.filter);
        Ok(Outcome::of(&sh::attempt(what, &mut run, Some(ROOT_LIMIT))?))
    }

    /// Fails when the tests of this run left something behind, and removes it.
    fn leftovers(&self) -> Result<Outcome> {
        if let Some(lack) = &self.lack {
            return Ok(Outcome::skipped(lack));
        }
        let left = self.run_sweep()?;
        if left.trim().is_empty() {
            return Ok(Outcome::done());
        }
        anyhow::bail!("tests left something behind, which is removed now:\n{left}")
    }

    fn run_sweep(&self) -> Result<String> {
        let mut cargo = self.privileged_cargo("run")?;
        cargo.args(["--quiet", "--package", "lb-testbed"]);
        cargo.args(["--bin", "testbed-sweep"]);
        Ok(sh::run("sweeping up", &mut cargo)?.stdout)
    }

    /// Cargo builds as the user, and starts what it built as root.
    fn privileged_cargo(&self, command: &str) -> Result<std::process::Command> {
        let mut cargo = sh::cargo()?;
        cargo.arg(command);
        if self.sudo {
            cargo.env(run::runner_variable()?, "sudo -E");
        }
        Ok(cargo)
    }
}

/// Names of the integration tests of lb-testbed.
fn testbed_targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("lb-testbed/tests");
    let mut targets = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into());
            if let (Some(stem), Some("rs")) = (stem, path.extension().and_then(|e| e.to_str())) {
                targets.push(stem);
            }
        }
    }
    targets.sort();
    Ok(targets)
}

fn is_api_server(target: &str) -> bool {
    target.contains("apiserver")
}

fn no_assets() -> Option<String> {
    let how = format!(
        "get kube-apiserver and etcd with `setup-envtest use -p path` and set {ASSETS} to the \
         folder it prints"
    );
    match std::env::var_os(ASSETS).map(PathBuf::from) {
        None => Some(format!("{ASSETS} is not set; {how}")),
        Some(folder) if !folder.join("kube-apiserver").is_file() => Some(format!(
            "{ASSETS} names {}, which holds no kube-apiserver; {how}",
            folder.display()
        )),
        Some(_) => None,
    }
}
