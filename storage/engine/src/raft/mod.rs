//! openraft's storage, shared by the groups of partitions and of meta.

pub mod machine;
pub mod log_store;
pub mod types;
