//! At which addresses is a service port reached, and which of those that it claims are refused?
//!
//! Anyone who may write a Service may claim any address (CVE-2020-8554). Addresses of nobody in
//! particular are refused where objects are read; here are those that belong to somebody else.

use std::net::IpAddr;

use super::Refusal;
use crate::model::{Family, Frontend, FrontendKind, Node, Protocol, Service, ServicePort, Store};

const EXTERNAL_IPS: &str = "spec.externalIPs";
const INGRESS: &str = "status.loadBalancer.ingress";

/// Frontends that a Service may have at addresses that it claims, in each family: the API sets no
/// limit, and maps do.
const MOST_CLAIMED: usize = 4096;

/// What no Service may take from the node, the cluster or another Service.
pub(super) struct Guard<'a> {
    store: &'a Store,
    service: &'a Service,
    /// Where API servers listen; not looked for where the Service claims nothing.
    api_servers: Vec<(IpAddr, u16)>,
}

impl<'a> Guard<'a> {
    pub(super) fn new(store: &'a Store, service: &'a Service) -> Self {
        let claims = claims_anything(service);
        let api_servers = if claims { store.api_servers() } else { Vec::new() };
        Self { store, service, api_servers }
    }

    pub(super) fn node(&self) -> Option<&'a Node> {
        self.store.node()
    }

    /// Why an external address of the Service is refused at every port.
    fn address(&self, addr: IpAddr) -> Option<String> {
        if self.store.is_cluster_ip_of_another(addr, self.service) {
            return Some(format!("{addr} is the clusterIP of another Service"));
        }
        let node = self.node()?;
        let of_pods = node.pod_cidrs.iter().find(|cidr| cidr.contains(addr))?;
        Some(format!("{addr} is in {of_pods}, which is for the pods of this node"))
    }

    /// Why an external address is refused at a port. The node's addresses themselves are not: a
    /// Service may be reached there (C-4).
    fn listener(&self, addr: IpAddr, port: &ServicePort, number: u16) -> Option<String> {
        if port.protocol != Protocol::Tcp {
            return None;
        }
        let is_here = |node: &&Node| node.addresses.contains(&addr);
        let whose = if self.api_servers.contains(&(addr, number)) {
            "an API server"
        } else if self.node().filter(is_here).is_some_and(|node| node.kubelet_port == number) {
            "the kubelet of this node"
        } else {
            return None;
        };
        let at = std::net::SocketAddr::new(addr, number);
        Some(format!("{at} is where {whose} listens"))
    }
}

/// Whether a Service claims anything beside its clusterIPs.
pub(super) fn claims_anything(service: &Service) -> bool {
    service.external.is_some() || service.ports.iter().any(|port| port.node_port != 0)
}

/// The frontends of a service port in a family, sorted, each address and port once; tells which of
/// those that it claims are refused.
pub(super) fn of(
    service: &Service,
    port: &ServicePort,
    family: Family,
    guard: &Guard<'_>,
    refused: &mut dyn FnMut(Refusal),
) -> Vec<Frontend> {
    let cluster_ip = service.cluster_ips.of(family);
    let mut frontends: Vec<Frontend> =
        cluster_ip.map(|addr| Frontend::cluster_ip(addr, port.port)).into_iter().collect();
    if !claims_anything(service) {
        return frontends;
    }
    let room = (MOST_CLAIMED / service.ports.len().max(1)).max(1);
    let mut left_out = 0_usize;
    let mut add = |field: &'static str, addr: IpAddr, kind| match guard
        .address(addr)
        .or_else(|| guard.listener(addr, port, port.port))
    {
        Some(problem) => refused(Refusal { field: field.to_owned(), problem }),
        None if frontends.len() > room => left_out += 1,
        None => frontends.push(Frontend { addr, port: port.port, kind }),
    };
    // One that is among both and guarded is the load balancer's: nobody gets around its ranges (V-5).
    let has_ranges = service.source_ranges(family).next().is_some();
    let is_guarded = |addr| has_ranges && service.load_balancer_ips(family).any(|vip| vip == addr);
    for addr in service.external_ips(family).filter(|addr| !is_guarded(*addr)) {
        add(EXTERNAL_IPS, addr, FrontendKind::ExternalIp);
    }
    for addr in service.load_balancer_ips(family) {
        add(INGRESS, addr, FrontendKind::LoadBalancer);
    }
    if left_out > 0 {
        let problem = format!(
            "{left_out} addresses beyond the first {room}, with those of {INGRESS}: a Service with \
             so many ports has no room for more; spread them over several Services"
        );
        refused(Refusal { field: EXTERNAL_IPS.to_owned(), problem });
    }
    frontends.extend(node_port(port, family, guard, refused));
    frontends.sort_unstable_by_key(|frontend| (frontend.addr, frontend.port, frontend.kind));
    frontends.dedup_by_key(|frontend| (frontend.addr, frontend.port));
    frontends
}

/// S-14.
fn node_port(
    port: &ServicePort,
    family: Family,
    guard: &Guard<'_>,
    refused: &mut dyn FnMut(Refusal),
) -> Option<Frontend> {
    let number = port.node_port;
    if number == 0 {
        return None;
    }
    let addresses = guard.node().map_or(&[][..], |node| &node.addresses);
    let mut of_family = addresses.iter().copied().filter(|addr| Family::of(*addr) == family);
    let problem = of_family.find_map(|addr| guard.listener(addr, port, number));
    if let Some(problem) = problem {
        let field = format!("spec.ports[{}].nodePort", guard.index_of(port));
        refused(Refusal { field, problem });
        return None;
    }
    Some(Frontend::node_port(family, number))
}

impl Guard<'_> {
    fn index_of(&self, port: &ServicePort) -> usize {
        self.service.ports.iter().position(|own| own == port).unwrap_or(0)
    }
}
