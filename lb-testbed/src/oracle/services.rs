//! Which Services count, and what is captured for whom (sections 1.1 and 3.1)?

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::cluster::{
    Cluster, Config, Family, HEADLESS, IpMode, Node, PROXY_NAME, Policy, Protocol, Service,
    ServiceType,
};
use super::endpoints::{Lists, PortId, Uses};
use super::node_ports::NodePortAddresses;
use super::refusals::Taken;
use super::text::{self, Range};

/// What kind of address of a Service a packet was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A clusterIP.
    ClusterIp,
    /// An externalIP.
    ExternalIp,
    /// An address of a load balancer.
    LoadBalancer,
    /// A nodePort.
    NodePort,
}

/// One service port as one node sees it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Identity.
    pub id: PortId,
    /// Its endpoints.
    pub lists: Lists,
    /// `internalPolicyLocal` (S-10).
    pub internal_local: bool,
    /// `externalPolicyLocal` (S-10).
    pub external_local: bool,
    /// Timeout of affinity by client address, in seconds.
    pub affinity_s: Option<u32>,
    /// Who may use the load balancer's addresses; everybody if empty.
    pub source_ranges: Vec<Range>,
    /// The load balancer's addresses.
    pub ingress: BTreeSet<IpAddr>,
}

/// A cluster as one node sees it: all that decisions need, worked out once.
#[derive(Clone, Debug)]
pub struct View {
    /// This node.
    pub node: Node,
    /// What the proxy is told.
    pub config: Config,
    /// All service ports.
    pub ports: Vec<Port>,
    /// Address, port and protocol of everything that is captured but nodePorts, with the index of
    /// its service port.
    pub captured: BTreeMap<(SocketAddr, Protocol), (Kind, usize)>,
    /// nodePorts by family, number and protocol.
    pub node_ports: BTreeMap<(Family, u16, Protocol), usize>,
    /// Where nodePorts are answered.
    pub node_port_addresses: NodePortAddresses,
    /// clusterIPs of Services that count (V-12).
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Where clusterIPs come from (V-13).
    pub service_cidrs: Vec<Range>,
}

impl View {
    /// The cluster as the node of that name sees it; one without a Node object has no zone and
    /// none but the addresses of the machine.
    pub fn new(cluster: &Cluster, node: &str) -> Self {
        let known = cluster.node(node).cloned();
        let interfaces = &cluster.config.interfaces;
        let node = known.unwrap_or_else(|| Node {
            name: node.into(),
            interfaces: interfaces.clone(),
            ..Node::default()
        });
        let mut view = Self {
            node_port_addresses: NodePortAddresses::new(&cluster.config.node_port_addresses, &node),
            node,
            config: cluster.config.clone(),
            ports: Vec::new(),
            captured: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            cluster_ips: BTreeSet::new(),
            service_cidrs: cluster
                .service_cidrs
                .iter()
                .filter_map(|cidr| Range::read(cidr))
                .filter(|cidr| cidr.prefix != 0) // It would guard everything there is.
                .collect(),
        };
        // S-15: who comes first keeps what others claim too.
        let mut taken = Taken::new(cluster, &view.node);
        let mut services: Vec<&Service> = cluster.services.iter().filter(|s| counts(s)).collect();
        services.sort_by_key(|s| (s.created_s, &s.namespace, &s.name));
        for service in &services {
            for ip in Family::BOTH.iter().filter_map(|family| cluster_ip(service, *family)) {
                let (namespace, name) = (service.namespace.clone(), service.name.clone());
                taken.cluster_ips.insert((ip, namespace, name));
            }
        }
        for service in services {
            for family in Family::BOTH {
                view.add(cluster, service, family, &taken);
            }
        }
        view
    }

    fn add(&mut self, cluster: &Cluster, service: &Service, family: Family, taken: &Taken) {
        // S-6: without a clusterIP of this family nothing of the Service is in it.
        let Some(cluster_ip) = cluster_ip(service, family) else { return };
        self.cluster_ips.insert(cluster_ip);
        let external_ips = if self.config.external_ips {
            usable(&service.external_ips, family)
        } else {
            BTreeSet::new()
        };
        let source_ranges: Vec<Range> = service
            .source_ranges
            .iter()
            .filter_map(|range| Range::read(range))
            .filter(|range| range.family() == family)
            .collect();
        let ingress = ingress(service, family);
        for port in &service.ports {
            let id = PortId {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            let internal_local = service.internal == Some(Policy::Local);
            let external_local = external_local(service);
            let accessible = port.node_port != 0 || !ingress.is_empty() || !external_ips.is_empty();
            let uses = Uses {
                cluster: !internal_local || accessible,
                local: internal_local || (external_local && accessible),
            };
            let index = self.ports.len();
            self.ports.push(Port {
                lists: Lists::new(&id, &cluster.slices, &self.node, uses),
                id,
                internal_local,
                external_local,
                affinity_s: service.affinity_s,
                source_ranges: source_ranges.clone(),
                ingress: ingress.clone(),
            });
            // An address that is both is the load balancer's: ranges hold for it.
            let claims = [
                (Kind::ClusterIp, BTreeSet::from([cluster_ip])),
                (Kind::LoadBalancer, ingress.clone()),
                (Kind::ExternalIp, external_ips.clone()),
            ];
            for (kind, addresses) in claims {
                for ip in addresses {
                    let at = SocketAddr::new(ip, port.port);
                    let owner = (&*service.namespace, &*service.name);
                    let external = kind != Kind::ClusterIp;
                    if external && taken.refuses(owner, at, port.protocol) {
                        continue;
                    }
                    self.captured.entry((at, port.protocol)).or_insert((kind, index));
                }
            }
            let of_v4 = family == Family::V4;
            if port.node_port != 0 && !taken.refuses_node_port(of_v4, port.node_port, port.protocol)
            {
                // S-14, N-9
                self.node_ports.entry((family, port.node_port, port.protocol)).or_insert(index);
            }
        }
    }

    /// Addresses that more than one service port claims are decided by age; is this port one that
    /// lost all of its own?
    pub fn is_reached(&self, index: usize) -> bool {
        self.captured.values().any(|&(_, port)| port == index)
            || self.node_ports.values().any(|&port| port == index)
    }
}

/// Whether a Service is one for this proxy (S-1 to S-3).
fn counts(service: &Service) -> bool {
    !service.labels.contains_key(PROXY_NAME)
        && !service.labels.contains_key(HEADLESS)
        && !service.cluster_ip.is_empty()
        && service.cluster_ip != "None"
        && service.kind != ServiceType::ExternalName
}

/// S-5.
fn cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    let text = if service.families.is_empty() {
        &service.cluster_ip
    } else {
        let index = service.families.iter().position(|listed| *listed == family)?;
        if service.cluster_ips.is_empty() && index == 0 {
            &service.cluster_ip
        } else {
            service.cluster_ips.get(index)?
        }
    };
    text::address(text).filter(|ip| Family::of(*ip) == family && !text::is_forbidden(*ip))
}

/// S-8: what is of this family and can be used; the rest costs nothing else.
fn usable(texts: &[String], family: Family) -> BTreeSet<IpAddr> {
    let addresses = texts.iter().filter_map(|text| text::address(text));
    addresses.filter(|ip| Family::of(*ip) == family && !text::is_forbidden(*ip)).collect()
}

/// S-9.
fn ingress(service: &Service, family: Family) -> BTreeSet<IpAddr> {
    let vips = service.ingress.iter().filter(|entry| entry.mode != Some(IpMode::Proxy));
    usable(&vips.map(|entry| entry.ip.clone()).collect::<Vec<_>>(), family)
}

/// S-10.
fn external_local(service: &Service) -> bool {
    let exposed = match service.kind {
        ServiceType::LoadBalancer | ServiceType::NodePort => true,
        ServiceType::ClusterIp => !service.external_ips.is_empty(),
        ServiceType::ExternalName => false,
    };
    exposed && service.external == Some(Policy::Local)
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
