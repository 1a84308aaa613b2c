//! How large are the programs to the verifier? `cargo xtask test` compares these numbers; here they
//! are only told.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Figure, Plan, Reach};

pub(super) const IDS: [&str; 2] = ["insns", "stack"];

/// What `cargo xtask test` records.
const FILE: &str = "docs/verifier.json";
const MAX_INSNS: f64 = 100_000.0;
const MAX_STACK: f64 = 384.0;

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let path = plan.root.join(FILE);
    if !path.is_file() {
        let why = format!("{FILE} does not exist; `cargo xtask test` compares it once it does");
        return Ok(vec![
            Figure::missing("insns_verified", "instructions", why.clone())
                .reach(Reach::AtMost(MAX_INSNS))
                .method(method("")),
            Figure::missing("stack_depth", "bytes", why)
                .reach(Reach::AtMost(MAX_STACK))
                .method(method("")),
        ]);
    }
    read(&path)
}

fn method(kernel: &str) -> String {
    format!("as recorded in {FILE}{kernel}, compared by `cargo xtask test`")
}

fn read(path: &Path) -> Result<Vec<Figure>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let figures = parse(&text).with_context(|| format!("understand {}", path.display()))?;
    ensure!(!figures.is_empty(), "{} names no program", path.display());
    Ok(figures)
}

/// Programs are objects with numbers, at any depth; the kernel's release is a string beside them.
fn parse(text: &str) -> Result<Vec<Figure>> {
    let value: Value = serde_json::from_str(text)?;
    let mut figures = Vec::new();
    collect(&value, "", "", &mut figures);
    figures.sort_by(|a, b| a.id().cmp(b.id()));
    Ok(figures)
}

fn collect(value: &Value, name: &str, kernel: &str, figures: &mut Vec<Figure>) {
    let Some(object) = value.as_object() else { return };
    let release = object.get("kernel").or_else(|| object.get("release")).and_then(Value::as_str);
    let kernel = release.map_or_else(|| kernel.to_owned(), |release| format!(" on {release}"));
    for (key, value) in object {
        let Some(number) = value.as_f64() else {
            collect(value, key, &kernel, figures);
            continue;
        };
        let figure = if key.contains("stack") {
            Figure::new(format!("stack_{name}"), number, "bytes").reach(Reach::AtMost(MAX_STACK))
        } else if key.contains("insn") || key.contains("instructions") {
            let kind = if key.contains("verified") { "insns_verified_" } else { "insns_" };
            Figure::new(format!("{kind}{name}"), number, "instructions")
                .reach(Reach::AtMost(MAX_INSNS))
        } else {
            continue;
        };
        figures.push(figure.method(method(&kernel)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_programs_become_figures() {
        let text = r#"{"kernel": "6.18.1", "programs": {
            "tc_ingress": {"instructions": 700, "verified_instructions": 4000, "stack": 256},
            "connect4": {"verified_insns": 120000, "stack_depth": 64, "time_us": 9}}}"#;
        let figures = parse(text).unwrap();
        let ids: Vec<&str> = figures.iter().map(Figure::id).collect();
        assert_eq!(
            ids,
            [
                "insns_tc_ingress",
                "insns_verified_connect4",
                "insns_verified_tc_ingress",
                "stack_connect4",
                "stack_tc_ingress"
            ]
        );
        assert_eq!(figures[1].value(), Some(120_000.0));
    }
}
