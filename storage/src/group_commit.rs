//! Group commit: the delay before a batch that lets more requests join it (PostgreSQL's
//! `commit_delay`).
//!
//! Clients that were just answered send their next requests shortly after. A batch that
//! begins without them splits them into two alternating halves, and each half pays for a
//! round of its own. So as long as fewer requests wait than were seen lately, the
//! executor lets other tasks run first, for a small part of the last round's time at
//! most. A lone client never waits.
//!
//! A round costs hundreds of microseconds of CPU, whatever is in it. While batches are
//! small, the executor sleeps until as many requests as were seen lately are all there:
//! one full round is cheaper than two halves, and no later. From [`FULL_OPS`] on, halves
//! that overlap are better.
//!
//! That sleep does not pay for clients that send requests independently of their answers,
//! or that use this partition only now and then: not all expected requests come, or some
//! wait already when a full batch lands. After a few such rounds the executor does not
//! sleep for a while.

use std::time::{Duration, Instant};

use crate::queue::{BatchSize, Queue};

/// The part of a round that the executor may spend on gathering, and its bound.
const YIELD_FRACTION: u32 = 4;
const YIELD_TIME_MAX: Duration = Duration::from_micros(250);
/// The longest sleep for expected requests that do not come: the shortest that a timer
/// can do.
const WAIT_TIMEOUT: Duration = Duration::from_millis(1);
/// A full round is worth a wait of this many rounds' time.
const WAIT_ROUNDS_MAX: u32 = 3;
/// A batch that leaves more than this part of its requests waiting as it lands was not
/// the one that clients waited for.
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
    /// Rounds in which the sleep was of no use, less those in which it was.
    misses: u32,
    /// Rounds left without a sleep.
    cooldown: u32,
}

impl BatchDelay {
    /// Waits until as many requests wait as were seen lately, `collected` of them already
    /// evaluated, or the time is up. It sleeps while batches are small and sleeping is of
    /// use, and lets other tasks run otherwise.
    pub(crate) async fn wait(&mut self, queue: &Queue, collected: usize) {
        let missing = self.expected.saturating_sub(collected);
        if queue.len() >= missing {
            return;
        }
        if self.is_small() && self.cooldown == 0 {
            let began = Instant::now();
            // When they do not come, the batch goes on with the requests that are there.
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

    /// Takes note of the time from a batch's proposal to its application.
    pub(crate) fn record_round(&mut self, last_round: Duration) {
        self.last_round = last_round;
    }

    /// Takes note of a batch that was answered while `waiting` requests waited already.
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
