//! Which servers there are and where partitions' replicas live.

use serde::{Deserialize, Serialize};

use crate::PartitionId;

/// A server process, by the number in its data directory. Never a Raft id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId(pub u64);

impl std::fmt::Display for ServerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One replica of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Fresh for every placement, given by meta, never reused.
    pub raft_id: u64,
    /// Where it lives.
    pub server: ServerId,
}

/// Where a partition's replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Of which partition.
    pub partition: PartitionId,
    /// Its replicas; the first is the one that is to lead.
    pub members: Vec<Member>,
    /// Grows with every change of `members`.
    pub epoch: u64,
}

/// Who leads a partition, as somebody saw it; the higher term is the later truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leader {
    /// Where the leader is.
    pub server: ServerId,
    /// Raft's term.
    pub term: u64,
}
