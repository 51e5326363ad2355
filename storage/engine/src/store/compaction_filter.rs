//! The compaction filters of `cell` and `head`: they drop members of collections that
//! were deleted, replaced or have expired, and the values of strings that have expired.
//!
//! The deletion of a collection removes only its head. The cells of its generation are
//! invisible from then on, and are dropped here when compaction reaches them. So are the
//! members of an expired row, before the expiry cycle reaches it, and the value of an
//! expired string. Heads themselves, counters and the time index are removed by the
//! expiry cycle only: a head that one replica dropped would be absent there, not expired,
//! to the next write, and the counters would differ. This module understands neither
//! heads nor cells: a [`Liveness`] decodes them.
//!
//! # Why it is safe
//! A *state* is the result of all entries up to some index. It has a stamp, the time of
//! its last batch. A reader of the state, or the evaluation of a batch on it, uses a time
//! that is not before that stamp, because stamps never run backwards in a partition,
//! whoever leads it. All states that will ever be read here follow one of two:
//! - the state of the oldest reader (the oldest snapshot that is open when the compaction
//!   starts, or a fresh one if there is none); the write buffer of that reader only makes
//!   its state later;
//! - or the state on disk, after a crash: with `interval` or `os` durability, entries
//!   behind it may be lost with the log's tail and replaced by others. A snapshot that is
//!   sent to another replica follows it as well.
//!
//! *A cell* is dropped when it is dead in both of these states. It is dead in a state
//! - if its generation was given but is not the one of its head: a generation is given
//!   once, so no later state has it either;
//! - or if its head has expired by the state's stamp. In this state and in all later ones
//!   the row is dead: a write makes a new row with a new generation, or leaves none. An
//!   EXPIRE or PERSIST that prolongs a row is evaluated while the row lives, so it is in
//!   the log before the first batch whose stamp is at or after the row's expiry, and a
//!   state with such a stamp includes it.
//!
//! *A head* is judged on its own, because compaction may see one that was replaced in a
//! higher level. Its value is dropped if its expiry is not after the stamps of both
//! states. States in which it is visible and not expired precede both, and nothing reads
//! them any more. In all others it has expired, or a later head replaces it. The parts
//! that a write to a dead row needs of its head (the expiry, the kind, a hash's counts)
//! stay. Batches carry finished records, so no batch in progress is made from a value
//! that was dropped.
//!
//! Anything that cannot be read or decoded is kept. A test in `storage`'s
//! `compaction_filter.rs` tries all this with random operations, readers and crashes.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{DB, DBRawIteratorWithThreadMode};

use super::db::Db;
use super::snapshot::PinnedSnapshot;
use crate::batch::Family;

/// Decodes heads, cells and stamps for the store, which does not understand them.
pub trait Liveness: Send + Sync + 'static {
    /// Writes the key of the head that owns `cell` into `head`, which is empty, and
    /// returns the generation of the cell. `None`: it cannot be decoded, so it is kept.
    fn find_owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64>;

    /// The generation whose cells a head owns.
    fn parse_owner(&self, head: &[u8]) -> Owner;

    /// The number of a head's first bytes to keep if every state has this stamp or a
    /// later one; `None`: all of them.
    fn kept_len(&self, head: &[u8], stamp_ms: u64) -> Option<usize>;

    /// The key in `Default` of the stamp of the last batch.
    fn stamp_key(&self) -> &[u8];

    /// Decodes a stamp, ms; `None` if that is impossible.
    fn stamp_ms(&self, stamp: &[u8]) -> Option<u64>;

    /// The key in `Default` of the counter of generations.
    fn counter_key(&self) -> &[u8];

    /// The first generation that was not given yet when the counter had this value; every
    /// smaller one was given. `None`: it cannot be decoded.
    fn first_unused(&self, counter: &[u8]) -> Option<u64>;
}

/// The cells that a head owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Those of this generation, until this time (ms; `None`: for ever).
    Generation(u64, Option<u64>),
    /// None: the row is a string.
    Nothing,
    /// Unknown: the head cannot be decoded, so all cells are kept.
    Unreadable,
}

/// Cells and bytes that the filters of a store have dropped since it was opened.
#[derive(Debug, Default)]
pub(super) struct FilterStats {
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The state that the filters of one database share.
pub(super) struct FilterShared {
    liveness: Arc<dyn Liveness>,
    db: OnceLock<DbPointer>,
    filter_stats: FilterStats,
}

/// The database that the filters read. It owns them, so they cannot own it.
struct DbPointer(*const Db);
// SAFETY: `Db` is `Sync`; see `FilterShared::db` for why the pointer is alive when it is
// followed.
unsafe impl Send for DbPointer {}
// SAFETY: as above.
unsafe impl Sync for DbPointer {}

impl FilterShared {
    pub(super) fn new(liveness: Arc<dyn Liveness>) -> Arc<Self> {
        Arc::new(Self { liveness, db: OnceLock::new(), filter_stats: FilterStats::default() })
    }

    /// Enables the filters; before, they keep everything.
    pub(super) fn attach(&self, db: &Arc<Db>) {
        let _ = self.db.set(DbPointer(Arc::as_ptr(db)));
    }

    pub(super) fn filter_stats(&self) -> &FilterStats {
        &self.filter_stats
    }

    /// The earlier one of the stamps of a reader's state and of the state on disk.
    /// `None`: one of them has no stamp, or it cannot be read.
    fn stamp_ms(&self, db: &Db, pinned: &PinnedSnapshot) -> Option<u64> {
        let key = self.liveness.stamp_key();
        let on_disk = self.liveness.stamp_ms(&db.get_flushed(Family::Default, key).ok()??)?;
        let seen =
            self.liveness.stamp_ms(&db.get(pinned.options(), Family::Default, key).ok()??)?;
        Some(on_disk.min(seen))
    }

    /// Only for code that runs inside a compaction of this database.
    fn db(&self) -> Option<&Db> {
        // SAFETY: compactions run only while the database is open, and `Db::drop` waits
        // for them before anything of it goes away.
        self.db.get().map(|pointer| unsafe { &*pointer.0 })
    }
}

pub(super) struct CellFilterFactory(pub(super) Arc<FilterShared>);

impl CompactionFilterFactory for CellFilterFactory {
    type Filter = CellFilter;

    fn create(&mut self, _: CompactionFilterContext) -> CellFilter {
        CellFilter {
            filters: self.0.clone(),
            context: FilterContext::open(&self.0),
            last: None,
            head: Vec::new(),
            cells: 0,
            bytes: 0,
        }
    }

    fn name(&self) -> &CStr {
        c"bridle.cells.factory"
    }
}

/// Makes filters of `head`.
pub(super) struct HeadFilterFactory(pub(super) Arc<FilterShared>);

impl CompactionFilterFactory for HeadFilterFactory {
    type Filter = HeadFilter;

    fn create(&mut self, _: CompactionFilterContext) -> HeadFilter {
        let stamp_ms = self.0.db().and_then(|db| self.0.stamp_ms(db, &oldest(db)));
        HeadFilter { filters: self.0.clone(), stamp_ms: stamp_ms.unwrap_or(0), bytes: 0 }
    }

    fn name(&self) -> &CStr {
        c"bridle.heads.factory"
    }
}

/// The filter of one compaction of `head`; used by one thread.
pub(super) struct HeadFilter {
    filters: Arc<FilterShared>,
    /// Every state that is read from now on has this stamp or a later one; 0 = unknown.
    stamp_ms: u64,
    bytes: u64,
}

impl CompactionFilter for HeadFilter {
    fn filter(&mut self, _level: u32, _key: &[u8], value: &[u8]) -> Decision {
        let kept_len = self
            .filters
            .liveness
            .kept_len(value, self.stamp_ms)
            .and_then(|kept_len| value.get(..kept_len));
        match kept_len.filter(|kept_len| kept_len.len() < value.len()) {
            None => Decision::Keep,
            Some(kept_len) => {
                self.bytes += (value.len() - kept_len.len()) as u64;
                // SAFETY: RocksDB copies the new value as soon as this returns, and the
                // old one, of which it is a part, is its own and stays until then.
                Decision::Change(unsafe { std::mem::transmute::<&[u8], &'static [u8]>(kept_len) })
            }
        }
    }

    fn name(&self) -> &CStr {
        c"bridle.heads"
    }
}

impl Drop for HeadFilter {
    fn drop(&mut self) {
        self.filters.filter_stats.bytes.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// The state of the oldest reader, or a fresh one.
fn oldest(db: &Db) -> Arc<PinnedSnapshot> {
    db.open_snapshots().oldest().unwrap_or_else(|| db.pin())
}

/// The states by which one compaction decides.
struct FilterContext {
    // Dropped in this order: the cursor points into the snapshot.
    heads: DBRawIteratorWithThreadMode<'static, DB>,
    first_unused: u64,
    /// Rows that have expired by this stamp have expired in both states; 0 = unknown.
    stamp_ms: u64,
    _pinned: Arc<PinnedSnapshot>,
}

impl FilterContext {
    fn open(filters: &FilterShared) -> Option<Self> {
        let db = filters.db()?;
        let key = filters.liveness.counter_key();
        let on_disk = db.get_flushed(Family::Default, key).ok()??;
        let pinned = oldest(db);
        let seen = db.get(pinned.options(), Family::Default, key).ok()??;
        let first_unused =
            filters.liveness.first_unused(&on_disk)?.min(filters.liveness.first_unused(&seen)?);
        let stamp_ms = filters.stamp_ms(db, &pinned).unwrap_or(0);
        let heads = db.cursor(&pinned, Family::Head);
        Some(Self { heads, first_unused, stamp_ms, _pinned: pinned })
    }

    fn parse_owner(&mut self, liveness: &dyn Liveness, head: &[u8]) -> Owner {
        self.heads.seek(head);
        match self.heads.item() {
            Some((key, value)) if key == head => liveness.parse_owner(value),
            None if self.heads.status().is_err() => Owner::Unreadable,
            _ => Owner::Nothing,
        }
    }
}

/// The filter of one compaction of `cell`; used by one thread.
pub(super) struct CellFilter {
    filters: Arc<FilterShared>,
    context: Option<FilterContext>,
    /// The last head that was looked up, with its cells in the state of the oldest
    /// reader, and in the state on disk once that was needed.
    last: Option<(Vec<u8>, Owner, Option<Owner>)>,
    head: Vec<u8>,
    cells: u64,
    bytes: u64,
}

impl CellFilter {
    fn is_dead(&mut self, cell: &[u8]) -> bool {
        let Some(context) = &mut self.context else { return false };
        let liveness = &*self.filters.liveness;
        self.head.clear();
        let Some(generation) = liveness.find_owner(cell, &mut self.head) else { return false };
        if generation >= context.first_unused {
            return false;
        }
        let stamp_ms = context.stamp_ms;
        let buried = |cells| match cells {
            Owner::Generation(alive, until_ms) => {
                alive != generation || until_ms.is_some_and(|until_ms| until_ms <= stamp_ms)
            }
            Owner::Nothing => true,
            Owner::Unreadable => false,
        };
        // Cells come in key order, so each row is looked up once.
        if self.last.as_ref().is_none_or(|(head, ..)| *head != self.head) {
            let cells = context.parse_owner(liveness, &self.head);
            let (mut head, ..) = self.last.take().unwrap_or((Vec::new(), cells, None));
            head.clone_from(&self.head);
            self.last = Some((head, cells, None));
        }
        let Some((head, seen, on_disk)) = &mut self.last else { return false };
        if !buried(*seen) {
            return false;
        }
        let on_disk = *on_disk.get_or_insert_with(|| {
            match self.filters.db().map(|db| db.get_flushed(Family::Head, head)) {
                Some(Ok(Some(value))) => liveness.parse_owner(&value),
                Some(Ok(None)) => Owner::Nothing,
                Some(Err(_)) | None => Owner::Unreadable,
            }
        });
        buried(on_disk)
    }
}

impl CompactionFilter for CellFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> Decision {
        if !self.is_dead(key) {
            return Decision::Keep;
        }
        self.cells += 1;
        self.bytes += (key.len() + value.len()) as u64;
        Decision::Remove
    }

    fn name(&self) -> &CStr {
        c"bridle.cells"
    }
}

impl Drop for CellFilter {
    fn drop(&mut self) {
        self.filters.filter_stats.cells.fetch_add(self.cells, Ordering::Relaxed);
        self.filters.filter_stats.bytes.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::BatchWriter;
    use crate::store::{
        EntryWrite, OnStall, SharedResources, Store, StoreSettings, manual_compaction,
    };

    /// One row, "h"; a cell's key is its generation.
    struct OneRow;

    impl Liveness for OneRow {
        fn find_owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64> {
            head.push(b'h');
            Some(u64::from(*cell.first()?))
        }

        fn parse_owner(&self, head: &[u8]) -> Owner {
            let until_ms = head.get(1).map(|until_ms| u64::from(*until_ms));
            head.first().map_or(Owner::Unreadable, |generation| {
                Owner::Generation(u64::from(*generation), until_ms)
            })
        }

        fn kept_len(&self, head: &[u8], stamp_ms: u64) -> Option<usize> {
            head.get(1).filter(|until_ms| u64::from(**until_ms) <= stamp_ms).map(|_| 2)
        }

        fn stamp_key(&self) -> &[u8] {
            b"stamp"
        }

        fn stamp_ms(&self, stamp: &[u8]) -> Option<u64> {
            stamp.first().map(|ms| u64::from(*ms))
        }

        fn counter_key(&self) -> &[u8] {
            b"next"
        }

        fn first_unused(&self, counter: &[u8]) -> Option<u64> {
            counter.first().map(|next| u64::from(*next))
        }
    }

    fn store_of_one_row() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let shared = SharedResources::new(StoreSettings::default()).unwrap();
        let store = Store::open_with_filter(&shared, directory.path(), Arc::new(OneRow)).unwrap();
        (directory, store)
    }

    fn apply(store: &Store, index: u64, fill: &dyn Fn(&mut BatchWriter)) {
        let mut writer = BatchWriter::new();
        fill(&mut writer);
        let batch = writer.finish();
        let write = EntryWrite { index, log_id: Bytes::new(), batch, membership: None };
        store.apply(&[write], OnStall::Wait).unwrap();
    }

    #[test]
    fn cells_are_kept_until_the_end_of_their_head_is_on_disk() {
        let (_directory, store) = store_of_one_row();
        let apply = |index, fill: &dyn Fn(&mut BatchWriter)| apply(&store, index, fill);
        apply(1, &|batch| {
            batch.put(Family::Default, b"next", &[9]);
            batch.put(Family::Head, b"h", &[5]);
            batch.put(Family::Cell, &[4], b"dead on disk");
            batch.put(Family::Cell, &[5], b"dead in memory");
        });
        store.flush().unwrap();
        apply(2, &|batch| batch.delete(Family::Head, b"h"));
        // As automatic compaction does: memtables stay (no cell is in them, and a range
        // is given).
        manual_compaction::compact_range(
            &store.db().unwrap(),
            Family::Cell,
            Some(&[0]),
            Some(&[9]),
        );
        assert_eq!(
            store.flushed().unwrap().unwrap().index,
            1,
            "the deletion was flushed: the test proves nothing"
        );
        assert_eq!(store.get(Family::Cell, &[4]).unwrap(), None);
        assert!(store.get(Family::Cell, &[5]).unwrap().is_some());
        store.flush().unwrap();
        manual_compaction::compact_range(
            &store.db().unwrap(),
            Family::Cell,
            Some(&[0]),
            Some(&[9]),
        );
        assert_eq!(store.get(Family::Cell, &[5]).unwrap(), None);
    }

    #[test]
    fn expired_data_stays_until_disk_and_oldest_reader_are_past_it() {
        let (_directory, store) = store_of_one_row();
        let apply = |index, fill: &dyn Fn(&mut BatchWriter)| apply(&store, index, fill);
        let compact_range = || {
            for family in [Family::Head, Family::Cell] {
                manual_compaction::compact_range(
                    &store.db().unwrap(),
                    family,
                    Some(&[0]),
                    Some(b"z"),
                );
            }
        };
        apply(1, &|batch| {
            batch.put(Family::Default, b"next", &[9]);
            batch.put(Family::Default, b"stamp", &[10]);
            // Generation 5, expires at 20, and a value.
            batch.put(Family::Head, b"h", &[5, 20, 1, 2, 3]);
            batch.put(Family::Cell, &[5], b"a member");
        });
        store.flush().unwrap();
        let head = || store.get(Family::Head, b"h").unwrap().unwrap();
        let is_whole = || head().len() == 5 && store.get(Family::Cell, &[5]).unwrap().is_some();
        compact_range();
        assert!(is_whole(), "it is not past");
        let reader = store.snapshot().unwrap();
        apply(2, &|batch| batch.put(Family::Default, b"stamp", &[20]));
        compact_range();
        assert!(is_whole(), "it is not past on disk");
        store.flush().unwrap();
        compact_range();
        assert!(is_whole(), "it is not past for a reader");
        assert_eq!(reader.get(Family::Head, b"h").unwrap().unwrap().len(), 5);
        drop(reader);
        compact_range();
        assert_eq!((&head()[..], store.get(Family::Cell, &[5]).unwrap()), (&[5, 20][..], None));
    }
}
