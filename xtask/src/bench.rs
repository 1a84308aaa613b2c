//! `bench`: builds everything optimised, then lets `testbed-bench` measure it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::preflight::{DATAPATH, Facts};
use crate::run::as_root;
use crate::sh::{self, say};
use crate::{build, setup, workspace};

const BENCH: &str = "testbed-bench";

const FIGURES: &str = "\
Figures:
  insns_… stack_…                   as `cargo xtask test` has recorded them
  established_map_updates, established_precise_clock_reads
  tc_established_ns, tc_foreign_ns
  connect4_miss_ratio, connect4_hit_ratio
  crr_socket_ratio, crr_packet_ratio
  nodeport_remote_pps_ratio, xdp_nodeport_pps_ratio          with KUBEBUILDER_ASSETS and nft
  nodeport_remote_crr_ratio, nodeport_local_crr_ratio        with KUBEBUILDER_ASSETS and nft
  clusterip_{socket,packet}_crr_vs_kube_proxy[_cni]          with KUBEBUILDER_ASSETS and nft
  cold_start_10k_s, cold_start_10k_peak_mib
  change_10k_syscalls, change_10k_ms
  api_10k_synced_s, api_10k_peak_mib, api_10k_change_ms      with KUBEBUILDER_ASSETS
  kube_proxy_sync_10k_s, kube_proxy_change_10k_ms            with KUBEBUILDER_ASSETS and nft";

/// Measure what Millrace costs, and record it
///
/// Values are recorded in docs/benchmarks.json and docs/benchmarks.md with machine, commit and
/// load, whether they are within reach or not. Measure on an idle machine; all figures together
/// take some minutes.
#[derive(Args)]
#[command(after_help = FIGURES)]
pub(crate) struct Arguments {
    /// Measure only figures whose names begin so; all without
    ids: Vec<String>,
    /// A table, with the documents written anew; or the records on standard output and nothing else
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Only try the methods out: values mean nothing and are not recorded
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs the command. The exit code tells whether everything could be measured, never how good it is.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let facts = Facts::gather();
    facts.require(&DATAPATH)?;
    setup::ensure(&facts)?;
    let agent = build::all(true, false)?;
    let mut cargo = sh::cargo()?;
    cargo.args(["build", "--release", "--package", "lb-testbed", "--bin", BENCH]);
    sh::run("building the measurements", &mut cargo)?;

    let mut bench = as_root(&facts, &workspace::host_target().join("release").join(BENCH));
    let output = match arguments.output {
        Output::Table => "table",
        Output::Json => "json",
    };
    bench.args(["--output", output, "--commit", &commit()]);
    if arguments.quick {
        bench.arg("--quick");
    }
    bench.args(&arguments.ids).env("MILLRACE_AGENT", &agent);
    say("measuring", "leave the machine alone meanwhile");
    let status = bench.status().with_context(|| format!("cannot start {BENCH}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asked here, as the user: git does not trust a checkout that belongs to somebody else.
fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    sh::query(git.current_dir(workspace::root())).unwrap_or_else(|| "unknown".into())
}
