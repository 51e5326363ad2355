//! The records that a batch changes.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Which keyspace of the partition a record is in; one RocksDB column family each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// The partition's own state: counters, time index. RocksDB's `default`.
    State = 0,
    /// One record per row.
    Head = 1,
    /// Members of collections.
    Cell = 2,
}

/// Puts and deletes, the last word on each key; and whether everything below was cleared first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Edits {
    /// Everything in `Head`, `Cell` and the time index was deleted before `records` (FLUSHDB).
    pub clear: bool,
    /// The new value of each record, `None` = deleted.
    pub records: BTreeMap<(Family, Bytes), Option<Bytes>>,
}
