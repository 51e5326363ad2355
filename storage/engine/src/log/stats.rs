//! The log's counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters since the log was opened, and its present size.
#[derive(Debug, Default)]
pub struct LogStats {
    pub(crate) fsyncs: AtomicU64,
    pub(crate) fsync_nanos: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) relocated: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
    recent_fsync_nanos: AtomicU64,
}

impl LogStats {
    /// A moving average over about eight fsyncs.
    pub(crate) fn recent_fsync(&self) -> Duration {
        Duration::from_nanos(self.recent_fsync_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn note_fsync(&self, took: Duration) {
        let before = self.recent_fsync_nanos.load(Ordering::Relaxed);
        // Of two concurrent updates one is lost, which an average tolerates.
        self.recent_fsync_nanos
            .store(before - before / 8 + took.as_nanos() as u64 / 8, Ordering::Relaxed);
    }
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl LogStats {
            $($(#[$doc])* pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            })*
        }
    };
}

getters! {
    /// Calls of fdatasync on a segment.
    fsyncs,
    /// Duration of all fdatasync calls, nanoseconds.
    fsync_nanos,
    /// Batches written.
    batches,
    /// Records written.
    records,
    /// Bytes written.
    bytes,
    /// Entries relocated so that an old segment could be removed.
    relocated,
    /// Segments in use.
    segments,
    /// Bytes of the segments on disk, preallocated ones included, without the spare.
    disk_bytes,
}
