//! `demo`: the main job on this machine, in namespaces that are gone afterwards.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::preflight::{DATAPATH, Facts};
use crate::run::as_root;
use crate::sh::{self, say};
use crate::{build, debian, setup, workspace};

/// Show the main job: a cluster out of namespaces, agents, connections, a change, and no trace left
///
/// Sets up what is missing, builds, makes two nodes with two pods each, starts an agent for each
/// node on a dump of the cluster's objects, connects over TCP and UDP, IPv4 and IPv6, changes an
/// EndpointSlice, kills and restarts the agents, and takes everything down.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {}

/// Runs the command; its exit code is the demo's.
pub(crate) fn main(_: &Arguments) -> Result<ExitCode> {
    let facts = Facts::gather();
    facts.require(&DATAPATH)?;
    setup::ensure(&facts)?;
    debian::test_packages(&facts, true)?;
    let agent = build::all(false, false)?;
    let mut cargo = sh::cargo()?;
    cargo.args([
        "build",
        "--package",
        "lb-testbed",
        "--bin",
        "testbed-demo",
        "--bin",
        "testbed-peer",
    ]);
    sh::run("build the demo", &mut cargo)?;
    let demo = workspace::host_target().join("debug/testbed-demo");
    say("demo", "a Service on two nodes, made out of namespaces");
    let mut command = as_root(&facts, &demo);
    let status = command
        .env("MILLRACE_AGENT", &agent)
        .status()
        .with_context(|| format!("cannot start {}", demo.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
