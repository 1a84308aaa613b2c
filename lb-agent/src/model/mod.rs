//! Kubernetes objects as this agent understands them: plain types with validated constructors.

mod desired;

pub use desired::{DesiredBackend, DesiredPort, Family, Frontend, PortKey, Protocol};
