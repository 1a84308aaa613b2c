//! EndpointSlices: contract E-1 to E-13.

use super::raw::{RawConditions, RawEndpoint, RawObject};
use super::report::quoted;
use super::{Converter, Findings, Kind, Object, address, check_name, port_number, protocol};
use crate::model::{Conditions, Endpoint, Family, Slice, SlicePort};

impl Converter {
    pub(super) fn slice(&mut self, raw: &RawObject<'_>, findings: &mut Findings) -> Option<Object> {
        let key = self.key(&raw.metadata.namespace, &raw.metadata.name, findings)?;
        let labels = &raw.metadata.labels;
        if labels.headless || labels.other_proxy {
            return Some(Object::Ignored(Kind::Slice, key)); // E-5
        }
        let Some(family) = family(&raw.address_type, findings) else {
            return Some(Object::Ignored(Kind::Slice, key));
        };
        let label = "metadata.labels[kubernetes.io/service-name]";
        let Some(service) = check_name(label, &labels.service_name, 63, findings) else {
            return Some(Object::Ignored(Kind::Slice, key)); // E-3
        };
        let service = self.names.share(service);
        let ports = self.slice_ports(raw, findings);
        let mut endpoints = Vec::with_capacity(raw.endpoints.items.len());
        for (index, raw) in raw.endpoints.items.iter().enumerate() {
            endpoints.extend(self.endpoint(raw, index, family, findings));
        }
        if raw.endpoints.beyond > 0 {
            let problem = format!(
                "{} endpoints beyond the first {}: spread them over several slices",
                raw.endpoints.beyond,
                raw.endpoints.items.len()
            );
            findings.add("endpoints", problem);
        }
        let endpoints = endpoints.into();
        Some(Object::Slice(Slice { key, service, family, ports, endpoints }))
    }

    fn slice_ports(&mut self, raw: &RawObject<'_>, findings: &mut Findings) -> Box<[SlicePort]> {
        let mut ports = Vec::with_capacity(raw.ports.items.len());
        for (index, raw) in raw.ports.items.iter().enumerate() {
            let field = format!("ports[{index}]");
            let Some(name) = &raw.name else {
                findings.add(&format!("{field}.name"), "missing: an unnamed port has name \"\"");
                continue;
            };
            if let (Some(name), Some(protocol), Some(port)) = (
                self.port_name(name, &format!("{field}.name"), findings),
                protocol(raw, &field, findings),
                port_number(raw, &field, findings),
            ) {
                ports.push(SlicePort { name, port, protocol });
            }
        }
        if raw.ports.beyond > 0 {
            let problem =
                format!("{} ports beyond the first {}", raw.ports.beyond, raw.ports.items.len());
            findings.add("ports", problem);
        }
        ports.into()
    }

    fn endpoint(
        &self,
        raw: &RawEndpoint<'_>,
        index: usize,
        family: Family,
        findings: &mut Findings,
    ) -> Option<Endpoint> {
        let field = || format!("endpoints[{index}].addresses");
        let Some(text) = raw.addresses.items.first() else {
            findings.add(&field(), "empty: write one address");
            return None;
        };
        let problem = match address::parse(text) {
            None => format!("{} is not an IP address", quoted(text)),
            Some(addr) => match address::refusal(addr) {
                Some(refusal) => format!("{addr} {refusal}"),
                None if addr.is_ipv6() != (family == Family::V6) => {
                    format!("{addr} is not of the slice's addressType")
                }
                None => return Some(Endpoint { addr, conditions: self.conditions(raw) }),
            },
        };
        findings.add(&format!("{}[0]", field()), problem);
        None
    }

    fn conditions(&self, raw: &RawEndpoint<'_>) -> Conditions {
        let RawConditions { ready, serving, terminating } = raw.conditions.unwrap_or_default();
        let local = !self.node_name.is_empty() && *raw.node_name == *self.node_name;
        Conditions::default()
            .with(Conditions::READY, ready.unwrap_or(true))
            .with(Conditions::SERVING, serving.unwrap_or(true))
            .with(Conditions::TERMINATING, terminating.unwrap_or(false))
            .with(Conditions::LOCAL, local)
    }
}

/// The family of a slice; nothing for one that is not of IP addresses (E-2).
fn family(address_type: &str, findings: &mut Findings) -> Option<Family> {
    match address_type {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            findings.add("addressType", format!("{} is not IPv4, IPv6 or FQDN", quoted(other)));
            None
        }
    }
}
