//! Ops on many fields of a hash at once: ranges by sortkey, as Pegasus's multi_get and
//! multi_del, and HSCAN.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::eval::EvalResult;
use crate::hash::{Fields, HashWriter};
use crate::head::Row;
use crate::members::{self, CellBuffer, smaller_limit};
use crate::op::{Answer, Filter, Range};
use crate::view::{Fault, Tx};

/// The maximum number of members, expired ones included, that one op with a limit
/// examines before it returns the place to continue from: a filter that matches nothing
/// must not walk without end.
const EXAMINED_MAX: u64 = 100_000;

/// The maximum numbers of members and of bytes of records that one op deletes: each
/// member is one or two records in the batch, which repeat its name and the row's key.
const DELETED_MAX: u64 = 100_000;
const DELETED_BYTES_MAX: usize = 4 << 20;

impl Range {
    /// The bounds of the range as its first name and the name behind its last, narrowed
    /// to a prefix if that is the filter.
    fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let after = |name: &Bytes| [&name[..], &[0]].concat();
        let mut from = match &self.start {
            None => Vec::new(),
            Some(start) if self.start_inclusive => start.to_vec(),
            Some(start) => after(start),
        };
        let mut to = match &self.stop {
            None => None,
            Some(stop) if self.stop_inclusive => Some(after(stop)),
            Some(stop) => Some(stop.to_vec()),
        };
        if let Filter::Prefix(prefix) = &self.filter {
            from = from.max(prefix.to_vec());
            to = match (to, prefix_end(prefix)) {
                (Some(to), Some(end)) => Some(to.min(end)),
                (to, end) => to.or(end),
            };
        }
        (from, to)
    }

    /// True if the range includes every member.
    fn is_whole(&self) -> bool {
        self.start.is_none() && self.stop.is_none() && self.filter == Filter::None
    }

    fn is_limited(&self) -> bool {
        self.cells_max > 0 || self.bytes_max > 0
    }
}

/// The first name that is greater than all names with a prefix; `None` when there is
/// none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b < u8::MAX)?;
    let mut out = prefix[..=last].to_vec();
    out[last] += 1;
    Some(out)
}

/// Walks the live members of a range that pass its filter, until `each` breaks. With
/// `examined_max` it also ends after examining that many members, expired ones included,
/// and then returns the name of the next one.
fn walk(
    tx: &Tx<'_>,
    fields: &Fields,
    range: &Range,
    examined_max: Option<u64>,
    each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<Option<Bytes>, Fault> {
    let (from, to) = range.bounds();
    let mut looked = 0;
    let mut next = None;
    fields.walk_stored(tx, Some(&from), to.as_deref(), range.reverse, &mut |name, member| {
        if examined_max.is_some_and(|most| looked >= most) {
            next = Some(Bytes::copy_from_slice(name));
            return ControlFlow::Break(());
        }
        let Some((_, value)) = member else {
            looked += 1;
            return ControlFlow::Continue(());
        };
        let (weight, has_time) = range.filter.weight(tx, name);
        if !has_time {
            return ControlFlow::Break(());
        }
        looked += weight;
        if range.filter.passes(name) { each(name, value) } else { ControlFlow::Continue(()) }
    })?;
    Ok(next)
}

/// Limits that end a collection before the range ends.
struct RangeLimits {
    examined_max: Option<u64>,
    /// 0 = no limit.
    cells_max: u64,
    /// 0 = no limit.
    bytes_max: usize,
}

/// Collects a range within limits (at least one cell if there is one). Returns also the
/// name to continue from if a limit cut the range short.
fn gather(
    tx: &Tx<'_>,
    fields: &Fields,
    range: &Range,
    want_values: bool,
    limits: &RangeLimits,
) -> Result<(CellBuffer, Option<Bytes>), Fault> {
    let RangeLimits { examined_max, cells_max, bytes_max } = *limits;
    let mut found = CellBuffer::new(want_values);
    let mut cut = None;
    let next = walk(tx, fields, range, examined_max, &mut |name, value| {
        let bytes = found.bytes() + name.len() + if want_values { value.len() } else { 0 };
        let over = (cells_max > 0 && found.len() as u64 >= cells_max)
            || (bytes_max > 0 && bytes > bytes_max && found.len() > 0);
        if over {
            cut = Some(Bytes::copy_from_slice(name));
            return ControlFlow::Break(());
        }
        found.push(name, value);
        ControlFlow::Continue(())
    })?;
    Ok((found, cut.or(next)))
}

pub(crate) fn range(tx: &Tx<'_>, key: &[u8], range: &Range, want_values: bool) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(fields) = Fields::of(&row)? else { return Ok(Answer::Nil) };
    let asked = usize::try_from(range.bytes_max).unwrap_or(usize::MAX);
    let limits = RangeLimits {
        examined_max: range.is_limited().then_some(EXAMINED_MAX),
        cells_max: range.cells_max,
        bytes_max: smaller_limit(asked, tx.rules.answer_bytes_max),
    };
    let (found, next) = gather(tx, &fields, range, want_values, &limits)?;
    tx.rules.check_answer(found.bytes())?;
    if next.is_some() && !range.is_limited() {
        // A request for the whole range must not get a part of it.
        tx.rules.check_answer(usize::MAX)?;
    }
    Ok(Answer::Cells { cells: found.finish(), next })
}

pub(crate) fn count(tx: &Tx<'_>, key: &[u8], range: &Range) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(fields) = Fields::of(&row)? else { return Ok(Answer::Int(0)) };
    let all = if range.is_whole() {
        fields.live(tx)?
    } else {
        let mut n = 0;
        walk(tx, &fields, range, None, &mut |_, _| {
            n += 1;
            if n == range.cells_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        n
    };
    Ok(Answer::Int(if range.cells_max > 0 { all.min(range.cells_max) } else { all } as i64))
}

pub(crate) fn delete(tx: &mut Tx<'_>, key: &[u8], range: &Range) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(fields) = Fields::of(&row)? else {
        return Ok(Answer::Deleted { count: 0, next: None });
    };
    if range.is_whole() && !range.is_limited() {
        let expired = fields.expired(tx, EXAMINED_MAX)?;
        // Counting more than that would take too long at once: the row is then deleted in
        // steps.
        if expired < EXAMINED_MAX {
            row.remove(tx)?;
            return Ok(Answer::Deleted { count: fields.count() - expired, next: None });
        }
    }
    let deleted_max = DELETED_MAX.min((DELETED_BYTES_MAX / key.len().max(1)) as u64);
    let cells_max =
        if range.cells_max == 0 { deleted_max } else { range.cells_max.min(deleted_max) };
    let asked = usize::try_from(range.bytes_max).unwrap_or(usize::MAX);
    // The partition waits for this op, so it is bounded whatever the request's own
    // limits.
    let limits = RangeLimits {
        examined_max: Some(EXAMINED_MAX),
        cells_max,
        bytes_max: smaller_limit(asked, DELETED_BYTES_MAX),
    };
    let (found, next) = gather(tx, &fields, range, range.bytes_max > 0, &limits)?;
    let mut hash = HashWriter::open(row)?;
    let mut count = 0;
    for (name, _) in found.finish() {
        count += u64::from(hash.remove(tx, &name)?);
    }
    hash.save(tx)?;
    Ok(Answer::Deleted { count, next })
}

pub(crate) fn scan(
    tx: &Tx<'_>,
    key: &[u8],
    cursor: u64,
    count: u64,
    glob: Option<&Bytes>,
    want_values: bool,
) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(fields) = Fields::of(&row)? else { return Ok(Answer::Nil) };
    members::scan(tx, &fields, cursor, count, glob, want_values)
}
