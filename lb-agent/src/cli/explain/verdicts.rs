//! What does a verdict mean to people, and what does it do to the source of a packet?

use std::net::SocketAddr;

use lb_common::verdict::Verdict;

use super::recorder::Notes;

/// The verdict on what no Service has.
pub(super) const NOT_SERVICE: &str = "not_service";

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Translated => "translated",
        Verdict::Reflected => "reflected",
        Verdict::Forwarded => "forwarded",
        Verdict::NotService => NOT_SERVICE,
        Verdict::NotTransport => "not_transport",
        Verdict::Fragment => "fragment",
        Verdict::Unparsed => "unparsed",
        Verdict::Left => "left",
        Verdict::NoBackend => "no_backend",
        Verdict::NoLocalBackend => "no_local_backend",
        Verdict::NoFlow => "no_flow",
        Verdict::NoPort => "no_port",
        Verdict::SctpPort => "sctp_port",
        Verdict::Rewrite => "rewrite",
        Verdict::TableFull => "table_full",
        Verdict::EarlyFragment => "early_fragment",
        Verdict::SourceRange => "source_range",
        Verdict::NoRoute => "no_route",
        Verdict::TooBig => "too_big",
        Verdict::TimeExceeded => "time_exceeded",
        Verdict::UndefinedPort => "undefined_port",
        Verdict::Unallocated => "unallocated",
    }
}

pub(super) fn meaning(verdict: Verdict, to: Option<SocketAddr>) -> String {
    let to = to.map(|to| to.to_string()).unwrap_or_default();
    match verdict {
        Verdict::Translated => format!("goes to {to}; replies come back with the VIP"),
        Verdict::Reflected => {
            format!("goes back to the client itself, to {to}, with the VIP as its source (hairpin)")
        }
        Verdict::NotService => "not a Service's: passed untouched".into(),
        Verdict::Forwarded => {
            format!("sent on to {to}, with an address of this node as its source")
        }
        Verdict::NotTransport | Verdict::Fragment | Verdict::Unparsed | Verdict::Left => {
            "passed untouched".into()
        }
        Verdict::NoBackend => {
            "refused: the Service has no backend; the client is told at once".into()
        }
        Verdict::NoLocalBackend => {
            "dropped: no backend on this node, as the Service's policy wants".into()
        }
        Verdict::NoFlow => {
            "refused: in the middle of a connection that has no record; the client gets a reset".into()
        }
        Verdict::NoPort => "dropped: other flows use every source port that was tried".into(),
        Verdict::SctpPort => {
            "dropped: SCTP to another target port, which its checksum forbids".into()
        }
        Verdict::Rewrite => "dropped: the packet ends inside its headers".into(),
        Verdict::TableFull => "dropped: the flow table is full".into(),
        Verdict::EarlyFragment => "dropped: a fragment before the first one".into(),
        Verdict::SourceRange => {
            "dropped: the client is in none of the source ranges of this address".into()
        }
        Verdict::NoRoute => "dropped: no route leads there".into(),
        Verdict::TooBig => {
            "refused: too long for the way there; the client is told the size that fits".into()
        }
        Verdict::TimeExceeded => "refused: its time to live ends here; the client is told".into(),
        Verdict::UndefinedPort => {
            "refused, as it arrives or where it would leave the node: a Service's address, but none of \
             its Service's ports; the client is told at once"
                .into()
        }
        Verdict::Unallocated => {
            "dropped where it would leave the node: an address for Services that none of them has"
                .into()
        }
    }
}

/// What happens to the source of a packet that is translated, and why (contract M-1 to M-10, and where
/// Millrace departs from them).
pub(super) fn source(verdict: Verdict, notes: &Notes) -> Option<&'static str> {
    match verdict {
        Verdict::Translated if notes.known_flow => None,
        Verdict::Translated if notes.outside => {
            Some("its source is kept: the backend is on this node")
        }
        Verdict::Translated => Some("its source is kept: the client is on this node"),
        Verdict::Reflected => Some("its source changes: the backend is the client itself (M-1)"),
        Verdict::Forwarded if notes.known_flow => Some("its source changes as its record says"),
        Verdict::Forwarded if notes.outside => {
            Some("its source changes: it comes from outside, and the backend is on another node")
        }
        Verdict::Forwarded if notes.masqueraded => {
            Some("its source changes: every client of a clusterIP is masqueraded (M-6)")
        }
        Verdict::Forwarded => Some("its source changes: the client is no pod of this node (M-7)"),
        _ => None,
    }
}
