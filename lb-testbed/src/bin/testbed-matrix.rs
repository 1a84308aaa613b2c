//! What becomes of every kind of connection, as a table: `cargo xtask test --matrix`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

fn main() -> ExitCode {
    let table = match lb_testbed::matrix::run::all() {
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
