//! Which servers there are and where partitions' replicas live.
//!
//! # Seats
//! The members of the meta group are named by their place in the configured list,
//! `[cluster] metas`: the n-th has Raft id n and sits on seat n, the reserved server id
//! n. Nobody has to know a meta's real id before it was ever reached: whoever sends to a
//! seat dials the address that the configuration gives for it. Real server ids are drawn
//! above [`META_IDS_END`]; the first standalone format's id 1 is the exception, and its meta
//! group of one never sends.

use serde::{Deserialize, Serialize};

use crate::PartitionId;

/// A server process, by the number in its data directory. Never a Raft id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId(pub u64);

/// The server ids below are seats of the meta group; a process draws its own id at or
/// above.
pub const META_IDS_END: u64 = 1 << 8;

impl ServerId {
    /// The n-th member of the meta group; the first is 1.
    pub const fn of_meta(position: u32) -> ServerId {
        assert!(position >= 1 && (position as u64) < META_IDS_END, "seats are 1 to 255");
        ServerId(position as u64)
    }

    /// Which member of the meta group this is, when it is a seat.
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

/// Who leads a partition, as somebody saw it; the higher term is the later truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leader {
    /// Where the leader is.
    pub server: ServerId,
    /// Raft's term.
    pub term: u64,
}
