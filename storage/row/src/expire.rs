//! The expiry cycle: what is past its time stops being counted and stored, even if nobody asks for it.
//!
//! Readers never depend on it; it goes through Raft as any write, so that the counters and the time index stay exact.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::Family;
use crate::eval::Answered;
use crate::head::Row;
use crate::key::{self, Due, KeyBuf};
use crate::members::{Members, Writer};
use crate::op::Answer;
use crate::scan::{self, STEP_ROWS_MAX};
use crate::value::Head;
use crate::view::{Fault, Tx};

/// With so many bytes of records deleted a step ends: keys may be long, and are in each record.
const STEP_BYTES_MAX: usize = 1 << 20;

pub(crate) fn expire_due(tx: &mut Tx<'_>, max: u64, cursor: u64) -> Answered {
    let max = max.clamp(1, STEP_ROWS_MAX);
    let bytes_max = tx.edits.bytes() + STEP_BYTES_MAX;
    let (mut rows, mut fields) = (0, 0);
    for (at, due, head_key) in due_entries(tx, max)? {
        if rows + fields >= max || tx.edits.bytes() >= bytes_max {
            break;
        }
        // A field is two records.
        let fields_max = (STEP_BYTES_MAX / (2 * head_key.len())).max(1) as u64;
        match expire_entry(tx, at, due, &head_key, fields_max.min(max - rows - fields))? {
            Gone::Row => rows += 1,
            Gone::Fields(names) => fields += names,
        }
    }
    let left = max.saturating_sub(rows + fields).max(1); // the walk gets on, however much is due
    let (swept, next) = sweep_old(tx, left, bytes_max, cursor)?;
    Ok(Answer::Expired { rows: rows + swept, fields, next })
}

/// What an entry of the time index pointed out and is deleted.
enum Gone {
    /// A row; of a hash, with all fields that it still had.
    Row,
    /// So many fields.
    Fields(u64),
}

/// The first entries of the time index that are due.
fn due_entries(tx: &Tx<'_>, max: u64) -> Result<Vec<(u64, Due, KeyBuf)>, Fault> {
    let mut to = key::TIME_INDEX.to_vec();
    to.extend_from_slice(&tx.stamp.now_ms.saturating_add(1).to_be_bytes());
    let mut entries = Vec::new();
    let mut fault = None;
    tx.range(Family::State, key::TIME_INDEX, &to, false, &mut |found, _| {
        match key::parse_time_index(found) {
            Some((at, due, head_key)) => entries.push((at, due, KeyBuf::from_slice(head_key))),
            None => fault = Some(Fault(format!("a time index key of {} bytes that is none", found.len()))),
        }
        if fault.is_none() && (entries.len() as u64) < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    fault.map_or(Ok(entries), Err)
}

/// Deletes what one entry points out, at most `max` records of it.
fn expire_entry(tx: &mut Tx<'_>, at: u64, due: Due, head_key: &KeyBuf, max: u64) -> Result<Gone, Fault> {
    let stored = tx.get(Family::Head, head_key)?.map(|bytes| Head::decode(&bytes)).transpose()?;
    let Some(head) = stored else {
        // The row went with an earlier entry of this step, and its other entry with it; deleting that again is harmless.
        tx.delete(Family::State, key::time_index(at, due, head_key));
        return Ok(Gone::Fields(0));
    };
    let row = Row::of(tx, head_key.clone(), Some(head))?;
    if !row.is_live() {
        row.remove(tx)?;
        return Ok(Gone::Row);
    }
    let names = match Members::of(&row) {
        Ok(Some(members)) => members.expired(tx, max)?,
        _ => Vec::new(),
    };
    if names.is_empty() {
        // An entry without a reason. It would be tried again for ever, and stopping every replica over it would help nobody: it goes.
        tx.delete(Family::State, key::time_index(at, due, head_key));
        return Ok(Gone::Fields(0));
    }
    let Ok(mut hash) = Writer::open(row) else { return Ok(Gone::Fields(0)) };
    for name in &names {
        hash.remove(tx, name)?;
    }
    hash.save(tx)?;
    Ok(Gone::Fields(names.len() as u64))
}

/// Once rows older than `default_ttl` are due, walks the heads from `cursor` on and deletes those: they have no entry in the index.
/// How many went, and where to go on (0 = nothing more to walk). At least one goes, if there is one; no more do when there are `bytes_max` of edits.
fn sweep_old(tx: &mut Tx<'_>, max: u64, bytes_max: usize, cursor: u64) -> Result<(u64, u64), Fault> {
    let due = tx.rules.default_ttl_since_ms.saturating_add(tx.rules.default_ttl_ms);
    if tx.rules.default_ttl_ms == 0 || due > tx.stamp.now_ms {
        return Ok((0, 0));
    }
    let mut dead = Vec::new();
    let (mut looked, mut last, mut next) = (0, None, 0);
    scan::walk(tx, cursor, &mut |position, row| {
        if looked >= max && last != Some(position) {
            next = position;
            return ControlFlow::Break(());
        }
        looked += 1;
        last = Some(position);
        if !row.is_live() {
            dead.push(Bytes::copy_from_slice(row.hashkey()));
        }
        ControlFlow::Continue(())
    })?;
    let mut swept = 0;
    for hashkey in &dead {
        if swept > 0 && tx.edits.bytes() >= bytes_max {
            next = key::position(hashkey);
            break;
        }
        swept += 1;
        let head_key = key::head(hashkey);
        let stored = tx.get(Family::Head, &head_key)?.map(|bytes| Head::decode(&bytes)).transpose()?;
        Row::of(tx, head_key, stored)?.remove(tx)?;
    }
    Ok((swept, next))
}
