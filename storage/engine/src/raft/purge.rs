//! Keeps a group's log short: flushes the store often enough that what a restart has to replay, and the disk that the log takes, stay bounded under endless writes.
//!
//! A flush makes the state on disk current; openraft takes that for a snapshot and purges the log up to it. RocksDB also flushes by itself when its memtables are full, but neither tells openraft
//! nor ever flushes a store that went quiet.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::group::Group;
use super::machine::Progress;
use crate::store::Store;

/// How much log may lie between the state on disk and the last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Bytes of batches. A restart replays about 100 MB/s.
    pub bytes_max: u64,
    /// Entries. A restart replays about 100,000 small ones a second.
    pub entries_max: u64,
    /// The age of the oldest write that is not on disk.
    pub age_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { bytes_max: 48 << 20, entries_max: 100_000, age_max: Duration::from_secs(60) }
    }
}

/// How often a busy store is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Flushes `store` and lets `group` purge its log whenever `policy` says so; ends when the group's state machine does. Costs nothing while nothing is written.
pub async fn keep_log_short(group: Group, store: Store, mut progress: Progress, policy: Policy) {
    let index = |progress: &mut Progress| progress.borrow_and_update().as_ref().map_or(0, |id| id.index);
    // What the log holds beyond the state on disk at the start was written before: it counts.
    let mut flushed_index = store.flushed().ok().flatten().map_or(0, |flushed| flushed.index);
    let mut flushed_bytes = 0;
    // What an earlier process flushed as it stopped needs no log any more; a group that is only read now would keep it.
    if flushed_index > 0 && group.purge(flushed_index).await.is_err() {
        return;
    }
    loop {
        if index(&mut progress) <= flushed_index && progress.changed().await.is_err() {
            return;
        }
        let deadline = Instant::now() + policy.age_max;
        let mut is_open = true;
        while is_open && Instant::now() < deadline {
            let entries = index(&mut progress).saturating_sub(flushed_index);
            if entries >= policy.entries_max || store.applied_bytes().saturating_sub(flushed_bytes) >= policy.bytes_max {
                break;
            }
            sleep(LOOK_EVERY).await;
            // Nothing new until the deadline is an outcome like any other.
            let _ = timeout_at(deadline, progress.changed()).await;
            is_open = progress.has_changed().is_ok();
        }
        (flushed_index, flushed_bytes) = (index(&mut progress), store.applied_bytes());
        if let Err(error) = group.flush().await {
            tracing::debug!(%error, "the group has ended");
            return;
        }
    }
}
