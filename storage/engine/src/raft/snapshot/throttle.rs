//! Limits on the snapshot transfers of a process, and the log entries that the transfers
//! of a group pin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::raft::types::RaftId;

/// The most snapshots that a process sends at once; others wait.
const CONCURRENT_SENDS_MAX: usize = 2;
/// The time that the log stays pinned after a transfer: until the follower's progress is
/// known.
const PIN_LINGER: Duration = Duration::from_secs(5);

/// Rate and concurrency of a process's transfers.
pub(in crate::raft) struct SnapshotThrottle {
    bytes_per_s: AtomicU64,
    /// When the next chunk may be sent.
    next: Mutex<Option<Instant>>,
    pub(super) permits: Semaphore,
}

impl Default for SnapshotThrottle {
    fn default() -> Self {
        Self {
            bytes_per_s: AtomicU64::new(0),
            next: Mutex::default(),
            permits: Semaphore::new(CONCURRENT_SENDS_MAX),
        }
    }
}

impl SnapshotThrottle {
    pub(in crate::raft) fn set_rate(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Waits until this many bytes may be sent.
    pub(super) async fn wait_for_bytes(&self, bytes: usize) {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let at = {
            let mut next = self.next.lock();
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + Duration::from_secs_f64(bytes as f64 / rate as f64));
            at
        };
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Entries of a group that must stay in the log for the followers of transfers.
#[derive(Default)]
pub(in crate::raft) struct LogPins(Mutex<BTreeMap<RaftId, PinnedIndex>>);

struct PinnedIndex {
    index: u64,
    until: Option<Instant>,
}

impl LogPins {
    /// The lowest entry after which the log must stay.
    pub(in crate::raft) fn lowest_pinned(&self) -> Option<u64> {
        let mut pins = self.0.lock();
        let now = Instant::now();
        pins.retain(|_, pin| pin.until.is_none_or(|until| now < until));
        pins.values().map(|pin| pin.index).min()
    }

    /// True while a transfer to `target` is in progress.
    pub(in crate::raft) fn is_pinned(&self, target: RaftId) -> bool {
        self.0.lock().get(&target).is_some_and(|pin| pin.until.is_none())
    }

    /// Pins the log for a transfer to `target`, until the result is dropped and
    /// [`PIN_LINGER`] longer.
    pub(super) fn pin(self: &Arc<Self>, target: RaftId, index: u64) -> LogPin {
        self.0.lock().insert(target, PinnedIndex { index, until: None });
        LogPin { pins: self.clone(), target }
    }
}

/// A pin on the log.
pub(super) struct LogPin {
    pins: Arc<LogPins>,
    target: RaftId,
}

impl Drop for LogPin {
    fn drop(&mut self) {
        if let Some(pin) = self.pins.0.lock().get_mut(&self.target) {
            pin.until = Some(Instant::now() + PIN_LINGER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_sent_at_the_configured_rate() {
        let throttle = SnapshotThrottle::default();
        throttle.set_rate(1_000_000);
        let started = Instant::now();
        for _ in 0..5 {
            throttle.wait_for_bytes(20_000).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(80), "{:?}", started.elapsed());
    }

    #[test]
    fn lowest_pin_counts_and_outlives_its_transfer() {
        let pins = Arc::<LogPins>::default();
        assert_eq!(pins.lowest_pinned(), None);
        let first = pins.pin(1, 10);
        let _second = pins.pin(2, 20);
        assert_eq!(pins.lowest_pinned(), Some(10));
        drop(first);
        assert_eq!(pins.lowest_pinned(), Some(10));
    }
}
