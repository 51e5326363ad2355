//! A partition's time: wall time that never runs backwards, jumps or stands still
//! ([`engine::time`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::time::{SlewedClock, StampClock};
use row::Stamp;

/// The `State` record that holds the last applied stamp: u64, ms.
pub(crate) const STAMP: Bytes = Bytes::from_static(STAMP_KEY);
pub(crate) const STAMP_KEY: &[u8] = b"stamp";

/// Gives stamps, which go on from the last one that was applied.
#[derive(Debug)]
pub(crate) struct Clock {
    stamps: StampClock,
    /// The largest stamp known to be committed, ms: the time of the next leader begins
    /// there or later.
    committed_ms: AtomicU64,
    cluster_tag: u8,
}

/// The time since the first call, by a clock that is never set.
pub fn monotonic() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

impl Clock {
    pub(crate) fn new(clock: Arc<SlewedClock>, last_ms: u64, cluster_tag: u8) -> Clock {
        Clock {
            stamps: StampClock::new(clock, last_ms),
            committed_ms: AtomicU64::new(last_ms),
            cluster_tag,
        }
    }

    /// The stamp of a batch of writes or of a read: not before any that was given. A row
    /// that one reader saw expired is not alive for the next, whatever the wall clock
    /// does in between.
    pub(crate) fn now(&self) -> Stamp {
        self.stamp(self.stamps.now_ms())
    }

    /// The stamp for the rest of a batch: the millisecond after a stamp, or later.
    pub(crate) fn after(&self, stamp: Stamp) -> Stamp {
        self.stamps.advance_to(stamp.now_ms + 1);
        self.now()
    }

    /// Takes note of a stamp found in applied state.
    pub(crate) fn advance(&self, applied_ms: u64) {
        self.stamps.advance_to(applied_ms);
        self.committed_ms.fetch_max(applied_ms, Ordering::AcqRel);
    }

    /// The last time that is past for every later leader, too, ms. A time that only
    /// readers here took for past is not: the next leader's clock may be behind this one.
    pub(crate) fn committed_ms(&self) -> u64 {
        self.committed_ms.load(Ordering::Acquire)
    }

    /// The stamp of a read as of a committed time.
    pub(crate) fn at(&self, committed_ms: u64) -> Stamp {
        self.stamp(committed_ms)
    }

    fn stamp(&self, now_ms: u64) -> Stamp {
        Stamp { now_ms, timetag: now_ms << 16 | u64::from(self.cluster_tag) }
    }

    /// The time by which it is ahead of the wall clock, ms; negative: behind.
    pub(crate) fn ahead_ms(&self) -> i64 {
        self.stamps.ahead_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_never_before_an_applied_one() {
        let ahead = SlewedClock::system().now_ms() + 3_600_000;
        let clock = Clock::new(SlewedClock::system(), ahead, 7);
        let near = |from_ms: u64| from_ms..from_ms + 60_000;
        assert!(near(ahead).contains(&clock.now().now_ms));
        assert_eq!(clock.committed_ms(), ahead);
        clock.advance(ahead + 90_005);
        assert_eq!(clock.committed_ms(), ahead + 90_005);
        assert!(near(ahead + 90_005).contains(&clock.now().now_ms));
        assert_eq!(clock.now().timetag & 0xff, 7);
        assert!((3_600_000..3_700_000).contains(&clock.ahead_ms()));
    }
}
