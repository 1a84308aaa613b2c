//! Removes what killed test runs have left. `--all`: also what belongs to running tests.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use lb_testbed::sweep::{Whose, sweep};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let whose = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Whose::TheDead,
        ["--all"] => Whose::Everyone,
        _ => {
            eprintln!("usage: testbed-sweep [--all]");
            return ExitCode::from(2);
        }
    };
    let report = sweep(whose);
    // A closed standard output does not change what was done.
    drop(write!(io::stdout(), "{report}"));
    if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
