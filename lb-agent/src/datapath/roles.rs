//! Which part does an interface play, and so: which programs belong on it?
//!
//! Design: a pod port leads to a pod, an uplink out of the node, an overlay to other nodes inside of
//! packets of the uplink. Masters are ignored, because their ports are looked at instead: a packet
//! must not be translated twice.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What netlink tells of a link, as far as roles depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of device it is.
    pub kind: Kind,
    /// Whether its frames begin with an Ethernet header.
    pub ethernet: bool,
    /// The other end is in another network namespace (`IFLA_LINK_NETNSID`).
    pub peer_elsewhere: bool,
    /// It is a port of a bridge.
    pub in_bridge: bool,
    /// There is a VLAN on it.
    pub has_vlan: bool,
    /// It has an address that means something beyond the link.
    pub has_address: bool,
    /// A default route leaves by it.
    pub default_route: bool,
}

/// Kinds of devices, as `IFLA_INFO_KIND` tells them, and what has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// No kind: a device with a driver.
    Physical,
    /// Loopback.
    Loopback,
    /// One end of a veth pair, or of a netkit pair.
    Veth,
    /// bridge, bond, team or vrf: has ports.
    Master,
    /// ifb: only ever redirected to.
    Ifb,
    /// A VLAN on another device.
    Vlan,
    /// vxlan, geneve, gre, ipip, sit, `WireGuard`, xfrm and their like.
    Tunnel,
    /// tun or tap.
    Tun,
    /// Anything else: dummy, macvlan, ipvlan, …
    #[default]
    Other,
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host's end of a pod's link.
    PodPort,
    /// A way out of the node.
    Uplink,
    /// A tunnel between nodes.
    Overlay,
    /// Nothing of ours belongs here.
    Ignored(Reason),
}

/// Why an interface is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `--interfaces` says so.
    Configured,
    /// Loopback.
    Loopback,
    /// ifb.
    Ifb,
    /// Its ports are looked at instead.
    Master,
    /// Its VLANs are looked at instead: it has no address itself.
    VlanParent,
    /// Both ends of the pair are in this namespace.
    PeerHere,
    /// Of a kind that leads neither to a pod nor out of the node.
    Unknown,
}

/// The role of a link.
pub fn role(link: &Link, overrides: &Overrides) -> Role {
    if let Some(&role) = overrides.0.get(&link.name) {
        return role;
    }
    match link.kind {
        Kind::Loopback => Role::Ignored(Reason::Loopback),
        Kind::Ifb => Role::Ignored(Reason::Ifb),
        // Before the default route: it often leaves by a bridge or a bond, whose ports are ours.
        Kind::Master => Role::Ignored(Reason::Master),
        Kind::Tun if link.ethernet && link.in_bridge => Role::PodPort,
        Kind::Tunnel | Kind::Tun => Role::Overlay,
        _ if link.default_route => Role::Uplink,
        // Frames without a tag are the node's own network, where it has an address.
        Kind::Physical if link.has_vlan && link.has_address => Role::Uplink,
        _ if link.has_vlan => Role::Ignored(Reason::VlanParent),
        Kind::Physical | Kind::Vlan => Role::Uplink,
        Kind::Veth if link.peer_elsewhere => Role::PodPort,
        Kind::Veth => Role::Ignored(Reason::PeerHere),
        Kind::Other => Role::Ignored(Reason::Unknown),
    }
}

/// Roles given by name, from `--interfaces name=role,…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<String, Role>);

/// What is wrong with `--interfaces`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not name=role with role pod-port, uplink, overlay or ignored")]
pub struct BadOverride(String);

impl FromStr for Overrides {
    type Err = BadOverride;

    fn from_str(text: &str) -> Result<Self, BadOverride> {
        let mut overrides = BTreeMap::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let bad = || BadOverride(item.to_owned());
            let (name, role) = item.split_once('=').ok_or_else(bad)?;
            let role = match role {
                "pod-port" => Role::PodPort,
                "uplink" => Role::Uplink,
                "overlay" => Role::Overlay,
                "ignored" => Role::Ignored(Reason::Configured),
                _ => return Err(bad()),
            };
            if name.is_empty() || overrides.insert(name.to_owned(), role).is_some() {
                return Err(bad());
            }
        }
        Ok(Self(overrides))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodPort => "pod-port",
            Self::Uplink => "uplink",
            Self::Overlay => "overlay",
            Self::Ignored(Reason::Configured) => "ignored (by --interfaces)",
            Self::Ignored(Reason::Loopback) => "ignored (loopback)",
            Self::Ignored(Reason::Ifb) => "ignored (ifb)",
            Self::Ignored(Reason::Master) => "ignored (its ports are looked at)",
            Self::Ignored(Reason::VlanParent) => "ignored (its VLANs are looked at)",
            Self::Ignored(Reason::PeerHere) => "ignored (both ends are on this node)",
            Self::Ignored(Reason::Unknown) => "ignored (leads to no pod and not out of the node)",
        })
    }
}

/// An interface with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Whether its frames begin with an Ethernet header.
    pub ethernet: bool,
    /// What else is known of it.
    pub device: Device,
}

/// What of a device decides whether XDP runs on it, and how packets leave by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// What kind of device it is.
    pub kind: Kind,
    /// Largest packet that it sends, in bytes without the link header.
    pub mtu: u32,
    /// It is up and has a carrier.
    pub running: bool,
    /// There is a VLAN on it.
    pub has_vlan: bool,
    /// Index of its master (bond, bridge, team); 0 without.
    pub master: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Kind) -> Link {
        Link {
            index: 7,
            name: "x0".into(),
            kind,
            ethernet: !matches!(kind, Kind::Tunnel | Kind::Loopback),
            peer_elsewhere: false,
            in_bridge: false,
            has_vlan: false,
            has_address: false,
            default_route: false,
        }
    }

    #[test]
    fn every_kind_of_link_has_its_role() {
        let elsewhere = Link { peer_elsewhere: true, ..link(Kind::Veth) };
        let by_default = |link: Link| Link { default_route: true, ..link };
        let tap = Link { in_bridge: true, ..link(Kind::Tun) };
        let tun = Link { ethernet: false, ..link(Kind::Tun) };
        let parent = Link { has_vlan: true, ..link(Kind::Physical) };
        for (link, expected) in [
            (elsewhere.clone(), Role::PodPort),
            (Link { in_bridge: true, ..elsewhere.clone() }, Role::PodPort),
            (by_default(elsewhere.clone()), Role::Uplink),
            (link(Kind::Veth), Role::Ignored(Reason::PeerHere)),
            (by_default(link(Kind::Veth)), Role::Uplink),
            (link(Kind::Loopback), Role::Ignored(Reason::Loopback)),
            (link(Kind::Ifb), Role::Ignored(Reason::Ifb)),
            (by_default(link(Kind::Master)), Role::Ignored(Reason::Master)),
            (link(Kind::Physical), Role::Uplink),
            (Link { in_bridge: true, ..link(Kind::Physical) }, Role::Uplink),
            (parent.clone(), Role::Ignored(Reason::VlanParent)),
            (Link { has_address: true, ..parent.clone() }, Role::Uplink),
            (
                Link { has_vlan: true, has_address: true, ..elsewhere.clone() },
                Role::Ignored(Reason::VlanParent),
            ),
            (by_default(parent), Role::Uplink),
            (link(Kind::Vlan), Role::Uplink),
            (by_default(link(Kind::Tunnel)), Role::Overlay),
            (tap.clone(), Role::PodPort),
            (Link { in_bridge: false, ..tap }, Role::Overlay),
            (tun, Role::Overlay),
            (link(Kind::Other), Role::Ignored(Reason::Unknown)),
            (by_default(link(Kind::Other)), Role::Uplink),
        ] {
            assert_eq!(role(&link, &Overrides::default()), expected, "{link:?}");
        }
    }

    #[test]
    fn a_name_overrides_what_was_found() {
        let overrides: Overrides = "x0=uplink, y0=ignored".parse().unwrap();
        let veth = Link { peer_elsewhere: true, ..link(Kind::Veth) };
        assert_eq!(role(&veth, &overrides), Role::Uplink);
        let other = Link { name: "y0".into(), ..veth };
        assert_eq!(role(&other, &overrides), Role::Ignored(Reason::Configured));
    }

    #[test]
    fn a_bad_override_is_named() {
        for bad in ["x0", "x0=pod", "=uplink", "x0=uplink,x0=overlay"] {
            let error = format!("x9=uplink,{bad}").parse::<Overrides>().unwrap_err();
            assert!(error.to_string().contains(bad.rsplit(',').next().unwrap()), "{error}");
        }
        assert_eq!("".parse(), Ok(Overrides::default()));
    }
}
