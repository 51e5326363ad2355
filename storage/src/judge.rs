//! Tells the store's compaction which cells are dead, without the store knowing rows.

use engine::store::{CellJudge, Owned};
use row::{key, value};

/// Judges cells by the generation in their key and in their row's head.
pub(crate) struct RowJudge;

impl CellJudge for RowJudge {
    fn owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64> {
        let cell = key::CellKey::parse(cell)?;
        head.extend_from_slice(&cell.head());
        Some(cell.generation)
    }

    fn owned(&self, head: &[u8]) -> Owned {
        match value::Head::generation(head) {
            Ok(Some(generation)) => Owned::Generation(generation),
            Ok(None) => Owned::Nothing,
            Err(_) => Owned::Unreadable,
        }
    }

    fn counter_key(&self) -> &[u8] {
        key::GENERATION
    }

    fn first_unused(&self, counter: &[u8]) -> Option<u64> {
        // The counter holds the last generation given.
        value::decode_counter(counter).ok()?.checked_add(1)
    }
}
