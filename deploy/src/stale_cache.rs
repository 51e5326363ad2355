//! A cache for pages that must not wait for a disk: a stale value is served while a fresh
//! one is blocked (RFC 5861's stale-while-revalidate).
//!
//! Statistics of stores come from memory for the most part; but a counter may have been
//! flushed, and RocksDB or the file system may hold a lock while a disk stalls. So they
//! are gathered on a blocking thread, one at a time, and a page shows the previous values
//! when this takes long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

/// Maximum wait of a page for fresh values: probes and scrapes time out after a few
/// seconds.
const GATHER_TIMEOUT: Duration = Duration::from_secs(1);

/// The last gathered value; at most one thread gathers at a time.
#[derive(Debug)]
pub(crate) struct StaleCache<T> {
    latest: Mutex<Option<(Instant, T)>>,
    turn: Arc<Semaphore>,
    timeout: Duration,
}

impl<T: Clone + Send + 'static> StaleCache<T> {
    pub(crate) fn new() -> Arc<StaleCache<T>> {
        Self::with_timeout(GATHER_TIMEOUT)
    }

    fn with_timeout(timeout: Duration) -> Arc<StaleCache<T>> {
        Arc::new(StaleCache {
            latest: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
            timeout,
        })
    }

    /// The result of `gather` and its age; the previous result when that takes longer
    /// than a second. `None`: no call has returned yet.
    pub(crate) async fn get(
        self: &Arc<Self>,
        gather: impl FnOnce() -> T + Send + 'static,
    ) -> Option<(Duration, T)> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        if let Ok(Ok(turn)) = timeout_at(deadline, self.turn.clone().acquire_owned()).await {
            let me = self.clone();
            let gathered = tokio::task::spawn_blocking(move || {
                let gathered = gather();
                *me.latest.lock() = Some((Instant::now(), gathered));
                drop(turn);
            });
            if let Ok(Err(error)) = timeout_at(deadline, gathered).await {
                tracing::error!(%error, "cannot gather the statistics of a page");
            }
        }
        self.latest.lock().as_ref().map(|(at, gathered)| (at.elapsed(), gathered.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_page_does_not_wait_for_a_stalled_disk() {
        let flight = StaleCache::with_timeout(Duration::from_millis(50));
        let (disk, stalled) = mpsc::channel::<()>();
        let threads = Arc::new(AtomicUsize::new(0));
        let stalls = |stalled: mpsc::Receiver<()>| {
            let threads = threads.clone();
            move || {
                threads.fetch_add(1, Ordering::SeqCst);
                // Blocks until the sender is dropped.
                assert!(stalled.recv().is_err());
                "after the stall"
            }
        };
        assert!(flight.get(stalls(stalled)).await.is_none(), "nothing is known yet");
        let counted = || {
            let threads = threads.clone();
            move || {
                threads.fetch_add(1, Ordering::SeqCst);
                "immediately"
            }
        };
        for _ in 0..5 {
            assert!(flight.get(counted()).await.is_none());
        }
        assert_eq!(threads.load(Ordering::SeqCst), 1, "they do not pile up");
        drop(disk);
        let deadline = Instant::now() + Duration::from_secs(10);
        while flight.get(counted()).await.is_none_or(|(_, value)| value != "immediately") {
            assert!(Instant::now() < deadline, "it goes on when the disk does");
        }
        // During a stall the previous value is returned, with its age.
        let (disk, stalled) = mpsc::channel::<()>();
        let (age, value) = flight.get(stalls(stalled)).await.expect("it is known");
        assert!(value == "immediately" && age >= Duration::from_millis(40), "{value} {age:?}");
        drop(disk);
    }
}
