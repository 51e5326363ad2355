//! The log of a node: every Raft group's entries, votes and marks, in one sequence of
//! files, synced once for all of them.
//!
//! Replicas promise with an fsync. With one log per group a node of many groups would
//! sync many files for one batch of work; here one writer takes what all groups have
//! queued, writes it once, syncs once, and calls everyone back. RocksDB's own write-ahead
//! log is off; this is the only one.
//!
//! # Life of a write
//! `raft::log_store` calls [`Log`] for its group: the group's view in memory changes at
//! once (`group.rs`), the operation is queued, the writer (`writer.rs`) turns it into
//! records (`record.rs`) at the end of the active segment (`segment.rs`), syncs when the
//! [`Durability`] asks for it, and completes the callback. The writer is driven by a
//! thread of its own, or by threads that appended and have nothing else to do
//! (`write_on_park.rs`). The keeper (`maintenance.rs`) has the next segment ready before it is
//! needed, removes old ones and moves the few needed entries out of segments that are
//! otherwise garbage. `recover.rs` reads it all back.
//!
//! # Layout
//! `<dir>/<number>.log`: drawn in `segment.rs` (file) and `record.rs` (record).
//! `<dir>/spare.tmp`: the next segment's file. Segments have consecutive numbers; only
//! the oldest is ever removed.
//!
//! # Full disk
//! A segment's blocks are allocated before it is used: those of one that is no longer
//! needed, or new ones when the active segment is half full. [`Log::writable`] refuses
//! from the moment that this fails: whoever proposes asks first, and what was accepted
//! before has the rest of the active segment to itself. When even that is used up the
//! writer waits for space, failing nothing: openraft would declare the group dead. Space
//! that returns is noticed by itself.
//!
//! # Invariants
//! - A callback says `Ok` only after what it stands for is written, and with
//!   `Durability::Always` synced (`acknowledged_writes_survive_crashes`).
//! - A segment with a successor is complete and on the disk.
//! - A segment is removed only after all that makes it unneeded is on the disk
//!   (`log_stays_bounded_while_an_idle_group_needs_old_entries`).
//! - Damage is never skipped
//!   (`every_flipped_byte_is_an_error_or_cuts_the_last_batch`).
//! - Whoever may have lost what it acknowledged is suspected until it is cleared, by
//!   later processes too (`groups_that_may_lack_entries_stay_suspects_until_cleared`).
//! - After a failed fdatasync nothing is ever acknowledged again: the log is poisoned
//!   (Linux drops the dirty pages, a second try would lie;
//!   `after_a_failed_fsync_nothing_is_acknowledged`,
//!   `a_failed_fsync_fails_every_later_sync`).
//! - What a start finds beyond the last known sync is written again before it is
//!   believed: it may stand in the page cache alone
//!   (`bytes_of_a_failed_fsync_are_rewritten_at_the_next_start`).
//! - What waits for the disk is bounded
//!   (`slow_disk_refuses_before_anything_is_proposed`).
//!
//! # Not here
//! The lock that keeps a second process out: it covers the whole node's directory and is
//! storage's.

mod disk;
mod group;
mod maintenance;
pub(crate) mod record;
mod recover;
mod scan;
mod segment;
mod stats;
#[cfg(test)]
mod tests;
mod write_on_park;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use disk::{DISK_PROBATION, Disk, DiskProblem, DiskSpace, HEALTHY_FSYNC_MAX, OsDisk};
pub use stats::LogStats;
pub use write_on_park::WriteOnPark;

use disk::DiskMonitor;
pub(crate) use group::{Group, GroupViews, ReadPlan};
pub(crate) use writer::LogOp;
use writer::Writer;

use record::Suspects;
use segment::Segment;

use crate::mutants::{self, Rule};

/// When an acknowledged write is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged.
    Always,
    /// At most about this long after.
    Interval(Duration),
    /// When the operating system gets to it (or a sixteenth of a segment waits).
    Os,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Its directory; made when missing.
    pub dir: PathBuf,
    /// Whether there must be a log in it already: without one, [`LogError::Missing`].
    pub must_exist: bool,
    /// When a write counts as done.
    pub durability: Durability,
    /// Size of a segment; 16 MiB by default, from 4 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// How much of the groups' tails is kept in memory, over all groups; older entries
    /// are read from the segments.
    pub tail_bytes_max: u64,
    /// Fill a segment with zeros before it is used: an fdatasync is then cheaper and a
    /// full disk shows in time. Off, segments grow.
    pub preallocate: bool,
    /// Threads that write what they append before they sleep; without any, the log's own
    /// thread writes all.
    pub write_on_park: Option<WriteOnPark>,
    /// How many bytes of a group's entries may wait for the disk, and four times as many
    /// of all groups: beyond that [`GroupLog::writable`] refuses.
    ///
    /// [`GroupLog::writable`]: crate::raft::GroupLog::writable
    pub unwritten_bytes_max: u64,
    /// What is written and synced with.
    pub disk: Arc<dyn Disk>,
    /// Directories beside its own whose disks are the log's business: a full one is an
    /// [`DiskProblem`].
    pub watched: Vec<PathBuf>,
}

/// What all groups that start at the same time may read of their logs to apply it again;
/// who has more at once goes alone.
const REPLAY_UNITS: u32 = 64;
const REPLAY_UNIT: u64 = 1 << 20;
/// How many times the bytes of one group may wait for the disk in all.
const UNWRITTEN_TOTAL_FACTOR: u64 = 4;

impl LogOptions {
    /// The defaults for a log in `dir`: everything durable before it is acknowledged.
    pub fn new(dir: impl Into<PathBuf>) -> LogOptions {
        LogOptions {
            dir: dir.into(),
            must_exist: false,
            durability: Durability::Always,
            segment_bytes: 16 << 20,
            tail_bytes_max: 16 << 20,
            preallocate: true,
            write_on_park: None,
            unwritten_bytes_max: 64 << 20,
            disk: Arc::new(OsDisk),
            watched: Vec::new(),
        }
    }
}

/// Why the log could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Arc<io::Error>,
    },
    /// No space (or quota) left for the log.
    #[error("no space left for the log: {what} {}", path.display())]
    DiskFull {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
    },
    /// Bytes that had been written are not what was written. The log does not open,
    /// rather than losing what it promised.
    #[error("the log is damaged: {} at byte {offset}: {why}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// Entries are missing, though every record is whole: files are missing or of another
    /// log.
    #[error("the log in {} is incomplete: group {group}: {why}", dir.display())]
    Incomplete {
        /// The log's directory.
        dir: PathBuf,
        /// Whose entries.
        group: u64,
        /// Which.
        why: String,
    },
    /// Bytes that are whole, and that this build can't read. Nothing is changed: the
    /// version that wrote them can go on.
    #[error("{} was written by a newer version: at byte {offset}: {why}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is not known.
        why: &'static str,
    },
    /// More waits to be written than may: the disk is slower than what comes in. Nothing
    /// was proposed.
    #[error("the log's disk does not keep up: {bytes} bytes wait for it")]
    Behind {
        /// How many wait.
        bytes: u64,
    },
    /// There is no log where there must be one ([`LogOptions::must_exist`]): with it went
    /// votes, and what stores had not flushed.
    #[error("there is no log in {}, but what lies beside it was written through one: put it back, or start with an empty directory", dir.display())]
    Missing {
        /// The log's directory.
        dir: PathBuf,
    },
    /// An earlier failure; nothing is written any more, since nobody knows what is on the
    /// disk.
    #[error("the log stopped after: {0}")]
    Poisoned(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// A caller asked for what a log cannot do, such as leaving a hole.
    #[error("not a log operation: {0}")]
    InvalidOperation(String),
}

impl LogError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> LogError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                LogError::DiskFull { what, path }
            }
            _ => LogError::Io { what, path, source: Arc::new(source) },
        }
    }
}

impl From<LogError> for io::Error {
    fn from(e: LogError) -> io::Error {
        let kind = match &e {
            LogError::Io { source, .. } => source.kind(),
            LogError::DiskFull { .. } => io::ErrorKind::StorageFull,
            LogError::Corrupt { .. } | LogError::Incomplete { .. } | LogError::Missing { .. } => {
                io::ErrorKind::InvalidData
            }
            LogError::Newer { .. } => io::ErrorKind::Unsupported,
            LogError::Behind { .. } => io::ErrorKind::WouldBlock,
            LogError::InvalidOperation(_) => io::ErrorKind::InvalidInput,
            LogError::Poisoned(_) | LogError::Closed => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}

/// The log of a node.
pub struct Log {
    shared: Arc<LogInner>,
    /// Bytes of entries that may be in memory to be applied again at a start, over all
    /// groups, in [`REPLAY_UNIT`]s.
    replays: Semaphore,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.shared.options.dir).finish_non_exhaustive()
    }
}

/// What the log's threads and callers share. Locks are taken in this order: writer,
/// suspects, groups, a group's inside; queue and spare alone.
pub(crate) struct LogInner {
    pub(crate) options: LogOptions,
    pub(crate) groups: Mutex<HashMap<u64, Arc<Group>>>,
    queue: Mutex<OpQueue>,
    queued: Condvar,
    writer: Mutex<Writer>,
    /// The segment being written, for those who must not wait for the writer.
    pub(crate) active: Mutex<Arc<Segment>>,
    maintenance: Mutex<maintenance::MaintenanceWork>,
    maintenance_woken: Condvar,
    spare: Mutex<Spare>,
    spare_changed: Condvar,
    /// Why nothing may be proposed, if so.
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

/// Groups that may have lost what they had acknowledged, since this process began.
#[derive(Debug, Default)]
struct SuspectedGroups {
    found: Suspects,
    cleared: BTreeSet<u64>,
}

/// Failures that tests bring about.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct InjectedFaults {
    pub(crate) disk_full: AtomicBool,
    pub(crate) sync_fails: AtomicBool,
    /// The keeper leaves a log that rests as it is.
    pub(crate) no_marks: AtomicBool,
}

#[derive(Default)]
struct OpQueue {
    ops: Vec<LogOp>,
    /// When the oldest was left to a thread that is going to sleep.
    deferred_at: Option<Instant>,
    /// The writer's thread waits for `queued`.
    sleeping: bool,
    closed: bool,
}

/// The next segment's file.
enum Spare {
    /// Made when the active segment is half full, unless a segment can be recycled
    /// before.
    Wanted,
    Making,
    Ready(File, PathBuf),
    /// In the writer's hands, not yet under its own name.
    Taken,
}

impl Log {
    /// Opens the log in `options.dir`, or begins one.
    ///
    /// A torn tail, what a crash leaves of a batch that was never acknowledged, is cut
    /// off with a warning that names file and offset. Any other damage is an error that
    /// names them too.
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
        let mut threads = vec![spawn("log-keeper", &shared, maintenance::run)?];
        if !shared.is_inline() {
            threads.push(spawn("log-writer", &shared, LogInner::write_until_closed)?);
        }
        let replays = Semaphore::new(REPLAY_UNITS as usize);
        Ok(Arc::new(Log { shared, replays, threads: Mutex::new(threads) }))
    }

    /// The ids of the groups that have something in the log, ascending.
    pub fn groups(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.shared.groups.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// May something be proposed? Ask before proposing: an error here is an answer for a
    /// client (`LogError::DiskFull`: the disk is full, and it goes away by itself when
    /// space returns); an error of an append is the end of its Raft group. Costs one
    /// atomic load when all is well.
    pub fn writable(&self) -> Result<(), LogError> {
        self.shared.writable()
    }

    /// What is wrong with its disk now: others should lead what is led here.
    pub fn disk_problem(&self) -> Option<DiskProblem> {
        self.shared.disk_monitor.disk_problem(Instant::now(), self.shared.failure())
    }

    /// What is wrong with its disk, or was within the last minute: nothing should be
    /// given to this server to lead.
    pub fn recent_disk_problem(&self) -> Option<DiskProblem> {
        self.shared.disk_monitor.lately(Instant::now(), self.shared.failure())
    }

    /// How long the last fsync took, or one that is under way takes if that is longer.
    pub fn last_fsync(&self) -> Duration {
        self.shared.disk_monitor.last(Instant::now())
    }

    /// Figures for metrics and INFO.
    pub fn stats(&self) -> &LogStats {
        &self.shared.stats
    }

    /// How durable acknowledged writes are.
    pub fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    /// Makes everything queued so far durable, whatever the durability.
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
            // In `Os` the caller is the writer; otherwise the thread ends only after it
            // has emptied the queue.
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

    /// Queues; for callers that hold a group's lock and call [`Log::drive`] after.
    pub(crate) fn push(&self, op: LogOp) {
        self.shared.push(op);
    }

    /// Whether a group may have lost entries that it had acknowledged: the process before
    /// did not close its log, and acknowledged before it synced.
    pub(crate) fn is_suspect(&self, group: u64) -> bool {
        let suspicion = self.shared.suspects.lock();
        suspicion.found.has(group) && !suspicion.cleared.contains(&group)
    }

    /// A group has everything again, or what it lacks is lost for good.
    pub(crate) fn clear(&self, group: u64) {
        if self.shared.suspects.lock().cleared.insert(group)
            && !self.shared.acknowledges_before_sync()
        {
            self.shared.submit(LogOp::Cleared);
        }
    }

    /// Sees that what was queued gets written.
    pub(crate) fn drive(&self) {
        self.shared.drive_if_inline();
    }

    /// Waits until so many bytes of entries may be read to apply them again.
    pub(crate) async fn replay_permit(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let units = bytes.div_ceil(REPLAY_UNIT).min(u64::from(REPLAY_UNITS)) as u32;
        // It is never closed.
        self.replays.acquire_many(units).await.ok()
    }

    /// Has so much of one group, or of all, been queued and not written that no more
    /// should be?
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
    /// Do callers write by themselves? Then a write costs no change of threads; it may
    /// wait for the disk only when the kernel throttles writers or a segment ends.
    fn is_inline(&self) -> bool {
        self.options.durability == Durability::Os
    }

    /// Is it acknowledged before it is on the disk?
    fn acknowledges_before_sync(&self) -> bool {
        self.options.durability != Durability::Always
    }

    /// Whom to suspect if the log ends with its closing.
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

    /// Whom to suspect if it ends without.
    pub(crate) fn suspects_if_killed(&self) -> Suspects {
        if self.acknowledges_before_sync() { Suspects::All } else { self.suspects_if_closed() }
    }

    fn submit(&self, op: LogOp) {
        self.push(op);
        self.drive_if_inline();
    }

    /// Writes what is queued, unless someone else is at it, who then comes to ours too.
    fn drive(&self) {
        loop {
            let Some(mut writer) = self.writer.try_lock() else { return };
            let mut ops = std::mem::take(&mut self.queue.lock().ops);
            if ops.is_empty() {
                return;
            }
            writer.run(self, &mut ops);
            drop(writer);
            // An op queued while the writer was ours found it taken and left.
            if self.queue.lock().ops.is_empty() {
                return;
            }
        }
    }

    /// Sees that there is a spare, or that someone is making it; false when it could not
    /// be made.
    fn make_spare(&self) -> bool {
        if !self.claim_spare() {
            return true;
        }
        let failure = self.finish_spare(self.new_segment_file()).err();
        let made = failure.is_none();
        failure.map_or_else(|| self.admit(), |why| self.refuse(why));
        made
    }

    /// Whether there is neither a spare nor someone who makes one: then the caller does.
    fn claim_spare(&self) -> bool {
        let mut spare = self.spare.lock();
        let begins = matches!(*spare, Spare::Wanted);
        if begins {
            *spare = Spare::Making;
        }
        begins
    }

    /// The spare is there, or could not be made.
    fn finish_spare(&self, made: Result<(File, PathBuf), LogError>) -> Result<(), LogError> {
        let (state, ended) = match made {
            Ok((file, path)) => (Spare::Ready(file, path), Ok(())),
            Err(e) => (Spare::Wanted, Err(e)),
        };
        *self.spare.lock() = state;
        self.spare_changed.notify_all();
        ended
    }

    /// Whether it is time to make a spare.
    fn needs_spare(&self) -> bool {
        // Asked first: after it was taken it is wanted only once the next segment is the
        // active one, of which less than half is full.
        let is_wanted = matches!(*self.spare.lock(), Spare::Wanted);
        let active = self.active.lock().clone();
        is_wanted && active.end() >= active.capacity / 2
    }

    /// Makes the spare of a segment that nobody needs, if there is none and nobody reads
    /// it; gives it back otherwise.
    fn recycle(&self, segment: Arc<Segment>) -> Result<Option<Arc<Segment>>, LogError> {
        let segment = match Arc::try_unwrap(segment) {
            Ok(segment) if segment.bytes()? == u64::from(self.options.segment_bytes) => segment,
            Ok(segment) => return Ok(Some(Arc::new(segment))),
            Err(segment) => return Ok(Some(segment)),
        };
        if !self.claim_spare() {
            return Ok(Some(Arc::new(segment)));
        }
        self.finish_spare(segment::recycle(&self.options.dir, segment))?;
        self.admit();
        Ok(None)
    }

    fn new_segment_file(&self) -> Result<(File, PathBuf), LogError> {
        #[cfg(test)]
        if self.faults.disk_full.load(Ordering::Relaxed) {
            return Err(LogError::io(
                "preallocate",
                &self.options.dir,
                io::ErrorKind::StorageFull.into(),
            ));
        }
        segment::spare(&self.options.dir, self.options.segment_bytes, self.options.preallocate)
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
            // Taken by whoever holds the writer: what comes later is written later.
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

    /// Is the log in order?
    pub(crate) fn alive(&self) -> Result<(), LogError> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(LogError::Poisoned(self.poison.lock().clone().unwrap_or_default()))
    }

    /// Why the log has stopped, if it has.
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

    /// What is queued waits for the disk.
    fn count_unwritten(&self, op: &LogOp) {
        if let LogOp::Append { group, .. } = op {
            let bytes = op.bytes_max() as u64;
            group.unwritten.fetch_add(bytes, Ordering::Relaxed);
            self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// It is written, or never will be.
    pub(crate) fn uncount_unwritten(&self, op: &LogOp) {
        if let LogOp::Append { group, .. } = op {
            let bytes = op.bytes_max() as u64;
            group.unwritten.fetch_sub(bytes, Ordering::Relaxed);
            self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Nothing is acknowledged from here on.
    pub(crate) fn poison(&self, why: &LogError) {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            tracing::error!(error = %why, "the log stops: nobody knows what is on the disk");
            *poison = Some(why.to_string());
            self.poisoned.store(true, Ordering::Release);
        }
    }

    /// From now on [`Log::writable`] says no.
    pub(crate) fn refuse(&self, why: LogError) {
        let mut refusal = self.refusal.lock();
        if refusal.is_none() {
            tracing::warn!(error = %why, "the log takes no new writes until this is over");
        }
        *refusal = Some(why);
        self.refuses.store(true, Ordering::Release);
    }

    pub(crate) fn admit(&self) {
        let mut refusal = self.refusal.lock();
        if refusal.take().is_some() {
            tracing::warn!("the log takes writes again");
        }
        self.refuses.store(false, Ordering::Release);
    }

    /// Waits a moment for space; an error when the log is being closed.
    pub(crate) fn wait_for_space(&self) -> Result<(), LogError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(LogError::Closed);
        }
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// The next segment's file. Normally the keeper has it ready; else it is made here,
    /// and tried again until there is space; any other failure is the log's.
    pub(crate) fn take_spare(&self) -> Result<(File, PathBuf), LogError> {
        loop {
            {
                let mut spare = self.spare.lock();
                if let Spare::Ready(..) = *spare
                    && let Spare::Ready(file, path) = std::mem::replace(&mut *spare, Spare::Taken)
                {
                    return Ok((file, path));
                }
                if matches!(*spare, Spare::Making) {
                    self.spare_changed.wait_for(&mut spare, Duration::from_millis(100));
                    continue;
                }
            }
            if !self.make_spare() {
                let refusal = self.refusal.lock().clone();
                match refusal {
                    Some(why) if !matches!(why, LogError::DiskFull { .. }) => return Err(why),
                    refusal => self.wait_for_space().map_err(|closed| refusal.unwrap_or(closed))?,
                }
            }
        }
    }

    /// The spare has its real name; another can be made.
    pub(crate) fn spare_taken(&self) {
        *self.spare.lock() = Spare::Wanted;
        self.wake_keeper();
    }

    fn wake_keeper(&self) {
        self.maintenance.lock().woken = true;
        self.maintenance_woken.notify_one();
    }

    /// Leaves segments to the keeper, who removes them once it is safe.
    pub(crate) fn remove_later(&self, segments: Vec<Arc<Segment>>) {
        self.maintenance.lock().obsolete.extend(segments);
        self.wake_keeper();
    }

    /// Brings the groups' caches within their bound, the largest giving most.
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
            // Behind its end a record would bring a group back.
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
