//! What is there to know of the network namespace of this thread?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::ControlFlow;

use lb_common::abi::NetnsRecord;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{Attributes, Netlink, native_u32};
use super::redirect::{self, Redirect};
use super::sockopt;

/// What was seen of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The kernel's name of the namespace, as programs see it.
    pub(super) cookie: u64,
    /// The address from which its processes reach others.
    pub(super) v4: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub(super) v6: Option<Ipv6Addr>,
    /// Rules that redirect what its processes send; nothing where that could not be told, or was not
    /// asked.
    pub(super) rules: Option<Rules>,
}

/// What rules do with what processes send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// They redirect it.
    Redirect(Redirect),
    /// They do not.
    None,
}

impl Seen {
    /// The rules by which it redirects, if it is known to.
    pub(super) fn redirect(&self) -> Option<Redirect> {
        match self.rules {
            Some(Rules::Redirect(redirect)) => Some(redirect),
            Some(Rules::None) | None => None,
        }
    }

    /// Its element of `NETNS`.
    pub(super) fn record(&self, flags: u32) -> NetnsRecord {
        let v4 = self.v4.map_or(0, |addr| u32::from_ne_bytes(addr.octets()));
        let v6 = self.v6.map_or([0; 4], |addr| crate::plan::words(addr.into()));
        NetnsRecord { v4, flags, v6 }
    }
}

/// Looks around. `rules`: also for rules that redirect.
pub(super) fn look(rules: bool) -> io::Result<Seen> {
    let mut route = Netlink::open(NETLINK_ROUTE)?;
    let cookie = sockopt::netns_cookie(route.socket())?;
    let listed = addresses(&mut route)?;
    let first = |v4: bool| listed.iter().map(|(_, addr)| *addr).find(|addr| addr.is_ipv4() == v4);
    let used = |target: IpAddr| source(target).filter(|addr| listed.iter().any(|(_, a)| a == addr));
    // Nothing is sent there: ranges for documentation (RFC 5737, RFC 3849), which are nobody's.
    let v4 = used(Ipv4Addr::new(198, 51, 100, 1).into()).or_else(|| first(true));
    let v6 = used(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()).or_else(|| first(false));
    let rules = rules.then(redirect::find).and_then(|found| match found {
        Ok(found) => Some(found.map_or(Rules::None, Rules::Redirect)),
        Err(error) => {
            tracing::debug!(cookie, %error, "rules of nat cannot be read");
            None
        }
    });
    Ok(Seen {
        cookie,
        v4: v4.and_then(|addr| if let IpAddr::V4(addr) = addr { Some(addr) } else { None }),
        v6: v6.and_then(|addr| if let IpAddr::V6(addr) = addr { Some(addr) } else { None }),
        rules,
    })
}

/// The address that the kernel chooses for what is sent to `target`.
fn source(target: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    // The discard port.
    socket.connect(SocketAddr::new(target, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// `RTM_GETADDR`, linux/rtnetlink.h.
const GET_ADDRESS: u16 = 22;
/// Bytes of `struct ifaddrmsg`.
const HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const SCOPE_UNIVERSE: u8 = 0;
/// `IFA_F_DADFAILED`, `IFA_F_DEPRECATED` and `IFA_F_TENTATIVE`: not for new connections.
const UNUSABLE: u8 = 0x08 | 0x20 | 0x40;
/// Addresses that are looked at; a node has dozens.
const MAX_ADDRESSES: usize = 4096;

/// Global addresses with the indices of their interfaces, in the order of these.
fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut found = Vec::new();
    netlink.dump(GET_ADDRESS, &[0; HEADER], |message| {
        found.extend(address(message));
        if found.len() < MAX_ADDRESSES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // The kernel lists by interface, IPv4 before IPv6; among equals its order stays.
    found.sort_by_key(|(index, _)| *index);
    Ok(found)
}

fn address(message: &[u8]) -> Option<(u32, IpAddr)> {
    let (header, attributes) = message.split_first_chunk::<HEADER>()?;
    let [family, _, flags, scope, ..] = *header;
    if scope != SCOPE_UNIVERSE || flags & UNUSABLE != 0 {
        return None;
    }
    let attributes = Attributes(attributes);
    // The other end of a point-to-point link is IFA_ADDRESS.
    let bytes = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?;
    let address: IpAddr = match i32::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(bytes).ok()?.into(),
        libc::AF_INET6 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    let ours = !address.is_loopback() && !address.is_multicast() && !address.is_unspecified();
    ours.then_some((native_u32(header, 4)?, address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::namespaces::netlink::attribute;

    fn message(family: i32, flags: u8, scope: u8, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(family).unwrap(), 24, flags, scope];
        bytes.extend(index.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn global_addresses_count_that_can_be_used_now() {
        let v4 = |flags, scope, addr: [u8; 4]| {
            address(&message(libc::AF_INET, flags, scope, 7, &[attribute(IFA_LOCAL, &addr)]))
        };
        assert_eq!(v4(0x80, 0, [10, 0, 0, 1]), Some((7, "10.0.0.1".parse().unwrap())));
        assert_eq!(v4(0, 253, [169, 254, 0, 1]), None, "of the link only");
        assert_eq!(v4(0x40, 0, [10, 0, 0, 1]), None, "tentative");
        assert_eq!(v4(0, 0, [127, 0, 0, 1]), None);
        let six: Ipv6Addr = "fd00::1".parse().unwrap();
        let bytes = attribute(IFA_ADDRESS, &six.octets());
        let both = [bytes.clone(), attribute(IFA_LOCAL, &six.octets())];
        assert_eq!(address(&message(libc::AF_INET6, 0, 0, 2, &both)), Some((2, six.into())));
        assert_eq!(address(&message(libc::AF_INET, 0, 0, 2, &[bytes])), None, "wrong length");
    }

    #[test]
    fn this_namespace_can_be_looked_at() {
        match look(false) {
            Ok(seen) => {
                assert!(seen.cookie != 0);
                assert_eq!(seen.record(1).v4.to_ne_bytes(), seen.v4.map_or([0; 4], |a| a.octets()));
            }
            // Before kernel 5.14.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{error}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes: Vec<u8>) {
            address(&bytes);
        }
    }
}
