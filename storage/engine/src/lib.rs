//! RocksDB and the Raft log behind one door.

pub mod raft;
