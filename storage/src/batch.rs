//! A batch's edits as the payload of one Raft entry.

use bytes::Bytes;
use engine::batch::{BatchDependency, BatchWriter};
use row::edits::Edits;
use row::{Family, key, value};

use crate::clock;

/// The finished write batch: the leader's stamp, ms; the clear, if any; then every
/// record.
pub(crate) fn encode(edits: &Edits, stamp_ms: u64, link: BatchDependency) -> Bytes {
    let mut writer = BatchWriter::with_dependency(link, edits.bytes() + 64);
    writer.put(of(Family::State), &clock::STAMP, &value::encode_counter(stamp_ms));
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

/// The column family that holds a family's records.
pub(crate) fn of(family: Family) -> engine::batch::Family {
    match family {
        Family::State => engine::batch::Family::Default,
        Family::Head => engine::batch::Family::Head,
        Family::Cell => engine::batch::Family::Cell,
    }
}
