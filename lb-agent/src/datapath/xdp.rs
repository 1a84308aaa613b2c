//! On which interfaces does XDP run, and how is it known that packets still arrive there?
//!
//! XDP is an engine more, never one that is needed: what it does not do, tc does. So nothing here
//! fails. An interface whose driver refuses, or that nobody answers on once the program is there, is
//! demoted to tc, counted and told about, and tried again when its link changes.

use std::collections::BTreeSet;
use std::fmt;

use super::roles::{Interface, Kind, Role};

/// How XDP is attached, `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By the interface's driver, before the kernel makes a packet of a frame.
    #[default]
    Native,
    /// By the kernel, for any interface: slower than tc, for tests of what only XDP does.
    Generic,
    /// Nowhere.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// Where XDP is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How it is attached.
    pub mode: Mode,
    /// Names of the interfaces, `--xdp-interfaces`; none: every uplink with a driver.
    pub interfaces: Option<BTreeSet<String>>,
}

impl Config {
    /// Whether XDP belongs on an interface.
    ///
    /// Never on one that leads to a pod: on a veth it halves throughput and corrupts checksums that
    /// are still to be filled in. A veth that is an uplink has to be named. Where there are VLANs,
    /// cards may take tags off before XDP sees a packet, which then looks like one without.
    pub fn wants(&self, interface: &Interface) -> bool {
        let Interface { name, role, ethernet, device, .. } = interface;
        let chosen = match &self.interfaces {
            Some(names) => names.contains(name),
            None => device.kind == Kind::Physical,
        };
        self.mode != Mode::Off && *role == Role::Uplink && *ethernet && !device.has_vlan && chosen
    }
}
