//! openraft's log storage: one group's part of the node's shared [`Log`].
//!
//! # Invariants
//! - An entry is readable as soon as `append` returns; its callback comes once the log's
//!   durability is met.
//! - Votes and truncations are durable when they return, in every durability mode, and
//!   keep their order among the appends.
//! - `save_committed` and `purge` only queue; nothing waits for them. What a crash loses
//!   of them is learnt again.
//! - Damage is an error that names file and offset, never an entry left out. Held by
//!   openraft's own suite and `engine::log`'s tests.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::storage::RaftLogStorage;
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{SemaphorePermit, oneshot};

use crate::log::{DiskProblem, Group, Log, LogError, LogOp, ReadPlan};
use crate::mutants::{self, Rule};
use crate::raft::types::{Entry, Flushed, LogId, Types, Vote};

/// The most bytes of entries that are read at once for a follower; one entry is read
/// whatever its size.
const READ_BYTES_MAX: u64 = 4 << 20;

/// The number of entries that openraft reads at a time to apply them again
/// (`StorageHelper::reapply_committed`, 0.10.0-alpha.37).
const REPLAY_ENTRIES: u64 = 64;

/// A group's log: store and reader in one, cheap to clone.
#[derive(Clone, Debug)]
pub struct GroupLog {
    log: Arc<Log>,
    group: Arc<Group>,
}

/// A handle on a group's log and the disk under it that keeps neither open.
#[derive(Clone, Debug)]
pub(super) struct WeakGroupLog {
    log: Weak<Log>,
    group: Arc<Group>,
}

impl WeakGroupLog {
    /// As [`GroupLog::writable`].
    pub(super) fn writable(&self) -> Result<(), LogError> {
        let log = self.log.upgrade().ok_or(LogError::Closed)?;
        log.writable()?;
        log.check_backlog(&self.group)
    }

    /// The problem of the disk now, or of how the group's log gets there.
    pub(super) fn disk_problem(&self) -> Option<DiskProblem> {
        let log = self.log.upgrade()?;
        log.disk_problem().or_else(|| match log.check_backlog(&self.group) {
            Err(LogError::Behind { bytes }) => Some(DiskProblem::Behind(bytes)),
            _ => None,
        })
    }

    /// The problem of the disk within the last minute, and the duration of the last
    /// fsync.
    pub(super) fn recent_disk_state(&self) -> (Option<DiskProblem>, Duration) {
        self.log
            .upgrade()
            .map_or((None, Duration::ZERO), |log| (log.recent_disk_problem(), log.last_fsync()))
    }

    /// True when acknowledged entries may be missing.
    pub(super) fn is_suspect(&self) -> bool {
        self.log.upgrade().is_some_and(|log| log.is_suspect(self.group.id))
    }

    /// Ends the suspicion: all entries are there again, or the missing ones are lost.
    pub(super) fn clear(&self) {
        self.log.upgrade().into_iter().for_each(|log| log.clear(self.group.id));
    }

    /// The last entry.
    pub(super) fn last(&self) -> Option<LogId> {
        self.group.views.lock().visible.last()
    }

    /// The last vote.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.group.views.lock().visible.vote
    }

    /// The reason why the log of a leader of `vote` contradicts what is committed here,
    /// if it does; `committed` and `others` are entries that the leader has.
    pub(super) fn contradiction(
        &self,
        vote: &Vote,
        committed: Option<LogId>,
        others: impl IntoIterator<Item = LogId>,
    ) -> Option<String> {
        let visible = &self.group.views.lock().visible;
        let is_committed = committed.and_then(|entry| visible.contradiction(None, &entry));
        is_committed.or_else(|| {
            others.into_iter().find_map(|entry| visible.contradiction(Some(vote), &entry))
        })
    }
}

impl Log {
    /// The log of group `id`, empty when there was none. All handles of a group are one
    /// log; only one Raft may write to it.
    pub fn group_log(self: &Arc<Self>, id: u64) -> GroupLog {
        GroupLog { log: self.clone(), group: self.group(id) }
    }

    /// Removes everything of group `id`, durably. The group's Raft must have been shut
    /// down; its handles fail from here on.
    pub async fn destroy(&self, id: u64) -> Result<(), LogError> {
        self.alive()?;
        let group = self.group(id);
        let (done, wait) = oneshot::channel();
        {
            let visible = &mut group.views.lock().visible;
            visible.truncate(None, self.cached());
            visible.destroyed = true;
            self.push(LogOp::Destroy { group: group.clone(), done });
        }
        self.drive();
        finished(wait).await
    }
}

async fn finished(wait: oneshot::Receiver<Result<(), LogError>>) -> Result<(), LogError> {
    wait.await.unwrap_or(Err(LogError::Closed))
}

impl GroupLog {
    /// The group's id.
    pub fn id(&self) -> u64 {
        self.group.id
    }

    /// The node's log that this is a part of.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn watch(&self) -> WeakGroupLog {
        WeakGroupLog { log: Arc::downgrade(&self.log), group: self.group.clone() }
    }

    /// Fails while nothing may be proposed. As [`Log::writable`]; also fails while too
    /// much of this group waits for the disk ([`LogError::Behind`]).
    pub fn writable(&self) -> Result<(), LogError> {
        self.log.writable()?;
        self.log.check_backlog(&self.group)
    }

    /// Index range `first..next` of the entries that are there.
    pub fn range(&self) -> std::ops::Range<u64> {
        let visible = &self.group.views.lock().visible;
        visible.first..visible.next
    }

    /// Waits for a permit to read the committed entries after `applied`, which are to be
    /// applied again; the permit ends when it is dropped.
    pub(super) async fn replay_permit(&self, applied: u64) -> Option<SemaphorePermit<'_>> {
        let bytes = {
            let views = self.group.views.lock();
            let committed = views.visible.committed.map_or(0, |committed| committed.index);
            views.largest_run(applied + 1, committed + 1, REPLAY_ENTRIES)
        };
        self.log.replay_permit(bytes).await
    }

    /// The last purged entry; the state on disk has it.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.group.views.lock().visible.purged
    }

    /// The entry at an index, if it is there.
    pub(super) fn log_id(&self, index: u64) -> Option<LogId> {
        self.group.views.lock().visible.log_id(index)
    }

    /// The reason why a state that ends at `applied` does not fit this log, if so.
    pub(super) fn mismatch(&self, applied: Option<LogId>) -> Option<String> {
        let visible = &self.group.views.lock().visible;
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        if index(applied) < index(visible.purged) {
            let ends =
                applied.map_or("is empty".to_owned(), |applied| format!("ends at entry {applied}"));
            let begins = visible.first;
            return Some(format!(
                "the store {ends}, and the log begins at {begins}: the store is lost, or \
                 older than the log"
            ));
        }
        let applied = applied?;
        let own = visible
            .log_id(applied.index)
            .or(visible.purged.filter(|purged| purged.index == applied.index));
        own.filter(|own| *own != applied)
            .map(|own| format!("the store ends at entry {applied}, and the log has {own} there"))
    }

    /// Records that the state machine has everything up to `applied`.
    pub(super) fn note_applied(&self, applied: Option<LogId>) {
        applied
            .into_iter()
            .for_each(|applied| self.group.views.lock().visible.note_applied(applied));
    }

    /// Drops all entries and continues after `last`; the vote stays.
    pub(super) async fn restart_after(&self, last: LogId) -> Result<(), LogError> {
        let (done, wait) = oneshot::channel();
        self.change(|views| {
            views.visible.truncate(None, self.log.cached());
            Ok(LogOp::Truncate { group: self.group.clone(), after: None, done })
        })?;
        finished(wait).await?;
        self.change(|views| {
            views.visible.restart_after(last);
            Ok(LogOp::Purge { group: self.group.clone(), upto: last })
        })?;
        self.log.flush().await
    }

    /// Changes the visible log and queues the same operation for the disk, as one step;
    /// then makes sure that it is written.
    fn change(
        &self,
        change: impl FnOnce(&mut crate::log::GroupViews) -> Result<LogOp, LogError>,
    ) -> Result<(), LogError> {
        self.log.alive()?;
        {
            let mut views = self.group.views.lock();
            if views.visible.destroyed {
                return Err(LogError::InvalidOperation(format!(
                    "group {} was destroyed",
                    self.group.id
                )));
            }
            let op = change(&mut views)?;
            self.log.push(op);
        }
        self.log.drive();
        Ok(())
    }

    async fn read(&self, from: u64, to: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let ReadPlan { cold, hot } = self.group.views.lock().plan_read(from, to, bytes_max);
        if cold.is_empty() {
            return Ok(hot);
        }
        let group = self.group.id;
        let read = move || {
            cold.iter().map(|(index, slot)| slot.read(group, *index)).collect::<Result<Vec<_>, _>>()
        };
        // Off the runtime: a slow disk must not delay heartbeats.
        let read = tokio::task::spawn_blocking(read).await;
        let mut entries = read
            .map_err(|e| LogError::InvalidOperation(format!("read entries {from}..{to}: {e}")))??;
        entries.extend(hot);
        Ok(entries)
    }
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.read(from, to, u64::MAX).await?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.group.views.lock().visible.vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read(start, end, READ_BYTES_MAX).await?)
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        Ok(self.group.views.lock().visible.key_log_ids(range.start().index, range.end().index))
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let visible = &self.group.views.lock().visible;
        Ok(LogState { last_purged_log_id: visible.purged, last_log_id: visible.last() })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, wait) = oneshot::channel();
        self.change(|views| {
            views.visible.vote = Some(*vote);
            if mutants::breaks(Rule::KeepVote) {
                return Ok(LogOp::Flush { mark: false, done });
            }
            Ok(LogOp::Vote { group: self.group.clone(), vote: *vote, done })
        })?;
        Ok(finished(wait).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // The next append carries it, or the maintenance thread within a second: a record
        // of its own for each would double the writes.
        let visible = &mut self.group.views.lock().visible;
        visible.committed = committed;
        visible.committed_dirty = committed.is_some();
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.group.views.lock().visible.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: Flushed) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        Ok(self.change(|views| {
            views.visible.append(&entries, self.log.cached())?;
            let (epoch, committed) = (views.visible.epoch, views.visible.take_committed());
            Ok(LogOp::Append {
                group: self.group.clone(),
                entries,
                committed,
                epoch,
                done: callback,
            })
        })?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, wait) = oneshot::channel();
        self.change(|views| {
            let after = last_log_id.map(|id| id.index);
            views.visible.truncate(after, self.log.cached());
            Ok(LogOp::Truncate { group: self.group.clone(), after, done })
        })?;
        Ok(finished(wait).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        if self.group.views.lock().visible.purged.is_some_and(|purged| purged.index >= log_id.index)
        {
            return Ok(());
        }
        Ok(self.change(|views| {
            views.visible.purge(log_id, self.log.cached());
            Ok(LogOp::Purge { group: self.group.clone(), upto: log_id })
        })?)
    }
}
