//! Measures what `cargo xtask bench` records. `role` starts a helper process of a measurement.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use lb_testbed::bench::{self, Plan, report};

const USAGE: &str =
    "usage: testbed-bench [--output table|json] [--quick] [--commit REVISION] [ID…]";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((first, args)) if first == "role" => role(args),
        _ => measure(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn role(args: &[String]) -> Result<ExitCode> {
    let Some((name, args)) = args.split_first() else { bail!("role NAME [ARGUMENT…]") };
    let answer = bench::role(name, args)?;
    writeln!(io::stdout(), "{answer}").context("write the answer")?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &[String]) -> Result<ExitCode> {
    let (mut json, mut quick, mut commit, mut wanted) = (false, false, None, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--output" => match args.next().map(String::as_str) {
                Some("json") => json = true,
                Some("table") => json = false,
                _ => bail!("{USAGE}"),
            },
            "--quick" => quick = true,
            "--commit" => commit = Some(args.next().context(USAGE)?.clone()),
            flag if flag.starts_with('-') => bail!("{USAGE}"),
            id => wanted.push(id.to_owned()),
        }
    }
    let plan = Plan::new(quick)?;
    let commit = commit.unwrap_or_else(|| bench::commit(&plan.root));
    let run = bench::run(&plan, &wanted, &commit)?;
    let text = if json {
        serde_json::to_string_pretty(&run.records).context("write records")? + "\n"
    } else {
        // What a quick run says is not for the record.
        if !quick {
            report::publish(&plan.root, &run.records)?;
        }
        report::table(&run.records)
    };
    io::stdout().write_all(text.as_bytes()).context("write the result")?;
    for failure in &run.failures {
        eprintln!("error: {failure}");
    }
    Ok(if run.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
