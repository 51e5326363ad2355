//! One group's part of the log in memory: the entries that readers see, and their places
//! on disk.
//!
//! There are two views, because writing is asynchronous. [`VisibleLog`] changes when a
//! call is made: an appended entry is readable before it is written, a truncated one is
//! gone at once. [`DurableLog`] changes when the writer processes the same call, in the
//! order of the queue. It holds the location of each entry, and the group's header for
//! the next segment.
//!
//! # Invariants
//! - Entries are contiguous: indexes `first..next`, no holes.
//! - An entry that is not in [`DurableLog`] is in the cache. The cache is the tail of the
//!   log, so it never drops an entry at or beyond `written`. Held by
//!   `acknowledged_writes_survive_crashes`, whose caches are tiny.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::LogError;
use super::record::{self, GroupHeader, RecordKind, RecordPosition};
use super::segment::Segment;
use crate::raft::types::{Entry, EntryPayload, LeaderId, LogId, Vote};

/// The location of an entry's record.
#[derive(Clone, Debug)]
pub(crate) struct EntryLocation {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl EntryLocation {
    /// Counts the entry as needed.
    pub(crate) fn hold(&self) {
        self.segment.live.fetch_add(u64::from(self.len), Ordering::Relaxed);
    }

    /// Counts the entry as obsolete.
    pub(crate) fn release(&self) {
        self.segment.live.fetch_sub(u64::from(self.len), Ordering::Relaxed);
    }

    /// Reads the entry and checks that it is the expected one.
    pub(crate) fn read(&self, group: u64, index: u64) -> Result<Entry, LogError> {
        let mut bytes = vec![0; self.len as usize];
        let path = &self.segment.path;
        self.segment
            .file
            .read_exact_at(&mut bytes, u64::from(self.offset))
            .map_err(|e| LogError::io("read", path, e))?;
        let corrupt =
            |why| LogError::Corrupt { path: path.clone(), offset: u64::from(self.offset), why };
        let bytes = Bytes::from(bytes);
        let position = RecordPosition { segment: self.segment.number, offset: self.offset };
        let raw = record::parse(&bytes, position).map_err(|flaw| corrupt(flaw.why()))?;
        if !matches!(raw.kind, RecordKind::Entry | RecordKind::Relocated)
            || raw.group != group
            || raw.len() != self.len
        {
            return Err(corrupt("another record stands where an entry was written"));
        }
        let entry = record::entry(&bytes.slice(record::HEADER..)).map_err(corrupt)?;
        if entry.log_id.index != index {
            return Err(corrupt("another entry stands where this one was written"));
        }
        Ok(entry)
    }
}

/// A group's part of the log.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: u64,
    /// Bytes of entries that are queued and not written yet.
    pub(crate) unwritten: AtomicU64,
    pub(crate) views: Mutex<GroupViews>,
}

/// Both views, behind the group's lock.
#[derive(Debug, Default)]
pub(crate) struct GroupViews {
    pub(crate) visible: VisibleLog,
    pub(crate) durable: DurableLog,
}

/// The log as readers see it.
#[derive(Debug, Default)]
pub(crate) struct VisibleLog {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    /// `committed` has changed since it was last queued.
    pub(crate) committed_dirty: bool,
    /// The group was destroyed; nothing may be written to it any more.
    pub(crate) destroyed: bool,
    /// Index of the first entry; equals `next` when there is none.
    pub(crate) first: u64,
    /// One past the last entry.
    pub(crate) next: u64,
    /// Entries below this index are written.
    pub(crate) written: u64,
    /// Counts truncations. A write that was in progress during one must not advance
    /// `written`.
    pub(crate) epoch: u64,
    /// First index of each run of entries of one leader.
    leaders: VecDeque<(u64, LeaderId)>,
    /// The tail of the entries.
    cache: VecDeque<Entry>,
    cache_bytes: u64,
}

/// The log as it is written to disk.
#[derive(Debug, Default)]
pub(crate) struct DurableLog {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) locations_first: u64,
    pub(crate) locations: VecDeque<EntryLocation>,
}

/// The bytes that an entry occupies in the cache.
fn cache_cost(entry: &Entry) -> u64 {
    let payload = match &entry.payload {
        EntryPayload::Normal(payload) => payload.0.len(),
        _ => 0,
    };
    (payload + size_of::<Entry>()) as u64
}

impl Group {
    pub(crate) fn new(id: u64) -> Group {
        Group { id, unwritten: AtomicU64::new(0), views: Mutex::default() }
    }
}

impl VisibleLog {
    /// The id of the last entry, or of the last purged one if there is none.
    pub(crate) fn last(&self) -> Option<LogId> {
        if self.first == self.next { self.purged } else { self.log_id(self.next - 1) }
    }

    /// The id of an entry that exists.
    pub(crate) fn log_id(&self, index: u64) -> Option<LogId> {
        if index < self.first || index >= self.next {
            return None;
        }
        let run = self.leaders.partition_point(|(first, _)| *first <= index);
        Some(LogId { leader_id: self.leaders[run - 1].1, index })
    }

    /// The last entry that is known to be committed: by openraft, or because it was
    /// purged after it had been applied.
    pub(crate) fn last_committed(&self) -> Option<LogId> {
        self.committed.into_iter().chain(self.purged).max_by_key(|id| id.index)
    }

    /// Records that the state machine has applied everything up to `applied`.
    pub(crate) fn note_applied(&mut self, applied: LogId) {
        if self.last_committed().is_none_or(|last_committed| last_committed.index < applied.index) {
            self.committed = Some(applied);
        }
    }

    /// Returns the reason why a leader whose log contains `entry` lacks entries that are
    /// committed here, or `None` if it does not. Raft never elects such a leader, but a
    /// majority that has lost the tail of its log does. openraft compares no ids up to
    /// the last committed entry, and goes on behind it as if nothing had happened. `vote`
    /// is the leader's, unless the leader says that the entry is committed: an earlier
    /// leader may have any uncommitted entry.
    pub(crate) fn contradiction(&self, vote: Option<&Vote>, entry: &LogId) -> Option<String> {
        let last_committed = self.last_committed()?;
        if vote.is_some_and(|vote| self.vote.is_some_and(|own| own > *vote)) {
            return None;
        }
        let agrees = match entry.index.cmp(&last_committed.index) {
            std::cmp::Ordering::Greater => entry.leader_id >= last_committed.leader_id,
            std::cmp::Ordering::Equal => *entry == last_committed,
            // Purged entries precede those that are still known.
            std::cmp::Ordering::Less => self
                .log_id(entry.index)
                .map_or(entry.leader_id <= last_committed.leader_id, |own| own == *entry),
        };
        (!agrees).then(|| {
            format!(
                "the group continued without entries that this replica had applied: entry \
                 {last_committed} is committed here, and the leader has {entry}"
            )
        })
    }

    /// Restarts the log behind `last`: its entries are not needed, or contradict the
    /// snapshot that ends there. The caller has truncated it.
    pub(crate) fn restart_after(&mut self, last: LogId) {
        assert!(self.first == self.next, "it was truncated");
        (self.purged, self.committed, self.committed_dirty) = (Some(last), None, false);
        (self.first, self.next, self.written) = (last.index + 1, last.index + 1, last.index + 1);
        self.leaders.clear();
    }

    /// The last id of each leader's run of entries within `from..=to`. openraft keeps
    /// these instead of all ids. (Its trait's documentation speaks of first ids; its code
    /// and its test suite expect the last.)
    pub(crate) fn key_log_ids(&self, from: u64, to: u64) -> Vec<LogId> {
        let ends = self.leaders.iter().skip(1).map(|(first, _)| first - 1).chain([to]);
        let runs =
            self.leaders.iter().zip(ends).filter(|((first, _), end)| *end >= from && *first <= to);
        runs.map(|(&(_, leader_id), end)| LogId { leader_id, index: end.min(to) }).collect()
    }

    /// Appends entries, which must continue the log.
    pub(crate) fn append(&mut self, entries: &[Entry], cached: &AtomicU64) -> Result<(), LogError> {
        let Some(head) = entries.first() else { return Ok(()) };
        let mut next = match (self.first == self.next, self.purged) {
            (true, None) => head.log_id.index,
            (true, Some(purged)) => purged.index + 1,
            (false, _) => self.next,
        };
        let start = next;
        for entry in entries {
            if entry.log_id.index != next {
                return Err(LogError::InvalidOperation(format!(
                    "append entry {} where {next} is next",
                    entry.log_id.index
                )));
            }
            next += 1;
        }
        if self.first == self.next {
            (self.first, self.written) = (start, start);
        }
        self.next = next;
        let mut bytes = 0;
        for entry in entries {
            self.note_leader(&entry.log_id);
            bytes += cache_cost(entry);
            self.cache.push_back(entry.clone());
        }
        self.cache_bytes += bytes;
        cached.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Records the leader of an entry that was just added.
    pub(crate) fn note_leader(&mut self, id: &LogId) {
        if self.leaders.back().is_none_or(|(_, leader)| *leader != id.leader_id) {
            self.leaders.push_back((id.index, id.leader_id));
        }
    }

    /// Drops the entries behind `after`, all of them if `None`.
    pub(crate) fn truncate(&mut self, after: Option<u64>, cached: &AtomicU64) {
        let next = after.map_or(0, |index| index.saturating_add(1)).max(self.first);
        if next >= self.next {
            return;
        }
        for _ in next..self.next {
            let Some(entry) = self.cache.pop_back() else { break };
            self.uncache(&entry, cached);
        }
        self.next = next;
        self.written = self.written.min(next);
        self.epoch += 1;
        while self.leaders.back().is_some_and(|(first, _)| *first >= next) {
            self.leaders.pop_back();
        }
    }

    /// Drops the entries up to `upto`, which may lie beyond the end of the log.
    pub(crate) fn purge(&mut self, upto: LogId, cached: &AtomicU64) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        let first = upto.index + 1;
        let cache_first = self.next - self.cache.len() as u64;
        for _ in cache_first..first.min(self.next) {
            let Some(entry) = self.cache.pop_front() else { break };
            self.uncache(&entry, cached);
        }
        self.first = first.max(self.first);
        self.next = self.next.max(self.first);
        self.written = self.written.max(self.first);
        while self.leaders.len() > 1 && self.leaders[1].0 <= self.first {
            self.leaders.pop_front();
        }
        if self.first == self.next {
            self.leaders.clear();
        }
    }

    /// Drops written entries from the cache, oldest first, until it holds at most `keep`
    /// bytes.
    pub(crate) fn evict(&mut self, keep: u64, cached: &AtomicU64) {
        while self.cache_bytes > keep
            && self.cache.front().is_some_and(|entry| entry.log_id.index < self.written)
        {
            let entry = self
                .cache
                .pop_front()
                .expect("`front` has just shown an entry, under the same lock");
            self.uncache(&entry, cached);
        }
    }

    /// The committed id, if it has changed since the last call.
    pub(crate) fn take_committed(&mut self) -> Option<LogId> {
        std::mem::take(&mut self.committed_dirty).then_some(self.committed)?
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    fn uncache(&mut self, entry: &Entry, cached: &AtomicU64) {
        let bytes = cache_cost(entry);
        self.cache_bytes -= bytes;
        cached.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl DurableLog {
    /// The group's header for a new segment; `None` when it would be empty.
    pub(crate) fn header(&self) -> Option<GroupHeader> {
        let first = (!self.locations.is_empty()).then_some(self.locations_first);
        let state =
            GroupHeader { vote: self.vote, purged: self.purged, committed: self.committed, first };
        (state != GroupHeader::default()).then_some(state)
    }

    pub(crate) fn append(&mut self, index: u64, location: EntryLocation) {
        if self.locations.is_empty() {
            self.locations_first = index;
        }
        assert_eq!(
            self.locations_first + self.locations.len() as u64,
            index,
            "the front admits entries in order only"
        );
        location.hold();
        self.locations.push_back(location);
    }

    pub(crate) fn truncate(&mut self, after: Option<u64>) {
        let next = after.map_or(0, |index| index.saturating_add(1));
        while self.locations_first + self.locations.len() as u64 > next {
            let Some(location) = self.locations.pop_back() else { break };
            location.release();
        }
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        while self.locations_first <= upto.index {
            let Some(location) = self.locations.pop_front() else { break };
            location.release();
            self.locations_first += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.locations.iter().for_each(EntryLocation::release);
        *self = DurableLog::default();
    }
}

/// The entries of a read: those to read from segments, then those from the cache.
#[derive(Debug, Default)]
pub(crate) struct ReadPlan {
    pub(crate) cold: Vec<(u64, EntryLocation)>,
    pub(crate) hot: Vec<Entry>,
}

impl GroupViews {
    /// The size of the largest run of `count` entries of `from..to`, counting those on
    /// disk; bytes.
    pub(crate) fn largest_run(&self, from: u64, to: u64, count: u64) -> u64 {
        let durable = &self.durable;
        let at = |index: u64| {
            index.saturating_sub(durable.locations_first).min(durable.locations.len() as u64)
                as usize
        };
        let (from, to) = (at(from), at(to));
        let locations: Vec<u64> = durable
            .locations
            .range(from..to.max(from))
            .map(|location| u64::from(location.len))
            .collect();
        locations.chunks(count as usize).map(|run| run.iter().sum()).max().unwrap_or(0)
    }

    /// The existing entries of `from..to`, from the start, within `bytes_max` bytes but
    /// at least one.
    pub(crate) fn plan_read(&self, from: u64, to: u64, bytes_max: u64) -> ReadPlan {
        let visible = &self.visible;
        let (from, to) = (from.max(visible.first), to.min(visible.next));
        let mut plan = ReadPlan::default();
        let cache_first = visible.next - visible.cache.len() as u64;
        let mut bytes = 0;
        for index in from..to {
            let before = bytes;
            if index < cache_first {
                let location =
                    &self.durable.locations[(index - self.durable.locations_first) as usize];
                bytes += u64::from(location.len);
                if before > 0 && bytes > bytes_max {
                    break;
                }
                plan.cold.push((index, location.clone()));
            } else {
                let entry = &visible.cache[(index - cache_first) as usize];
                bytes += cache_cost(entry);
                if before > 0 && bytes > bytes_max {
                    break;
                }
                plan.hot.push(entry.clone());
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: term.into(), node_id: 1 }, index }
    }

    #[test]
    fn a_leader_without_committed_entries_is_detected_by_log_ids() {
        // Entries up to 3 are purged, 4 to 6 are of term 2, 7 to 9 of term 5; those up to
        // 8 are committed.
        let leaders = VecDeque::from([(4, id(2, 4).leader_id), (7, id(5, 7).leader_id)]);
        let vote = |term, committed| Vote { leader_id: id(term, 0).leader_id, committed };
        let visible = VisibleLog {
            vote: Some(vote(5, true)),
            purged: Some(id(2, 3)),
            committed: Some(id(5, 8)),
            first: 4,
            next: 10,
            written: 10,
            leaders,
            ..VisibleLog::default()
        };
        let lacks = |entry| visible.contradiction(Some(&vote(6, true)), &entry).is_some();
        for agrees in
            [id(1, 2), id(2, 3), id(2, 6), id(5, 7), id(5, 8), id(5, 9), id(6, 9), id(6, 12)]
        {
            assert!(!lacks(agrees), "{agrees}");
        }
        for other in
            [id(6, 2), id(3, 6), id(4, 7), id(6, 7), id(4, 8), id(6, 8), id(4, 9), id(4, 12)]
        {
            assert!(lacks(other), "{other}");
        }
        // The entries of an earlier leader prove nothing, unless they are committed.
        assert!(visible.contradiction(Some(&vote(4, true)), &id(4, 9)).is_none());
        assert!(visible.contradiction(None, &id(4, 8)).is_some());
        assert!(VisibleLog::default().contradiction(Some(&vote(1, true)), &id(1, 1)).is_none());
    }
}
