//! Ops on the rows of a partition, in hash order.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::Family;
use crate::eval::EvalResult;
use crate::expire::{self, DueItem};
use crate::glob;
use crate::head::Row;
use crate::key::{self, KeyBuf};
use crate::op::{Answer, RowKind};
use crate::ops;
use crate::value::{DefaultTtl, Head};
use crate::view::{Fault, Tx};

ops! {
    /// Operations on the partition.
    pub enum PartitionOp {
        /// Rows from a [cursor](crate::key::cursor) on in hash order, skipping expired
        /// ones; reads about `count` rows. -> `Page` (next = 0: the partition is finished)
        32 Scan { cursor: u64, count: u64, glob: Option<Bytes>, kind: Option<RowKind> }
            => scan, Read, Some(count.saturating_add(1)), Large;
        /// The first live row at or after a [cursor](crate::key::cursor) in hash order,
        /// wrapping round. -> `Bytes` or `Nil`, or an empty `Page` if the rows that were
        /// read had all expired
        33 FirstAtOrAfter { cursor: u64 } => nearest, Read, One, Small;
        /// The number of rows. -> `Int`
        34 Rows => rows, Read, One, Small;
        /// The number of rows that have an expiry. -> `Int`
        35 Expiring => expiring, Read, One, Small;
        /// Deletes every row of the partition. -> `Ok`. The executor runs it alone: its
        /// edits are `Edits::clear`.
        36 Clear => clear, Write, One, Small;
        /// One step of the expiry cycle: of the [items found](crate::expire) to be due,
        /// deletes in order those that still are, until the view is spent; at least one.
        /// -> `Expired`
        37 ExpireDue { items: Vec<DueItem> }
            => expire::expire_due, WritePart, Look::each(due(items)), Small;
        /// Makes the partition apply this `default_ttl` from the next millisecond on,
        /// unless it applies one that was set later. The time to live of rows written
        /// before counts from there. -> `Ok`
        38 SetDefaultTtl { ttl_ms: u64, set_at_ms: u64 } => set_default_ttl, Write, One, Small;
        /// Makes the partition's time depend on `at_ms`, if that is past, on behalf of
        /// reads that did. -> `Ok`
        39 AdvanceClock { at_ms: u64 } => advance_clock, Write, One, Small;
        /// Syncs everything that was acknowledged before it to the leader's disk, whatever
        /// the durability. -> `Int`: the index of the last log entry that is synced.
        /// Answered by the replica, for a request of this op alone.
        40 Sync => sync, AskWriter, One, Small;
    }
}

/// The number of rows and members that items name.
fn due(items: &[DueItem]) -> usize {
    items.iter().map(DueItem::size).sum()
}

/// The maximum number of rows that one step examines.
pub(crate) const STEP_ROWS_MAX: u64 = 10_000;

/// A page ends early when matching its pattern has taken about this long, ns: one match
/// of a long pattern against a long key takes some 50 ms.
pub(crate) const STEP_PATTERN_NS_MAX: u64 = 50_000_000;

/// Walks all stored rows from a position on, expired ones too, until `each` breaks.
pub(crate) fn walk(
    tx: &Tx<'_>,
    from: u64,
    each: &mut dyn FnMut(u64, &Row) -> ControlFlow<()>,
) -> Result<(), Fault> {
    let mut fault = None;
    tx.range(Family::Head, &from.to_be_bytes(), key::END, false, &mut |head_key, value| {
        let row = || {
            let position = key::head_position(head_key)
                .ok_or_else(|| Fault::damaged(format!("a head key of {} bytes", head_key.len())))?;
            let head = Head::decode(&Bytes::copy_from_slice(value))?;
            Ok((position, Row::of(tx, KeyBuf::from_slice(head_key), Some(head))?))
        };
        match row() {
            Ok((position, row)) => each(position, &row),
            Err(found) => {
                fault = Some(found);
                ControlFlow::Break(())
            }
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// Rows of one cursor (keys may share their slot and 39 bits of hash) always come in one
/// page, so that no row is missed.
pub(crate) fn scan(
    tx: &Tx<'_>,
    cursor: u64,
    count: u64,
    pattern: Option<&Bytes>,
    kind: Option<RowKind>,
) -> EvalResult {
    let pattern = pattern.filter(|pattern| *pattern != "*");
    let count = count.clamp(1, STEP_ROWS_MAX);
    let mut keys = Vec::new();
    let (mut looked, mut last, mut next, mut pattern_ns) = (0, None, 0, 0);
    let Some(from) = key::cursor_position(cursor) else {
        return Ok(Answer::Page { keys, next, count: 0 });
    };
    walk(tx, from, &mut |position, row| {
        let cursor = key::cursor(position);
        if (looked >= count || pattern_ns >= STEP_PATTERN_NS_MAX) && last != Some(cursor) {
            next = cursor;
            return ControlFlow::Break(());
        }
        looked += 1;
        last = Some(cursor);
        if !row.is_live() || kind.is_some_and(|kind| row.kind() != Some(kind)) {
            return ControlFlow::Continue(());
        }
        if let Some(pattern) = pattern {
            let ns = glob::worst_case_ns(pattern, row.hashkey());
            if !tx.view.has_time_for(ns) {
                return ControlFlow::Break(());
            }
            pattern_ns += ns;
        }
        if pattern.is_none_or(|pattern| glob::matches(pattern, row.hashkey())) {
            keys.push(Bytes::copy_from_slice(row.hashkey()));
        }
        ControlFlow::Continue(())
    })?;
    Ok(Answer::Page { keys, next, count: looked })
}

/// Examines [`STEP_ROWS_MAX`] rows at most: that many in succession may have expired, and
/// a transaction holds up the partition meanwhile.
pub(crate) fn nearest(tx: &Tx<'_>, cursor: u64) -> EvalResult {
    let from = key::cursor_position(cursor).unwrap_or(0);
    let (mut looked, mut answer) = (0, None);
    // To the end, then from the beginning to the cursor.
    for (begin, end) in [(from, None), (0, Some(from))] {
        walk(tx, begin, &mut |position, row| {
            if end.is_some_and(|end| position >= end) {
                return ControlFlow::Break(());
            }
            if looked >= STEP_ROWS_MAX {
                answer = Some(Answer::Page {
                    keys: Vec::new(),
                    next: key::cursor(position),
                    count: looked,
                });
                return ControlFlow::Break(());
            }
            looked += 1;
            if !row.is_live() {
                return ControlFlow::Continue(());
            }
            answer = Some(Answer::Bytes(Bytes::copy_from_slice(row.hashkey())));
            ControlFlow::Break(())
        })?;
        if answer.is_some() {
            break;
        }
    }
    Ok(answer.unwrap_or(Answer::Nil))
}

pub(crate) fn rows(tx: &Tx<'_>) -> EvalResult {
    Ok(Answer::Int(tx.counter(key::ROWS)? as i64))
}

pub(crate) fn expiring(tx: &Tx<'_>) -> EvalResult {
    Ok(Answer::Int(tx.counter(key::EXPIRING)? as i64))
}

pub(crate) fn clear(tx: &mut Tx<'_>) -> EvalResult {
    tx.edits.clear_rows();
    tx.set_counter(key::ROWS, 0);
    tx.set_counter(key::EXPIRING, 0);
    Ok(Answer::Ok)
}

pub(crate) fn set_default_ttl(tx: &mut Tx<'_>, ttl_ms: u64, set_at_ms: u64) -> EvalResult {
    let old = tx
        .get(Family::State, key::DEFAULT_TTL)?
        .map(|bytes| DefaultTtl::decode(&bytes))
        .transpose()?;
    if old.is_none_or(|old| old.set_at_ms < set_at_ms) {
        // Rows written in this same millisecond count as written before the rule.
        let rule = DefaultTtl { ttl_ms, since_ms: tx.stamp.now_ms + 1, set_at_ms };
        tx.put(Family::State, Bytes::from_static(key::DEFAULT_TTL), rule.encode());
    }
    Ok(Answer::Ok)
}

fn advance_clock(tx: &mut Tx<'_>, at_ms: u64) -> EvalResult {
    tx.is_expired(Some(at_ms));
    Ok(Answer::Ok)
}

/// Without a replica there is no log, and nothing of it is on the disk.
fn sync(_: &Tx<'_>) -> EvalResult {
    Ok(Answer::Int(0))
}
