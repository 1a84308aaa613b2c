//! Contexts of the hooks as `lb-common` wants to see them.

mod direct;
pub mod sock_addr;
mod socket;
pub mod tc;
pub mod xdp;
