//! How large are the programs to the verifier? `cargo xtask test` compares these numbers; here they
//! are only told.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Figure, Plan, Reach};

pub(super) const IDS: [&str; 2] = ["insns", "stack"];

/// What `cargo xtask test` and `cargo xtask build --check` compare.
const FILES: [&str; 2] = ["docs/instructions.json", "docs/verifier.json"];
const MAX_INSNS: f64 = 100_000.0;
const MAX_STACK: f64 = 384.0;

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for file in FILES {
        let path = plan.root.join(file);
        if path.is_file() {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let found = parse(&text, file).with_context(|| format!("understand {file}"))?;
            ensure!(!found.is_empty(), "{file} names no program");
            figures.extend(found);
        } else {
            let id = format!("insns.{}", file.trim_start_matches("docs/"));
            let why = format!("{file} does not exist; `cargo xtask test` compares it once it does");
            let figure = Figure::missing(id, "instructions", why);
            figures.push(figure.method(method(file, "")));
        }
    }
    Ok(figures)
}

fn method(file: &str, kernel: &str) -> String {
    format!("as recorded in {file}{kernel}, which tests compare")
}

/// Programs are numbers, or objects with numbers at any depth; the kernel's release is a string
/// beside them.
fn parse(text: &str, file: &str) -> Result<Vec<Figure>> {
    let value: Value = serde_json::from_str(text)?;
    let mut figures = Vec::new();
    collect(&value, None, (file, ""), &mut figures);
    figures.sort_by(|a, b| a.id().cmp(b.id()));
    Ok(figures)
}

fn collect(
    value: &Value,
    program: Option<&str>,
    (file, kernel): (&str, &str),
    figures: &mut Vec<Figure>,
) {
    let Some(object) = value.as_object() else { return };
    let release = object.get("kernel").and_then(Value::as_str);
    let kernel = release.map_or_else(|| kernel.to_owned(), |release| format!(" on {release}"));
    for (key, value) in object {
        let Some(number) = value.as_f64() else {
            collect(value, Some(key), (file, &kernel), figures);
            continue;
        };
        let figure = match (program, key.as_str()) {
            (None, program) => {
                Figure::new(format!("insns_{}", program.trim_matches('.')), number, "instructions")
            }
            (Some(program), "verified_instructions") => {
                Figure::new(format!("insns_verified_{program}"), number, "instructions")
                    .reach(Reach::AtMost(MAX_INSNS))
            }
            (Some(program), "stack") => Figure::new(format!("stack_{program}"), number, "bytes")
                .reach(Reach::AtMost(MAX_STACK)),
            _ => continue,
        };
        figures.push(figure.method(method(file, &kernel)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_programs_become_figures() {
        let text = r#"{"kernel": "6.18.1", "programs": {
            "tc_ingress": {"verified_instructions": 4000, "stack": 256},
            "connect4": {"verified_instructions": 120000, "stack": 64, "time_us": 9}}}"#;
        let figures = parse(text, "f").unwrap();
        let ids: Vec<&str> = figures.iter().map(Figure::id).collect();
        assert_eq!(
            ids,
            [
                "insns_verified_connect4",
                "insns_verified_tc_ingress",
                "stack_connect4",
                "stack_tc_ingress"
            ]
        );
        assert_eq!(figures[0].value(), Some(120_000.0));
        let figures = parse(r#"{".text": 9721, "connect4": 456}"#, "f").unwrap();
        let ids: Vec<&str> = figures.iter().map(Figure::id).collect();
        assert_eq!(ids, ["insns_connect4", "insns_text"]);
    }
}
