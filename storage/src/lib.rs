//! The storage server: replicas of partitions, and the node that holds them.
//!
//! # Life of a write
//! 1. [`Node::call`](cluster::CallPartition::call) finds the partition's
//!    [`Replica`](replica::Replica) and hands the request to its executor's queue
//!    (bounded; a full one answers [`CallError::Overloaded`](cluster::CallError); all
//!    queues and batches of the node together are bounded by [`quota`]).
//! 2. The executor, the single writer of the partition, takes everything that waits,
//!    stamps it with one time, and evaluates op after op on the applied state with the
//!    edits made so far on top ([`row::eval()`]).
//! 3. The edits of the whole batch become one Raft entry: a finished write batch
//!    ([`batch`]).
//! 4. openraft appends it to the node's shared log (one fsync for all groups that wait),
//!    commits it and applies it to RocksDB.
//! 5. The answers go back. Meanwhile the next batch was evaluated on top of the edits in
//!    flight ([`executor`]).
//!
//! # Life of a read
//! A request of reads only is answered on the caller's thread from a RocksDB snapshot, as
//! long as the replica holds a fresh lease ([`lease`]); otherwise it first asks Raft to
//! confirm leadership. One lease check serves a whole pipeline chunk.
//!
//! # Life of a fault
//! A replica that can't read or write its store, or whose Raft has ended, refuses
//! everything from then on ([`Replica`](replica::Replica)). Alone, it says why until it
//! is started again. In a cluster callers are told that it does not lead, it hands over,
//! and its group is shut down; [`Node`] opens it again after a while, or has it rebuilt
//! from the leader when what is on disk is damaged ([`engine::raft::Rebuild`]).
//!
//! # Invariants
//! - A fault is never an answer in a cluster, and never keeps a leadership
//!   (`tests/replication.rs`, `a_damaged_replica_is_taken_anew_from_the_leader`).
//! - Evaluation sees the applied state and the edits in flight, no more and no less: a
//!   batch is proposed only under the leadership under which it was evaluated, and takes
//!   effect only behind the batch that it was evaluated on
//!   (`storage/engine/tests/store.rs`, `a_batch_whose_base_never_took_effect_is_void`).
//! - A replica that begins to lead forgets what it knew of rows as an earlier leader
//!   (`tests/replication.rs`, `a_leader_that_comes_back_reads_what_others_wrote`).
//! - A request is atomic, whatever else is in its batch (`tests/standalone.rs`,
//!   `requests_that_wait_together_are_one_batch_and_each_is_atomic`).
//! - Nobody is answered before the entry is applied
//!   (`integration/tests/crash_recovery.rs`). A write whose fate is not known is answered
//!   as unknown, never tried again.
//! - Time does not run backwards in a partition: the last stamp is stored with every
//!   batch (`clock.rs`, `a_stamp_is_never_before_an_applied_one`), and nothing is said to
//!   have expired before a stamp that late is committed (`tests/standalone.rs`,
//!   `an_observed_expiry_is_committed_once`).
//! - openraft and RocksDB are not named here: both are behind `engine`
//!   (`integration/tests/tidy/layers.rs`).

#[cfg(test)]
extern crate self as storage;

mod batch;
mod clock;
mod compaction;
mod compaction_filter;
mod cursors;
mod dirs;
mod error;
mod executor;
mod expiry;
mod fault;
mod group_commit;
#[cfg(test)]
#[path = "../tests/kit/mod.rs"]
mod kit;
mod lease;
mod node;
mod queue;
mod quota;
mod reads;
pub mod replica;
mod row_cache;
mod stripes;
mod tasks;

pub use clock::monotonic;
pub use compaction::Compaction;
pub use error::{CompactionError, ReplicaError};
pub use fault::log_fault;
pub use node::{Assignment, Node, NodeOptions, Peers, TableStats};
