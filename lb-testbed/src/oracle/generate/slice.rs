//! EndpointSlices of every kind: written by controllers, and by hand.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::address::{Owner, address, spelled};
use super::{NAMESPACES, NODE, OTHER_NODE, PORT_NAMES, SERVICES, SLICES, TARGETS};
use super::{labels, protocol, text};
use crate::oracle::cluster::{AddressType, Endpoint, Family, SERVICE_NAME, Slice, SlicePort};

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let owner = prop_oneof![
        6 => (1u8..4).prop_map(Owner::Pod),
        4 => (1u8..4).prop_map(Owner::OtherPod),
        1 => Just(Owner::Node(0)),
        1 => Just(Owner::OtherNode),
        1 => Just(Owner::Loopback),
    ];
    let addresses = prop_oneof![
        12 => owner.prop_flat_map(move |owner| spelled(family, owner)).prop_map(|ip| vec![ip]).boxed(),
        1 => Just(vec![]).boxed(),
        1 => Just(vec![address(family, Owner::Pod(1)).to_string(), "ignored".into()]).boxed(),
        1 => Just(vec!["nonsense".to_owned()]).boxed(),
    ];
    // Usual pods, and everything that the API lets pass.
    let conditions = prop_oneof![
        4 => Just((Some(true), Some(true), Some(false))),
        2 => Just((Some(false), Some(true), Some(true))),
        1 => Just((Some(false), Some(false), Some(false))),
        2 => (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()),
    ];
    let node = select(vec![Some(NODE), Some(NODE), Some(OTHER_NODE), Some(OTHER_NODE), None]);
    let hints = |names: [&'static str; 2]| {
        prop_oneof![1 => Just(vec![]), 3 => vec(select(names.as_slice().to_vec()), 1..3)]
            .prop_map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    (
        addresses,
        conditions,
        node,
        hints(["zone-1", "zone-2"]),
        hints([NODE, OTHER_NODE]),
        any::<[bool; 3]>(),
    )
        .prop_map(
            |(addresses, (ready, serving, terminating), node, zones, nodes, [z, n, zone])| {
                Endpoint {
                    addresses,
                    ready,
                    serving,
                    terminating,
                    node: node.map(str::to_owned),
                    zone: zone.then(|| "zone-2".to_owned()),
                    for_zones: if z { zones } else { Vec::new() },
                    for_nodes: if n { nodes } else { Vec::new() },
                }
            },
        )
}

pub(super) fn slice() -> impl Strategy<Value = Slice> {
    let address_type = prop_oneof![
        6 => Just(AddressType::Ip(Family::V4)),
        4 => Just(AddressType::Ip(Family::V6)),
        1 => Just(AddressType::Fqdn),
    ];
    let port = (
        prop_oneof![9 => text(&PORT_NAMES).prop_map(Some), 1 => Just(None)],
        protocol(),
        prop_oneof![9 => select(TARGETS.as_slice()).prop_map(Some), 1 => Just(None)],
    )
        .prop_map(|(name, protocol, port)| SlicePort { name, protocol, port });
    let service = option::weighted(0.95, text(&SERVICES));
    (text(&NAMESPACES), text(&SLICES), address_type, vec(port, 0..5), service, labels())
        .prop_flat_map(|(namespace, name, address_type, ports, service, mut labels)| {
            let family = match address_type {
                AddressType::Ip(family) => family,
                AddressType::Fqdn => Family::V4,
            };
            if let Some(service) = service {
                labels.insert(SERVICE_NAME.into(), service);
            }
            // Now and then an address of the other family, which a slice may not have.
            let endpoint = prop_oneof![
                15 => endpoint(family).boxed(),
                1 => family_other(family).boxed(),
            ];
            vec(endpoint, 0..5).prop_map(move |endpoints| Slice {
                namespace: namespace.clone(),
                name: name.clone(),
                labels: labels.clone(),
                address_type,
                ports: ports.clone(),
                endpoints,
            })
        })
}

fn family_other(family: Family) -> impl Strategy<Value = Endpoint> {
    endpoint(if family == Family::V4 { Family::V6 } else { Family::V4 })
}
