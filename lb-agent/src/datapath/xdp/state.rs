//! What became of XDP on an interface, and how is that told to others?
//!
//! `INTERFACES` has the answer beside what the programs read, so that `status` needs no agent:
//! bits 8 to 15 of the flags are a code, bits 16 to 31 the kernel's error number where there is one.

use std::fmt;
use std::io;

use lb_common::abi::InterfaceFlags;

/// What became of XDP on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It does not belong there.
    #[default]
    Unwanted,
    /// It waits for the interface to have a carrier.
    Down,
    /// It runs.
    Runs {
        /// By the driver; else by the kernel, because that was asked for.
        native: bool,
        /// With packets in several buffers.
        frags: bool,
        /// A neighbour answered before and after; without, no neighbour answered before.
        proven: bool,
    },
    /// It was tried and taken off again: tc does its work.
    Demoted(Reason),
}

/// Why XDP does not run although it belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Attaching failed; the kernel's error number.
    Refused(u16),
    /// A neighbour that answered before did not answer any more.
    Unanswered,
    /// The kernel attached it another way than was asked for.
    OtherMode,
    /// The kernel does not load the program.
    NoProgram,
    /// The kernel could not be asked; its error number.
    Failed(u16),
}

impl State {
    /// The bits of `INTERFACES` that tell this, and whether XDP may send out of the interface.
    pub fn flags(self) -> u32 {
        let (code, number) = match self {
            Self::Unwanted => (0, 0),
            Self::Down => (1, 0),
            Self::Demoted(Reason::Refused(number)) => (2, number),
            Self::Demoted(Reason::Unanswered) => (3, 0),
            Self::Demoted(Reason::OtherMode) => (4, 0),
            Self::Demoted(Reason::NoProgram) => (5, 0),
            Self::Demoted(Reason::Failed(number)) => (6, number),
            Self::Runs { native, frags, proven } => {
                (0x80 | u32::from(native) | u32::from(frags) << 1 | u32::from(proven) << 2, 0)
            }
        };
        let may_send = if code & 0x80 != 0 { InterfaceFlags::XDP } else { 0 };
        may_send | code << 8 | u32::from(number) << 16
    }

    /// What [`Self::flags`] told.
    pub fn of_flags(flags: u32) -> Self {
        let number = (flags >> 16) as u16;
        match flags >> 8 & 0xff {
            1 => Self::Down,
            2 => Self::Demoted(Reason::Refused(number)),
            3 => Self::Demoted(Reason::Unanswered),
            4 => Self::Demoted(Reason::OtherMode),
            5 => Self::Demoted(Reason::NoProgram),
            6 => Self::Demoted(Reason::Failed(number)),
            code if code & 0x80 != 0 => {
                Self::Runs { native: code & 1 != 0, frags: code & 2 != 0, proven: code & 4 != 0 }
            }
            _ => Self::Unwanted,
        }
    }

    /// Whether XDP runs.
    pub fn runs(self) -> bool {
        matches!(self, Self::Runs { .. })
    }
}

impl Reason {
    pub(super) fn refused(error: &io::Error) -> Self {
        Self::Refused(number(error))
    }

    pub(super) fn failed(error: &io::Error) -> Self {
        Self::Failed(number(error))
    }
}

fn number(error: &io::Error) -> u16 {
    error.raw_os_error().and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwanted => f.write_str("not wanted"),
            Self::Down => f.write_str("waits for the interface to have a carrier"),
            Self::Runs { native, frags, proven } => {
                let mode = if *native { "native" } else { "generic" };
                let buffers = if *frags { "several buffers" } else { "one buffer" };
                let proof =
                    if *proven { "proven" } else { "unproven: no neighbour answered before" };
                write!(f, "{mode}, {buffers}, {proof}")
            }
            Self::Demoted(reason) => write!(f, "demoted to tc: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = match self {
            Self::Refused(number) | Self::Failed(number) => i32::from(*number),
            Self::Unanswered => {
                return f.write_str("a neighbour that had answered did not answer any more");
            }
            Self::OtherMode => {
                return f.write_str("the kernel attached it another way than was asked for");
            }
            Self::NoProgram => return f.write_str("the kernel does not load the program"),
        };
        let error = io::Error::from_raw_os_error(number);
        if matches!(self, Self::Failed(_)) {
            return write!(f, "the kernel could not be asked ({error})");
        }
        write!(f, "the driver or the kernel refuses ({error})")?;
        match number {
            libc::EOPNOTSUPP => f.write_str(
                ": the driver has no XDP, or not with the offloads (LRO, guest TSO) that are on",
            ),
            libc::EINVAL | libc::ERANGE => f.write_str(": the MTU may be too large for the driver"),
            libc::ENOMEM | libc::ENOSPC => {
                f.write_str(": the card may have too few queues for this number of CPUs")
            }
            libc::EBUSY | libc::EEXIST => f.write_str(": another XDP program is on it"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_in_flags_is_what_is_read() {
        let mut states = vec![State::Unwanted, State::Down];
        for (native, frags, proven) in
            (0..8).map(|bits: u8| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0))
        {
            states.push(State::Runs { native, frags, proven });
        }
        for reason in [
            Reason::Refused(95),
            Reason::Unanswered,
            Reason::OtherMode,
            Reason::NoProgram,
            Reason::Failed(u16::MAX),
        ] {
            states.push(State::Demoted(reason));
        }
        for state in states {
            let flags = state.flags();
            assert_eq!(State::of_flags(flags), state, "{flags:#x}");
            assert_eq!(flags & InterfaceFlags::XDP != 0, state.runs(), "{state}");
            let others = InterfaceFlags::OFF_NODE | InterfaceFlags::LOCAL_POD | InterfaceFlags::L3;
            assert_eq!(flags & others, 0, "{state}");
        }
    }

    #[test]
    fn what_refuses_is_told_with_what_is_likely() {
        let text = |number: i32| {
            State::Demoted(Reason::refused(&io::Error::from_raw_os_error(number))).to_string()
        };
        assert!(text(libc::EOPNOTSUPP).contains("(os error 95)"), "{}", text(libc::EOPNOTSUPP));
        assert!(text(libc::EOPNOTSUPP).contains("has no XDP"));
        assert!(text(libc::EINVAL).contains("MTU"));
        assert!(text(libc::ENOMEM).contains("queues"));
        assert!(text(libc::EBUSY).contains("another XDP program"));
        assert!(!text(libc::EPERM).contains("MTU"), "nothing is made up");
    }
}
