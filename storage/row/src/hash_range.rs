//! Ops on many fields of a hash at once: ranges by sortkey, as Pegasus's multi_get and
//! multi_del, and HSCAN.

use std::ops::ControlFlow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::eval::EvalResult;
use crate::glob;
use crate::head::Row;
use crate::members::{Members, Writer};
use crate::op::{Answer, Filter, Range};
use crate::view::{Fault, Tx};

/// The maximum number of members, expired ones included, that one op with a limit
/// examines before it returns the place to continue from: a filter that matches nothing
/// must not walk without end.
const EXAMINED_MAX: u64 = 100_000;

/// The approximate time of examining one member, ns.
const MEMBER_NS: u64 = 1000;

/// The maximum numbers of members and of bytes of records that one op deletes: each
/// member is one or two records in the batch, which repeat its name and the row's key.
const DELETED_MAX: u64 = 100_000;
const DELETED_BYTES_MAX: usize = 4 << 20;

/// The maximum number of members of a hash that HSCAN returns whole.
const SCAN_WHOLE_MAX: u64 = 128;

/// The maximum number of members that one HSCAN call examines.
const SCAN_COUNT_MAX: u64 = 10_000;

/// A page of HSCAN ends when matching its pattern has taken as long as examining this
/// many members without a pattern.
const SCAN_HEAVY_MAX: u64 = 50_000;

/// A page of HSCAN ends when it holds this many bytes, that of a small hash too: 128
/// values of 16 MiB do not fit one answer.
const SCAN_BYTES_MAX: usize = 8 << 20;

/// Names and values in one buffer, so that an answer of many cells needs one allocation
/// and not two a cell.
#[derive(Debug)]
pub(crate) struct CellBuffer {
    want_values: bool,
    buffer: Vec<u8>,
    /// The ends of each cell's name and value in the buffer.
    ends: Vec<(usize, usize)>,
}

impl CellBuffer {
    pub(crate) fn new(want_values: bool) -> CellBuffer {
        CellBuffer { want_values, buffer: Vec::new(), ends: Vec::new() }
    }

    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.buffer.extend_from_slice(name);
        let name_end = self.buffer.len();
        if self.want_values {
            self.buffer.extend_from_slice(value);
        }
        self.ends.push((name_end, self.buffer.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn finish(self) -> Vec<(Bytes, Bytes)> {
        let buffer = Bytes::from(self.buffer);
        let mut start = 0;
        let cell = |(name_end, end)| {
            let cell = (buffer.slice(start..name_end), buffer.slice(name_end..end));
            start = end;
            cell
        };
        self.ends.into_iter().map(cell).collect()
    }
}

impl Filter {
    /// The cost of testing a sortkey, in members that could be walked past in that time,
    /// roughly; and true if there is time for it.
    fn weight(&self, tx: &Tx<'_>, name: &[u8]) -> (u64, bool) {
        match self {
            Filter::Glob(pattern) if pattern != "*" => {
                let ns = glob::worst_case_ns(pattern, name);
                (1 + ns / MEMBER_NS, tx.view.has_time_for(ns))
            }
            _ => (1, true),
        }
    }

    /// True if a sortkey passes.
    fn passes(&self, name: &[u8]) -> bool {
        match self {
            Filter::None => true,
            Filter::Prefix(with) => name.starts_with(with),
            Filter::Suffix(with) => name.ends_with(with),
            Filter::Contains(with) => contains(name, with),
            Filter::Glob(pattern) => pattern == "*" || glob::matches(pattern, name),
        }
    }
}

/// True if `outer` contains `inner`.
pub(crate) fn contains(outer: &[u8], inner: &[u8]) -> bool {
    memchr::memmem::find(outer, inner).is_some()
}

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
    members: &Members,
    range: &Range,
    examined_max: Option<u64>,
    each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<Option<Bytes>, Fault> {
    let (from, to) = range.bounds();
    let mut looked = 0;
    let mut next = None;
    members.walk_stored(tx, Some(&from), to.as_deref(), range.reverse, &mut |name, member| {
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
    members: &Members,
    range: &Range,
    want_values: bool,
    limits: &RangeLimits,
) -> Result<(CellBuffer, Option<Bytes>), Fault> {
    let RangeLimits { examined_max, cells_max, bytes_max } = *limits;
    let mut found = CellBuffer::new(want_values);
    let mut cut = None;
    let next = walk(tx, members, range, examined_max, &mut |name, value| {
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

/// The smaller of two limits of which 0 means none.
fn smaller_limit(a: usize, b: usize) -> usize {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

pub(crate) fn range(tx: &Tx<'_>, key: &[u8], range: &Range, want_values: bool) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(members) = Members::of(&row)? else { return Ok(Answer::Nil) };
    let asked = usize::try_from(range.bytes_max).unwrap_or(usize::MAX);
    let limits = RangeLimits {
        examined_max: range.is_limited().then_some(EXAMINED_MAX),
        cells_max: range.cells_max,
        bytes_max: smaller_limit(asked, tx.rules.answer_bytes_max),
    };
    let (found, next) = gather(tx, &members, range, want_values, &limits)?;
    tx.rules.check_answer(found.bytes())?;
    if next.is_some() && !range.is_limited() {
        // A request for the whole range must not get a part of it.
        tx.rules.check_answer(usize::MAX)?;
    }
    Ok(Answer::Cells { cells: found.finish(), next })
}

pub(crate) fn count(tx: &Tx<'_>, key: &[u8], range: &Range) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(members) = Members::of(&row)? else { return Ok(Answer::Int(0)) };
    let all = if range.is_whole() {
        members.live(tx)?
    } else {
        let mut n = 0;
        walk(tx, &members, range, None, &mut |_, _| {
            n += 1;
            if n == range.cells_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        n
    };
    Ok(Answer::Int(if range.cells_max > 0 { all.min(range.cells_max) } else { all } as i64))
}

pub(crate) fn delete(tx: &mut Tx<'_>, key: &[u8], range: &Range) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(members) = Members::of(&row)? else {
        return Ok(Answer::Deleted { count: 0, next: None });
    };
    if range.is_whole() && !range.is_limited() {
        let expired = members.expired(tx, EXAMINED_MAX)?;
        // Counting more than that would take too long at once: the row is then deleted in
        // steps.
        if expired < EXAMINED_MAX {
            row.remove(tx)?;
            return Ok(Answer::Deleted { count: members.count() - expired, next: None });
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
    let (found, next) = gather(tx, &members, range, range.bytes_max > 0, &limits)?;
    let mut hash = Writer::open(row)?;
    let mut count = 0;
    for (name, _) in found.finish() {
        count += u64::from(hash.remove(tx, &name)?);
    }
    hash.save(tx)?;
    Ok(Answer::Deleted { count, next })
}

/// The HSCAN cursor that continues at a member: the upper 52 bits of its name's hash,
/// never 0. Many clients keep a cursor in a double, which holds 53 bits.
fn cursor_of(name: &[u8]) -> u64 {
    (xxh3_64(name) >> 12).max(1)
}

/// The member that a cursor stands for: as remembered, or found again by walking the row,
/// or the first member if it is deleted and forgotten (SCAN's guarantee allows members to
/// come twice, but not to be missed). If two names share those 52 bits it is the first of
/// them, for the same reason.
fn resume(tx: &Tx<'_>, members: &Members, cursor: u64) -> Result<Option<Bytes>, Fault> {
    if cursor == 0 {
        return Ok(None);
    }
    if let Some(name) =
        tx.view.recall_cursor(members.prefix(), cursor).filter(|name| cursor_of(name) == cursor)
    {
        return Ok(Some(name));
    }
    let mut found = None;
    members.walk_stored(tx, None, None, false, &mut |name, _| {
        if cursor_of(name) != cursor {
            return ControlFlow::Continue(());
        }
        found = Some(Bytes::copy_from_slice(name));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// A page ends after `count` members, expired ones included: there may be many, and the
/// client must not wait for a walk over all of them.
pub(crate) fn scan(
    tx: &Tx<'_>,
    key: &[u8],
    cursor: u64,
    count: u64,
    glob: Option<&Bytes>,
    want_values: bool,
) -> EvalResult {
    let row = Row::load(tx, key)?;
    let Some(members) = Members::of(&row)? else { return Ok(Answer::Nil) };
    let filter = glob.map_or(Filter::None, |glob| Filter::Glob(glob.clone()));
    let start = resume(tx, &members, cursor)?;
    let count = if members.count() <= SCAN_WHOLE_MAX {
        SCAN_WHOLE_MAX
    } else {
        count.clamp(1, SCAN_COUNT_MAX)
    };
    let bytes_max = smaller_limit(SCAN_BYTES_MAX, tx.rules.answer_bytes_max);
    let mut found = CellBuffer::new(want_values);
    let (mut looked, mut heavy) = (0, 0);
    let mut next = 0;
    members.walk_stored(tx, start.as_deref(), None, false, &mut |name, member| {
        let is_full = looked >= count || found.bytes() >= bytes_max || heavy >= SCAN_HEAVY_MAX;
        // A page does not end at a name whose cursor stands for another name: that of
        // this page's first, since the same page would then be returned for ever, or one
        // that is remembered for another scan.
        if is_full
            && cursor_of(name) != cursor
            && tx.view.remember_cursor(members.prefix(), cursor_of(name), name)
        {
            next = cursor_of(name);
            return ControlFlow::Break(());
        }
        looked += 1;
        let Some((_, value)) = member else { return ControlFlow::Continue(()) };
        let (weight, has_time) = filter.weight(tx, name);
        if !has_time {
            return ControlFlow::Break(());
        }
        heavy += weight;
        if filter.passes(name) {
            found.push(name, value);
        }
        ControlFlow::Continue(())
    })?;
    Ok(Answer::CellsPage { cells: found.finish(), next })
}
