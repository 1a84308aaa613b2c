//! What becomes of every kind of connection, as a table: `cargo xtask test --matrix`.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};
use lb_testbed::{
    kube_proxy,
    matrix::{TOPOLOGIES, cell::Proxy, run, table::Table},
};

const USAGE: &str = "usage: testbed-matrix [millrace|xdp|kube-proxy]…";

fn main() -> ExitCode {
    let table = match run() {
        Ok(table) => table,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    // A closed standard output does not change what was seen.
    drop(write!(io::stdout(), "{table}"));
    if table.differing().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run() -> Result<Table> {
    let mut proxies = Vec::new();
    for arg in env::args().skip(1) {
        proxies.push(match arg.as_str() {
            "millrace" => Proxy::Millrace,
            "xdp" => Proxy::MillraceXdp,
            "kube-proxy" => Proxy::KubeProxy,
            _ => bail!("{USAGE}"),
        });
    }
    if proxies.is_empty() {
        proxies.extend([Proxy::Millrace, Proxy::MillraceXdp]);
        match kube_proxy::lacking() {
            None => proxies.push(Proxy::KubeProxy),
            Some(why) => eprintln!("{} is left out: {why}", kube_proxy::PROGRAM),
        }
    }
    run::all(&TOPOLOGIES, &proxies)
}
