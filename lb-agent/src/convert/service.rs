//! Services: contract S-1 to S-16.

use std::net::IpAddr;

use super::raw::{RawObject, RawPort, RawSpec};
use super::report::quoted;
use super::{
    Converter, Findings, Kind, Object, address, check_length, check_name, number, port_number,
    protocol, time,
};
use crate::model::{ClusterIps, Service, ServicePort, refusal};

/// Default and largest affinity timeout in seconds.
const AFFINITY_TIMEOUT_S: u32 = 10_800;
const LONGEST_AFFINITY_TIMEOUT_S: i64 = 86_400;

impl Converter {
    pub(super) fn service(
        &mut self,
        raw: &RawObject<'_>,
        findings: &mut Findings,
    ) -> Option<Object> {
        let key = self.key(Kind::Service, &raw.metadata.namespace, &raw.metadata.name, findings)?;
        check_name("metadata.name", &key.name, 63, findings)?;
        let labels = &raw.metadata.labels;
        let spec = match &raw.spec {
            Some(spec) if !labels.other_proxy && !labels.headless && counts(spec) => spec,
            _ => return Some(Object::Ignored(Kind::Service, key)),
        };
        Some(Object::Service(Service {
            key,
            created_s: time::unix_seconds(&raw.metadata.creation_timestamp).unwrap_or(i64::MAX),
            cluster_ips: cluster_ips(spec, findings),
            ports: self.service_ports(&spec.ports.items, spec.ports.beyond, findings),
            internal_local: internal_local(spec, findings),
            affinity_timeout_s: affinity_timeout_s(spec, findings),
            external: self.external(raw, spec, findings),
        }))
    }

    fn service_ports(
        &mut self,
        raw: &[RawPort<'_>],
        beyond: usize,
        findings: &mut Findings,
    ) -> Box<[ServicePort]> {
        let mut ports: Vec<ServicePort> = Vec::with_capacity(raw.len());
        for (index, raw) in raw.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            let name = raw.name.as_ref().map_or("", |name| name.as_str());
            let (Some(name), Some(protocol), Some(port)) = (
                self.port_name(name, &format!("{field}.name"), findings),
                protocol(raw, &field, findings),
                port_number(raw, &field, findings),
            ) else {
                continue;
            };
            let same = ports.iter().find(|known| {
                known.protocol == protocol && (known.name == name || known.port == port)
            });
            if let Some(same) = same {
                let problem = format!(
                    "the Service has port {:?} with number {} of this protocol already: names and \
                     numbers must differ",
                    same.name, same.port
                );
                findings.add(&field, problem);
                continue;
            }
            let node_port = match raw.node_port {
                None | Some(0) => 0, // S-14
                given => number(given, &format!("{field}.nodePort"), findings).unwrap_or(0),
            };
            let taken = ports.iter().any(|known| {
                known.protocol == protocol && known.node_port == node_port && node_port != 0
            });
            if taken {
                let problem = format!("another port of the Service has {node_port} already");
                findings.add(&format!("{field}.nodePort"), problem);
            }
            let node_port = if taken { 0 } else { node_port };
            ports.push(ServicePort { name, port, node_port, protocol });
        }
        check_length(beyond, raw.len(), "spec.ports", "ports", findings);
        ports.into()
    }
}

/// Whether a Service is one for a proxy at all (S-3).
fn counts(spec: &RawSpec<'_>) -> bool {
    !matches!(spec.cluster_ip.as_str(), "" | "None") && spec.r#type.as_str() != "ExternalName"
}

/// The clusterIP of each family (S-5).
fn cluster_ips(spec: &RawSpec<'_>, findings: &mut Findings) -> ClusterIps {
    let mut ips = ClusterIps::default();
    let families = &spec.ip_families.items;
    if families.is_empty() {
        add_cluster_ip(&mut ips, "spec.clusterIP", &spec.cluster_ip, None, findings);
        for (index, ip) in spec.cluster_ips.items.iter().enumerate() {
            if ip.as_str() != spec.cluster_ip.as_str() {
                let field = format!("spec.clusterIPs[{index}]");
                findings.add(&field, "not used without spec.ipFamilies: write the families out");
            }
        }
    }
    // The plural field came later: what was written before it has the first address only.
    let (field, addresses) = match &spec.cluster_ips.items[..] {
        [] => ("spec.clusterIP", std::slice::from_ref(&spec.cluster_ip)),
        all => ("spec.clusterIPs", all),
    };
    if !families.is_empty() && families.len() != addresses.len() {
        let problem = format!(
            "{} for {} families in spec.ipFamilies: write one of each for each family",
            addresses.len(),
            families.len()
        );
        findings.add(field, problem);
    }
    for (index, (family, ip)) in families.iter().zip(addresses).enumerate() {
        let is_v6 = match family.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            other => {
                let problem = format!("{} is not IPv4 or IPv6", quoted(other));
                findings.add(&format!("spec.ipFamilies[{index}]"), problem);
                continue;
            }
        };
        let field = if spec.cluster_ips.items.is_empty() {
            field.to_owned()
        } else {
            format!("{field}[{index}]")
        };
        add_cluster_ip(&mut ips, &field, ip, Some(is_v6), findings);
    }
    ips
}

fn add_cluster_ip(
    ips: &mut ClusterIps,
    field: &str,
    text: &str,
    is_v6: Option<bool>,
    findings: &mut Findings,
) {
    let Some(addr) = address::parse(text) else {
        findings.add(field, format!("{} is not an IP address", quoted(text)));
        return;
    };
    if let Some(refusal) = refusal(addr) {
        findings.add(field, format!("{addr} {refusal}"));
        return;
    }
    if is_v6.is_some_and(|is_v6| is_v6 != addr.is_ipv6()) {
        findings.add(field, format!("{addr} is not of the family that spec.ipFamilies says"));
        return;
    }
    let second = match addr {
        IpAddr::V4(v4) => ips.v4.replace(v4).is_some_and(|old| old != v4),
        IpAddr::V6(v6) => ips.v6.replace(v6).is_some_and(|old| old != v6),
    };
    if second {
        findings.add(field, format!("{addr} replaces another clusterIP of the same family"));
    }
}

fn internal_local(spec: &RawSpec<'_>, findings: &mut Findings) -> bool {
    match spec.internal_traffic_policy.as_str() {
        "Local" => true,
        "" | "Cluster" => false,
        other => {
            let problem = format!("{} is not Cluster or Local: taken as Cluster", quoted(other));
            findings.add("spec.internalTrafficPolicy", problem);
            false
        }
    }
}

fn affinity_timeout_s(spec: &RawSpec<'_>, findings: &mut Findings) -> Option<u32> {
    match spec.session_affinity.as_str() {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            let problem = format!("{} is not None or ClientIP: taken as None", quoted(other));
            findings.add("spec.sessionAffinity", problem);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let Some(timeout) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(AFFINITY_TIMEOUT_S);
    };
    let allowed = (1..=LONGEST_AFFINITY_TIMEOUT_S).contains(&timeout);
    if !allowed {
        let problem = format!("{timeout} is not from 1 to 86400: taken as {AFFINITY_TIMEOUT_S}");
        findings.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", problem);
    }
    Some(u32::try_from(timeout).ok().filter(|_| allowed).unwrap_or(AFFINITY_TIMEOUT_S))
}
