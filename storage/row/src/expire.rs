//! The expiry cycle: rows and members that have expired are uncounted and deleted, even
//! if no client asks for them.
//!
//! Readers never depend on it. Its deletes go through Raft as any write, so that the
//! counters and the time index stay exact.
//!
//! # Two halves
//! [`find`] and [`find_old`] look for due items in a snapshot of the state, outside the
//! partition's writer: deleted records leave tombstones, and walking past those may take
//! long. [`ExpireDue`](crate::PartitionOp::ExpireDue) is then a step of the writer. It
//! checks each item again by its own head or expiry, as it may have changed since, and
//! deletes it if it has expired. It walks no range, so that each piece of its work is
//! small, and it ends as soon as the view [is spent](crate::View::is_spent).
//!
//! A row that has expired, or whose members all have, is deleted without reading its
//! members.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::edits::Family;
use crate::eval::{EvalError, EvalResult};
use crate::form::{self, CollectionSummary, NamedMembers};
use crate::head::{Row, due_at, walk_expiries};
use crate::key::{self, ExpiryTarget, KeyBuf, KeySpace};
use crate::members::Writer;
use crate::op::Answer;
use crate::scan::{self, STEP_ROWS_MAX};
use crate::value::{Head, MemberExpiry};
use crate::view::{Fault, Tx};

/// A step ends after deleting this many bytes of records: keys may be long, and each
/// record repeats them.
const STEP_BYTES_MAX: usize = 1 << 20;

/// A search ends after finding this many bytes of keys and names.
const FOUND_BYTES_MAX: usize = 1 << 20;

/// A row or members that may be due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DueItem {
    /// A row that has expired.
    Row {
        /// The key of its head.
        head_key: Bytes,
        /// The time of the row's entry in the time index; `None` if the row was found by
        /// the table's `default_ttl`.
        indexed_ms: Option<u64>,
    },
    /// Members of a row that have expired.
    Members(DueMembers),
}

/// Members of a row that have expired, ordered by expiry from the floor on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueMembers {
    /// The key of the row's head.
    pub head_key: Bytes,
    /// The generation of the row that they belong to.
    pub generation: u64,
    /// The [floor](crate::value::Expiries::floor) of the state in which they were found.
    pub floor: MemberExpiry,
    /// Their expiries.
    pub expiries: Vec<MemberExpiry>,
    /// The first expiry behind these in that state.
    pub next: Option<MemberExpiry>,
}

impl DueItem {
    /// The number of rows or members that it names.
    pub fn size(&self) -> usize {
        match self {
            DueItem::Row { .. } => 1,
            DueItem::Members(members) => members.expiries.len().max(1),
        }
    }

    /// Its approximate size, bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            DueItem::Row { head_key, .. } => head_key.len(),
            DueItem::Members(members) => {
                members.head_key.len()
                    + members.expiries.iter().map(|expiry| 8 + expiry.name.len()).sum::<usize>()
            }
        }
    }

    /// Keeps the first `max` members (one at least) and returns the others, if there are
    /// any.
    pub fn cut(&mut self, max: usize) -> Option<DueItem> {
        let DueItem::Members(members) = self else { return None };
        if members.expiries.len() <= max.max(1) {
            return None;
        }
        let mut rest =
            DueMembers { expiries: members.expiries.split_off(max.max(1)), ..members.clone() };
        // The step on the first part will have raised the floor to here.
        rest.floor = rest.expiries[0].clone();
        members.next = Some(rest.floor.clone());
        Some(DueItem::Members(rest))
    }
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DueItems {
    /// The items that may be due, in order of time.
    pub items: Vec<DueItem>,
    /// The key from which the next search begins: all entries of the time index below it
    /// led to these items.
    pub from: Bytes,
    /// The time of the entry there, ms; `u64::MAX` when there is none.
    pub next_ms: u64,
}

/// Finds rows and members that are due by the time index, from `from` on (empty = its
/// beginning), about `max` of them. It reads the state only: a step does not look at the
/// edits of its batch either.
pub fn find(tx: &Tx<'_>, from: &[u8], max: usize) -> Result<DueItems, Fault> {
    let from = if from.is_empty() { key::TIME_INDEX } else { from };
    let (entries, mut from, mut next_ms) = due_entries(tx, from, max)?;
    let mut items: Vec<DueItem> = Vec::with_capacity(entries.len());
    let (mut found, mut bytes) = (0, 0);
    for (at_ms, due, head_key) in entries {
        if found >= max || bytes >= FOUND_BYTES_MAX {
            (from, next_ms) = (key::time_index(at_ms, due, &head_key), at_ms);
            break;
        }
        bytes += head_key.len();
        let item = match due {
            ExpiryTarget::Row => DueItem::Row { head_key, indexed_ms: Some(at_ms) },
            ExpiryTarget::Field => due_members(tx, at_ms, head_key, max - found, &mut bytes)?,
        };
        found += item.size();
        items.push(item);
    }
    Ok(DueItems { items, from, next_ms })
}

/// An entry of the time index: its time, target and head key.
type IndexEntry = (u64, ExpiryTarget, Bytes);

/// The first entries that are due, then the key of the entry behind them (or where it
/// would be), and the time of that entry.
fn due_entries(
    tx: &Tx<'_>,
    from: &[u8],
    max: usize,
) -> Result<(Vec<IndexEntry>, Bytes, u64), Fault> {
    let now_ms = tx.stamp.now_ms;
    let mut entries = Vec::new();
    let mut next = None;
    let mut fault = None;
    tx.range(Family::State, from, key::TIME_INDEX_END, false, &mut |found, _| {
        match key::parse_time_index(found) {
            Some((at_ms, due, head_key)) if at_ms <= now_ms && entries.len() < max => {
                entries.push((at_ms, due, Bytes::copy_from_slice(head_key)));
                return ControlFlow::Continue(());
            }
            Some((at_ms, ..)) => next = Some((Bytes::copy_from_slice(found), at_ms)),
            None => {
                fault = Some(Fault::damaged(format!(
                    "a time index key of {} bytes that is none",
                    found.len()
                )))
            }
        }
        ControlFlow::Break(())
    })?;
    let (from, next_ms) = next.unwrap_or_else(|| {
        (key::time_index(now_ms.saturating_add(1), ExpiryTarget::Row, &[]), u64::MAX)
    });
    fault.map_or(Ok((entries, from, next_ms)), Err)
}

/// The members that an entry of the time index leads to. The list is empty when the whole
/// row has expired, or nothing matches the entry any more.
fn due_members(
    tx: &Tx<'_>,
    at_ms: u64,
    head_key: Bytes,
    max: usize,
    bytes: &mut usize,
) -> Result<DueItem, Fault> {
    let row = row(tx, &head_key)?;
    let found = |generation, floor, expiries, next| {
        DueItem::Members(DueMembers {
            head_key: head_key.clone(),
            generation,
            floor,
            expiries,
            next,
        })
    };
    let collection = row.head().and_then(|head| head.body.collection());
    let floor = |of: CollectionSummary<'_>| Some((of.generation, of.expiries?.floor.clone()));
    let Some((generation, floor)) =
        collection.and_then(floor).filter(|(_, floor)| floor.at_ms == at_ms)
    else {
        return Ok(found(0, MemberExpiry::at(at_ms), Vec::new(), None));
    };
    let space = key::cells(row.hashkey(), generation, KeySpace::Expiries);
    let (mut expiries, mut next) = (Vec::new(), None);
    walk_expiries(tx, &space, &floor, &mut |expiry| {
        if expiry.at_ms > tx.stamp.now_ms || expiries.len() >= max || *bytes >= FOUND_BYTES_MAX {
            next = Some(expiry);
            return ControlFlow::Break(());
        }
        *bytes += head_key.len() + expiry.name.len();
        expiries.push(expiry);
        ControlFlow::Continue(())
    })?;
    Ok(found(generation, floor, expiries, next))
}

/// Finds rows that have expired by the table's `default_ttl` and so have no entry in the
/// time index, from a position on. Returns them and the position from which to continue
/// (0 = the end was reached).
pub fn find_old(tx: &Tx<'_>, from: u64) -> Result<(Vec<DueItem>, u64), Fault> {
    let mut items = Vec::new();
    let (mut looked, mut bytes, mut last, mut next) = (0, 0, None, 0);
    scan::walk(tx, from, &mut |position, row| {
        if (looked >= STEP_ROWS_MAX || bytes >= FOUND_BYTES_MAX) && last != Some(position) {
            next = position;
            return ControlFlow::Break(());
        }
        looked += 1;
        last = Some(position);
        if !row.is_live() {
            let head_key = Bytes::copy_from_slice(row.head_key());
            bytes += head_key.len();
            items.push(DueItem::Row { head_key, indexed_ms: None });
        }
        ControlFlow::Continue(())
    })?;
    Ok((items, next))
}

/// Reads a row by its head key; a string without its value.
fn row(tx: &Tx<'_>, head_key: &[u8]) -> Result<Row, Fault> {
    let stored =
        tx.metadata(Family::Head, head_key)?.map(|bytes| Head::decode(&bytes)).transpose()?;
    Row::of(tx, KeyBuf::from_slice(head_key), stored)
}

/// The progress of a step.
#[derive(Default)]
pub(crate) struct ExpiryStep {
    rows: u64,
    fields: u64,
    /// The earliest due entry that stays in the time index.
    left_ms: Option<u64>,
    edits_max: usize,
    has_worked: bool,
}

impl ExpiryStep {
    /// True if the step ends here; never before it has done some work.
    fn is_over(&mut self, tx: &Tx<'_>) -> bool {
        let is_over = self.has_worked && (tx.view.is_spent() || tx.edits.bytes() >= self.edits_max);
        self.has_worked = true;
        is_over
    }

    fn leave(&mut self, at_ms: u64) {
        self.left_ms = Some(self.left_ms.map_or(at_ms, |left_ms| left_ms.min(at_ms)));
    }
}

pub(crate) fn expire_due(tx: &mut Tx<'_>, items: &[DueItem]) -> EvalResult {
    let mut step =
        ExpiryStep { edits_max: tx.edits.bytes() + STEP_BYTES_MAX, ..ExpiryStep::default() };
    let (mut done, mut part) = (0, 0);
    for item in items {
        match item {
            _ if step.is_over(tx) => break,
            DueItem::Row { head_key, indexed_ms } => expire_row(
                tx,
                &mut step,
                head_key,
                indexed_ms.map(|at_ms| (at_ms, ExpiryTarget::Row)),
            )?,
            DueItem::Members(members) => {
                part = expire_members(tx, &mut step, members)? as u64;
                if (part as usize) < members.expiries.len() {
                    break;
                }
            }
        }
        (done, part) = (done + 1, 0);
    }
    let ExpiryStep { rows, fields, left_ms, .. } = step;
    Ok(Answer::Expired { rows, fields, done, part, left_ms })
}

/// Deletes a row if it has expired. If it has not, or not any more, an entry of the time
/// index may be stale. It is deleted: the search would find it again and again, and
/// stopping every replica with a fault would help nobody.
fn expire_row(
    tx: &mut Tx<'_>,
    step: &mut ExpiryStep,
    head_key: &Bytes,
    entry: Option<(u64, ExpiryTarget)>,
) -> Result<(), Fault> {
    let row = row(tx, head_key)?;
    let stored = row.stored();
    if let Some((at_ms, due)) =
        entry.filter(|(at_ms, due)| stored.and_then(|head| due_at(head, *due)) != Some(*at_ms))
    {
        tx.delete(Family::State, key::time_index(at_ms, due, head_key));
    }
    if stored.is_some() && !row.is_live() {
        row.remove(tx)?;
        step.rows += 1;
    }
    Ok(())
}

/// Deletes members that have expired and raises the floor behind them; returns the number
/// of members that are done.
fn expire_members(
    tx: &mut Tx<'_>,
    step: &mut ExpiryStep,
    found: &DueMembers,
) -> Result<usize, EvalError> {
    let row = row(tx, &found.head_key)?;
    let collection = row.head().and_then(|head| head.body.collection());
    if collection.is_some_and(|collection| collection.generation == found.generation) {
        return form::expire_members(tx, step, row, found);
    }
    expire_row(tx, step, &found.head_key, Some((found.floor.at_ms, ExpiryTarget::Field)))?;
    Ok(found.expiries.len())
}

impl ExpiryStep {
    /// As [`expire_members`], of a row that has the generation in which they were found.
    pub(crate) fn expire_members_of<K: NamedMembers>(
        &mut self,
        tx: &mut Tx<'_>,
        mut row: Writer<K>,
        found: &DueMembers,
    ) -> Result<usize, Fault> {
        let mut done = 0;
        for expiry in &found.expiries {
            if done > 0 && self.is_over(tx) {
                break;
            }
            done += 1;
            if tx.is_expired(Some(expiry.at_ms)) && row.purge(tx, expiry)? {
                self.fields += 1;
            }
        }
        row.raise_floor(tx, &found.floor, found.expiries.get(done).or(found.next.as_ref()));
        if let Some(at_ms) = row.due_ms().filter(|at_ms| *at_ms <= tx.stamp.now_ms) {
            self.leave(at_ms);
        }
        row.save(tx)?;
        Ok(done)
    }
}
