//! What has netlink told of links, routes and addresses so far?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::addresses::{Addresses, Primary};
use crate::datapath::Error;
use crate::datapath::netlink::each_route;
use crate::datapath::roles::{Device, Interface, Kind, Link, Overrides, role};

/// What a message means for what is known, in the order of what has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heard {
    /// It is taken up.
    All,
    /// Default routes may have changed.
    Routes,
    /// The kernel had no room for messages: what is known may be wrong.
    Lost,
}

/// What netlink told so far.
#[derive(Debug, Default)]
pub(super) struct State {
    links: BTreeMap<u32, Seen>,
    default_routes: BTreeSet<u32>,
    addresses: Addresses,
    /// Indices of links that went since this was last asked for: what has one of them now is another.
    gone: BTreeSet<u32>,
}

#[derive(Debug)]
struct Seen {
    link: Link,
    master: Option<u32>,
    mtu: u32,
    running: bool,
    /// The device below this VLAN.
    vlan_of: Option<u32>,
    is_bridge: bool,
    /// Its ports are no ways to the same place.
    is_vrf: bool,
}

impl State {
    pub(super) async fn read(handle: &Handle) -> Result<Self, Error> {
        let links = handle.link().get().execute().map_ok(|message| seen(&message));
        let links: Vec<_> = links.try_collect().await.map_err(failed("list links"))?;
        Ok(Self {
            links: links.into_iter().map(|seen| (seen.link.index, seen)).collect(),
            default_routes: default_routes(handle).await?,
            addresses: addresses(handle).await?,
            gone: BTreeSet::new(),
        })
    }

    /// Asks for the default routes again: who goes with a link is not told.
    pub(super) async fn read_default_routes(&mut self, handle: &Handle) -> Result<(), Error> {
        self.default_routes = default_routes(handle).await?;
        Ok(())
    }

    /// The addresses of all interfaces, in order, and the primary ones of each, if any of them changed
    /// since the last call.
    pub(super) fn new_addresses(&mut self) -> Option<(Vec<IpAddr>, BTreeMap<u32, Primary>)> {
        let addresses = &mut self.addresses;
        addresses.take_changed().then(|| (addresses.all(), addresses.primaries()))
    }

    /// The links that went since the last call, those among them that came again.
    pub(super) fn take_gone(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.gone)
    }

    /// Takes a message up.
    pub(super) fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Heard {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            // Made from ENOBUFS; the connection goes on as if nothing had happened.
            NetlinkPayload::Overrun(_) => return Heard::Lost,
            _ => return Heard::All,
        };
        let routes = match message {
            // The kernel does not tell of the routes that go with a link, or with its being up.
            RouteNetlinkMessage::NewLink(message) => {
                // Bridges tell of their ports in a form of their own, which lacks most.
                if u8::from(message.header.interface_family) == 0 {
                    let seen = seen(&message);
                    self.links.insert(seen.link.index, seen);
                }
                self.default_routes.contains(&message.header.index)
            }
            RouteNetlinkMessage::DelLink(message) => {
                if u8::from(message.header.interface_family) == 0 {
                    self.links.remove(&message.header.index);
                    self.addresses.remove_all_of(message.header.index);
                    self.gone.insert(message.header.index);
                }
                self.default_routes.contains(&message.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                is_default(&route)
            }
            RouteNetlinkMessage::NewAddress(message) => {
                self.addresses.add(&message);
                false
            }
            RouteNetlinkMessage::DelAddress(message) => {
                self.addresses.remove(&message);
                false
            }
            _ => false,
        };
        if routes { Heard::Routes } else { Heard::All }
    }

    pub(super) fn interfaces(&self, overrides: &Overrides) -> Vec<Interface> {
        let parents: BTreeSet<u32> = self.links.values().filter_map(|seen| seen.vlan_of).collect();
        let each = self.links.iter().map(|(&index, seen)| {
            let master = seen.master.and_then(|master| self.links.get(&master));
            let link = Link {
                in_bridge: master.is_some_and(|master| master.is_bridge),
                has_vlan: parents.contains(&index),
                has_address: self.addresses.has_any(index),
                default_route: self.default_routes.contains(&index),
                ..seen.link.clone()
            };
            let role = role(&link, overrides);
            let device = Device {
                kind: link.kind,
                mtu: seen.mtu,
                running: seen.running,
                has_vlan: link.has_vlan,
                master: master.filter(|m| !m.is_vrf).map_or(0, |master| master.link.index),
            };
            Interface { index, name: link.name, role, ethernet: link.ethernet, device }
        });
        each.collect()
    }
}

fn seen(message: &LinkMessage) -> Seen {
    let mut found = None;
    let (mut name, mut master, mut lower, mut peer_elsewhere) = (String::new(), None, None, false);
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => peer_elsewhere = true,
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => {
                found = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let layer = message.header.link_layer_type;
    let kind = match &found {
        _ if layer == LinkLayerType::Loopback => Kind::Loopback,
        None => Kind::Physical,
        Some(kind) => kind_of(kind),
    };
    Seen {
        link: Link {
            index: message.header.index,
            name,
            kind,
            ethernet: layer == LinkLayerType::Ether,
            peer_elsewhere,
            in_bridge: false,
            has_vlan: false,
            has_address: false,
            default_route: false,
        },
        master,
        mtu,
        running: message.header.flags.contains(LinkFlags::LowerUp | LinkFlags::Up),
        vlan_of: lower.filter(|_| kind == Kind::Vlan),
        is_bridge: matches!(found, Some(InfoKind::Bridge)),
        is_vrf: matches!(found, Some(InfoKind::Vrf)),
    }
}

fn kind_of(kind: &InfoKind) -> Kind {
    match kind {
        InfoKind::Veth | InfoKind::Netkit => Kind::Veth,
        InfoKind::Bridge | InfoKind::Bond | InfoKind::Team | InfoKind::Vrf => Kind::Master,
        InfoKind::Ifb => Kind::Ifb,
        InfoKind::Vlan => Kind::Vlan,
        InfoKind::Tun => Kind::Tun,
        InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::BareUdp
        | InfoKind::Wireguard
        | InfoKind::Xfrm => Kind::Tunnel,
        _ => Kind::Other,
    }
}

/// All addresses of all interfaces.
async fn addresses(handle: &Handle) -> Result<Addresses, Error> {
    let all: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(failed("list addresses"))?;
    Ok(Addresses::listed(&all))
}

/// The interfaces by which a default route of any table leaves.
async fn default_routes(handle: &Handle) -> Result<BTreeSet<u32>, Error> {
    let mut found = BTreeSet::new();
    let take = |route: &RouteMessage| {
        if is_default(route) {
            found.extend(outputs(route));
        }
    };
    each_route(handle, take).await.map_err(failed("list routes"))?;
    Ok(found)
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn outputs(route: &RouteMessage) -> Vec<u32> {
    let each = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    });
    each.collect()
}

fn failed(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |error| Error::system(what)(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

    use super::*;
    use crate::datapath::roles::{Reason, Role};

    #[test]
    fn lost_messages_are_heard_of_whatever_else_a_burst_has() {
        let mut state = State { default_routes: [3].into(), ..State::default() };
        let mut link = LinkMessage::default();
        link.header.index = 3;
        let burst = [
            NetlinkPayload::Overrun(Vec::new()),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)),
            NetlinkPayload::Noop,
        ];
        let heard = burst.map(|payload| state.take(payload));
        assert_eq!(heard, [Heard::Lost, Heard::Routes, Heard::All]);
        assert_eq!(heard.into_iter().max(), Some(Heard::Lost));
        assert!(state.links.contains_key(&3));
    }

    fn address(index: u32, attributes: &[AddressAttribute]) -> AddressMessage {
        let mut message = AddressMessage::default();
        (message.header.index, message.header.prefix_len) = (index, 24);
        message.attributes = attributes.to_vec();
        message
    }

    #[test]
    fn addresses_are_those_that_interfaces_have_and_not_their_peers() {
        let (own, peer): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let point = [AddressAttribute::Address(peer), AddressAttribute::Local(own)];
        let mut state = State::default();
        let mut take = |message| {
            assert_eq!(state.take(NetlinkPayload::InnerMessage(message)), Heard::All);
            state.new_addresses().map(|(all, _)| all)
        };
        let of_3 = || address(3, &point);
        assert_eq!(take(RouteNetlinkMessage::NewAddress(of_3())), Some(vec![own]));
        assert_eq!(take(RouteNetlinkMessage::NewAddress(of_3())), None, "nothing new");
        let of_4 = || address(4, &[AddressAttribute::Address(v6)]);
        assert_eq!(take(RouteNetlinkMessage::NewAddress(of_4())), Some(vec![own, v6]));
        assert_eq!(take(RouteNetlinkMessage::DelAddress(of_3())), Some(vec![v6]));
        let mut link = LinkMessage::default();
        link.header.index = 4;
        assert_eq!(take(RouteNetlinkMessage::DelLink(link)), Some(vec![]), "gone with its link");
    }

    #[test]
    fn a_link_that_takes_the_index_of_another_in_the_same_burst_is_told_as_gone() {
        let link = |kind: InfoKind, master: Option<u32>, index| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.attributes = vec![
                LinkAttribute::IfName(format!("x{index}")),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
            ];
            link.attributes.extend(master.map(LinkAttribute::Controller));
            link
        };
        let mut state = State::default();
        let mut take = |message| state.take(NetlinkPayload::InnerMessage(message));
        take(RouteNetlinkMessage::NewLink(link(InfoKind::Bridge, None, 2)));
        take(RouteNetlinkMessage::NewLink(link(InfoKind::Vrf, None, 3)));
        for (index, master) in [(7, 2), (8, 3)] {
            let port = || link(InfoKind::Veth, Some(master), index);
            take(RouteNetlinkMessage::NewLink(port()));
            take(RouteNetlinkMessage::DelLink(port()));
            take(RouteNetlinkMessage::NewLink(port()));
        }
        assert_eq!(state.take_gone(), [7, 8].into());
        assert_eq!(state.take_gone(), [].into());
        let masters = state.interfaces(&Overrides::default()).into_iter().map(|i| i.device.master);
        assert_eq!(masters.collect::<Vec<_>>(), [0, 0, 2, 0], "ports of a VRF are on their own");
    }
    #[test]
    fn a_card_with_vlans_is_an_uplink_while_it_has_an_address() {
        let mut state = State::default();
        let mut card = LinkMessage::default();
        card.header.index = 2;
        let mut vlan = LinkMessage::default();
        vlan.header.index = 3;
        vlan.attributes = vec![
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
        ];
        let mut role = |message| {
            state.take(NetlinkPayload::InnerMessage(message));
            state.interfaces(&Overrides::default())[0].role
        };
        let ignored = Role::Ignored(Reason::VlanParent);
        let with = |addr: &str| address(2, &[AddressAttribute::Address(addr.parse().unwrap())]);
        assert_eq!(role(RouteNetlinkMessage::NewLink(card)), Role::Uplink);
        assert_eq!(role(RouteNetlinkMessage::NewLink(vlan)), ignored);
        assert_eq!(role(RouteNetlinkMessage::NewAddress(with("fe80::1"))), ignored);
        assert_eq!(role(RouteNetlinkMessage::NewAddress(with("10.1.0.5"))), Role::Uplink);
        assert_eq!(role(RouteNetlinkMessage::DelAddress(with("10.1.0.5"))), ignored);
    }
}
