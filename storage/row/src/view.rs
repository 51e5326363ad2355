//! What an op sees: the state below it, the edits before it, and the time.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::{Edits, Family};

/// An I/O failure or corruption in the state below. Never an answer: it stops the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Fault {}

/// The leader's time for one batch; `now_ms` never runs backwards in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Written into every record: 48 bits of milliseconds, 8 bits of logical time, 8 bits of cluster tag.
    pub timetag: u64,
}

/// What the table says about every row in it; read by ops, set through envs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Expiry in ms given to writes that name none, and to older rows counted from `default_ttl_since_ms`; 0 = none.
    pub default_ttl_ms: u64,
    /// When `default_ttl_ms` was set (leader's time).
    pub default_ttl_since_ms: u64,
    /// The largest key, value or whole row that may be written by one op, bytes (`max_write_size`).
    pub write_bytes_max: usize,
    /// The most that one op may answer, bytes; larger answers are refused with advice to scan.
    pub answer_bytes_max: usize,
}

/// The records of one partition, as of one moment.
pub trait View {
    /// The value of one record.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault>;

    /// Walks the records with `from <= key < to` in key order (or backwards), until `each` breaks or the range ends.
    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault>;

    /// The sortkey that an integer HSCAN cursor stands for, if somebody remembers it. Forgetting is allowed and only slow.
    fn recall(&self, _cursor: u64) -> Option<Bytes> {
        None
    }

    /// Notes the sortkey that an HSCAN cursor stands for.
    fn remember(&self, _cursor: u64, _sortkey: &[u8]) {}
}

/// One batch being evaluated: the state, the edits on top of it, the time, the table's rules.
pub struct Tx<'a> {
    /// Applied state plus edits of earlier batches still in flight.
    pub view: &'a dyn View,
    /// Edits of this batch; reads look here first.
    pub edits: &'a mut Edits,
    /// The batch's time.
    pub stamp: Stamp,
    /// The table's rules.
    pub rules: Rules,
}
