//! Figures that are gathered where a disk may be waited for, for pages that must not
//! wait.
//!
//! Stores answer from memory for the most part; but a counter may have been flushed, and
//! RocksDB or the file system may hold a lock while a disk stalls. So what such a page
//! shows is gathered on a thread that may block, by one at a time, and whoever asks takes
//! what was gathered last when this takes long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

/// How long a page waits for what is gathered for it: probes and scrapes give up after a
/// few seconds.
const GATHER_TIMEOUT: Duration = Duration::from_secs(1);

/// What was gathered last, by one thread at a time.
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

    /// What `gather` says, or, where that takes longer than a second, what was said last;
    /// and how old it is. `None`: it has never come to an end.
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
                tracing::error!(%error, "figures for a page could not be gathered");
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
        let (door, shut) = mpsc::channel::<()>();
        let threads = Arc::new(AtomicUsize::new(0));
        let stalls = |shut: mpsc::Receiver<()>| {
            let threads = threads.clone();
            move || {
                threads.fetch_add(1, Ordering::SeqCst);
                // Until the door opens.
                assert!(shut.recv().is_err());
                "after the stall"
            }
        };
        assert!(flight.get(stalls(shut)).await.is_none(), "nothing is known yet");
        let counted = || {
            let threads = threads.clone();
            move || {
                threads.fetch_add(1, Ordering::SeqCst);
                "at once"
            }
        };
        for _ in 0..5 {
            assert!(flight.get(counted()).await.is_none());
        }
        assert_eq!(threads.load(Ordering::SeqCst), 1, "they do not pile up");
        drop(door);
        let deadline = Instant::now() + Duration::from_secs(10);
        while flight.get(counted()).await.is_none_or(|(_, said)| said != "at once") {
            assert!(Instant::now() < deadline, "it goes on when the disk does");
        }
        // What was known before a stall is said meanwhile, with its age.
        let (door, shut) = mpsc::channel::<()>();
        let (age, said) = flight.get(stalls(shut)).await.expect("it is known");
        assert!(said == "at once" && age >= Duration::from_millis(40), "{said} {age:?}");
        drop(door);
    }
}
