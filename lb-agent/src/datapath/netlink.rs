//! What is asked of netlink in more than one place: all routes, and which address a message is about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, RouteMessageBuilder};

/// Shows all routes of both families and all tables, one after the other: there may be millions.
pub(super) async fn each_route(
    handle: &Handle,
    mut show: impl FnMut(&RouteMessage),
) -> Result<(), rtnetlink::Error> {
    let messages = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    for message in messages {
        let mut routes = std::pin::pin!(handle.route().get(message).execute());
        while let Some(route) = routes.try_next().await? {
            show(&route);
        }
    }
    Ok(())
}

/// The address that an interface has; on a point-to-point link, the other one is the peer's.
pub(super) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            _ => {}
        }
    }
    local.or(address)
}
