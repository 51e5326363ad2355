//! The compaction filter of `cell`: drops members of collections that were deleted or replaced.
//!
//! Deleting a collection only drops its head; what lay under its generation is invisible at once and is dropped here, whenever compaction comes by. This module knows neither
//! heads nor cells: a [`CellJudge`] reads them.
//!
//! # Why it is safe
//! A generation is given once. So a cell whose generation was given and is not its head's is dead for ever after. It is dropped when it is dead
//! - as the oldest reader sees it (the oldest snapshot held when the compaction starts, or a fresh one when there is none): later readers see later states, in which it is dead too;
//! - and in the state on disk: after a crash the heads are read from there, and with `interval` or `os` durability the entry that deleted the row may be lost with the log's tail.
//!
//! What cannot be read or understood is kept.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{DB, DBRawIteratorWithThreadMode};

use super::db::Db;
use super::view::Pinned;
use crate::batch::Family;

/// Reads heads and cells for the store, which does not know them.
pub trait CellJudge: Send + Sync + 'static {
    /// Writes the key of the head that owns `cell` into `head`, which is empty, and says under which generation the cell lies. `None`: not understood, so kept.
    fn owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64>;

    /// The generation whose cells a head owns.
    fn owned(&self, head: &[u8]) -> Owned;

    /// The key in `Default` of the counter of generations.
    fn counter_key(&self) -> &[u8];

    /// The first generation that was not yet given when the counter had this value: every smaller one was given. `None`: not understood.
    fn first_unused(&self, counter: &[u8]) -> Option<u64>;
}

/// What a head says about cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owned {
    /// Cells of this generation are its members.
    Generation(u64),
    /// It has no cells (a string).
    Nothing,
    /// It was not understood: all cells are kept.
    Unreadable,
}

/// How much the filters of a store have dropped since it was opened.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) cells: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// What the filters of one database share.
pub(super) struct Sweep {
    judge: Arc<dyn CellJudge>,
    db: OnceLock<DbPointer>,
    swept: Swept,
}

/// The database that the filters read. It owns them, so they cannot own it.
struct DbPointer(*const Db);
// SAFETY: `Db` is `Sync`; see `Sweep::db` for why the pointer is alive when it is followed.
unsafe impl Send for DbPointer {}
// SAFETY: as above.
unsafe impl Sync for DbPointer {}

impl Sweep {
    pub(super) fn new(judge: Arc<dyn CellJudge>) -> Arc<Self> {
        Arc::new(Self { judge, db: OnceLock::new(), swept: Swept::default() })
    }

    /// Lets filters work; before, they keep everything.
    pub(super) fn attach(&self, db: &Arc<Db>) {
        let _ = self.db.set(DbPointer(Arc::as_ptr(db)));
    }

    pub(super) fn swept(&self) -> &Swept {
        &self.swept
    }

    /// Only for code that runs inside a compaction of this database.
    fn db(&self) -> Option<&Db> {
        // SAFETY: compactions run only while the database is open, and `Db::drop` waits for them before anything of it goes away.
        self.db.get().map(|pointer| unsafe { &*pointer.0 })
    }
}

pub(super) struct Factory(pub(super) Arc<Sweep>);

impl CompactionFilterFactory for Factory {
    type Filter = Filter;

    fn create(&mut self, _: CompactionFilterContext) -> Filter {
        Filter { sweep: self.0.clone(), bench: Bench::open(&self.0), last: None, head: Vec::new(), cells: 0, bytes: 0 }
    }

    fn name(&self) -> &CStr {
        c"bridle.cells.factory"
    }
}

/// The state that one compaction judges by.
struct Bench {
    // Dropped in this order: the cursor points into the snapshot.
    heads: DBRawIteratorWithThreadMode<'static, DB>,
    first_unused: u64,
    _pinned: Arc<Pinned>,
}

impl Bench {
    fn open(sweep: &Sweep) -> Option<Self> {
        let db = sweep.db()?;
        let key = sweep.judge.counter_key();
        let on_disk = db.get_flushed(Family::Default, key).ok()??;
        let pinned = db.readers().oldest().unwrap_or_else(|| db.pin());
        let seen = db.get(pinned.options(), Family::Default, key).ok()??;
        let first_unused = sweep.judge.first_unused(&on_disk)?.min(sweep.judge.first_unused(&seen)?);
        let heads = db.cursor(&pinned, Family::Head);
        Some(Self { heads, first_unused, _pinned: pinned })
    }

    fn owned(&mut self, judge: &dyn CellJudge, head: &[u8]) -> Owned {
        self.heads.seek(head);
        match self.heads.item() {
            Some((key, value)) if key == head => judge.owned(value),
            None if self.heads.status().is_err() => Owned::Unreadable,
            _ => Owned::Nothing,
        }
    }
}

/// The filter of one compaction; used by one thread.
pub(super) struct Filter {
    sweep: Arc<Sweep>,
    bench: Option<Bench>,
    /// The head last looked up, what it owns as the oldest reader sees it, and in the state on disk once that was asked.
    last: Option<(Vec<u8>, Owned, Option<Owned>)>,
    head: Vec<u8>,
    cells: u64,
    bytes: u64,
}

impl Filter {
    fn is_dead(&mut self, cell: &[u8]) -> bool {
        let Some(bench) = &mut self.bench else { return false };
        let judge = &*self.sweep.judge;
        self.head.clear();
        let Some(generation) = judge.owner(cell, &mut self.head) else { return false };
        if generation >= bench.first_unused {
            return false;
        }
        let buried = |owned| match owned {
            Owned::Generation(alive) => alive != generation,
            Owned::Nothing => true,
            Owned::Unreadable => false,
        };
        // Cells come in key order, so a row's verdict is asked once.
        if self.last.as_ref().is_none_or(|(head, ..)| *head != self.head) {
            let owned = bench.owned(judge, &self.head);
            let (mut head, ..) = self.last.take().unwrap_or((Vec::new(), owned, None));
            head.clone_from(&self.head);
            self.last = Some((head, owned, None));
        }
        let Some((head, seen, on_disk)) = &mut self.last else { return false };
        if !buried(*seen) {
            return false;
        }
        let on_disk = *on_disk.get_or_insert_with(|| match self.sweep.db().map(|db| db.get_flushed(Family::Head, head)) {
            Some(Ok(Some(value))) => judge.owned(&value),
            Some(Ok(None)) => Owned::Nothing,
            Some(Err(_)) | None => Owned::Unreadable,
        });
        buried(on_disk)
    }
}

impl CompactionFilter for Filter {
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

impl Drop for Filter {
    fn drop(&mut self) {
        self.sweep.swept.cells.fetch_add(self.cells, Ordering::Relaxed);
        self.sweep.swept.bytes.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batch::BatchWriter;
    use crate::store::{Patience, Settings, Shared, Store, Write, compact};

    /// One row, "h"; a cell's key is its generation.
    struct OneRow;

    impl CellJudge for OneRow {
        fn owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64> {
            head.push(b'h');
            Some(u64::from(*cell.first()?))
        }

        fn owned(&self, head: &[u8]) -> Owned {
            head.first().map_or(Owned::Unreadable, |generation| Owned::Generation(u64::from(*generation)))
        }

        fn counter_key(&self) -> &[u8] {
            b"next"
        }

        fn first_unused(&self, counter: &[u8]) -> Option<u64> {
            counter.first().map(|next| u64::from(*next))
        }
    }

    #[test]
    fn cells_are_kept_until_the_end_of_their_head_is_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_swept(&Shared::new(Settings::default()).unwrap(), directory.path(), Arc::new(OneRow)).unwrap();
        let apply = |index, fill: &dyn Fn(&mut BatchWriter)| {
            let mut writer = BatchWriter::new();
            fill(&mut writer);
            let write = Write { index, log_id: Bytes::new(), batch: writer.finish(), membership: None };
            store.apply(&[write], Patience::Wait).unwrap();
        };
        apply(1, &|batch| {
            batch.put(Family::Default, b"next", &[9]);
            batch.put(Family::Head, b"h", &[5]);
            batch.put(Family::Cell, &[4], b"dead on disk");
            batch.put(Family::Cell, &[5], b"dead in memory");
        });
        store.flush().unwrap();
        apply(2, &|batch| batch.delete(Family::Head, b"h"));
        // As automatic compaction does: what is in memory stays there (no cell is, and a range is named).
        compact::rewrite(&store.db().unwrap(), Family::Cell, Some(&[0]), Some(&[9]));
        assert_eq!(store.flushed().unwrap().unwrap().index, 1, "the deletion was flushed: the test proves nothing");
        assert_eq!(store.get(Family::Cell, &[4]).unwrap(), None);
        assert!(store.get(Family::Cell, &[5]).unwrap().is_some());
        store.flush().unwrap();
        compact::rewrite(&store.db().unwrap(), Family::Cell, Some(&[0]), Some(&[9]));
        assert_eq!(store.get(Family::Cell, &[5]).unwrap(), None);
    }
}
