//! The last touches of rows: WATCH without memory per client.
//!
//! Each row falls into one of a fixed number of stripes by its place in hash order; a
//! stripe holds the number of the last batch that touched a row of it. A watched row is
//! untouched when its stripe's number has not moved. Two rows of one stripe can make EXEC
//! fail without need (about once in 8,192 for a random other write), never succeed
//! wrongly. The numbers live with one leadership: a token of another term counts as
//! touched.

use row::edits::{Edits, Family};

const STRIPES: usize = 8192;
/// Bytes of slot and hash at the start of head and cell keys.
const POSITION_BYTES: usize = 8;

/// The last batch that touched each stripe; allocated when somebody first watches.
#[derive(Debug, Default)]
pub(crate) struct Stripes {
    touched: Vec<u64>,
    /// All rows that were there have been deleted.
    cleared: u64,
    /// The batch before which nothing is known.
    all_touched: u64,
    batch: u64,
}

impl Stripes {
    /// The number a watcher of this head key keeps.
    pub(crate) fn watch(&mut self, head_key: &[u8]) -> u64 {
        if self.touched.is_empty() {
            self.touched = vec![self.batch; STRIPES];
        }
        self.last_touch(head_key, true)
    }

    /// The last batch that may have touched the row of this head key, which was there
    /// when it was watched or was not.
    pub(crate) fn last_touch(&self, head_key: &[u8], existed: bool) -> u64 {
        let stripe = self.touched.get(stripe_of(head_key)).copied().unwrap_or(self.batch);
        stripe.max(self.all_touched).max(if existed { self.cleared } else { 0 })
    }

    /// Counts all rows as touched: nothing earlier is known any more.
    pub(crate) fn touch_all(&mut self) {
        self.batch += 1;
        self.all_touched = self.batch;
    }

    /// Takes note of an applied batch.
    pub(crate) fn touch(&mut self, edits: &Edits) {
        self.batch += 1;
        if edits.clear {
            self.cleared = self.batch;
        }
        if self.touched.is_empty() {
            return;
        }
        for (family, key, _) in edits.iter() {
            if family != Family::State {
                self.touched[stripe_of(key)] = self.batch;
            }
        }
    }
}

/// True when edits may change the row of this head key, which existed when it was watched
/// or did not: they change a row at the same position.
pub(crate) fn changes(edits: &Edits, head_key: &[u8], existed: bool) -> bool {
    edits.clear && existed || edits.touches_row(&head_key[..POSITION_BYTES.min(head_key.len())])
}

fn stripe_of(key: &[u8]) -> usize {
    let mut place = [0; POSITION_BYTES];
    let known = key.len().min(POSITION_BYTES);
    place[..known].copy_from_slice(&key[..known]);
    // The place's low bits are hash bits already; the slot is folded in because a hash
    // tag gives many rows one slot.
    let place = u64::from_be_bytes(place);
    ((place ^ place >> 48) % STRIPES as u64) as usize
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn edits_of(family: Family, key: &[u8]) -> Edits {
        let mut edits = Edits::default();
        edits.delete(family, Bytes::copy_from_slice(key));
        edits
    }

    #[test]
    fn a_row_is_touched_by_its_head_its_cells_and_a_clear() {
        let (row, other) = (b"\x00\x01abcdefkey".as_slice(), b"\x00\x02zyxwvukey".as_slice());
        let mut stripes = Stripes::default();
        let seen = stripes.watch(row);
        stripes.touch(&edits_of(Family::Head, other));
        stripes.touch(&edits_of(Family::State, row));
        assert_eq!(stripes.last_touch(row, true), seen);
        stripes.touch(&edits_of(Family::Cell, row));
        assert!(stripes.last_touch(row, true) > seen && stripes.last_touch(row, false) > seen);
        let seen = stripes.watch(row);
        let mut clear = Edits::default();
        clear.clear_rows();
        stripes.touch(&clear);
        assert!(stripes.last_touch(row, true) > seen);
        assert_eq!(stripes.last_touch(row, false), seen, "what was not there is not deleted");
        stripes.touch_all();
        assert!(stripes.last_touch(row, false) > seen);
    }

    #[test]
    fn edits_change_rows_at_their_place_only() {
        let row = b"\x00\x01abcdefkey".as_slice();
        for family in [Family::Head, Family::Cell] {
            assert!(changes(&edits_of(family, b"\x00\x01abcdefother"), row, true));
            assert!(!changes(&edits_of(family, b"\x00\x01abcdegkey"), row, true));
            assert!(!changes(&edits_of(family, b"\x00\x01abcdeekey"), row, true));
        }
        assert!(!changes(&edits_of(Family::State, row), row, true));
        // 100,000 watched rows and as many edits: looking at every edit for every row
        // would not finish.
        let mut edits = Edits::default();
        for number in 0..100_000u64 {
            edits.delete(Family::Cell, Bytes::copy_from_slice(&(2 * number).to_be_bytes()));
        }
        assert!((0..100_000u64).all(|number| !changes(
            &edits,
            &(2 * number + 1).to_be_bytes(),
            true
        )));
    }
}
