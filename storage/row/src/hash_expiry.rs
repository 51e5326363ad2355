//! Ops on the expiry of fields.

use bytes::Bytes;

use crate::eval::EvalResult;
use crate::hash::{Fields, HashWriter};
use crate::head::Row;
use crate::op::{Answer, Deadline, ExpireCondition, FIELD_EXPIRY_MAX_MS, Refusal};
use crate::view::Tx;

const NO_FIELD: i64 = -2;
const NO_EXPIRY: i64 = -1;
const NOT_MET: i64 = 0;
const DONE: i64 = 1;
const DELETED: i64 = 2;

pub(crate) fn expire(
    tx: &mut Tx<'_>,
    key: &[u8],
    fields: &[Bytes],
    until: Deadline,
    only: ExpireCondition,
) -> EvalResult {
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let at = tx.deadline_ms(until);
    if at > FIELD_EXPIRY_MAX_MS {
        return Err(Refusal::ExpiryTooFar.into());
    }
    if !hash.exists() {
        return Ok(Answer::Nil);
    }
    let mut answers = Vec::with_capacity(fields.len());
    for name in fields {
        answers.push(match hash.get(tx, name)? {
            None => NO_FIELD,
            Some(cell) if !only.allows(cell.header.expires_at_ms, at) => NOT_MET,
            Some(_) if tx.is_expired(Some(at)) => {
                hash.remove(tx, name)?;
                DELETED
            }
            Some(cell) => {
                hash.put(tx, name, cell.value, Some(at))?;
                DONE
            }
        });
    }
    hash.save(tx)?;
    Ok(Answer::Ints(answers))
}

pub(crate) fn expiry(tx: &Tx<'_>, key: &[u8], fields: &[Bytes], remaining: bool) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(hash) = Fields::of(&row)? else { return Ok(Answer::Nil) };
    let since = if remaining { tx.stamp.now_ms } else { 0 };
    let mut answers = Vec::with_capacity(fields.len());
    for name in fields {
        answers.push(match hash.get(tx, name)? {
            None => NO_FIELD,
            Some(cell) => {
                cell.header.expires_at_ms.map_or(NO_EXPIRY, |at| at.saturating_sub(since) as i64)
            }
        });
    }
    Ok(Answer::Ints(answers))
}

pub(crate) fn persist(tx: &mut Tx<'_>, key: &[u8], fields: &[Bytes]) -> EvalResult {
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    if !hash.exists() {
        return Ok(Answer::Nil);
    }
    let mut answers = Vec::with_capacity(fields.len());
    for name in fields {
        answers.push(match hash.get(tx, name)? {
            None => NO_FIELD,
            Some(cell) if cell.header.expires_at_ms.is_none() => NO_EXPIRY,
            Some(cell) => {
                hash.put(tx, name, cell.value, None)?;
                DONE
            }
        });
    }
    hash.save(tx)?;
    Ok(Answer::Ints(answers))
}
