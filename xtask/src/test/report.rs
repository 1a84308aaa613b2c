//! What became of each stage of a test run, as it goes and as a table at the end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::sh::{Finished, say};

/// What became of one stage.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran.
    Ran(Tally),
    /// It could not run here; fails where everything is required.
    Skipped(String),
    /// It need not run here or anywhere.
    SkippedAnywhere(String),
}

/// What ran in one stage.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    /// Why single tests were skipped, as they said themselves.
    skipped: Vec<String>,
    /// What to show, when something failed.
    complaint: String,
}

impl Outcome {
    /// A check, not a test, that passed.
    pub(super) fn done() -> Self {
        Self::Ran(Tally::default())
    }

    pub(super) fn skipped(reason: &str) -> Self {
        Self::Skipped(reason.to_owned())
    }

    pub(super) fn skipped_anywhere(reason: &str) -> Self {
        Self::SkippedAnywhere(reason.to_owned())
    }

    /// Reads what test binaries printed.
    pub(super) fn of(finished: &Finished) -> Self {
        let mut tally = Tally::read(&finished.transcript);
        if !finished.success {
            // A compiler error, a crash or a failed check counts as well.
            tally.failed = tally.failed.max(1);
        }
        if tally.failed > 0 {
            tally.complaint = format!("{}\n{}", complaint(&finished.transcript), finished.status);
        }
        Self::Ran(tally)
    }
}

impl Tally {
    fn read(transcript: &str) -> Self {
        let mut tally = Self::default();
        for line in transcript.lines() {
            let line = line.trim();
            if let Some(result) = line.strip_prefix("test result:") {
                tally.passed += number_before(result, " passed");
                tally.failed += number_before(result, " failed");
            }
            // Written to standard error, it may come in the middle of a line of the harness.
            if let Some((_, reason)) = line.split_once("skipped: ") {
                tally.skipped.push(reason.to_owned());
            }
        }
        tally
    }
}

fn number_before(text: &str, word: &str) -> u32 {
    text.split(word)
        .next()
        .and_then(|before| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// The transcript without what went well.
fn complaint(transcript: &str) -> String {
    let passed = |line: &str| line.starts_with("test ") && line.trim_end().ends_with("... ok");
    let built = |line: &str| {
        let verbs = ["Compiling ", "Checking ", "Downloading ", "Downloaded "];
        verbs.iter().any(|verb| line.trim_start().starts_with(verb))
    };
    let lines: Vec<&str> =
        transcript.lines().filter(|&line| !passed(line) && !built(line)).collect();
    lines.join("\n").trim().to_owned()
}

struct Stage {
    name: String,
    outcome: Outcome,
    took: Duration,
}

/// All stages so far.
pub(super) struct Report {
    /// A stage that cannot run here is a failure.
    strict: bool,
    stages: Vec<Stage>,
}

impl Report {
    pub(super) fn new(strict: bool) -> Self {
        Self { strict, stages: Vec::new() }
    }

    /// Runs one stage; an error is a failure of this stage alone.
    pub(super) fn stage(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) {
        say("stage", name);
        let started = Instant::now();
        let outcome = run().unwrap_or_else(|error| {
            Outcome::Ran(Tally { failed: 1, complaint: format!("{error:#}"), ..Tally::default() })
        });
        let outcome = match outcome {
            Outcome::Skipped(reason) if self.strict => Outcome::Ran(Tally {
                failed: 1,
                complaint: format!("CI is set, and this cannot run: {reason}"),
                ..Tally::default()
            }),
            other => other,
        };
        match &outcome {
            Outcome::Ran(tally) => {
                if tally.failed > 0 {
                    eprintln!("{}", tally.complaint);
                    say("FAILED", name);
                }
                for reason in &tally.skipped {
                    say("skipped", reason);
                }
            }
            Outcome::Skipped(reason) | Outcome::SkippedAnywhere(reason) => {
                say("skipped", &format!("{name}: {reason}"));
            }
        }
        self.stages.push(Stage { name: name.to_owned(), outcome, took: started.elapsed() });
    }

    /// Did any stage fail?
    pub(super) fn failed(&self) -> bool {
        self.totals().1 > 0
    }

    /// Prints the table and the totals.
    pub(super) fn finish(&self) -> ExitCode {
        let (passed, failed) = self.totals();
        println!("\n{}\n{passed} passed, {failed} failed", self.table());
        if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn totals(&self) -> (u32, u32) {
        self.stages.iter().fold((0, 0), |(passed, failed), stage| match &stage.outcome {
            Outcome::Ran(tally) => (passed + tally.passed, failed + tally.failed),
            Outcome::Skipped(_) | Outcome::SkippedAnywhere(_) => (passed, failed),
        })
    }

    fn table(&self) -> String {
        let title = format!(
            "{:<20} {:<8} {:>6} {:>6} {:>8}\n",
            "stage", "result", "passed", "failed", "seconds"
        );
        let rows: String = self.stages.iter().map(Stage::row).collect();
        title + &rows
    }
}

impl Stage {
    fn row(&self) -> String {
        let seconds = self.took.as_secs_f64();
        let (result, passed, failed, note) = match &self.outcome {
            Outcome::Ran(tally) => {
                let result = if tally.failed > 0 { "FAILED" } else { "ok" };
                let note = match tally.skipped.len() {
                    0 => String::new(),
                    count => format!("  {count} skipped, see above"),
                };
                (result, figure(tally.passed), figure(tally.failed), note)
            }
            Outcome::Skipped(reason) | Outcome::SkippedAnywhere(reason) => {
                let first = reason.trim_start().lines().next().unwrap_or_default();
                ("skipped", String::new(), String::new(), format!("  {first}"))
            }
        };
        let name = &self.name;
        format!("{name:<20} {result:<8} {passed:>6} {failed:>6} {seconds:>8.1}{note}\n")
    }
}

/// Nothing for 0: a check has no tests.
fn figure(count: u32) -> String {
    if count == 0 { String::new() } else { count.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(success: bool, transcript: &str) -> Finished {
        Finished {
            success,
            status: "failed (exit status: 101)".into(),
            stdout: String::new(),
            transcript: transcript.into(),
        }
    }

    const TWO_BINARIES: &str = "\
   Compiling lb-common v0.1.0
test a::one ... ok
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out
test b::two ... skipped: two: needs a kernel of 6.6
ok
test b::three ... FAILED
b::three panicked
test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out
";

    #[test]
    fn results_of_all_binaries_are_summed() {
        let tally = Tally::read(TWO_BINARIES);
        assert_eq!((tally.passed, tally.failed), (15, 2));
        assert_eq!(tally.skipped, ["two: needs a kernel of 6.6"]);
    }

    #[test]
    fn a_crash_without_a_result_is_a_failure() {
        let outcome = Outcome::of(&finished(false, "error: could not compile"));
        let Outcome::Ran(tally) = outcome else {
            panic!("it ran");
        };
        assert_eq!((tally.passed, tally.failed), (0, 1));
        assert!(tally.complaint.contains("could not compile"));
    }

    #[test]
    fn a_complaint_leaves_out_what_passed() {
        let complaint = complaint(TWO_BINARIES);
        assert!(complaint.contains("b::three panicked"));
        assert!(!complaint.contains("a::one") && !complaint.contains("Compiling"));
    }

    #[test]
    fn what_cannot_run_fails_only_where_all_is_required() {
        for (strict, failed) in [(false, false), (true, true)] {
            let mut report = Report::new(strict);
            report.stage("x", || Ok(Outcome::skipped("not root")));
            report.stage("y", || Ok(Outcome::skipped_anywhere("not wanted")));
            assert_eq!(report.failed(), failed);
            assert!(report.table().contains("not wanted"));
        }
    }

    #[test]
    fn one_stage_does_not_stop_the_next() {
        let mut report = Report::new(false);
        report.stage("breaks", || anyhow::bail!("no"));
        let good = "test result: ok. 4 passed; 0 failed;";
        report.stage("works", || Ok(Outcome::of(&finished(true, good))));
        assert_eq!(report.totals(), (4, 1));
    }
}
