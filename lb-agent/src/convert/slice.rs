//! EndpointSlices: contract E-1 to E-14.

use super::hints::ZoneSets;
use super::raw::{RawConditions, RawEndpoint, RawObject};
use super::report::quoted;
use super::{
    Converter, Findings, Kind, Object, address, check_length, check_name, port_number, protocol,
};
use crate::model::{Conditions, Endpoint, Endpoints, Family, Slice, SlicePort, refusal};

impl Converter {
    pub(super) fn slice(&mut self, raw: &RawObject<'_>, findings: &mut Findings) -> Option<Object> {
        let key = self.key(Kind::Slice, &raw.metadata.namespace, &raw.metadata.name, findings)?;
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
        let mut zones = ZoneSets::default();
        let listed = raw.endpoints.items.iter().enumerate();
        let endpoints = Endpoints::new(
            family,
            listed.filter_map(|(n, raw)| self.endpoint(raw, n, family, &mut zones, findings)),
        );
        if raw.endpoints.beyond > 0 {
            let problem = format!(
                "{} endpoints beyond the first {}: spread them over several slices",
                raw.endpoints.beyond,
                raw.endpoints.items.len()
            );
            findings.add("endpoints", problem);
        }
        let zone_sets = zones.sets.into();
        Some(Object::Slice(Slice { key, service, ports, endpoints, zone_sets }))
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
        check_length(raw.ports.beyond, raw.ports.items.len(), "ports", "ports", findings);
        ports.into()
    }

    fn endpoint(
        &mut self,
        raw: &RawEndpoint<'_>,
        index: usize,
        family: Family,
        zones: &mut ZoneSets,
        findings: &mut Findings,
    ) -> Option<Endpoint> {
        let field = || format!("endpoints[{index}].addresses");
        let Some(text) = raw.addresses.items.first() else {
            findings.add(&field(), "empty: write one address");
            return None;
        };
        let parsed = address::parse(text);
        let problem = match parsed.map(|addr| (addr, refusal(addr))) {
            None => format!("{} is not an IP address", quoted(text)),
            Some((addr, Some(refusal))) => format!("{addr} {refusal}"),
            Some((addr, None)) if Family::of(addr) != family => {
                format!("{addr} is not of the slice's addressType")
            }
            Some((addr, None)) => {
                let (of_nodes, zones) = self.hints(raw, index, zones, findings);
                let conditions = self.conditions(raw).with(of_nodes, true);
                return Some(Endpoint { addr, conditions, zones });
            }
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
