//! Recovery: reads the log at a start, finds its groups and their entries, and the end at
//! which writing continues.
//!
//! # Torn tail or damage?
//! A segment that has a successor was complete and on disk before the successor got its
//! name, and the successor records its end. Every record of such a segment must be
//! intact; anything else is damage, and the log does not open.
//!
//! The last segment ends where its records end. Behind the last record are zeros, then
//! earlier contents of the file, and, after a crash in the middle of a write, any part of
//! the batch that was being written. Disks persist pages in any order, so intact records
//! may lie *behind* a broken one without any damage. The `synced` number of each record
//! distinguishes the two cases. A batch is acknowledged (with `Durability::Always`) only
//! after its sync, and everything written after a sync carries the synced offset in
//! `synced`. So:
//!
//! - Let X be the offset of the first thing that is not an intact record, and S the
//!   largest `synced` of any intact record behind X, at any offset.
//! - S > X: the bytes at X were on disk once, and have changed. This is damage: an error,
//!   and nothing is changed.
//! - Otherwise nothing shows that the bytes at X were ever synced. If there are zeros at
//!   X and no intact record behind them, the log ends there. Else the tail is torn: it is
//!   cut at X with a warning that names file and offset, and overwritten with zeros, so
//!   that no stale record can line up with a new one later.
//!
//! One case remains: damage in the very last batch, with nothing written behind it, looks
//! like a torn write of that batch. So a clean close ends the log with a mark, and an
//! idle log gets one within two seconds (`maintenance.rs`).
//!
//! An intact record of an unknown kind was written by a newer build
//! ([`LogError::Newer`]): it is neither damaged nor torn.
//!
//! A record that is found "at any offset" by accident, because a client stored its bytes
//! or because the file contained it earlier, does not count: the checksum covers segment
//! and offset.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::group::{EntryLocation, Group, GroupViews};
use super::record::{
    self, BodyReader, FormatError, RawRecord, RecordKind, RecordPosition, Suspects,
};
use super::scan::RangeChecksums;
use super::segment::{self, Segment};
use super::{LogError, LogOptions};
use crate::raft::types::{LeaderId, LogId, Vote};

pub(crate) struct Recovered {
    pub(crate) groups: HashMap<u64, Arc<Group>>,
    pub(crate) sealed: VecDeque<Arc<Segment>>,
    pub(crate) active: Arc<Segment>,
    /// The suspects of the last record of that kind.
    pub(crate) suspects: Suspects,
}

/// A segment's file, and the end of its predecessor from its header.
struct SegmentFile {
    number: u64,
    path: PathBuf,
    prev_end: u32,
}

pub(crate) fn recover(options: &LogOptions) -> Result<Recovered, LogError> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|e| LogError::io("create", dir, e))?;
    segment::remove_spare(dir)?;
    let found = find(dir)?;
    if found.is_empty() {
        return if options.must_exist {
            Err(LogError::Missing { dir: dir.clone() })
        } else {
            begin(options)
        };
    }
    let mut replay = Replay::default();
    let mut segments = VecDeque::new();
    for (i, this) in found.iter().enumerate() {
        segments.push_back(read_segment(options, this, found.get(i + 1), &mut replay)?);
    }
    let active = segments
        .pop_back()
        .expect("an empty directory has returned above, and each file is a segment");
    let Replay { groups, suspects } = replay;
    let groups =
        groups.into_iter().map(|(id, replayed)| Ok((id, Arc::new(replayed.finish(dir, id)?))));
    Ok(Recovered {
        groups: groups.collect::<Result<_, LogError>>()?,
        sealed: segments,
        active,
        suspects,
    })
}

/// Creates the first segment of a new log.
fn begin(options: &LogOptions) -> Result<Recovered, LogError> {
    let (file, spare_path) =
        segment::spare(&options.dir, options.segment_bytes, options.preallocate)?;
    let path = options.dir.join(segment::file_name(1));
    file.write_all_at(&segment::header(1, 0), 0)
        .and_then(|()| file.sync_data())
        .map_err(|e| LogError::io("begin", &path, e))?;
    std::fs::rename(&spare_path, &path).map_err(|e| LogError::io("begin", &path, e))?;
    segment::sync_dir(&options.dir)?;
    if let Some(parent) = options.dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        segment::sync_dir(parent)?;
    }
    let active =
        Segment::new(1, path, file, options.segment_bytes, segment::HEADER, segment::HEADER);
    Ok(Recovered {
        groups: HashMap::new(),
        sealed: VecDeque::new(),
        active: Arc::new(active),
        suspects: Suspects::default(),
    })
}

/// Lists the segments in order, and checks that no number is missing.
fn find(dir: &Path) -> Result<Vec<SegmentFile>, LogError> {
    let mut numbers = Vec::new();
    for file in std::fs::read_dir(dir).map_err(|e| LogError::io("list", dir, e))? {
        let file = file.map_err(|e| LogError::io("list", dir, e))?;
        numbers.extend(file.file_name().to_str().and_then(segment::number_of));
    }
    numbers.sort_unstable();
    let mut found: Vec<SegmentFile> = Vec::new();
    for number in numbers {
        let path = dir.join(segment::file_name(number));
        if let Some(before) = found.last()
            && before.number + 1 != number
        {
            let missing = dir.join(segment::file_name(before.number + 1));
            return Err(LogError::Corrupt {
                path: missing,
                offset: 0,
                why: "a segment is missing between others",
            });
        }
        let mut header = Vec::new();
        let file = File::open(&path).map_err(|e| LogError::io("open", &path, e))?;
        std::io::Read::read_to_end(
            &mut std::io::Read::take(file, u64::from(segment::HEADER)),
            &mut header,
        )
        .map_err(|e| LogError::io("read", &path, e))?;
        let prev_end =
            segment::read_header(&header, number).map_err(|flaw| flawed(&path, 0, flaw))?;
        found.push(SegmentFile { number, path, prev_end });
    }
    Ok(found)
}

fn flawed(path: &Path, offset: u64, flaw: FormatError) -> LogError {
    let path = path.to_owned();
    match flaw {
        FormatError::Broken(why) => LogError::Corrupt { path, offset, why },
        FormatError::Newer(why) => LogError::Newer { path, offset, why },
    }
}

fn read_segment(
    options: &LogOptions,
    this: &SegmentFile,
    next: Option<&SegmentFile>,
    replay: &mut Replay,
) -> Result<Arc<Segment>, LogError> {
    let path = &this.path;
    let corrupt =
        |offset: usize, why| LogError::Corrupt { path: path.clone(), offset: offset as u64, why };
    let bytes = std::fs::read(path).map_err(|e| LogError::io("read", path, e))?;
    if u32::try_from(bytes.len()).is_err() {
        return Err(corrupt(u32::MAX as usize, "a segment of 4 GiB or more"));
    }
    let records = match next {
        None => bytes.as_slice(),
        Some(next) => {
            let end = next.prev_end as usize;
            bytes.get(..end).filter(|b| b.len() >= segment::HEADER as usize).ok_or_else(|| {
                corrupt(bytes.len(), "the segment is shorter than its successor says")
            })?
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| LogError::io("open", path, e))?;
    let capacity = options.segment_bytes.max(bytes.len() as u32);
    let segment = Arc::new(Segment::new(this.number, path.clone(), file, capacity, 0, 0));
    let mut at = segment::HEADER as usize;
    // The offset up to which the segment is known to be on disk.
    let mut synced = at as u32;
    while at < records.len() {
        let position = RecordPosition { segment: this.number, offset: at as u32 };
        let raw = match record::parse(&records[at..], position) {
            Ok(raw) => raw,
            Err(FormatError::Broken(why)) if next.is_none() => {
                cut_tail(&segment, &bytes, at, why)?;
                break;
            }
            Err(flaw) => return Err(flawed(path, at as u64, flaw)),
        };
        synced = synced.max(raw.synced);
        let location =
            EntryLocation { segment: segment.clone(), offset: at as u32, len: raw.len() };
        at += raw.len() as usize;
        apply(replay, &raw, location).map_err(|why| corrupt(at - raw.len() as usize, why))?;
    }
    // A killed process leaves dirty pages in the page cache, on which nothing from here
    // on may depend. After a failed sync Linux counts such pages as clean, so that
    // another sync would not write them: they are rewritten.
    segment.end.store(at as u32, std::sync::atomic::Ordering::Release);
    if next.is_none() && (synced as usize) < at {
        let unsure = &bytes[synced as usize..at];
        options
            .disk
            .write(&segment.file, unsure, u64::from(synced))
            .map_err(|e| LogError::io("write again", path, e))?;
    }
    segment.sync(&*options.disk)?;
    Ok(segment)
}

/// Cuts the tail at offset `at` of the last segment if a crash tore it, or reports it as
/// damage.
fn cut_tail(segment: &Segment, bytes: &[u8], at: usize, why: &'static str) -> Result<(), LogError> {
    let Some(last) = bytes[at..].iter().rposition(|b| *b != 0) else { return Ok(()) };
    let tail = &bytes[..at + last + 1];
    let mut is_torn = bytes[at..].iter().take(segment::TRAILER).any(|b| *b != 0);
    // The record's own trailing zeros are part of it, so the whole file is searched.
    let ranges = RangeChecksums::new(bytes, at);
    for offset in at + 1..tail.len() {
        let tells = |claim: &record::RecordHeader| !is_torn || claim.synced as usize > at;
        match ranges.record(segment.number, offset, tells) {
            Some(claim) if claim.synced as usize > at => {
                return Err(LogError::Corrupt {
                    path: segment.path.clone(),
                    offset: at as u64,
                    why,
                });
            }
            Some(_) => is_torn = true,
            None => {}
        }
    }
    if !is_torn {
        return Ok(());
    }
    tracing::warn!(
        file = %segment.path.display(), offset = at, bytes = tail.len() - at, why,
        "the log's tail was torn by a crash before it was acknowledged; cut off",
    );
    let zeros = vec![0; tail.len() - at];
    segment
        .file
        .write_all_at(&zeros, at as u64)
        .map_err(|e| LogError::io("cut the tail of", &segment.path, e))
}

/// The result of the records read so far.
#[derive(Default)]
struct Replay {
    groups: BTreeMap<u64, ReplayedGroup>,
    suspects: Suspects,
}

/// A group whose records are being read. Entries may have holes until the end, since a
/// relocated entry comes after its successors.
#[derive(Default)]
struct ReplayedGroup {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    entries: BTreeMap<u64, (LeaderId, EntryLocation)>,
    /// The first entry that must exist, according to a group header.
    first: Option<u64>,
}

fn apply(
    replay: &mut Replay,
    raw: &RawRecord<'_>,
    location: EntryLocation,
) -> Result<(), &'static str> {
    let mut body = BodyReader(raw.body);
    if raw.kind == RecordKind::Mark {
        return body.end();
    }
    if raw.kind == RecordKind::Suspects {
        replay.suspects = body.suspects()?;
        return body.end();
    }
    if raw.kind == RecordKind::Destroy {
        replay.groups.remove(&raw.group);
        return body.end();
    }
    let group = replay.groups.entry(raw.group).or_default();
    match raw.kind {
        RecordKind::Entry | RecordKind::Relocated => {
            let id = body.log_id()?;
            let before = group.entries.insert(id.index, (id.leader_id, location));
            if raw.kind == RecordKind::Entry
                && (before.is_some() || group.purged.is_some_and(|p| p.index >= id.index))
            {
                return Err("an entry was written twice");
            }
            return Ok(());
        }
        RecordKind::Vote => group.vote = Some(body.vote()?),
        RecordKind::Committed => group.committed = body.optional(BodyReader::log_id)?,
        RecordKind::TruncateAfter => {
            let next = body.optional(BodyReader::index)?.map_or(0, |index| index.saturating_add(1));
            group.entries.split_off(&next);
            group.first = group.first.filter(|first| *first < next);
        }
        RecordKind::Purge => {
            group.purge(body.log_id()?);
            group.first = None;
        }
        RecordKind::GroupHeader => {
            let state = body.group_header()?;
            (group.vote, group.committed, group.first) = (state.vote, state.committed, state.first);
            if let Some(purged) = state.purged {
                group.purge(purged);
            }
        }
        RecordKind::Destroy | RecordKind::Mark | RecordKind::Suspects => {}
    }
    body.end()
}

impl ReplayedGroup {
    fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&upto.index.saturating_add(1));
        self.purged = Some(upto);
    }

    /// Checks that the group is complete, and builds it.
    fn finish(self, dir: &Path, id: u64) -> Result<Group, LogError> {
        let incomplete = |why| LogError::Incomplete { dir: dir.to_owned(), group: id, why };
        let mut views = GroupViews::default();
        let GroupViews { visible, durable } = &mut views;
        (visible.vote, visible.purged) = (self.vote, self.purged);
        (durable.vote, durable.purged) = (self.vote, self.purged);
        let first = self
            .purged
            .map(|purged| purged.index + 1)
            .filter(|_| !self.entries.is_empty())
            .or(self.first);
        let start = first.or(self.entries.keys().next().copied()).unwrap_or(0);
        visible.first = self
            .entries
            .keys()
            .next()
            .copied()
            .unwrap_or(self.purged.map_or(0, |purged| purged.index + 1));
        visible.next = visible.first;
        if first.is_some() && (self.entries.is_empty() || visible.first != start) {
            return Err(incomplete(format!("its entries should begin at {start}")));
        }
        for (index, (leader_id, location)) in self.entries {
            if index != visible.next {
                return Err(incomplete(format!("entry {} is missing", visible.next)));
            }
            visible.next += 1;
            visible.note_leader(&LogId { leader_id, index });
            durable.append(index, location);
        }
        visible.written = visible.next;
        // A committed id decides what is replayed. One beyond the log, or of an entry
        // that was replaced, means nothing.
        let is_there = |committed: &LogId| {
            visible.log_id(committed.index).or(visible.purged) == Some(*committed)
        };
        visible.committed = self.committed.filter(is_there);
        durable.committed = visible.committed;
        let group = Group::new(id);
        *group.views.lock() = views;
        Ok(group)
    }
}
