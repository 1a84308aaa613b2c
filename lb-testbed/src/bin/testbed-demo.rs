//! The main job before your eyes: `cargo xtask demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lb_testbed::demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
