//! How does a test wait? For a condition, with a deadline, and it says what it waited for.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Checks `condition` until it holds; an error naming `what` once `deadline` has passed.
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, deadline, || condition().then_some(()))
}

/// Calls `probe` until it has a value; an error naming `what` once `deadline` has passed.
#[expect(clippy::disallowed_methods, reason = "the one place that waits")]
pub fn until_some<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
