//! The command line: which commands there are, and how each ends.

mod args;
mod cgroup;
mod cleanup;
mod error;
mod explain;
mod health;
mod lacking;
mod output;
mod outside;
mod run;
mod self_test;
mod services;
mod sizes;
mod sockets;
mod status;
mod table;
mod view;
mod xdp;

use clap::{Parser, Subcommand};

pub(crate) use self::error::Error;
use self::error::Exit;

/// Kubernetes Services in the kernel's fast path, on one node
///
/// `run` is the agent; the other commands look at what a node has in force, whether an agent runs
/// or not.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    Status(status::Arguments),
    Services(services::Arguments),
    Explain(explain::Arguments),
    Cleanup(cleanup::Arguments),
    #[command(hide = true)]
    SelfTestChild(self_test::ChildArguments),
}

/// Runs a command.
pub(crate) fn run(cli: Cli) -> Result<Exit, Error> {
    match cli.command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Services(arguments) => services::main(&arguments),
        Command::Explain(arguments) => explain::main(&arguments),
        Command::Cleanup(arguments) => cleanup::main(&arguments),
        Command::SelfTestChild(arguments) => self_test::child(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_documented() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{} says what it does", sub.get_name());
            if sub.get_name() == "help" {
                continue;
            }
            let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Exit codes"), "{} documents its exit codes", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "{argument} of {}", sub.get_name());
            }
        }
    }
}
