//! Sending a replica's whole state to another.

use std::sync::atomic::{AtomicU64, Ordering};

use openraft::alias::VoteOf;
use openraft::errors::{StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;

use super::machine::StateTransfer;
use super::peers::Peer;
use super::types::{LeaderId, Node, Types};

/// What the state transfers of a process share.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    bytes_per_s: AtomicU64,
}

impl Transfers {
    pub(super) fn set_rate(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }
}

pub(super) async fn send(
    _peer: &Peer,
    _vote: VoteOf<Types>,
    _snapshot: Snapshot<LeaderId, u64, Node, StateTransfer>,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    Err(Unreachable::from_string("states are not sent yet").into())
}
