//! Everything that decides, as `no_std` code without dependencies: the kernel programs, host tests
//! and `lb-agent explain` all run what is here.
//!
//! [`abi`] is the layout of every map; the rest is packet logic, generic over [`packet::Packet`]
//! and the traits of [`tables`]. With the feature `host`, [`host`] holds tables to run it on.
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![warn(missing_docs)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::cast_possible_truncation,
        clippy::allow_attributes,
        reason = "tests fail by panicking"
    )
)]

pub mod abi;
mod begin;
pub mod csum;
pub mod decide;
pub mod early;
pub mod established;
mod first;
pub mod flow;
mod forward;
pub mod fragment;
pub mod guard;
mod hop;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod look;
mod origin;
pub mod packet;
pub mod parse;
mod passing;
pub mod refuse;
pub mod rewrite;
pub mod select;
mod snat;
pub mod socket;
mod stray;
pub mod tables;
pub mod verdict;
