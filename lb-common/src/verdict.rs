//! What happens to a packet or a socket call, with the reason.

use crate::abi::Counter;

/// What a hook does with a packet, and why. Without payload, so that it fits a register.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Translated; it goes on its way and the next program sees it.
    Translated = 0,
    /// Translated; it goes back out of the interface it came from (hairpin).
    Reflected = 1,
    /// Translated; it is sent out of the interface that its route leads to.
    Forwarded = 2,
    /// Pass: no flow and no frontend.
    NotService = 16,
    /// Pass: neither IPv4 nor IPv6, or a protocol that Services do not know.
    NotTransport = 17,
    /// Pass: a fragment without ports that is no known datagram's.
    Fragment = 18,
    /// Pass: headers cut off, contradictory or beyond our bounds; whoever is addressed decides.
    Unparsed = 19,
    /// Pass, at XDP: what is to be done with it is done at tc.
    Left = 20,
    /// Drop: the service port has no backend at all (V-3).
    NoBackend = 32,
    /// Drop: a Local policy has no backend here (V-4).
    NoLocalBackend = 33,
    /// Drop: TCP in the middle of a connection without a record; never a fresh random choice.
    NoFlow = 34,
    /// Drop: no source port is left for a flow whose reply tuple another flow uses.
    NoPort = 35,
    /// Drop: SCTP whose port would change; its `CRC32c` covers it.
    SctpPort = 36,
    /// Drop: the packet ended inside the headers to be written.
    Rewrite = 37,
    /// Drop: the flow tables refused a record.
    TableFull = 38,
    /// Drop: a fragment to a VIP before the first one of its datagram, which has the ports.
    EarlyFragment = 39,
    /// Drop: the source is in none of the ranges of a load balancer's address (V-5).
    SourceRange = 40,
    /// Drop: no route leads to the backend, or back to the client.
    NoRoute = 41,
    /// Drop: too long for the way that it has to go.
    TooBig = 42,
    /// Drop: its time to live ends here.
    TimeExceeded = 43,
    /// Drop: to a Service's address, but a port or protocol that it does not define (V-12).
    UndefinedPort = 48,
    /// Drop: to an address of a `ServiceCIDR` that no Service has (V-13).
    Unallocated = 49,
}

impl Verdict {
    /// The counter of a drop; `None` for everything else.
    #[inline(always)]
    pub const fn drop_counter(self) -> Option<Counter> {
        match self {
            Self::Translated
            | Self::Reflected
            | Self::Forwarded
            | Self::NotService
            | Self::NotTransport
            | Self::Fragment
            | Self::Unparsed
            | Self::Left => None,
            Self::NoBackend => Some(Counter::DropNoBackend),
            Self::NoLocalBackend => Some(Counter::DropNoLocalBackend),
            Self::NoFlow => Some(Counter::DropNoFlow),
            Self::NoPort => Some(Counter::DropNoPort),
            Self::SctpPort => Some(Counter::DropSctpPort),
            Self::Rewrite => Some(Counter::DropRewrite),
            Self::TableFull => Some(Counter::DropTableFull),
            Self::EarlyFragment => Some(Counter::DropFragment),
            Self::SourceRange => Some(Counter::DropSourceRange),
            Self::NoRoute => Some(Counter::DropNoRoute),
            Self::TooBig => Some(Counter::PacketTooBig),
            Self::TimeExceeded => Some(Counter::TimeExceeded),
            Self::UndefinedPort => Some(Counter::DropUndefinedPort),
            Self::Unallocated => Some(Counter::DropUnallocated),
        }
    }

    /// Whether the sender of a dropped packet is told (V-3, V-6, V-12), as far as that may be: by
    /// silence it would wait in vain.
    #[inline(always)]
    pub const fn is_reject(self) -> bool {
        matches!(
            self,
            Self::NoBackend
                | Self::NoFlow
                | Self::UndefinedPort
                | Self::TooBig
                | Self::TimeExceeded
        )
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
