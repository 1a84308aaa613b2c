//! The agent as a library, so that tests reach every module.

pub mod convert;
pub mod datapath;
pub mod diff;
pub mod health;
pub mod model;
pub mod namespaces;
pub mod plan;
pub mod policy;
pub mod source;
pub mod sync;
