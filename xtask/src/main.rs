//! The development commands: `cargo xtask <command>`.
//!
//! One module per command, each with its own arguments; what they share is in [`sh`] (programs and
//! progress), [`workspace`] (paths), [`preflight`] (what a machine lacks) and [`debian`] (packages).

mod bench;
mod build;
mod debian;
mod demo;
mod object;
mod preflight;
mod run;
mod setup;
mod sh;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of Millrace.
///
/// Every command sets up what it needs and says what it does; a line of progress is printed for
/// whatever takes longer than a second.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Arguments),
    Build(build::Arguments),
    Run(run::Arguments),
    Demo(demo::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Vm(vm::Arguments),
    Tidy(tidy::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Setup(arguments) => setup::main(&arguments).map(done),
        Task::Build(arguments) => build::main(&arguments).map(done),
        Task::Run(arguments) => run::main(&arguments).map(done),
        Task::Demo(arguments) => demo::main(&arguments),
        Task::Test(arguments) => test::main(&arguments),
        Task::Bench(arguments) => bench::main(&arguments),
        Task::Vm(arguments) => vm::main(&arguments),
        Task::Tidy(arguments) => tidy::main(&arguments).map(done),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
