//! Check-and-mutate: Pegasus's check_and_set and check_and_mutate.

use bytes::Bytes;

use crate::eval::EvalResult;
use crate::filter::contains;
use crate::hash::{self, HashWriter};
use crate::head::Row;
use crate::number;
use crate::op::{Answer, Check, Mutation, Refusal};
use crate::view::Tx;

pub(crate) fn check_and_mutate(
    tx: &mut Tx<'_>,
    key: &[u8],
    check_sortkey: &[u8],
    check: Check,
    operand: &[u8],
    mutations: &[Mutation],
    want_value: bool,
) -> EvalResult {
    tx.rules.check_write(key.len() + mutations.iter().map(Mutation::bytes).sum::<usize>())?;
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let value = hash.get(tx, check_sortkey)?.map(|cell| cell.value);
    let done = holds(check, operand, value.as_ref())?;
    if done {
        for mutation in mutations {
            mutate(tx, &mut hash, mutation)?;
        }
        hash.save(tx)?;
    }
    Ok(Answer::Checked { done, value: want_value.then_some(value) })
}

fn mutate(tx: &mut Tx<'_>, hash: &mut HashWriter, mutation: &Mutation) -> Result<(), crate::Fault> {
    let (name, put) = match mutation {
        Mutation::Put { sortkey, value, ttl } => {
            (sortkey, Some((value, hash::field_expiry(tx, hash, sortkey, *ttl)?)))
        }
        Mutation::Delete { sortkey } => (sortkey, None),
    };
    match put {
        Some((value, at)) if !tx.is_expired(at) => hash.put(tx, name, value.clone(), at)?,
        _ => hash.remove(tx, name)?,
    };
    Ok(())
}

/// Evaluates a check by Pegasus's rules: a missing value passes no comparison, an empty
/// operand matches every existing value, and bytes are compared as bytes. Integers are
/// decimal i64 (Pegasus also takes octal and hexadecimal); the value is parsed before the
/// operand.
fn holds(check: Check, operand: &[u8], value: Option<&Bytes>) -> Result<bool, Refusal> {
    let Some(value) = value else {
        return Ok(matches!(check, Check::None | Check::NotExist | Check::NotExistOrEmpty));
    };
    Ok(match check {
        Check::None | Check::Exist => true,
        Check::NotExist => false,
        Check::NotExistOrEmpty => value.is_empty(),
        Check::NotEmpty => !value.is_empty(),
        Check::MatchAnywhere => contains(value, operand),
        Check::MatchPrefix => value.starts_with(operand),
        Check::MatchPostfix => value.ends_with(operand),
        Check::BytesLess => value[..] < *operand,
        Check::BytesLessOrEqual => value[..] <= *operand,
        Check::BytesEqual => value[..] == *operand,
        Check::BytesGreaterOrEqual => value[..] >= *operand,
        Check::BytesGreater => value[..] > *operand,
        Check::IntLess
        | Check::IntLessOrEqual
        | Check::IntEqual
        | Check::IntGreaterOrEqual
        | Check::IntGreater => {
            let value = number::parse_int(value).ok_or(Refusal::CheckValueNotInteger)?;
            let operand = number::parse_int(operand).ok_or(Refusal::CheckOperandNotInteger)?;
            match check {
                Check::IntLess => value < operand,
                Check::IntLessOrEqual => value <= operand,
                Check::IntEqual => value == operand,
                Check::IntGreaterOrEqual => value >= operand,
                _ => value > operand,
            }
        }
    })
}
