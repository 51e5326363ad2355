//! Ops on a row of any kind.

use bytes::Bytes;

use crate::eval::{EvalError, EvalResult};
use crate::hash::Hash;
use crate::head::{Row, RowMetadata, due_at};
use crate::key::ExpiryTarget;
use crate::members;
use crate::op::{Answer, Deadline, ExpireCondition, Refusal, RowContent, RowInfo, Ttl, WatchToken};
use crate::ops;
use crate::registry::{Key, Look};
use crate::value::{Body, Header};
use crate::view::{Fault, Tx};

ops! {
    /// Operations on a row of any kind.
    pub enum RowOp {
        /// -> `Row`
        0 Inspect { key: Key } => inspect, Read, One, Small;
        /// The approximate size of the row on disk, bytes, before compression. The first
        /// `samples` members of a hash (0 = all) stand for the others. -> `Int` or `Nil`
        1 Size { key: Key, samples: u64 } => size, Read, sampled(*samples), Small;
        /// -> `Int` 0|1
        2 Delete { key: Key } => delete, Write, One, Small;
        /// -> `Int` 0|1. A deadline in the past deletes the row (and answers 1).
        3 Expire { key: Key, until: Deadline, only: ExpireCondition } => expire, Write, One, Small;
        /// -> `Int` 0|1
        4 Persist { key: Key } => persist, Write, One, Small;
        /// -> `Int` 1, or 0 when `only_new` and `to` exists; refuses `NoSuchKey`
        5 Rename { from: Key, to: Key, only_new: bool } => rename, Write, Row(0), Small;
        /// -> `Int` 0|1
        6 Copy { from: Key, to: Key, replace: bool } => copy, Write, Row(0), Small;
        /// The whole row. -> `RowContent` or `Nil`
        7 Dump { key: Key } => dump, Read, Row(0), Large;
        /// -> `Int` 1; refuses `BusyKey` unless `replace`. `idle_since`/frequency are not
        /// kept.
        8 Restore { key: Key, content: RowContent, ttl: Ttl, replace: bool }
            => restore, Write, Look::each(content.items()), Small;
        /// The encoding that Redis would report (int, embstr, raw, listpack, listpackex,
        /// hashtable). -> `Bytes` or `Nil`
        9 Encoding { key: Key } => encoding, Read, One, Small;
        /// A token by which a later request detects that the row was touched since. ->
        /// `WatchToken`. Answered by the executor.
        10 Watch { key: Key } => watch, AskWriter, One, Small;
    }
}

/// The cost of looking at the first `samples` members, or at all of them (0).
fn sampled(samples: u64) -> Look {
    if samples == 0 { Look::Row(0) } else { Look::Some(samples) }
}

pub(crate) fn inspect(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(head) = row.head() else { return Ok(Answer::Row(None)) };
    Ok(Answer::Row(Some(RowInfo {
        kind: head.kind(),
        expires_at_ms: row.expires_at_ms(),
        written_at_ms: head.header.written_at_ms(),
        len: head.body.len(),
        now_ms: tx.stamp.now_ms,
    })))
}

pub(crate) fn size(tx: &Tx<'_>, key: &[u8], samples: u64) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(head) = row.head() else { return Ok(Answer::Nil) };
    let header =
        if row.expires_at_ms().is_some() { Header::BYTES_MAX } else { Header::BYTES_MAX - 8 };
    let bytes = 8 + key.len() + header + 1 + head.body.encoded_len();
    Ok(Answer::Int((bytes as u64 + head.body.cells_bytes(tx, &row, samples)?) as i64))
}

pub(crate) fn delete(tx: &mut Tx<'_>, key: &[u8]) -> EvalResult {
    let row = RowMetadata::load(tx, key)?;
    row.remove(tx)?;
    Ok(Answer::Int(i64::from(row.is_live())))
}

pub(crate) fn expire(
    tx: &mut Tx<'_>,
    key: &[u8],
    until: Deadline,
    only: ExpireCondition,
) -> EvalResult {
    let row = Row::load(tx, key)?;
    let at = tx.deadline_ms(until);
    let Some(head) = row.head().filter(|_| only.allows(row.expires_at_ms(), at)) else {
        return Ok(Answer::Int(0));
    };
    row.write(tx, Some(at), head.body.clone())?;
    Ok(Answer::Int(1))
}

pub(crate) fn persist(tx: &mut Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(head) = row.head().filter(|_| row.expires_at_ms().is_some()) else {
        return Ok(Answer::Int(0));
    };
    row.write(tx, None, head.body.clone())?;
    Ok(Answer::Int(1))
}

/// Moves a collection cell by cell: its hashkey is part of every cell's key.
pub(crate) fn rename(tx: &mut Tx<'_>, from: &[u8], to: &[u8], only_new: bool) -> EvalResult {
    let row = Row::load(tx, from)?;
    let target = Row::load(tx, to)?;
    if !row.is_live() {
        return Err(Refusal::NoSuchKey.into());
    }
    if only_new && target.is_live() {
        return Ok(Answer::Int(0));
    }
    if from != to {
        let content = content_to_write(tx, &row)?.ok_or(Refusal::NoSuchKey)?;
        write(tx, target, content, row.expires_at_ms())?;
        row.remove(tx)?;
    }
    Ok(Answer::Int(1))
}

pub(crate) fn copy(tx: &mut Tx<'_>, from: &[u8], to: &[u8], replace: bool) -> EvalResult {
    let row = Row::load(tx, from)?;
    let target = Row::load(tx, to)?;
    if from == to || (target.is_live() && !replace) {
        return Ok(Answer::Int(0));
    }
    let Some(content) = content_to_write(tx, &row)? else { return Ok(Answer::Int(0)) };
    write(tx, target, content, row.expires_at_ms())?;
    Ok(Answer::Int(1))
}

pub(crate) fn dump(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let content = content(tx, &row, None)?;
    Ok(content.map_or(Answer::Nil, |content| Answer::RowContent {
        content,
        expires_at_ms: row.expires_at_ms(),
    }))
}

pub(crate) fn restore(
    tx: &mut Tx<'_>,
    key: &[u8],
    content: &RowContent,
    ttl: Ttl,
    replace: bool,
) -> EvalResult {
    tx.rules.check_write(key.len() + content.bytes())?;
    let row = Row::load(tx, key)?;
    if row.is_live() && !replace {
        return Err(Refusal::BusyKey.into());
    }
    let expires_at_ms = tx.expiry(ttl, &row);
    write(tx, row, content.clone(), expires_at_ms)?;
    Ok(Answer::Int(1))
}

/// The content of a live row, to be written to another row.
fn content_to_write(tx: &Tx<'_>, row: &Row) -> Result<Option<RowContent>, EvalError> {
    content(tx, row, Some(tx.rules.write_bytes_max)).map_err(|failed| match failed {
        EvalError::Refused(Refusal::TooLarge) => Refusal::RowTooLarge.into(),
        other => other,
    })
}

/// The content of a live row. With `write_max` it is read to be written again and refused
/// if too large for that, otherwise it is bounded as an answer.
fn content(
    tx: &Tx<'_>,
    row: &Row,
    write_max: Option<usize>,
) -> Result<Option<RowContent>, EvalError> {
    let check = |bytes: usize| match write_max {
        Some(_) => tx.rules.check_write(bytes),
        None => tx.rules.check_answer(bytes),
    };
    row.head().map(|head| head.body.content(tx, row, &check)).transpose()
}

/// Replaces a row by `content`.
fn write(
    tx: &mut Tx<'_>,
    row: Row,
    content: RowContent,
    expires_at_ms: Option<u64>,
) -> Result<(), Fault> {
    match content {
        RowContent::String(value) => row.write(tx, expires_at_ms, Body::String(value)),
        RowContent::Hash(fields) => {
            members::replace::<Hash>(tx, row, expires_at_ms, fields.into_iter())
        }
    }
}

pub(crate) fn encoding(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(head) = row.head() else { return Ok(Answer::Nil) };
    Ok(Answer::Bytes(Bytes::from_static(head.body.encoding(tx, &row)?.as_bytes())))
}

/// The parts of a watch token that follow from the row itself; the executor adds the time
/// of its last touch.
pub(crate) fn watch(tx: &Tx<'_>, key: &Bytes) -> EvalResult {
    let row = Row::load(tx, key)?;
    let first_field = row
        .head()
        .and_then(|head| due_at(head, ExpiryTarget::Field))
        .filter(|at| *at > tx.stamp.now_ms);
    let expires_at_ms = row.expires_at_ms().into_iter().chain(first_field).min();
    Ok(Answer::WatchToken(WatchToken {
        key: key.clone(),
        term: 0,
        touched: 0,
        expires_at_ms,
        existed: row.is_live(),
    }))
}
