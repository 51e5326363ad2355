//! The inputs of an op: the state below it, the edits before it, the time, and the
//! table's rules.

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
pub struct Fault {
    /// Its kind, which decides who recovers.
    pub kind: FaultKind,
    /// The failed action or the damage, for the operator.
    pub message: String,
}

/// Kind of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Stored bytes are not what this build or an earlier one wrote, or records that
    /// belong together contradict each other.
    Damaged,
    /// The file system has no space left.
    Full,
    /// The store is behind with its flushes.
    Stalled,
    /// The operating system returned an error, or the store is closed.
    Io,
    /// A bug below: nothing on the disk is at fault.
    Internal,
}

impl Fault {
    /// A fault of a kind that the view below has found.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }

    /// Damage that shows in the records themselves, the only kind that ops find.
    pub fn damaged(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Damaged, message)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
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

/// The table's settings that ops read; set through envs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Expiry in ms given to writes that name none, and to older rows counted from
    /// `default_ttl_since_ms`; 0 = none.
    pub default_ttl_ms: u64,
    /// The time from which on the partition applies `default_ttl_ms`, by its own clock
    /// ([`DefaultTtl`](crate::value::DefaultTtl)).
    pub default_ttl_since_ms: u64,
    /// The maximum size of the keys and values that one op writes, and of a string, bytes
    /// (`max_write_size`); 0 = no limit.
    pub write_bytes_max: usize,
    /// The maximum size of an answer, bytes; larger answers are refused with advice to
    /// scan; 0 = no limit.
    pub answer_bytes_max: usize,
}

/// The size of edits that one op may make beyond `write_bytes_max`: the keys of records,
/// which are repeated with each field, and values that are rewritten unchanged.
const RECORDS_BYTES_MAX: usize = 16 << 20;

impl Rules {
    /// The expiry of a record, the `default_ttl` of older rows included. That one is
    /// virtual: setting the rule rewrites nothing, every reader applies it.
    pub fn expires_at_ms(&self, header: &Header) -> Option<u64> {
        header.expires_at_ms.or_else(|| {
            (self.default_ttl_ms > 0 && header.written_at_ms() < self.default_ttl_since_ms)
                .then(|| self.default_ttl_since_ms.saturating_add(self.default_ttl_ms))
        })
    }

    /// The maximum size of one op's edits, all bytes of records counted: the records of a
    /// hash repeat its key with each field.
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

/// A consistent view of the records of one partition.
pub trait View {
    /// The value of one record.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault>;

    /// The [metadata](value::metadata) of a head or cell, or the whole record if that is
    /// cheaper.
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

    /// The sortkey that an integer HSCAN cursor stands for in a row, if it is remembered.
    /// Forgetting is allowed and only slow. `row` is the key prefix of the row's members.
    fn recall_cursor(&self, _row: &[u8], _cursor: u64) -> Option<Bytes> {
        None
    }

    /// Remembers the sortkey that an HSCAN cursor stands for in a row; `false` if the
    /// cursor is known to stand for another sortkey, which it keeps.
    fn remember_cursor(&self, _row: &[u8], _cursor: u64, _sortkey: &[u8]) -> bool {
        true
    }

    /// True if the evaluation has used up its time. An op that may end early, such as a
    /// step of the expiry cycle, asks after each piece of work and ends then.
    fn is_spent(&self) -> bool {
        false
    }

    /// Notes that an op has treated a time (ms since the epoch) as past: its answer holds
    /// from that time on, perhaps not before. Before the answer is sent, the caller makes
    /// sure that the partition's time never falls behind it again.
    fn depends_on_time(&self, _past_ms: u64) {}

    /// True if there is time for a piece of work of `ns` nanoseconds, walking not
    /// counted. If not, the op ends as if there were no more records, and its answer is
    /// discarded.
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

    /// Allocates a generation that no row of the partition ever had.
    pub(crate) fn next_generation(&mut self) -> Result<u64, Fault> {
        let next = self.counter(key::GENERATION)? + 1;
        self.set_counter(key::GENERATION, next);
        Ok(next)
    }

    /// The header of a record written now.
    pub(crate) fn header(&self, expires_at_ms: Option<u64>) -> Header {
        Header { timetag: self.stamp.timetag, expires_at_ms }
    }

    /// A deadline in absolute ms: at most i63, the largest time that a client can be
    /// told, and 0 if it is before the epoch.
    pub(crate) fn deadline_ms(&self, deadline: Deadline) -> u64 {
        match deadline {
            Deadline::In(ms) => self.stamp.now_ms.saturating_add_signed(ms).min(i64::MAX as u64),
            Deadline::At(ms) => u64::try_from(ms).unwrap_or(0),
        }
    }

    /// The expiry that a write gives to a row; it may be in the past. A missing row has
    /// none to keep.
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

    /// True if a time has come; the op's answer then [depends on
    /// it](View::depends_on_time).
    pub(crate) fn is_expired(&self, at_ms: Option<u64>) -> bool {
        let past = at_ms.filter(|at| *at <= self.stamp.now_ms);
        past.inspect(|at| self.view.depends_on_time(*at)).is_some()
    }
}
