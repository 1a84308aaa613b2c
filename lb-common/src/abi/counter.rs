//! Counters: one per reason, per CPU.

/// Number of elements of `COUNTERS`.
pub const COUNTERS: u32 = 64;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $index:literal, $name:literal;)+) => {
        /// Index of a counter in `COUNTERS`. Numbers are part of the ABI.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[doc = $doc])+ $variant = $index,)+ }

        impl Counter {
            /// All counters in use.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name, for metrics and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts, in one sentence.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

counters! {
    /// Connections that the socket engine sent to a backend.
    SocketTranslated = 0, "socket_translated";
    /// Sockets refused because the service port has no backend at all (V-3).
    SocketRejected = 1, "socket_rejected";
    /// Sockets refused because a Local policy has no backend here (V-4).
    SocketDropped = 2, "socket_dropped";
    /// Calls whose translation could not be remembered, because a table is full; datagrams of pods are
    /// left to the packet engine.
    SocketUnrecorded = 3, "socket_unrecorded";
    /// Sockets left alone because their namespace or cgroup is bypassed.
    SocketBypassed = 4, "socket_bypassed";
    /// Connections whose client's backend could not be remembered, because `AFFINITY` refused.
    AffinityUnrecorded = 5, "affinity_unrecorded";
    /// New flows that the packet engine sent to a backend.
    FlowCreated = 8, "flow_created";
    /// New flows whose source port had to change, because another flow used the reply tuple.
    FlowReported = 9, "flow_source_port_changed";
    /// UDP flows whose backend stopped serving, so that another is chosen.
    FlowMoved = 10, "flow_moved";
    /// Flow insertions that a table refused.
    FlowTableFull = 11, "flow_table_full";
    /// Frontend or backend lookups that met an element being reused twice in a row.
    TornRead = 12, "torn_read";
    /// Packets passed untranslated, or left to tc by XDP, because the program to go on with is not in its
    /// place.
    ProgramMissing = 13, "program_missing";
    /// Answers to pings of a VIP.
    EchoAnswered = 14, "echo_answered";
    /// ICMP errors about translated packets that were translated back.
    IcmpTranslated = 15, "icmp_error_translated";
    /// Drop: the service port has no backend at all (V-3).
    DropNoBackend = 16, "drop_no_backend";
    /// Drop: a Local policy has no backend here (V-4).
    DropNoLocalBackend = 17, "drop_no_local_backend";
    /// Drop: a TCP packet to a VIP in the middle of a connection that we have no record of.
    DropNoFlow = 18, "drop_no_flow";
    /// Drop: no source port free for a flow whose reply tuple is in use.
    DropNoPort = 21, "drop_no_port";
    /// Drop: SCTP to a service port whose target port differs; its `CRC32c` cannot be kept.
    DropSctpPort = 22, "drop_sctp_port";
    /// Drop: the client is in none of the source ranges of a load balancer's address (V-5).
    DropSourceRange = 19, "drop_source_range";
    /// Drop: no route leads to the backend, or back to the client.
    DropNoRoute = 20, "drop_no_route";
    /// Drop: the packet could not be rewritten.
    DropRewrite = 23, "drop_rewrite";
    /// Drop: the flow table refused the records of a new flow.
    DropTableFull = 24, "drop_table_full";
    /// Drop: a fragment to a VIP before the first one of its datagram.
    DropFragment = 25, "drop_fragment";
    /// New flows from outside that are sent on to another node under an address of this one.
    FlowForwarded = 26, "flow_forwarded";
    /// Packets too large for the way to the backend or back: their sender is told the size that fits.
    PacketTooBig = 27, "packet_too_big";
    /// Packets whose time to live ended here: their sender is told.
    TimeExceeded = 28, "time_exceeded";
    /// Flows of this node's own from a port that is a `NodePort` too, whose answers are left alone.
    FlowForeign = 29, "flow_foreign";
    /// Packets of forwarded flows that XDP left to tc, for want of a neighbour or of XDP at the egress.
    XdpLeft = 30, "xdp_left_to_tc";
    /// Drop: to a clusterIP, but a port or protocol that its Service does not define (V-12).
    DropUndefinedPort = 32, "drop_undefined_port";
    /// Drop: to an address of a `ServiceCIDR` that no Service has (V-13).
    DropUnallocated = 33, "drop_unallocated_address";
    /// Refused packets whose sender was told, by a reset or an ICMP error.
    RefusalAnswered = 34, "refusal_answered";
    /// Refused packets whose sender was not told, because a CPU tells so many per tick only.
    RefusalSuppressed = 35, "refusal_suppressed";
    /// Refused packets whose sender may not be told (resets, multicast), or could not be.
    RefusalUnanswered = 36, "refusal_unanswered";
}

const _: () = {
    let mut i = 0;
    while i < Counter::ALL.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        let counter = Counter::ALL[i];
        assert!((counter as u32) < COUNTERS);
        i += 1;
    }
};
