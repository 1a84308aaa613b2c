//! The interfaces and routes of the node that decides, and what the agent says of them.

use std::net::IpAddr;

use lb_agent::{
    model::Cidr,
    policy::local::{LocalDetector, Ranges},
};
use lb_common::{
    abi::{Interface, InterfaceFlags},
    host::{HostRoute, HostTables, Words, words},
    tables::{LocalMode, RouteStatus},
};
use lb_testbed::oracle::{
    Link,
    cluster::{Config, Detector, Family},
    generate::{Owner, address, link},
};

/// All interfaces.
pub(crate) fn links() -> impl Iterator<Item = Link> {
    [link::BRIDGE].into_iter().chain(link::ALL)
}

/// The index of an interface; that of loopback, where there is none.
pub(crate) fn index(link: Link) -> u32 {
    links().zip(10..).find(|(other, _)| *other == link).map_or(1, |(_, index)| index)
}

/// Everybody whom packets are sent to, with the interface by which they leave.
pub(crate) fn routes(family: Family) -> Vec<(IpAddr, Link)> {
    let pods = (0..10).map(|n| (Owner::Pod(n), if n == 9 { link::BRIDGE } else { link::ROUTED }));
    let others = (0..10)
        .map(|n| (Owner::OtherPod(n), if n % 2 == 0 { link::UPLINK } else { link::OVERLAY }));
    let outside = [
        (Owner::OtherNode, link::UPLINK),
        (Owner::Foreign(0), link::UPLINK),
        (Owner::Foreign(1), link::UPLINK2),
    ];
    // Addresses of Services are nobody's here: their way leads to a router.
    let of_services = (0..10)
        .flat_map(|n| [Owner::ClusterIp(n), Owner::External(n), Owner::Balancer(n)])
        .map(|owner| (owner, link::UPLINK));
    let all = pods.chain(others).chain(outside).chain(of_services);
    all.map(|(owner, link)| (address(family, owner), link)).collect()
}

/// By which interface packets to an address leave; none if the node keeps them.
pub(crate) fn egress(to: IpAddr) -> Option<Link> {
    let routes = routes(Family::of(to));
    routes.into_iter().find(|(other, _)| *other == to).map(|(_, link)| link)
}

/// Whether the link address of a neighbour is known: of every other one.
pub(crate) fn is_known(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(ip) => ip.octets()[3] % 2 == 0,
        IpAddr::V6(ip) => ip.octets()[15] % 2 == 0,
    }
}

/// The address under which others' packets leave by an interface: the second uplink has the node's
/// second one.
pub(crate) fn snat_address(link: Link, family: Family) -> IpAddr {
    address(family, Owner::Node(u8::from(link == link::UPLINK2)))
}

/// The local detector as flags of the agent have it.
pub(crate) fn detector(config: &Config) -> LocalDetector {
    match &config.detector {
        Detector::Interface => LocalDetector::Interface,
        Detector::Bridge(name) => LocalDetector::Bridge(name.clone()),
        Detector::Prefix(prefix) => LocalDetector::Prefix(prefix.clone()),
        Detector::ClusterCidr(ranges) => {
            let range = |text: &String| {
                let (first, prefix) = text.split_once('/')?;
                Cidr::new(first.parse().ok()?, prefix.parse().ok()?)
            };
            let ranges: Vec<Cidr> = ranges.iter().map(|text| range(text).unwrap()).collect();
            LocalDetector::ClusterCidr(Ranges::first_of(&ranges))
        }
        Detector::NodeCidr => LocalDetector::NodeCidr,
        Detector::Missing => LocalDetector::None,
    }
}

/// Whether XDP meets what arrives by an interface.
pub(crate) fn has_early(link: Link) -> bool {
    [link::UPLINK, link::UPLINK2].contains(&link)
}

/// What programs are told of an interface.
pub(crate) fn interface(link: Link, detector: &LocalDetector) -> Interface {
    let leads_to_pod = [link::BRIDGE, link::BRIDGED, link::ROUTED].contains(&link);
    let names = [Some(link.name), link.bridge].into_iter().flatten();
    let mut flags = 0;
    if has_early(link) {
        flags |= InterfaceFlags::XDP;
    }
    flags |= if leads_to_pod { InterfaceFlags::PODS } else { InterfaceFlags::OFF_NODE };
    if detector.is_local(leads_to_pod, names) {
        flags |= InterfaceFlags::LOCAL_POD;
    }
    let group = index(if link.bridge.is_some() { link::BRIDGE } else { link });
    let mut interface = Interface { flags, group, mtu: 1500, ..Interface::default() };
    for family in Family::BOTH {
        match words(snat_address(link, family)) {
            Words::V4([ip]) => interface.v4[0] = ip,
            Words::V6(ip) => interface.v6[0] = ip,
        }
    }
    interface
}

/// What programs are loaded with: how the detector goes, and whether everything is masqueraded.
pub(crate) fn constants(config: &Config) -> (LocalMode, bool) {
    let mode = match detector(config) {
        LocalDetector::None => LocalMode::None,
        detector if detector.goes_by_source() => LocalMode::Range,
        _ => LocalMode::Interface,
    };
    (mode, config.masquerade_all)
}

/// Tells all that follows from the configuration, and the routes.
pub(crate) fn tell(tables: &HostTables, config: &Config) {
    let detector = detector(config);
    for link in links() {
        tables.set_host_interface(index(link), interface(link, &detector));
    }
    let (local_mode, masquerade_all) = constants(config);
    tables.set_local_mode(local_mode);
    tables.set_masquerade_all(masquerade_all);
    for family in Family::BOTH {
        for (to, link) in routes(family) {
            let (egress, known) = (index(link), is_known(to));
            let status = if known { RouteStatus::Found } else { RouteStatus::NoNeighbour };
            let route = HostRoute { status, egress, mtu: 0 };
            tables.add_route(to, 0, route);
            tables.add_route(to, egress, route);
        }
    }
}

/// Tells the ranges of pods' addresses.
pub(crate) fn tell_local_ranges(tables: &HostTables, ranges: &Ranges) {
    let ranges = [ranges.v4, ranges.v6].into_iter().flatten();
    tables.store_local_cidrs(ranges.map(|range| (range.first(), range.prefix())));
}
