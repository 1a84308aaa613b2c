//! The agent as a library, so that tests reach every module.

pub mod datapath;
pub mod diff;
pub mod model;
pub mod plan;
