//! The subset of the API types that is read, of all kinds in one, so that an object is decoded in
//! one pass whatever the order of its fields. Everything else is skipped while decoding, without
//! being stored.

use serde::Deserialize;

pub use super::text::{Bounded, Labels, Text};

/// Most ports that are read of one object; the API allows 100 in a slice.
pub const MOST_PORTS: usize = 1000;
/// Most endpoints that are read of one slice; the API allows 1,000.
pub const MOST_ENDPOINTS: usize = 10_000;
/// Most addresses that are read of a Service, a Node or an endpoint; the API allows 2 for a
/// Service and 100 for an endpoint, of which the first is used (contract E-11).
pub const MOST_ADDRESSES: usize = 16;
/// Most external addresses, load balancer addresses or source ranges that are read of a Service; the
/// API sets no limit.
pub const MOST_EXTERNAL: usize = 1000;
/// Most names that are read of an endpoint's hints; the API allows 8.
pub const MOST_HINTS: usize = 16;
/// Most taints that are read of a Node; the API has no limit, and nobody has so many.
pub const MOST_TAINTS: usize = 1000;

/// An API object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawObject<'a> {
    pub api_version: Text<'a>,
    pub kind: Text<'a>,
    pub metadata: RawMetadata<'a>,
    /// Of a Service, a Node or a `ServiceCIDR`.
    pub spec: Option<RawSpec<'a>>,
    /// Of a Service or a Node.
    pub status: Option<RawStatus<'a>>,
    /// Of a slice.
    pub address_type: Text<'a>,
    /// Of a slice.
    pub ports: Bounded<RawPort<'a>, MOST_PORTS>,
    /// Of a slice.
    pub endpoints: Bounded<RawEndpoint<'a>, MOST_ENDPOINTS>,
}

/// `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawMetadata<'a> {
    pub name: Text<'a>,
    pub namespace: Text<'a>,
    pub creation_timestamp: Text<'a>,
    pub deletion_timestamp: Text<'a>,
    pub resource_version: Text<'a>,
    pub labels: Labels<'a>,
}

/// `spec` of a Service, a Node or a `ServiceCIDR`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawSpec<'a> {
    pub r#type: Text<'a>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Text<'a>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Bounded<Text<'a>, MOST_ADDRESSES>,
    pub ip_families: Bounded<Text<'a>, MOST_ADDRESSES>,
    pub ports: Bounded<RawPort<'a>, MOST_PORTS>,
    pub internal_traffic_policy: Text<'a>,
    pub session_affinity: Text<'a>,
    pub session_affinity_config: Option<RawAffinity>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Bounded<Text<'a>, MOST_EXTERNAL>,
    pub external_traffic_policy: Text<'a>,
    pub load_balancer_source_ranges: Bounded<Text<'a>, MOST_EXTERNAL>,
    pub health_check_node_port: Option<i64>,
    /// Of a Node.
    pub taints: Bounded<RawTaint<'a>, MOST_TAINTS>,
    /// Of a Node.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Text<'a>,
    /// Of a Node.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Bounded<Text<'a>, MOST_ADDRESSES>,
    /// Of a `ServiceCIDR`.
    pub cidrs: Bounded<Text<'a>, MOST_ADDRESSES>,
}

/// A taint of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawTaint<'a> {
    pub key: Text<'a>,
}

/// `sessionAffinityConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawAffinity {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<RawClientIp>,
}

/// `sessionAffinityConfig.clientIP`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawClientIp {
    pub timeout_seconds: Option<i64>,
}

/// A port of a Service or of a slice.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawPort<'a> {
    /// Absent and empty are different in a slice (E-8).
    pub name: Option<Text<'a>>,
    pub protocol: Text<'a>,
    pub port: Option<i64>,
    /// Of a Service.
    #[serde(rename = "nodePort")]
    pub node_port: Option<i64>,
}

/// An endpoint of a slice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawEndpoint<'a> {
    pub addresses: Bounded<Text<'a>, 1>,
    pub conditions: Option<RawConditions>,
    pub node_name: Text<'a>,
    pub hints: Option<RawHints<'a>>,
}

/// `hints` of an endpoint (E-14).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawHints<'a> {
    pub for_zones: Bounded<RawHint<'a>, MOST_HINTS>,
    pub for_nodes: Bounded<RawHint<'a>, MOST_HINTS>,
}

/// A zone or node that hints name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawHint<'a> {
    pub name: Text<'a>,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `status` of a Service or a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawStatus<'a> {
    /// Of a Node.
    pub addresses: Bounded<RawNodeAddress<'a>, MOST_ADDRESSES>,
    /// Of a Node.
    pub daemon_endpoints: Option<RawDaemonEndpoints>,
    /// Of a Service.
    pub load_balancer: Option<RawLoadBalancer<'a>>,
}

/// `status.daemonEndpoints` of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawDaemonEndpoints {
    pub kubelet_endpoint: Option<RawDaemonEndpoint>,
}

/// Where a daemon of a Node listens.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawDaemonEndpoint {
    /// The API spells it with a capital.
    #[serde(rename = "Port")]
    pub port: Option<i64>,
}

/// `status.loadBalancer` of a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawLoadBalancer<'a> {
    pub ingress: Bounded<RawIngress<'a>, MOST_EXTERNAL>,
}

/// An address of a load balancer (S-9).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawIngress<'a> {
    pub ip: Text<'a>,
    pub ip_mode: Text<'a>,
}

/// An address of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawNodeAddress<'a> {
    pub r#type: Text<'a>,
    pub address: Text<'a>,
}
