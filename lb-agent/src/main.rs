//! `lb-agent`: keeps this node's maps equal to the cluster's Services, and shows what is there.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let result = cli::run(cli::Cli::parse());
    let exit = result.unwrap_or_else(|error| {
        // Nobody may be there to read it; the exit code tells all the same.
        drop(writeln!(std::io::stderr(), "error: {error}"));
        error.exit()
    });
    ExitCode::from(u8::from(exit))
}
