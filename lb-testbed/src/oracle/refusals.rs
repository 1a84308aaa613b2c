//! What may nobody claim by writing a Service (section 12: CVE-2020-8554 and the duties below it)?
//!
//! The node's own addresses may be claimed (C-4), but for the ports where the API server or the
//! kubelet listens.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::cluster::{AddressType, Cluster, Node, Protocol};
use super::endpoints;
use super::text::{self, Range};

/// What is taken already.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    /// clusterIPs of Services that count, with the Service.
    pub(super) cluster_ips: BTreeSet<(IpAddr, String, String)>,
    pods: Vec<Range>,
    /// Where the cluster's own servers listen on TCP.
    servers: BTreeSet<SocketAddr>,
    node: Vec<IpAddr>,
}

impl Taken {
    /// What is taken in a cluster on this node, clusterIPs aside.
    pub(super) fn new(cluster: &Cluster, node: &Node) -> Self {
        let own: Vec<IpAddr> = node.addresses.iter().filter_map(|ip| text::address(ip)).collect();
        let mut servers: BTreeSet<SocketAddr> =
            own.iter().map(|ip| SocketAddr::new(*ip, node.kubelet_port)).collect();
        let of_api = cluster.slices.iter().filter(|slice| {
            slice.namespace == "default"
                && slice.service() == "kubernetes"
                && endpoints::is_ours(slice)
        });
        for slice in of_api {
            let AddressType::Ip(family) = slice.address_type else { continue };
            let tcp = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            for number in tcp.filter(|port| port.name.is_some()).filter_map(|port| port.port) {
                let listening = slice.endpoints.iter();
                let listening = listening.filter_map(|at| endpoints::address(at, family));
                servers.extend(listening.map(|ip| SocketAddr::new(ip, number)));
            }
        }
        Self {
            cluster_ips: BTreeSet::new(),
            pods: node.pod_cidrs.iter().filter_map(|cidr| Range::read(cidr)).collect(),
            servers,
            node: own,
        }
    }

    /// Whether a Service may not have an external address at a port.
    pub(super) fn refuses(
        &self,
        (namespace, service): (&str, &str),
        at: SocketAddr,
        protocol: Protocol,
    ) -> bool {
        let of_another = self
            .cluster_ips
            .iter()
            .any(|(ip, ns, name)| *ip == at.ip() && (&**ns, &**name) != (namespace, service));
        of_another
            || self.pods.iter().any(|range| range.contains(at.ip()))
            || (protocol == Protocol::Tcp && self.servers.contains(&at))
    }

    /// Whether a nodePort of a family is where the node itself is asked for something else.
    pub(super) fn refuses_node_port(&self, of_v4: bool, port: u16, protocol: Protocol) -> bool {
        let own = self.node.iter().filter(|ip| ip.is_ipv4() == of_v4);
        protocol == Protocol::Tcp
            && own.map(|ip| SocketAddr::new(*ip, port)).any(|at| self.servers.contains(&at))
    }
}
