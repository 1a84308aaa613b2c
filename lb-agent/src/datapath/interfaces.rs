//! Which interfaces are there, and with which role? Watches netlink for links and default routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Error;
use super::roles::{Interface, Kind, Link, Overrides, role};

/// What changed about interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, is new or has another role than before.
    Is(Interface),
    /// It is gone.
    Gone(u32),
    /// All that are there have been told at least once.
    Listed,
}

/// How long to wait before netlink is asked again after it failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Tells all interfaces of this thread's network namespace, and then what changes, until the
/// receiver is gone. Where netlink loses messages or fails, everything is read again.
pub async fn watch(overrides: Overrides, changes: mpsc::Sender<Change>) {
    let mut known = BTreeMap::new();
    while !changes.is_closed() {
        if let Err(error) = follow(&overrides, &mut known, &changes).await {
            tracing::warn!(%error, "the watch of interfaces failed and starts again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All interfaces of this thread's network namespace at this moment.
pub async fn list(overrides: &Overrides) -> Result<Vec<Interface>, Error> {
    let (connection, handle, _messages) =
        new_multicast_connection(&[]).map_err(Error::system("open a netlink socket"))?;
    let driver = tokio::spawn(connection);
    let state = State::read(&handle).await;
    driver.abort();
    Ok(state?.interfaces(overrides))
}

async fn follow(
    overrides: &Overrides,
    known: &mut BTreeMap<u32, Interface>,
    changes: &mpsc::Sender<Change>,
) -> Result<(), Error> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let (connection, handle, mut messages) =
        new_multicast_connection(&groups).map_err(Error::system("open a netlink socket"))?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut state = State::read(&handle).await?;
    if !tell(state.interfaces(overrides), known, changes).await
        || changes.send(Change::Listed).await.is_err()
    {
        return Ok(());
    }
    loop {
        let next = tokio::select! {
            next = messages.next() => next,
            () = changes.closed() => return Ok(()),
        };
        let Some((first, _)) = next else { return Ok(()) };
        let mut heard = state.take(first.payload);
        // A burst is one change.
        while let Some(Some((message, _))) = messages.next().now_or_never() {
            heard = heard.max(state.take(message.payload));
        }
        if heard == Heard::Lost {
            tracing::warn!("netlink lost messages on interfaces; all are read again");
            return Ok(());
        }
        if heard == Heard::Routes {
            state.default_routes = default_routes(&handle).await?;
        }
        if !tell(state.interfaces(overrides), known, changes).await {
            return Ok(());
        }
    }
}

/// Sends the difference; false when nobody listens any more.
async fn tell(
    now: Vec<Interface>,
    known: &mut BTreeMap<u32, Interface>,
    changes: &mpsc::Sender<Change>,
) -> bool {
    let now: BTreeMap<u32, Interface> = now.into_iter().map(|i| (i.index, i)).collect();
    for &index in known.keys().filter(|index| !now.contains_key(index)) {
        if changes.send(Change::Gone(index)).await.is_err() {
            return false;
        }
    }
    for (index, interface) in &now {
        if known.get(index) != Some(interface)
            && changes.send(Change::Is(interface.clone())).await.is_err()
        {
            return false;
        }
    }
    *known = now;
    true
}

/// What a message means for what is known, in the order of what has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    /// It is taken up.
    All,
    /// Default routes may have changed.
    Routes,
    /// The kernel had no room for messages: what is known may be wrong.
    Lost,
}

/// What netlink told so far.
#[derive(Debug, Default)]
struct State {
    links: BTreeMap<u32, Seen>,
    default_routes: BTreeSet<u32>,
}

#[derive(Debug)]
struct Seen {
    link: Link,
    master: Option<u32>,
    /// The device below this VLAN.
    vlan_of: Option<u32>,
    is_bridge: bool,
}

impl State {
    async fn read(handle: &Handle) -> Result<Self, Error> {
        let links = handle.link().get().execute().map_ok(|message| seen(&message));
        let links: Vec<_> = links.try_collect().await.map_err(netlink("list links"))?;
        Ok(Self {
            links: links.into_iter().map(|seen| (seen.link.index, seen)).collect(),
            default_routes: default_routes(handle).await?,
        })
    }

    /// Takes a message up.
    fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Heard {
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
                }
                self.default_routes.contains(&message.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                is_default(&route)
            }
            _ => false,
        };
        if routes { Heard::Routes } else { Heard::All }
    }

    fn interfaces(&self, overrides: &Overrides) -> Vec<Interface> {
        let parents: BTreeSet<u32> = self.links.values().filter_map(|seen| seen.vlan_of).collect();
        let each = self.links.iter().map(|(&index, seen)| {
            let bridge = seen.master.and_then(|master| self.links.get(&master));
            let link = Link {
                in_bridge: bridge.is_some_and(|master| master.is_bridge),
                has_vlan: parents.contains(&index),
                default_route: self.default_routes.contains(&index),
                ..seen.link.clone()
            };
            let role = role(&link, overrides);
            Interface { index, name: link.name, role, ethernet: link.ethernet }
        });
        each.collect()
    }
}

fn seen(message: &LinkMessage) -> Seen {
    let mut found = None;
    let (mut name, mut master, mut lower, mut peer_elsewhere) = (String::new(), None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => peer_elsewhere = true,
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
            default_route: false,
        },
        master,
        vlan_of: lower.filter(|_| kind == Kind::Vlan),
        is_bridge: matches!(found, Some(InfoKind::Bridge)),
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

/// The interfaces by which a default route of any table leaves.
async fn default_routes(handle: &Handle) -> Result<BTreeSet<u32>, Error> {
    let messages = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    let mut found = BTreeSet::new();
    for message in messages {
        let mut routes = std::pin::pin!(handle.route().get(message).execute());
        while let Some(route) = routes.try_next().await.map_err(netlink("list routes"))? {
            if is_default(&route) {
                found.extend(outputs(&route));
            }
        }
    }
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

fn netlink(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |error| Error::system(what)(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
