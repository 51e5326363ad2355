//! Hashes, and ops on their fields.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::eval::{EvalError, EvalResult};
use crate::expire::{DueMembers, ExpiryStep};
use crate::form::{CheckSize, Collection, NamedMembers};
use crate::head::Row;
use crate::key::{KeyBuf, KeySpace};
use crate::members::{self, Members, Writer};
use crate::number::{self, LongDouble};
use crate::op::{
    Answer, Check, Deadline, ExpireCondition, Mutation, Range, Refusal, RowContent, RowKind, Ttl,
    WriteCondition,
};
use crate::ops;
use crate::registry::Key;
use crate::value::Expiries;
use crate::view::{Fault, Tx};
use crate::{hash_expiry, hash_range, pegasus};

ops! {
    /// Operations on hashes.
    pub enum HashOp {
        /// Sets fields. `ttl` is the fields'; HSET drops a field's expiry
        /// (`Ttl::Default`). With `only`, nothing is written unless all fields qualify
        /// (HSETNX, HSETEX FNX/FXX), and the answer is then `Nil`. -> `Int`, the number
        /// of new fields
        96 Put { key: Key, pairs: Vec<(Bytes, Bytes)>, only: WriteCondition, ttl: Ttl }
            => put, Write, Look::each(pairs.len()), Small;
        /// -> `Values`, one per field, or `Nil` without the row
        97 Get { key: Key, fields: SmallVec<[Bytes; 1]> }
            => get, Read, Look::each(fields.len()), Large;
        /// HGETDEL. -> `Values`
        98 GetDelete { key: Key, fields: Vec<Bytes> }
            => get_delete, Write, Look::each(fields.len()), Large;
        /// HGETEX: `Ttl::Keep` leaves the expiry unchanged. -> `Values`
        99 GetExpire { key: Key, fields: Vec<Bytes>, ttl: Ttl }
            => get_expire, Write, Look::each(fields.len()), Large;
        /// Deletes fields; a hash without fields is no row. -> `Int`, the number deleted
        100 Delete { key: Key, fields: Vec<Bytes> }
            => delete, Write, Look::each(fields.len()), Small;
        /// The exact number of live fields, whether or not expired ones are purged. ->
        /// `Int`
        101 Len { key: Key } => len, Read, One, Small;
        /// Cells of a range, in sortkey order. -> `Cells`, or `Nil` without the row
        102 Range { key: Key, range: Range, want_values: bool }
            => hash_range::range, Read, Row(0), Large;
        /// -> `Int`, the number of cells in the range
        103 RangeCount { key: Key, range: Range } => hash_range::count, Read, Row(0), Small;
        /// Deletes a range. -> `Deleted`
        104 RangeDelete { key: Key, range: Range } => hash_range::delete, WritePart, Row(0), Small;
        /// HSCAN: a small hash whole, of others about `count` cells; a few MiB at most. ->
        /// `CellsPage`, or `Nil` without the row
        105 Scan { key: Key, cursor: u64, count: u64, glob: Option<Bytes>, want_values: bool }
            => hash_range::scan, Read, Some(count.saturating_add(1)), Large;
        /// -> `Int`; refuses `HashNotInteger`, `Overflow`
        106 Incr { key: Key, field: Bytes, by: i64 } => add, Write, One, Small;
        /// -> `Bytes`; refuses `HashNotFloat`, `NanOrInfinity`
        107 IncrFloat { key: Key, field: Bytes, by: Bytes } => add_float, Write, One, Small;
        /// HRANDFIELD: positive count = distinct, negative = with repetition; drawn from
        /// `seed`. -> `Cells`, or `Nil` without the row
        108 Random { key: Key, count: i64, seed: u64, want_values: bool }
            => random, Read, Row((*count).min(0).unsigned_abs()), Large;
        /// HEXPIRE family, one answer a field: -2 no field, 0 condition not met, 1 set, 2
        /// deleted because the deadline is past. -> `Ints`, or `Nil` without the row
        109 Expire { key: Key, fields: Vec<Bytes>, until: Deadline, only: ExpireCondition }
            => hash_expiry::expire, Write, Look::each(fields.len()), Small;
        /// One answer a field: -2 no field, -1 no expiry, otherwise absolute ms, or with
        /// `remaining` the ms from the stamp on. -> `Ints`, or `Nil` without the row
        110 Expiry { key: Key, fields: Vec<Bytes>, remaining: bool }
            => hash_expiry::expiry, Read, Look::each(fields.len()), Small;
        /// One answer a field: -2 no field, -1 no expiry, 1 removed. -> `Ints`, or `Nil`
        /// without the row
        111 Persist { key: Key, fields: Vec<Bytes> }
            => hash_expiry::persist, Write, Look::each(fields.len()), Small;
        /// Checks one cell and, if the check holds, applies all mutations. -> `Checked`;
        /// refuses `CheckOperandNotInteger`, `CheckValueNotInteger`
        112 CheckAndMutate {
            key: Key,
            check_sortkey: Bytes,
            check: Check,
            operand: Bytes,
            mutations: Vec<Mutation>,
            want_value: bool,
        } => pegasus::check_and_mutate, Write, Look::each(1 + mutations.len()),
            AnswerSize::large_if(*want_value);
    }
}

/// Redis 7's bounds of a listpack: `hash-max-listpack-entries` and `-value`.
const LISTPACK_ENTRIES_MAX: u64 = 512;
const LISTPACK_VALUE_MAX: usize = 64;

/// A hash's own part of its head. Its fields may expire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hash {
    /// The summary of the fields' expiries.
    pub expiries: Expiries,
}

/// The fields of a hash, for reading.
pub(crate) type Fields = Members<Hash>;

/// A hash being written.
pub(crate) type HashWriter = Writer<Hash>;

impl Collection for Hash {
    const KIND: RowKind = RowKind::Hash;
    const SPACE: KeySpace = KeySpace::Members;

    fn encoded_len(&self) -> usize {
        self.expiries.encoded_len()
    }

    fn encode(&self, out: &mut BytesMut) {
        self.expiries.encode(out);
    }

    fn decode(rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Hash> {
        Some(Hash { expiries: Expiries::decode(rest, keep)? })
    }

    fn expiries(&self) -> Option<&Expiries> {
        Some(&self.expiries)
    }

    fn expiries_mut(&mut self) -> Option<&mut Expiries> {
        Some(&mut self.expiries)
    }

    fn content(
        fields: &Fields,
        tx: &Tx<'_>,
        check: CheckSize<'_>,
    ) -> Result<RowContent, EvalError> {
        let copy = Bytes::copy_from_slice;
        let fields = fields.collect(tx, check, |name, header, value| {
            (copy(name), copy(value), header.expires_at_ms)
        })?;
        Ok(RowContent::Hash(fields))
    }

    fn encoding(fields: &Fields, tx: &Tx<'_>) -> Result<&'static str, Fault> {
        if fields.count() > LISTPACK_ENTRIES_MAX {
            return Ok("hashtable");
        }
        let mut short = true;
        fields.walk(tx, &mut |name, _, value| {
            short = name.len() <= LISTPACK_VALUE_MAX && value.len() <= LISTPACK_VALUE_MAX;
            if short { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(match (short, fields.head().own.expiries.expiring) {
            (false, _) => "hashtable",
            (true, 0) => "listpack",
            (true, _) => "listpackex",
        })
    }

    fn cells_bytes(fields: &Fields, tx: &Tx<'_>, samples: u64) -> Result<u64, Fault> {
        fields.sampled_bytes(tx, samples)
    }

    fn expire_members(
        tx: &mut Tx<'_>,
        step: &mut ExpiryStep,
        row: HashWriter,
        found: &DueMembers,
    ) -> Result<usize, Fault> {
        step.expire_members_of(tx, row, found)
    }
}

impl NamedMembers for Hash {
    fn push_sortkey(key: &mut KeyBuf, _generation: u64, name: &[u8]) {
        key.extend_from_slice(name);
    }

    fn name_of(sortkey: &[u8]) -> &[u8] {
        sortkey
    }
}

pub(crate) fn put(
    tx: &mut Tx<'_>,
    key: &[u8],
    pairs: &[(Bytes, Bytes)],
    only: WriteCondition,
    ttl: Ttl,
) -> EvalResult {
    tx.rules.check_write(
        key.len() + pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>(),
    )?;
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    if only != WriteCondition::Always {
        for (name, _) in pairs {
            if hash.get(tx, name)?.is_some() != (only == WriteCondition::IfPresent) {
                return Ok(Answer::Nil);
            }
        }
    }
    let mut new = 0;
    for (name, value) in pairs {
        let expires_at_ms = field_expiry(tx, &hash, name, ttl)?;
        if tx.is_expired(expires_at_ms) {
            hash.remove(tx, name)?;
        } else if hash.put(tx, name, value.clone(), expires_at_ms)? {
            new += 1;
        }
    }
    hash.save(tx)?;
    Ok(Answer::Int(new))
}

/// The expiry that a write gives to a field: `default_ttl` applies to rows, not to
/// fields.
pub(crate) fn field_expiry(
    tx: &Tx<'_>,
    hash: &HashWriter,
    name: &[u8],
    ttl: Ttl,
) -> Result<Option<u64>, Fault> {
    Ok(match ttl {
        Ttl::Default | Ttl::Never => None,
        Ttl::Keep => hash.get(tx, name)?.and_then(|cell| cell.header.expires_at_ms),
        Ttl::Until(deadline) => Some(tx.deadline_ms(deadline)),
    })
}

pub(crate) fn get(tx: &Tx<'_>, key: &[u8], fields: &[Bytes]) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(members) = Fields::of(&row)? else { return Ok(Answer::Nil) };
    let mut values = SmallVec::with_capacity(fields.len());
    let mut bytes = 0;
    for name in fields {
        let value = members.get(tx, name)?.map(|cell| cell.value);
        bytes += value.as_ref().map_or(0, Bytes::len);
        tx.rules.check_answer(bytes)?;
        values.push(value);
    }
    Ok(Answer::Values(values))
}

/// The values of fields of a hash that is about to be changed. An answer that is too
/// large is refused here, before any change.
fn values(
    tx: &Tx<'_>,
    hash: &HashWriter,
    fields: &[Bytes],
) -> Result<SmallVec<[Option<Bytes>; 1]>, EvalError> {
    let mut values = SmallVec::with_capacity(fields.len());
    let mut bytes = 0;
    for name in fields {
        let value = hash.get(tx, name)?.map(|cell| cell.value);
        bytes += value.as_ref().map_or(0, Bytes::len);
        values.push(value);
    }
    tx.rules.check_answer(bytes)?;
    Ok(values)
}

pub(crate) fn get_delete(tx: &mut Tx<'_>, key: &[u8], fields: &[Bytes]) -> EvalResult {
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let mut values = values(tx, &hash, fields)?;
    for (name, value) in fields.iter().zip(&mut values) {
        if !hash.remove(tx, name)? {
            *value = None; // a field named twice is gone the second time
        }
    }
    hash.save(tx)?;
    Ok(Answer::Values(values))
}

pub(crate) fn get_expire(tx: &mut Tx<'_>, key: &[u8], fields: &[Bytes], ttl: Ttl) -> EvalResult {
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let values = values(tx, &hash, fields)?;
    for name in fields {
        let Some(cell) = hash.get(tx, name)? else { continue };
        let expires_at_ms = field_expiry(tx, &hash, name, ttl)?;
        if tx.is_expired(expires_at_ms) {
            hash.remove(tx, name)?;
        } else if expires_at_ms != cell.header.expires_at_ms {
            hash.put(tx, name, cell.value, expires_at_ms)?;
        }
    }
    hash.save(tx)?;
    Ok(Answer::Values(values))
}

pub(crate) fn delete(tx: &mut Tx<'_>, key: &[u8], fields: &[Bytes]) -> EvalResult {
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let mut deleted = 0;
    for name in fields {
        deleted += i64::from(hash.remove(tx, name)?);
    }
    hash.save(tx)?;
    Ok(Answer::Int(deleted))
}

pub(crate) fn len(tx: &Tx<'_>, key: &[u8]) -> EvalResult {
    let row = Row::load(tx, key)?;
    Ok(Answer::Int(match Fields::of(&row)? {
        Some(members) => members.live(tx)? as i64,
        None => 0,
    }))
}

pub(crate) fn add(tx: &mut Tx<'_>, key: &[u8], field: &[u8], by: i64) -> EvalResult {
    tx.rules.check_write(key.len() + field.len())?;
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let old = hash.get(tx, field)?;
    let n = old
        .as_ref()
        .map_or(Some(0), |cell| number::parse_int(&cell.value))
        .ok_or(Refusal::HashNotInteger)?;
    let new = n.checked_add(by).ok_or(Refusal::Overflow)?;
    hash.put(tx, field, number::print_int(new), old.and_then(|cell| cell.header.expires_at_ms))?;
    hash.save(tx)?;
    Ok(Answer::Int(new))
}

pub(crate) fn add_float(tx: &mut Tx<'_>, key: &[u8], field: &[u8], by: &[u8]) -> EvalResult {
    tx.rules.check_write(key.len() + field.len())?;
    let by = LongDouble::parse(by).ok_or(Refusal::NotFloat)?;
    let mut hash = HashWriter::open(Row::load(tx, key)?)?;
    let old = hash.get(tx, field)?;
    let n = old
        .as_ref()
        .map_or(LongDouble::parse(b"0"), |cell| LongDouble::parse(&cell.value))
        .ok_or(Refusal::HashNotFloat)?;
    let new = n.plus(by);
    if !new.is_finite() {
        return Err(Refusal::NanOrInfinity.into());
    }
    let new = Bytes::from(new.print());
    hash.put(tx, field, new.clone(), old.and_then(|cell| cell.header.expires_at_ms))?;
    hash.save(tx)?;
    Ok(Answer::Bytes(new))
}

pub(crate) fn random(
    tx: &Tx<'_>,
    key: &[u8],
    count: i64,
    seed: u64,
    want_values: bool,
) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(fields) = Fields::of(&row)? else { return Ok(Answer::Nil) };
    let cells = members::random(tx, &fields, count, seed, want_values)?;
    Ok(Answer::Cells { cells, next: None })
}
