//! Random members of a row.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::eval::EvalError;
use crate::form::NamedMembers;
use crate::members::{CellBuffer, Members};
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
    let mut draw = SplitMix64(seed);
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

/// splitmix64 (Steele, Lea, Flood 2014): random enough for draws, and the same on every
/// machine for the same seed.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, by multiplication (Lemire): the bias is n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// `many` distinct numbers below `n`, by Floyd's method, then shuffled.
    fn distinct(&mut self, many: u64, n: u64) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let mut drawn = Vec::new();
        for top in n - many..n {
            let candidate = self.below(top + 1);
            let pick = if seen.insert(candidate) { candidate } else { top };
            seen.insert(pick);
            drawn.push(pick);
        }
        for i in (1..drawn.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            drawn.swap(i, j);
        }
        drawn
    }
}
