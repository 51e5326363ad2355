//! The resources that all stores of a node share, and the options of each store.
//!
//! Small by default: block cache and memtables are bounded over all stores together,
//! index and filter blocks are in the cache, RocksDB's statistics and timers are off.

use std::ffi::CStr;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use librocksdb_sys as ffi;
use rocksdb::{
    AsRawPtr, BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor,
    DBCompressionType, DataBlockIndexType, Env, LogLevel, Options,
};

use super::compaction_filter::{CellFilterFactory, FilterShared, HeadFilterFactory};
use super::memtable_budget::{MemtableBudget, StoreShare};
use super::memtable_writer::{self, MemtableWriter};
use super::{Fault, background, health};
use crate::batch::Family;

/// Memory and threads of all stores of a node; every key can be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// Size of the block cache of all stores together, bytes; it includes index and
    /// filter blocks.
    pub cache_bytes: usize,
    /// Size of the memtables and write buffers of all stores together, bytes; more if
    /// there are very many stores (64 KiB for each).
    pub memtable_bytes: usize,
    /// Threads that flush memtables, for all stores.
    pub flush_threads: i32,
    /// Threads that compact, for all stores.
    pub compaction_threads: i32,
    /// Compression of the lowest level, which holds most data: ZSTD if true (smaller),
    /// LZ4 if false (faster to read).
    pub zstd_bottom: bool,
    /// Files older than this are compacted, which frees the space of replaced data;
    /// seconds.
    pub periodic_compaction_seconds: u64,
    /// Writes are refused while the file system has less free space than this, bytes, so
    /// that neither RocksDB nor the log fills the disk.
    pub disk_reserve_bytes: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            memtable_bytes: 40 << 20,
            flush_threads: 1,
            compaction_threads: 1,
            zstd_bottom: true,
            periodic_compaction_seconds: 86_400,
            disk_reserve_bytes: 64 << 20,
        }
    }
}

impl StoreSettings {
    /// The part of the budget that the memtables themselves get.
    fn memtable_budget(&self) -> usize {
        self.memtable_bytes - memtable_writer::write_buffer_part(self.memtable_bytes)
    }

    /// Concurrent flushes and compactions of all stores.
    fn background_jobs(&self) -> i32 {
        (self.flush_threads + self.compaction_threads).max(2)
    }
}

/// The resources that the stores of a node share: block cache, memtable budget,
/// background threads. Clones share them.
#[derive(Clone)]
pub struct SharedResources {
    pub(super) settings: StoreSettings,
    pub(super) cache: Cache,
    memtables: Arc<MemtableBudget>,
    memtable_writer: Arc<MemtableWriter>,
    env: Env,
}

impl SharedResources {
    /// Creates the block cache, the memtable budget and the threads.
    pub fn new(settings: StoreSettings) -> Result<Self, Fault> {
        Ok(Self {
            env: environment(&settings)?,
            cache: Cache::new_hyper_clock_cache(settings.cache_bytes, 0),
            memtables: Arc::new(MemtableBudget::new(settings.memtable_budget())),
            memtable_writer: Arc::new(MemtableWriter::start(settings.memtable_budget())?),
            settings,
        })
    }

    /// The present settings.
    pub fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// Checks that the file system of `directory` has more free space than the reserve.
    ///
    /// # Errors
    /// [`Fault::DiskFull`].
    pub fn room(&self, directory: &Path) -> Result<(), Fault> {
        health::space_shortage(directory, self.settings.disk_reserve_bytes)
            .map_or(Ok(()), |shortage| Err(Fault::DiskFull(shortage)))
    }

    /// Bytes in the block cache.
    pub fn cache_used(&self) -> usize {
        self.cache.get_usage()
    }

    /// Bytes of the memtables and write buffers of all stores.
    pub fn memtable_bytes_used(&self) -> usize {
        self.memtables.used() + self.write_buffer_bytes()
    }

    /// Bytes of the write buffers of all stores: entries that are applied, but not in the
    /// memtables yet.
    pub fn write_buffer_bytes(&self) -> usize {
        self.memtable_writer.total().load(Ordering::Relaxed)
    }

    pub(super) fn memtable_writer(&self) -> &MemtableWriter {
        &self.memtable_writer
    }

    /// The share of a store that is about to be opened.
    pub(super) fn share(&self) -> StoreShare {
        MemtableBudget::share(&self.memtables)
    }

    /// The options of a store as a whole.
    pub(super) fn database(&self) -> Options {
        let mut options = Options::default();
        options.set_env(&self.env);
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        // The Raft log is the WAL: every write disables RocksDB's own. A flush includes
        // all families at once, so that the state on disk is of one moment.
        options.set_atomic_flush(true);
        options.set_write_buffer_manager(self.memtables.manager());
        // Only the apply path writes, so no concurrency needs preparation.
        options.set_allow_concurrent_memtable_write(false);
        options.set_enable_write_thread_adaptive_yield(false);
        options.set_max_background_jobs(self.settings.background_jobs());
        options.set_max_open_files(-1);
        options.set_max_file_opening_threads(4);
        options.set_skip_stats_update_on_db_open(true);
        options.set_bytes_per_sync(1 << 20);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.set_log_level(LogLevel::Info);
        options.set_max_log_file_size(1 << 20);
        options.set_keep_log_file_num(3);
        options.set_max_manifest_file_size(1 << 20);
        options.set_manifest_preallocation_size(16 << 10);
        health::resume_when_space_returns(&options, &self.env);
        options
    }

    /// The options of one family.
    fn family(&self, family: Family, share: &StoreShare) -> Result<Options, Fault> {
        let mut options = with_text_options()?;
        // The memtable writer and the budget over all stores flush earlier than this.
        let write_buffer = self.settings.memtable_budget().max(1 << 20);
        options.set_write_buffer_size(write_buffer);
        options.set_max_write_buffer_number(4);
        // Small arena blocks: a store with a few records takes a few pages of the budget.
        options.set_arena_block_size(4 << 10);
        if let Some(bytes) = share.filter_bytes().filter(|_| family != Family::Default) {
            // Most reads are not of recent writes: a filter spares them the search of the
            // memtable.
            options.set_memtable_prefix_bloom_ratio(bytes as f64 / write_buffer as f64);
            options.set_memtable_whole_key_filtering(true);
        }
        options.set_level_compaction_dynamic_level_bytes(true);
        // RocksDB's default is 4. Each compaction of these files rewrites the parts of
        // the level below that they overlap, and random keys overlap all of it.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_target_file_size_base(32 << 20);
        options.set_max_bytes_for_level_base(128 << 20);
        options.set_compression_type(DBCompressionType::Lz4);
        let bottom = if self.settings.zstd_bottom {
            DBCompressionType::Zstd
        } else {
            DBCompressionType::Lz4
        };
        options.set_bottommost_compression_type(bottom);
        if family == Family::Cell {
            options.set_periodic_compaction_seconds(self.settings.periodic_compaction_seconds);
        }
        options.set_block_based_table_factory(&self.tables(family));
        Ok(options)
    }

    fn tables(&self, family: Family) -> BlockBasedOptions {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_cache(&self.cache);
        tables.set_cache_index_and_filter_blocks(true);
        tables.set_cache_index_and_filter_blocks_with_high_priority(true);
        tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
        tables.set_index_type(BlockBasedIndexType::BinarySearch);
        tables.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        tables.set_data_block_hash_ratio(0.75);
        tables.set_format_version(6);
        if family != Family::Default {
            tables.set_bloom_filter(10.0, false);
            tables.set_whole_key_filtering(true);
            tables.set_optimize_filters_for_memory(true);
        }
        tables
    }

    pub(super) fn families(
        &self,
        compaction_filter: Option<&Arc<FilterShared>>,
        share: &StoreShare,
    ) -> Result<Vec<ColumnFamilyDescriptor>, Fault> {
        let describe = |family: Family| {
            let mut options = self.family(family, share)?;
            match (family, compaction_filter) {
                (Family::Cell, Some(compaction_filter)) => options
                    .set_compaction_filter_factory(CellFilterFactory(compaction_filter.clone())),
                (Family::Head, Some(compaction_filter)) => options
                    .set_compaction_filter_factory(HeadFilterFactory(compaction_filter.clone())),
                _ => {}
            }
            Ok(ColumnFamilyDescriptor::new(family.name(), options))
        };
        Family::ALL.into_iter().map(describe).collect()
    }
}

/// RocksDB's environment with its background threads.
fn environment(settings: &StoreSettings) -> Result<Env, Fault> {
    // RocksDB uses a quarter of the jobs for flushes. If it finds fewer threads than that
    // when a store is opened, it starts the others itself, and they inherit the opener's
    // niceness.
    let jobs = settings.background_jobs();
    let flushes = (jobs / 4).max(1);
    let (flush_threads, compaction_threads) =
        (settings.flush_threads.max(flushes), settings.compaction_threads.max(jobs - flushes));
    let threads = background::spawn("environment", move || {
        let mut env = Env::new()?;
        env.set_high_priority_background_threads(flush_threads);
        env.set_low_priority_background_threads(compaction_threads);
        Ok::<_, rocksdb::Error>(env)
    })?;
    let env = threads.join().map_err(|_| Fault::Io {
        doing: "set up RocksDB's environment".into(),
        reason: "its thread panicked".into(),
    })?;
    env.map_err(|error| Fault::io("set up RocksDB's environment", error))
}

/// Options without setters in the crate, which RocksDB takes as a string:
/// - A memtable starts its search for a key's place at the previous one, because batches
///   come in key order. The prefix of no bytes makes one hint for all keys.
/// - The blocks of a deleted file are removed from the block cache; 300 is the value that
///   `options.h` recommends.
fn with_text_options() -> Result<Options, Fault> {
    const TEXT: &CStr =
        c"memtable_insert_with_hint_prefix_extractor=fixed:0;uncache_aggressiveness=300";
    let (base, options) = (Options::default(), Options::default());
    let mut error = ptr::null_mut();
    // SAFETY: both options live; the error, if any, is a C string from malloc that is
    // ours.
    unsafe {
        ffi::rocksdb_get_options_from_string(
            base.as_raw_ptr(),
            TEXT.as_ptr(),
            options.as_raw_ptr(),
            &raw mut error,
        );
        if !error.is_null() {
            let reason = CStr::from_ptr(error).to_string_lossy().into_owned();
            ffi::rocksdb_free(error.cast());
            return Err(Fault::Io { doing: "set RocksDB's options".to_owned(), reason });
        }
    }
    Ok(options)
}
