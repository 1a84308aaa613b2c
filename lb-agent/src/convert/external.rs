//! How a Service is reached beside its clusterIPs: contract S-8 to S-11.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::raw::{RawIngress, RawObject, RawSpec};
use super::report::quoted;
use super::{Converter, Findings, address, check_length, number};
use crate::model::{Cidr, External, Family, refusal};

impl Converter {
    /// Nothing if there is nothing of it.
    pub(super) fn external(
        &self,
        raw: &RawObject<'_>,
        spec: &RawSpec<'_>,
        findings: &mut Findings,
    ) -> Option<Box<External>> {
        let local = is_local(spec, findings);
        let external = External {
            local,
            ips: if self.external_ips { external_ips(spec, findings) } else { Box::default() },
            load_balancer_ips: load_balancer_ips(raw, findings),
            source_ranges: source_ranges(spec, findings),
            health_check_node_port: health_check_node_port(spec, local, findings),
        };
        // Ranges are for the load balancer's addresses only.
        let is_any = local || !external.ips.is_empty() || !external.load_balancer_ips.is_empty();
        is_any.then(|| Box::new(external))
    }
}

/// S-10: without anything external the field has no effect.
fn is_local(spec: &RawSpec<'_>, findings: &mut Findings) -> bool {
    let is_exposed = match spec.r#type.as_str() {
        "LoadBalancer" | "NodePort" => true,
        _ => !spec.external_ips.items.is_empty(),
    };
    match spec.external_traffic_policy.as_str() {
        "Local" => is_exposed,
        "" | "Cluster" => false,
        other => {
            let problem = format!("{} is not Cluster or Local: taken as Cluster", quoted(other));
            findings.add("spec.externalTrafficPolicy", problem);
            false
        }
    }
}

fn external_ips(spec: &RawSpec<'_>, findings: &mut Findings) -> Box<[IpAddr]> {
    let field = "spec.externalIPs";
    let listed = &spec.external_ips;
    let texts = listed.items.iter().enumerate();
    let ips = texts.filter_map(|(n, text)| usable(text, || format!("{field}[{n}]"), findings));
    let ips = sorted(ips);
    check_length(listed.beyond, listed.items.len(), field, "addresses", findings);
    ips
}

/// S-9.
fn load_balancer_ips(raw: &RawObject<'_>, findings: &mut Findings) -> Box<[IpAddr]> {
    let status = raw.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let Some(ingress) = status.map(|status| &status.ingress) else { return Box::default() };
    let field = "status.loadBalancer.ingress";
    let listed = ingress.items.iter().enumerate();
    let ips = listed.filter_map(|(n, RawIngress { ip, ip_mode })| match ip_mode.as_str() {
        "" | "VIP" if !ip.is_empty() => usable(ip, || format!("{field}[{n}].ip"), findings),
        // Packets arrive with another address, or only a name is there.
        "" | "VIP" | "Proxy" => None,
        other => {
            let problem = format!("{} is not VIP or Proxy", quoted(other));
            findings.add(&format!("{field}[{n}].ipMode"), problem);
            None
        }
    });
    let ips = sorted(ips);
    check_length(ingress.beyond, ingress.items.len(), field, "addresses", findings);
    ips
}

/// An address that a Service may have, whatever its family (S-8).
fn usable(text: &str, field: impl Fn() -> String, findings: &mut Findings) -> Option<IpAddr> {
    let problem = match address::parse(text) {
        None => format!("{} is not an IP address", quoted(text)),
        Some(addr) => match refusal(addr) {
            None => return Some(addr),
            Some(refusal) => format!("{addr} {refusal}"),
        },
    };
    findings.add(&field(), problem);
    None
}

/// S-8. One that cannot be read is skipped; if all are, everybody is let in. What is beyond what
/// is read must not open a family that would be guarded: of one without any range nobody is let in then.
fn source_ranges(spec: &RawSpec<'_>, findings: &mut Findings) -> Box<[Cidr]> {
    let field = "spec.loadBalancerSourceRanges";
    let listed = &spec.load_balancer_source_ranges;
    let ranges = listed.items.iter().enumerate().filter_map(|(n, text)| {
        let range = address::parse_cidr(text);
        if range.is_none() {
            let problem = format!("{} is not a range such as 192.0.2.0/24", quoted(text));
            findings.add(&format!("{field}[{n}]"), problem);
        }
        range
    });
    let mut ranges: Vec<Cidr> = ranges.collect();
    if listed.beyond > 0 {
        for nobody in [Ipv4Addr::BROADCAST.into(), Ipv6Addr::UNSPECIFIED.into()] {
            if !ranges.iter().any(|range| range.family() == Family::of(nobody)) {
                ranges.push(Cidr::of_one(nobody));
            }
        }
    }
    check_length(listed.beyond, listed.items.len(), field, "ranges", findings);
    sorted(ranges.into_iter())
}

/// S-11.
fn health_check_node_port(spec: &RawSpec<'_>, local: bool, findings: &mut Findings) -> u16 {
    if !local || spec.r#type.as_str() != "LoadBalancer" {
        return 0;
    }
    number(spec.health_check_node_port, "spec.healthCheckNodePort", findings).unwrap_or(0)
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Box<[T]> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items.into()
}
