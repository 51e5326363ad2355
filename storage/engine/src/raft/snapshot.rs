//! Transfer of a snapshot, a replica's whole state, to a follower that is new or whose
//! next entries were purged.
//!
//! # Life of a transfer
//! 1. The leader makes a RocksDB checkpoint (hard links) beside its store, and from then
//!    on pins the log after the announced entry.
//! 2. It offers the list of files with sizes and checksums
//!    ([`MessageKind::SnapshotOffer`](super::MessageKind)). The receiver answers how much
//!    of each it already has: after a broken transfer everything that arrived, from any
//!    sender, as long as name, size and checksum are the same.
//! 3. It sends the missing bytes in chunks of 1 MiB, each with its checksum, one at a
//!    time ([`MessageKind::SnapshotChunk`](super::MessageKind)), at the process's rate.
//! 4. On [`MessageKind::SnapshotInstall`](super::MessageKind) the receiver checks that
//!    all files are complete, syncs them, and hands the directory to openraft, which
//!    replaces the store's state by it
//!    ([`Store::install`](crate::store::Store::install)).
//!
//! Neither side ever has more than one chunk of a transfer in memory.
//!
//! # Layout
//! `<store>/send-*` are checkpoints that are being sent, `<store>/recv` holds received
//! files. Both are removed when a replica starts.
//!
//! # Invariants
//! - Only files that equal the checkpoint are installed (`tests/raft_snapshots.rs`,
//!   `damaged_snapshot_chunk_is_sent_again`).
//! - Bytes that have arrived are not sent twice (`tests/raft_snapshots.rs`,
//!   `broken_snapshot_transfer_resumes`).

mod manifest;
mod receive;
mod send;
mod throttle;

use std::path::Path;

pub(super) use manifest::SnapshotInstall;
#[cfg(test)]
pub(super) use manifest::samples;
pub(super) use receive::{IncomingSnapshot, blocking, remove};
pub(super) use send::send;
pub(super) use throttle::{LogPins, SnapshotThrottle};

/// Bytes of a file in one chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// Prefix of the directories of checkpoints that are being sent.
const OUTGOING_PREFIX: &str = "send-";
/// The directory of received files.
pub(super) const INCOMING_DIR: &str = "recv";

/// Removes the directories of earlier transfers. Blocks.
pub(super) fn remove_leftovers(store: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(store)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == INCOMING_DIR
            || name.to_str().is_some_and(|name| name.starts_with(OUTGOING_PREFIX))
        {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
