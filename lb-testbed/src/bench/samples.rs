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

/// Between which of the values the median of all there could be lies, in 19 of 20 cases: from the
/// order of the values alone, whatever their distribution.
pub(super) fn interval(values: &[f64]) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let least = sorted_place(sorted.len());
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    [at(least), at(sorted.len().saturating_sub(least + 1))]
}

/// The largest number of values that may be left out on each side: with half of all values on each
/// side of the median, fewer than that are on one side in one of 40 cases at most.
fn sorted_place(count: usize) -> usize {
    let mut left_out = 0;
    // Of all ways in which `count` values can be on either side, the share with `k` on one.
    let count_f = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let (mut share, mut sum) = (0.5_f64.powf(count_f), 0.0);
    for k in 0..count / 2 {
        sum += share;
        if sum > 0.025 {
            break;
        }
        left_out = k + 1;
        let of = f64::from(u32::try_from(k).unwrap_or(u32::MAX));
        share *= (count_f - of) / (of + 1.0);
    }
    left_out.saturating_sub(1)
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

    #[test]
    fn the_interval_leaves_out_as_many_as_the_binomial_distribution_allows() {
        // As in any table of order statistics: the 4th and 12th of 15, the 6th and 16th of 21.
        for (count, from, to) in [(5, 1.0, 5.0), (15, 4.0, 12.0), (21, 6.0, 16.0)] {
            let values: Vec<f64> = (1..=count).rev().map(f64::from).collect();
            let [low, high] = interval(&values);
            assert!((low - from).abs() < 1e-9 && (high - to).abs() < 1e-9, "{low} {high}");
        }
    }
}
