//! The input of an op: the state below it, the edits before it, and the time.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::edits::{Edits, Family, Overlay};
use crate::head::RowMetadata;
use crate::key;
use crate::op::{Deadline, Refusal, Ttl};
use crate::value::{self, Header};

/// An I/O failure or corruption in the state below. Never an answer: it stops the
/// replica.
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
    /// Written into every record: 48 bits of milliseconds, 8 bits of logical time, 8 bits
    /// of cluster tag.
    pub timetag: u64,
}

/// The table's rules for every row in it; ops read them, envs set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Expiry in ms given to writes that name none, and to older rows counted from
    /// `default_ttl_since_ms`; 0 = none.
    pub default_ttl_ms: u64,
    /// Since when the partition goes by `default_ttl_ms`, by its own time
    /// ([`DefaultTtl`](crate::value::DefaultTtl)).
    pub default_ttl_since_ms: u64,
    /// The most that one op may write of keys and values, and the longest string, bytes
    /// (`max_write_size`); 0 = no limit.
    pub write_bytes_max: usize,
    /// The most that one op may answer, bytes; larger answers are refused with advice to
    /// scan; 0 = no limit.
    pub answer_bytes_max: usize,
}

/// Bytes that one op may change beyond `write_bytes_max`: keys of records, repeated with
/// each field, and values that are rewritten as they were.
const RECORDS_BYTES_MAX: usize = 16 << 20;

impl Rules {
    /// The expiry of a record, `default_ttl` of older rows included. That one is virtual:
    /// setting the rule rewrites nothing, every reader applies it.
    pub fn expires_at_ms(&self, header: &Header) -> Option<u64> {
        header.expires_at_ms.or_else(|| {
            (self.default_ttl_ms > 0 && header.written_at_ms() < self.default_ttl_since_ms)
                .then(|| self.default_ttl_since_ms.saturating_add(self.default_ttl_ms))
        })
    }

    /// The most that one op may change, all bytes of records counted: those of a hash
    /// repeat its key with each field.
    pub fn edits_bytes_max(&self) -> Option<usize> {
        (self.write_bytes_max > 0).then(|| self.write_bytes_max + RECORDS_BYTES_MAX)
    }

    /// Refuses to write more than `write_bytes_max`.
    pub(crate) fn check_write(&self, bytes: usize) -> Result<(), Refusal> {
        if self.write_bytes_max > 0 && bytes > self.write_bytes_max {
            Err(Refusal::TooLarge)
        } else {
            Ok(())
        }
    }

    /// Refuses to answer more than `answer_bytes_max`.
    pub(crate) fn check_answer(&self, bytes: usize) -> Result<(), Refusal> {
        if self.answer_bytes_max > 0 && bytes > self.answer_bytes_max {
            Err(Refusal::AnswerTooLarge)
        } else {
            Ok(())
        }
    }
}

/// The records of one partition, as of one moment.
pub trait View {
    /// The value of one record.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault>;

    /// The [metadata](value::metadata) of a head or cell, or all of it, whichever is nearer.
    fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.get(family, key)
    }

    /// Walks the records with `from <= key < to` in key order (or backwards), until
    /// `each` breaks or the range ends.
    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault>;

    /// The sortkey that an integer HSCAN cursor stands for in a row, if somebody
    /// remembers it. Forgetting is allowed and only slow. `row` is what the keys of its
    /// members begin with.
    fn recall_cursor(&self, _row: &[u8], _cursor: u64) -> Option<Bytes> {
        None
    }

    /// Notes the sortkey that an HSCAN cursor stands for in a row; `false` when it is
    /// known to stand for another one, which it then still does.
    fn remember_cursor(&self, _row: &[u8], _cursor: u64, _sortkey: &[u8]) -> bool {
        true
    }

    /// True once the evaluation has used up its time. An op that may end early, as a step
    /// of the expiry cycle, asks after each piece of work, and then ends.
    fn is_spent(&self) -> bool {
        false
    }

    /// Notes that an op took a moment (ms since the epoch) for past: what it says holds
    /// at that time and later, perhaps not before. Whoever gives the answer away sees to
    /// it that the partition's time never runs from there again.
    fn depends_on_time(&self, _past_ms: u64) {}

    /// True when there is time for a piece of work of this many ns besides walking. If
    /// not, the op ends as if there were no more records, and its answer is thrown away.
    fn has_time_for(&self, _ns: u64) -> bool {
        true
    }
}

/// One batch being evaluated: the state, the edits on top of it, the time, the table's
/// rules.
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

impl Tx<'_> {
    /// The value of a record, this batch's edits included.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.state().get(family, key)
    }

    /// As [`View::metadata`], this batch's edits included.
    pub fn metadata(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.state().metadata(family, key)
    }

    /// Walks records as [`View::range`], this batch's edits included.
    pub fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.state().range(family, from, to, reverse, each)
    }

    /// Sets a record.
    pub fn put(&mut self, family: Family, key: Bytes, value: Bytes) {
        self.edits.put(family, key, value);
    }

    /// Deletes a record.
    pub fn delete(&mut self, family: Family, key: Bytes) {
        self.edits.delete(family, key);
    }

    /// The batch's state as a view of its own.
    pub fn state(&self) -> Overlay<'_> {
        Overlay { edits: self.edits, view: self.view }
    }

    /// A counter of the partition, 0 when it was never set.
    pub fn counter(&self, name: &'static [u8]) -> Result<u64, Fault> {
        self.get(Family::State, name)?.map_or(Ok(0), |bytes| value::decode_counter(&bytes))
    }

    /// Sets a counter.
    pub fn set_counter(&mut self, name: &'static [u8], n: u64) {
        self.put(Family::State, Bytes::from_static(name), value::encode_counter(n));
    }

    /// A generation that no row of the partition ever had.
    pub(crate) fn next_generation(&mut self) -> Result<u64, Fault> {
        let next = self.counter(key::GENERATION)? + 1;
        self.set_counter(key::GENERATION, next);
        Ok(next)
    }

    /// The header of a record written now.
    pub(crate) fn header(&self, expires_at_ms: Option<u64>) -> Header {
        Header { timetag: self.stamp.timetag, expires_at_ms }
    }

    /// A deadline in absolute ms; never beyond what a client can be told (i63), 0 when
    /// before the epoch.
    pub(crate) fn deadline_ms(&self, deadline: Deadline) -> u64 {
        match deadline {
            Deadline::In(ms) => self.stamp.now_ms.saturating_add_signed(ms).min(i64::MAX as u64),
            Deadline::At(ms) => u64::try_from(ms).unwrap_or(0),
        }
    }

    /// The expiry that a write gives to a row; it may be past already. A row that is not
    /// there has none to keep.
    pub(crate) fn expiry(&self, ttl: Ttl, row: &RowMetadata) -> Option<u64> {
        match ttl {
            Ttl::Keep if row.is_live() => row.expires_at_ms(),
            Ttl::Default | Ttl::Keep => self.default_expiry(),
            Ttl::Until(deadline) => Some(self.deadline_ms(deadline)),
            Ttl::Never => None,
        }
    }

    /// The expiry of a new row that names none.
    pub(crate) fn default_expiry(&self) -> Option<u64> {
        (self.rules.default_ttl_ms > 0)
            .then(|| self.stamp.now_ms.saturating_add(self.rules.default_ttl_ms))
    }

    /// True when this time has passed. The answer then [depends on
    /// it](View::depends_on_time).
    pub(crate) fn is_expired(&self, at_ms: Option<u64>) -> bool {
        let past = at_ms.filter(|at| *at <= self.stamp.now_ms);
        past.inspect(|at| self.view.depends_on_time(*at)).is_some()
    }
}
