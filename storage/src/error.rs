//! Reasons why a node did not do what another server or meta asked of one of its
//! replicas.

use cluster::CallError;
use engine::log::LogError;
use engine::raft::{ChangeError, GroupError, ReceiveError};

/// Reason why a replica did not do what a server asked of it. The server that asked gets
/// its text and asks again, here or elsewhere.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplicaError {
    /// The message names a group that is none of a partition.
    #[error("no partition has this group's number")]
    NoPartition,
    /// The replica is not here, or is set aside.
    #[error(transparent)]
    Unavailable(#[from] CallError),
    /// A message of Raft was not taken.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The replica does not lead in this term, so it has no leadership to hand over.
    #[error("it does not lead in term {0}")]
    NotLeading(u64),
    /// Leadership was not handed over.
    #[error(transparent)]
    Transfer(#[from] ChangeError),
    /// The replica has not applied an entry in time.
    #[error("entry {0} is not applied here yet")]
    NotApplied(u64),
    /// The replica's group has ended.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The log is not on disk.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Reason why a compaction on request did not finish.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CompactionError {
    /// The replica's records could not be searched for what is due.
    #[error(transparent)]
    Search(#[from] CallError),
    /// The store could not be compacted.
    #[error(transparent)]
    Store(#[from] engine::store::Fault),
    /// A bug.
    #[error("it panicked: {0}")]
    Panicked(String),
}
