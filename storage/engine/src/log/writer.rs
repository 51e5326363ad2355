//! The log's one writer: takes the queued operations, writes them as one batch, syncs
//! once, and completes their callbacks.
//!
//! # Life of a batch
//! 1. Callers change the visible log of their group and queue a [`LogOp`]. For each
//!    group, both happen in the same order.
//! 2. The thread that drives the writer (the log's own; a worker thread that is about to
//!    park; in `Durability::Os` the caller) takes the whole queue.
//! 3. Each operation is encoded as records. A record that does not fit begins the next
//!    segment.
//! 4. The records are written with one write, and synced with one fdatasync if an
//!    operation requires it.
//! 5. The callbacks are completed in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::group::{EntryLocation, Group};
use super::record::{self, RecordKind, RecordPosition, Suspects};
use super::segment::{self, Segment};
use super::{Durability, LogError, LogInner};
use crate::mutants::{self, Rule};
use crate::raft::types::{Entry, Flushed, LogId, Vote};

/// Receives the result of an operation.
pub(crate) type OpCallback = tokio::sync::oneshot::Sender<Result<(), LogError>>;

/// A queued operation.
pub(crate) enum LogOp {
    Append {
        group: Arc<Group>,
        entries: Vec<Entry>,
        committed: Option<LogId>,
        epoch: u64,
        done: Flushed,
    },
    Vote {
        group: Arc<Group>,
        vote: Vote,
        done: OpCallback,
    },
    Committed {
        group: Arc<Group>,
        committed: LogId,
    },
    Truncate {
        group: Arc<Group>,
        after: Option<u64>,
        done: OpCallback,
    },
    Purge {
        group: Arc<Group>,
        upto: LogId,
    },
    Destroy {
        group: Arc<Group>,
        done: OpCallback,
    },
    /// Make everything before it durable. `mark` records that in the log itself, so that
    /// damage to the last batch is told from a torn tail.
    Flush {
        mark: bool,
        done: OpCallback,
    },
    /// Record that a group is no longer a suspect.
    Cleared,
}

impl LogOp {
    /// True if the operation must be durable before its callback. Votes, truncations and
    /// destructions always are: they are rare, and Raft's safety rests on them.
    fn needs_sync(&self, durability: Durability) -> bool {
        match self {
            LogOp::Append { .. } => durability == Durability::Always,
            LogOp::Vote { .. }
            | LogOp::Truncate { .. }
            | LogOp::Destroy { .. }
            | LogOp::Flush { .. } => true,
            LogOp::Committed { .. } | LogOp::Purge { .. } | LogOp::Cleared => false,
        }
    }

    /// An upper bound of the length of its records.
    pub(crate) fn bytes_max(&self) -> usize {
        let records = match self {
            LogOp::Append { entries, .. } => entries.iter().map(record::entry_len).sum(),
            _ => 0,
        };
        // A committed id, a vote and the like.
        records + record::HEADER + 32
    }

    /// True if the operation may make a segment obsolete.
    fn frees(&self) -> bool {
        matches!(self, LogOp::Truncate { .. } | LogOp::Purge { .. } | LogOp::Destroy { .. })
    }

    /// Completes the callback of an operation that was never queued, with an error.
    pub(crate) fn refuse(self, why: LogError) {
        self.finish(Err(why));
    }

    /// Completes an append's callback before anything is written; for
    /// [`Rule::SyncBeforeAnswer`].
    pub(crate) fn acknowledge_early(mut self) -> LogOp {
        if let LogOp::Append { done, .. } = &mut self {
            std::mem::replace(done, Flushed::Noop).io_completed(Ok(()));
        }
        self
    }

    fn finish(self, result: Result<(), LogError>) {
        match self {
            LogOp::Append { done, .. } => done.io_completed(result.map_err(std::io::Error::from)),
            LogOp::Vote { done, .. }
            | LogOp::Truncate { done, .. }
            | LogOp::Destroy { done, .. }
            | LogOp::Flush { done, .. } => {
                // The caller may have stopped waiting.
                let _ = done.send(result);
            }
            LogOp::Committed { .. } | LogOp::Purge { .. } | LogOp::Cleared => {}
        }
    }
}

/// The buffer is written out when it holds this many bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes of an old segment that are relocated at a time, so that appends wait little.
const RELOCATE_BYTES_MAX: u32 = 256 << 10;
/// The delay of appends that were acknowledged early.
const MUTANT_DELAY: Duration = Duration::from_millis(300);

pub(crate) struct Writer {
    pub(crate) active: Arc<Segment>,
    /// End of the header records of `active`. A record that does not fit behind it fits
    /// into no segment, and may grow the file.
    pub(crate) head_end: u32,
    pub(crate) sealed: VecDeque<Arc<Segment>>,
    /// Records to be written at the end of `active`.
    pub(crate) buffer: Vec<u8>,
    /// The last record is a mark.
    is_marked: bool,
}

// After an error in these methods the log is poisoned, so no reader sees a durable log
// that is ahead of the disk.
impl Writer {
    pub(crate) fn new(active: Arc<Segment>, sealed: VecDeque<Arc<Segment>>) -> Writer {
        Writer { active, head_end: segment::HEADER, sealed, buffer: Vec::new(), is_marked: false }
    }

    /// Writes a batch and completes its callbacks.
    pub(crate) fn run(&mut self, shared: &LogInner, ops: &mut Vec<LogOp>) {
        if mutants::breaks(Rule::SyncBeforeAnswer)
            && ops.iter().all(|op| matches!(op, LogOp::Append { .. }))
        {
            std::thread::sleep(MUTANT_DELAY);
        }
        let sync = ops.iter().any(|op| op.needs_sync(shared.options.durability));
        let frees = ops.iter().any(LogOp::frees);
        let result = shared.alive().and_then(|()| self.write_batch(shared, ops, sync));
        if let Err(e) = &result {
            shared.poison(e);
        } else {
            shared.stats.batches.fetch_add(1, Ordering::Relaxed);
        }
        for op in ops.drain(..) {
            shared.uncount_unwritten(&op);
            if let (Ok(()), LogOp::Append { group, entries, epoch, .. }) = (&result, &op)
                && let Some(last) = entries.last()
            {
                let visible = &mut group.views.lock().visible;
                if visible.epoch == *epoch {
                    visible.written = visible.written.max(last.log_id.index + 1);
                }
            }
            op.finish(result.clone());
        }
        if result.is_ok() {
            shared.evict();
            if frees {
                self.reclaim(shared);
            }
        }
    }

    fn write_batch(
        &mut self,
        shared: &LogInner,
        ops: &[LogOp],
        sync: bool,
    ) -> Result<(), LogError> {
        for op in ops {
            self.encode(shared, op)?;
        }
        self.write_out(shared)?;
        if sync {
            self.sync(shared)?;
        }
        // A mark is useful only if everything before it is already on disk, so it is
        // written last.
        if ops.iter().any(|op| matches!(op, LogOp::Flush { mark: true, .. })) {
            self.record(shared, RecordKind::Mark, 0, record::HEADER, |_| {})?;
            self.write_out(shared)?;
            self.sync(shared)?;
        }
        Ok(())
    }

    fn write_suspects(&mut self, shared: &LogInner, suspects: &Suspects) -> Result<(), LogError> {
        let len_max = record::suspects_len(suspects);
        self.record(shared, RecordKind::Suspects, 0, len_max, |b| record::put_suspects(b, suspects))
            .map(drop)
    }

    /// Records the suspects before anything else is written: the groups that lose entries
    /// if this process is killed, or those of an earlier process.
    pub(crate) fn begin(&mut self, shared: &LogInner, found: &Suspects) -> Result<(), LogError> {
        let suspects = shared.suspects_if_killed();
        if suspects == *found {
            return Ok(());
        }
        self.write_suspects(shared, &suspects)?;
        self.write_out(shared)?;
        self.sync(shared)
    }

    fn encode(&mut self, shared: &LogInner, op: &LogOp) -> Result<(), LogError> {
        match op {
            LogOp::Append { group, entries, committed, .. } => {
                for entry in entries {
                    let location = self.record(
                        shared,
                        RecordKind::Entry,
                        group.id,
                        record::entry_len(entry),
                        |b| record::put_entry(b, entry),
                    )?;
                    group.views.lock().durable.append(entry.log_id.index, location);
                    if self.buffer.len() >= BUFFER_BYTES {
                        self.write_out(shared)?;
                    }
                }
                if let Some(committed) = committed {
                    self.committed(shared, group, committed)?;
                }
            }
            LogOp::Vote { group, vote, .. } => {
                self.record(shared, RecordKind::Vote, group.id, record::HEADER + 17, |b| {
                    record::put_vote(b, vote)
                })?;
                group.views.lock().durable.vote = Some(*vote);
            }
            LogOp::Committed { group, committed } => self.committed(shared, group, committed)?,
            LogOp::Truncate { group, after, .. } => {
                let body =
                    |b: &mut Vec<u8>| record::put_optional(b, after.as_ref(), record::put_index);
                self.record(shared, RecordKind::TruncateAfter, group.id, record::HEADER + 9, body)?;
                group.views.lock().durable.truncate(*after);
            }
            LogOp::Purge { group, upto } => {
                self.record(shared, RecordKind::Purge, group.id, record::HEADER + 24, |b| {
                    record::put_log_id(b, upto)
                })?;
                group.views.lock().durable.purge(*upto);
            }
            LogOp::Destroy { group, .. } => {
                self.record(shared, RecordKind::Destroy, group.id, record::HEADER, |_| {})?;
                group.views.lock().durable.clear();
                shared.groups.lock().remove(&group.id);
            }
            LogOp::Cleared => self.write_suspects(shared, &shared.suspects_if_killed())?,
            LogOp::Flush { mark: true, .. } => {
                self.write_suspects(shared, &shared.suspects_if_closed())?
            }
            LogOp::Flush { mark: false, .. } => {}
        }
        Ok(())
    }

    fn committed(
        &mut self,
        shared: &LogInner,
        group: &Group,
        committed: &LogId,
    ) -> Result<(), LogError> {
        let body = |b: &mut Vec<u8>| record::put_optional(b, Some(committed), record::put_log_id);
        self.record(shared, RecordKind::Committed, group.id, record::HEADER + 25, body)?;
        group.views.lock().durable.committed = Some(*committed);
        Ok(())
    }

    /// Appends a record of at most `len_max` bytes to the buffer, and returns its
    /// location.
    fn record(
        &mut self,
        shared: &LogInner,
        kind: RecordKind,
        group: u64,
        len_max: usize,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<EntryLocation, LogError> {
        let mut at = self.next_offset();
        if at as usize + len_max > self.active.capacity as usize && at > self.head_end {
            self.roll(shared)?;
            at = self.next_offset();
        }
        let position = RecordPosition { segment: self.active.number, offset: at };
        self.is_marked = kind == RecordKind::Mark;
        let len = record::put(&mut self.buffer, position, self.active.synced(), kind, group, body);
        shared.stats.records.fetch_add(1, Ordering::Relaxed);
        Ok(EntryLocation { segment: self.active.clone(), offset: at, len })
    }

    fn next_offset(&self) -> u32 {
        self.active.end() + self.buffer.len() as u32
    }

    /// Writes the buffer. On a full disk the write waits: accepted operations are neither
    /// dropped nor failed. `Log::writable` has returned an error since before this point,
    /// and the write continues automatically when there is space.
    fn write_out(&mut self, shared: &LogInner) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end = self.active.end();
        let next_end = end + self.buffer.len() as u32;
        let room = self.active.capacity.saturating_sub(next_end) as usize;
        self.buffer.resize(self.buffer.len() + room.min(segment::TRAILER), 0);
        while let Err(e) =
            shared.options.disk.write(&self.active.file, &self.buffer, u64::from(end))
        {
            let e = LogError::io("write", &self.active.path, e);
            if !matches!(e, LogError::DiskFull { .. }) {
                return Err(e);
            }
            shared.refuse(e.clone());
            shared.wait_for_space().map_err(|_closed| e)?;
        }
        self.active.end.store(next_end, Ordering::Release);
        shared.stats.bytes.fetch_add(u64::from(next_end - end), Ordering::Relaxed);
        self.buffer.clear();
        let half = self.active.capacity / 2;
        if end < half && next_end >= half {
            shared.wake_maintenance();
        }
        if self.buffer.capacity() > 4 * BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn sync(&self, shared: &LogInner) -> Result<(), LogError> {
        if self.active.synced() == self.active.end() {
            return Ok(());
        }
        shared.timed_sync(&self.active)
    }

    /// Writes a mark, without a sync, if all records are on disk and the last one is not
    /// a mark (`anyway`: even then). If it does not fit, the next record begins another
    /// segment, which proves the same.
    pub(crate) fn mark(&mut self, shared: &LogInner, anyway: bool) -> Result<(), LogError> {
        shared.alive()?;
        let end = self.active.end();
        let is_at_rest =
            self.buffer.is_empty() && self.active.synced() == end && end > self.head_end;
        let fits =
            end as usize + record::HEADER + segment::TRAILER <= self.active.capacity as usize;
        if !fits || !is_at_rest || self.is_marked && !anyway {
            return Ok(());
        }
        self.record(shared, RecordKind::Mark, 0, record::HEADER, |_| {})?;
        self.write_out(shared)
    }

    /// Ends the active segment and begins the next one, which starts with the headers of
    /// all groups. So an old segment is needed only for its entries.
    fn roll(&mut self, shared: &LogInner) -> Result<(), LogError> {
        self.write_out(shared)?;
        self.sync(shared)?;
        let number = self.active.number + 1;
        let (file, spare_path) = shared.take_spare()?;
        let mut head = segment::header(number, self.active.end()).to_vec();
        for group in shared.groups.lock().values() {
            if let Some(state) = group.views.lock().durable.header() {
                let position = RecordPosition { segment: number, offset: head.len() as u32 };
                record::put(&mut head, position, 0, RecordKind::GroupHeader, group.id, |b| {
                    record::put_group_header(b, &state)
                });
            }
        }
        let suspects = shared.suspects_if_killed();
        if suspects != Suspects::default() {
            let position = RecordPosition { segment: number, offset: head.len() as u32 };
            record::put(&mut head, position, 0, RecordKind::Suspects, 0, |b| {
                record::put_suspects(b, &suspects)
            });
        }
        let path = shared.options.dir.join(segment::file_name(number));
        let end = head.len() as u32;
        head.extend_from_slice(&[0; segment::TRAILER]);
        let disk = &*shared.options.disk;
        disk.write(&file, &head, 0)
            .and_then(|()| disk.sync(&file))
            .map_err(|e| LogError::io("begin", &path, e))?;
        std::fs::rename(&spare_path, &path).map_err(|e| LogError::io("begin", &path, e))?;
        segment::sync_dir(&shared.options.dir)?;
        let next =
            Arc::new(Segment::new(number, path, file, shared.options.segment_bytes, end, end));
        *shared.active.lock() = next.clone();
        shared.spare_taken();
        self.sealed.push_back(std::mem::replace(&mut self.active, next));
        self.head_end = end;
        self.is_marked = false;
        self.count_segments(shared);
        Ok(())
    }

    /// Hands obsolete segments to the maintenance thread, oldest first. An obsolete
    /// segment behind a needed one stays, so that the log has no gaps.
    pub(crate) fn reclaim(&mut self, shared: &LogInner) {
        let mut obsolete = Vec::new();
        while self.sealed.front().is_some_and(|s| s.live() == 0) {
            obsolete.extend(self.sealed.pop_front());
        }
        if !obsolete.is_empty() {
            self.count_segments(shared);
            shared.remove_later(obsolete);
        }
    }

    pub(crate) fn count_segments(&self, shared: &LogInner) {
        let segments = self.sealed.len() as u64 + 1;
        shared.stats.segments.store(segments, Ordering::Relaxed);
        let bytes = self
            .sealed
            .iter()
            .chain([&self.active])
            .map(|s| u64::from(s.end().max(s.capacity)))
            .sum();
        shared.stats.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// True if old segments are mostly garbage, kept by a few entries that should be
    /// relocated.
    fn should_relocate(&self, shared: &LogInner) -> bool {
        let used: u64 = self.sealed.iter().map(|s| u64::from(s.end())).sum();
        let live: u64 = self.sealed.iter().map(|s| s.live()).sum();
        used > 2 * live + 4 * u64::from(shared.options.segment_bytes)
    }

    /// Relocates some of the needed entries of the oldest segment; returns true if there
    /// is more to do at once.
    pub(crate) fn relocate_entries(&mut self, shared: &LogInner) -> Result<bool, LogError> {
        shared.alive()?;
        if !self.should_relocate(shared) {
            return Ok(false);
        }
        let Some(oldest) = self.sealed.front().cloned() else { return Ok(false) };
        let groups: Vec<Arc<Group>> = shared.groups.lock().values().cloned().collect();
        let mut relocated = 0;
        for group in groups {
            let locations: Vec<(u64, EntryLocation)> = {
                let durable = &group.views.lock().durable;
                let here = durable
                    .locations
                    .iter()
                    .enumerate()
                    .filter(|(_, location)| Arc::ptr_eq(&location.segment, &oldest));
                here.map(|(i, location)| (durable.locations_first + i as u64, location.clone()))
                    .collect()
            };
            for (index, location) in locations {
                if relocated >= RELOCATE_BYTES_MAX {
                    return Ok(true);
                }
                let entry = location.read(group.id, index)?;
                let new = self.record(
                    shared,
                    RecordKind::Relocated,
                    group.id,
                    location.len as usize,
                    |b| record::put_entry(b, &entry),
                )?;
                // Written out first: a reader may find the new location at once.
                self.write_out(shared)?;
                relocated += new.len;
                shared.stats.relocated.fetch_add(1, Ordering::Relaxed);
                let durable = &mut group.views.lock().durable;
                let at = (index - durable.locations_first) as usize;
                new.hold();
                std::mem::replace(&mut durable.locations[at], new).release();
            }
        }
        self.reclaim(shared);
        Ok(self.should_relocate(shared))
    }
}

impl LogInner {
    /// Syncs a segment (fdatasync), counts and times it.
    pub(crate) fn timed_sync(&self, segment: &Segment) -> Result<(), LogError> {
        #[cfg(test)]
        if self.faults.sync_fails.load(Ordering::Relaxed) {
            return Err(LogError::io(
                "sync",
                &segment.path,
                std::io::Error::other("a test says so"),
            ));
        }
        let began = self.disk_monitor.begin(Instant::now());
        let outcome = segment.sync(&*self.options.disk);
        let took = self.disk_monitor.end(began, Instant::now());
        if !outcome? {
            // Another thread has synced it meanwhile.
            return Ok(());
        }
        self.stats.fsyncs.fetch_add(1, Ordering::Relaxed);
        self.stats.fsync_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.stats.note_fsync(took);
        self.fsync_seconds.record(took.as_secs_f64());
        if took > Duration::from_secs(1) {
            tracing::warn!(
                file = %segment.path.display(),
                seconds = took.as_secs_f64(),
                "slow fdatasync of the log"
            );
        }
        Ok(())
    }
}
