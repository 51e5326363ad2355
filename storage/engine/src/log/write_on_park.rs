//! Writes and syncs pending appends on the threads that made them, when tokio parks these
//! (Redis does the same in its `beforeSleep`).
//!
//! An append that is left to the log's own thread costs two thread switches: to that
//! thread, and back with the acknowledgement. They take as long as a fast fsync. So a
//! worker thread of the runtime that has run out of work writes all pending appends at
//! once, with one fsync, and continues with their callbacks. Since it was idle, little
//! waits for it meanwhile.
//!
//! # Exceptions
//! The log's own thread does the work when
//! - fsyncs are slow on average ([`FAST_FSYNC_MAX`]), or one was slow within the last
//!   minute: other work would wait for them;
//! - many appends are pending, or one for long: the thread is too busy to park;
//! - the segment would end: that takes longer, and on a full disk until there is space.
//!
//! # When a disk stalls
//! No average predicts the first stall of a disk, and a thread that waits for the disk
//! sends no heartbeats. tokio would not wake another thread in its place, because it
//! takes a thread that is about to park for one that looks for work. So the runtime has
//! one thread more than it uses, which waits in a task at no cost
//! ([`WriteOnPark::keep_reserve`]). When a sync takes longer than [`STALL_TIMEOUT`], a
//! tenth of a leader's lease, that thread is released and drives the runtime. From then
//! on no thread of the process syncs on park any more: sending a thread back into the
//! reserve could take tasks with it.
//!
//! # Invariants
//! - A deferred append is written before the thread parks, by it or by the log's own
//!   thread (`log/tests/threads.rs`,
//!   `appends_are_deferred_only_to_a_thread_about_to_park`).
//! - A thread takes the whole queue while it holds the writer: a group's records are in
//!   the order of its operations (`groups_written_on_park_do_not_disturb_each_other`).
//! - A stalled disk blocks one thread, once, and the runtime for less than a heartbeat
//!   (`a_disk_that_stalls_holds_up_one_thread_once`).

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

/// The largest average duration of an fsync that an idle worker thread may do.
const FAST_FSYNC_MAX: Duration = Duration::from_micros(500);
/// Bounds of the number and the age of deferred appends.
const DEFERRED_MAX: usize = 16;
const DEFERRED_AGE_MAX: Duration = Duration::from_micros(500);
/// A sync that takes longer counts as stalled, and releases the reserve.
const STALL_TIMEOUT: Duration = Duration::from_millis(100);
/// Interval of checks of a running sync.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// After this many checks without a write the watching thread parks until the next one.
const IDLE_CHECKS_MAX: u32 = 50;

thread_local! {
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

/// The hook for tokio's `on_thread_park`. It belongs to the log that was opened with it
/// ([`LogOptions::write_on_park`](super::LogOptions::write_on_park)).
#[derive(Clone)]
pub struct WriteOnPark(Arc<ParkState>);

struct ParkState {
    log: OnceLock<Weak<LogInner>>,
    began: Instant,
    /// Start of the write that is running on a parking thread, nanoseconds since `began`;
    /// 0 if there is none.
    in_progress: AtomicU64,
    /// The number of such writes.
    writes: AtomicU64,
    /// The watching thread is awake.
    is_watched: AtomicBool,
    watch: OnceLock<Thread>,
    /// No thread writes on park any more, and the reserve is released.
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
    /// Writes the pending appends. Must be called by the same threads each time that they
    /// are about to park.
    pub fn write(&self) {
        if self.is_over() {
            return;
        }
        WRITES.set(true);
        if let Some(shared) = self.0.log.get().and_then(Weak::upgrade) {
            shared.write_deferred(&self.0);
        }
    }

    /// Keeps one thread of a runtime in reserve, to be released when the disk blocks
    /// another. Must be called before anything else runs on the runtime, from outside of
    /// it; the runtime needs at least two threads. [`WriteOnPark::stop`] must be called
    /// before the runtime is shut down.
    ///
    /// # Errors
    /// The watching thread could not be started.
    pub fn keep_reserve(&self, runtime: &tokio::runtime::Handle) -> io::Result<()> {
        let (inner, (waits, is_waiting)) = (self.0.clone(), mpsc::channel());
        runtime.spawn(async move {
            let mut over = inner.over.lock();
            // The receiver may be gone; nothing depends on it then.
            let _ = waits.send(());
            while !inner.is_over.load(Ordering::Acquire) {
                inner.called_in.wait(&mut over);
            }
        });
        // An error means that the runtime is gone already and needs no reserve.
        let _ = is_waiting.recv();
        let inner = self.0.clone();
        let watch = std::thread::Builder::new()
            .name("log-watch".to_owned())
            .spawn(move || inner.watch())?;
        let _ = self.0.watch.set(watch.thread().clone());
        Ok(())
    }

    /// Leaves all writing to the log's own thread, and releases the reserve.
    pub fn stop(&self) {
        self.0.call_in();
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    /// Sets the log to write. A process has one; of several, the first.
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

    /// Watches the duration of writes, and releases the reserve when one takes too long.
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
                    "the log's disk has stalled: only the log's own thread syncs from now on"
                );
                return self.call_in();
            }
            in_vain = if since == 0 && writes == seen { in_vain + 1 } else { 0 };
            seen = writes;
            if in_vain >= IDLE_CHECKS_MAX {
                in_vain = 0;
                self.is_watched.store(false, Ordering::SeqCst);
                // A write that begins now is either seen here, or sees that nothing
                // watches.
                if self.in_progress.load(Ordering::SeqCst) == 0
                    && !self.is_over.load(Ordering::Acquire)
                {
                    std::thread::park();
                }
                self.is_watched.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Records the start of a write; there is one at any time.
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
    /// True if an operation may be deferred to this thread; called before it is queued.
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
        // The thread that holds the writer may not check the queue again.
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
