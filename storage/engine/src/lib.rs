//! RocksDB and the Raft log behind one door.

pub mod batch;
pub mod log;
pub mod memory;
pub mod raft;
pub mod store;
