//! The planner against maps in memory.

mod addresses;
mod cases;
mod histories;
mod hosts;
mod ranges;
mod world;
