//! What does an API object mean to this agent, and what is wrong with it?
//!
//! Bytes are decoded into small subset types ([`raw`]) that borrow from them, and converted at once
//! to [`crate::model`] objects; API objects are never kept. Everything comes from users of the
//! cluster, so nothing is trusted: what cannot be used is skipped as narrowly as possible (an
//! endpoint, a port, an address) and reported as a [`Finding`], the rest is served, and nothing
//! panics. Lists within one object are bounded.

mod address;
mod decode;
mod external;
mod hints;
mod intern;
mod node;
mod path;
#[cfg(test)]
mod property_tests;
pub mod raw;
mod report;
#[cfg(test)]
mod rule_tests;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod text;
mod time;

pub use decode::{DecodeError, Identity, json, json_identity, yaml, yaml_identity};
pub use report::{Finding, Findings, Origin, Report, Skipped};

use std::sync::Arc;

use crate::model::{Node, ObjectKey, Protocol, Service, ServiceCidr, Slice};

use self::intern::Interner;
use self::raw::{RawObject, RawPort};

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice (contract E-1).
    Slice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// The kind as the API spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The API version that is read.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::Slice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    /// Whether its objects are in namespaces.
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::Slice)
    }

    /// The kind of that name and API version; nothing if it is of no interest.
    ///
    /// # Errors
    ///
    /// The kind that it would be if its version were the one that is read.
    pub fn of(api_version: &str, kind: &str) -> Result<Option<Self>, Self> {
        let found = match kind {
            "Service" => Self::Service,
            "EndpointSlice" => Self::Slice,
            "Node" => Self::Node,
            "ServiceCIDR" => Self::ServiceCidr,
            _ => return Ok(None),
        };
        let group = |version: &str| version.rsplit_once('/').map_or(String::new(), |g| g.0.into());
        if api_version == found.api_version() {
            Ok(Some(found))
        } else if group(api_version) == group(found.api_version()) {
            Err(found)
        } else {
            Ok(None) // The same name in another group, as Knative's Service.
        }
    }
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service that counts.
    Service(Service),
    /// A slice that counts.
    Slice(Slice),
    /// This node's Node.
    Node(Node),
    /// A `ServiceCIDR`.
    ServiceCidr(ServiceCidr),
    /// An object that exists but does not count: a headless Service, an FQDN slice. If it did count
    /// before, it is gone now.
    Ignored(Kind, ObjectKey),
}

/// Converts objects; shares the text that repeats between them.
#[derive(Debug)]
pub struct Converter {
    node_name: Arc<str>,
    external_ips: bool,
    names: Interner,
}

impl Converter {
    /// A converter for the node of that name, by which local endpoints are known (E-13).
    pub fn new(node_name: &str) -> Self {
        Self { node_name: node_name.into(), external_ips: true, names: Interner::default() }
    }

    /// Whether `spec.externalIPs` count; they do unless told otherwise.
    #[must_use]
    pub fn with_external_ips(self, external_ips: bool) -> Self {
        Self { external_ips, ..self }
    }

    /// Whether this node's Node has that name.
    pub fn is_this_node(&self, name: &str) -> bool {
        *name == *self.node_name
    }

    /// Converts an object of `kind`. Nothing comes of one without a usable name.
    pub fn object(
        &mut self,
        kind: Kind,
        raw: &RawObject<'_>,
        findings: &mut Findings,
    ) -> Option<Object> {
        match kind {
            Kind::Service => self.service(raw, findings),
            Kind::Slice => self.slice(raw, findings),
            Kind::Node => self.node(raw, findings),
            Kind::ServiceCidr => self.service_cidr(raw, findings),
        }
    }

    /// The key of an object of `kind`, for what says no more of it than that. One that is in no
    /// namespace has an empty one.
    pub fn key(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        findings: &mut Findings,
    ) -> Option<ObjectKey> {
        let name = check_name("metadata.name", name, 253, findings)?;
        if !kind.is_namespaced() {
            return Some(ObjectKey { namespace: "".into(), name: self.names.share(name) });
        }
        let namespace = check_name("metadata.namespace", namespace, 63, findings)?;
        // The API takes none, and the namespace of our own self-test has one.
        if namespace.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let problem = format!("{namespace:?} may not have upper-case letters");
            findings.add("metadata.namespace", problem);
            return None;
        }
        Some(ObjectKey { namespace: self.names.share(namespace), name: self.names.share(name) })
    }

    fn port_name(&mut self, name: &str, field: &str, findings: &mut Findings) -> Option<Arc<str>> {
        if !name.is_empty() {
            check_name(field, name, 63, findings)?;
        }
        Some(self.names.share(name))
    }
}

/// A name as the API would accept it, so that it fits every table and cannot garble a terminal.
fn check_name<'a>(
    field: &str,
    name: &'a str,
    longest: usize,
    findings: &mut Findings,
) -> Option<&'a str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() {
        findings.add(field, "missing: write it out");
    } else if name.len() > longest {
        findings.add(field, format!("{} bytes long, at most {longest} are allowed", name.len()));
    } else if !name.bytes().all(allowed) {
        findings.add(field, format!("{name:?} may only have letters, digits, '-', '.' and '_'"));
    } else {
        return Some(name);
    }
    None
}

/// The protocol of a port, TCP by default (contract E-8).
fn protocol(raw: &RawPort<'_>, field: &str, findings: &mut Findings) -> Option<Protocol> {
    match raw.protocol.as_str() {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            let problem = format!("{} is not TCP, UDP or SCTP", report::quoted(other));
            findings.add(&format!("{field}.protocol"), problem);
            None
        }
    }
}

/// The number of a port, 1 to 65,535.
fn port_number(raw: &RawPort<'_>, field: &str, findings: &mut Findings) -> Option<u16> {
    number(raw.port, &format!("{field}.port"), findings)
}

/// A number from 1 to 65,535.
fn number(raw: Option<i64>, field: &str, findings: &mut Findings) -> Option<u16> {
    let number = raw.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    if number.is_none() {
        let problem = match raw {
            None => "missing: write a number from 1 to 65535".to_owned(),
            Some(port) => format!("{port} is not a port: write a number from 1 to 65535"),
        };
        findings.add(field, problem);
    }
    number
}

/// Tells that a list is longer than what is read of it.
fn check_length(beyond: usize, read: usize, field: &str, what: &str, findings: &mut Findings) {
    if beyond > 0 {
        findings.add(field, format!("{beyond} {what} beyond the first {read}"));
    }
}
