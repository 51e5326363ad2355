//! The members of a row in pages, by integer cursors: HSCAN.

use std::ops::ControlFlow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::eval::EvalResult;
use crate::form::{Collection, NamedMembers};
use crate::members::{CellBuffer, Members, smaller_limit};
use crate::op::{Answer, Filter};
use crate::view::{Fault, Tx};

/// The maximum number of members of a row that is returned whole.
const SCAN_WHOLE_MAX: u64 = 128;

/// The maximum number of members that one page examines.
const SCAN_COUNT_MAX: u64 = 10_000;

/// A page ends when matching its pattern has taken as long as examining this
/// many members without a pattern.
const SCAN_HEAVY_MAX: u64 = 50_000;

/// A page ends when it holds this many bytes, that of a small row too: 128
/// values of 16 MiB do not fit one answer.
const SCAN_BYTES_MAX: usize = 8 << 20;

/// The cursor that continues at a member: the upper 52 bits of its sortkey's hash, never
/// 0. Many clients keep a cursor in a double, which holds 53 bits.
fn cursor_of(sortkey: &[u8]) -> u64 {
    (xxh3_64(sortkey) >> 12).max(1)
}

/// The sortkey that a cursor stands for: as remembered, or found again by walking the
/// row, or the first one if it is deleted and forgotten (SCAN's guarantee allows members
/// to come twice, but not to be missed). If two sortkeys share those 52 bits it is the
/// first of them, for the same reason.
fn resume<K: Collection>(
    tx: &Tx<'_>,
    members: &Members<K>,
    cursor: u64,
) -> Result<Option<Bytes>, Fault> {
    if cursor == 0 {
        return Ok(None);
    }
    let known = tx.view.recall_cursor(members.prefix(), cursor);
    if let Some(sortkey) = known.filter(|sortkey| cursor_of(sortkey) == cursor) {
        return Ok(Some(sortkey));
    }
    let mut found = None;
    members.walk_stored(tx, None, None, false, &mut |sortkey, _| {
        if cursor_of(sortkey) != cursor {
            return ControlFlow::Continue(());
        }
        found = Some(Bytes::copy_from_slice(sortkey));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// A page of members and the cursor of the next. It ends after `count` members, expired
/// ones included: there may be many, and the client must not wait for a walk over all of
/// them.
pub(crate) fn scan<K: NamedMembers>(
    tx: &Tx<'_>,
    members: &Members<K>,
    cursor: u64,
    count: u64,
    glob: Option<&Bytes>,
    want_values: bool,
) -> EvalResult {
    let filter = glob.map_or(Filter::None, |glob| Filter::Glob(glob.clone()));
    let start = resume(tx, members, cursor)?;
    let count = if members.count() <= SCAN_WHOLE_MAX {
        SCAN_WHOLE_MAX
    } else {
        count.clamp(1, SCAN_COUNT_MAX)
    };
    let bytes_max = smaller_limit(SCAN_BYTES_MAX, tx.rules.answer_bytes_max);
    let mut found = CellBuffer::new(want_values);
    let (mut looked, mut heavy) = (0, 0);
    let mut next = 0;
    members.walk_stored(tx, start.as_deref(), None, false, &mut |sortkey, member| {
        let is_full = looked >= count || found.bytes() >= bytes_max || heavy >= SCAN_HEAVY_MAX;
        // A page does not end at a sortkey whose cursor stands for another one: that of
        // this page's first, since the same page would then be returned for ever, or one
        // that is remembered for another scan.
        if is_full
            && cursor_of(sortkey) != cursor
            && tx.view.remember_cursor(members.prefix(), cursor_of(sortkey), sortkey)
        {
            next = cursor_of(sortkey);
            return ControlFlow::Break(());
        }
        looked += 1;
        let Some((_, value)) = member else { return ControlFlow::Continue(()) };
        let name = K::name_of(sortkey);
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
