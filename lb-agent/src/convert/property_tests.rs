//! Whatever bytes come, nothing panics, and what is let through is usable.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rule_tests::exposed;
use super::tests::{node, read_slice, service, slice, with};
use super::*;
use crate::model::refusal;

fn mutated(valid: &Value) -> impl Strategy<Value = Vec<u8>> + use<> {
    let bytes = valid.to_string().into_bytes();
    let spots = prop::collection::vec((0..bytes.len(), any::<u8>(), 0..3_u8), 1..6);
    spots.prop_map(move |spots| {
        let mut bytes = bytes.clone();
        for (at, byte, how) in spots {
            let at = at % bytes.len().max(1);
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9.:/%-]{0,20}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,12}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

fn read(bytes: &[u8]) {
    let mut findings = Findings::default();
    let mut converter = Converter::new("here");
    if let Ok(raw) = json(bytes) {
        for kind in [Kind::Service, Kind::Slice, Kind::Node, Kind::ServiceCidr] {
            let object = converter.object(kind, &raw, &mut findings);
            assert!(object.is_some() || !findings.is_empty());
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _object = yaml(text, false).is_ok();
    }
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(
        bytes in prop_oneof![
            mutated(&service()),
            mutated(&exposed()),
            mutated(&slice()),
            mutated(&node("here")),
        ]
    ) {
        read(&bytes);
    }

    #[test]
    fn odd_values_never_panic_and_cost_only_themselves(
        value in any_value(),
        pointer in prop::sample::select(vec![
            "/metadata", "/metadata/labels", "/metadata/name", "/addressType", "/ports",
            "/ports/0", "/ports/0/port", "/endpoints", "/endpoints/0", "/endpoints/0/addresses",
            "/endpoints/0/addresses/0", "/endpoints/0/conditions", "/endpoints/0/nodeName",
            "/endpoints/0/hints", "/endpoints/1/hints",
        ]),
    ) {
        read(with(slice(), pointer, value).to_string().as_bytes());
    }

    #[test]
    fn odd_values_of_services_never_panic_and_cost_only_themselves(
        value in any_value(),
        pointer in prop::sample::select(vec![
            "/metadata", "/spec", "/spec/type", "/spec/clusterIPs", "/spec/ports", "/spec/ports/0",
            "/spec/ports/0/nodePort", "/spec/externalIPs", "/spec/externalIPs/0",
            "/spec/externalTrafficPolicy", "/spec/healthCheckNodePort", "/status",
            "/spec/loadBalancerSourceRanges", "/spec/loadBalancerSourceRanges/0",
            "/status/loadBalancer", "/status/loadBalancer/ingress", "/status/loadBalancer/ingress/0",
        ]),
    ) {
        read(with(exposed(), pointer, value).to_string().as_bytes());
    }

    #[test]
    fn every_external_address_that_is_let_through_is_usable(text in "[0-9a-f.:]{1,24}") {
        let value = with(exposed(), "/spec/externalIPs/0", json!(text));
        let value = with(value, "/status/loadBalancer/ingress/0/ip", json!(text));
        let mut findings = Findings::default();
        let bytes = value.to_string();
        let raw = json(bytes.as_bytes()).unwrap();
        let object = Converter::new("here").object(Kind::Service, &raw, &mut findings);
        let Some(Object::Service(Service { external: Some(external), .. })) = object else {
            panic!("{object:?}");
        };
        for addr in external.ips.iter().chain(&external.load_balancer_ips) {
            prop_assert!(refusal(*addr).is_none() && *addr == addr.to_canonical());
        }
    }

    #[test]
    fn every_address_that_is_let_through_is_usable(text in "[0-9a-f.:]{1,24}") {
        let value = with(slice(), "/endpoints/0/addresses/0", json!(text));
        let (read, field) = read_slice(&value);
        prop_assert_eq!(field.is_none(), read.endpoints.len() == 2);
        for endpoint in read.endpoints.iter() {
            prop_assert!(refusal(endpoint.addr).is_none() && endpoint.addr.is_ipv4());
        }
    }
}
