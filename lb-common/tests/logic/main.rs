//! The packet logic as a whole, on tables in hash maps and packets in slices.

mod affinity;
mod bytes;
mod choice;
mod connected;
mod destinations;
mod flows;
mod forged;
mod hostile;
mod lifecycle;
mod outside;
mod outside_setup;
mod refusals;
mod sent_on;
mod setup;
mod stale;
mod stray;
mod tables;
mod taken;
mod unconnected;
mod ways;
mod wire;
