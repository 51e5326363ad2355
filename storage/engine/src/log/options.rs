//! Options of a log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, OsDisk, WriteOnPark};

/// The time at which an acknowledged write is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged.
    Always,
    /// At most about this long after it is acknowledged.
    Interval(Duration),
    /// Whenever the operating system writes it (or a sixteenth of a segment waits).
    Os,
}

/// Options of a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The log's directory; created when missing.
    pub dir: PathBuf,
    /// The directory must contain a log; without one, opening fails with
    /// [`LogError::Missing`](super::LogError::Missing).
    pub must_exist: bool,
    /// The condition for acknowledging a write.
    pub durability: Durability,
    /// Size of a segment; 16 MiB by default, from 4 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// The bound of the groups' tails in memory, bytes over all groups. Older entries are
    /// read from the segments.
    pub tail_bytes_max: u64,
    /// Fills a segment with zeros before it is used, which makes an fdatasync cheaper and
    /// shows a full disk in time. If false, segments grow.
    pub preallocate: bool,
    /// Threads that write what they appended before they park. Without any, the log's own
    /// thread does all writing.
    pub write_on_park: Option<WriteOnPark>,
    /// The bound of one group's entries that wait for the disk, bytes. Over all groups it
    /// is four times as large. Beyond it [`GroupLog::writable`] returns an error.
    ///
    /// [`GroupLog::writable`]: crate::raft::GroupLog::writable
    pub unwritten_bytes_max: u64,
    /// The disk that is written and synced.
    pub disk: Arc<dyn Disk>,
    /// Further directories whose disks are monitored: a full one is a
    /// [`DiskProblem`](super::DiskProblem).
    pub watched: Vec<PathBuf>,
}

impl LogOptions {
    /// The defaults for a log in `dir`: everything is durable before it is acknowledged.
    pub fn new(dir: impl Into<PathBuf>) -> LogOptions {
        LogOptions {
            dir: dir.into(),
            must_exist: false,
            durability: Durability::Always,
            segment_bytes: 16 << 20,
            tail_bytes_max: 16 << 20,
            preallocate: true,
            write_on_park: None,
            unwritten_bytes_max: 64 << 20,
            disk: Arc::new(OsDisk),
            watched: Vec::new(),
        }
    }
}
