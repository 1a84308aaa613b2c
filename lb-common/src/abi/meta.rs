//! What tools want to know and no kernel program reads: names of service ports, state of the agent.

/// Bytes of an element of `NAMES`.
pub const NAME_LEN: usize = 200;

/// Element of `NAMES`, UTF-8, zero-filled: `namespace/service:port/PROTOCOL` and the IP family, as
/// in `default/web:http/TCP4`.
///
/// It is the identity of a service port (contract S-7): a restarted agent knows by it which ids are
/// whose. The port name may be empty; the protocol is `TCP`, `UDP` or `SCTP`, the family `4` or
/// `6`. No part holds a `/` or `:`, and each name is a DNS label, so that the longest takes
/// 63 + 1 + 63 + 1 + 63 + 1 + 5 bytes.
pub type Name = [u8; NAME_LEN];

const _: () = assert!(NAME_LEN >= 63 + 1 + 63 + 1 + 63 + 1 + 5 && NAME_LEN.is_multiple_of(8));

/// Number of words of `META`.
pub const META_WORDS: u32 = 24;

/// Index of a word in `META`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaWord {
    /// [`super::ABI_VERSION`].
    AbiVersion = 0,
    /// Process id of the agent that wrote last.
    AgentPid = 1,
    /// Unix time in milliseconds of the last commit.
    LastCommitMs = 2,
    /// 1 once the first complete list was programmed.
    Synced = 3,
    /// Objects that are skipped as bad.
    SkippedObjects = 4,
    /// Commits since the maps were made.
    Commits = 5,
    /// Unix time in milliseconds when the source last answered.
    SourceSeenMs = 6,
    /// Conflicting frontends (contract S-15).
    Conflicts = 7,
    /// Service ports that are not programmed as desired.
    Unprogrammed = 8,
    /// What Services claim and do not get, because it belongs to somebody else (contract section 12).
    Refused = 9,
    /// Services whose health check node port cannot be had (contract H-12).
    FailedHealthPorts = 10,
    /// How pods of this node are told (contract 4.3): 1 by what interfaces lead to, 2 by the cluster's
    /// range of addresses, 3 by the node's, 4 by a bridge, 5 by names of interfaces, 6 not at all; with
    /// bit 8, every connection to a clusterIP is masqueraded (M-6).
    LocalDetector = 11,
    /// Whose sockets the socket engine serves: 0 everybody's, 1 those of the node's own network
    /// namespace, 2 nobody's.
    SocketScope = 12,
    /// Connected UDP sockets that were ended because their backend was gone, since the maps were made.
    DestroyedSockets = 13,
    /// Source ports of what is sent on: the first one in the low half, how many in the high one.
    SnatPorts = 14,
    /// Addresses for SNAT that were asked for and that the node does not have.
    MissingSnatAddresses = 15,
    /// How often XDP was taken off an interface, or could not be put there, since the maps were made.
    XdpDemotions = 16,
    /// What source ports of what is sent on begin from: random in the low half, with bit 32 once it was
    /// drawn. A secret of this node's.
    SnatSeed = 17,
}
