//! Compactions on request: what is due is first let go by the expiry cycle, so that its
//! heads go too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::store;
use parking_lot::Mutex;

use crate::error::CompactionError;
use crate::replica::Replica;
use crate::tasks;

/// The longest wait for the expiry cycle: another server may lead, or the cycle may be
/// switched off.
const EXPIRY_WAIT_MAX: Duration = Duration::from_secs(60);
/// The interval at which the state is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A compaction of one replica's store, from the request on.
#[derive(Debug)]
pub struct Compaction(Mutex<CompactionState>);

#[derive(Debug)]
enum CompactionState {
    Waiting,
    Begun(Arc<store::ManualCompaction>),
    Failed(CompactionError),
}

impl Compaction {
    /// Lets what is due by now go, and then compacts; on a task of its own.
    pub fn start(replica: Arc<Replica>) -> Arc<Compaction> {
        let compaction = Arc::new(Compaction(Mutex::new(CompactionState::Waiting)));
        let begun = compaction.clone();
        let failed = compaction.clone();
        let begin = async move {
            let began =
                wait_until_expired(&replica).await.and_then(|()| Ok(replica.store().compact()?));
            *begun.0.lock() = began.map_or_else(CompactionState::Failed, CompactionState::Begun);
        };
        tasks::spawn(begin, move |why| {
            tasks::report_panic("compaction", why);
            *failed.0.lock() = CompactionState::Failed(CompactionError::Panicked(why.to_owned()));
        });
        compaction
    }

    /// The outcome; `None` while it runs.
    pub fn outcome(&self) -> Option<Result<(), CompactionError>> {
        match &*self.0.lock() {
            CompactionState::Waiting => None,
            CompactionState::Begun(compaction) => compaction.outcome().map(|outcome| Ok(outcome?)),
            CompactionState::Failed(why) => Some(Err(why.clone())),
        }
    }
}

/// Waits until nothing is left in the replica's state that is due by now. Where another
/// replica leads, that one's cycle removes it.
async fn wait_until_expired(replica: &Arc<Replica>) -> Result<(), CompactionError> {
    let (due_ms, deadline) = (replica.clock.now().now_ms, Instant::now() + EXPIRY_WAIT_MAX);
    while Instant::now() < deadline {
        let looked_at = replica.clone();
        let look = tokio::task::spawn_blocking(move || looked_at.has_due(due_ms));
        let has_due = look.await.map_err(|error| CompactionError::Panicked(error.to_string()))?;
        if !has_due? {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    tracing::warn!(
        partition = ?replica.partition(),
        "a compaction begins before the expiry cycle has finished"
    );
    Ok(())
}
