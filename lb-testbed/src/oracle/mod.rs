//! What does the Service contract say? Written from its text alone, slowly and plainly, so that the
//! code under test can be held against it; nothing here comes from the agent or the packet logic.
//!
//! [`expect`] answers for one connection; [`View`] works a cluster out once for many of them. Rules
//! are named by their ids. [`History`] is a cluster in the making, as events of the API, and
//! [`generate`] makes such histories for property tests.

pub mod cluster;
pub mod endpoints;
#[cfg(test)]
mod fixture;
pub mod generate;
pub mod history;
pub mod node_ports;
mod refusals;
pub mod render;
pub mod services;
pub mod text;
pub mod verdict;

pub use cluster::Cluster;
pub use history::History;
pub use services::View;
pub use verdict::{Client, Engine, Expectation, Link, Place, Source, Verdict, expect};
