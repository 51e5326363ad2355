//! The leader's clock: wall time that never runs backwards in a partition.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use row::Stamp;

/// The `State` record that holds the last applied stamp: u64, ms.
pub(crate) const STAMP: Bytes = Bytes::from_static(STAMP_KEY);
pub(crate) const STAMP_KEY: &[u8] = b"stamp";

/// Gives stamps; restarts from the last one that was applied.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// The largest stamp given or found applied, ms.
    last_ms: AtomicU64,
    /// The largest stamp known to be committed, ms: the time of whoever leads next begins there or later.
    committed_ms: AtomicU64,
    cluster_tag: u8,
}

/// Milliseconds since the Unix epoch by this machine's clock.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |past| past.as_millis() as u64)
}

/// Time since some moment, by a clock that is never set.
pub fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

impl Clock {
    pub(crate) fn new(last_ms: u64, cluster_tag: u8) -> Clock {
        Clock { last_ms: AtomicU64::new(last_ms), committed_ms: AtomicU64::new(last_ms), cluster_tag }
    }

    /// For a read: not before the last stamp given, to a write or a read. What one reader saw expired the next does not see alive, whatever the
    /// wall clock does in between. The shared number is written once a millisecond at most.
    pub(crate) fn read(&self) -> Stamp {
        let (now, last) = (wall_ms(), self.last_ms.load(Ordering::Acquire));
        if now > last {
            self.last_ms.fetch_max(now, Ordering::AcqRel);
        }
        self.stamp(now.max(last))
    }

    /// For a batch of writes; later reads and batches are not before it.
    pub(crate) fn write(&self) -> Stamp {
        let now = wall_ms();
        let last = self.last_ms.fetch_max(now, Ordering::AcqRel);
        self.stamp(now.max(last))
    }

    /// For the rest of a batch: the millisecond after a stamp.
    pub(crate) fn after(&self, stamp: Stamp) -> Stamp {
        let last = self.last_ms.fetch_max(stamp.now_ms + 1, Ordering::AcqRel);
        self.stamp(last.max(stamp.now_ms + 1))
    }

    /// Takes note of a stamp found in applied state.
    pub(crate) fn advance(&self, applied_ms: u64) {
        self.last_ms.fetch_max(applied_ms, Ordering::AcqRel);
        self.committed_ms.fetch_max(applied_ms, Ordering::AcqRel);
    }

    /// The last moment that is past for every leader to come, too. What only our readers took for past is not, if its clock is behind ours.
    pub(crate) fn committed_ms(&self) -> u64 {
        self.committed_ms.load(Ordering::Acquire)
    }

    /// For a read as of a moment that is committed.
    pub(crate) fn at(&self, committed_ms: u64) -> Stamp {
        self.stamp(committed_ms)
    }

    fn stamp(&self, now_ms: u64) -> Stamp {
        Stamp { now_ms, timetag: now_ms << 16 | u64::from(self.cluster_tag) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_never_before_an_applied_one() {
        let ahead = wall_ms() + 3_600_000;
        let clock = Clock::new(ahead, 7);
        assert_eq!(clock.write().now_ms, ahead);
        assert_eq!(clock.read().now_ms, ahead);
        assert_eq!(clock.committed_ms(), ahead);
        clock.advance(ahead + 5);
        assert_eq!(clock.committed_ms(), ahead + 5);
        assert_eq!(clock.read().now_ms, ahead + 5);
        assert_eq!(clock.read().timetag & 0xff, 7);
    }
}
