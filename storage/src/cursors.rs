//! What HSCAN cursors stand for, remembered for speed only: a bounded table, newest wins.

use bytes::Bytes;
use parking_lot::Mutex;

const SLOTS: usize = 1024;

/// Cursor (a hash of the sortkey) to sortkey. Empty until somebody scans a large hash.
#[derive(Debug, Default)]
pub(crate) struct Cursors(Mutex<Vec<Option<(u64, Bytes)>>>);

impl Cursors {
    /// The sortkey, if it has not been displaced.
    pub(crate) fn recall(&self, cursor: u64) -> Option<Bytes> {
        let slots = self.0.lock();
        match slots.get(cursor as usize % SLOTS)? {
            Some((known, sortkey)) if *known == cursor => Some(sortkey.clone()),
            _ => None,
        }
    }

    /// Notes a sortkey, displacing another.
    pub(crate) fn remember(&self, cursor: u64, sortkey: &[u8]) {
        let mut slots = self.0.lock();
        if slots.is_empty() {
            slots.resize(SLOTS, None);
        }
        slots[cursor as usize % SLOTS] = Some((cursor, Bytes::copy_from_slice(sortkey)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_wins_a_slot_and_the_displaced_is_forgotten() {
        let cursors = Cursors::default();
        assert_eq!(cursors.recall(5), None);
        cursors.remember(5, b"a");
        assert_eq!(cursors.recall(5), Some(Bytes::from_static(b"a")));
        cursors.remember(5 + SLOTS as u64, b"b");
        assert_eq!(cursors.recall(5), None);
    }
}
