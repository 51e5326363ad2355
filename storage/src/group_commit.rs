//! Group commit: the delay before a batch that lets more requests join it (PostgreSQL's
//! `commit_delay`).
//!
//! Clients that were just answered ask again in a moment. A batch that begins without
//! them makes two alternating halves out of them, each paying for a round of its own. So
//! as long as fewer wait than were seen lately, the executor lets others run first, for a
//! small part of what the last round took at most; a lone client never waits.
//!
//! A round costs hundreds of microseconds of CPU, whatever is in it. While batches are
//! small, the executor sleeps until those seen lately are all there: one full round is
//! cheaper than two halves, and no later. From [`FULL_OPS`] on, halves that overlap are
//! better.
//!
//! Clients that ask when they like, rather than when they were answered, or that ask this
//! partition now and then another, are not worth that sleep: those seen lately do not all
//! come, or some wait already when a full batch lands. Who sees that a few times does
//! without patience for a while.

use std::time::{Duration, Instant};

use crate::queue::{BatchSize, Queue};

/// The part of a round that may be spent on gathering, and its bound.
const YIELD_FRACTION: u32 = 4;
const YIELD_TIME_MAX: Duration = Duration::from_micros(250);
/// The longest sleep for those who were seen lately and do not come: the shortest that a
/// timer can do.
const WAIT_TIMEOUT: Duration = Duration::from_millis(1);
/// Waiting for so many rounds' time is worth a full round.
const WAIT_ROUNDS_MAX: u32 = 3;
/// A batch that leaves more than this part of its requests waiting as it lands was not
/// what clients waited for.
const LEFT_FRACTION: usize = 4;
/// This many misses more than hits switch the delay off for this many rounds.
const MISSES_MAX: u32 = 4;
const COOLDOWN_ROUNDS: u32 = 500;
/// From this number of ops on, a batch is worth a round of its own.
pub(crate) const FULL_OPS: usize = 64;

/// The measurements of the last batch, which predict the next.
#[derive(Debug, Default)]
pub(crate) struct BatchDelay {
    /// Requests that the last batch answered, plus those queued by then.
    expected: usize,
    /// The ops of the last batch.
    ops: usize,
    /// The time from the last batch's proposal to its application.
    last_round: Duration,
    /// The last delay ran out before the expected requests came, or took longer than they
    /// were worth.
    has_missed: bool,
    /// Rounds for which patience was of no use, less those for which it was.
    misses: u32,
    /// Rounds to go without patience.
    cooldown: u32,
}

impl BatchDelay {
    /// Waits until as many wait as were seen lately, `collected` of them already
    /// evaluated, or the time is up: asleep while batches are small and that is of use,
    /// else letting others run.
    pub(crate) async fn wait(&mut self, queue: &Queue, collected: usize) {
        let missing = self.expected.saturating_sub(collected);
        if queue.len() >= missing {
            return;
        }
        if self.is_small() && self.cooldown == 0 {
            let began = Instant::now();
            // When they do not come, it goes on with those that are there.
            let came =
                tokio::time::timeout(WAIT_TIMEOUT, queue.wait_until_queued(missing, FULL_OPS))
                    .await;
            self.has_missed = came.is_err() || began.elapsed() > self.last_round * WAIT_ROUNDS_MAX;
            return;
        }
        let until = Instant::now() + (self.last_round / YIELD_FRACTION).min(YIELD_TIME_MAX);
        while queue.len() < missing && Instant::now() < until {
            tokio::task::yield_now().await;
        }
    }

    /// True while batches are too small to be worth a round each.
    pub(crate) fn is_small(&self) -> bool {
        self.ops < FULL_OPS
    }

    /// A batch was applied so long after it was proposed.
    pub(crate) fn record_round(&mut self, last_round: Duration) {
        self.last_round = last_round;
    }

    /// A batch was answered while so many requests waited already.
    pub(crate) fn record_batch(&mut self, batch: BatchSize, waiting: usize) {
        (self.expected, self.ops) = (batch.requests + waiting, batch.ops);
        let is_of_use =
            !std::mem::take(&mut self.has_missed) && waiting * LEFT_FRACTION <= batch.requests;
        if self.cooldown > 0 {
            self.cooldown -= 1;
        } else if is_of_use {
            self.misses = self.misses.saturating_sub(1);
        } else {
            self.misses += 1;
        }
        if self.misses == MISSES_MAX {
            (self.misses, self.cooldown) = (0, COOLDOWN_ROUNDS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    fn batch(requests: usize) -> BatchSize {
        BatchSize { requests, ops: requests, bytes: 0 }
    }

    #[test]
    fn the_batch_delay_pauses_after_misses_and_returns() {
        let mut delay = BatchDelay::default();
        for _ in 0..100 {
            delay.record_batch(batch(25), 25);
            delay.record_batch(batch(50), 0);
            assert_eq!(delay.cooldown, 0, "halves become a full round");
        }
        (0..MISSES_MAX).for_each(|_| delay.record_batch(batch(10), 6));
        assert_eq!(delay.cooldown, COOLDOWN_ROUNDS);
        (0..COOLDOWN_ROUNDS).for_each(|_| delay.record_batch(batch(6), 6));
        assert_eq!(delay.cooldown, 0);
    }

    #[tokio::test]
    async fn absent_clients_end_the_batch_delay() {
        let (mut delay, queue) = (BatchDelay::default(), Queue::new(Quota::new(1 << 20)));
        delay.record_round(Duration::from_secs(1));
        let mut in_vain = 0;
        for _ in 0..MISSES_MAX + COOLDOWN_ROUNDS {
            delay.record_batch(batch(3), 0);
            delay.wait(&queue, 0).await;
            in_vain += u32::from(delay.has_missed);
        }
        assert_eq!(in_vain, MISSES_MAX);
    }
}
