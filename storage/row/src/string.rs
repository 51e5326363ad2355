//! Ops on strings, which are stored in the head.

use bytes::{BufMut, Bytes, BytesMut};

use crate::eval::{EvalError, EvalResult};
use crate::expire::{DueMembers, ExpiryStep};
use crate::form::{CheckSize, Form};
use crate::head::{Row, RowMetadata};
use crate::number::{self, LongDouble};
use crate::op::{Answer, Refusal, RowContent, RowKind, Ttl, WriteCondition};
use crate::ops;
use crate::registry::{AnswerSize, Key};
use crate::value::{Body, CollectionSummary};
use crate::view::{Fault, Tx};

ops! {
    /// Operations on strings.
    pub enum StringOp {
        /// -> `Bytes` or `Nil`
        64 Get { key: Key } => get, Read, One, Large;
        /// GETDEL. -> `Bytes` or `Nil`
        65 GetDelete { key: Key } => get_delete, Write, One, Large;
        /// GETEX. -> `Bytes` or `Nil`
        66 GetExpire { key: Key, ttl: Ttl } => get_expire, Write, One, Large;
        /// With `want_old`, reads the old value first, and then refuses `WrongType` for
        /// other kinds. -> `Written`
        67 Set { key: Key, value: Bytes, ttl: Ttl, only: WriteCondition, want_old: bool }
            => set, Write, One, AnswerSize::large_if(*want_old);
        /// MSETNX: all or none. -> `Int` 0|1
        68 SetAllIfAbsent { pairs: Vec<(Key, Bytes)> }
            => set_all_new, Write, Look::each(pairs.len()), Small;
        /// -> `Int` new length
        69 Append { key: Key, value: Bytes } => append, Write, One, Small;
        /// -> `Int` new value; refuses `NotInteger`, `Overflow`
        70 Incr { key: Key, by: i64 } => add, Write, One, Small;
        /// `by` is the decimal text as given. -> `Bytes` the new value as Redis prints
        /// long doubles; refuses `NotFloat`, `NanOrInfinity`
        71 IncrFloat { key: Key, by: Bytes } => add_float, Write, One, Small;
        /// -> `Bytes`, or `Nil` without the row; negative offsets count from the end
        72 GetRange { key: Key, start: i64, end: i64 }
            => get_range, Read, One, part_size(*start, *end);
        /// -> `Int` new length; refuses `TooLarge`
        73 SetRange { key: Key, offset: u64, value: Bytes } => set_range, Write, One, Small;
        /// -> `Int`, or `Nil` without the row
        74 Len { key: Key } => length, Read, One, Small;
    }
}

/// The longest part of a string that is a small answer, bytes.
const SMALL_PART_BYTES: i64 = 1024;

/// The size of the part from `start` to `end`; negative offsets count from the end, so
/// that the size is not known before.
fn part_size(start: i64, end: i64) -> AnswerSize {
    let is_known = start >= 0 && end >= 0;
    AnswerSize::large_if(!is_known || end.saturating_sub(start) >= SMALL_PART_BYTES)
}

/// The longest string that a write may grow if the table sets no limit, bytes; Redis's
/// `proto-max-bulk-len`.
const STRING_BYTES_MAX: u64 = 512 << 20;

/// The longest string that Redis keeps as `embstr`.
const EMBSTR_MAX: usize = 44;

/// A whole string.
impl Form for Bytes {
    const KIND: RowKind = RowKind::String;
    const IS_VALUE: bool = true;

    fn encoded_len(&self) -> usize {
        self.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(self);
    }

    fn decode(rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Bytes> {
        Some(keep(rest))
    }

    fn len(&self) -> u64 {
        Bytes::len(self) as u64
    }

    fn collection(&self) -> Option<CollectionSummary<'_>> {
        None
    }

    fn cells_bytes(&self, _: &Tx<'_>, _: &Row, _: u64) -> Result<u64, Fault> {
        Ok(0)
    }

    fn content(&self, _: &Tx<'_>, _: &Row, check: CheckSize<'_>) -> Result<RowContent, EvalError> {
        check(Bytes::len(self))?;
        Ok(RowContent::String(self.clone()))
    }

    fn encoding(&self, _: &Tx<'_>, _: &Row) -> Result<&'static str, Fault> {
        Ok(match Bytes::len(self) {
            _ if number::parse_int(self).is_some() => "int",
            ..=EMBSTR_MAX => "embstr",
            _ => "raw",
        })
    }

    fn expire_members(
        _: &mut Tx<'_>,
        _: &mut ExpiryStep,
        _: Row,
        found: &DueMembers,
    ) -> Result<usize, EvalError> {
        Ok(found.expiries.len()) // it has none
    }
}

pub(crate) fn get(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    Ok(nil_or_bytes(checked_value(tx, &row)?))
}

pub(crate) fn get_delete(tx: &mut Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let value = checked_value(tx, &row)?;
    if value.is_some() {
        row.remove(tx)?;
    }
    Ok(nil_or_bytes(value))
}

pub(crate) fn get_expire(tx: &mut Tx<'_>, key: &[u8], ttl: Ttl) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(value) = checked_value(tx, &row)? else { return Ok(Answer::Nil) };
    let expires_at_ms = tx.expiry(ttl, &row);
    if expires_at_ms != row.expires_at_ms() {
        row.write(tx, expires_at_ms, Body::String(value.clone()))?;
    }
    Ok(Answer::Bytes(value))
}

pub(crate) fn set(
    tx: &mut Tx<'_>,
    key: &[u8],
    value: &Bytes,
    ttl: Ttl,
    only: WriteCondition,
    want_old: bool,
) -> EvalResult {
    tx.rules.check_write(key.len() + value.len())?;
    let (row, old) = if want_old {
        let row = Row::load(tx, key)?;
        let old = checked_value(tx, &row)?;
        (row.into(), old)
    } else {
        (RowMetadata::load(tx, key)?, None)
    };
    let done = match only {
        WriteCondition::Always => true,
        WriteCondition::IfAbsent => !row.is_live(),
        WriteCondition::IfPresent => row.is_live(),
    };
    if done {
        let expires_at_ms = tx.expiry(ttl, &row);
        row.write(tx, expires_at_ms, Body::String(value.clone()))?;
    }
    Ok(Answer::Written { done, old })
}

pub(crate) fn set_all_new(tx: &mut Tx<'_>, pairs: &[(Key, Bytes)]) -> EvalResult {
    tx.rules.check_write(pairs.iter().map(|(key, value)| key.len() + value.len()).sum())?;
    for (key, _) in pairs {
        if RowMetadata::load(tx, key)?.is_live() {
            return Ok(Answer::Int(0));
        }
    }
    for (key, value) in pairs {
        let row = RowMetadata::load(tx, key)?; // again: a key may be named twice
        row.write(tx, tx.default_expiry(), Body::String(value.clone()))?;
    }
    Ok(Answer::Int(1))
}

pub(crate) fn append(tx: &mut Tx<'_>, key: &[u8], value: &Bytes) -> EvalResult {
    let row = Row::load(tx, key)?;
    let old = row.string()?.cloned().unwrap_or_default();
    check_len(tx, old.len() as u64 + value.len() as u64)?;
    let new = if old.is_empty() { value.clone() } else { Bytes::from([&old[..], value].concat()) };
    let len = new.len() as i64;
    rewrite(tx, &row, new)?;
    Ok(Answer::Int(len))
}

pub(crate) fn add(tx: &mut Tx<'_>, key: &[u8], by: i64) -> EvalResult {
    let row = Row::load(tx, key)?;
    let old =
        row.string()?.map_or(Some(0), |text| number::parse_int(text)).ok_or(Refusal::NotInteger)?;
    let new = old.checked_add(by).ok_or(Refusal::Overflow)?;
    rewrite(tx, &row, number::print_int(new))?;
    Ok(Answer::Int(new))
}

pub(crate) fn add_float(tx: &mut Tx<'_>, key: &[u8], by: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let old = row
        .string()?
        .map_or(LongDouble::parse(b"0"), |text| LongDouble::parse(text))
        .ok_or(Refusal::NotFloat)?;
    let new = old.plus(LongDouble::parse(by).ok_or(Refusal::NotFloat)?);
    if !new.is_finite() {
        return Err(Refusal::NanOrInfinity.into());
    }
    let new = Bytes::from(new.print());
    rewrite(tx, &row, new.clone())?;
    Ok(Answer::Bytes(new))
}

pub(crate) fn get_range(tx: &Tx<'_>, key: &[u8], start: i64, end: i64) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(value) = row.string()? else { return Ok(Answer::Nil) };
    let part = slice(value, start, end);
    tx.rules.check_answer(part.len())?;
    Ok(Answer::Bytes(part))
}

/// The bytes `start..=end`, where negative offsets count from the end, by Redis's rules.
fn slice(value: &Bytes, start: i64, end: i64) -> Bytes {
    let len = value.len() as i64;
    if start < 0 && end < 0 && start > end {
        return Bytes::new();
    }
    let from_end = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if start > end { Bytes::new() } else { value.slice(start as usize..=end as usize) }
}

pub(crate) fn set_range(tx: &mut Tx<'_>, key: &[u8], offset: u64, value: &Bytes) -> EvalResult {
    let row = Row::load(tx, key)?;
    let old = row.string()?.cloned().unwrap_or_default();
    if value.is_empty() {
        return Ok(Answer::Int(old.len() as i64));
    }
    let end = offset.saturating_add(value.len() as u64);
    check_len(tx, end)?;
    let mut new = old.to_vec();
    if new.len() < end as usize {
        new.resize(end as usize, 0);
    }
    new[offset as usize..end as usize].copy_from_slice(value);
    let len = new.len() as i64;
    rewrite(tx, &row, Bytes::from(new))?;
    Ok(Answer::Int(len))
}

pub(crate) fn length(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    Ok(row.string()?.map_or(Answer::Nil, |value| Answer::Int(value.len() as i64)))
}

/// The whole string as an answer, whose size is checked.
fn checked_value(tx: &Tx<'_>, row: &Row) -> Result<Option<Bytes>, Refusal> {
    let value = row.string()?;
    tx.rules.check_answer(value.map_or(0, Bytes::len))?;
    Ok(value.cloned())
}

fn nil_or_bytes(value: Option<Bytes>) -> Answer {
    value.map_or(Answer::Nil, Answer::Bytes)
}

/// Writes a string that was changed in place: a live row keeps its expiry, a new one gets
/// the table's.
fn rewrite(tx: &mut Tx<'_>, row: &Row, value: Bytes) -> Result<(), Fault> {
    let expires_at_ms = if row.is_live() { row.expires_at_ms() } else { tx.default_expiry() };
    row.write(tx, expires_at_ms, Body::String(value))
}

fn check_len(tx: &Tx<'_>, len: u64) -> Result<(), Refusal> {
    if len > STRING_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    tx.rules.check_write(len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_as_redis() {
        for line in include_str!("../tests/vectors/ranges.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            let [value, start, end, answer] = line.split(" | ").collect::<Vec<_>>()[..] else {
                panic!("four columns: {line}")
            };
            let number = |text: &str| text.parse().expect("an offset");
            assert_eq!(
                slice(&Bytes::copy_from_slice(value.as_bytes()), number(start), number(end)),
                answer,
                "{line}"
            );
        }
    }
}
