//! A store's write buffer: applied records in hash tables, in front of RocksDB's
//! memtables.
//!
//! RocksDB's memtable is a skip list: each key costs a walk through cold memory, and each
//! write has a cost of its own. Inserting into a hash table is several times cheaper. So
//! entries are applied to one, and
//! [`MemtableWriter`](super::memtable_writer::MemtableWriter) moves the records to the
//! memtables in key order, many at a time. Values that were overwritten meanwhile reach
//! neither the memtables nor the disk.
//!
//! # Active and immutable memtables
//! Entries go into the active hash memtable. A snapshot, or a write to RocksDB's
//! memtables, makes it immutable; a snapshot holds the immutable ones of its moment. The
//! newest hash memtable that contains a key has its value, before RocksDB.
//!
//! # Invariants
//! - A hash memtable is dropped only after RocksDB has its records: at any moment, hash
//!   memtables and RocksDB together contain the whole state
//!   (`reads_are_as_without_a_write_buffer`).
//! - A hash memtable contains whole entries, and they are written oldest first, all
//!   families at once: RocksDB holds the state after some whole entry (`tests/store.rs`,
//!   `a_crash_loses_whole_entries_only`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::hash_memtable::{HashMemtable, MemtableRange, PointValue};
use crate::batch::{BadBatch, Change, Family, read};

/// With this many immutable memtables, a caller that applies more writes them itself:
/// each read of a key searches all of them.
const IMMUTABLES_MAX: usize = 64;

/// The number of records that are prefetched together.
const PREFETCH_RECORDS: usize = 64;

/// Puts and deletes of single keys, in order.
#[derive(Default)]
pub(super) struct PointWrites<'a>(Vec<(Family, &'a [u8], PointValue<'a>)>);

impl<'a> PointWrites<'a> {
    /// Adds a batch's records. Returns `false`, with a useless rest, if the batch
    /// contains more than puts and deletes of single keys.
    pub(super) fn add_batch(&mut self, batch: &'a [u8]) -> Result<bool, BadBatch> {
        if batch.is_empty() {
            return Ok(true);
        }
        for change in read(batch)? {
            match change? {
                Change::Put { family, key, value } => self.0.push((family, key, Some(value))),
                Change::Delete { family, key } => self.0.push((family, key, None)),
                Change::DeleteRange { .. } | Change::Clear { .. } => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Adds a put.
    pub(super) fn put(&mut self, family: Family, key: &'a [u8], value: &'a [u8]) {
        self.0.push((family, key, Some(value)));
    }
}

/// Immutable hash memtables, oldest first.
#[derive(Clone, Default)]
pub(super) struct ImmutableMemtables(Vec<Arc<HashMemtable>>);

impl ImmutableMemtables {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|memtable| memtable.bytes()).sum()
    }

    /// The last value of a key.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<PointValue<'_>> {
        self.0.iter().rev().find_map(|memtable| memtable.get(family, key))
    }

    /// The last values of the keys with `from <= key < to`, in key order or in reverse;
    /// an empty `to` means no upper end.
    pub(super) fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
    ) -> MergeIterator<'_> {
        let cursors = self.0.iter().rev().filter_map(|memtable| {
            let mut rest = memtable.range(family, from, to, reverse);
            Some(MergeCursor { next: rest.next()?, rest })
        });
        MergeIterator { cursors: cursors.collect(), reverse }
    }
}

/// The rest of one memtable's range.
struct MergeCursor<'a> {
    next: (&'a [u8], PointValue<'a>),
    rest: MemtableRange<'a>,
}

/// The merged ranges of several memtables: the newest value of each key.
pub(super) struct MergeIterator<'a> {
    /// Those of the newest memtable first.
    cursors: Vec<MergeCursor<'a>>,
    reverse: bool,
}

impl<'a> Iterator for MergeIterator<'a> {
    type Item = (&'a [u8], PointValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let keys = self.cursors.iter().map(|cursor| cursor.next.0);
        let key = if self.reverse { keys.max() } else { keys.min() }?;
        let mut newest = None;
        self.cursors.retain_mut(|cursor| {
            if cursor.next.0 != key {
                return true;
            }
            newest.get_or_insert(cursor.next);
            cursor.rest.next().map(|next| cursor.next = next).is_some()
        });
        newest
    }
}

/// The hash memtables of one store.
pub(super) struct WriteBuffer {
    state: Mutex<BufferState>,
    /// False if the buffer is empty. Set before a record is visible, cleared after
    /// RocksDB has all records.
    has_points: AtomicBool,
    /// Bytes of the hash memtables of all stores.
    total: Arc<AtomicUsize>,
}

#[derive(Default)]
struct BufferState {
    active: HashMemtable,
    immutables: ImmutableMemtables,
    /// The number of calls of `add`.
    additions: u64,
}

/// The size of a store's write buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteBufferSize {
    /// Bytes of memory.
    pub(super) bytes: usize,
    /// Number of immutable memtables.
    pub(super) immutables: usize,
    /// Number of additions since the store was opened.
    pub(super) additions: u64,
}

impl WriteBuffer {
    /// `total` counts the bytes of all stores.
    pub(super) fn new(total: Arc<AtomicUsize>) -> WriteBuffer {
        WriteBuffer { state: Mutex::default(), has_points: AtomicBool::new(false), total }
    }

    /// Adds the records of whole entries; returns the number of immutable memtables.
    pub(super) fn add(&self, points: &PointWrites<'_>) -> usize {
        let mut state = self.state.lock();
        self.has_points.store(true, Ordering::Release);
        let before = state.active.bytes();
        for points in points.0.chunks(PREFETCH_RECORDS) {
            state.active.prefetch(points.iter().map(|(family, key, _)| (*family, *key)));
            for (family, key, point) in points {
                state.active.put(*family, key, *point);
            }
        }
        state.additions += 1;
        self.total.fetch_add(state.active.bytes() - before, Ordering::Relaxed);
        state.immutables.0.len()
    }

    /// True if there are too many immutable memtables to add more records.
    pub(super) fn is_crowded(&self) -> bool {
        self.state.lock().immutables.0.len() >= IMMUTABLES_MAX
    }

    /// The last value of a key.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<Option<Bytes>> {
        if !self.has_points.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        let point = state.active.get(family, key).or_else(|| state.immutables.get(family, key))?;
        Some(point.map(Bytes::copy_from_slice))
    }

    /// Makes the active memtable immutable. Returns all records so far, and the result of
    /// `at_once`, of the same moment.
    pub(super) fn make_immutable<T>(&self, at_once: impl FnOnce() -> T) -> (ImmutableMemtables, T) {
        let mut state = self.state.lock();
        if !state.active.is_empty() {
            let active = std::mem::take(&mut state.active);
            state.immutables.0.push(Arc::new(active));
        }
        (state.immutables.clone(), at_once())
    }

    /// Drops the oldest memtables, whose records RocksDB has now.
    pub(super) fn remove_written(&self, immutables: &ImmutableMemtables) {
        let gone: ImmutableMemtables = {
            let mut state = self.state.lock();
            let gone = state.immutables.0.drain(..immutables.0.len()).collect();
            self.has_points
                .store(!state.active.is_empty() || !state.immutables.is_empty(), Ordering::Release);
            ImmutableMemtables(gone)
        };
        self.total.fetch_sub(gone.bytes(), Ordering::Relaxed);
    }

    /// The present size.
    pub(super) fn size(&self) -> WriteBufferSize {
        let state = self.state.lock();
        WriteBufferSize {
            bytes: state.active.bytes() + state.immutables.bytes(),
            immutables: state.immutables.0.len(),
            additions: state.additions,
        }
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        self.total.fetch_sub(self.size().bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::batch::BatchWriter;
    use crate::store::{EntryWrite, OnStall, SharedResources, Snapshot, Store, StoreSettings};

    type Records = BTreeMap<(Family, String), String>;

    #[derive(Debug, Clone)]
    enum Step {
        Apply(Vec<(Family, String, Option<String>)>),
        DeleteRange(Family, String, String),
        Clear(Family),
        Drain,
        Flush,
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        let family = || prop::sample::select(&Family::ALL[..]);
        let written =
            prop::collection::vec((family(), "[a-d]{1,2}", prop::option::of("[x-z]{0,3}")), 0..8);
        prop_oneof![
            8 => written.prop_map(Step::Apply),
            1 => (family(), "[a-d]{1,2}", "[a-d]{1,2}")
                .prop_map(|(family, from, to)| Step::DeleteRange(family, from, to)),
            1 => Just(Step::Clear(Family::Cell)),
            2 => Just(Step::Drain),
            1 => Just(Step::Flush),
            3 => Just(Step::Look),
        ]
    }

    fn write(step: &Step, records: &mut Records) -> BatchWriter {
        let mut writer = BatchWriter::new();
        match step {
            Step::Apply(written) => {
                for (family, key, value) in written {
                    match value {
                        Some(value) => {
                            records.insert((*family, key.clone()), value.clone());
                            writer.put(*family, key.as_bytes(), value.as_bytes());
                        }
                        None => {
                            records.remove(&(*family, key.clone()));
                            writer.delete(*family, key.as_bytes());
                        }
                    }
                }
            }
            Step::DeleteRange(family, from, to) => {
                records.retain(|(of, key), _| of != family || key < from || key >= to);
                writer.delete_range(*family, from.as_bytes(), to.as_bytes());
            }
            Step::Clear(family) => {
                records.retain(|(of, _), _| of != family);
                writer.clear(*family);
            }
            Step::Drain | Step::Flush | Step::Look => {}
        }
        writer
    }

    fn check(snapshot: &Snapshot, records: &Records) {
        for family in Family::ALL {
            for (from, to, reverse) in
                [("a", "", false), ("a", "", true), ("aa", "c", false), ("b", "cc", true)]
            {
                let mut found = Vec::new();
                let each = &mut |key: &[u8], value: &[u8]| {
                    found.push((
                        String::from_utf8_lossy(key).into_owned(),
                        String::from_utf8_lossy(value).into_owned(),
                    ));
                    if found.len() < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                };
                snapshot.range(family, from.as_bytes(), to.as_bytes(), reverse, each).unwrap();
                let within = |key: &str| key >= from && (to.is_empty() || key < to);
                let mut expected: Vec<_> = records
                    .iter()
                    .filter(|((of, key), _)| *of == family && within(key))
                    .map(|((_, key), value)| (key.clone(), value.clone()))
                    .collect();
                if reverse {
                    expected.reverse();
                }
                expected.truncate(5);
                assert_eq!(
                    found, expected,
                    "{family:?} from {from:?} to {to:?}, reverse {reverse}"
                );
            }
        }
        for ((family, key), value) in records {
            assert_eq!(snapshot.get(*family, key.as_bytes()).unwrap().unwrap(), value.as_bytes());
        }
    }

    #[test]
    fn reads_are_as_without_a_write_buffer() {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(&SharedResources::new(StoreSettings::default()).unwrap(), directory.path())
                .unwrap();
        let index = AtomicU64::new(0);
        let apply = |batch: Bytes| {
            let index = index.fetch_add(1, Ordering::Relaxed) + 1;
            store
                .apply(
                    &[EntryWrite { index, log_id: Bytes::new(), batch, membership: None }],
                    OnStall::Wait,
                )
                .unwrap();
        };
        let mut runner = TestRunner::new(ProptestConfig::with_cases(100));
        let tried = runner.run(&prop::collection::vec(step(), 0..24), |steps| {
            let (mut records, mut looks) = (Records::new(), Vec::new());
            Family::ALL.into_iter().for_each(|family| {
                apply(
                    write(&Step::DeleteRange(family, "a".into(), "z".into()), &mut records)
                        .finish(),
                )
            });
            for step in &steps {
                let batch = write(step, &mut records).finish();
                match step {
                    Step::Drain => store.db().unwrap().write_memtables(OnStall::Wait).unwrap(),
                    Step::Flush => store.flush().unwrap(),
                    Step::Look => looks.push((store.snapshot().unwrap(), records.clone())),
                    _ => apply(batch),
                }
                for key in ["a", "b", "ab", "cd"] {
                    for family in Family::ALL {
                        let expected = records
                            .get(&(family, key.to_owned()))
                            .map(|value| Bytes::from(value.clone()));
                        prop_assert_eq!(store.get(family, key.as_bytes()).unwrap(), expected);
                    }
                }
            }
            looks.push((store.snapshot().unwrap(), records));
            looks.iter().for_each(|(snapshot, records)| check(snapshot, records));
            Ok(())
        });
        tried.unwrap();
    }
}
