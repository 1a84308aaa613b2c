//! What does netlink tell that attaching XDP depends on: how a link is, whose program it runs, and
//! which neighbours can be asked?

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::probe::{Mac, Question};
use crate::datapath::netlink::{each_route, own_address};

/// As many neighbours are asked of each family: one that answers is enough.
const ASKED: usize = 4;

/// What a link runs at XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Id of the program that the driver runs.
    pub driver: Option<u32>,
    /// Id of the program that the kernel runs in its place.
    pub generic: Option<u32>,
}

/// A link at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) attached: Attached,
    /// Up, with a carrier.
    pub(super) running: bool,
    pub(super) mac: Option<Mac>,
}

/// How a link is now; fails where it is gone.
pub(super) async fn link(handle: &Handle, index: u32) -> io::Result<Link> {
    let mut links = std::pin::pin!(handle.link().get().match_index(index).execute());
    let message = links.try_next().await.map_err(io::Error::other)?;
    message.map(|message| seen(&message)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What every link of this thread's network namespace runs at XDP, by index.
pub(super) async fn all(handle: &Handle) -> io::Result<BTreeMap<u32, Attached>> {
    let links = handle.link().get().execute();
    let links = links.map_ok(|message| (message.header.index, seen(&message).attached));
    links.try_collect().await.map_err(io::Error::other)
}

fn seen(message: &LinkMessage) -> Link {
    let mut link = Link {
        running: message.header.flags.contains(LinkFlags::LowerUp | LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Xdp(told) => link.attached = attached(told),
            _ => {}
        }
    }
    link
}

/// With one program, the kernel tells its id and how it is attached; with several, the id of each.
fn attached(told: &[LinkXdp]) -> Attached {
    let mut found = Attached::default();
    let (mut how, mut only) = (None, None);
    for one in told {
        match one {
            LinkXdp::Attached(attached) => how = Some(*attached),
            LinkXdp::ProgId(id) => only = Some(*id),
            LinkXdp::DrvProgId(id) => found.driver = Some(*id),
            LinkXdp::SkbProgId(id) => found.generic = Some(*id),
            _ => {}
        }
    }
    match how {
        Some(XdpAttached::Driver) => found.driver = found.driver.or(only),
        Some(XdpAttached::SocketBuffer) => found.generic = found.generic.or(only),
        _ => {}
    }
    found
}

/// Whom to ask on an interface: next hops of routes first, then who was heard of last. Addresses and
/// neighbours are those of its master, if it has one.
pub(super) async fn questions(
    handle: &Handle,
    index: u32,
    master: u32,
) -> io::Result<Vec<Question>> {
    let of = if master == 0 { index } else { master };
    let Some(mac) = link(handle, of).await?.mac else { return Ok(Vec::new()) };
    let own = addresses(handle, of).await?;
    let mut neighbours = next_hops(handle, of).await?;
    for neighbour in known(handle, of).await? {
        if !neighbours.contains(&neighbour) {
            neighbours.push(neighbour);
        }
    }
    Ok(choose(&neighbours, &own, mac))
}

fn choose(neighbours: &[IpAddr], own: &[(IpAddr, u8)], mac: Mac) -> Vec<Question> {
    let mine: BTreeSet<IpAddr> = own.iter().map(|(addr, _)| *addr).collect();
    let others = neighbours.iter().filter(|neighbour| !mine.contains(neighbour));
    let questions = others.filter_map(|&neighbour| {
        let same = |(addr, _): &&(IpAddr, u8)| addr.is_ipv4() == neighbour.is_ipv4();
        let shared =
            |(addr, length): &&(IpAddr, u8)| prefix(*addr, *length) == prefix(neighbour, *length);
        let of_family = || own.iter().filter(same);
        let (own, _) = of_family().find(shared).or_else(|| of_family().next())?;
        Some(Question { neighbour, own: *own, mac })
    });
    let (v4, v6): (Vec<_>, Vec<_>) = questions.partition(|question| question.own.is_ipv4());
    v4.into_iter().take(ASKED).chain(v6.into_iter().take(ASKED)).collect()
}

/// The first bits of an address, as a number.
fn prefix(addr: IpAddr, length: u8) -> u128 {
    let (bits, width) = match addr {
        IpAddr::V4(addr) => (u128::from(addr.to_bits()), 32),
        IpAddr::V6(addr) => (addr.to_bits(), 128),
    };
    bits.checked_shr(width - u32::from(length).min(width)).unwrap_or(0)
}

async fn addresses(handle: &Handle, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
    let all = handle.address().get().set_link_index_filter(index).execute();
    let all: Vec<_> = all.try_collect().await.map_err(io::Error::other)?;
    let each = all
        .into_iter()
        .filter_map(|message| Some((own_address(&message)?, message.header.prefix_len)));
    Ok(each.collect())
}

/// Gateways that routes by this interface have, those of default routes first.
async fn next_hops(handle: &Handle, index: u32) -> io::Result<Vec<IpAddr>> {
    let mut found = BTreeSet::new();
    let take = |route: &RouteMessage| {
        let length = route.header.destination_prefix_length;
        found.extend(gateways(route, index).into_iter().map(|via| (length, via)));
    };
    each_route(handle, take).await.map_err(io::Error::other)?;
    Ok(found.into_iter().map(|(_, via)| via).collect())
}

fn gateways(route: &RouteMessage, index: u32) -> Vec<IpAddr> {
    let via = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(addr)) => Some(IpAddr::from(*addr)),
            RouteAttribute::Gateway(RouteAddress::Inet6(addr)) => Some(IpAddr::from(*addr)),
            _ => None,
        })
    };
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) if *oif == index => found.extend(via(&route.attributes)),
            RouteAttribute::MultiPath(hops) => {
                let ours = hops.iter().filter(|hop| hop.interface_index == index);
                found.extend(ours.filter_map(|hop| via(&hop.attributes)));
            }
            _ => {}
        }
    }
    found
}

/// Neighbours that were heard of.
async fn known(handle: &Handle, index: u32) -> io::Result<Vec<IpAddr>> {
    let mut all = std::pin::pin!(handle.neighbours().get().execute());
    let mut found = Vec::new();
    while let Some(message) = all.try_next().await.map_err(io::Error::other)? {
        if message.header.ifindex == index {
            found.extend(heard_of(&message));
        }
    }
    // Who was heard of last is the likeliest to answer.
    found.sort();
    Ok(found.into_iter().map(|(_, addr)| addr).collect())
}

fn heard_of(message: &NeighbourMessage) -> Option<(u8, IpAddr)> {
    let rank = match message.header.state {
        NeighbourState::Reachable => 0,
        NeighbourState::Delay | NeighbourState::Probe => 1,
        NeighbourState::Stale => 2,
        NeighbourState::Permanent => 3,
        _ => return None,
    };
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
            Some((rank, IpAddr::from(*addr)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
            Some((rank, IpAddr::from(*addr)))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_for_one_program_and_for_several() {
        let driver = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(7)];
        assert_eq!(attached(&driver), Attached { driver: Some(7), generic: None });
        let generic = [LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(7)];
        assert_eq!(attached(&generic), Attached { driver: None, generic: Some(7) });
        let both = [
            LinkXdp::Attached(XdpAttached::Multiple),
            LinkXdp::DrvProgId(7),
            LinkXdp::SkbProgId(8),
        ];
        assert_eq!(attached(&both), Attached { driver: Some(7), generic: Some(8) });
        assert_eq!(attached(&[LinkXdp::Attached(XdpAttached::None)]), Attached::default());
    }

    #[test]
    fn neighbours_are_asked_from_an_address_of_their_network_and_few_of_them() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = [(ip("10.0.0.1"), 24), (ip("10.1.0.1"), 16), (ip("fe80::1"), 64)];
        let neighbours = [ip("10.1.2.3"), ip("10.0.0.1"), ip("10.0.0.9"), ip("fe80::9")];
        let mac = [2, 0, 0, 0, 0, 1];
        let questions = choose(&neighbours, &own, mac);
        let asked: Vec<_> = questions.iter().map(|q| (q.neighbour, q.own)).collect();
        assert_eq!(
            asked,
            [
                (ip("10.1.2.3"), ip("10.1.0.1")),
                (ip("10.0.0.9"), ip("10.0.0.1")),
                (ip("fe80::9"), ip("fe80::1")),
            ],
            "nobody asks itself"
        );
        let many: Vec<IpAddr> = (2..200).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(choose(&many, &own, mac).len(), ASKED);
        assert_eq!(choose(&many, &own[2..], mac), [], "no address of that family");
    }
}
