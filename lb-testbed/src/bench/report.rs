//! Records for people: a table for the terminal, and `docs/benchmarks.md`.
//!
//! The latest record of each figure is kept in `docs/benchmarks.json`, so that a run of some
//! figures leaves the others as they were; the page is made from that file alone.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{Record, chart, groups};

const PAGE: &str = "docs/benchmarks.md";
const RECORDS: &str = "docs/benchmarks.json";

const INTRODUCTION: &str = "\
# Benchmarks

Written by `cargo xtask bench` from `docs/benchmarks.json`; do not edit.
Figures are recorded, never asserted: what they depend on is not in our hands.
Exact numbers (instructions, stack, counted calls) are asserted by tests elsewhere.

Each figure names its machine and commit below.
A machine in a cloud, with veth pairs and network namespaces in place of network cards, says how two ways compare on it; it says nothing about line rate, absolute latency or many cores.
A figure is marked *noisy* when other processes used more than a twentieth of the CPUs right before or right after it was measured; take it again on an idle machine.
A figure `x.y` is a part of the figure `x` or a variant of it.

`cargo xtask bench` measures everything, `cargo xtask bench tc crr_packet` the figures whose names begin so.
`--output json` prints the records.
";

/// The table for the terminal.
pub fn table(records: &[Record]) -> String {
    let rows: Vec<[String; 5]> = records
        .iter()
        .map(|record| {
            [
                record.id.clone(),
                value(record),
                record.unit.clone(),
                record.reach.clone().unwrap_or_default(),
                remark(record),
            ]
        })
        .collect();
    let heading = ["figure", "value", "unit", "reach", ""].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&heading]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let [id, number, unit, reach] = [0, 1, 2, 3].map(width);
    let line = |[a, b, c, d, e]: &[String; 5]| {
        let line = format!("{a:<id$}  {b:>number$}  {c:<unit$}  {d:>reach$}  {e}");
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&heading);
    text.extend(rows.iter().map(line));
    if let Some(first) = records.first() {
        writeln!(text, "\n{}\ncommit {}", first.machine, first.commit).ok();
    }
    text
}

/// Puts new records into `docs/benchmarks.json` and makes the page anew.
pub fn publish(root: &Path, new: &[Record]) -> Result<()> {
    let path = root.join(RECORDS);
    let known: Vec<Record> = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("understand {}; delete it to begin anew", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let records = merge(known, new);
    let json = serde_json::to_string_pretty(&records).context("write records")?;
    write(&path, &format!("{json}\n"))?;
    write(&root.join(PAGE), &page(&records))
}

/// A run of a figure replaces all that was known of it, its parts included; one that could not be
/// made replaces nothing.
fn merge(known: Vec<Record>, new: &[Record]) -> Vec<Record> {
    let of = |record: &Record| record.id.split('.').next().unwrap_or("").to_owned();
    let renewed: Vec<String> = new.iter().filter(|new| new.value.is_some()).map(of).collect();
    let mut records: Vec<Record> =
        known.into_iter().filter(|record| !renewed.contains(&of(record))).collect();
    let still_known: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    let news = new.iter().filter(|new| !still_known.contains(&new.id));
    records.extend(news.cloned());
    let order: Vec<&str> = groups().iter().flat_map(|group| group.ids).copied().collect();
    let place = |record: &Record| {
        let found = order.iter().position(|id| record.id.starts_with(id));
        // A figure that is measured no more.
        found.unwrap_or(order.len())
    };
    // Stable: parts stay in the order in which they were measured.
    records.sort_by_key(place);
    records.retain(|record| place(record) < order.len());
    records
}

fn page(records: &[Record]) -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut settings: Vec<(&str, &str)> = Vec::new();
    for record in records {
        let setting = (record.machine.as_str(), record.commit.as_str());
        if !settings.contains(&setting) {
            settings.push(setting);
        }
    }
    text.push_str("\n## Runs\n\n| run | machine | commit |\n|---|---|---|\n");
    for ((machine, commit), run) in settings.iter().zip(1..) {
        writeln!(text, "| {run} | {machine} | `{commit}` |").ok();
    }
    text.push_str("\n## Figures\n\n");
    text.push_str("| figure | value | reach | | run | load |\n|---|---|---|---|---|---|\n");
    for record in records {
        let run = settings
            .iter()
            .position(|setting| *setting == (record.machine.as_str(), record.commit.as_str()))
            .map_or(0, |index| index + 1);
        writeln!(
            text,
            "| `{}` | {} {} | {} | {} | {run} | {:.2} |",
            record.id,
            value(record),
            if record.value.is_some() { record.unit.as_str() } else { "" },
            record.reach.as_deref().unwrap_or(""),
            remark(record),
            record.load_average,
        )
        .ok();
    }
    text.push_str(&chart::chapter(records));
    text.push_str("\n## Methods\n\n");
    let mut last = "";
    for record in records.iter().filter(|record| !record.id.contains('.')) {
        // Figures of one group often share it.
        if record.method == last {
            writeln!(text, "- `{}`: as above.", record.id).ok();
        } else {
            writeln!(text, "- `{}`: {}.", record.id, record.method).ok();
        }
        last = &record.method;
    }
    let notes: Vec<&Record> = records.iter().filter(|record| record.note.is_some()).collect();
    if !notes.is_empty() {
        text.push_str("\n## Notes\n\n");
        for record in notes {
            writeln!(text, "- `{}`: {}.", record.id, record.note.as_deref().unwrap_or("")).ok();
        }
    }
    text
}

fn value(record: &Record) -> String {
    match record.value {
        None => "not measured".into(),
        Some(value) if record.unit == "ratio" => format!("{value:.3}"),
        Some(value) if value.abs() < 100.0 && value.fract() != 0.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

fn remark(record: &Record) -> String {
    let mut remarks = Vec::new();
    match record.ok {
        Some(true) => remarks.push("within reach"),
        Some(false) => remarks.push("**out of reach**"),
        None => {}
    }
    if record.noisy {
        remarks.push("noisy");
    }
    if record.quick {
        remarks.push("quick: means nothing");
    }
    remarks.join(", ")
}

/// Writes a file that belongs to whom its folder belongs to: the measurements ran as root.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    let folder = path.parent().context("a file is in a folder")?;
    let owner = fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("give {} to its owner", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::sample as record;

    #[test]
    fn a_new_record_replaces_its_figure_with_all_parts_and_no_other() {
        let known = vec![
            record("crr_socket_ratio", Some(1.0)),
            record("tc_established_ns", Some(99.0)),
            record("tc_established_ns.old", Some(98.0)),
            record("tc_foreign_ns", Some(20.0)),
            record("given_up", Some(1.0)),
        ];
        let new = [
            record("tc_established_ns", Some(130.0)),
            record("tc_established_ns.new", None),
            record("tc_foreign_ns", None),
        ];
        let merged = merge(known, &new);
        let ids: Vec<&str> = merged.iter().map(|record| record.id.as_str()).collect();
        let expected =
            ["tc_established_ns", "tc_established_ns.new", "tc_foreign_ns", "crr_socket_ratio"];
        assert_eq!(ids, expected);
        assert_eq!(merged[2].value, Some(20.0), "a failure replaces nothing");
        let page = page(&merged);
        assert!(
            page.contains("| `tc_established_ns` | 130 ns | ≤ 120 | **out of reach** | 1 | 0.25 |")
        );
        assert!(page.contains("| `tc_established_ns.new` | not measured"), "{page}");
        assert_eq!(page, super::page(&merged), "the page depends on the records alone");
    }

    #[test]
    fn columns_of_the_table_are_aligned() {
        let text = table(&[record("tc_established_ns", Some(9.5)), record("x", None)]);
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("unit").unwrap();
        assert!(lines[1][column..].starts_with("ns"), "{text}");
        assert!(lines[2][column..].starts_with("ns"), "{text}");
    }
}
