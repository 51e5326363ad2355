//! One open RocksDB and its families.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    BoundColumnFamily, DB, DBRawIteratorWithThreadMode, FlushOptions, ReadOptions, ReadTier,
    WriteBatch, WriteOptions, properties,
};

use super::compaction_filter::{FilterShared, FilterStats, Liveness};
use super::health::{self, BackgroundErrors, ChangeCounter, StoreHealth};
use super::manual_compaction::ClearedFamilies;
use super::memtable_budget::StoreShare;
use super::options::SharedResources;
use super::progress::ApplyProgress;
use super::snapshot::{OpenSnapshots, PinnedSnapshot};
use super::write_buffer::{ImmutableMemtables, WriteBuffer};
use super::{Fault, OnStall, read_applied};
use crate::batch::{self, Change, END, Family};

/// An open database. [`Store`](super::Store) and all readers hold it; it is closed when
/// the last of them drops it.
pub(super) struct Db {
    // Everything that points into `db` is declared before it: fields are dropped in this
    // order.
    families: [Arc<BoundColumnFamily<'static>>; 3],
    open_snapshots: Arc<OpenSnapshots>,
    latest: ReadOptions,
    /// As `latest`, but blocks that are read are not kept in the block cache.
    uncached: ReadOptions,
    flushed: ReadOptions,
    waiting: WriteOptions,
    failing: WriteOptions,
    db: DB,
    background_errors: Arc<BackgroundErrors>,
    filters: Option<Arc<FilterShared>>,
    /// Applied records that are not in the memtables yet.
    pub(super) write_buffer: WriteBuffer,
    /// Held while records are written to the memtables.
    memtable_lock: Mutex<()>,
    is_pending: AtomicBool,
    /// The last [read before a write](Db::get_replaced) found nothing in RocksDB.
    is_new: AtomicBool,
    /// The reason why applied records cannot be written to the memtables.
    write_fault: OnceLock<Fault>,
    pub(super) progress: Arc<ApplyProgress>,
    /// The first read that failed.
    read_fault: OnceLock<Fault>,
    pub(super) cleared_families: ClearedFamilies,
    pub(super) directory: PathBuf,
    _part: StoreShare,
}

/// The families that a batch clears.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cleared {
    /// By family number: cleared.
    pub(super) any: [bool; 3],
    /// By family number: cleared, and not written to afterwards.
    pub(super) empty: [bool; 3],
}

impl Db {
    /// Opens the database; its flushes and compactions are counted in `changes`.
    pub(super) fn open(
        shared: &SharedResources,
        directory: &Path,
        liveness: Option<Arc<dyn Liveness>>,
        changes: &Arc<ChangeCounter>,
    ) -> Result<Arc<Self>, Fault> {
        let progress = Arc::<ApplyProgress>::default();
        let background_errors = Arc::new(BackgroundErrors::new(changes.clone(), progress.clone()));
        let filters = liveness.map(FilterShared::new);
        let share = shared.share();
        let options = shared.database();
        health::listen(&options, background_errors.clone());
        let db = DB::open_cf_descriptors(
            &options,
            directory,
            shared.families(filters.as_ref(), &share)?,
        )
        .map_err(|error| Fault::from_rocksdb("open", directory, error))?;
        let families = Family::ALL.map(|family| {
            let handle =
                db.cf_handle(family.name()).expect("open creates the families that are missing");
            // SAFETY: the handle lives in `Db` next to `db` and is dropped before it;
            // none is handed out.
            unsafe {
                std::mem::transmute::<Arc<BoundColumnFamily<'_>>, Arc<BoundColumnFamily<'static>>>(
                    handle,
                )
            }
        });
        let mut flushed = ReadOptions::default();
        flushed.set_read_tier(ReadTier::Persisted);
        let mut uncached = ReadOptions::default();
        uncached.fill_cache(false);
        let write = |no_slowdown| {
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            options.set_no_slowdown(no_slowdown);
            options
        };
        let db = Arc::new(Self {
            families,
            open_snapshots: Arc::default(),
            latest: ReadOptions::default(),
            uncached,
            flushed,
            waiting: write(false),
            failing: write(true),
            db,
            background_errors,
            filters,
            write_buffer: WriteBuffer::new(shared.memtable_writer().total().clone()),
            memtable_lock: Mutex::default(),
            is_pending: AtomicBool::new(false),
            is_new: AtomicBool::new(false),
            write_fault: OnceLock::new(),
            progress,
            read_fault: OnceLock::new(),
            cleared_families: ClearedFamilies::default(),
            directory: directory.to_owned(),
            _part: share,
        });
        if let Some(filters) = &db.filters {
            filters.attach(&db);
        }
        db.refresh_flushed()?;
        if let Some(applied) = db.progress.flushed() {
            db.progress.set_applied(applied);
        }
        Ok(db)
    }

    pub(super) fn filter_stats(&self) -> Option<&FilterStats> {
        self.filters.as_ref().map(|filters| filters.filter_stats())
    }

    pub(super) fn health(&self, reserve: u64) -> StoreHealth {
        match self.write_fault.get() {
            Some(fault) => StoreHealth::Failing(fault.clone()),
            None => self.background_errors.health(&self.directory, reserve, || {
                self.write(WriteBatch::default(), OnStall::Fail).is_ok()
            }),
        }
    }

    /// The failure of background work, unless it has passed.
    pub(super) fn reported(&self) -> Option<Fault> {
        self.background_errors
            .reported()
            .map(|text| Fault::from_text("compact", &self.directory, text))
    }

    /// A cursor over a family in the state of `pinned`, for code that runs inside a
    /// compaction. It must be dropped before `pinned`.
    pub(super) fn cursor(
        &self,
        pinned: &PinnedSnapshot,
        family: Family,
    ) -> DBRawIteratorWithThreadMode<'static, DB> {
        let mut options = ReadOptions::default();
        options.set_snapshot(pinned.snapshot());
        options.fill_cache(false);
        let cursor = self.db.raw_iterator_cf_opt(self.family(family), options);
        // SAFETY: the caller is inside a compaction, and `drop` waits for those.
        unsafe {
            std::mem::transmute::<
                DBRawIteratorWithThreadMode<'_, DB>,
                DBRawIteratorWithThreadMode<'static, DB>,
            >(cursor)
        }
    }

    /// The reason why the data on disk is unreliable, once that was found.
    pub(super) fn damage(&self) -> Option<Fault> {
        let found = || self.reported().filter(|fault| matches!(fault, Fault::Corrupt { .. }));
        self.read_fault.get().cloned().or_else(found)
    }

    fn unreadable(&self, doing: &str, error: rocksdb::Error) -> Fault {
        let fault = self.fault(doing, error);
        if matches!(fault, Fault::Corrupt { .. } | Fault::Io { .. }) {
            self.read_fault.get_or_init(|| fault.clone());
        }
        fault
    }

    pub(super) fn fault(&self, doing: &str, error: rocksdb::Error) -> Fault {
        Fault::from_rocksdb(doing, &self.directory, error)
    }

    pub(super) fn family(&self, family: Family) -> &Arc<BoundColumnFamily<'static>> {
        &self.families[family as usize]
    }

    pub(super) fn raw(&self) -> &DB {
        &self.db
    }

    pub(super) fn open_snapshots(&self) -> &OpenSnapshots {
        &self.open_snapshots
    }

    /// The write buffer's records, and a RocksDB snapshot of the same moment, which the
    /// caller must drop before this database.
    pub(super) fn consistent_view(&self) -> (ImmutableMemtables, Arc<PinnedSnapshot>) {
        self.write_buffer.make_immutable(|| self.pin())
    }

    /// A snapshot of RocksDB that the caller must drop before this database.
    pub(super) fn pin(&self) -> Arc<PinnedSnapshot> {
        // SAFETY: every holder of a `PinnedSnapshot` (`Snapshot`, the filter's views)
        // also keeps this `Db`, or is waited for when it closes.
        unsafe { self.open_snapshots.pin(&self.db) }
    }

    pub(super) fn get_latest(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.write_buffer.get(family, key) {
            Some(point) => Ok(point),
            None => self.get(&self.latest, family, key),
        }
    }

    /// As [`get_latest`](Db::get_latest), but for a write that replaces the record.
    ///
    /// While writes insert new records, a read before the write loads a block only when a
    /// Bloom filter errs. Over a million new keys these are tens of thousands of blocks.
    /// They would evict all others from the block cache although none of them is likely
    /// to be read again. So after a read that has found nothing, the next one does not
    /// fill the cache.
    pub(super) fn get_replaced(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        if let Some(point) = self.write_buffer.get(family, key) {
            return Ok(point);
        }
        let was_new = self.is_new.load(Ordering::Relaxed);
        let record = self.get(if was_new { &self.uncached } else { &self.latest }, family, key)?;
        if was_new != record.is_none() {
            self.is_new.store(record.is_none(), Ordering::Relaxed);
        }
        Ok(record)
    }

    /// Reads the state on disk, without memtables: what a crash would leave.
    pub(super) fn get_flushed(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.get(&self.flushed, family, key)
    }

    /// Reads the last applied entry of the state on disk.
    fn refresh_flushed(&self) -> Result<(), Fault> {
        let malformed = |reason: &str| Fault::Corrupt {
            file: self.directory.display().to_string(),
            reason: reason.into(),
        };
        let flushed = read_applied(|key| self.get_flushed(Family::Default, key), malformed)?;
        self.progress.set_flushed(flushed);
        Ok(())
    }

    /// Reads from RocksDB only.
    pub(super) fn get(
        &self,
        options: &ReadOptions,
        family: Family,
        key: &[u8],
    ) -> Result<Option<Bytes>, Fault> {
        match self.db.get_pinned_cf_opt(self.family(family), key, options) {
            Ok(value) => Ok(value.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.unreadable("read", error)),
        }
    }

    /// Visits records of RocksDB only.
    pub(super) fn range(
        &self,
        mut options: ReadOptions,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if !to.is_empty() && from >= to {
            return Ok(());
        }
        if !from.is_empty() {
            options.set_iterate_lower_bound(from);
        }
        if !to.is_empty() {
            options.set_iterate_upper_bound(to);
        }
        let mut cursor = self.db.raw_iterator_cf_opt(self.family(family), options);
        match reverse {
            false => cursor.seek(from),
            true => cursor.seek_to_last(),
        }
        while let Some((key, value)) = cursor.item() {
            if each(key, value).is_break() {
                return Ok(());
            }
            match reverse {
                false => cursor.next(),
                true => cursor.prev(),
            }
        }
        cursor.status().map_err(|error| self.unreadable("scan", error))
    }

    /// Adds a batch's records to a RocksDB batch, and returns the families that it
    /// clears.
    pub(super) fn collect(&self, batch: &[u8], records: &mut WriteBatch) -> Result<Cleared, Fault> {
        let mut cleared = Cleared::default();
        for change in batch::read(batch)? {
            match change? {
                Change::Put { family, key, value } => {
                    records.put_cf(self.family(family), key, value);
                    cleared.empty[family as usize] = false;
                }
                Change::Delete { family, key } => records.delete_cf(self.family(family), key),
                Change::DeleteRange { family, from, to } if from < to => {
                    records.delete_range_cf(self.family(family), from, to)
                }
                Change::DeleteRange { .. } => {}
                Change::Clear { family } => {
                    records.delete_range_cf(self.family(family), &[][..], &END[..]);
                    cleared.any[family as usize] = true;
                    cleared.empty[family as usize] = true;
                }
            }
        }
        Ok(cleared)
    }

    /// Marks the store as pending for the memtable writer; true if it was not yet.
    pub(super) fn mark_pending(&self) -> bool {
        !self.is_pending.swap(true, Ordering::AcqRel)
    }

    /// Called by the memtable writer when it drops the store from its backlog.
    pub(super) fn clear_pending(&self) {
        self.is_pending.store(false, Ordering::Release);
    }

    /// Called by the memtable writer: writes the buffered records to the memtables unless
    /// that would block. Returns true if it did.
    pub(super) fn try_write_memtables(&self) -> bool {
        match self.write_memtables(OnStall::Fail) {
            Ok(()) => true,
            Err(Fault::Stalled | Fault::DiskFull(_)) => false,
            Err(fault) => {
                if self.write_fault.set(fault.clone()).is_ok() {
                    tracing::error!(%fault, "cannot write applied entries to the memtables");
                }
                false
            }
        }
    }

    /// Bytes of the active memtables.
    pub(super) fn memtable_bytes(&self) -> usize {
        let bytes = |family| {
            self.db
                .property_int_value_cf(self.family(family), properties::CUR_SIZE_ACTIVE_MEM_TABLE)
        };
        Family::ALL
            .into_iter()
            .map(|family| bytes(family).ok().flatten().unwrap_or_default() as usize)
            .sum()
    }

    /// Starts a flush of the memtables without waiting for it.
    pub(super) fn flush_soon(&self) {
        if let Err(fault) = self.flush_families(false) {
            tracing::warn!(%fault, "cannot start a flush; memtables stay in memory");
        }
    }

    /// Returns the fault that keeps applied records from the memtables.
    pub(super) fn write_fault(&self) -> Result<(), Fault> {
        self.write_fault.get().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    /// While this is held, nothing is written to the memtables.
    #[cfg(test)]
    pub(super) fn hold_up(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.memtable_lock.lock()
    }

    /// Writes the buffered records to the memtables.
    pub(super) fn write_memtables(&self, on_stall: OnStall) -> Result<(), Fault> {
        let _one = match on_stall {
            OnStall::Fail => self.memtable_lock.try_lock().ok_or(Fault::Stalled)?,
            OnStall::Wait => self.memtable_lock.lock(),
        };
        let (immutables, ()) = self.write_buffer.make_immutable(|| ());
        if immutables.is_empty() {
            return Ok(());
        }
        let mut records = WriteBatch::with_capacity_bytes(immutables.bytes());
        for family in Family::ALL {
            for (key, point) in immutables.range(family, b"", b"", false) {
                match point {
                    Some(value) => records.put_cf(self.family(family), key, value),
                    None => records.delete_cf(self.family(family), key),
                }
            }
        }
        self.write(records, on_stall)?;
        self.write_buffer.remove_written(&immutables);
        Ok(())
    }

    pub(super) fn write(&self, records: WriteBatch, on_stall: OnStall) -> Result<(), Fault> {
        let options = match on_stall {
            OnStall::Fail => &self.failing,
            OnStall::Wait => &self.waiting,
        };
        self.db.write_opt(records, options).map_err(|error| self.fault("write", error))
    }

    /// Deletes the table files of a family, except at level 0. Only allowed if all their
    /// records are dead, on disk and for every reader.
    pub(super) fn delete_files(&self, family: Family) -> Result<(), Fault> {
        self.db
            .delete_file_in_range_cf(self.family(family), &[][..], &END[..])
            .map_err(|error| self.fault("delete files of", error))
    }

    /// Ends background work permanently; reads still work.
    pub(super) fn stop(&self) {
        self.db.cancel_all_background_work(true);
    }

    /// Writes the applied records to disk, all families at the same moment.
    pub(super) fn flush(&self) -> Result<(), Fault> {
        self.write_memtables(OnStall::Wait)?;
        self.flush_families(true)?;
        // RocksDB's listener may not have run yet.
        self.refresh_flushed()
    }

    fn flush_families(&self, wait: bool) -> Result<(), Fault> {
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        let families: Vec<&Arc<BoundColumnFamily<'static>>> = self.families.iter().collect();
        self.db.flush_cfs_opt(&families, &options).map_err(|error| self.fault("flush", error))
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // Compactions read through `self`, so none may run when its fields are dropped.
        // This also flushes the memtables.
        self.db.cancel_all_background_work(true);
    }
}
