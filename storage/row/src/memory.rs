//! The test kit of [`View`]: a partition's records in memory.
//!
//! Any claim about rows can be tested on it without a disk: evaluate an op with a [`Tx`]
//! over a `Memory`, then [`apply`](Memory::apply) its edits, as a replica would.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::edits::{Edits, Family};
use crate::expire::{self, DueItems};
use crate::view::{Fault, Rules, Stamp, Tx, View};
use crate::{key, value};

/// A partition in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    records: BTreeMap<(Family, Bytes), Bytes>,
}

impl Memory {
    /// An empty partition.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Applies edits, as a replica does.
    pub fn apply(&mut self, edits: Edits) {
        if edits.clear {
            self.records.retain(|(family, key), _| {
                *family == Family::State && !key.starts_with(key::TIME_INDEX)
            });
        }
        for (family, key, value) in edits.into_records() {
            match value {
                Some(value) => self.records.insert((family, key), value),
                None => self.records.remove(&(family, key)),
            };
        }
    }

    /// All items that the expiry cycle finds to be due by the time index.
    pub fn due(&self, stamp: Stamp, rules: Rules) -> Result<DueItems, Fault> {
        expire::find(
            &Tx { view: self, edits: &mut Edits::default(), stamp, rules },
            b"",
            usize::MAX,
        )
    }

    /// All records, by family and key.
    pub fn records(&self) -> impl Iterator<Item = (Family, &Bytes, &Bytes)> {
        self.records.iter().map(|((family, key), value)| (*family, key, value))
    }
}

impl View for Memory {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.records.get(&(family, Bytes::copy_from_slice(key))).cloned())
    }

    /// The metadata and never more, so that a caller that relies on more fails here.
    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.get(family, key)?.map(|bytes| bytes.slice(..value::metadata(family, &bytes).len())))
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if from >= to {
            return Ok(());
        }
        let bound = |key: &[u8]| (family, Bytes::copy_from_slice(key));
        let mut found =
            self.records.range((Bound::Included(bound(from)), Bound::Excluded(bound(to))));
        let mut next = || if reverse { found.next_back() } else { found.next() };
        while let Some(((_, key), value)) = next() {
            if each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A reader of a partition in memory that records how ops use it.
#[derive(Debug)]
pub struct Reader<'a> {
    memory: &'a Memory,
    /// The number of pieces of work until it is spent.
    left: Cell<u64>,
    cursors: Option<RefCell<BTreeMap<u64, Bytes>>>,
    past_ms: Cell<u64>,
    reads: Cell<u64>,
    reads_since_look: Cell<u64>,
    longest: Cell<u64>,
}

impl<'a> Reader<'a> {
    /// A reader that is never spent and remembers no cursors.
    pub fn new(memory: &'a Memory) -> Reader<'a> {
        Reader {
            memory,
            left: Cell::new(u64::MAX),
            cursors: None,
            past_ms: Cell::default(),
            reads: Cell::default(),
            reads_since_look: Cell::default(),
            longest: Cell::default(),
        }
    }

    /// Makes it [spent](View::is_spent) after that number of pieces of work.
    pub fn spent_after(self, pieces: u64) -> Reader<'a> {
        self.left.set(pieces);
        self
    }

    /// Makes it remember HSCAN's cursors, beginning with `cursors`, unless that is
    /// `None`.
    pub fn remembering(self, cursors: Option<BTreeMap<u64, Bytes>>) -> Reader<'a> {
        Reader { cursors: cursors.map(RefCell::new), ..self }
    }

    /// The remembered cursors.
    pub fn into_cursors(self) -> Option<BTreeMap<u64, Bytes>> {
        self.cursors.map(RefCell::into_inner)
    }

    /// The latest time that an op treated as past.
    pub fn past_ms(&self) -> u64 {
        self.past_ms.get()
    }

    /// The number of records read.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// The largest number of records read between two calls of [`View::is_spent`].
    pub fn reads_between_looks(&self) -> u64 {
        self.longest.get().max(self.reads_since_look.get())
    }

    fn count(&self) {
        self.reads.set(self.reads.get() + 1);
        self.reads_since_look.set(self.reads_since_look.get() + 1);
    }
}

impl View for Reader<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.count();
        self.memory.get(family, key)
    }

    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.count();
        self.memory.metadata(family, key)
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.memory.range(family, from, to, reverse, &mut |key, value| {
            self.count();
            each(key, value)
        })
    }

    fn recall_cursor(&self, _row: &[u8], cursor: u64) -> Option<Bytes> {
        self.cursors.as_ref()?.borrow().get(&cursor).cloned()
    }

    fn remember_cursor(&self, _row: &[u8], cursor: u64, sortkey: &[u8]) -> bool {
        let Some(cursors) = &self.cursors else { return true };
        cursors.borrow_mut().entry(cursor).or_insert_with(|| Bytes::copy_from_slice(sortkey))
            == sortkey
    }

    fn is_spent(&self) -> bool {
        self.longest.set(self.reads_between_looks());
        self.reads_since_look.set(0);
        self.left.set(self.left.get().saturating_sub(1));
        self.left.get() == 0
    }

    fn depends_on_time(&self, past_ms: u64) {
        self.past_ms.set(self.past_ms.get().max(past_ms));
    }
}
