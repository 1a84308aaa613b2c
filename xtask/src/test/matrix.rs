//! `test --matrix`: what becomes of every kind of connection, as a table, with Millrace and, where
//! `KUBEBUILDER_ASSETS` is set, with kube-proxy?

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::preflight::{DATAPATH, Facts};
use crate::run::as_root;
use crate::sh::{self, say};
use crate::{build, debian, setup, workspace};

/// Sets up and builds what is missing, makes the connections, shows the table. Fails where a cell is
/// not what the contract says.
pub(super) fn show(facts: &Facts) -> Result<ExitCode> {
    facts.require(&DATAPATH)?;
    setup::ensure(facts)?;
    debian::test_packages(facts, true)?;
    let agent = build::all(false, false)?;
    let mut cargo = sh::cargo()?;
    cargo.args(["build", "--package", "lb-testbed"]);
    cargo.args(["--bin", "testbed-matrix", "--bin", "testbed-peer"]);
    sh::run("build the matrix", &mut cargo)?;
    let program = workspace::host_target().join("debug/testbed-matrix");
    say("matrix", "every kind of connection in clusters made out of namespaces");
    let status = as_root(facts, &program)
        .env("MILLRACE_AGENT", &agent)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
