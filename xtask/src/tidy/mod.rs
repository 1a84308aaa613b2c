//! `tidy`: rules of the house that no compiler checks.
//!
//! Each check is a pure function of the files' paths and texts and returns findings.

mod contract;
mod docs;
mod imports;
mod text;

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::sh::say;
use crate::workspace;

/// Check file sizes, forbidden imports, the lists in the documents, and white space
///
/// A file above 400 lines is a warning, above 600 a failure; see CONTRIBUTING.md for the rules and
/// their reasons.
#[derive(Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn main(_: &Arguments) -> Result<()> {
    check()?;
    say("ok", "tidy");
    Ok(())
}

/// Prints warnings; fails with every finding that is not one.
pub(crate) fn check() -> Result<()> {
    let (warnings, failures): (Vec<_>, Vec<_>) =
        findings(&read_all()?).into_iter().partition(|finding| finding.warning);
    for warning in warnings {
        say("warning", &warning.to_string());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(|finding| format!("  - {finding}")).collect();
    bail!("{} rules broken:\n{}", failures.len(), lines.join("\n"))
}

/// One text file of the workspace, its path relative to the root.
#[derive(Clone, Debug)]
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.rsplit('.').next() == Some("rs")
    }
}

/// A rule that a file breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    what: String,
    /// Told, but not a failure.
    warning: bool,
}

impl Finding {
    fn new(path: &str, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), what: what.into(), warning: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

fn findings(sources: &[Source]) -> Vec<Finding> {
    let root = workspace::root().display().to_string();
    let mut found = Vec::new();
    for source in sources {
        found.extend(text::size(source));
        found.extend(text::trailing_space(source));
        found.extend(text::machine_paths(source, &root));
        found.extend(imports::forbidden(source));
    }
    found.extend(docs::exist(sources));
    found.extend(docs::code_map(sources));
    found.extend(docs::unsafe_list(sources));
    found.extend(docs::maps(sources));
    found.extend(contract::table(sources));
    found
}

/// Every text file that the project keeps.
fn read_all() -> Result<Vec<Source>> {
    let root = workspace::root();
    let mut sources = Vec::new();
    for path in workspace::files(&root)? {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        // Captured packets and the like are no texts.
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: name, text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}
