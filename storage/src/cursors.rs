//! The sortkeys of HSCAN cursors, remembered for speed: a bounded table, the newest
//! cursor wins.
//!
//! A cursor is a hash of a sortkey, so two of a row may share one. It goes on standing
//! for the one that it was given for first, as somebody may be there yet: a page does not
//! end at the other.

use bytes::Bytes;
use parking_lot::Mutex;
use row::key;

const SLOTS: usize = 1024;

/// Cursors of rows and their sortkeys. Empty until somebody scans a large hash.
#[derive(Debug, Default)]
pub(crate) struct Cursors(Mutex<Vec<Option<Remembered>>>);

#[derive(Debug, Clone)]
struct Remembered {
    /// A hash of what the keys of the row's members begin with.
    row: u64,
    cursor: u64,
    sortkey: Bytes,
}

fn slot(row: u64, cursor: u64) -> usize {
    (row ^ cursor) as usize % SLOTS
}

impl Cursors {
    /// The sortkey, if it has not been displaced.
    pub(crate) fn recall_cursor(&self, row: &[u8], cursor: u64) -> Option<Bytes> {
        let row = key::hash48(row);
        let slots = self.0.lock();
        let known = slots.get(slot(row, cursor))?.as_ref()?;
        (known.row == row && known.cursor == cursor).then(|| known.sortkey.clone())
    }

    /// Notes a sortkey, displacing that of another cursor; `false` when this cursor
    /// stands for another one.
    pub(crate) fn remember_cursor(&self, row: &[u8], cursor: u64, sortkey: &[u8]) -> bool {
        let row = key::hash48(row);
        let mut slots = self.0.lock();
        if slots.is_empty() {
            slots.resize(SLOTS, None);
        }
        let known = &mut slots[slot(row, cursor)];
        match known {
            Some(known) if known.row == row && known.cursor == cursor => known.sortkey == sortkey,
            _ => {
                *known = Some(Remembered { row, cursor, sortkey: Bytes::copy_from_slice(sortkey) });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_cursor_wins_a_slot_and_the_displaced_is_forgotten() {
        let cursors = Cursors::default();
        assert_eq!(cursors.recall_cursor(b"row", 5), None);
        assert!(cursors.remember_cursor(b"row", 5, b"a"));
        assert_eq!(cursors.recall_cursor(b"row", 5), Some(Bytes::from_static(b"a")));
        assert!(cursors.remember_cursor(b"row", 5 + SLOTS as u64, b"b"));
        assert_eq!(cursors.recall_cursor(b"row", 5), None);
    }

    #[test]
    fn a_cursor_stands_for_one_sortkey_of_its_row() {
        let cursors = Cursors::default();
        assert!(
            cursors.remember_cursor(b"row", 5, b"a") && cursors.remember_cursor(b"row", 5, b"a")
        );
        assert!(!cursors.remember_cursor(b"row", 5, b"b"), "somebody may be at the other");
        assert_eq!(cursors.recall_cursor(b"row", 5), Some(Bytes::from_static(b"a")));
        assert_eq!(cursors.recall_cursor(b"other", 5), None, "another row's cursors are its own");
        assert!(cursors.remember_cursor(b"other", 5, b"b"));
        assert_eq!(cursors.recall_cursor(b"other", 5), Some(Bytes::from_static(b"b")));
    }
}
