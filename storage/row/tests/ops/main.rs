//! Ops by their declarations: as they travel, and at what cost.

mod costs;
mod vectors;
