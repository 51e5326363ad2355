//! The records that a batch changes.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::key;
use crate::view::{Fault, View};

/// The keyspace of a record in the partition: one RocksDB column family each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// The partition's own state: counters, time index. RocksDB's `default`.
    State = 0,
    /// One record per row.
    Head = 1,
    /// Members of collections.
    Cell = 2,
}

impl Family {
    /// All, in order.
    pub const ALL: [Family; 3] = [Family::State, Family::Head, Family::Cell];
}

/// The size of a record in a batch besides its key and value, at most.
const RECORD_BYTES: usize = 12;

/// Puts and deletes, the last one of each key, and a flag that everything below was
/// cleared first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Edits {
    /// Everything in `Head`, `Cell` and the time index was deleted before the records
    /// were written (FLUSHDB).
    pub clear: bool,
    /// The new value of each record, `None` = deleted; one map a family, so that a
    /// look-up needs no owned key.
    records: [BTreeMap<Bytes, Option<Bytes>>; 3],
    /// The size of all records in a batch.
    bytes: usize,
    /// The maximum size, if there is one.
    bytes_max: Option<usize>,
    /// True once a change was dropped because it would have passed the maximum.
    is_over: bool,
}

impl Edits {
    /// Edits of at most `bytes_max` bytes, as counted by [`Edits::bytes`]. Changes beyond
    /// that are dropped: edits that are [over](Edits::is_over) are of no use.
    pub fn bounded(bytes_max: usize) -> Edits {
        Edits { bytes_max: Some(bytes_max), ..Edits::default() }
    }

    /// True if there were more changes than the maximum allows.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// True if nothing is changed.
    pub fn is_empty(&self) -> bool {
        !self.clear && self.records.iter().all(BTreeMap::is_empty)
    }

    /// The number of changed records.
    pub fn len(&self) -> usize {
        self.records.iter().map(BTreeMap::len).sum()
    }

    /// Sets a record.
    pub fn put(&mut self, family: Family, key: Bytes, value: Bytes) {
        self.change(family, key, Some(value));
    }

    /// Deletes a record.
    pub fn delete(&mut self, family: Family, key: Bytes) {
        self.change(family, key, None);
    }

    fn change(&mut self, family: Family, key: Bytes, value: Option<Bytes>) {
        let (key_bytes, bytes) = (key.len(), record_bytes(&key, value.as_ref()));
        if self.bytes_max.is_some_and(|max| self.bytes + bytes > max) {
            self.is_over = true;
            return;
        }
        self.bytes += bytes;
        if let Some(before) = self.records[family as usize].insert(key, value) {
            self.bytes -= RECORD_BYTES + key_bytes + before.map_or(0, |value| value.len());
        }
    }

    /// The edit of a record: `None` = unchanged, `Some(None)` = deleted.
    pub fn get(&self, family: Family, key: &[u8]) -> Option<Option<&Bytes>> {
        match self.records[family as usize].get(key) {
            Some(value) => Some(value.as_ref()),
            None if self.hides(family, key) => Some(None),
            None => None,
        }
    }

    /// True if the edits change the head or a cell of the row at `place`, the prefix of
    /// their keys.
    pub fn touches_row(&self, place: &[u8]) -> bool {
        let from = (Bound::Included(place), Bound::Unbounded);
        let first = |family: Family| self.records[family as usize].range::<[u8], _>(from).next();
        [Family::Head, Family::Cell]
            .into_iter()
            .filter_map(first)
            .any(|(key, _)| key.starts_with(place))
    }

    /// The changed records by family and key: family, key, new value (`None` = deleted).
    /// [`Edits::clear`] comes before them.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &Bytes, Option<&Bytes>)> {
        Family::ALL.into_iter().flat_map(|family| {
            self.records[family as usize]
                .iter()
                .map(move |(key, value)| (family, key, value.as_ref()))
        })
    }

    /// As [`Edits::iter`], by value.
    pub fn into_records(self) -> impl Iterator<Item = (Family, Bytes, Option<Bytes>)> {
        Family::ALL.into_iter().zip(self.records).flat_map(|(family, records)| {
            records.into_iter().map(move |(key, value)| (family, key, value))
        })
    }

    /// Adds later edits, which replace these on the same keys.
    pub fn merge(&mut self, later: Edits) {
        if later.clear {
            self.clear_rows();
        }
        self.is_over |= later.is_over;
        for (family, key, value) in later.into_records() {
            self.change(family, key, value);
        }
    }

    /// Clears all rows, those below and those written by these edits so far. Counters
    /// stay.
    pub fn clear_rows(&mut self) {
        self.clear = true;
        self.records[Family::Head as usize].clear();
        self.records[Family::Cell as usize].clear();
        self.records[Family::State as usize].retain(|key, _| !key.starts_with(key::TIME_INDEX));
        self.bytes = self.iter().map(|(_, key, value)| record_bytes(key, value)).sum();
    }

    /// The size of the changed records in a batch, at most.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if `clear` hides the record below.
    fn hides(&self, family: Family, key: &[u8]) -> bool {
        self.clear && (family != Family::State || key.starts_with(key::TIME_INDEX))
    }
}

fn record_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    RECORD_BYTES + key.len() + value.map_or(0, Bytes::len)
}

/// A view with edits on top of it, which is a view itself: the state of a batch, or of
/// the batch after one in flight.
pub struct Overlay<'a> {
    /// The edits, which are read first.
    pub edits: &'a Edits,
    /// The view below.
    pub view: &'a dyn View,
}

impl View for Overlay<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.edits.get(family, key) {
            Some(value) => Ok(value.cloned()),
            None => self.view.get(family, key),
        }
    }

    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.edits.get(family, key) {
            Some(value) => Ok(value.cloned()),
            None => self.view.metadata(family, key),
        }
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
        let mut mine = self.edits.records[family as usize]
            .range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            .peekable();
        if mine.peek().is_none() && !self.edits.clear {
            return self.view.range(family, from, to, reverse, each);
        }
        if reverse {
            merge(self, family, from, to, mine.rev(), reverse, each)
        } else {
            merge(self, family, from, to, mine, reverse, each)
        }
    }

    fn recall_cursor(&self, row: &[u8], cursor: u64) -> Option<Bytes> {
        self.view.recall_cursor(row, cursor)
    }

    fn remember_cursor(&self, row: &[u8], cursor: u64, sortkey: &[u8]) -> bool {
        self.view.remember_cursor(row, cursor, sortkey)
    }

    fn is_spent(&self) -> bool {
        self.view.is_spent()
    }

    fn depends_on_time(&self, past_ms: u64) {
        self.view.depends_on_time(past_ms);
    }

    fn has_time_for(&self, ns: u64) -> bool {
        self.view.has_time_for(ns)
    }
}

/// Walks the records below and the edits together, in key order or against it. An edit
/// replaces the record of the same key.
fn merge<'e>(
    over: &Overlay<'_>,
    family: Family,
    from: &[u8],
    to: &[u8],
    mine: impl Iterator<Item = (&'e Bytes, &'e Option<Bytes>)>,
    reverse: bool,
    each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), Fault> {
    let mut mine = mine.peekable();
    let mut broken = false;
    over.view.range(family, from, to, reverse, &mut |key, value| {
        let mut replaced = over.edits.hides(family, key);
        while let Some((edited, new)) = mine
            .next_if(|(edited, _)| if reverse { edited[..] >= *key } else { edited[..] <= *key })
        {
            replaced |= edited == key;
            if let Some(new) = new
                && each(edited, new).is_break()
            {
                broken = true;
                return ControlFlow::Break(());
            }
        }
        if replaced {
            return ControlFlow::Continue(());
        }
        let flow = each(key, value);
        broken = flow.is_break();
        flow
    })?;
    if !broken {
        for (key, new) in mine {
            if let Some(new) = new
                && each(key, new).is_break()
            {
                break;
            }
        }
    }
    Ok(())
}
