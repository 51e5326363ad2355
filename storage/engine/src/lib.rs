//! RocksDB, the Raft log and openraft behind one interface.
//!
//! A replica needs a store for its records, a log for its promises, and a group to agree
//! with. [`store`] is one RocksDB per replica, [`log`] is one log per node for all its
//! groups, and [`raft`] joins the two under openraft: storage and meta lead and propose
//! to a [`raft::Group`]. The binary implements [`raft::Transport`], which reaches other
//! servers. Entries carry a [`batch`]: the records that one entry changes, as bytes
//! without any notion of rows.
//!
//! # Life of a write
//! 1. The leader of a group proposes a finished batch ([`raft::Group::propose`]).
//! 2. openraft appends it to the group's part of the node's log. One writer takes the
//!    queued operations of all groups, writes them at once, and syncs once if the
//!    durability requires it ([`log`]).
//! 3. When committed, the batch is checked completely and applied with its log id
//!    ([`raft::Machine`], [`store::Store::apply`]): to a hash table, the write buffer,
//!    from which RocksDB's memtables are written, many entries at a time.
//! 4. RocksDB's own log is off. A flush puts the state after some whole entry on disk.
//!    Only then may the log be purged up to that entry; after a crash the entries behind
//!    it are replayed.
//!
//! # Invariants
//! - RocksDB and openraft are named in this crate only
//!   (`integration/tests/tidy/layers.rs`, `libraries_are_named_where_they_belong`).
//! - The state on disk is that after some whole entry (`tests/store.rs`,
//!   `a_crash_loses_whole_entries_only`).
//! - The log is never purged beyond the flushed entry (`tests/machine.rs`,
//!   `only_flushed_entries_are_purged`).
//! - A confirmed leader sees everything that was acknowledged, through restarts and
//!   network partitions (`tests/raft_leases.rs`).
//! - A received snapshot is complete, or it is not installed (`tests/raft_snapshots.rs`).
//! - A damaged file is named and never read as data (`tests/corruption.rs`;
//!   `log/tests/damage.rs`).
//! - A full disk breaks no promise: writes wait or are refused, reads go on
//!   (`tests/disk_full.rs`).
//!
//! # Not here
//! Rows: a [`store::Liveness`] from above tells compaction which cells are dead.
//! Placement of leaders, and the time of proposals: `storage` and `meta`.

pub mod batch;
pub mod clocks;
mod fault;
pub mod log;
pub mod memory;
pub mod mutants;
pub mod raft;
pub mod store;
pub mod time;
#[cfg(test)]
mod vectors;

pub use fault::FaultKind;
