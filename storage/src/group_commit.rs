//! How long an executor waits for more before a batch begins.
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

use crate::queue::{Amount, Queue};

/// The part of a round that may be spent on gathering, and its bound.
const GATHER_PART: u32 = 4;
const GATHER_MAX: Duration = Duration::from_micros(250);
/// The longest sleep for those who were seen lately and do not come: the shortest that a
/// timer can do.
const PATIENCE: Duration = Duration::from_millis(1);
/// Waiting for so many rounds' time is worth a full round.
const WORTH: u32 = 3;
/// A batch that leaves more than this part of its requests waiting as it lands was not
/// what clients waited for.
const LEFT_PART: usize = 4;
/// So many rounds for which patience was of no use, more than those for which it was, end
/// it for so many rounds.
const STRIKES: u32 = 4;
const REST: u32 = 500;
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
    /// Whether those seen lately were waited for in vain, or for longer than that was
    /// worth.
    was_in_vain: bool,
    /// Rounds for which patience was of no use, less those for which it was.
    strikes: u32,
    /// Rounds to go without patience.
    rest: u32,
}

impl Pace {
    /// Waits until as many wait as were seen lately, `gathered` of them already
    /// evaluated, or the time is up: asleep while batches are small and that is of use,
    /// else letting others run.
    pub(crate) async fn gather(&mut self, queue: &Queue, gathered: usize) {
        let missing = self.seen.saturating_sub(gathered);
        if queue.len() >= missing {
            return;
        }
        if self.is_small() && self.rest == 0 {
            let began = Instant::now();
            // When they do not come, it goes on with those that are there.
            let came = tokio::time::timeout(PATIENCE, queue.filled(missing, FULL_OPS)).await;
            self.was_in_vain = came.is_err() || began.elapsed() > self.round * WORTH;
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
        let is_of_use =
            !std::mem::take(&mut self.was_in_vain) && waiting * LEFT_PART <= batch.requests;
        if self.rest > 0 {
            self.rest -= 1;
        } else if is_of_use {
            self.strikes = self.strikes.saturating_sub(1);
        } else {
            self.strikes += 1;
        }
        if self.strikes == STRIKES {
            (self.strikes, self.rest) = (0, REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    fn batch(requests: usize) -> Amount {
        Amount { requests, ops: requests, bytes: 0 }
    }

    #[test]
    fn patience_ends_when_full_rounds_do_not_come_about_and_returns() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.answered(batch(25), 25);
            pace.answered(batch(50), 0);
            assert_eq!(pace.rest, 0, "halves become a full round");
        }
        (0..STRIKES).for_each(|_| pace.answered(batch(10), 6));
        assert_eq!(pace.rest, REST);
        (0..REST).for_each(|_| pace.answered(batch(6), 6));
        assert_eq!(pace.rest, 0);
    }

    #[tokio::test]
    async fn who_does_not_come_is_not_waited_for_again_and_again() {
        let (mut pace, queue) = (Pace::default(), Queue::new(Quota::new(1 << 20)));
        pace.took(Duration::from_secs(1));
        let mut in_vain = 0;
        for _ in 0..STRIKES + REST {
            pace.answered(batch(3), 0);
            pace.gather(&queue, 0).await;
            in_vain += u32::from(pace.was_in_vain);
        }
        assert_eq!(in_vain, STRIKES);
    }
}
