//! How long an executor waits for more before a batch begins.
//!
//! Clients that were just answered ask again in a moment. A batch that begins without them makes two alternating halves out of them, each
//! paying for a round of its own. So as long as fewer wait than were seen lately, the executor lets others run first, for a small part of what
//! the last round took at most: a lone client never waits, and without fsyncs hardly anybody does.
//!
//! A round costs hundreds of microseconds of CPU, whatever is in it. While batches are small, the executor sleeps until those seen lately are all
//! there: one full round is cheaper than two halves, and no later. From [`FULL_OPS`] on, halves that overlap are better.

use std::time::{Duration, Instant};

use crate::queue::{Amount, Queue};

/// The part of a round that may be spent on gathering, and its bound.
const GATHER_PART: u32 = 4;
const GATHER_MAX: Duration = Duration::from_micros(250);
/// The longest sleep for those who were seen lately and do not come: the shortest that a timer can do.
const PATIENCE: Duration = Duration::from_millis(1);
/// So many ops are worth a round of their own.
pub(crate) const FULL_OPS: usize = 64;

/// What the last batch tells about the next.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// How many requests the last batch answered, and how many waited by then.
    seen: usize,
    /// How many ops the last batch had.
    ops: usize,
    /// How long the last batch took from its proposal to its application.
    round: Duration,
}

impl Pace {
    /// Waits until as many wait as were seen lately, `gathered` of them already evaluated, or the time is up: asleep while batches are small, else letting others run.
    pub(crate) async fn gather(&self, queue: &Queue, gathered: usize) {
        let missing = self.seen.saturating_sub(gathered);
        if queue.len() >= missing {
            return;
        }
        if self.is_small() {
            // When they do not come, it goes on with those that are there.
            let _ = tokio::time::timeout(PATIENCE, queue.filled(missing, FULL_OPS)).await;
            return;
        }
        let until = Instant::now() + (self.round / GATHER_PART).min(GATHER_MAX);
        while queue.len() < missing && Instant::now() < until {
            tokio::task::yield_now().await;
        }
    }

    /// Whether batches are too small to be worth a round each.
    pub(crate) fn is_small(&self) -> bool {
        self.ops < FULL_OPS
    }

    /// A batch was applied so long after it was proposed.
    pub(crate) fn took(&mut self, round: Duration) {
        self.round = round;
    }

    /// A batch was answered while so many requests waited already.
    pub(crate) fn answered(&mut self, batch: Amount, waiting: usize) {
        (self.seen, self.ops) = (batch.requests + waiting, batch.ops);
    }
}
