//! The test kit beside [`View`]: a partition's records in memory.
//!
//! Everything that is said of rows can be tried on it without a disk: evaluate an op with a [`Tx`] over a `Memory`, then
//! [`apply`](Memory::apply) its edits, as a replica would.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::edits::{Edits, Family};
use crate::expire::{self, Found};
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
            self.records.retain(|(family, key), _| *family == Family::State && !key.starts_with(key::TIME_INDEX));
        }
        for (family, key, value) in edits.into_records() {
            match value {
                Some(value) => self.records.insert((family, key), value),
                None => self.records.remove(&(family, key)),
            };
        }
    }

    /// What the expiry cycle finds due by the time index, all of it.
    pub fn due(&self, stamp: Stamp, rules: Rules) -> Result<Found, Fault> {
        expire::find(&Tx { view: self, edits: &mut Edits::default(), stamp, rules }, b"", usize::MAX)
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

    /// No more than the gist, so that who uses more is found out.
    fn gist(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.get(family, key)?.map(|bytes| bytes.slice(..value::gist(family, &bytes).len())))
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
        let mut found = self.records.range((Bound::Included(bound(from)), Bound::Excluded(bound(to))));
        let mut next = || if reverse { found.next_back() } else { found.next() };
        while let Some(((_, key), value)) = next() {
            if each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A partition whose reader is [spent](View::is_spent) after so many pieces of work.
#[derive(Debug)]
pub struct Bounded<'a> {
    memory: &'a Memory,
    left: Cell<u64>,
}

impl<'a> Bounded<'a> {
    /// After `pieces`.
    pub fn new(memory: &'a Memory, pieces: u64) -> Bounded<'a> {
        Bounded { memory, left: Cell::new(pieces) }
    }
}

impl View for Bounded<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.get(family, key)
    }

    fn gist(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.gist(family, key)
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.memory.range(family, from, to, reverse, each)
    }

    fn is_spent(&self) -> bool {
        self.left.set(self.left.get().saturating_sub(1));
        self.left.get() == 0
    }
}
