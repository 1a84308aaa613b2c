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
/// Most taints that are read of a Node; the API has no limit, and nobody has so many.
pub const MOST_TAINTS: usize = 1000;

/// An API object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawObject<'a> {
    pub api_version: Text<'a>,
    pub kind: Text<'a>,
    pub metadata: RawMetadata<'a>,
    /// Of a Service or of a Node.
    pub spec: Option<RawSpec<'a>>,
    /// Of a Node.
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

/// `spec` of a Service or of a Node.
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
    /// Of a Node.
    pub taints: Bounded<RawTaint<'a>, MOST_TAINTS>,
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
}

/// An endpoint of a slice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct RawEndpoint<'a> {
    pub addresses: Bounded<Text<'a>, 1>,
    pub conditions: Option<RawConditions>,
    pub node_name: Text<'a>,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `status` of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawStatus<'a> {
    pub addresses: Bounded<RawNodeAddress<'a>, MOST_ADDRESSES>,
}

/// An address of a Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct RawNodeAddress<'a> {
    pub r#type: Text<'a>,
    pub address: Text<'a>,
}
