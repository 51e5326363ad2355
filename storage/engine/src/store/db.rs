//! One open RocksDB and its families.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{BoundColumnFamily, DB, FlushOptions, ReadOptions, ReadTier, WriteBatch, WriteOptions};

use super::options::Shared;
use super::view::{Pinned, Readers};
use super::{Fault, Patience};
use crate::batch::{self, Change, END, Family};

/// An open database. Held by [`Store`](super::Store) and by everyone who reads it; closed when the last of them lets go.
pub(super) struct Db {
    // Everything that points into `db` comes before it: fields are dropped in this order.
    families: [Arc<BoundColumnFamily<'static>>; 3],
    readers: Arc<Readers>,
    latest: ReadOptions,
    flushed: ReadOptions,
    patient: WriteOptions,
    hasty: WriteOptions,
    db: DB,
    pub(super) directory: PathBuf,
}

impl Db {
    pub(super) fn open(shared: &Shared, directory: &Path) -> Result<Arc<Self>, Fault> {
        let db = DB::open_cf_descriptors(&shared.database(), directory, shared.families())
            .map_err(|error| Fault::from_rocksdb("open", directory, error))?;
        let families = Family::ALL.map(|family| {
            let handle = db.cf_handle(family.name()).expect("open creates the families that are missing");
            // SAFETY: the handle lives in `Db` next to `db` and is dropped before it; none is handed out.
            unsafe { std::mem::transmute::<Arc<BoundColumnFamily<'_>>, Arc<BoundColumnFamily<'static>>>(handle) }
        });
        let mut flushed = ReadOptions::default();
        flushed.set_read_tier(ReadTier::Persisted);
        let write = |no_slowdown| {
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            options.set_no_slowdown(no_slowdown);
            options
        };
        Ok(Arc::new(Self {
            families,
            readers: Arc::default(),
            latest: ReadOptions::default(),
            flushed,
            patient: write(false),
            hasty: write(true),
            db,
            directory: directory.to_owned(),
        }))
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

    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// A snapshot that the caller must drop before this database.
    pub(super) fn pin(&self) -> Arc<Pinned> {
        // SAFETY: every holder of a `Pinned` (`Snapshot`, the filter's views) also keeps this `Db`, or is waited for when it closes.
        unsafe { self.readers.pin(&self.db) }
    }

    pub(super) fn get_latest(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.get(&self.latest, family, key)
    }

    /// What a crash would leave: memtables are not looked at.
    pub(super) fn get_flushed(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.get(&self.flushed, family, key)
    }

    pub(super) fn get(&self, options: &ReadOptions, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.db.get_pinned_cf_opt(self.family(family), key, options) {
            Ok(value) => Ok(value.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.fault("read", error)),
        }
    }

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
        cursor.status().map_err(|error| self.fault("scan", error))
    }

    /// Turns batches into one RocksDB batch. Nothing is written when one of them is damaged.
    pub(super) fn collect<'a>(&self, batches: impl Iterator<Item = &'a [u8]>) -> Result<WriteBatch, Fault> {
        let mut records = WriteBatch::default();
        for bytes in batches {
            for change in batch::read(bytes)? {
                match change? {
                    Change::Put { family, key, value } => records.put_cf(self.family(family), key, value),
                    Change::Delete { family, key } => records.delete_cf(self.family(family), key),
                    Change::DeleteRange { family, from, to } if from < to => records.delete_range_cf(self.family(family), from, to),
                    Change::DeleteRange { .. } => {}
                    Change::Clear { family } => records.delete_range_cf(self.family(family), &[][..], &END[..]),
                }
            }
        }
        Ok(records)
    }

    pub(super) fn write(&self, records: WriteBatch, patience: Patience) -> Result<(), Fault> {
        let options = match patience {
            Patience::Now => &self.hasty,
            Patience::Wait => &self.patient,
        };
        self.db.write_opt(records, options).map_err(|error| self.fault("write", error))
    }

    /// Writes all memtables to disk, all families at one moment.
    pub(super) fn flush(&self) -> Result<(), Fault> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families: Vec<&Arc<BoundColumnFamily<'static>>> = self.families.iter().collect();
        self.db.flush_cfs_opt(&families, &options).map_err(|error| self.fault("flush", error))
    }
}
