//! How a command ends.

use std::io;
use std::path::PathBuf;

use lb_agent::source::SourceError;
use lb_agent::{datapath, health};

/// Exit codes, the same for all commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; for `status`: all is as it should be.
    Success = 0,
    /// It failed, and said why.
    Failure = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// `status`: in force, but something is missing.
    Degraded = 3,
    /// Nothing is in force here; for `status` also: no agent runs.
    NotRunning = 4,
}

/// Why a command cannot do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A value that cannot be right.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Nothing is pinned.
    #[error(
        "nothing of Millrace is in force here: there are no maps in {0}; start `lb-agent run`, or name the node's folder by --bpffs"
    )]
    NotLoaded(PathBuf),
    /// An agent is at work.
    #[error("an lb-agent works on {0}; stop it first, or remove everything under it with --force")]
    InUse(PathBuf),
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The server of health checks.
    #[error(transparent)]
    Health(#[from] health::server::Error),
    /// Where Services come from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A system call or a file.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn flag(flag: &'static str, reason: impl Into<String>) -> Self {
        Self::Flag { flag, reason: reason.into() }
    }

    /// Says what was attempted.
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::System { what: what.into(), source }
    }

    /// The exit code that goes with it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Flag { .. }
            | Self::Datapath(datapath::Error::NotBpffs(_) | datapath::Error::NotCgroup2(_)) => {
                Exit::Usage
            }
            Self::NotLoaded(_) => Exit::NotRunning,
            _ => Exit::Failure,
        }
    }
}
