//! Which addresses do interfaces have, and under which one do packets leave by each?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};

use crate::datapath::netlink::own_address;

/// The address of each family that packets of others get as their source when they leave by an
/// interface, as the kernel's masquerading has it (contract M-b); none where it has no such one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Primary {
    /// IPv4: the first one that is no secondary one.
    pub v4: Option<Ipv4Addr>,
    /// IPv6: the oldest one that is meant to stay.
    pub v6: Option<Ipv6Addr>,
}

/// What netlink told of addresses so far.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// By interface, the oldest first, as the kernel keeps those of IPv4.
    held: BTreeMap<u32, Vec<Held>>,
    /// They changed since they were last asked for.
    changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    addr: IpAddr,
    /// One address may be there with several lengths of its prefix.
    prefix: u8,
    rank: Rank,
}

/// How well an address serves as the source of others' packets, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Configured.
    Permanent,
    /// It has a lifetime.
    Leased,
    /// Not at all: of the link or the host only, secondary or temporary, deprecated, not usable yet.
    Never,
}

impl Addresses {
    /// From a dump of the kernel's.
    pub(super) fn listed(messages: &[AddressMessage]) -> Self {
        let mut all = Self { changed: true, ..Self::default() };
        for (index, held) in messages.iter().filter_map(held) {
            let of_interface = all.held.entry(index).or_default();
            // The kernel puts a new address of IPv6 before older ones.
            let at = if held.addr.is_ipv6() { 0 } else { of_interface.len() };
            of_interface.insert(at, held);
        }
        all
    }

    /// An address came, or something about it changed.
    pub(super) fn add(&mut self, message: &AddressMessage) {
        let Some((index, new)) = held(message) else { return };
        let list = self.held.entry(index).or_default();
        let old = list.iter().position(|old| (old.addr, old.prefix) == (new.addr, new.prefix));
        match old.and_then(|at| Some((at, list.get_mut(at)?))) {
            Some((_, old)) if *old == new => return,
            // Made primary when the one before it went: it is the last of them now.
            Some((at, old)) if new.addr.is_ipv4() && old.rank == Rank::Never => {
                list.remove(at);
                list.push(new);
            }
            Some((_, old)) => *old = new,
            None => list.push(new),
        }
        self.changed = true;
    }

    /// An address is gone.
    pub(super) fn remove(&mut self, message: &AddressMessage) {
        let Some((index, gone)) = held(message) else { return };
        if let Some(list) = self.held.get_mut(&index) {
            let before = list.len();
            list.retain(|held| (held.addr, held.prefix) != (gone.addr, gone.prefix));
            self.changed |= list.len() != before;
        }
    }

    /// An interface is gone, and its addresses with it.
    pub(super) fn remove_all_of(&mut self, index: u32) {
        self.changed |= self.held.remove(&index).is_some_and(|list| !list.is_empty());
    }

    /// Whether they changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// All, in order.
    pub(super) fn all(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self.held.values().flatten().map(|held| held.addr).collect();
        all.into_iter().collect()
    }

    /// Whether an interface has one that means something beyond its link.
    pub(super) fn has_any(&self, index: u32) -> bool {
        let mut held = self.held.get(&index).into_iter().flatten();
        held.any(|held| match held.addr {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
    }

    /// The primary ones of all interfaces that have one.
    pub(super) fn primaries(&self) -> BTreeMap<u32, Primary> {
        let each = self.held.iter().map(|(&index, list)| {
            let best = |is_v6: bool| {
                let usable = list.iter().filter(|held| held.addr.is_ipv6() == is_v6);
                let usable = usable.filter(|held| held.rank != Rank::Never);
                // IPv4 knows no lifetimes here: the first is the first.
                let best = usable.min_by_key(|held| if is_v6 { held.rank } else { Rank::Never });
                best.map(|held| held.addr)
            };
            let v4 = best(false).and_then(|addr| match addr {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            });
            let v6 = best(true).and_then(|addr| match addr {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => None,
            });
            (index, Primary { v4, v6 })
        });
        each.filter(|(_, primary)| *primary != Primary::default()).collect()
    }
}

/// What a message tells, and of which interface.
fn held(message: &AddressMessage) -> Option<(u32, Held)> {
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    for attribute in &message.attributes {
        if let AddressAttribute::Flags(all) = attribute {
            flags |= *all;
        }
    }
    let addr = own_address(message)?;
    let unusable = match addr {
        IpAddr::V4(v4) => flags.contains(AddressFlags::Secondary) || v4.is_link_local(),
        // The flag of secondary ones is that of temporary ones here.
        IpAddr::V6(_) => flags.intersects(
            AddressFlags::Secondary
                | AddressFlags::Tentative
                | AddressFlags::Dadfailed
                | AddressFlags::Deprecated,
        ),
    };
    let global = matches!(header.scope, AddressScope::Universe | AddressScope::Site);
    let rank = if unusable || !global || addr.is_loopback() {
        Rank::Never
    } else if flags.contains(AddressFlags::Permanent) {
        Rank::Permanent
    } else {
        Rank::Leased
    };
    Some((header.index, Held { addr, prefix: header.prefix_len, rank }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, addr: &str, flags: AddressFlags, scope: AddressScope) -> AddressMessage {
        let mut message = AddressMessage::default();
        (message.header.index, message.header.prefix_len) = (index, 24);
        message.header.scope = scope;
        message.attributes =
            vec![AddressAttribute::Address(addr.parse().unwrap()), AddressAttribute::Flags(flags)];
        message
    }

    fn permanent(addr: &str) -> AddressMessage {
        message(3, addr, AddressFlags::Permanent, AddressScope::Universe)
    }

    fn primary(addresses: &Addresses) -> (String, String) {
        let primary = addresses.primaries().get(&3).copied().unwrap_or_default();
        let text = |addr: Option<IpAddr>| addr.map(|addr| addr.to_string()).unwrap_or_default();
        (text(primary.v4.map(Into::into)), text(primary.v6.map(Into::into)))
    }

    #[test]
    fn m_b_the_primary_address_is_the_first_global_one_that_is_not_secondary() {
        let secondary = |addr| {
            let flags = AddressFlags::Permanent | AddressFlags::Secondary;
            message(3, addr, flags, AddressScope::Universe)
        };
        let of_link = |addr| message(3, addr, AddressFlags::Permanent, AddressScope::Link);
        let mut all = Addresses::listed(&[
            of_link("10.9.0.1"),
            permanent("169.254.7.7"),
            permanent("10.0.0.1"),
            secondary("10.0.0.2"),
            permanent("10.0.0.3"),
        ]);
        assert_eq!(primary(&all).0, "10.0.0.1");
        // The kernel makes the secondary one primary, after the others that are.
        all.remove(&permanent("10.0.0.1"));
        all.add(&permanent("10.0.0.2"));
        assert_eq!(primary(&all).0, "10.0.0.3");
        all.remove(&permanent("10.0.0.3"));
        assert_eq!(primary(&all).0, "10.0.0.2");
        all.remove(&permanent("10.0.0.2"));
        assert_eq!(primary(&all).0, "", "none of the link, and none link-local");
    }

    #[test]
    fn m_b_the_primary_address_of_ipv6_is_the_oldest_that_is_meant_to_stay() {
        let with = |addr, flags| message(3, addr, flags, AddressScope::Universe);
        let leased = with("fd00::5", AddressFlags::Managetempaddr);
        // A dump tells the newest first.
        let mut all = Addresses::listed(&[
            permanent("fd00::2"),
            permanent("fd00::1"),
            leased.clone(),
            with("fd00::6", AddressFlags::Permanent | AddressFlags::Deprecated),
            with("fd00::7", AddressFlags::Secondary),
            message(3, "fe80::1", AddressFlags::Permanent, AddressScope::Link),
        ]);
        assert_eq!(primary(&all).1, "fd00::1");
        all.add(&permanent("fd00::9"));
        assert_eq!(primary(&all).1, "fd00::1", "a new one changes nothing");
        for addr in ["fd00::1", "fd00::2", "fd00::9"] {
            all.remove(&permanent(addr));
        }
        assert_eq!(primary(&all).1, "fd00::5");
        all.remove(&leased);
        assert_eq!(primary(&all).1, "");
        // Not before it is known that nobody else has it.
        let tentative = AddressFlags::Permanent | AddressFlags::Tentative;
        all.add(&with("fd00::a", tentative));
        assert_eq!(primary(&all).1, "");
        assert!(all.take_changed());
        all.add(&permanent("fd00::a"));
        assert_eq!(primary(&all).1, "fd00::a");
        assert!(all.take_changed());
        all.add(&permanent("fd00::a"));
        assert!(!all.take_changed(), "nothing new");
    }

    #[test]
    fn addresses_go_with_their_interface_and_loopback_is_nobodys_source() {
        let mut all = Addresses::listed(&[permanent("127.0.0.1"), permanent("::1")]);
        assert_eq!(primary(&all), (String::new(), String::new()));
        assert_eq!(all.all().len(), 2);
        assert!(all.take_changed());
        all.remove_all_of(3);
        assert!(all.take_changed() && all.all().is_empty());
        all.remove_all_of(3);
        assert!(!all.take_changed());
    }
}
