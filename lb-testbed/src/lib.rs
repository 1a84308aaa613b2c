//! Test-only: clusters made of network namespaces, real sockets in them, packets and their checks,
//! agents and a real API server under guards.
//!
//! Everything that this crate makes on the machine carries the id of the process that made it
//! (`mr-<pid>-<n>`, `millrace-test-<pid>-<n>`), is removed by a guard on drop, and is found by
//! [`sweep`] where the process was killed.

pub mod address;
pub mod agent;
pub mod apiserver;
pub mod bench;
pub mod bpffs;
pub mod cgroup;
pub mod cluster;
pub mod demo;
pub mod etcd;
pub mod firewall;
pub mod foreign;
pub mod golden;
pub mod id;
pub mod kube_proxy;
pub mod manifest;
pub mod matrix;
pub mod mesh;
pub mod netns;
pub mod north_south;
pub mod one_armed;
pub mod oracle;
pub mod packet;
pub mod peer;
pub mod process;
pub mod require;
pub mod rig;
pub mod scratch;
pub mod sweep;
pub mod synthetic;
mod sys;
pub mod testrun;
pub mod traffic;
pub mod wait;
pub mod wire;
