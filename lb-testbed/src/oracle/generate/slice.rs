//! EndpointSlices of every kind: written by controllers, and by hand.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::address::{Owner, address, spelled};
use super::{NODE, OTHER_NODE, PORT_NAMES, SERVICES, SLICES, TARGETS};
use super::{labels, namespace, protocol, text};
use crate::oracle::cluster::{
    AddressType, Endpoint, Family, Protocol, SERVICE_NAME, Slice, SlicePort,
};

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let owner = prop_oneof![
        12 => (1u8..4).prop_map(Owner::Pod),
        8 => (1u8..4).prop_map(Owner::OtherPod),
        1 => Just(Owner::Node(0)),
        1 => Just(Owner::OtherNode),
        1 => Just(Owner::Loopback),
    ];
    let addresses = prop_oneof![
        30 => owner.prop_flat_map(move |owner| spelled(family, owner)).prop_map(|ip| vec![ip]).boxed(),
        1 => Just(vec![]).boxed(),
        1 => Just(vec![address(family, Owner::Pod(1)).to_string(), "ignored".into()]).boxed(),
        1 => Just(vec!["nonsense".to_owned()]).boxed(),
    ];
    // Usual pods, and everything that the API lets pass.
    let conditions = prop_oneof![
        6 => Just((Some(true), Some(true), Some(false))),
        3 => Just((Some(false), Some(true), Some(true))),
        1 => Just((Some(false), Some(false), Some(false))),
        2 => (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()),
    ];
    let node = select(vec![Some(NODE), Some(NODE), Some(OTHER_NODE), Some(OTHER_NODE), None]);
    (addresses, conditions, node, any::<bool>()).prop_map(
        |(addresses, (ready, serving, terminating), node, zone)| Endpoint {
            addresses,
            ready,
            serving,
            terminating,
            node: node.map(str::to_owned),
            zone: zone.then(|| "zone-2".to_owned()),
            ..Endpoint::default()
        },
    )
}

/// Which endpoints of a slice have hints.
#[derive(Clone, Copy, Debug)]
enum Hinted {
    Nobody,
    Some,
    Everybody,
}

fn hinted() -> impl Strategy<Value = Hinted> {
    prop_oneof![3 => Just(Hinted::Nobody), 1 => Just(Hinted::Some), 3 => Just(Hinted::Everybody)]
}

/// Endpoints of a family, with hints as controllers write them, and in every other way.
fn endpoints(family: Family) -> impl Strategy<Value = Vec<Endpoint>> {
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    // Now and then an address of the other family, which a slice may not have.
    let endpoint = prop_oneof![20 => endpoint(family).boxed(), 1 => endpoint(other).boxed()];
    let names = |names: [&'static str; 2]| vec(select(names.to_vec()), 1..3);
    let zones = names(["zone-1", "zone-2"]);
    let nodes = names([NODE, OTHER_NODE]);
    let one = (endpoint, zones, nodes, any::<[bool; 2]>());
    (vec(one, 0..6), hinted(), hinted()).prop_map(|(all, by_zone, by_node)| {
        let texts = |names: Vec<&str>, hinted, some: bool| match hinted {
            Hinted::Nobody => Vec::new(),
            Hinted::Some if !some => Vec::new(),
            Hinted::Some | Hinted::Everybody => names.into_iter().map(str::to_owned).collect(),
        };
        let with_hints =
            |(endpoint, zones, nodes, [z, n]): (Endpoint, Vec<_>, Vec<_>, [bool; 2])| Endpoint {
                for_zones: texts(zones, by_zone, z),
                for_nodes: texts(nodes, by_node, n),
                ..endpoint
            };
        all.into_iter().map(with_hints).collect()
    })
}

/// Ports of a slice: of every name and usual protocol, so that it feeds whatever its Service has; or
/// any.
fn ports() -> impl Strategy<Value = Vec<SlicePort>> {
    let one = (
        prop_oneof![9 => text(&PORT_NAMES).prop_map(Some), 1 => Just(None)],
        protocol(),
        prop_oneof![9 => select(TARGETS.as_slice()).prop_map(Some), 1 => Just(None)],
    );
    let any = vec(one, 0..5).prop_map(|ports| {
        let port = |(name, protocol, port)| SlicePort { name, protocol, port };
        ports.into_iter().map(port).collect()
    });
    let all = vec(select(TARGETS.as_slice()), PORT_NAMES.len() * 3).prop_map(|numbers| {
        let names =
            Protocol::ALL.into_iter().flat_map(|protocol| PORT_NAMES.map(|name| (name, protocol)));
        let port = |((name, protocol), number): ((&str, _), _)| SlicePort {
            name: Some(name.to_owned()),
            protocol,
            port: Some(number),
        };
        names.zip(numbers).map(port).collect()
    });
    prop_oneof![3 => all.boxed(), 1 => any.boxed()]
}

pub(super) fn slice() -> impl Strategy<Value = Slice> {
    let address_type = prop_oneof![
        11 => Just(AddressType::Ip(Family::V4)),
        8 => Just(AddressType::Ip(Family::V6)),
        1 => Just(AddressType::Fqdn),
    ];
    let service = option::weighted(0.97, text(&SERVICES));
    (namespace(), text(&SLICES), address_type, ports(), service, labels()).prop_flat_map(
        |(namespace, name, address_type, ports, service, mut labels)| {
            let family = match address_type {
                AddressType::Ip(family) => family,
                AddressType::Fqdn => Family::V4,
            };
            if let Some(service) = service {
                labels.insert(SERVICE_NAME.into(), service);
            }
            endpoints(family).prop_map(move |endpoints| Slice {
                namespace: namespace.clone(),
                name: name.clone(),
                labels: labels.clone(),
                address_type,
                ports: ports.clone(),
                endpoints,
            })
        },
    )
}
