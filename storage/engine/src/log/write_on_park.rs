//! Appends written by the very threads that made them, before they go to sleep.
//!
//! An append that is left to the log's own thread costs two changes of threads: there,
//! and back with the word that it is on disk. They take as long as a quick fsync does. So
//! a thread of an event loop that has nothing else to do writes what it and its like have
//! appended, at once and with one fsync, and goes on with the callbacks; as it has run
//! out of work, little waits for it meanwhile.
//!
//! # Where it is left to the log's own thread
//! - Fsyncs have been slow lately ([`FAST_FSYNC_MAX`]), or one has stalled within the last minute:
//!   other work would wait for them.
//! - Much has been appended, or a while ago: the thread does not get to sleep.
//! - The segment would end: that takes longer, and on a full disk until there is space.
//!
//! # When a disk stalls
//! No average sees the first stall of a disk coming, and a thread that waits for the disk
//! sends no heartbeats. tokio would not wake another for it: to tokio, a thread that is
//! about to sleep is one that looks for work. So the runtime has one thread more than it
//! uses, which waits here, inside of a task and at no cost
//! ([`WriteOnPark::keep_reserve`]). When a sync takes longer than [`STALL_TIMEOUT`], a tenth
//! of a leader's lease, it is called in and drives the runtime. From then on nobody syncs
//! before sleep any more in this process: to send a thread back into the reserve could
//! take tasks with it.
//!
//! # Invariants
//! - What is left to a thread is written before it sleeps, by it or by the log's own
//!   thread (`log/tests/threads.rs`,
//!   `appends_are_deferred_only_to_a_thread_about_to_park`).
//! - Whoever writes takes the whole queue while holding the writer: a group's records are
//!   in the order of its ops
//!   (`groups_written_on_park_do_not_disturb_each_other`).
//! - A disk that stalls holds up one thread, once, and the runtime for less than a
//!   heartbeat (`a_disk_that_stalls_holds_up_one_thread_once`).

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Durability, LogInner, LogOp, OpQueue, segment};
use crate::mutants::{self, Rule};

/// Fsyncs that take less on average may hold up an event loop that had nothing to do.
const FAST_FSYNC_MAX: Duration = Duration::from_micros(500);
/// More appends, or older ones, are not left any longer.
const DEFERRED_MAX: usize = 16;
const DEFERRED_AGE_MAX: Duration = Duration::from_micros(500);
/// After so long the reserve is called in.
const STALL_TIMEOUT: Duration = Duration::from_millis(100);
/// How often it is looked how long a sync takes, while there are any.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// After so many looks without any, nobody looks until there is one again.
const IDLE_CHECKS_MAX: u32 = 50;

thread_local! {
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// What threads of an event loop call before they sleep; the log that they serve is given
/// it when it is opened ([`LogOptions::write_on_park`](super::LogOptions::before_sleep)).
#[derive(Clone)]
pub struct WriteOnPark(Arc<ParkState>);

struct ParkState {
    log: OnceLock<Weak<LogInner>>,
    began: Instant,
    /// When the write began that is under way before a thread sleeps, nanoseconds from
    /// `began`; 0: there is none.
    in_progress: AtomicU64,
    /// How many there were.
    writes: AtomicU64,
    /// Somebody looks how long they take.
    is_watched: AtomicBool,
    watch: OnceLock<Thread>,
    /// Nobody writes before sleep any more, and nobody is in reserve.
    is_over: AtomicBool,
    over: Mutex<()>,
    called_in: Condvar,
}

impl Default for WriteOnPark {
    fn default() -> WriteOnPark {
        WriteOnPark(Arc::new(ParkState {
            log: OnceLock::new(),
            began: Instant::now(),
            in_progress: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            watch: OnceLock::new(),
            is_over: AtomicBool::new(false),
            over: Mutex::new(()),
            called_in: Condvar::new(),
        }))
    }
}

impl fmt::Debug for WriteOnPark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteOnPark").finish_non_exhaustive()
    }
}

impl WriteOnPark {
    /// Writes what was appended. To be called by the same threads each time they are
    /// about to sleep, with nothing else to do.
    pub fn write(&self) {
        if self.is_over() {
            return;
        }
        WRITES.set(true);
        if let Some(shared) = self.0.log.get().and_then(Weak::upgrade) {
            shared.write_deferred(&self.0);
        }
    }

    /// Keeps one of a runtime's threads in reserve, for when another is held up by the
    /// disk. To be called before anything else runs there, on a runtime of at least two
    /// threads, and not on one of them. [`WriteOnPark::stop`] must be called before the
    /// runtime is shut down.
    ///
    /// # Errors
    /// There can be no thread that watches over the others.
    pub fn keep_reserve(&self, runtime: &tokio::runtime::Handle) -> io::Result<()> {
        let (inner, (waits, is_waiting)) = (self.0.clone(), mpsc::channel());
        runtime.spawn(async move {
            let mut over = inner.over.lock();
            // Nobody is missed who does not wait for it.
            let _ = waits.send(());
            while !inner.is_over.load(Ordering::Acquire) {
                inner.called_in.wait(&mut over);
            }
        });
        // An error: the runtime is gone already, and needs no reserve.
        let _ = is_waiting.recv();
        let inner = self.0.clone();
        let watch = std::thread::Builder::new()
            .name("log-watch".to_owned())
            .spawn(move || inner.watch())?;
        let _ = self.0.watch.set(watch.thread().clone());
        Ok(())
    }

    /// From now on the log's own thread writes all, and nobody is in reserve.
    pub fn stop(&self) {
        self.0.call_in();
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    /// The log to write. A process has one; of several, the first.
    pub(super) fn serve(&self, shared: &Arc<LogInner>) {
        let _ = self.0.log.set(Arc::downgrade(shared));
    }
}

impl ParkState {
    fn call_in(&self) {
        let _over = self.over.lock();
        self.is_over.store(true, Ordering::Release);
        self.called_in.notify_all();
        self.watch.get().inspect(|watch| watch.unpark());
    }

    /// Looks how long writes take, and calls in the reserve when one takes too long.
    fn watch(&self) {
        let (mut seen, mut in_vain) = (0, 0);
        self.is_watched.store(true, Ordering::SeqCst);
        while !self.is_over.load(Ordering::Acquire) {
            std::thread::park_timeout(WATCH_INTERVAL);
            let (since, writes) =
                (self.in_progress.load(Ordering::SeqCst), self.writes.load(Ordering::Relaxed));
            let took = self.began.elapsed().saturating_sub(Duration::from_nanos(since));
            if since != 0 && took > STALL_TIMEOUT {
                tracing::warn!(
                    "the log's disk has stalled: it is left to the log's own thread from now on"
                );
                return self.call_in();
            }
            in_vain = if since == 0 && writes == seen { in_vain + 1 } else { 0 };
            seen = writes;
            if in_vain >= IDLE_CHECKS_MAX {
                in_vain = 0;
                self.is_watched.store(false, Ordering::SeqCst);
                // Who begins now either is seen here, or sees that nobody looks.
                if self.in_progress.load(Ordering::SeqCst) == 0
                    && !self.is_over.load(Ordering::Acquire)
                {
                    std::thread::park();
                }
                self.is_watched.store(true, Ordering::SeqCst);
            }
        }
    }

    /// A write begins, of which there is one at any time.
    fn begin(&self) {
        let since = (self.began.elapsed().as_nanos() as u64).max(1);
        self.in_progress.store(since, Ordering::SeqCst);
        if !self.is_watched.load(Ordering::SeqCst) {
            self.watch.get().inspect(|watch| watch.unpark());
        }
    }

    fn end(&self) {
        self.in_progress.store(0, Ordering::SeqCst);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
}

impl LogInner {
    /// Whether an op may be left to this thread. Asked before it is queued.
    pub(super) fn is_deferred(&self, op: &LogOp, queue: &mut OpQueue) -> bool {
        let is_for_us = WRITES.get()
            && self
                .options
                .write_on_park
                .as_ref()
                .is_some_and(|write_on_park| !write_on_park.is_over())
            && self.options.durability == Durability::Always
            && matches!(op, LogOp::Append { .. })
            && !mutants::breaks(Rule::SyncBeforeAnswer);
        if !is_for_us
            || queue.ops.len() >= DEFERRED_MAX
            || self.stats.recent_fsync() >= FAST_FSYNC_MAX
            || self.disk_monitor.was_slow_lately(Instant::now)
        {
            return false;
        }
        if queue.ops.is_empty() {
            queue.deferred_at = Some(Instant::now());
        }
        queue.deferred_at.is_some_and(|at| at.elapsed() < DEFERRED_AGE_MAX)
    }

    fn write_deferred(&self, write_on_park: &ParkState) {
        if self.queue.lock().ops.is_empty() {
            return;
        }
        // Whoever writes now may not look at the queue once more.
        let Some(mut writer) = self.writer.try_lock() else { return self.wake_writer() };
        let mut ops = {
            let mut queue = self.queue.lock();
            let bytes: usize = queue.ops.iter().map(LogOp::bytes_max).sum();
            if writer.active.end() as usize + bytes + segment::TRAILER
                > writer.active.capacity as usize
            {
                drop(queue);
                return self.wake_writer();
            }
            std::mem::take(&mut queue.ops)
        };
        write_on_park.begin();
        writer.run(self, &mut ops);
        write_on_park.end();
    }
}
