//! Servers, and placements and leaders of partitions.
//!
//! # Meta indices
//! A member of the meta group is named by its position in the configured list,
//! `[cluster] metas`: the n-th has meta index n, Raft id n and the reserved server id n.
//! A message to a reserved id goes to the configured address, so a meta's own server id
//! need not be known. Own server ids are drawn from [`META_IDS_END`] on.

use serde::{Deserialize, Serialize};

use crate::PartitionId;

/// A server process, by the number in its data directory. Never a Raft id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId(pub u64);

/// Server ids below are reserved for meta indices; a process draws its own id from here
/// on.
pub const META_IDS_END: u64 = 1 << 8;

impl ServerId {
    /// The n-th member of the meta group; the first is 1.
    pub const fn of_meta(position: u32) -> ServerId {
        assert!(position >= 1 && (position as u64) < META_IDS_END, "meta indices are 1 to 255");
        ServerId(position as u64)
    }

    /// The meta index, if the id is a reserved one.
    pub const fn meta_index(self) -> Option<u32> {
        if self.0 >= 1 && self.0 < META_IDS_END { Some(self.0 as u32) } else { None }
    }
}

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
    /// Its server.
    pub server: ServerId,
}

/// Placement of a partition's replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Of which partition.
    pub partition: PartitionId,
    /// Its replicas; the first is the one that is to lead.
    pub members: Vec<Member>,
    /// Grows with every change of `members`.
    pub epoch: u64,
}

impl Placement {
    /// The member on a server.
    pub fn on(&self, server: ServerId) -> Option<&Member> {
        self.members.iter().find(|member| member.server == server)
    }

    /// The member with a Raft id.
    pub fn member(&self, raft_id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.raft_id == raft_id)
    }
}

/// A partition's leader; of two, the one of the higher term is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leader {
    /// The leader's server.
    pub server: ServerId,
    /// Raft's term.
    pub term: u64,
}
