//! The operations on rows, their answers and their refusals. Ops know kinds of rows, but
//! neither commands nor RESP.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::expire::DueItem;

/// The kind of a row's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum RowKind {
    /// A byte string, kept in the head.
    String = 1,
    /// Fields to values, kept in cells.
    Hash = 2,
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

/// An operation on the row `key`. Two ops name a second row of the same partition, and
/// some are on the partition instead. Field lists are never empty. The answer of each op
/// stands behind `->`.
#[allow(missing_docs)] // the variant's line says what its fields are
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    // ---- any row ----
    /// -> `Row`
    Inspect { key: Bytes },
    /// The approximate size of the row on disk, bytes, before compression. The first
    /// `samples` members of a hash (0 = all) stand for the others. -> `Int` or `Nil`
    Size { key: Bytes, samples: u64 },
    /// -> `Int` 0|1
    Delete { key: Bytes },
    /// -> `Int` 0|1. A deadline in the past deletes the row (and answers 1).
    Expire { key: Bytes, until: Deadline, only: ExpireCondition },
    /// -> `Int` 0|1
    Persist { key: Bytes },
    /// -> `Int` 1, or 0 when `only_new` and `to` exists; refuses `NoSuchKey`
    Rename { from: Bytes, to: Bytes, only_new: bool },
    /// -> `Int` 0|1
    Copy { from: Bytes, to: Bytes, replace: bool },
    /// The whole row. -> `RowContent` or `Nil`
    Dump { key: Bytes },
    /// -> `Int` 1; refuses `BusyKey` unless `replace`. `idle_since`/frequency are not
    /// kept.
    Restore { key: Bytes, content: RowContent, ttl: Ttl, replace: bool },
    /// The encoding that Redis would report (int, embstr, raw, listpack, listpackex,
    /// hashtable). -> `Bytes` or `Nil`
    Encoding { key: Bytes },

    // ---- the partition ----
    /// Rows from a [cursor](crate::key::cursor) on in hash order, skipping expired ones;
    /// reads about `count` rows. -> `Page` (next = 0: the partition is finished)
    Scan { cursor: u64, count: u64, glob: Option<Bytes>, kind: Option<RowKind> },
    /// The first live row at or after a [cursor](crate::key::cursor) in hash order,
    /// wrapping round. -> `Bytes` or `Nil`, or an empty `Page` if the rows that were read
    /// had all expired
    FirstAtOrAfter { cursor: u64 },
    /// The number of rows. -> `Int`
    Rows,
    /// The number of rows that have an expiry. -> `Int`
    Expiring,
    /// Deletes every row of the partition. -> `Ok`. The executor runs it alone: its edits
    /// are `Edits::clear`.
    Clear,
    /// One step of the expiry cycle: of the [items found](crate::expire) to be due,
    /// deletes in order those that still are, until the view is spent; at least one. ->
    /// `Expired`
    ExpireDue { items: Vec<DueItem> },
    /// Makes the partition apply this `default_ttl` from the next millisecond on, unless
    /// it applies one that was set later. The time to live of rows written before counts
    /// from there. -> `Ok`
    SetDefaultTtl { ttl_ms: u64, set_at_ms: u64 },
    /// Makes the partition's time depend on `at_ms`, if that is past, on behalf of reads
    /// that did. -> `Ok`
    AdvanceClock { at_ms: u64 },

    // ---- strings ----
    /// -> `Bytes` or `Nil`
    StringGet { key: Bytes },
    /// GETDEL. -> `Bytes` or `Nil`
    StringGetDelete { key: Bytes },
    /// GETEX. -> `Bytes` or `Nil`
    StringGetExpire { key: Bytes, ttl: Ttl },
    /// With `want_old`, reads the old value first, and then refuses `WrongType` for other
    /// kinds. -> `Written`
    StringSet { key: Bytes, value: Bytes, ttl: Ttl, only: WriteCondition, want_old: bool },
    /// MSETNX: all or none. -> `Int` 0|1
    StringSetAllIfAbsent { pairs: Vec<(Bytes, Bytes)> },
    /// -> `Int` new length
    StringAppend { key: Bytes, value: Bytes },
    /// -> `Int` new value; refuses `NotInteger`, `Overflow`
    StringIncr { key: Bytes, by: i64 },
    /// `by` is the decimal text as given. -> `Bytes` the new value as Redis prints long
    /// doubles; refuses `NotFloat`, `NanOrInfinity`
    StringIncrFloat { key: Bytes, by: Bytes },
    /// -> `Bytes`, or `Nil` without the row; negative offsets count from the end
    StringGetRange { key: Bytes, start: i64, end: i64 },
    /// -> `Int` new length; refuses `TooLarge`
    StringSetRange { key: Bytes, offset: u64, value: Bytes },
    /// -> `Int`, or `Nil` without the row
    StringLen { key: Bytes },

    // ---- hashes ----
    /// Sets fields. `ttl` is the fields'; HSET drops a field's expiry (`Ttl::Default`).
    /// With `only`, nothing is written unless all fields qualify (HSETNX, HSETEX
    /// FNX/FXX), and the answer is then `Nil`. -> `Int`, the number of new fields
    HashPut { key: Bytes, pairs: Vec<(Bytes, Bytes)>, only: WriteCondition, ttl: Ttl },
    /// -> `Values`, one per field, or `Nil` without the row
    HashGet { key: Bytes, fields: SmallVec<[Bytes; 1]> },
    /// HGETDEL. -> `Values`
    HashGetDelete { key: Bytes, fields: Vec<Bytes> },
    /// HGETEX: `Ttl::Keep` leaves the expiry unchanged. -> `Values`
    HashGetExpire { key: Bytes, fields: Vec<Bytes>, ttl: Ttl },
    /// Deletes fields; a hash without fields is no row. -> `Int`, the number deleted
    HashDelete { key: Bytes, fields: Vec<Bytes> },
    /// The exact number of live fields, whether or not expired ones are purged. -> `Int`
    HashLen { key: Bytes },
    /// Cells of a range, in sortkey order. -> `Cells`, or `Nil` without the row
    HashRange { key: Bytes, range: Range, want_values: bool },
    /// -> `Int`, the number of cells in the range
    HashRangeCount { key: Bytes, range: Range },
    /// Deletes a range. -> `Deleted`
    HashRangeDelete { key: Bytes, range: Range },
    /// HSCAN: a small hash whole, of others about `count` cells; a few MiB at most. ->
    /// `CellsPage`, or `Nil` without the row
    HashScan { key: Bytes, cursor: u64, count: u64, glob: Option<Bytes>, want_values: bool },
    /// -> `Int`; refuses `HashNotInteger`, `Overflow`
    HashIncr { key: Bytes, field: Bytes, by: i64 },
    /// -> `Bytes`; refuses `HashNotFloat`, `NanOrInfinity`
    HashIncrFloat { key: Bytes, field: Bytes, by: Bytes },
    /// HRANDFIELD: positive count = distinct, negative = with repetition; drawn from
    /// `seed`. -> `Cells`, or `Nil` without the row
    HashRandom { key: Bytes, count: i64, seed: u64, want_values: bool },
    /// HEXPIRE family, one answer a field: -2 no field, 0 condition not met, 1 set, 2
    /// deleted because the deadline is past. -> `Ints`, or `Nil` without the row
    HashExpire { key: Bytes, fields: Vec<Bytes>, until: Deadline, only: ExpireCondition },
    /// One answer a field: -2 no field, -1 no expiry, otherwise absolute ms, or with
    /// `remaining` the ms from the stamp on. -> `Ints`, or `Nil` without the row
    HashExpiry { key: Bytes, fields: Vec<Bytes>, remaining: bool },
    /// One answer a field: -2 no field, -1 no expiry, 1 removed. -> `Ints`, or `Nil`
    /// without the row
    HashPersist { key: Bytes, fields: Vec<Bytes> },
    /// Checks one cell and, if the check holds, applies all mutations. -> `Checked`;
    /// refuses `CheckOperandNotInteger`, `CheckValueNotInteger`
    CheckAndMutate {
        key: Bytes,
        check_sortkey: Bytes,
        check: Check,
        operand: Bytes,
        mutations: Vec<Mutation>,
        want_value: bool,
    },

    // ---- transactions ----
    /// A token by which a later request detects that the row was touched since. ->
    /// `WatchToken`. Answered by the executor.
    Watch { key: Bytes },

    // ---- the log ----
    /// Syncs everything that was acknowledged before it to the leader's disk, whatever
    /// the durability. -> `Int`: the index of the last log entry that is synced. Answered
    /// by the replica, for a request of this op alone.
    Sync,
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

impl Op {
    /// True if the op may change many records.
    pub(crate) fn may_change_much(&self) -> bool {
        match self {
            Op::HashPut { pairs, .. } | Op::StringSetAllIfAbsent { pairs } => pairs.len() > 1,
            Op::HashGetDelete { fields, .. }
            | Op::HashGetExpire { fields, .. }
            | Op::HashDelete { fields, .. }
            | Op::HashExpire { fields, .. }
            | Op::HashPersist { fields, .. } => fields.len() > 1,
            Op::CheckAndMutate { mutations, .. } => mutations.len() > 1,
            Op::Rename { .. } | Op::Copy { .. } | Op::Restore { .. } => true,
            // The others change one record, or bound their own changes (HashRangeDelete,
            // ExpireDue).
            _ => false,
        }
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
