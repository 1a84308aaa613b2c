//! What should people know of a plan?

use super::table::FrontKey;
use crate::model::PortKey;

/// Why a service port cannot be programmed as desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A map has no room.
    #[error(
        "{map} is full: {needed} more needed, {capacity} in all; raise {flag} (takes effect after `lb-agent cleanup`)"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// How many elements this service port needs more.
        needed: u32,
        /// How many elements the map has.
        capacity: u32,
        /// What to raise.
        flag: &'static str,
    },
    /// More backends than one set can hold.
    #[error("{count} endpoints; a service port can have at most 1048575, so split the Service")]
    TooManyBackends {
        /// How many there are.
        count: u32,
    },
    /// Names that the API would not accept.
    #[error("its name is longer than the API allows; shorten the namespace, Service or port name")]
    NameTooLong,
}

impl Error {
    /// Whether the other says nothing new.
    pub(super) fn same_cause(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Full { map: a, .. }, Self::Full { map: b, .. }) => a == b,
            (a, b) => a == b,
        }
    }
}

/// What people should know. Each is told once, when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Several service ports claim a frontend.
    Conflict {
        /// The frontend.
        frontend: FrontKey,
        /// Who has it.
        winner: Box<PortKey>,
        /// Who claims it too, and has not been told so.
        losers: Vec<PortKey>,
    },
    /// A service port is not programmed as desired: not at all if it is new, without some or all of
    /// its new endpoints otherwise.
    Unprogrammed {
        /// The service port.
        port: Box<PortKey>,
        /// Why.
        error: Error,
    },
    /// Some addresses of this node do not fit, so that no node port is reached there.
    NodeAddresses {
        /// Why.
        error: Error,
    },
    /// More addresses of this node's interfaces than there is room for.
    HostAddresses {
        /// How many are left out: who sends from them is taken for another machine.
        left_out: usize,
    },
    /// More ranges of Services' addresses than there is room for.
    ServiceCidrs {
        /// How many are left out: what is sent to their unused addresses leaves the node.
        left_out: usize,
    },
    /// A service port that was reported is programmed as desired now.
    Recovered {
        /// The service port.
        port: Box<PortKey>,
    },
}
