//! How long to wait before the API server is asked again?

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential, and random in its upper half, so that the nodes of a cluster do not return together.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The API server answered.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The time to wait after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // The standard library seeds its hashers at random, which is random enough here.
        let random = RandomState::new().hash_one(self.failures) % 1000;
        let random = u32::try_from(random).unwrap_or_default();
        whole / 2 + whole / 2 * random / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_over() {
        let mut backoff = Backoff::default();
        for round in 0..100 {
            let whole = FIRST.saturating_mul(1 << round.min(16)).min(LONGEST);
            let wait = backoff.next();
            assert!(wait >= whole / 2 && wait <= whole, "round {round}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
