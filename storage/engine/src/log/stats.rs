//! The log's counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the log has done since it was opened, and what it holds.
#[derive(Debug, Default)]
pub struct LogStats {
    pub(crate) fsyncs: AtomicU64,
    pub(crate) fsync_nanos: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
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
    /// Times fdatasync was called on a segment.
    fsyncs,
    /// Nanoseconds spent in them.
    fsync_nanos,
    /// Batches written.
    batches,
    /// Records written.
    records,
    /// Bytes written.
    bytes,
    /// Entries written again so that an old segment could go.
    moved,
    /// Segments in use.
    segments,
    /// Bytes that they take on disk, preallocated ones included; the spare is not counted.
    disk_bytes,
}
