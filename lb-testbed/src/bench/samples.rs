//! Small statistics, and progress for who waits.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Says what is being measured once it takes longer than a second, and how far it is.
#[derive(Debug)]
pub(super) struct Progress {
    what: String,
    all: u64,
    next: Duration,
    start: Instant,
}

impl Progress {
    /// Work of `all` steps.
    pub(super) fn new(what: impl Into<String>, all: impl Into<u64>) -> Self {
        let (all, start) = (all.into(), Instant::now());
        Self { what: what.into(), all, next: Duration::from_secs(1), start }
    }

    /// `done` steps are done.
    pub(super) fn step(&mut self, done: impl Display) {
        if self.start.elapsed() >= self.next {
            say(&format!("{}: {done} of {}", self.what, self.all));
            self.next = self.start.elapsed() + Duration::from_secs(2);
        }
    }
}

/// A line of progress; the standard output is for results.
pub(super) fn say(text: &str) {
    eprintln!("{:>10}  {text}", "bench");
}

/// The middle of some values, the mean of both middles of an even number; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
}

/// The quartiles around the median.
pub(super) fn quartiles(values: &[f64]) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |quarter: usize| {
        sorted.get((sorted.len().saturating_sub(1) * quarter + 2) / 4).copied().unwrap_or(0.0)
    };
    [at(1), at(3)]
}

/// The largest value; 0 of none.
pub(super) fn largest(values: &[f64]) -> f64 {
    values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0)
}

/// Milliseconds with their fraction.
pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        let values: Vec<f64> = (0..=8).rev().map(f64::from).collect();
        assert!(quartiles(&values).iter().zip([2.0, 6.0]).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!((largest(&values) - 8.0).abs() < 1e-9);
    }
}
