//! The planner against maps in memory.

mod addresses;
mod cases;
mod guards;
mod histories;
mod hosts;
mod model;
mod ranges;
mod reader;
mod world;
