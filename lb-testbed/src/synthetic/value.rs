//! Objects as text: JSON and YAML in kubectl's layout.

use std::fmt::Write as _;

/// What objects are made of; keys are in the order in which they were given.
#[derive(Clone)]
pub(super) enum Value {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
}

#[expect(clippy::needless_pass_by_value, reason = "most are made on the spot")]
pub(super) fn text(text: impl ToString) -> Value {
    Value::Text(text.to_string())
}

pub(super) fn map<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(fields.into())
}

pub(super) fn json(value: &Value, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    match value {
        Value::List(items) if items.is_empty() => out.push_str("[]"),
        Value::Map(fields) if fields.is_empty() => out.push_str("{}"),
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                out.push(if index == 0 { '[' } else { ',' });
                line(out, depth + 1);
                json(item, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Map(fields) => {
            for (index, (key, field)) in fields.iter().enumerate() {
                out.push(if index == 0 { '{' } else { ',' });
                line(out, depth + 1);
                append(out, format_args!("\"{key}\": "));
                json(field, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        scalar => write_scalar(scalar, out),
    }
}

/// Writes `value` behind what begins it: a dash, or a key with its colon.
pub(super) fn yaml(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::List(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Map(fields) if fields.is_empty() => out.push_str(" {}\n"),
        Value::List(items) => {
            out.push('\n');
            for item in items {
                out.extend(std::iter::repeat_n("  ", depth - 1));
                out.push('-');
                yaml(item, depth, out);
            }
        }
        Value::Map(fields) => {
            // The first field of an item stands behind its dash.
            let mut same_line = out.ends_with('-');
            if !same_line {
                out.push('\n');
            }
            for (key, field) in fields {
                if std::mem::take(&mut same_line) {
                    out.push(' ');
                } else {
                    out.extend(std::iter::repeat_n("  ", depth));
                }
                append(out, format_args!("{key}:"));
                yaml(field, depth + 1, out);
            }
        }
        scalar => {
            out.push(' ');
            write_scalar(scalar, out);
            out.push('\n');
        }
    }
}

/// Texts are quoted always: no address must look like a number.
fn write_scalar(value: &Value, out: &mut String) {
    match value {
        Value::Number(number) => append(out, format_args!("{number}")),
        Value::Bool(value) => append(out, format_args!("{value}")),
        Value::Text(text) => append(out, format_args!("\"{text}\"")),
        Value::List(_) | Value::Map(_) => {}
    }
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _always_ok = out.write_fmt(text);
}
