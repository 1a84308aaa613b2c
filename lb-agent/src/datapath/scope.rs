//! Whose sockets does the socket engine serve?

use std::fmt;

/// What `--socket-engine` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those of all processes below the node's cgroup, but for what is bypassed.
    #[default]
    All,
    /// Only those in the node's own network namespace.
    Host,
    /// Nobody's.
    Off,
}

impl Scope {
    /// The value of [`lb_common::abi::MetaWord::SocketScope`].
    pub const fn word(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Host => 1,
            Self::Off => 2,
        }
    }

    /// The scope that such a value says.
    pub const fn of_word(word: u64) -> Self {
        match word {
            1 => Self::Host,
            2 => Self::Off,
            _ => Self::All,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_comes_back_as_it_was_written() {
        for scope in [Scope::All, Scope::Host, Scope::Off] {
            assert_eq!(Scope::of_word(scope.word()), scope);
        }
        assert_eq!(Scope::of_word(99), Scope::All);
    }
}
