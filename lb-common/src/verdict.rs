//! What happens to a packet or a socket call, with the reason.

use crate::abi::Counter;

/// What a hook does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: untouched, the next program sees it.
    Pass(PassReason),
    /// Translated; it goes on its way and the next program sees it.
    Translated,
    /// Translated; it goes back out of the interface it came from (hairpin).
    Reflected,
    /// Dropped and counted.
    Drop(DropReason),
}

/// Why a packet passes untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassReason {
    /// Neither IPv4 nor IPv6, or a protocol that Services do not know.
    NotTransport,
    /// No flow and no frontend.
    NotService,
    /// A fragment without ports.
    Fragment,
    /// Headers cut off, contradictory or beyond our bounds: whoever is addressed decides.
    Unparsed,
}

/// Why a packet to a VIP is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// V-3.
    NoBackend,
    /// V-4.
    NoLocalBackend,
    /// TCP in the middle of a connection that has no record: never a fresh random choice.
    NoFlow,
    /// No source port is left for a flow whose reply tuple another flow uses.
    NoPort,
    /// SCTP whose port would change: its `CRC32c` covers it.
    SctpPort,
    /// The packet ended inside the headers to be written.
    Rewrite,
    /// The flow tables refused a record.
    TableFull,
}

impl DropReason {
    /// Its counter.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::NoBackend => Counter::DropNoBackend,
            Self::NoLocalBackend => Counter::DropNoLocalBackend,
            Self::NoFlow => Counter::DropNoFlow,
            Self::NoPort => Counter::DropNoPort,
            Self::SctpPort => Counter::DropSctpPort,
            Self::Rewrite => Counter::DropRewrite,
            Self::TableFull => Counter::DropTableFull,
        }
    }
}

/// Why there is no backend for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBackend {
    /// No endpoint anywhere: reject (V-3, V-6).
    Reject,
    /// A Local policy and no endpoint here: drop (V-4, V-8).
    Drop,
}
