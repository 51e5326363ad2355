//! RocksDB and the Raft log behind one door.
//!
//! A replica needs a place for its records, a log to promise by, and a group to agree
//! with. [`store`] is one RocksDB per replica, [`log`] one log per node for all its
//! groups, and [`raft`] joins the two under openraft: [`raft::Group`] is what storage and
//! meta lead and propose to. Other servers are reached through [`raft::Transport`], which the
//! binary implements. What passes through is a [`batch`]: the records that one entry
//! changes, as bytes that say nothing of rows.
//!
//! # Life of a write
//! 1. Whoever leads a group proposes a finished batch ([`raft::Group::propose`]).
//! 2. openraft appends it to the group's part of the node's log. One writer takes what
//!    all groups have queued, writes it at once, and syncs once if the durability asks
//!    for it ([`log`]).
//! 3. Committed, it is checked whole and applied with its log id ([`raft::Machine`],
//!    [`store::Store::apply`]): to a hash table, from which RocksDB's memtables are
//!    written, many entries at once.
//! 4. RocksDB's own log is off. A flush puts the state after some whole entry on disk;
//!    only then may the log go up to that entry, and after a crash what comes behind it
//!    is replayed.
//!
//! # Invariants
//! - RocksDB and openraft are named in this crate only (`integration/tests/tidy/layers.rs`,
//!   `libraries_are_named_where_they_belong`).
//! - What is on disk is the state after some whole entry (`tests/store.rs`,
//!   `a_crash_loses_whole_entries_only`).
//! - The log is never purged beyond what was flushed (`tests/machine.rs`,
//!   `only_flushed_entries_are_purged`).
//! - Whoever is confirmed as the leader sees all that was acknowledged, whatever restarts
//!   or is cut off (`tests/raft_leases.rs`).
//! - A state that was received is whole, or it is not installed (`tests/raft_states.rs`).
//! - A damaged file is named and never read as data (`tests/corruption.rs`;
//!   `log/tests/damage.rs`).
//! - A full disk fails nothing that was promised: writes wait or are refused, reads go on
//!   (`tests/disk_full.rs`).
//!
//! # Not here
//! What rows are: a [`store::Liveness`] given from above tells compaction which cells
//! are dead. Who leads what and when to propose: `storage` and `meta`.

pub mod batch;
pub mod clocks;
pub mod log;
pub mod memory;
pub mod mutants;
pub mod raft;
pub mod store;
pub mod time;
#[cfg(test)]
mod vectors;
