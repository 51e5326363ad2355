//! The operations on rows, their answers and their refusals. Ops know kinds of rows, but
//! neither commands nor RESP.

use std::fmt;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::eval::EvalResult;
use crate::generic::RowOp;
use crate::hash::HashOp;
use crate::registry::{AnswerSize, Effect, Keys, Look, OpFamily, Payload};
use crate::scan::PartitionOp;
use crate::string::StringOp;
use crate::view::Tx;

/// The size of a byte string in a list besides its bytes.
const ITEM_BYTES: usize = size_of::<Bytes>() + 16;

/// The kind of a row's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum RowKind {
    /// A byte string, kept in the head.
    String = 1,
    /// Fields to values, kept in cells.
    Hash = 2,
    /// A second kind of collections (`members/tests.rs`).
    #[cfg(test)]
    Tags = 15,
}

/// The latest field expiry of the HEXPIRE family, as in Redis: 46 bits of ms, in the year
/// 4199.
pub const FIELD_EXPIRY_MAX_MS: u64 = (1 << 46) - 1;

/// A time that an op names; the leader's stamp resolves relative ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deadline {
    /// This many ms from the batch's stamp (may be negative: already past).
    In(i64),
    /// Absolute ms since the epoch (may be negative).
    At(i64),
}

/// The effect of a write on the expiry of what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ttl {
    /// No expiry given: the table's `default_ttl`, or never.
    Default,
    /// Leave it unchanged (KEEPTTL).
    Keep,
    /// Expire at the deadline.
    Until(Deadline),
    /// Never expire (PERSIST).
    Never,
}

/// The condition under which an expiry may be changed (NX XX GT LT); all flags that are
/// set must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExpireCondition {
    /// Only if there is none.
    pub none: bool,
    /// Only if there is one.
    pub some: bool,
    /// Only if the new one is later (no expiry counts as infinitely late).
    pub later: bool,
    /// Only if the new one is earlier.
    pub earlier: bool,
}

/// The condition under which a write may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WriteCondition {
    /// Always.
    #[default]
    Always,
    /// NX: only if the target does not exist.
    IfAbsent,
    /// XX: only if the target exists.
    IfPresent,
}

/// A range of a hash's sortkeys, with a filter and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First sortkey; `None` = from the first of the row.
    pub start: Option<Bytes>,
    /// True if `start` itself is included.
    pub start_inclusive: bool,
    /// Last sortkey; `None` = to the last of the row.
    pub stop: Option<Bytes>,
    /// True if `stop` itself is included.
    pub stop_inclusive: bool,
    /// The test that sortkeys between these must pass.
    pub filter: Filter,
    /// From `stop` downwards.
    pub reverse: bool,
    /// At most this many cells; 0 = no limit.
    pub cells_max: u64,
    /// At most this many bytes of sortkeys and values; 0 = no limit besides the table's.
    pub bytes_max: u64,
}

impl Range {
    /// Every sortkey of a row.
    pub fn all() -> Range {
        Range {
            start: None,
            start_inclusive: true,
            stop: None,
            stop_inclusive: true,
            filter: Filter::None,
            reverse: false,
            cells_max: 0,
            bytes_max: 0,
        }
    }
}

/// A test of a sortkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// All pass.
    None,
    /// Those that begin with it.
    Prefix(Bytes),
    /// Those that end with it.
    Suffix(Bytes),
    /// Those that contain it.
    Contains(Bytes),
    /// Those that match a Redis glob.
    Glob(Bytes),
}

/// Pegasus's 18 checks of one cell's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Check {
    None,
    NotExist,
    NotExistOrEmpty,
    Exist,
    NotEmpty,
    MatchAnywhere,
    MatchPrefix,
    MatchPostfix,
    BytesLess,
    BytesLessOrEqual,
    BytesEqual,
    BytesGreaterOrEqual,
    BytesGreater,
    IntLess,
    IntLessOrEqual,
    IntEqual,
    IntGreaterOrEqual,
    IntGreater,
}

/// One change of a check-and-mutate.
#[allow(missing_docs)] // the variant's line says what its fields are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// Sets a cell.
    Put { sortkey: Bytes, value: Bytes, ttl: Ttl },
    /// Deletes a cell.
    Delete { sortkey: Bytes },
}

/// The whole content of a row, as DUMP, RESTORE and COPY carry it. Field expiries are
/// absolute ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowContent {
    /// A string.
    String(Bytes),
    /// Fields: name, value, expiry.
    Hash(Vec<(Bytes, Bytes, Option<u64>)>),
}

/// Delegates what is known about an op to its family.
macro_rules! families {
    ($($Variant:ident($Family:ident))*) => {
        $(
            impl From<$Family> for Op {
                fn from(op: $Family) -> Op {
                    Op::$Variant(op)
                }
            }
        )*

        impl Op {
            /// The numbers and the names of all ops.
            pub fn all() -> impl Iterator<Item = (u16, &'static str)> {
                [$($Family::OPS),*].into_iter().flatten().copied()
            }

            /// The op's number on the wire.
            pub fn number(&self) -> u16 {
                match self {
                    $(Op::$Variant(op) => op.number(),)*
                    Op::Unknown(op) => op.number,
                }
            }

            /// The op's effect.
            pub fn effect(&self) -> Effect {
                match self {
                    $(Op::$Variant(op) => op.effect(),)*
                    Op::Unknown(_) => Effect::Read,
                }
            }

            /// The op's cost.
            pub fn look(&self) -> Look {
                match self {
                    $(Op::$Variant(op) => op.look(),)*
                    Op::Unknown(_) => Look::One,
                }
            }

            /// The possible size of the op's answer.
            pub fn answer_size(&self) -> AnswerSize {
                match self {
                    $(Op::$Variant(op) => op.answer_size(),)*
                    Op::Unknown(_) => AnswerSize::Small,
                }
            }

            /// The rows that it names, for routing; none for ops on the partition.
            pub fn keys(&self) -> Keys<'_> {
                let mut keys = Keys::new();
                match self {
                    $(Op::$Variant(op) => op.add_keys(&mut keys),)*
                    Op::Unknown(_) => {}
                }
                keys
            }

            /// The bytes that it carries.
            fn payload(&self) -> Payload {
                match self {
                    $(Op::$Variant(op) => op.payload(),)*
                    Op::Unknown(op) => Payload { bytes: op.fields.len(), items: 0 },
                }
            }

            /// Evaluates it, without a bound of its changes.
            pub(crate) fn answer(&self, tx: &mut Tx<'_>) -> EvalResult {
                match self {
                    $(Op::$Variant(op) => op.answer(tx),)*
                    Op::Unknown(_) => Err(Refusal::UnknownOp.into()),
                }
            }

            fn encode(&self) -> postcard::Result<Vec<u8>> {
                match self {
                    $(Op::$Variant(op) => op.encode(),)*
                    Op::Unknown(op) => Ok(op.fields.to_vec()),
                }
            }

            fn decode(number: u16, fields: &[u8]) -> postcard::Result<Op> {
                $(
                    if let Some(op) = $Family::decode(number, fields) {
                        return op.map(Op::$Variant);
                    }
                )*
                Ok(Op::Unknown(UnknownOp { number, fields: Bytes::copy_from_slice(fields) }))
            }
        }
    };
}

/// An operation. Most name one row, some a second one of the same partition, and some are
/// on the partition instead. Lists of fields are never empty. Each family's ops, with the
/// answer of each, are declared beside their functions ([`registry`](crate::registry)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// On a row of any kind.
    Row(RowOp),
    /// On the partition.
    Partition(PartitionOp),
    /// On a string.
    String(StringOp),
    /// On a hash.
    Hash(HashOp),
    /// Sent by a server of a newer version: refused.
    Unknown(UnknownOp),
}

/// An op whose number this version does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownOp {
    number: u16,
    fields: Bytes,
}

families!(Row(RowOp) Partition(PartitionOp) String(StringOp) Hash(HashOp));

impl Op {
    /// True if it may change something.
    pub fn is_write(&self) -> bool {
        matches!(self.effect(), Effect::Write | Effect::WritePart)
    }

    /// The first row that it names; `None` for ops on the partition.
    pub fn first_key(&self) -> Option<&Bytes> {
        self.keys().first().copied()
    }

    /// The approximate size of its payload, bytes, for bounding batches.
    pub fn bytes(&self) -> usize {
        16 + self.payload().bytes
    }

    /// The approximate memory that it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let Payload { bytes, items } = self.payload();
        size_of::<Op>() + bytes + items * ITEM_BYTES
    }
}

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.encode().map_err(ser::Error::custom)?;
        let mut op = serializer.serialize_tuple(2)?;
        op.serialize_element(&self.number())?;
        op.serialize_element(&WireFields(&fields))?;
        op.end()
    }
}

/// The fields of an op as bytes with a length.
struct WireFields<'a>(&'a [u8]);

impl Serialize for WireFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Op, D::Error> {
        deserializer.deserialize_tuple(2, OpVisitor)
    }
}

struct OpVisitor;

impl<'de> Visitor<'de> for OpVisitor {
    type Value = Op;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an op: its number and its fields")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut op: A) -> Result<Op, A::Error> {
        let number = op.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        op.next_element_seed(FieldsOf(number))?.ok_or_else(|| de::Error::invalid_length(1, &self))
    }
}

/// Reads the fields of the op with this number.
struct FieldsOf(u16);

impl<'de> DeserializeSeed<'de> for FieldsOf {
    type Value = Op;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Op, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for FieldsOf {
    type Value = Op;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fields of op {}", self.0)
    }

    fn visit_bytes<E: de::Error>(self, fields: &[u8]) -> Result<Op, E> {
        Op::decode(self.0, fields).map_err(E::custom)
    }
}

/// The answer of `Inspect` about a live row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowInfo {
    /// The kind of its value.
    pub kind: RowKind,
    /// Absolute ms; `None` = never.
    pub expires_at_ms: Option<u64>,
    /// The stamp of its last head write, ms.
    pub written_at_ms: u64,
    /// The length of a string in bytes; the number of a hash's fields, expired ones not
    /// yet purged included.
    pub len: u64,
    /// The stamp of the evaluation, ms: the remaining time to live and the idle time
    /// count from here.
    pub now_ms: u64,
}

/// The state of a watched row; opaque to everything but the executor that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchToken {
    /// The row.
    pub key: Bytes,
    /// The leader's term when it was watched; 0 for [`WatchToken::unwritten`].
    pub term: u64,
    /// The last touch of the row, or of a row that shares its stripe, at that time.
    pub touched: u64,
    /// The expiry at that time; a row that has expired since counts as touched.
    pub expires_at_ms: Option<u64>,
    /// True if the row existed. A missing row is not touched by deleting all rows.
    pub existed: bool,
}

impl WatchToken {
    /// The token of a row whose table did not exist: touched as soon as anything has ever
    /// been written to its partition.
    pub fn unwritten(key: Bytes) -> WatchToken {
        WatchToken { key, term: 0, touched: 0, expires_at_ms: None, existed: false }
    }
}

/// The answer of an op.
#[allow(missing_docs)] // the variant's line says what its fields are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing there.
    Nil,
    /// Done.
    Ok,
    /// A number.
    Int(i64),
    /// Numbers, one per field asked.
    Ints(Vec<i64>),
    /// A byte string.
    Bytes(Bytes),
    /// Values, one per field asked.
    Values(SmallVec<[Option<Bytes>; 1]>),
    /// See [`RowInfo`].
    Row(Option<RowInfo>),
    /// `done`: it was set; `old`: the value before, if requested.
    Written { done: bool, old: Option<Bytes> },
    /// Cells; the values are empty if not requested. `next`: the first sortkey left out
    /// when a limit cut the answer short.
    Cells { cells: Vec<(Bytes, Bytes)>, next: Option<Bytes> },
    /// A page of cells and the integer cursor of the next (0 = finished).
    CellsPage { cells: Vec<(Bytes, Bytes)>, next: u64 },
    /// A page of keys and the cursor of the next (0 = finished).
    Page { keys: Vec<Bytes>, next: u64, count: u64 },
    /// The numbers of deleted rows and of deleted fields of other rows; the number of
    /// items that are `done`, and of members done (`part`) in the item after them;
    /// `left_ms`: the earliest due entry that stays in the time index.
    Expired { rows: u64, fields: u64, done: u64, part: u64, left_ms: Option<u64> },
    /// `count` deleted; `next`: the first sortkey that was not deleted when a limit cut
    /// it short.
    Deleted { count: u64, next: Option<Bytes> },
    /// A whole row and its expiry.
    RowContent { content: RowContent, expires_at_ms: Option<u64> },
    /// `done`: the check held; `value`: the checked cell's value, if requested (outer
    /// None: not requested).
    Checked { done: bool, value: Option<Option<Bytes>> },
    /// See [`WatchToken`].
    WatchToken(WatchToken),
}

/// A deterministic refusal. Redis's wording of each lives in `commands`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The row is of another kind.
    WrongType,
    /// The string is not an integer, or out of range.
    NotInteger,
    /// The increment would overflow.
    Overflow,
    /// The string is not a float.
    NotFloat,
    /// The result would be NaN or infinite.
    NanOrInfinity,
    /// A hash value is not an integer.
    HashNotInteger,
    /// A hash value is not a float.
    HashNotFloat,
    /// RENAME of a missing row.
    NoSuchKey,
    /// RESTORE over an existing row.
    BusyKey,
    /// A value would grow beyond `max_write_size`.
    TooLarge,
    /// The changed records, each of which repeats the row's key, would exceed the maximum
    /// of one op.
    TooManyFields,
    /// Together with the commands before it in the request, the changes would exceed the
    /// maximum of a log entry. Nothing was done; the command alone may succeed.
    TooMuch,
    /// RENAME or COPY of a row that is larger than `max_write_size`.
    RowTooLarge,
    /// HEXPIRE or HPEXPIRE beyond [`FIELD_EXPIRY_MAX_MS`].
    ExpiryTooFar,
    /// A key is longer than 65,535 bytes.
    KeyTooLong,
    /// The answer would exceed the maximum size of an answer.
    AnswerTooLarge,
    /// A check's operand is not an integer.
    CheckOperandNotInteger,
    /// A checked value is not an integer.
    CheckValueNotInteger,
    /// The server does not know the op: it runs an older version.
    UnknownOp,
}

/// Ops of one partition, evaluated in order, atomically and isolated: all their edits are
/// in one log entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Request {
    /// The ops, in order.
    pub ops: Vec<Op>,
    /// The indexes, ascending, of ops that are joined to the op before them: both are
    /// done, or neither. If answers are large, the commands at the end may be left out,
    /// neither done nor answered, and have to be requested again.
    pub joined: Vec<u32>,
    /// Rows that must be untouched; otherwise nothing is done.
    pub watched: Vec<WatchToken>,
}

/// The outcome of a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// One outcome per op, of the first commands at least.
    Done(Vec<Result<Answer, Refusal>>),
    /// A watched row was touched; nothing was done.
    Touched,
}

impl Request {
    /// The ops, grouped by command: a group is done as a whole or not at all.
    pub fn commands(&self) -> impl Iterator<Item = &[Op]> {
        let mut joined = self.joined.iter().map(|at| *at as usize).filter(|at| *at > 0).peekable();
        let mut at = 0;
        std::iter::from_fn(move || {
            let begin = at;
            at = (begin + 1).min(self.ops.len());
            while joined.next_if(|joined| *joined <= at).is_some() {
                at = (at + 1).min(self.ops.len());
            }
            (at > begin).then(|| &self.ops[begin..at])
        })
    }
}

impl ExpireCondition {
    /// True if an expiry may change from `old` to `new`; none counts as infinitely late.
    pub(crate) fn allows(self, old: Option<u64>, new: u64) -> bool {
        (!self.none || old.is_none())
            && (!self.some || old.is_some())
            && (!self.later || old.is_some_and(|old| new > old))
            && (!self.earlier || old.is_none_or(|old| new < old))
    }
}

impl Request {
    /// The approximate memory it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let watched = self.watched.iter().map(|watched| size_of_val(watched) + watched.key.len());
        size_of::<Request>()
            + self.joined.len() * 4
            + self.ops.iter().map(Op::memory_bytes).sum::<usize>()
            + watched.sum::<usize>()
    }
}

impl Answer {
    /// The approximate memory of an answer besides itself, bytes: the answers of a
    /// request, of a batch and of a node are bounded by it.
    pub fn bytes(&self) -> usize {
        let optional = |value: &Option<Bytes>| ITEM_BYTES + value.as_ref().map_or(0, Bytes::len);
        let cells = |cells: &[(Bytes, Bytes)]| {
            cells.iter().map(|(a, b)| a.len() + b.len() + 2 * ITEM_BYTES).sum()
        };
        match self {
            Answer::Nil | Answer::Ok | Answer::Int(_) | Answer::Row(_) | Answer::Expired { .. } => {
                0
            }
            Answer::Ints(numbers) => numbers.len() * size_of::<i64>(),
            Answer::Bytes(bytes) => bytes.len(),
            Answer::Values(values) => values.iter().map(optional).sum(),
            Answer::Written { done: _, old } => old.as_ref().map_or(0, Bytes::len),
            Answer::Cells { cells: found, next } => {
                cells(found) + next.as_ref().map_or(0, Bytes::len)
            }
            Answer::CellsPage { cells: found, next: _ } => cells(found),
            Answer::Page { keys, next: _, count: _ } => {
                keys.iter().map(|key| key.len() + ITEM_BYTES).sum()
            }
            Answer::Deleted { count: _, next } => next.as_ref().map_or(0, Bytes::len),
            Answer::RowContent { content, expires_at_ms: _ } => {
                content.bytes() + content.items() * ITEM_BYTES
            }
            Answer::Checked { done: _, value } => value.as_ref().map_or(0, optional),
            Answer::WatchToken(watched) => watched.key.len(),
        }
    }
}

impl Mutation {
    /// The size of its names and values, bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Mutation::Put { sortkey, value, .. } => sortkey.len() + value.len(),
            Mutation::Delete { sortkey } => sortkey.len(),
        }
    }
}

impl Range {
    /// The size of its ends and its filter, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let ends = [&self.start, &self.stop].into_iter().flatten().map(Bytes::len).sum::<usize>();
        ends + match &self.filter {
            Filter::None => 0,
            Filter::Prefix(text)
            | Filter::Suffix(text)
            | Filter::Contains(text)
            | Filter::Glob(text) => text.len(),
        }
    }
}

impl RowContent {
    /// The size of its names and values, bytes.
    pub fn bytes(&self) -> usize {
        match self {
            RowContent::String(value) => value.len(),
            RowContent::Hash(fields) => {
                fields.iter().map(|(name, value, _)| name.len() + value.len()).sum()
            }
        }
    }

    /// The number of byte strings in lists among them.
    pub(crate) fn items(&self) -> usize {
        match self {
            RowContent::String(_) => 0,
            RowContent::Hash(fields) => 2 * fields.len(),
        }
    }
}
