//! What does this agent know of the cluster? Services, EndpointSlices and this Node as plain,
//! validated types, small enough to hold a cluster: 100,000 endpoints take about 5 MB.
//!
//! [`crate::convert`] makes them, [`Store`] holds them and tells what changed, [`crate::policy`]
//! reads them. [`DesiredPort`] is what policy hands on.

mod address;
mod desired;
mod endpoint;
mod index;
mod node;
mod object;
mod store;
#[cfg(test)]
mod store_tests;

pub use address::{Cidr, refusal};
pub use desired::{DesiredBackend, DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol};
pub use endpoint::{Conditions, Endpoint, Endpoints};
pub use node::{Node, ServiceCidr};
pub use object::{
    ClusterIps, External, ObjectKey, Service, ServicePort, Slice, SlicePort, ZoneSet,
};
pub use store::{Change, Counts, Dirty, Store};
