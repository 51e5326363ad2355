//! openraft's storage, shared by the groups of partitions and of meta.

pub mod group;
pub mod log_store;
pub mod machine;
pub mod purge;
pub mod types;

pub use group::{CONFIRMED_AGE, Group, GroupError, GroupFigures, LEASE, Leadership};
pub use log_store::GroupLog;
pub use machine::{Machine, Progress, StateTransfer};
