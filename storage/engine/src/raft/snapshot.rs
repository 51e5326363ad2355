//! A replica's whole state on its way to another: when the log that the other lacks is
//! gone, or it is new.
//!
//! # Life of a transfer
//! 1. The leader makes a RocksDB checkpoint (hard links) beside its store, and from then
//!    on holds back the purge of what comes after the announced entry.
//! 2. It offers the list of files with sizes and checksums
//!    ([`MessageKind::SnapshotOffer`](super::Kind)). The receiver says how much of each it already has:
//!    after a broken transfer everything that arrived, whoever sent it, as long as name,
//!    size and checksum are the same.
//! 3. It sends what is missing in pieces of 1 MiB, each with its checksum, one at a time
//!    ([`MessageKind::SnapshotChunk`](super::Kind)), at the process's pace.
//! 4. On [`MessageKind::SnapshotInstall`](super::Kind) the receiver checks that all files are whole,
//!    syncs them, and hands the directory to openraft, which replaces the store's state
//!    by it ([`Store::install`](crate::store::Store::install)).
//!
//! Nobody ever has more than one piece of a transfer in memory.
//!
//! # Layout
//! `<store>/send-*` are checkpoints that are being sent, `<store>/recv` is what has been
//! received. Both are removed when a replica starts.
//!
//! # Invariants
//! - Nothing is installed that differs from what was checkpointed
//!   (`tests/raft_states.rs`, `a_piece_that_was_damaged_on_the_way_is_sent_again`).
//! - What has arrived is not sent twice (`tests/raft_states.rs`,
//!   `a_broken_transfer_goes_on_where_it_was`).

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

/// Bytes of a file that travel together.
const CHUNK_BYTES: usize = 1 << 20;
/// What the names of directories begin with that hold checkpoints being sent.
const OUTGOING_PREFIX: &str = "send-";
/// The directory of what was received.
pub(super) const INCOMING_DIR: &str = "recv";

/// Removes what earlier transfers left behind. Blocks.
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
