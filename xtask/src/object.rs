//! Would the kernel take this object, and how long is each program?
//!
//! Two things are wrong with an object only when it is loaded, and are found here before: a
//! reachable panic, and a program that grew. Counts are in 8-byte BPF instructions; a 64-bit
//! constant load takes two.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

use crate::sh::say;
use crate::workspace;

const INSTRUCTION_BYTES: u64 = 8;
/// Section of the functions that programs call.
const SUBPROGRAMS: &str = ".text";

/// Instructions by program; functions called by programs are counted together, as `.text`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<String, u64>);

/// Checks the object at `path` and counts its instructions.
pub(crate) fn inspect(path: &Path) -> Result<Counts> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let elf: ElfFile64 = ElfFile64::parse(bytes.as_slice())
        .with_context(|| format!("{} is no ELF object", path.display()))?;
    let panics = panics(elf.symbols().filter_map(|symbol| symbol.name().ok()));
    if !panics.is_empty() {
        bail!(
            "the kernel would refuse {}: code that can panic is reachable ({}). Look for indexing, \
             slicing, division or unwrap without a check in lb-ebpf and lb-common",
            path.display(),
            panics.join(", ")
        );
    }
    count(&elf).with_context(|| format!("cannot count the instructions of {}", path.display()))
}

impl Counts {
    /// The counts as a table for people.
    pub(crate) fn table(&self) -> String {
        let width = self.0.keys().map(String::len).max().unwrap_or(0).max(7);
        let row = |(name, count): (&String, &u64)| format!("{name:<width$}  {count:>12}\n");
        let rows: String = self.0.iter().map(row).collect();
        format!("{:<width$}  instructions\n{rows}", "program")
    }

    /// Writes the counts to the file that [`Counts::compare_with_record`] reads.
    pub(crate) fn record(&self) -> Result<()> {
        let path = record_path();
        let mut text = serde_json::to_string_pretty(&self.0)?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say("wrote", "docs/instructions.json");
        Ok(())
    }

    /// Fails, naming each difference, unless the counts are the recorded ones.
    pub(crate) fn compare_with_record(&self) -> Result<()> {
        let path = record_path();
        let text = fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}; write it with `cargo xtask build --record`", path.display())
        })?;
        let recorded = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what --record writes", path.display()))?;
        let differences = self.differences(&Self(recorded));
        if differences.is_empty() {
            return Ok(());
        }
        bail!(
            "instruction counts differ from docs/instructions.json:\n  {}\nIf that is meant, run \
             `cargo xtask build --record` and commit the file",
            differences.join("\n  ")
        )
    }

    fn differences(&self, recorded: &Self) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(recorded.0.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .filter_map(|name| match (recorded.0.get(name), self.0.get(name)) {
                (Some(was), Some(is)) if was == is => None,
                (Some(was), Some(is)) => Some(format!("{name}: {was} recorded, {is} built")),
                (Some(_), None) => Some(format!("{name}: recorded, not built")),
                (None, _) => Some(format!("{name}: built, not recorded")),
            })
            .collect()
    }
}

fn record_path() -> PathBuf {
    workspace::root().join("docs/instructions.json")
}

/// The linker keeps only what is reachable, so a name that is there is a panic that can happen.
fn panics<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found: Vec<String> = names
        .filter(|name| name.contains("9panicking") || name.contains("rust_begin_unwind"))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    found
}

fn count(elf: &ElfFile64<'_>) -> Result<Counts> {
    let mut counts = BTreeMap::new();
    for section in elf.sections() {
        if section.kind() != SectionKind::Text || section.size() == 0 {
            continue;
        }
        let name = section.name()?;
        if name == SUBPROGRAMS {
            counts.insert(name.to_owned(), section.size() / INSTRUCTION_BYTES);
            continue;
        }
        let programs = elf.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
        });
        for program in programs {
            let instructions = program.size() / INSTRUCTION_BYTES;
            counts.insert(program.name()?.to_owned(), instructions);
        }
    }
    Ok(Counts(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        Counts(of.iter().map(|&(n, c)| (n.to_owned(), c)).collect())
    }

    #[test]
    fn panics_are_found_in_both_manglings() {
        let names = [
            "connect4",
            "_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE",
            "_RNvNtCs1_4core9panicking5panic",
            "memcpy",
        ];
        assert_eq!(panics(names.into_iter()).len(), 2);
        assert!(panics(["tc_ingress", "panicky"].into_iter()).is_empty());
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let recorded = counts(&[("connect4", 100), ("gone", 5), ("same", 7)]);
        let built = counts(&[("connect4", 101), ("new", 3), ("same", 7)]);
        assert_eq!(
            built.differences(&recorded),
            [
                "connect4: 100 recorded, 101 built",
                "gone: recorded, not built",
                "new: built, not recorded",
            ]
        );
        assert!(built.differences(&built).is_empty());
    }

    #[test]
    fn the_table_names_every_program() {
        let table = counts(&[("connect4", 100), (".text", 12)]).table();
        assert!(table.contains("connect4           100"), "{table}");
        assert_eq!(table.lines().count(), 3);
    }
}
