//! What the state transfers of a process share, and what those of a group hold back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::raft::types::RaftId;

/// How many states are sent at once by a process; the others wait.
const SENT_AT_ONCE: usize = 2;
/// How long the log is held after a transfer: until the follower's progress is known to
/// have moved.
const AFTERGLOW: Duration = Duration::from_secs(5);

/// The pace of a process.
pub(in crate::raft) struct Transfers {
    bytes_per_s: AtomicU64,
    /// When the next piece may leave.
    next: Mutex<Option<Instant>>,
    pub(super) places: Semaphore,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            bytes_per_s: AtomicU64::new(0),
            next: Mutex::default(),
            places: Semaphore::new(SENT_AT_ONCE),
        }
    }
}

impl Transfers {
    pub(in crate::raft) fn set_rate(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Waits until so many bytes may leave.
    pub(super) async fn wait_for(&self, bytes: usize) {
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

/// The entries of a group that must stay in the log because a transfer ends before them.
#[derive(Default)]
pub(in crate::raft) struct Holds(Mutex<BTreeMap<RaftId, Hold>>);

struct Hold {
    index: u64,
    until: Option<Instant>,
}

impl Holds {
    /// The entry after which the log must stay.
    pub(in crate::raft) fn lowest(&self) -> Option<u64> {
        let mut holds = self.0.lock();
        let now = Instant::now();
        holds.retain(|_, hold| hold.until.is_none_or(|until| now < until));
        holds.values().map(|hold| hold.index).min()
    }

    /// Whether a transfer to `target` is under way.
    pub(in crate::raft) fn is_held(&self, target: RaftId) -> bool {
        self.0.lock().get(&target).is_some_and(|hold| hold.until.is_none())
    }

    /// Holds the log for a transfer to `target`, until this is dropped and a little
    /// longer.
    pub(super) fn hold(self: &Arc<Self>, target: RaftId, index: u64) -> Held {
        self.0.lock().insert(target, Hold { index, until: None });
        Held { holds: self.clone(), target }
    }
}

/// A hold on the log.
pub(super) struct Held {
    holds: Arc<Holds>,
    target: RaftId,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(hold) = self.holds.0.lock().get_mut(&self.target) {
            hold.until = Some(Instant::now() + AFTERGLOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_leave_at_the_pace_that_was_set() {
        let transfers = Transfers::default();
        transfers.set_rate(1_000_000);
        let started = Instant::now();
        for _ in 0..5 {
            transfers.wait_for(20_000).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(80), "{:?}", started.elapsed());
    }

    #[test]
    fn the_lowest_hold_counts_and_outlives_its_transfer_a_little() {
        let holds = Arc::<Holds>::default();
        assert_eq!(holds.lowest(), None);
        let first = holds.hold(1, 10);
        let _second = holds.hold(2, 20);
        assert_eq!(holds.lowest(), Some(10));
        drop(first);
        assert_eq!(holds.lowest(), Some(10));
    }
}
