//! How many cases, from which seed, and where are failures kept?

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env,
    fmt::Debug,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner},
};

/// Shrunk failures.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/regressions/");

/// Histories that a property is tried on.
const DEFAULT_CASES: u64 = 150;

/// What one case costs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weight {
    /// Little.
    Usual,
    /// Every question is asked for each change of a cluster.
    Dear,
}

/// What was compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// How many decisions.
    pub(crate) compared: u64,
    /// How often the oracle's answer came from a rule.
    pub(crate) rules: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// So many decisions.
    pub(crate) fn of(compared: u64) -> Self {
        Self { compared, ..Self::default() }
    }

    /// The oracle's answer came from this rule.
    pub(crate) fn met(&mut self, rule: &'static str) {
        *self.rules.entry(rule).or_default() += 1;
    }

    /// These too.
    pub(crate) fn add(&mut self, other: &Self) {
        self.compared += other.compared;
        for (rule, times) in &other.rules {
            *self.rules.entry(rule).or_default() += times;
        }
    }
}

/// Tries a property, which answers what it compared. `weight` is how many times as many cases as
/// usual it is tried on, because it costs less. Each of `rules` must have been met, unless there are few cases:
/// generated clusters that never come near a rule prove nothing of it.
pub(crate) fn check<S: Strategy<Value: Debug>>(
    name: &'static str,
    weight: Weight,
    rules: &[&str],
    strategy: S,
    property: impl Fn(S::Value) -> Result<Tally, TestCaseError>,
) {
    let cases = number("MILLRACE_ORACLE_CASES").unwrap_or(DEFAULT_CASES);
    let cases = u32::try_from(cases).unwrap_or(u32::MAX);
    let cases = match weight {
        Weight::Usual => cases,
        Weight::Dear => cases.div_ceil(8),
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = number("MILLRACE_ORACLE_SEED").unwrap_or_else(now);
    // Kept for as long as the test runs, because the type asks for it.
    let file: &'static str = Box::leak(format!("{REGRESSIONS}{name}.txt").into_boxed_str());
    let mut runner = TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        max_shrink_iters: number("MILLRACE_ORACLE_SHRINKS")
            .map_or(1_500, |n| u32::try_from(n).unwrap_or(0)),
        ..Config::default()
    });
    let (tally, started) = (RefCell::new(Tally::default()), Instant::now());
    let result = runner.run(&strategy, |value| {
        let compared = property(value)?;
        tally.borrow_mut().add(&compared);
        Ok(())
    });
    let Tally { compared, rules: met } = tally.into_inner();
    println!(
        "{name}: {cases} cases, {compared} decisions compared in {:.1} s; seed {seed}; {met:?}",
        started.elapsed().as_secs_f64()
    );
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, value)) => panic!("{name}: {reason}\nin {value:#?}"),
        Err(TestError::Abort(reason)) => panic!("{name} gave up: {reason}"),
    }
    assert!(compared > 0, "nothing was compared");
    let missed: Vec<_> = rules.iter().filter(|rule| !met.contains_key(*rule)).collect();
    let many = u64::from(cases) >= DEFAULT_CASES;
    assert!(!many || missed.is_empty(), "{name}: {cases} cases never met {missed:?}");
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
