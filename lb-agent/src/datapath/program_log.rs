//! What do the kernel programs say? Only a debug build of them says anything.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Lines wait in a ring buffer meanwhile.
const EVERY: Duration = Duration::from_millis(100);

/// Lines of the programs as lines of the agent.
struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "programs", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Follows the log of the programs for as long as the runtime lives.
pub(super) fn follow(ebpf: &mut Ebpf) {
    match EbpfLogger::init_with_logger(ebpf, Forward) {
        Ok(mut logger) => {
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(EVERY);
                loop {
                    ticks.tick().await;
                    logger.flush();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the programs say nothing"),
    }
}
