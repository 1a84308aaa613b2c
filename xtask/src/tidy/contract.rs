//! Does the contract's table tell the truth?
//!
//! `docs/contract.md` answers for every rule in `contract_rules.txt`, each in one row of four cells:
//! the rule, what it says in short, where it is implemented, and what proves it. A proof is a test
//! (`` `path/of/file.rs::name_of_the_test` ``) or, where there is none, a word that says why.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Source};

const DOCUMENT: &str = "docs/contract.md";
const RULES: &str = include_str!("contract_rules.txt");
/// A golden packet is a function that makes a case; what makes a test of it is elsewhere.
const GOLDEN: &str = "lb-testbed/src/golden/";
/// Why a row may do without a test.
const EXCUSES: [&str; 2] = ["drop-in", "nothing to do"];
/// A row that should have a test and has none yet.
const OPEN: &str = "open";
const NOWHERE: &str = "—";

/// Every rule has its row, and what rows name exists.
pub(super) fn table(sources: &[Source]) -> Vec<Finding> {
    let Some(document) = sources.iter().find(|source| source.path == DOCUMENT) else {
        return vec![Finding::new(DOCUMENT, "missing")];
    };
    check(&rules(RULES), &document.text, sources)
}

/// The list's lines, without comments.
fn rules(list: &str) -> Vec<&str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn check(rules: &[&str], text: &str, sources: &[Source]) -> Vec<Finding> {
    let rows = rows(text);
    let mut found = of_rules(rules, &rows);
    found.extend(rows.iter().flat_map(|row| of_row(row, sources)));
    let open: Vec<&str> = rows.iter().filter(|row| row.is_open()).map(|row| row.rule).collect();
    if !open.is_empty() {
        let what = format!("{} rules wait for a test: {}", open.len(), open.join(", "));
        found.push(Finding { warning: true, ..Finding::new(DOCUMENT, what) });
    }
    found
}

/// A row of one of the tables.
struct Row<'a> {
    line: usize,
    rule: &'a str,
    /// The cells behind the rule.
    cells: Vec<&'a str>,
}

impl Row<'_> {
    fn implementation(&self) -> &str {
        self.cells.get(1).copied().unwrap_or_default()
    }

    fn proof(&self) -> &str {
        self.cells.get(2).copied().unwrap_or_default()
    }

    /// Whether the proof, or a part of it, is still to come.
    fn is_open(&self) -> bool {
        let words = self.proof().split('`').step_by(2).flat_map(str::split_whitespace);
        words.into_iter().any(|word| word.trim_matches([':', ';', ',']) == OPEN)
    }

    fn says(&self, what: impl std::fmt::Display) -> Finding {
        Finding::new(DOCUMENT, format!("line {}, {}: {what}", self.line, self.rule))
    }
}

/// The rows of all tables, without their heads.
fn rows(text: &str) -> Vec<Row<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with("|--") || line.starts_with("| --");
    let mut rows = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let is_head = lines.get(index + 1).is_some_and(|next| is_rule(next));
        let Some(inner) = line.strip_prefix('|').filter(|_| !is_rule(line) && !is_head) else {
            continue;
        };
        let mut cells = inner.strip_suffix('|').unwrap_or(inner).split('|').map(str::trim);
        let rule = cells.next().unwrap_or_default();
        rows.push(Row { line: index + 1, rule, cells: cells.collect() });
    }
    rows
}

/// Each rule has exactly one row, and each row is one of a rule.
fn of_rules(rules: &[&str], rows: &[Row<'_>]) -> Vec<Finding> {
    let mut times: BTreeMap<&str, usize> = rules.iter().map(|rule| (*rule, 0)).collect();
    let mut found = Vec::new();
    for row in rows {
        match times.get_mut(row.rule) {
            Some(times) => *times += 1,
            None => found.push(row.says("no such rule")),
        }
    }
    for rule in rules {
        match times.get(rule) {
            Some(1) => {}
            Some(0) | None => found.push(Finding::new(DOCUMENT, format!("{rule} has no row"))),
            Some(times) => {
                found.push(Finding::new(DOCUMENT, format!("{rule} has {times} rows")));
            }
        }
    }
    found
}

fn of_row(row: &Row<'_>, sources: &[Source]) -> Vec<Finding> {
    if row.cells.len() != 3 {
        return vec![row.says(format!("{} cells, not 4", row.cells.len() + 1))];
    }
    let mut found = Vec::new();
    if row.cells.iter().any(|cell| cell.is_empty()) {
        found.push(row.says("an empty cell"));
    }
    let paths: Vec<&str> = quoted(row.implementation()).filter(|word| word.contains('/')).collect();
    for path in paths.iter().filter(|path| !exists(path, sources)) {
        found.push(row.says(format!("no such file: {path}")));
    }
    let tests: Vec<&str> = quoted(row.proof()).filter(|word| word.contains("::")).collect();
    for test in &tests {
        found.extend(missing_test(test, sources).map(|what| row.says(what)));
    }
    let excused = row.is_open() || EXCUSES.iter().any(|word| row.proof().contains(word));
    if tests.is_empty() && !excused {
        let words = EXCUSES.join(", ");
        found.push(row.says(format!("neither a test nor one of: {words}, {OPEN}")));
    }
    if paths.is_empty() && (!tests.is_empty() || row.implementation() != NOWHERE) {
        found.push(row.says(format!("names no file; {NOWHERE} where there is none to name")));
    }
    found
}

/// The words between back-quotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A file, or a folder with files.
fn exists(path: &str, sources: &[Source]) -> bool {
    let folder = format!("{}/", path.trim_end_matches('/'));
    sources.iter().any(|source| source.path == path || source.path.starts_with(&folder))
}

/// What is wrong with `file.rs::test`.
fn missing_test(named: &str, sources: &[Source]) -> Option<String> {
    let (path, test) = named.split_once("::")?;
    let Some(source) = sources.iter().find(|source| source.path == path) else {
        return Some(format!("no such file: {path}"));
    };
    let is_there = tests(&source.text).contains(test)
        || (path.starts_with(GOLDEN) && makes_case(&source.text, test));
    (!is_there).then(|| format!("{path} has no test {test}"))
}

/// Names of the functions that have an attribute for tests.
fn tests(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if let Some(attribute) = line.strip_prefix("#[") {
            let name = attribute.split(['(', ']']).next().unwrap_or_default();
            is_test |= name.rsplit("::").next() == Some("test");
        } else if let Some(name) = function(line) {
            if is_test {
                names.insert(name);
            }
            is_test = false;
        } else if !line.starts_with("//") && !line.is_empty() && line.ends_with([';', '}']) {
            is_test = false;
        }
    }
    names
}

/// Whether a file has a function of that name that makes golden cases.
fn makes_case(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        function(line.trim()) == Some(name)
            && line.split("->").nth(1).is_some_and(|result| result.contains("Case"))
    })
}

/// The name of the function whose signature begins in this line.
fn function(line: &str) -> Option<&str> {
    let words = ["pub(crate) ", "pub(super) ", "pub ", "async "];
    let line = words.iter().fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
    let end = line.strip_prefix("fn ")?.find(['(', '<'])?;
    line.strip_prefix("fn ")?.get(..end)
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    const HEAD: &str = "# Contract\n\n| rule | in short | where | proof |\n|---|---|---|---|\n";

    fn project() -> Vec<Source> {
        let tests = "proptest! {\n    #[test]\n    /// Why.\n    fn proven(x in any::<u8>()) {\n}\n}\n\
                     #[tokio::test(start_paused = true)]\nasync fn slow() {\n}\nfn helper() {}\n\
                     #[test]\n#[should_panic]\nfn odd() {}\n";
        vec![
            source("a/src/x.rs", "pub fn f() {}\n"),
            source("a/src/y/z.rs", ""),
            source("a/tests/t.rs", tests),
            source("lb-testbed/src/golden/g.rs", "fn packet(net: Net) -> Case {\nfn other() {}\n"),
        ]
    }

    /// What is found in a table of these rows, for the rules `S-1` and `S-2`.
    fn found(rows: &[&str]) -> Vec<String> {
        let text = format!("{HEAD}{}\n", rows.join("\n"));
        let findings = check(&["S-1", "S-2"], &text, &project());
        findings.iter().filter(|finding| !finding.warning).map(|f| f.what.clone()).collect()
    }

    const GOOD: &str = "| S-2 | x | — | drop-in |";

    fn one(row: &str) -> String {
        let found = found(&[row, GOOD]);
        assert_eq!(found.len(), 1, "{row}: {found:?}");
        found[0].clone()
    }

    #[test]
    fn a_true_table_has_no_findings() {
        for first in [
            "| S-1 | x | `a/src/x.rs` | `a/tests/t.rs::proven` |",
            "| S-1 | x | `a/src/y/`, `a/src/x.rs` | `a/tests/t.rs::slow`, `a/tests/t.rs::odd` |",
            "| S-1 | x | `a/src/x.rs` | `lb-testbed/src/golden/g.rs::packet` |",
            "| S-1 | x `y` | — | nothing to do: no proxy reads it |",
            "| S-1 | x | `a/src/x.rs` | open |",
            "| S-1 | x | `a/src/x.rs` | `a/tests/t.rs::slow`; the rest drop-in |",
        ] {
            assert_eq!(found(&[first, GOOD]), Vec::<String>::new(), "{first}");
        }
    }

    #[test]
    fn every_rule_has_one_row_and_no_other_has_one() {
        assert_eq!(found(&[GOOD]), ["S-1 has no row"]);
        let row = "| S-1 | x | — | drop-in |";
        assert_eq!(found(&[row, row, GOOD]), ["S-1 has 2 rows"]);
        let other = found(&[row, GOOD, "| S-3 | x | — | drop-in |"]);
        assert_eq!(other, ["line 7, S-3: no such rule"]);
    }

    #[test]
    fn rows_are_whole() {
        assert!(one("| S-1 | | — | drop-in |").contains("an empty cell"));
        assert!(one("| S-1 | x | — |").contains("3 cells, not 4"));
        assert!(one("| S-1 | x | — | drop-in | more |").contains("5 cells, not 4"));
        assert!(one("| S-1 | x | `a/src/x.rs` | surely |").contains("neither a test nor one of"));
        assert!(one("| S-1 | x | somewhere | drop-in |").contains("names no file"));
        assert!(one("| S-1 | x | — | `a/tests/t.rs::odd` |").contains("names no file"));
    }

    #[test]
    fn what_a_row_names_exists() {
        let file = |path: &str| one(&format!("| S-1 | x | `{path}` | drop-in |"));
        assert!(file("a/src/gone.rs").contains("no such file: a/src/gone.rs"));
        assert!(file("a/sr").contains("no such file"));
        let test = |name: &str| one(&format!("| S-1 | x | `a/src/x.rs` | `{name}` |"));
        assert!(test("a/tests/gone.rs::proven").contains("no such file: a/tests/gone.rs"));
        assert!(test("a/tests/t.rs::gone").contains("a/tests/t.rs has no test gone"));
        assert!(test("a/tests/t.rs::prove").contains("has no test prove"));
        assert!(test("a/tests/t.rs::helper").contains("has no test helper"));
        assert!(test("a/src/x.rs::f").contains("has no test f"));
        assert!(test("lb-testbed/src/golden/g.rs::other").contains("has no test other"));
    }

    #[test]
    fn open_rows_are_told_but_are_no_failure() {
        let told = Finding::new(DOCUMENT, "1 rules wait for a test: S-1");
        let told = [Finding { warning: true, ..told }];
        for (proof, expected) in [
            ("open: soon", &told[..]),
            ("`a/tests/t.rs::odd`; as packets open", &told),
            ("`a/tests/t.rs::odd`; reopened, `open`", &[]),
        ] {
            let text = format!("{HEAD}| S-1 | x | `a/src/x.rs` | {proof} |\n{GOOD}\n");
            assert_eq!(check(&["S-1", "S-2"], &text, &project()), expected, "{proof}");
        }
    }

    #[test]
    fn a_missing_document_is_told() {
        assert_eq!(table(&project()), [Finding::new(DOCUMENT, "missing")]);
    }

    /// Ids of a letter are numbered without a gap, and so are its details: what is missing was lost.
    #[test]
    fn the_list_of_rules_has_no_gap() {
        let rules = rules(RULES);
        let unique: BTreeSet<&str> = rules.iter().copied().collect();
        assert_eq!(unique.len(), rules.len(), "a rule twice");
        let ids = rules.iter().filter_map(|rule| rule.split_once('-'));
        let ids: Vec<_> = ids.filter(|(letter, _)| letter.len() == 1).collect();
        assert_eq!(ids.len(), 185);
        let mut last = ("", 0);
        for (letter, id) in ids {
            let number = match id.parse::<u32>() {
                Ok(number) => number,
                // Details follow the numbers: a is 1001.
                Err(_) => 1000 + u32::from(id.as_bytes()[0] - b'a') + 1,
            };
            let follows = if last.0 == letter { number == last.1 + 1 } else { number == 1 };
            assert!(follows || number == 1001, "{letter}-{id} does not follow {last:?}");
            last = (letter, number);
        }
    }
}
