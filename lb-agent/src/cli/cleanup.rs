//! `lb-agent cleanup`: nothing of Millrace is left on this node.

use std::fs;
use std::path::Path;

use clap::Args;
use lb_agent::datapath::roles::Overrides;
use lb_agent::datapath::{self, interfaces};
use serde::Serialize;

use super::args::NodeArgs;
use super::error::{Error, Exit};
use super::output::OutputArgs;
use super::run::runtime;
use super::self_test;

/// Take everything of this node away: programs, links, maps and folders
///
/// Connections that the socket engine made go on; flows of the packet engine end, because nothing
/// translates them any more.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  nothing is left, whether there was something or not
  1  failed, or an agent is running and --force was not given
  2  the arguments make no sense")]
pub(super) struct Arguments {
    /// Even while an agent runs; stop it soon, as it attaches programs again when interfaces change
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Cleanup {
    /// Paths that are gone now.
    removed: Vec<String>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let node = &arguments.node;
    // A namespace that is gone has taken its interfaces with it.
    let gone = node.netns.as_ref().is_some_and(|path| !path.exists());
    if !gone {
        node.enter()?;
    }
    let before = below(&node.bpffs);
    let mut removed = Vec::new();
    if !before.is_empty() {
        let found = if gone {
            Vec::new()
        } else {
            runtime()?.block_on(interfaces::list(&Overrides::default()))?
        };
        let found: Vec<_> = found.into_iter().map(|i| (i.index, i.name)).collect();
        datapath::cleanup(&node.bpffs, &found, arguments.force).map_err(|error| match error {
            datapath::Error::InUse(folder) => Error::InUse(folder),
            other => other.into(),
        })?;
        removed.extend(before.into_iter().filter(|path| !Path::new(path).exists()));
    }
    // Where there is no cgroup any more, there is nothing in it either.
    if let Ok(cgroup) = node.cgroup() {
        removed.extend(self_test::sweep(&cgroup).iter().map(|path| path.display().to_string()));
    }
    arguments.output.write(&Cleanup { removed }, |cleanup| {
        if cleanup.removed.is_empty() {
            return format!("nothing to remove below {}", arguments.node.bpffs.display());
        }
        let lines: Vec<_> = cleanup.removed.iter().map(|path| format!("removed {path}")).collect();
        lines.join("\n")
    })?;
    Ok(Exit::Success)
}

/// A folder and everything in it, innermost first; nothing where it is not there.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return found;
    }
    let mut entries: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(below(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found.push(folder.display().to_string());
    found
}
