//! How long an executor waits for more before a batch begins.
//!
//! Clients that were just answered ask again in a moment. A batch that begins without them makes two alternating halves out of them, each
//! paying for an fsync of its own. So as long as fewer wait than were seen lately, the executor lets others run first, for a small part of what
//! the last round took at most: a lone client never waits, and without fsyncs hardly anybody does.

use std::time::{Duration, Instant};

use crate::queue::Queue;

/// The part of a round that may be spent on gathering, and its bound.
const GATHER_PART: u32 = 4;
const GATHER_MAX: Duration = Duration::from_micros(250);

/// What the last batch tells about the next.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// How many requests the last batch answered, and how many waited by then.
    seen: usize,
    /// How long the last batch took from its proposal to its application.
    round: Duration,
}

impl Pace {
    /// Lets others run until as many wait as were seen lately, or the time is up.
    pub(crate) async fn gather(&self, queue: &Queue) {
        if queue.len() >= self.seen {
            return;
        }
        let until = Instant::now() + (self.round / GATHER_PART).min(GATHER_MAX);
        while queue.len() < self.seen && Instant::now() < until {
            tokio::task::yield_now().await;
        }
    }

    /// A batch was applied so long after it was proposed.
    pub(crate) fn took(&mut self, round: Duration) {
        self.round = round;
    }

    /// A batch was answered while so many waited already.
    pub(crate) fn answered(&mut self, requests: usize, waiting: usize) {
        self.seen = requests + waiting;
    }
}
