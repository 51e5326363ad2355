//! Appends written by the very threads that made them, before they go to sleep.
//!
//! An append that is left to the log's own thread costs two changes of threads: there, and back with the word that it is on disk. They take as
//! long as a quick fsync does. So a thread of an event loop that has nothing else to do writes what it and its like have appended, at once and with
//! one fsync, and goes on with the callbacks; as it has run out of work, little waits for it meanwhile.
//!
//! # Where it is left to the log's own thread
//! - Fsyncs have been slow lately ([`QUICK`]): other work would wait for them.
//! - Much has been appended, or a while ago: the thread does not get to sleep.
//! - The segment would end: that takes longer, and on a full disk until there is space.
//!
//! # Invariants
//! - What is left to a thread is written before it sleeps, by it or by the log's own thread
//!   (`log/tests/threads.rs`, `appends_are_left_to_a_thread_that_sleeps_soon_and_to_no_other`).
//! - Whoever writes takes the whole queue while holding the writer: a group's records are in the order of its ops
//!   (`groups_that_are_written_before_sleep_do_not_disturb_each_other`).

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::{Durability, Op, Queue, Shared, segment};
use crate::mutants::{self, Rule};

/// Fsyncs that take less on average may hold up an event loop that had nothing to do.
const QUICK: Duration = Duration::from_micros(500);
/// More appends, or older ones, are not left any longer.
const LEFT_MAX: usize = 16;
const LEFT_AGE_MAX: Duration = Duration::from_micros(500);

thread_local! {
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// What threads of an event loop call before they sleep; the log that they serve is given it when it is opened
/// ([`LogOptions::before_sleep`](super::LogOptions::before_sleep)).
#[derive(Clone, Default)]
pub struct BeforeSleep(Arc<OnceLock<Weak<Shared>>>);

impl fmt::Debug for BeforeSleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeSleep").finish_non_exhaustive()
    }
}

impl BeforeSleep {
    /// Writes what was appended. To be called by the same threads each time they are about to sleep, with nothing else to do.
    pub fn write(&self) {
        WRITES.set(true);
        if let Some(shared) = self.0.get().and_then(Weak::upgrade) {
            shared.write_before_sleep();
        }
    }

    /// The log to write. A process has one; of several, the first.
    pub(super) fn serve(&self, shared: &Arc<Shared>) {
        let _ = self.0.set(Arc::downgrade(shared));
    }
}

impl Shared {
    /// Whether an op may be left to this thread. Asked before it is queued.
    pub(super) fn is_left(&self, op: &Op, queue: &mut Queue) -> bool {
        let is_for_us = WRITES.get()
            && self.options.before_sleep.is_some()
            && self.options.durability == Durability::Always
            && matches!(op, Op::Append { .. })
            && !mutants::breaks(Rule::SyncBeforeAnswer);
        if !is_for_us || queue.ops.len() >= LEFT_MAX || self.stats.recent_fsync() >= QUICK {
            return false;
        }
        if queue.ops.is_empty() {
            queue.left_at = Some(Instant::now());
        }
        queue.left_at.is_some_and(|at| at.elapsed() < LEFT_AGE_MAX)
    }

    fn write_before_sleep(&self) {
        if self.queue.lock().ops.is_empty() {
            return;
        }
        // Whoever writes now may not look at the queue once more.
        let Some(mut writer) = self.writer.try_lock() else { return self.wake_writer() };
        let mut ops = {
            let mut queue = self.queue.lock();
            let bytes: usize = queue.ops.iter().map(Op::bytes_max).sum();
            if writer.active.end() as usize + bytes + segment::TRAILER > writer.active.capacity as usize {
                drop(queue);
                return self.wake_writer();
            }
            std::mem::take(&mut queue.ops)
        };
        writer.run(self, &mut ops);
    }
}
