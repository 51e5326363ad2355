//! openraft's types as all Raft groups of Bridle use them: one configuration for
//! partitions and for meta.
//!
//! openraft's API still moves between its alphas. Its types are named here once, through
//! `openraft::alias`; all other code uses these names.
//!
//! # Invariants
//! Only `engine` names openraft (`integration/tests/tidy/layers.rs`,
//! `libraries_are_named_where_they_belong`).

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use openraft::vote::RaftTerm;
use serde::{Deserialize, Serialize};

use super::fault::ErrorCause;

openraft::declare_raft_types!(
    /// openraft's type configuration for all groups: an entry carries an encoded engine
    /// batch and answers nothing (the executor that evaluated the ops already holds the
    /// answers).
    pub Types:
        D = Payload,
        R = (),
        NodeId = u64,
        Node = Node,
        Term = Term,
        ErrorSource = ErrorCause,
);

/// Raft's term: at least the millisecond, since 1970, in which its election was called.
///
/// Raft is safe only while no member forgets its promises. A member whose directory was
/// restored from a copy has forgotten some: it may lead again in a term in which it led
/// before, and give other entries the log ids of entries that the others still have.
/// openraft takes equal ids for equal entries. A random part in the ids would tell them
/// apart, but entries that a majority has forgotten could then win elections over entries
/// that it has committed since. A term that begins with the time of its election is later
/// than all terms from before the restore, so whatever is committed in it wins. A clock
/// that is behind costs this protection and nothing else: terms then increase by one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term after this one for an election at `now_ms`, ms since 1970.
    fn next_at(self, now_ms: u64) -> Term {
        Term(now_ms.max(self.0 + 1))
    }
}

impl RaftTerm for Term {
    fn next(&self) -> Term {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.next_at(now.map_or(0, |now| now.as_millis() as u64))
    }

    fn as_u64(&self) -> Option<u64> {
        Some(self.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Term {
    fn from(term: u64) -> Term {
        Term(term)
    }
}

/// The payload of a log entry: an encoded batch, opaque to the log. Cloning it copies no
/// bytes.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

// Rows never show up in logs, so Debug says no more than Display.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Payload(bytes)
    }
}

/// The place of a group's member. The member itself is named by its Raft id, which meta
/// gives fresh for every placement.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Node {
    /// The id of the process that holds the replica; its address may change, this does
    /// not. 0 for a group that never leaves its process.
    pub server: u64,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {:016x}", self.server)
    }
}

/// A replica's Raft id.
pub type RaftId = openraft::alias::NodeIdOf<Types>;
/// A leader's identity: term, then Raft id.
pub type LeaderId = openraft::alias::CommittedLeaderIdOf<Types>;
/// An entry's identity: its leader and its index.
pub type LogId = openraft::alias::LogIdOf<Types>;
/// A vote: its candidate, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<Types>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<Types>;
/// An entry's content: nothing, a batch, or a membership.
pub type EntryPayload = openraft::alias::PayloadOf<Types>;
/// The voters and learners of a group.
pub type Membership = openraft::Membership<u64, Node>;
/// A membership and the entry that set it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
/// A snapshot's last applied entry and membership.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
/// The completion that the log calls once an append is durable.
pub type Flushed = openraft::storage::IOFlushed<Types>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn term_exceeds_its_predecessor_and_all_from_before_a_restore() {
        assert_eq!(Term(0).next_at(1_700_000_000), Term(1_700_000_000));
        assert_eq!(
            Term(1_700_000_000).next_at(1_700_000_000),
            Term(1_700_000_001),
            "two in one millisecond"
        );
        assert_eq!(
            Term(1_700_000_000).next_at(1_600_000_000),
            Term(1_700_000_001),
            "a clock that is behind"
        );
        // Restored to before the election at 1,700,000,000, and elected again later.
        assert!(Term(1_600_000_000).next_at(1_700_000_060) > Term(1_700_000_000));
    }
}
