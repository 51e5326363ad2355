//! A batch's edits as the payload of one Raft entry.

use bytes::Bytes;
use engine::batch::BatchWriter;
use row::edits::Edits;
use row::{Family, key};

/// The finished write batch: the clear, if any, and then every record.
pub fn encode(edits: &Edits) -> Bytes {
    let mut writer = BatchWriter::with_capacity(edits.bytes() + 8 * edits.len() + 16);
    if edits.clear {
        writer.clear(of(Family::Head));
        writer.clear(of(Family::Cell));
        writer.delete_range(of(Family::State), key::TIME_INDEX, key::TIME_INDEX_END);
    }
    for (family, key, value) in edits.iter() {
        match value {
            Some(value) => writer.put(of(family), key, value),
            None => writer.delete(of(family), key),
        }
    }
    writer.finish()
}

/// The column family that a family's records are in.
pub(crate) fn of(family: Family) -> engine::batch::Family {
    match family {
        Family::State => engine::batch::Family::Default,
        Family::Head => engine::batch::Family::Head,
        Family::Cell => engine::batch::Family::Cell,
    }
}
