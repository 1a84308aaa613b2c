//! Rules about a file's text alone.

use super::{Finding, Source};

const SOFT_LINES: usize = 400;
const HARD_LINES: usize = 600;

/// Endings of the files whose white space is ours to keep clean.
const TEXTS: [&str; 8] = [".rs", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".ci/run"];

/// A file that no one reads to its end. Tables of test cases below `tests/` are exempt.
pub(super) fn size(source: &Source) -> Option<Finding> {
    if !source.is_rust() || source.path.split('/').any(|part| part == "tests") {
        return None;
    }
    let lines = source.text.lines().count();
    if lines <= SOFT_LINES {
        return None;
    }
    let limit = if lines > HARD_LINES { HARD_LINES } else { SOFT_LINES };
    let mut finding = Finding::new(&source.path, format!("{lines} lines, more than {limit}"));
    finding.warning = lines <= HARD_LINES;
    Some(finding)
}

/// White space at the end of a line, or a last line without an end.
pub(super) fn trailing_space(source: &Source) -> Option<Finding> {
    if !TEXTS.iter().any(|ending| source.path.ends_with(ending)) {
        return None;
    }
    let numbered = source.text.lines().zip(1..);
    if let Some((_, number)) = numbered.into_iter().find(|(line, _)| line.ends_with([' ', '\t'])) {
        return Some(Finding::new(&source.path, format!("line {number} ends in white space")));
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        return Some(Finding::new(&source.path, "the last line has no end"));
    }
    None
}

/// A path that is true on one machine only: someone's home, or this checkout.
pub(super) fn machine_paths(source: &Source, root: &str) -> Option<Finding> {
    // Built from parts, or this file would find itself.
    let homes = ["home", "Users"].map(|folder| format!("/{folder}/"));
    let checkout = format!("{}/", root.trim_end_matches('/'));
    let mut lines = source.text.lines().zip(1..);
    let (_, number) = lines.find(|(line, _)| {
        // A checkout at the file system's root has no path to give away.
        homes.iter().any(|home| line.contains(home.as_str()))
            || (checkout.len() > 1 && line.contains(&checkout))
    })?;
    Some(Finding::new(&source.path, format!("line {number} names a path of one machine")))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn lines(path: &str, count: usize) -> Source {
        source(path, &"x\n".repeat(count))
    }

    #[test]
    fn long_files_are_told_and_very_long_ones_fail() {
        assert_eq!(size(&lines("a/src/b.rs", 400)), None);
        assert!(size(&lines("a/src/b.rs", 401)).is_some_and(|finding| finding.warning));
        assert!(size(&lines("a/src/b.rs", 601)).is_some_and(|finding| !finding.warning));
        assert_eq!(size(&lines("a/tests/cases.rs", 900)), None);
        assert_eq!(size(&lines("docs/long.md", 900)), None);
    }

    #[test]
    fn white_space_at_line_ends_is_found() {
        let found = trailing_space(&source("a.md", "good\nbad \n"));
        assert!(found.is_some_and(|finding| finding.what.contains("line 2")));
        assert!(trailing_space(&source("a.rs", "no end")).is_some());
        assert_eq!(trailing_space(&source("a.rs", "good\n")), None);
        assert_eq!(trailing_space(&source("capture.txt", "as it came \n")), None);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let home = format!("see {}/x\n", ["", "home", "someone"].join("/"));
        assert!(machine_paths(&source("a.md", &home), "/srv/checkout").is_some());
        let here = source("a.md", "in /srv/checkout/target\n");
        assert!(machine_paths(&here, "/srv/checkout").is_some());
        assert_eq!(machine_paths(&here, "/elsewhere"), None);
        assert_eq!(machine_paths(&source("a.md", "/sys/fs/bpf\n"), "/"), None);
    }
}
