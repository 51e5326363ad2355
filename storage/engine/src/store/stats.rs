//! A store's statistics, for metrics and status.

use std::sync::atomic::Ordering;

use rocksdb::properties::{self as names, PropName};

use super::Fault;
use super::db::Db;
use crate::batch::Family;

/// A store's statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// All table files, obsolete ones that wait to be deleted included.
    pub file_bytes: u64,
    /// Table files of the current state.
    pub live_file_bytes: u64,
    /// Number of table files of the current state.
    pub files: u64,
    /// Number of files at level 0, each of which every read must search.
    pub level0_files: u64,
    /// Memtables, those being flushed included, and the write buffer.
    pub memtable_bytes: u64,
    /// Records in `Head`, estimated.
    pub heads_estimated: u64,
    /// Records in `Cell`, estimated.
    pub cells_estimated: u64,
    /// Bytes that compaction has yet to rewrite, estimated.
    pub pending_compaction_bytes: u64,
    /// Flushes running.
    pub running_flushes: u64,
    /// Compactions running.
    pub running_compactions: u64,
    /// Snapshots held by readers.
    pub snapshots: u64,
    /// 1 when RocksDB has stopped writes.
    pub write_stopped: u64,
    /// Bytes per second to which RocksDB has slowed writes, 0 = not slowed.
    pub delayed_write_rate: u64,
    /// Memory of table readers outside of the block cache.
    pub table_reader_bytes: u64,
    /// Errors of background work since the store was opened.
    pub background_errors: u64,
    /// Dead cells that compaction filters dropped since the store was opened.
    pub filtered_cells: u64,
    /// Bytes that compaction filters dropped since the store was opened.
    pub filtered_bytes: u64,
}

/// A store's size: the statistics that are read often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreSizes {
    /// As [`StoreStats::live_file_bytes`].
    pub live_file_bytes: u64,
    /// As [`StoreStats::memtable_bytes`].
    pub memtable_bytes: u64,
}

fn one(db: &Db, family: Family, name: &PropName) -> Result<u64, Fault> {
    let value = db.raw().property_int_value_cf(db.family(family), name);
    value.map(Option::unwrap_or_default).map_err(|error| db.fault("read a property of", error))
}

fn sum(db: &Db, name: &PropName) -> Result<u64, Fault> {
    Family::ALL.into_iter().try_fold(0, |sum, family| Ok(sum + one(db, family, name)?))
}

pub(super) fn sizes(db: &Db) -> Result<StoreSizes, Fault> {
    let memtable_bytes = sum(db, names::SIZE_ALL_MEM_TABLES)? + db.write_buffer.size().bytes as u64;
    Ok(StoreSizes { live_file_bytes: sum(db, names::LIVE_SST_FILES_SIZE)?, memtable_bytes })
}

pub(super) fn read(db: &Db) -> Result<StoreStats, Fault> {
    let one = |family, name| one(db, family, name);
    let sum = |name| sum(db, name);
    let StoreSizes { live_file_bytes, memtable_bytes } = sizes(db)?;
    let files_at = |family: Family, level| {
        let value = db.raw().property_value_cf(db.family(family), names::num_files_at_level(level));
        value
            .map(|text| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or_default())
            .map_err(|error| db.fault("read a property of", error))
    };
    let mut stats = StoreStats {
        file_bytes: sum(names::TOTAL_SST_FILES_SIZE)?,
        live_file_bytes,
        memtable_bytes,
        heads_estimated: one(Family::Head, names::ESTIMATE_NUM_KEYS)?,
        cells_estimated: one(Family::Cell, names::ESTIMATE_NUM_KEYS)?,
        pending_compaction_bytes: sum(names::ESTIMATE_PENDING_COMPACTION_BYTES)?,
        // These are properties of the whole database, whichever family is asked.
        running_flushes: one(Family::Default, names::NUM_RUNNING_FLUSHES)?,
        running_compactions: one(Family::Default, names::NUM_RUNNING_COMPACTIONS)?,
        snapshots: one(Family::Default, names::NUM_SNAPSHOTS)?,
        write_stopped: one(Family::Default, names::IS_WRITE_STOPPED)?,
        delayed_write_rate: one(Family::Default, names::ACTUAL_DELAYED_WRITE_RATE)?,
        table_reader_bytes: sum(names::ESTIMATE_TABLE_READERS_MEM)?,
        background_errors: one(Family::Default, names::BACKGROUND_ERRORS)?,
        ..StoreStats::default()
    };
    for family in Family::ALL {
        let level0 = files_at(family, 0)?;
        stats.level0_files += level0;
        stats.files += level0;
        for level in 1..7 {
            stats.files += files_at(family, level)?;
        }
    }
    if let Some(filter_stats) = db.filter_stats() {
        stats.filtered_cells = filter_stats.cells.load(Ordering::Relaxed);
        stats.filtered_bytes = filter_stats.bytes.load(Ordering::Relaxed);
    }
    Ok(stats)
}
