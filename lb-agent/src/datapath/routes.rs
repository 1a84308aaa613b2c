//! By which interface would a packet leave? Asks the kernel, for tools: programs ask it themselves.

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{RouteMessageBuilder, new_connection};

use super::{Error, process};

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of the interface with this index.
    Out(u32),
    /// To this node itself.
    Local,
    /// Nowhere.
    None,
}

/// The index of an interface of this thread's network namespace; none if there is none of that name.
pub fn interface_index(name: &str) -> Option<u32> {
    process::interface_index(name)
}

/// What an interface is called.
pub fn interface_name(index: u32) -> Option<String> {
    process::interface_name(index)
}

/// The route of a packet: among those that leave by the interface `over` if `out`, else as if it
/// arrived by that; 0 is none in particular.
pub fn find(from: IpAddr, to: IpAddr, over: u32, out: bool) -> Result<Way, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::system("start a runtime"))?;
    let failed =
        |error: rtnetlink::Error| Error::system("ask for a route")(io::Error::other(error));
    runtime.block_on(async {
        let (connection, handle, _) =
            new_connection().map_err(Error::system("open a netlink socket"))?;
        tokio::spawn(connection);
        let mut found = Box::pin(handle.route().get(question(from, to, over, out)).execute());
        match found.try_next().await {
            Ok(answer) => Ok(answer.map_or(Way::None, |answer| way(&answer))),
            // Nowhere, forbidden, or no answer for a packet that could not have come this way.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(Way::None),
            Err(error) => Err(failed(error)),
        }
    })
}

fn question(from: IpAddr, to: IpAddr, over: u32, out: bool) -> RouteMessage {
    let bits = |addr: &IpAddr| if addr.is_ipv4() { 32 } else { 128 };
    let address = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => RouteAddress::Inet(addr),
        IpAddr::V6(addr) => RouteAddress::Inet6(addr),
    };
    let mut message = match to {
        IpAddr::V4(_) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        IpAddr::V6(_) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    };
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits(&to);
    message.attributes = vec![RouteAttribute::Destination(address(to))];
    if over != 0 {
        // Without the source it would not be the route of a packet that arrives.
        message.header.source_prefix_length = if out { 0 } else { bits(&from) };
        message.attributes.extend(if out {
            vec![RouteAttribute::Oif(over)]
        } else {
            vec![RouteAttribute::Source(address(from)), RouteAttribute::Iif(over)]
        });
    }
    message
}

fn way(answer: &RouteMessage) -> Way {
    let oif = answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    match (answer.header.kind, oif) {
        (RouteType::Unicast, Some(index)) => Way::Out(index),
        (RouteType::Local | RouteType::Broadcast | RouteType::Anycast, _) => Way::Local,
        _ => Way::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_node_itself() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(find(loopback, loopback, 0, false).unwrap(), Way::Local);
        assert_eq!(interface_index("lo"), Some(1));
        assert_eq!((interface_index("no such one"), interface_index("a\0b")), (None, None));
    }
}
