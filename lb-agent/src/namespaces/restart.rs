//! What if looking after namespaces breaks down? It begins anew, after a pause that grows, and all
//! else goes on meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::keeper::Signal;
use crate::datapath::Error;

/// Before the first new beginning. One that lasted for [`LONG`] counts as the first again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(10);

/// The name of the thread.
pub(super) const THREAD: &str = "namespaces";
/// The name of those that enter namespaces for it.
pub(super) const VISITOR: &str = "visitor";

/// Whether a panic on the thread of this name is caught and told; elsewhere it is better to have it be
/// the end of the process.
pub fn catches(thread: Option<&str>) -> bool {
    matches!(thread, Some(THREAD | VISITOR))
}

/// Runs what `make` makes until it ends by itself. What panics, and what cannot be made, is told and
/// made anew.
pub(super) fn run<T>(
    signal: &Signal,
    first: T,
    mut make: impl FnMut() -> Result<T, Error>,
    run: impl Fn(T),
) {
    let mut next = Some(first);
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let made = match next.take() {
            Some(made) => Ok(made),
            None => make(),
        };
        match made {
            Ok(made) => {
                // Nothing is used again of what it leaves half done.
                if catch_unwind(AssertUnwindSafe(|| run(made))).is_ok() {
                    return;
                }
                if began.elapsed() >= LONG {
                    pause = FIRST_PAUSE;
                }
                tracing::error!(
                    pause_s = pause.as_secs(),
                    "what looks after network namespaces broke down, as told above, which is a bug; \
                     it begins anew: until then new pods with a service mesh are not bypassed, and \
                     UDP sockets stay on backends that are gone"
                );
            }
            Err(error) => tracing::error!(
                %error,
                pause_s = pause.as_secs(),
                "network namespaces cannot be looked after; will be tried again"
            ),
        }
        if signal.is_stopped_within(pause) {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        signal.again();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::namespaces::changed::Changed;

    #[test]
    fn what_breaks_down_begins_anew_and_looks_at_everything_again() {
        let signal = Arc::new(Signal::default());
        signal.committed(Changed::default());
        let now = Instant::now();
        assert!(signal.wait(now, now).changed.is_some());
        let runs = AtomicUsize::new(0);
        let made = AtomicUsize::new(1);
        let (told, was_told) = mpsc::channel();
        std::thread::scope(|scope| {
            let shared = Arc::clone(&signal);
            scope.spawn(move || {
                let make = || match made.fetch_add(1, Ordering::Relaxed) {
                    1 => Err(Error::NoProgram("none")),
                    _ => Ok(()),
                };
                let shared = &shared;
                run(shared, (), make, |()| {
                    assert!(runs.fetch_add(1, Ordering::Relaxed) > 0, "on purpose");
                    let now = Instant::now();
                    told.send(shared.wait(now, now).changed).unwrap();
                });
            });
            // It ends by itself: nothing is made again.
            let changed = was_told.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!(changed, Some(Changed::default()), "as at a start");
        });
    }

    #[test]
    fn who_is_to_stop_does_not_wait_for_the_next_beginning() {
        let signal = Signal::default();
        signal.stop();
        let began = Instant::now();
        run(&signal, (), || Ok(()), |()| panic!("on purpose"));
        assert!(began.elapsed() < FIRST_PAUSE);
    }
}
