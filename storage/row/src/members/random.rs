//! Random members of a row.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::eval::EvalError;
use crate::form::NamedMembers;
use crate::members::{CellBuffer, Members};
use crate::random::SplitMix64;
use crate::view::Tx;

/// Bytes that a drawn cell takes besides its name and value: its index, two handles to
/// bytes, and as much again for its reply.
const DRAWN_BYTES: u64 = 128;

/// Draws `count` members, or as many with repetition as it is negative: uniform, by
/// walking the row, in time linear in its length.
pub(crate) fn random<K: NamedMembers>(
    tx: &Tx<'_>,
    members: &Members<K>,
    count: i64,
    seed: u64,
    want_values: bool,
) -> Result<Vec<(Bytes, Bytes)>, EvalError> {
    let live = members.live(tx)?;
    if count == 0 || live == 0 {
        return Ok(Vec::new());
    }
    // An absurd count is refused before any cell is drawn.
    let many = if count < 0 { count.unsigned_abs() } else { count.unsigned_abs().min(live) };
    tx.rules
        .check_answer(usize::try_from(many.saturating_mul(DRAWN_BYTES)).unwrap_or(usize::MAX))?;
    let mut draw = SplitMix64::new(seed);
    let drawn: Vec<u64> = if count < 0 {
        (0..many).map(|_| draw.below(live)).collect()
    } else if many == live {
        (0..live).collect()
    } else {
        draw.distinct(many, live)
    };
    let wanted: BTreeSet<u64> = drawn.iter().copied().collect();
    let mut wanted = wanted.into_iter().peekable();
    let mut found = CellBuffer::new(want_values);
    let mut places = Vec::new(); // the indexes of the cells found, ascending
    let mut at = 0;
    members.walk(tx, &mut |name, _, value| {
        if wanted.next_if_eq(&at).is_some() {
            found.push(name, value);
            places.push(at);
        }
        at += 1;
        if wanted.peek().is_some() && tx.rules.check_answer(found.bytes()).is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    tx.rules.check_answer(found.bytes())?;
    let found = found.finish();
    let mut bytes = 0;
    let mut cells = Vec::with_capacity(drawn.len());
    for index in drawn {
        let Ok(place) = places.binary_search(&index) else { continue };
        let (name, value) = &found[place];
        bytes += name.len() + value.len();
        tx.rules.check_answer(bytes)?;
        cells.push((name.clone(), value.clone()));
    }
    Ok(cells)
}
