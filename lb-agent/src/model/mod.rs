//! What does this agent know of the cluster? Services, EndpointSlices and this Node as plain,
//! validated types, small enough to hold a cluster: 100,000 endpoints take about 5 MB.
//!
//! [`crate::convert`] makes them, [`Store`] holds them and tells what changed, [`crate::policy`]
//! reads them. [`DesiredPort`] is what policy hands on.

mod desired;
mod object;
mod store;

pub use desired::{DesiredBackend, DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol};
pub use object::{
    ClusterIps, Conditions, Endpoint, Node, ObjectKey, Service, ServicePort, Slice, SlicePort,
};
pub use store::{Change, Counts, Dirty, Store};
