//! Do the documents tell what exists?
//!
//! A rule about the contents of a document holds once it is there; that it is there is a rule of
//! its own.

use std::collections::BTreeSet;

use super::{Finding, Source};

const REQUIRED: [&str; 9] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "lb-ebpf/LICENSE-GPL-2.0",
    "deny.toml",
    "docs/datapath.md",
    MAPS,
    "docs/instructions.json",
];
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const MAPS: &str = "docs/maps.md";
const MAP_NAMES: &str = "lb-common/src/abi/mod.rs";
const DECISIONS: &str = "docs/adr/";
const CRATES: [&str; 6] = ["lb-common", "lb-ebpf", "lb-object", "lb-agent", "lb-testbed", "xtask"];

/// Every document that readers are promised.
pub(super) fn exist(sources: &[Source]) -> Vec<Finding> {
    let mut found: Vec<Finding> = REQUIRED
        .iter()
        .filter(|path| find(sources, path).is_none())
        .map(|path| Finding::new(path, "missing"))
        .collect();
    if !sources.iter().any(|source| source.path.starts_with(DECISIONS)) {
        found.push(Finding::new(DECISIONS, "holds no decision record"));
    }
    found
}

/// Every source file is named in ARCHITECTURE.md, and every one named there exists.
///
/// A name is the path from the root, or, below a heading that names the crate, from the crate or
/// its `src`.
pub(super) fn code_map(sources: &[Source]) -> Vec<Finding> {
    let Some(document) = find(sources, ARCHITECTURE) else {
        return Vec::new();
    };
    let files: BTreeSet<&str> =
        sources.iter().filter(|s| s.is_rust()).map(|s| s.path.as_str()).collect();
    let mut named = BTreeSet::new();
    let mut found = Vec::new();
    for (krate, word) in file_names(&document.text) {
        let candidates = [word.clone(), format!("{krate}/{word}"), format!("{krate}/src/{word}")];
        match candidates.into_iter().find(|path| files.contains(path.as_str())) {
            Some(path) => drop(named.insert(path)),
            None => found.push(Finding::new(ARCHITECTURE, format!("names {word}: no such file"))),
        }
    }
    for file in files {
        let mapped = CRATES.iter().any(|krate| file.starts_with(&format!("{krate}/src/")));
        if mapped && !named.contains(file) {
            found.push(Finding::new(file, "not in the code map of ARCHITECTURE.md"));
        }
    }
    found
}

/// The files with unsafe code are those of the section "Unsafe" in ARCHITECTURE.md.
pub(super) fn unsafe_list(sources: &[Source]) -> Vec<Finding> {
    let Some(document) = find(sources, ARCHITECTURE) else {
        return Vec::new();
    };
    // Built from parts, or this file would find itself.
    let marker = ["expect(", "unsafe_code"].concat();
    let marked: BTreeSet<String> = sources
        .iter()
        .filter(|source| source.is_rust() && source.text.contains(&marker))
        .map(|source| source.path.clone())
        .collect();
    let listed: BTreeSet<String> =
        file_names(&section(&document.text, "Unsafe")).into_iter().map(|(_, word)| word).collect();
    let unlisted = marked
        .difference(&listed)
        .map(|path| Finding::new(path, "has unsafe code, not listed in ARCHITECTURE.md, Unsafe"));
    let unmarked = listed
        .difference(&marked)
        .map(|path| Finding::new(ARCHITECTURE, format!("Unsafe lists {path}, which has none")));
    unlisted.chain(unmarked).collect()
}

/// Every map has its description.
pub(super) fn maps(sources: &[Source]) -> Vec<Finding> {
    let (Some(document), Some(names)) = (find(sources, MAPS), find(sources, MAP_NAMES)) else {
        return Vec::new();
    };
    map_names(&names.text)
        .into_iter()
        .filter(|name| !document.text.contains(&format!("`{name}`")))
        .map(|name| Finding::new(MAPS, format!("does not describe `{name}`")))
        .collect()
}

fn find<'a>(sources: &'a [Source], path: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.path == path)
}

/// Values of the constants in `pub mod map`.
fn map_names(text: &str) -> Vec<&str> {
    text.lines()
        .skip_while(|line| !line.starts_with("pub mod map "))
        .take_while(|line| !line.starts_with('}'))
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .filter_map(|line| line.split('"').nth(1))
        .collect()
}

/// The lines below the heading `title`, down to the next heading of the same or a higher level.
fn section(text: &str, title: &str) -> String {
    let level = |line: &str| line.bytes().take_while(|&byte| byte == b'#').count();
    let mut lines = text
        .lines()
        .skip_while(|line| level(line) == 0 || line.trim_start_matches('#').trim() != title);
    let Some(heading) = lines.next() else {
        return String::new();
    };
    let below: Vec<&str> =
        lines.take_while(|line| level(line) == 0 || level(line) > level(heading)).collect();
    below.join("\n")
}

/// Every word that ends in `.rs`, with the crate that the heading above it names.
fn file_names(text: &str) -> Vec<(&'static str, String)> {
    let mut krate = "";
    let mut names = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            krate = CRATES.into_iter().find(|name| line.contains(name)).unwrap_or("");
        }
        for word in line.split(|c: char| c.is_whitespace() || "`|()[]".contains(c)) {
            let word = word.trim_end_matches([',', ';', ':', '.']);
            for name in expand(word) {
                if name.rsplit('.').next() == Some("rs") && !name.contains('*') {
                    names.push((krate, name));
                }
            }
        }
    }
    names
}

/// `a/{b,c}.rs` stands for two files.
fn expand(word: &str) -> Vec<String> {
    let Some((before, rest)) = word.split_once('{') else {
        return vec![word.to_owned()];
    };
    let Some((middle, after)) = rest.split_once('}') else {
        return vec![word.to_owned()];
    };
    middle.split(',').map(|part| format!("{before}{part}{after}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn a_missing_document_is_named() {
        let mut sources: Vec<Source> = REQUIRED.iter().map(|path| source(path, "")).collect();
        sources.push(source("docs/adr/0001-x.md", ""));
        assert_eq!(exist(&sources), []);
        sources.retain(|source| source.path != "README.md");
        assert_eq!(exist(&sources), [Finding::new("README.md", "missing")]);
    }

    #[test]
    fn the_code_map_names_every_file_and_no_other() {
        let map = "## Code map\n`lb-common/src/parse.rs`\n### lb-agent\n- `plan/{mod,ids}.rs`: ids\n\
                   | src/gone.rs | no longer |\n";
        let sources = [
            source(ARCHITECTURE, map),
            source("lb-common/src/parse.rs", ""),
            source("lb-common/src/new.rs", ""),
            source("lb-common/tests/x.rs", ""),
            source("lb-agent/src/plan/mod.rs", ""),
            source("lb-agent/src/plan/ids.rs", ""),
        ];
        assert_eq!(
            code_map(&sources),
            [
                Finding::new(ARCHITECTURE, "names src/gone.rs: no such file"),
                Finding::new("lb-common/src/new.rs", "not in the code map of ARCHITECTURE.md"),
            ]
        );
        // Nothing to compare with.
        assert_eq!(code_map(&sources[1..]), []);
    }

    #[test]
    fn the_unsafe_list_is_exact() {
        let listed =
            "# A\n## Unsafe\n- `lb-agent/src/a.rs`: why\n- `lb-agent/src/b.rs`\n## Next\n`x.rs`\n";
        let marked = ["#![expect(", "unsafe_code, reason = \"x\")]"].concat();
        let sources = [
            source(ARCHITECTURE, listed),
            source("lb-agent/src/a.rs", &marked),
            source("lb-agent/src/b.rs", ""),
            source("lb-agent/src/c.rs", &marked),
        ];
        let found = unsafe_list(&sources);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].path.ends_with("c.rs") && found[0].what.contains("not listed"));
        assert!(found[1].what.contains("b.rs, which has none"));
    }

    #[test]
    fn every_map_is_described() {
        let names = "pub const NO: &str = \"NO\";\npub mod map {\n    /// x\n    \
                     pub const SETS: &str = \"SETS\";\n    pub const META: &str = \"META\";\n}\n";
        let sources = [source(MAP_NAMES, names), source(MAPS, "## `SETS`\n")];
        assert_eq!(maps(&sources), [Finding::new(MAPS, "does not describe `META`")]);
    }
}
