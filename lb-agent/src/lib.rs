//! The agent as a library, so that tests reach every module.

pub mod model;
