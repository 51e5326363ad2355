//! A partition's records: one RocksDB per replica, behind a narrow interface.
//!
//! RocksDB's own log is off. Instead the Raft log is replayed from the entry after
//! [`Store::flushed`]. That point is written in the same batch as the data up to it, and
//! a flush includes all families at the same moment. So the state on disk is always that
//! after some whole entry.
//!
//! # Life of a write
//! [`Store::apply`] checks the batches of the entries and puts their records, with the
//! last entry's log id, into a hash table in front of RocksDB's memtables
//! (`write_buffer.rs`, `hash_memtable.rs`). A thread moves them to the memtables when
//! there are many, or when the store is idle (`memtable_writer.rs`). Range deletes and
//! clears go to the memtables at once, behind all buffered records. A flush puts the
//! memtables on disk: when they are large enough, when the store is idle, or on
//! [`Store::flush`]. After a crash the entries that were not flushed are replayed from
//! the log.
//!
//! # Layout
//! ```text
//! <path>/current     the name of the directory in use, "db-<n>"
//! <path>/db-<n>/     RocksDB: families default, head, cell
//! ```
//! Two records in `default` are the store's own: `\0applied` (version u8 = 2, index u64
//! BE, a byte 1 and the last dependency or a byte 0, log id) and `\0membership`. Frozen
//! examples: `tests/vectors/store.txt`.
//!
//! # Invariants
//! - The state on disk is that after exactly the entry that `\0applied` names
//!   (`tests/store.rs`, `a_crash_loses_whole_entries_only`).
//! - Only [`Store::apply`] writes to the families.

mod background;
mod compaction_filter;
mod db;
mod directory;
mod fault;
mod hash_memtable;
mod health;
mod manual_compaction;
mod memtable_budget;
mod memtable_writer;
mod options;
mod progress;
mod snapshot;
mod stats;
mod write_buffer;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use crate::batch::{self, BatchDependency, Family};
pub use compaction_filter::{Liveness, Owner};
use db::{Cleared, Db};
pub use fault::Fault;
use health::ChangeCounter;
pub use health::StoreHealth;
pub use manual_compaction::ManualCompaction;
pub use options::{SharedResources, StoreSettings};
pub use snapshot::Snapshot;
pub use stats::{StoreSizes, StoreStats};
use write_buffer::PointWrites;

const APPLIED: &[u8] = b"\0applied";
const MEMBERSHIP: &[u8] = b"\0membership";
/// The version of the `\0applied` record.
const APPLIED_VERSION: u8 = 2;
/// The time that a clear waits for readers of older states. After it, compaction removes
/// their files.
const CLEAR_READERS_TIMEOUT: Duration = Duration::from_millis(200);

/// One Raft entry for [`Store::apply`].
#[derive(Debug, Clone)]
pub struct EntryWrite {
    /// The entry's index.
    pub index: u64,
    /// The entry's whole log id, encoded by the Raft side and opaque here.
    pub log_id: Bytes,
    /// The entry's batch ([`crate::batch`]); empty for an entry that changes no records.
    pub batch: Bytes,
    /// The membership that the entry sets, encoded by the Raft side.
    pub membership: Option<Bytes>,
}

/// The last entry that a store has applied, and the state with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedPoint {
    /// The entry's index.
    pub index: u64,
    /// The entry's whole log id, as given to [`Store::apply`].
    pub log_id: Bytes,
    /// The membership in force, as given to [`Store::apply`].
    pub membership: Option<Bytes>,
    /// The dependency of the last batch that had one and took effect.
    pub dependency: Option<BatchDependency>,
}

/// The behaviour of a write when RocksDB is behind with its flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStall {
    /// Return [`Fault::Stalled`] instead of waiting; for threads that must not block.
    Fail,
    /// Wait until RocksDB has caught up.
    Wait,
}

/// A partition's records. Cloning gives another handle to the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    shared: SharedResources,
    liveness: Option<Arc<dyn Liveness>>,
    db: ArcSwapOption<Db>,
    compaction: Mutex<Option<Arc<ManualCompaction>>>,
    applied_bytes: AtomicU64,
    changes: Arc<ChangeCounter>,
    /// The reason why its records are not those of its group.
    divergence: OnceLock<Fault>,
}

impl Store {
    /// Opens the store at `path`, and creates it if there is none. Compaction never drops
    /// its cells.
    ///
    /// # Errors
    /// [`Fault::InUse`], [`Fault::Corrupt`] with the file's name, [`Fault::DiskFull`],
    /// [`Fault::Io`].
    pub fn open(shared: &SharedResources, path: impl Into<PathBuf>) -> Result<Self, Fault> {
        Self::open_with(shared, path.into(), None)
    }

    /// As [`open`](Store::open), but compaction drops the cells that are dead by
    /// `liveness`.
    pub fn open_with_filter(
        shared: &SharedResources,
        path: impl Into<PathBuf>,
        liveness: Arc<dyn Liveness>,
    ) -> Result<Self, Fault> {
        Self::open_with(shared, path.into(), Some(liveness))
    }

    fn open_with(
        shared: &SharedResources,
        path: PathBuf,
        liveness: Option<Arc<dyn Liveness>>,
    ) -> Result<Self, Fault> {
        let directory = directory::current(&path)?;
        let changes = Arc::default();
        let db = Db::open(shared, &directory, liveness.clone(), &changes)?;
        let db = ArcSwapOption::new(Some(db));
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                shared: shared.clone(),
                liveness,
                db,
                compaction: Mutex::default(),
                applied_bytes: AtomicU64::new(0),
                changes,
                divergence: OnceLock::new(),
            }),
        })
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn db(&self) -> Result<Arc<Db>, Fault> {
        self.inner.db.load_full().ok_or(Fault::Closed)
    }

    /// The latest value of `key`.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let db = self.inner.db.load();
        db.as_ref().ok_or(Fault::Closed)?.get_latest(family, key)
    }

    /// As [`get`](Store::get), but for a write that replaces the record: blocks read from
    /// disk are kept in the block cache only while such records exist.
    pub fn get_replaced(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let db = self.inner.db.load();
        db.as_ref().ok_or(Fault::Closed)?.get_replaced(family, key)
    }

    /// Visits the latest records with `from <= key < to` in key order, or in reverse,
    /// until `each` breaks. An empty `to` means no upper end. All records are of the same
    /// moment.
    pub fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.snapshot()?.range(family, from, to, reverse, each)
    }

    /// The present state of the store.
    pub fn snapshot(&self) -> Result<Snapshot, Fault> {
        Ok(Snapshot::new(self.db()?))
    }

    /// Applies entries atomically: their records, the last one's log id and membership.
    /// Entries must come in the log's order, each once, from one caller at a time.
    ///
    /// A batch whose dependency does not follow the last applied one counts as applied
    /// and changes nothing: the batch it was evaluated on was never applied.
    ///
    /// # Errors
    /// [`Fault::BadBatch`] if an entry is damaged; nothing is applied then.
    /// [`Fault::Stalled`] with [`OnStall::Fail`]: nothing is applied, call again.
    pub fn apply(&self, writes: &[EntryWrite], on_stall: OnStall) -> Result<(), Fault> {
        let db = self.db()?;
        let before = db.progress.applied().and_then(|applied| applied.dependency);
        if writes.iter().all(|write| batch::dependency(&write.batch).is_none()) {
            return self.apply_effective(&db, writes, before, on_stall);
        }
        let mut last = before;
        let writes: Vec<EntryWrite> =
            writes.iter().map(|write| effective_entry(write, &mut last)).collect();
        self.apply_effective(&db, &writes, before, on_stall)
    }

    /// Applies entries that all take effect; `before` is the last dependency before them.
    fn apply_effective(
        &self,
        db: &Arc<Db>,
        writes: &[EntryWrite],
        before: Option<BatchDependency>,
        on_stall: OnStall,
    ) -> Result<(), Fault> {
        db.write_fault()?;
        if let Some(mut points) = point_writes(writes)? {
            let own: Vec<_> = own_records(writes, before).collect();
            own.iter().for_each(|(key, value)| points.put(Family::Default, key, value));
            self.buffer_points(db, &points, on_stall)?;
            self.note_applied(db, writes, before);
            return Ok(());
        }
        db.write_memtables(on_stall)?;
        let mut records = WriteBatch::default();
        let mut cleared_upto = None;
        for (at, write) in writes.iter().enumerate().filter(|(_, write)| !write.batch.is_empty()) {
            if db.collect(&write.batch, &mut records)?.any.contains(&true) {
                cleared_upto = Some(at + 1);
            }
        }
        match cleared_upto {
            None => self.write(db, writes, records, before, on_stall),
            Some(_) if on_stall == OnStall::Fail => Err(Fault::Stalled),
            Some(upto) => {
                let (clearing, rest) = writes.split_at(upto);
                self.apply_clear(db, clearing, before)?;
                self.apply_effective(db, rest, last_dependency(clearing).or(before), on_stall)
            }
        }
    }

    /// Applies single records, to the write buffer.
    fn buffer_points(
        &self,
        db: &Arc<Db>,
        points: &PointWrites<'_>,
        on_stall: OnStall,
    ) -> Result<(), Fault> {
        let memtable_writer = self.inner.shared.memtable_writer();
        if memtable_writer.is_full() || db.write_buffer.is_crowded() {
            match on_stall {
                OnStall::Fail => return Err(Fault::Stalled),
                OnStall::Wait => db.write_memtables(on_stall)?,
            }
        }
        let immutables = db.write_buffer.add(points);
        memtable_writer.notify(db, immutables);
        Ok(())
    }

    /// Applies anything, when the write buffer is empty.
    fn write(
        &self,
        db: &Db,
        writes: &[EntryWrite],
        mut records: WriteBatch,
        before: Option<BatchDependency>,
        on_stall: OnStall,
    ) -> Result<(), Fault> {
        for (key, value) in own_records(writes, before) {
            records.put_cf(db.family(Family::Default), key, value);
        }
        db.write(records, on_stall)?;
        self.note_applied(db, writes, before);
        Ok(())
    }

    fn note_applied(&self, db: &Db, writes: &[EntryWrite], before: Option<BatchDependency>) {
        if let Some(last) = writes.last() {
            let membership = writes.iter().rev().find_map(|write| write.membership.clone());
            let (index, log_id) = (last.index, last.log_id.clone());
            db.progress.set_applied(AppliedPoint {
                index,
                log_id,
                membership,
                dependency: last_dependency(writes).or(before),
            });
        }
        let bytes: usize = writes.iter().map(|write| write.batch.len()).sum();
        self.inner.applied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.changed();
    }

    fn changed(&self) {
        self.inner.changes.count.fetch_add(1, Ordering::Release);
    }

    /// A number that grows after every write, flush and compaction. While it stays the
    /// same, so do the records and the [`StoreSizes`], except for memory that readers of
    /// older states hold.
    pub fn changes(&self) -> u64 {
        self.inner.changes.count.load(Ordering::Acquire)
    }

    /// Waits for the end of a flush, or returns at once if one has ended since the last
    /// call; for a single waiter.
    pub async fn flush_ended(&self) {
        self.inner.changes.flushed.notified().await;
    }

    /// Bytes of batches applied since the store was opened.
    pub fn applied_bytes(&self) -> u64 {
        self.inner.applied_bytes.load(Ordering::Relaxed)
    }

    /// Applies entries of which the last one empties families, and frees their space at
    /// once. Files are deleted under two conditions: the emptiness is on disk, and
    /// nothing reads an older state. Nothing else is written meanwhile, so every file at
    /// the lower levels is dead. If a condition fails, compaction frees the space.
    fn apply_clear(
        &self,
        db: &Arc<Db>,
        writes: &[EntryWrite],
        before: Option<BatchDependency>,
    ) -> Result<(), Fault> {
        let mut records = WriteBatch::default();
        let mut cleared = Cleared::default();
        for write in writes.iter().filter(|write| !write.batch.is_empty()) {
            cleared = db.collect(&write.batch, &mut records)?;
        }
        self.write(db, writes, records, before, OnStall::Wait)?;
        let families = |which: [bool; 3]| {
            Family::ALL.into_iter().filter(move |family| which[*family as usize])
        };
        let read_fault =
            || db.open_snapshots().wait_for_older(Instant::now() + CLEAR_READERS_TIMEOUT);
        match db.flush() {
            Ok(()) if read_fault() => {
                for family in families(cleared.empty) {
                    db.delete_files(family)?;
                }
                self.changed();
            }
            Ok(()) => {}
            Err(fault) => {
                tracing::warn!(%fault, "cannot free the space of cleared records; compaction will")
            }
        }
        // The rest (level 0, files in a compaction) is small and is compacted.
        manual_compaction::compact_cleared(db, cleared.any)
    }

    /// The last applied entry; `None` for a store that has applied nothing.
    pub fn applied(&self) -> Result<Option<AppliedPoint>, Fault> {
        Ok(self.db()?.progress.applied())
    }

    /// The last applied entry of the state on disk, which a crash would leave. Reads no
    /// disk.
    pub fn flushed(&self) -> Result<Option<AppliedPoint>, Fault> {
        Ok(self.db()?.progress.flushed())
    }

    /// Writes the applied entries to disk, and waits for it.
    pub fn flush(&self) -> Result<(), Fault> {
        self.db()?.flush()
    }

    /// The reason why the stored data is unreliable: damage that a read or a compaction
    /// has found, or that the store has [diverged](Store::mark_diverged). A closed store
    /// knows only the latter.
    pub fn damage(&self) -> Option<Fault> {
        self.inner.divergence.get().cloned().or_else(|| self.db().ok()?.damage())
    }

    /// Records that the store's data, though intact, is not that of the replica's group.
    /// It can only be rebuilt from its peers.
    pub fn mark_diverged(&self, why: impl Into<String>) {
        let file = self.inner.path.display().to_string();
        self.inner.divergence.get_or_init(|| Fault::Corrupt { file, reason: why.into() });
    }

    /// The store's ability to take writes. Cheap: reads the file system at most a few
    /// times a second.
    pub fn health(&self) -> StoreHealth {
        match self.db() {
            Ok(db) => db.health(self.inner.shared.settings().disk_reserve_bytes),
            Err(fault) => StoreHealth::Failing(fault),
        }
    }

    /// Starts a compaction of the whole store on a thread of its own, which frees the
    /// space of dead records. Returns the running one if there is one.
    pub fn compact(&self) -> Result<Arc<ManualCompaction>, Fault> {
        let mut compaction = self.inner.compaction.lock();
        match &*compaction {
            Some(running) if running.outcome().is_none() => Ok(running.clone()),
            _ => Ok(compaction.insert(manual_compaction::start(self.db()?)?).clone()),
        }
    }

    /// Compacts a family at once, without regard to readers, as automatic compaction
    /// does; for tests of the compaction filters.
    pub fn compact_family(&self, family: Family) -> Result<(), Fault> {
        let db = self.db()?;
        manual_compaction::compact_range(&db, family, None, None);
        db.reported().map_or(Ok(()), Err)
    }

    /// The store's size; cheaper than all [`stats`](Store::stats).
    pub fn sizes(&self) -> Result<StoreSizes, Fault> {
        stats::sizes(&*self.db()?)
    }

    /// Sizes and counts, for metrics and status.
    pub fn stats(&self) -> Result<StoreStats, Fault> {
        stats::read(&*self.db()?)
    }

    fn detach(&self) -> Option<Arc<Db>> {
        if let Some(compaction) = &*self.inner.compaction.lock() {
            compaction.cancel();
        }
        let db = self.inner.db.swap(None)?;
        self.inner.shared.memtable_writer().retire(&db);
        Some(db)
    }

    /// Flushes and closes the database. Readers with snapshots keep it open until they
    /// drop them. Every later call returns [`Fault::Closed`].
    pub fn close(&self) -> Result<(), Fault> {
        let Some(db) = self.detach() else { return Ok(()) };
        let flushed = db.flush();
        db.stop();
        flushed
    }

    /// Closes without a flush and deletes the store's directory.
    pub fn destroy(&self) -> Result<(), Fault> {
        if let Some(db) = self.detach() {
            db.stop();
        }
        directory::remove(&self.inner.path)
    }

    /// Writes the store's state as files into `directory`, which must not exist. Flushes
    /// first; files are linked, not copied.
    pub fn checkpoint(&self, directory: &Path) -> Result<(), Fault> {
        let db = self.db()?;
        db.write_memtables(OnStall::Wait)?;
        let fault = |error| Fault::from_rocksdb("checkpoint", directory, error);
        rocksdb::checkpoint::Checkpoint::new(db.raw())
            .map_err(fault)?
            .create_checkpoint(directory)
            .map_err(fault)
    }

    /// Makes a store of `received`, a [`checkpoint`](Store::checkpoint) on the same file
    /// system, at `path`, where no store may be open; the directory is moved.
    pub fn make(received: &Path, path: &Path) -> Result<(), Fault> {
        let name = directory::first_name();
        directory::move_received(received, &path.join(&name))?;
        directory::set_current(path, &name)
    }

    /// Replaces the store's state by that in `received`, a
    /// [`checkpoint`](Store::checkpoint) on the same file system; the directory is moved.
    /// Readers keep the old state until they drop their snapshots. A crash leaves either
    /// the old state or the new one.
    pub fn install(&self, received: &Path) -> Result<(), Fault> {
        let old = self.db()?;
        let name = directory::next_name(&old.directory);
        let next = self.inner.path.join(&name);
        directory::move_received(received, &next)?;
        let db =
            Db::open(&self.inner.shared, &next, self.inner.liveness.clone(), &self.inner.changes)?;
        directory::set_current(&self.inner.path, &name)?;
        if let Some(compaction) = &*self.inner.compaction.lock() {
            compaction.cancel();
        }
        self.inner.db.store(Some(db));
        self.inner.shared.memtable_writer().retire(&old);
        self.changed();
        old.stop();
        // RocksDB's open files stay readable for the holders of snapshots.
        directory::remove(&old.directory)
    }

    /// The resources that the node's stores share.
    pub fn shared(&self) -> &SharedResources {
        &self.inner.shared
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(db) = self.db.swap(None) {
            self.shared.memtable_writer().retire(&db);
        }
    }
}

/// The entry with its effect: without its batch if the batch's dependency does not follow
/// `last`.
fn effective_entry(write: &EntryWrite, last: &mut Option<BatchDependency>) -> EntryWrite {
    let Some(dependency) = batch::dependency(&write.batch) else { return write.clone() };
    if dependency.follows(*last) {
        *last = Some(dependency);
        return write.clone();
    }
    tracing::warn!(
        index = write.index,
        ?dependency,
        ?last,
        "entry has no effect: the batch it was evaluated on was never applied"
    );
    EntryWrite { batch: Bytes::new(), ..write.clone() }
}

/// The records that entries put and delete; `None` if they do more than that.
fn point_writes(writes: &[EntryWrite]) -> Result<Option<PointWrites<'_>>, Fault> {
    let mut points = PointWrites::default();
    for write in writes {
        if !points.add_batch(&write.batch)? {
            return Ok(None);
        }
    }
    Ok(Some(points))
}

/// The store's own records after these entries.
fn own_records(
    writes: &[EntryWrite],
    before: Option<BatchDependency>,
) -> impl Iterator<Item = (&'static [u8], Bytes)> {
    let applied = writes.last().map(|last| {
        (
            APPLIED,
            encode_applied(last.index, last_dependency(writes).or(before), &last.log_id).freeze(),
        )
    });
    let membership = writes
        .iter()
        .rev()
        .find_map(|write| write.membership.clone())
        .map(|membership| (MEMBERSHIP, membership));
    applied.into_iter().chain(membership)
}

fn last_dependency(writes: &[EntryWrite]) -> Option<BatchDependency> {
    writes.iter().rev().find_map(|write| batch::dependency(&write.batch))
}

fn encode_applied(index: u64, dependency: Option<BatchDependency>, log_id: &[u8]) -> BytesMut {
    let mut record = BytesMut::with_capacity(26 + log_id.len());
    record.put_u8(APPLIED_VERSION);
    record.put_u64(index);
    record.put_u8(u8::from(dependency.is_some()));
    if let Some(dependency) = dependency {
        record.put_slice(&dependency.to_bytes());
    }
    record.put_slice(log_id);
    record
}

/// A decoded `\0applied` record.
struct AppliedRecord {
    index: u64,
    dependency: Option<BatchDependency>,
    log_id: Bytes,
}

fn parse_applied(record: &Bytes) -> Option<AppliedRecord> {
    let ([version, index @ ..], rest) = record.split_first_chunk::<9>()?;
    let index = u64::from_be_bytes(*index);
    let (dependency, at) = match (*version, rest.split_first()) {
        (APPLIED_VERSION, Some((0, _))) => (None, 10),
        (APPLIED_VERSION, Some((1, dependency))) => {
            (Some(BatchDependency::from_bytes(*dependency.first_chunk()?)), 26)
        }
        _ => return None,
    };
    Some(AppliedRecord { index, dependency, log_id: record.slice(at..) })
}

/// Reads log id and membership of the same moment: again, if a write or a flush came
/// between them.
fn read_applied<E>(
    get: impl Fn(&[u8]) -> Result<Option<Bytes>, E>,
    malformed: impl FnOnce(&'static str) -> E,
) -> Result<Option<AppliedPoint>, E> {
    loop {
        let Some(record) = get(APPLIED)? else { return Ok(None) };
        let membership = get(MEMBERSHIP)?;
        if get(APPLIED)?.as_ref() == Some(&record) {
            let read = parse_applied(&record)
                .ok_or_else(|| malformed("a malformed record of the last applied entry"))?;
            let AppliedRecord { index, dependency, log_id } = read;
            return Ok(Some(AppliedPoint { index, log_id, membership, dependency }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchWriter;
    use crate::vectors::assert_frozen;

    #[test]
    fn the_stores_own_records_are_frozen() {
        let (id, membership) = (&b"id"[..], Bytes::from_static(b"members"));
        let dependency = BatchDependency { term: 3, chain: 1, position: 0 };
        let write = |index, batch: BatchWriter, membership| EntryWrite {
            index,
            log_id: Bytes::from_static(b"id"),
            batch: batch.finish(),
            membership,
        };
        let writes = [
            write(5, BatchWriter::with_dependency(dependency, 0), Some(membership)),
            write(6, BatchWriter::new(), None),
        ];
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(&SharedResources::new(StoreSettings::default()).unwrap(), dir.path())
                .unwrap();
        store.apply(&writes, OnStall::Wait).unwrap();
        let mut own = Vec::new();
        store
            .range(Family::Default, b"", b"", false, &mut |key, value| {
                own.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        let [applied, members] = <[_; 2]>::try_from(own).unwrap();
        let current = std::fs::read(dir.path().join("current")).unwrap();
        let large = BatchDependency { term: 3, chain: 1, position: 2 };
        let now = [
            ("key of the last applied entry", applied.0),
            ("entry 6, link of the entry before, log id \"id\"", applied.1),
            ("entry 5, another link", encode_applied(5, Some(large), id).to_vec()),
            ("entry 5, no link", encode_applied(5, None, id).to_vec()),
            ("key of the membership", members.0),
            ("a membership, \"members\"", members.1),
            ("the file current of a new store", current),
            ("the name after db-41", directory::next_name(Path::new("db-41")).into_bytes()),
        ];
        assert_frozen("store.txt", include_str!("../tests/vectors/store.txt"), &now);
    }

    #[test]
    fn applied_records_are_read_or_refused() {
        let read = |record: &'static [u8]| {
            parse_applied(&Bytes::from_static(record))
                .map(|read| (read.index, read.dependency, read.log_id))
        };
        let id = Bytes::from_static(b"id");
        let dependency = BatchDependency { term: 3, chain: 1, position: 2 };
        assert_eq!(read(b"\x02\0\0\0\0\0\0\0\x05\0id"), Some((5, None, id.clone())));
        let with_dependency = b"\x02\0\0\0\0\0\0\0\x05\x01\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0\x02id";
        assert_eq!(read(with_dependency), Some((5, Some(dependency), id.clone())));
        for bad in [
            &b""[..],
            b"\x01\0\0\0\0\0\0\0\x05id",
            b"\x03\0\0\0\0\0\0\0\x05id",
            b"\x02\0\0\0\0\0\0\0\x05",
            b"\x02\0\0\0\0\0\0\0\x05\x01\0",
        ] {
            assert!(read(bad).is_none(), "{bad:?}");
        }
    }
}
