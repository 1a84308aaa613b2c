//! This node, as far as its object tells, and the cluster's ranges of clusterIPs.

use std::net::IpAddr;
use std::sync::Arc;

use super::Cidr;

/// What is used of the Node object of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, empty without one (T-10).
    pub zone: Arc<str>,
    /// Its addresses, canonical, those of type `InternalIP` before those of type `ExternalIP` (L-5).
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[Cidr]>,
    /// Port of the kubelet, 0 if it is not told.
    pub kubelet_port: u16,
    /// It has a deletion timestamp, or is gone (H-4).
    pub deleting: bool,
    /// It has the taint `ToBeDeletedByClusterAutoscaler` (H-4).
    pub removal_planned: bool,
}

/// A `ServiceCIDR`: ranges that clusterIPs are allocated from (V-13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Box<[Cidr]>,
}
