//! The one writer: takes what is queued, writes it as one batch, syncs once, and calls
//! everyone back.
//!
//! # Life of a batch
//! 1. Callers change their group's front and queue an [`Op`]; fronts and queue are in the
//!    same order for each group.
//! 2. Whoever drives the writer (its thread; a caller that is about to sleep; in
//!    `Durability::Os` the caller itself) takes the whole queue.
//! 3. Each op becomes records, one after another; a record that does not fit begins the
//!    next segment.
//! 4. One write, and one fdatasync when an op needs it.
//! 5. Callbacks, in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::group::{Group, Slot};
use super::record::{self, Kind, Place, Suspects};
use super::segment::{self, Segment};
use super::{Durability, LogError, LogInner};
use crate::mutants::{self, Rule};
use crate::raft::types::{Entry, Flushed, LogId, Vote};

/// Tells a waiting caller how its op ended.
pub(crate) type Done = tokio::sync::oneshot::Sender<Result<(), LogError>>;

/// Something to write.
pub(crate) enum Op {
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
        done: Done,
    },
    Committed {
        group: Arc<Group>,
        committed: LogId,
    },
    Truncate {
        group: Arc<Group>,
        after: Option<u64>,
        done: Done,
    },
    Purge {
        group: Arc<Group>,
        upto: LogId,
    },
    Destroy {
        group: Arc<Group>,
        done: Done,
    },
    /// Make everything so far durable; `mark` says so in the log itself, so that damage
    /// to the last batch is told from a torn tail.
    Flush {
        mark: bool,
        done: Done,
    },
    /// Notes that a group is suspected no more.
    Cleared,
}

impl Op {
    /// Must the op be durable before it is called back? Votes, truncations and
    /// destructions are rare and what Raft's safety rests on, so they are in every mode.
    fn needs_sync(&self, durability: Durability) -> bool {
        match self {
            Op::Append { .. } => durability == Durability::Always,
            Op::Vote { .. } | Op::Truncate { .. } | Op::Destroy { .. } | Op::Flush { .. } => true,
            Op::Committed { .. } | Op::Purge { .. } | Op::Cleared => false,
        }
    }

    /// An upper bound of the bytes of its records.
    pub(crate) fn bytes_max(&self) -> usize {
        let records = match self {
            Op::Append { entries, .. } => entries.iter().map(record::entry_len).sum(),
            _ => 0,
        };
        // A committed id, a vote and the like.
        records + record::HEADER + 32
    }

    /// May the op have freed a segment?
    fn frees(&self) -> bool {
        matches!(self, Op::Truncate { .. } | Op::Purge { .. } | Op::Destroy { .. })
    }

    /// Calls back with an error; the op was never queued.
    pub(crate) fn refuse(self, why: LogError) {
        self.finish(Err(why));
    }

    /// Calls an append back before anything is written; for [`Rule::SyncBeforeAnswer`].
    pub(crate) fn answered_early(mut self) -> Op {
        if let Op::Append { done, .. } = &mut self {
            std::mem::replace(done, Flushed::Noop).io_completed(Ok(()));
        }
        self
    }

    fn finish(self, result: Result<(), LogError>) {
        match self {
            Op::Append { done, .. } => done.io_completed(result.map_err(std::io::Error::from)),
            Op::Vote { done, .. }
            | Op::Truncate { done, .. }
            | Op::Destroy { done, .. }
            | Op::Flush { done, .. } => {
                // A caller that no longer waits does not want to know.
                let _ = done.send(result);
            }
            Op::Committed { .. } | Op::Purge { .. } | Op::Cleared => {}
        }
    }
}

/// Records are written out at the latest when so many bytes of them wait.
const BUFFER_BYTES: usize = 1 << 20;
/// How much of an old segment is moved at a time, so that appends wait little.
const MOVE_BYTES: u32 = 256 << 10;
/// How late appends are written that were answered before.
const MUTANT_DELAY: Duration = Duration::from_millis(300);

pub(crate) struct Writer {
    pub(crate) active: Arc<Segment>,
    /// Where the head of `active` ends: a record that does not fit behind it fits nowhere
    /// and may grow the file.
    pub(crate) head_end: u32,
    pub(crate) sealed: VecDeque<Arc<Segment>>,
    /// Records that will stand at `active`'s end.
    pub(crate) buffer: Vec<u8>,
    /// The last record is a mark.
    is_marked: bool,
}

// After an error here the log is poisoned, so nobody sees a view of the disk that is
// ahead of it.
impl Writer {
    pub(crate) fn new(active: Arc<Segment>, sealed: VecDeque<Arc<Segment>>) -> Writer {
        Writer { active, head_end: segment::HEADER, sealed, buffer: Vec::new(), is_marked: false }
    }

    /// Writes a batch and calls everyone back.
    pub(crate) fn run(&mut self, shared: &LogInner, ops: &mut Vec<Op>) {
        if mutants::breaks(Rule::SyncBeforeAnswer)
            && ops.iter().all(|op| matches!(op, Op::Append { .. }))
        {
            std::thread::sleep(MUTANT_DELAY);
        }
        let sync = ops.iter().any(|op| op.needs_sync(shared.options.durability));
        let frees = ops.iter().any(Op::frees);
        let result = shared.alive().and_then(|()| self.write_batch(shared, ops, sync));
        if let Err(e) = &result {
            shared.poison(e);
        } else {
            shared.stats.batches.fetch_add(1, Ordering::Relaxed);
        }
        for op in ops.drain(..) {
            shared.uncount_unwritten(&op);
            if let (Ok(()), Op::Append { group, entries, epoch, .. }) = (&result, &op)
                && let Some(last) = entries.last()
            {
                let front = &mut group.inside.lock().front;
                if front.epoch == *epoch {
                    front.written = front.written.max(last.log_id.index + 1);
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

    fn write_batch(&mut self, shared: &LogInner, ops: &[Op], sync: bool) -> Result<(), LogError> {
        for op in ops {
            self.encode(shared, op)?;
        }
        self.write_out(shared)?;
        if sync {
            self.sync(shared)?;
        }
        // A mark is the one record that is only worth something when what it speaks of is
        // already on the disk.
        if ops.iter().any(|op| matches!(op, Op::Flush { mark: true, .. })) {
            self.record(shared, Kind::Mark, 0, record::HEADER, |_| {})?;
            self.write_out(shared)?;
            self.sync(shared)?;
        }
        Ok(())
    }

    fn suspect(&mut self, shared: &LogInner, suspects: &Suspects) -> Result<(), LogError> {
        let len_max = record::suspects_len(suspects);
        self.record(shared, Kind::Suspects, 0, len_max, |b| record::put_suspects(b, suspects))
            .map(drop)
    }

    /// Before anything else is written: what may be lost if the log is not closed, or
    /// what an earlier process has left open.
    pub(crate) fn begin(&mut self, shared: &LogInner, found: &Suspects) -> Result<(), LogError> {
        let suspects = shared.unclosed();
        if suspects == *found {
            return Ok(());
        }
        self.suspect(shared, &suspects)?;
        self.write_out(shared)?;
        self.sync(shared)
    }

    fn encode(&mut self, shared: &LogInner, op: &Op) -> Result<(), LogError> {
        match op {
            Op::Append { group, entries, committed, .. } => {
                for entry in entries {
                    let slot = self.record(
                        shared,
                        Kind::Entry,
                        group.id,
                        record::entry_len(entry),
                        |b| record::put_entry(b, entry),
                    )?;
                    group.inside.lock().disk.append(entry.log_id.index, slot);
                    if self.buffer.len() >= BUFFER_BYTES {
                        self.write_out(shared)?;
                    }
                }
                if let Some(committed) = committed {
                    self.committed(shared, group, committed)?;
                }
            }
            Op::Vote { group, vote, .. } => {
                self.record(shared, Kind::Vote, group.id, record::HEADER + 17, |b| {
                    record::put_vote(b, vote)
                })?;
                group.inside.lock().disk.vote = Some(*vote);
            }
            Op::Committed { group, committed } => self.committed(shared, group, committed)?,
            Op::Truncate { group, after, .. } => {
                let body =
                    |b: &mut Vec<u8>| record::put_optional(b, after.as_ref(), record::put_index);
                self.record(shared, Kind::TruncateAfter, group.id, record::HEADER + 9, body)?;
                group.inside.lock().disk.truncate(*after);
            }
            Op::Purge { group, upto } => {
                self.record(shared, Kind::Purge, group.id, record::HEADER + 24, |b| {
                    record::put_log_id(b, upto)
                })?;
                group.inside.lock().disk.purge(*upto);
            }
            Op::Destroy { group, .. } => {
                self.record(shared, Kind::Destroy, group.id, record::HEADER, |_| {})?;
                group.inside.lock().disk.clear();
                shared.groups.lock().remove(&group.id);
            }
            Op::Cleared => self.suspect(shared, &shared.unclosed())?,
            Op::Flush { mark: true, .. } => self.suspect(shared, &shared.suspected())?,
            Op::Flush { mark: false, .. } => {}
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
        self.record(shared, Kind::Committed, group.id, record::HEADER + 25, body)?;
        group.inside.lock().disk.committed = Some(*committed);
        Ok(())
    }

    /// Puts a record of at most `len_max` bytes behind the others and says where it will
    /// be.
    fn record(
        &mut self,
        shared: &LogInner,
        kind: Kind,
        group: u64,
        len_max: usize,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Slot, LogError> {
        let mut at = self.next_offset();
        if at as usize + len_max > self.active.capacity as usize && at > self.head_end {
            self.roll(shared)?;
            at = self.next_offset();
        }
        let place = Place { segment: self.active.number, offset: at };
        self.is_marked = kind == Kind::Mark;
        let len = record::put(&mut self.buffer, place, self.active.synced(), kind, group, body);
        shared.stats.records.fetch_add(1, Ordering::Relaxed);
        Ok(Slot { segment: self.active.clone(), offset: at, len })
    }

    fn next_offset(&self) -> u32 {
        self.active.end() + self.buffer.len() as u32
    }

    /// Writes what is buffered. A full disk stalls it: what was accepted is neither
    /// dropped nor refused, `Log::writable` has been saying so since before this point,
    /// and the write goes on by itself when there is space.
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
            shared.wake_keeper();
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

    /// Writes a mark behind records that are all on the disk, unless there is one already
    /// (`anyway`: then too); it is not synced. Where there is no room for it, the next
    /// record begins another segment, which says as much.
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
        self.record(shared, Kind::Mark, 0, record::HEADER, |_| {})?;
        self.write_out(shared)
    }

    /// Ends the active segment and begins the next, whose head says all that is worth
    /// keeping of the groups' small state; so an old segment is needed for its entries
    /// only.
    fn roll(&mut self, shared: &LogInner) -> Result<(), LogError> {
        self.write_out(shared)?;
        self.sync(shared)?;
        let number = self.active.number + 1;
        let (file, spare_path) = shared.take_spare()?;
        let mut head = segment::header(number, self.active.end()).to_vec();
        for group in shared.groups.lock().values() {
            if let Some(state) = group.inside.lock().disk.state() {
                let place = Place { segment: number, offset: head.len() as u32 };
                record::put(&mut head, place, 0, Kind::State, group.id, |b| {
                    record::put_state(b, &state)
                });
            }
        }
        let suspects = shared.unclosed();
        if suspects != Suspects::default() {
            let place = Place { segment: number, offset: head.len() as u32 };
            record::put(&mut head, place, 0, Kind::Suspects, 0, |b| {
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

    /// Hands segments that nobody needs to the keeper, oldest first; one behind a needed
    /// one waits, so that the log has no gaps.
    pub(crate) fn reclaim(&mut self, shared: &LogInner) {
        let mut doomed = Vec::new();
        while self.sealed.front().is_some_and(|s| s.live() == 0) {
            doomed.extend(self.sealed.pop_front());
        }
        if !doomed.is_empty() {
            self.count_segments(shared);
            shared.doom(doomed);
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

    /// Is so much of the disk garbage, held by a few entries in an old segment, that they
    /// should move?
    fn should_move(&self, shared: &LogInner) -> bool {
        let used: u64 = self.sealed.iter().map(|s| u64::from(s.end())).sum();
        let live: u64 = self.sealed.iter().map(|s| s.live()).sum();
        used > 2 * live + 4 * u64::from(shared.options.segment_bytes)
    }

    /// Writes some of the oldest segment's needed entries again; gives whether there is
    /// more to do at once.
    pub(crate) fn move_some(&mut self, shared: &LogInner) -> Result<bool, LogError> {
        shared.alive()?;
        if !self.should_move(shared) {
            return Ok(false);
        }
        let Some(oldest) = self.sealed.front().cloned() else { return Ok(false) };
        let groups: Vec<Arc<Group>> = shared.groups.lock().values().cloned().collect();
        let mut moved = 0;
        for group in groups {
            let slots: Vec<(u64, Slot)> = {
                let disk = &group.inside.lock().disk;
                let here = disk
                    .slots
                    .iter()
                    .enumerate()
                    .filter(|(_, slot)| Arc::ptr_eq(&slot.segment, &oldest));
                here.map(|(i, slot)| (disk.slots_first + i as u64, slot.clone())).collect()
            };
            for (index, slot) in slots {
                if moved >= MOVE_BYTES {
                    return Ok(true);
                }
                let entry = slot.read(group.id, index)?;
                let new = self.record(shared, Kind::Moved, group.id, slot.len as usize, |b| {
                    record::put_entry(b, &entry)
                })?;
                // A reader may find the new place before the bytes are there, so they go
                // out first.
                self.write_out(shared)?;
                moved += new.len;
                shared.stats.moved.fetch_add(1, Ordering::Relaxed);
                let disk = &mut group.inside.lock().disk;
                let at = (index - disk.slots_first) as usize;
                new.hold();
                std::mem::replace(&mut disk.slots[at], new).release();
            }
        }
        self.reclaim(shared);
        Ok(self.should_move(shared))
    }
}

impl LogInner {
    /// fdatasync, counted and timed.
    pub(crate) fn timed_sync(&self, segment: &Segment) -> Result<(), LogError> {
        #[cfg(test)]
        if self.faults.sync_fails.load(Ordering::Relaxed) {
            return Err(LogError::io(
                "sync",
                &segment.path,
                std::io::Error::other("a test says so"),
            ));
        }
        let began = self.watch.begin(Instant::now());
        let outcome = segment.sync(&*self.options.disk);
        let took = self.watch.end(began, Instant::now());
        if !outcome? {
            // Somebody else has synced it meanwhile.
            return Ok(());
        }
        self.stats.fsyncs.fetch_add(1, Ordering::Relaxed);
        self.stats.fsync_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.stats.note_fsync(took);
        self.fsync_seconds.record(took.as_secs_f64());
        if took > Duration::from_secs(1) {
            tracing::warn!(file = %segment.path.display(), seconds = took.as_secs_f64(), "slow fdatasync of the log");
        }
        Ok(())
    }
}
