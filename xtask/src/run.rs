//! `run`: the agent on this machine, freshly built.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build;
use crate::preflight::{DATAPATH, Facts};
use crate::setup;
use crate::sh::{self, say};

/// Build, then run the agent on this machine, as root
///
/// Arguments after `--` go to lb-agent, for example:
///   cargo xtask run -- run --manifests cluster.json
///   cargo xtask run -- status
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Optimise the agent
    #[arg(long)]
    release: bool,
    /// Use kernel programs with log calls
    #[arg(long)]
    debug: bool,
    /// Arguments of lb-agent
    #[arg(last = true, value_name = "LB-AGENT ARGUMENTS")]
    agent: Vec<String>,
}

/// Runs the command; does not return once the agent has started.
pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let facts = Facts::gather();
    facts.require(&DATAPATH)?;
    setup::ensure(&facts)?;
    let agent = build::all(arguments.release, arguments.debug)?;
    let mut command = as_root(&facts, &agent);
    command.args(&arguments.agent);
    say("run", &format!("lb-agent {}", arguments.agent.join(" ")));
    // In place of this process: signals and the exit code are the agent's own.
    let error = command.exec();
    anyhow::bail!("cannot start {}: {error}", agent.display())
}

/// The variable that names a program through which cargo starts what it built for this host.
pub(crate) fn runner_variable() -> Result<String> {
    let host = sh::host()?.replace('-', "_").to_uppercase();
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

/// `program` through sudo unless this is root already.
pub(crate) fn as_root(facts: &Facts, program: &std::path::Path) -> Command {
    let mut command = if facts.root {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(program);
        sudo
    };
    sh::clean(&mut command);
    command
}
