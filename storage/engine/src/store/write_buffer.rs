//! What was applied and is not yet in RocksDB's memtables: hash tables in front of them.
//!
//! A memtable is a skip list: each key costs a walk through cold memory, and each write
//! has a price of its own. A hash table takes a record for a fraction of that. So entries
//! are applied to one, and [`Drainer`](super::memtable_writer::Drainer) writes what has gathered to
//! the memtables, in key order, many at once; what was overwritten meanwhile never gets
//! there, nor to disk.
//!
//! # Pieces
//! Entries go into the fresh piece. A snapshot or a drain seals it: sealed pieces change
//! no more, and a snapshot holds those of its moment. The newest piece that names a key
//! has the word on it, before RocksDB.
//!
//! # Invariants
//! - A piece leaves only when RocksDB has its words: every state is found in the pieces
//!   and RocksDB together, at any moment (`reads_are_as_without_pieces`).
//! - A piece holds whole entries, and pieces are drained from the oldest on, all their
//!   families at once: RocksDB holds the state after some whole entry (`tests/store.rs`,
//!   `a_crash_loses_whole_entries_only`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::hash_memtable::{Piece, Range, Word};
use crate::batch::{BadBatch, Change, Family, read};

/// With so many sealed pieces, whoever applies more drains its store itself: a key is
/// looked for in all of them.
const PIECES_MAX: usize = 64;

/// So many records are fetched from memory side by side.
const AHEAD: usize = 64;

/// Single records that entries set and delete, in order.
#[derive(Default)]
pub(super) struct Words<'a>(Vec<(Family, &'a [u8], Word<'a>)>);

impl<'a> Words<'a> {
    /// Takes a batch's records; `false`, and nothing of use is left, when it changes more
    /// than single records.
    pub(super) fn take(&mut self, batch: &'a [u8]) -> Result<bool, BadBatch> {
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

    /// Sets one record more.
    pub(super) fn put(&mut self, family: Family, key: &'a [u8], value: &'a [u8]) {
        self.0.push((family, key, Some(value)));
    }
}

/// Sealed pieces, oldest first.
#[derive(Clone, Default)]
pub(super) struct Pieces(Vec<Arc<Piece>>);

impl Pieces {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of memory that they hold.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|hash_memtable| hash_memtable.bytes()).sum()
    }

    /// The last word on a key.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<Word<'_>> {
        self.0.iter().rev().find_map(|hash_memtable| hash_memtable.get(family, key))
    }

    /// The last words on the keys with `from <= key < to`, in key order or the reverse;
    /// an empty `to` is no upper end.
    pub(super) fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
    ) -> Merged<'_> {
        let heads = self.0.iter().rev().filter_map(|hash_memtable| {
            let mut rest = hash_memtable.range(family, from, to, reverse);
            Some(Head { next: rest.next()?, rest })
        });
        Merged { heads: heads.collect(), reverse }
    }
}

/// What is left of the range of one piece.
struct Head<'a> {
    next: (&'a [u8], Word<'a>),
    rest: Range<'a>,
}

/// Ranges of several pieces as one: of each key the newest word.
pub(super) struct Merged<'a> {
    /// Of the newest piece first.
    heads: Vec<Head<'a>>,
    reverse: bool,
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a [u8], Word<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let keys = self.heads.iter().map(|head| head.next.0);
        let key = if self.reverse { keys.max() } else { keys.min() }?;
        let mut newest = None;
        self.heads.retain_mut(|head| {
            if head.next.0 != key {
                return true;
            }
            newest.get_or_insert(head.next);
            head.rest.next().map(|next| head.next = next).is_some()
        });
        newest
    }
}

/// The pieces of one store.
pub(super) struct Recent {
    state: Mutex<State>,
    /// Whether there is anything to look for. Set before anybody is told of a word,
    /// cleared after RocksDB has all.
    has_words: AtomicBool,
    /// Bytes of the pieces of all stores.
    total: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    fresh: Piece,
    sealed: Pieces,
    /// How often words came.
    additions: u64,
}

/// What a store has in front of its memtables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    /// Of memory.
    pub(super) bytes: usize,
    /// Sealed pieces.
    pub(super) pieces: usize,
    /// How often words came since the store was opened.
    pub(super) additions: u64,
}

impl Recent {
    /// `total` counts the bytes of all stores.
    pub(super) fn new(total: Arc<AtomicUsize>) -> Recent {
        Recent { state: Mutex::default(), has_words: AtomicBool::new(false), total }
    }

    /// Takes the words of whole entries; says how many sealed pieces there are.
    pub(super) fn add(&self, words: &Words<'_>) -> usize {
        let mut state = self.state.lock();
        self.has_words.store(true, Ordering::Release);
        let before = state.fresh.bytes();
        for words in words.0.chunks(AHEAD) {
            state.fresh.expect(words.iter().map(|(family, key, _)| (*family, *key)));
            for (family, key, word) in words {
                state.fresh.put(*family, key, *word);
            }
        }
        state.additions += 1;
        self.total.fetch_add(state.fresh.bytes() - before, Ordering::Relaxed);
        state.sealed.0.len()
    }

    /// Whether there are too many pieces to add to them.
    pub(super) fn is_crowded(&self) -> bool {
        self.state.lock().sealed.0.len() >= PIECES_MAX
    }

    /// The last word on a key.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<Option<Bytes>> {
        if !self.has_words.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        let word = state.fresh.get(family, key).or_else(|| state.sealed.get(family, key))?;
        Some(word.map(Bytes::copy_from_slice))
    }

    /// All words so far, and what `at_once` gives, of one moment.
    pub(super) fn seal<T>(&self, at_once: impl FnOnce() -> T) -> (Pieces, T) {
        let mut state = self.state.lock();
        if !state.fresh.is_empty() {
            let fresh = std::mem::take(&mut state.fresh);
            state.sealed.0.push(Arc::new(fresh));
        }
        (state.sealed.clone(), at_once())
    }

    /// RocksDB has the words of these pieces, the oldest.
    pub(super) fn drained(&self, pieces: &Pieces) {
        let gone: Pieces = {
            let mut state = self.state.lock();
            let gone = state.sealed.0.drain(..pieces.0.len()).collect();
            self.has_words
                .store(!state.fresh.is_empty() || !state.sealed.is_empty(), Ordering::Release);
            Pieces(gone)
        };
        self.total.fetch_sub(gone.bytes(), Ordering::Relaxed);
    }

    /// What there is.
    pub(super) fn amount(&self) -> Amount {
        let state = self.state.lock();
        Amount {
            bytes: state.fresh.bytes() + state.sealed.bytes(),
            pieces: state.sealed.0.len(),
            additions: state.additions,
        }
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.total.fetch_sub(self.amount().bytes, Ordering::Relaxed);
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
            1 => (family(), "[a-d]{1,2}", "[a-d]{1,2}").prop_map(|(family, from, to)| Step::DeleteRange(family, from, to)),
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
    fn reads_are_as_without_pieces() {
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
                    Step::Drain => store.db().unwrap().drain(OnStall::Wait).unwrap(),
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
