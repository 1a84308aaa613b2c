//! The planner against maps in memory.

mod addresses;
mod cases;
mod guards;
mod histories;
mod hosts;
mod ranges;
mod world;
