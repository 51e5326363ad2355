//! The node's Raft log: entries, votes and marks of all its groups, in one sequence of
//! files that is synced once for all of them.
//!
//! A replica's acknowledgement rests on an fsync. With one log per group, a node of many
//! groups would sync many files for one batch of work. Here one writer takes the queued
//! operations of all groups, writes them at once, syncs once, and completes the
//! callbacks. RocksDB's own write-ahead log is off; this log is the only one.
//!
//! # Life of a write
//! `raft::log_store` calls [`Log`] for its group. The group's view in memory changes at
//! once (`group.rs`) and the operation is queued. The writer (`writer.rs`) encodes it as
//! records (`record.rs`) at the end of the active segment (`segment.rs`), syncs when the
//! [`Durability`] requires it, and completes the callback. A thread of its own drives the
//! writer, or an idle thread that has appended something (`write_on_park.rs`). The
//! maintenance thread (`maintenance.rs`) prepares the next segment before it is needed,
//! removes old ones, and relocates the few needed entries of segments that are otherwise
//! garbage. `recover.rs` reads everything back.
//!
//! # Layout
//! `<dir>/<number>.log`: drawn in `segment.rs` (file) and `record.rs` (record).
//! `<dir>/spare.tmp`: the next segment's file. Segments have consecutive numbers; only
//! the oldest is ever removed.
//!
//! # Full disk
//! A segment's blocks are allocated before it is used: they are those of an obsolete
//! segment, or new ones, allocated when the active segment is half full. If the
//! allocation fails, [`Log::writable`] returns an error from then on. It is called before
//! each proposal, so the rest of the active segment is left to operations that were
//! accepted before. When that is used up as well, the writer waits for space and fails
//! nothing, because openraft stops a group whose append fails. Writing resumes
//! automatically when space returns.
//!
//! # Invariants
//! - A callback gets `Ok` only after its operation is written, and with
//!   `Durability::Always` synced (`acknowledged_writes_survive_crashes`).
//! - A segment with a successor is complete and on disk.
//! - A segment is removed only after everything that makes it obsolete is on disk
//!   (`log_stays_bounded_while_an_idle_group_needs_old_entries`).
//! - Damage is never skipped (`every_flipped_byte_is_an_error_or_cuts_the_last_batch`).
//! - A group that may have lost acknowledged entries is a suspect until it is cleared,
//!   across restarts (`groups_that_may_lack_entries_stay_suspects_until_cleared`).
//! - After a failed fdatasync nothing is ever acknowledged again: the log is poisoned.
//!   Linux drops the dirty pages, so a second fdatasync would succeed wrongly
//!   (`after_a_failed_fsync_nothing_is_acknowledged`,
//!   `a_failed_fsync_fails_every_later_sync`).
//! - Records that a start finds beyond the last known sync are rewritten before they
//!   count: they may be in the page cache only
//!   (`bytes_of_a_failed_fsync_are_rewritten_at_the_next_start`).
//! - The bytes that wait for the disk are bounded
//!   (`slow_disk_refuses_before_anything_is_proposed`).
//!
//! # Not here
//! The lock that keeps a second process out: it covers the whole node's directory and
//! belongs to storage.

mod disk;
mod error;
mod group;
mod maintenance;
mod options;
pub(crate) mod record;
mod recover;
mod scan;
mod segment;
mod spare;
mod stats;
#[cfg(test)]
mod tests;
mod write_on_park;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use disk::{DISK_PROBATION, Disk, DiskProblem, DiskSpace, HEALTHY_FSYNC_MAX, OsDisk};
pub use error::LogError;
pub use options::{Durability, LogOptions};
pub use stats::LogStats;
pub use write_on_park::WriteOnPark;

use disk::DiskMonitor;
pub(crate) use group::{Group, GroupViews, ReadPlan};
pub(crate) use writer::LogOp;
use writer::Writer;

use record::Suspects;
use segment::Segment;
use spare::Spare;

use crate::mutants::{self, Rule};

/// The budget of all groups that replay their logs at the same time, in [`REPLAY_UNIT`]s.
/// A group that needs more takes all of it.
const REPLAY_UNITS: u32 = 64;
const REPLAY_UNIT: u64 = 1 << 20;
/// The bound of waiting bytes of all groups, as a multiple of one group's.
const UNWRITTEN_TOTAL_FACTOR: u64 = 4;

/// The node's Raft log.
pub struct Log {
    shared: Arc<LogInner>,
    /// Permits for bytes of entries that groups hold in memory while they replay, over
    /// all groups, in [`REPLAY_UNIT`]s.
    replays: Semaphore,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.shared.options.dir).finish_non_exhaustive()
    }
}

/// The state that the log's threads and callers share. Lock order: writer, suspects,
/// groups, a group's views; queue and spare are locked alone.
pub(crate) struct LogInner {
    pub(crate) options: LogOptions,
    pub(crate) groups: Mutex<HashMap<u64, Arc<Group>>>,
    queue: Mutex<OpQueue>,
    queued: Condvar,
    writer: Mutex<Writer>,
    /// The segment being written, for callers that must not wait for the writer.
    pub(crate) active: Mutex<Arc<Segment>>,
    maintenance: Mutex<maintenance::MaintenanceWork>,
    maintenance_woken: Condvar,
    spare: Mutex<Spare>,
    spare_changed: Condvar,
    /// The reason why nothing may be proposed.
    refusal: Mutex<Option<LogError>>,
    refuses: AtomicBool,
    poison: Mutex<Option<String>>,
    poisoned: AtomicBool,
    closing: AtomicBool,
    suspects: Mutex<SuspectedGroups>,
    /// Bytes in all groups' caches.
    pub(crate) cached: AtomicU64,
    /// Bytes of all groups' entries that are queued and not written yet.
    unwritten: AtomicU64,
    pub(crate) disk_monitor: DiskMonitor,
    pub(crate) stats: LogStats,
    pub(crate) fsync_seconds: metrics::Histogram,
    #[cfg(test)]
    pub(crate) faults: InjectedFaults,
}

/// Groups that may have lost acknowledged entries: those found at the start, less those
/// that were cleared since.
#[derive(Debug, Default)]
struct SuspectedGroups {
    found: Suspects,
    cleared: BTreeSet<u64>,
}

/// Failures that tests inject.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct InjectedFaults {
    pub(crate) disk_full: AtomicBool,
    pub(crate) sync_fails: AtomicBool,
    /// The maintenance thread leaves an idle log unmarked.
    pub(crate) no_marks: AtomicBool,
}

#[derive(Default)]
struct OpQueue {
    ops: Vec<LogOp>,
    /// Set when the oldest operation was deferred to a thread that is about to park.
    deferred_at: Option<Instant>,
    /// The writer thread waits for `queued`.
    sleeping: bool,
    closed: bool,
}

impl Log {
    /// Opens the log in `options.dir`, or creates one.
    ///
    /// A torn tail (the remains of a batch that a crash interrupted before it was
    /// acknowledged) is cut off, with a warning that names file and offset. Any other
    /// damage is an error that names both.
    pub fn open(mut options: LogOptions) -> Result<Arc<Log>, LogError> {
        options.segment_bytes = options.segment_bytes.clamp(4 << 10, 1 << 30);
        let recovered = recover::recover(&options)?;
        let shared = Arc::new(LogInner {
            groups: Mutex::new(recovered.groups),
            queue: Mutex::default(),
            queued: Condvar::new(),
            active: Mutex::new(recovered.active.clone()),
            writer: Mutex::new(Writer::new(recovered.active, recovered.sealed)),
            maintenance: Mutex::default(),
            maintenance_woken: Condvar::new(),
            spare: Mutex::new(Spare::Wanted),
            spare_changed: Condvar::new(),
            refusal: Mutex::default(),
            refuses: AtomicBool::new(false),
            poison: Mutex::default(),
            poisoned: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            suspects: Mutex::new(SuspectedGroups {
                found: recovered.suspects.clone(),
                cleared: BTreeSet::new(),
            }),
            cached: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            disk_monitor: DiskMonitor::new(),
            stats: LogStats::default(),
            fsync_seconds: metrics::histogram!("bridle_log_fsync_seconds"),
            #[cfg(test)]
            faults: InjectedFaults::default(),
            options,
        });
        {
            let mut writer = shared.writer.lock();
            writer.begin(&shared, &recovered.suspects)?;
            writer.count_segments(&shared);
            writer.reclaim(&shared);
        }
        if let Some(write_on_park) = &shared.options.write_on_park {
            write_on_park.serve(&shared);
        }
        let mut threads = vec![spawn("log-maintenance", &shared, maintenance::run)?];
        if !shared.is_inline() {
            threads.push(spawn("log-writer", &shared, LogInner::write_until_closed)?);
        }
        let replays = Semaphore::new(REPLAY_UNITS as usize);
        Ok(Arc::new(Log { shared, replays, threads: Mutex::new(threads) }))
    }

    /// The ids of the groups that have records in the log, ascending.
    pub fn groups(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.shared.groups.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Returns an error if nothing may be proposed. Call it before proposing: this error
    /// is an answer for a client (`LogError::DiskFull` goes away automatically when space
    /// returns), whereas a failed append stops its Raft group. Costs one atomic load in
    /// the normal case.
    pub fn writable(&self) -> Result<(), LogError> {
        self.shared.writable()
    }

    /// The present problem of the log's disk: this server's leaders should move
    /// elsewhere.
    pub fn disk_problem(&self) -> Option<DiskProblem> {
        self.shared.disk_monitor.disk_problem(Instant::now(), self.shared.failure())
    }

    /// The present problem of the log's disk, or one of the last minute: no leader should
    /// move to this server.
    pub fn recent_disk_problem(&self) -> Option<DiskProblem> {
        self.shared.disk_monitor.lately(Instant::now(), self.shared.failure())
    }

    /// The duration of the last fsync, or of a running one if that is longer.
    pub fn last_fsync(&self) -> Duration {
        self.shared.disk_monitor.last(Instant::now())
    }

    /// Statistics for metrics and INFO.
    pub fn stats(&self) -> &LogStats {
        &self.shared.stats
    }

    /// The durability of acknowledged writes.
    pub fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    /// Makes everything queued so far durable, in every durability mode.
    pub async fn flush(&self) -> Result<(), LogError> {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.shared.submit(LogOp::Flush { mark: false, done });
        wait.await.unwrap_or(Err(LogError::Closed))
    }

    /// Writes and syncs everything queued and stops the log's threads; later writes fail
    /// with [`LogError::Closed`]. Dropping the log does the same.
    pub fn close(&self) -> Result<(), LogError> {
        let result = if self.shared.queue.lock().closed {
            Ok(())
        } else {
            self.shared.queue_committed();
            let (done, mut wait) = tokio::sync::oneshot::channel();
            self.shared.submit(LogOp::Flush { mark: true, done });
            self.shared.stop();
            // In `Os` mode the caller is the writer. In the others the thread empties the
            // queue before it ends.
            self.join();
            wait.try_recv().unwrap_or(Err(LogError::Closed))
        };
        self.join();
        result
    }

    fn join(&self) {
        for thread in self.threads.lock().drain(..) {
            // The last owner may be a callback, on the writer's own thread.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }

    /// Queues an operation; for callers that hold a group's lock and call [`Log::drive`]
    /// afterwards.
    pub(crate) fn push(&self, op: LogOp) {
        self.shared.push(op);
    }

    /// Returns true if the group may have lost acknowledged entries: the previous process
    /// acknowledged before it synced, and did not close its log.
    pub(crate) fn is_suspect(&self, group: u64) -> bool {
        let suspicion = self.shared.suspects.lock();
        suspicion.found.has(group) && !suspicion.cleared.contains(&group)
    }

    /// Removes a group from the suspects: it has all its entries again, or they are lost
    /// for good.
    pub(crate) fn clear(&self, group: u64) {
        if self.shared.suspects.lock().cleared.insert(group)
            && !self.shared.acknowledges_before_sync()
        {
            self.shared.submit(LogOp::Cleared);
        }
    }

    /// Writes the queue, or leaves it to the writer thread.
    pub(crate) fn drive(&self) {
        self.shared.drive_if_inline();
    }

    /// Waits until this number of bytes may be read for a replay.
    pub(crate) async fn replay_permit(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let units = bytes.div_ceil(REPLAY_UNIT).min(u64::from(REPLAY_UNITS)) as u32;
        // The semaphore is never closed.
        self.replays.acquire_many(units).await.ok()
    }

    /// Returns an error if this group, or all groups together, have too many bytes
    /// queued.
    pub(crate) fn check_backlog(&self, group: &Group) -> Result<(), LogError> {
        self.shared.check_backlog(group)
    }

    pub(crate) fn group(&self, id: u64) -> Arc<Group> {
        self.shared.groups.lock().entry(id).or_insert_with(|| Arc::new(Group::new(id))).clone()
    }

    pub(crate) fn cached(&self) -> &AtomicU64 {
        &self.shared.cached
    }

    pub(crate) fn alive(&self) -> Result<(), LogError> {
        self.shared.alive()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!(error = %e, "close the log");
        }
    }
}

fn spawn(
    name: &str,
    shared: &Arc<LogInner>,
    run: fn(&LogInner),
) -> Result<JoinHandle<()>, LogError> {
    let shared = shared.clone();
    let dir = shared.options.dir.clone();
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
    started.map_err(|e| LogError::io("start a thread for", &dir, e))
}

impl LogInner {
    /// True if callers write themselves. A write then costs no thread switch; it waits
    /// for the disk only when the kernel throttles writers or when a segment ends.
    fn is_inline(&self) -> bool {
        self.options.durability == Durability::Os
    }

    /// True if writes are acknowledged before they are on disk.
    fn acknowledges_before_sync(&self) -> bool {
        self.options.durability != Durability::Always
    }

    /// The suspects of the next start if this process closes the log.
    pub(crate) fn suspects_if_closed(&self) -> Suspects {
        let SuspectedGroups { found, cleared } = &*self.suspects.lock();
        Suspects::These(match found {
            Suspects::All => self
                .groups
                .lock()
                .keys()
                .filter(|group| !cleared.contains(group))
                .copied()
                .collect(),
            Suspects::These(groups) => groups.difference(cleared).copied().collect(),
        })
    }

    /// The suspects of the next start if this process is killed.
    pub(crate) fn suspects_if_killed(&self) -> Suspects {
        if self.acknowledges_before_sync() { Suspects::All } else { self.suspects_if_closed() }
    }

    fn submit(&self, op: LogOp) {
        self.push(op);
        self.drive_if_inline();
    }

    /// Writes the queue, unless another thread is writing: that one then writes ours,
    /// too.
    fn drive(&self) {
        loop {
            let Some(mut writer) = self.writer.try_lock() else { return };
            let mut ops = std::mem::take(&mut self.queue.lock().ops);
            if ops.is_empty() {
                return;
            }
            writer.run(self, &mut ops);
            drop(writer);
            // An operation that was queued meanwhile found the writer taken, and its
            // caller left it to us.
            if self.queue.lock().ops.is_empty() {
                return;
            }
        }
    }

    pub(crate) fn drive_if_inline(&self) {
        if self.is_inline() {
            self.drive();
        }
    }

    fn write_until_closed(&self) {
        let mut ops = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                while queue.ops.is_empty() {
                    if queue.closed {
                        return;
                    }
                    queue.sleeping = true;
                    self.queued.wait(&mut queue);
                }
                queue.sleeping = false;
            }
            // The queue is taken while holding the writer, so that later operations are
            // written later.
            let mut writer = self.writer.lock();
            std::mem::swap(&mut self.queue.lock().ops, &mut ops);
            if !ops.is_empty() {
                writer.run(self, &mut ops);
            }
        }
    }

    fn wake_writer(&self) {
        if std::mem::take(&mut self.queue.lock().sleeping) {
            self.queued.notify_one();
        }
    }

    fn stop(&self) {
        self.queue.lock().closed = true;
        self.closing.store(true, Ordering::Release);
        self.queued.notify_all();
        let _chores = self.maintenance.lock();
        self.maintenance_woken.notify_all();
        self.spare_changed.notify_all();
    }

    pub(crate) fn writable(&self) -> Result<(), LogError> {
        self.alive()?;
        if !self.refuses.load(Ordering::Acquire) {
            return Ok(());
        }
        self.refusal.lock().clone().map_or(Ok(()), Err)
    }

    /// Returns an error if the log is poisoned.
    pub(crate) fn alive(&self) -> Result<(), LogError> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(LogError::Poisoned(self.poison.lock().clone().unwrap_or_default()))
    }

    /// The reason why the log has stopped.
    fn failure(&self) -> Option<String> {
        self.poisoned
            .load(Ordering::Acquire)
            .then(|| self.poison.lock().clone().unwrap_or_default())
    }

    fn check_backlog(&self, group: &Group) -> Result<(), LogError> {
        let max = self.options.unwritten_bytes_max;
        let (own, all) =
            (group.unwritten.load(Ordering::Relaxed), self.unwritten.load(Ordering::Relaxed));
        match own > max || all > max.saturating_mul(UNWRITTEN_TOTAL_FACTOR) {
            true => Err(LogError::Behind { bytes: if own > max { own } else { all } }),
            false => Ok(()),
        }
    }

    /// Counts an operation as waiting for the disk.
    fn count_unwritten(&self, op: &LogOp) {
        if let LogOp::Append { group, .. } = op {
            let bytes = op.bytes_max() as u64;
            group.unwritten.fetch_add(bytes, Ordering::Relaxed);
            self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Uncounts an operation that is written, or never will be.
    pub(crate) fn uncount_unwritten(&self, op: &LogOp) {
        if let LogOp::Append { group, .. } = op {
            let bytes = op.bytes_max() as u64;
            group.unwritten.fetch_sub(bytes, Ordering::Relaxed);
            self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Stops the log: nothing is acknowledged from here on.
    pub(crate) fn poison(&self, why: &LogError) {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            tracing::error!(error = %why, "the log stops: the state of its disk is unknown");
            *poison = Some(why.to_string());
            self.poisoned.store(true, Ordering::Release);
        }
    }

    /// Makes [`Log::writable`] return an error.
    pub(crate) fn refuse(&self, why: LogError) {
        let mut refusal = self.refusal.lock();
        if refusal.is_none() {
            tracing::warn!(error = %why, "the log refuses new writes until this is resolved");
        }
        *refusal = Some(why);
        self.refuses.store(true, Ordering::Release);
    }

    pub(crate) fn admit(&self) {
        let mut refusal = self.refusal.lock();
        if refusal.take().is_some() {
            tracing::warn!("the log accepts writes again");
        }
        self.refuses.store(false, Ordering::Release);
    }

    /// Waits 100 ms for space; an error when the log is being closed.
    pub(crate) fn wait_for_space(&self) -> Result<(), LogError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(LogError::Closed);
        }
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    fn wake_maintenance(&self) {
        self.maintenance.lock().woken = true;
        self.maintenance_woken.notify_one();
    }

    /// Hands obsolete segments to the maintenance thread, which removes them once it is
    /// safe.
    pub(crate) fn remove_later(&self, segments: Vec<Arc<Segment>>) {
        self.maintenance.lock().obsolete.extend(segments);
        self.wake_maintenance();
    }

    /// Reduces the groups' caches to their bound, the largest by the most.
    pub(crate) fn evict(&self) {
        let cached = self.cached.load(Ordering::Relaxed);
        let max = self.options.tail_bytes_max;
        if cached <= max {
            return;
        }
        for group in self.groups.lock().values() {
            let visible = &mut group.views.lock().visible;
            let keep =
                u128::from(visible.cache_bytes()) * u128::from(max - max / 8) / u128::from(cached);
            visible.evict(keep as u64, &self.cached);
        }
    }

    /// Queues the committed ids that no append has carried.
    fn queue_committed(&self) {
        let groups: Vec<Arc<Group>> = self.groups.lock().values().cloned().collect();
        for group in groups {
            let mut views = group.views.lock();
            // A record behind a group's end would bring the group back.
            if views.visible.destroyed {
                continue;
            }
            if let Some(committed) = views.visible.take_committed() {
                // Queued under the group's lock, so that it keeps its place among the
                // group's other operations.
                self.push(LogOp::Committed { group: group.clone(), committed });
            }
        }
        self.drive_if_inline();
    }

    /// Queues without writing; for callers that hold a group's lock.
    pub(crate) fn push(&self, op: LogOp) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            op.refuse(LogError::Closed);
            return;
        }
        self.count_unwritten(&op);
        let is_deferred = self.is_deferred(&op, &mut queue);
        queue.ops.push(match mutants::breaks(Rule::SyncBeforeAnswer) {
            true => op.acknowledge_early(),
            false => op,
        });
        let wake = !is_deferred && std::mem::take(&mut queue.sleeping);
        drop(queue);
        if wake {
            self.queued.notify_one();
        }
    }
}
