//! Properties of ops, read without evaluating them: their rows and their size; and the
//! size of an answer.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::expire::DueItem;
use crate::op::{Answer, Filter, Mutation, Op, Range, Request, RowContent};

/// The size of a byte string in a list besides its bytes.
const ITEM_BYTES: usize = size_of::<Bytes>() + 16;

/// The size of keys, names and values, and the number of byte strings in lists among
/// them.
struct PayloadSize {
    bytes: usize,
    items: usize,
}

impl Op {
    /// True if the op may change something.
    pub fn is_write(&self) -> bool {
        use Op::*;
        match self {
            Delete { .. }
            | Expire { .. }
            | Persist { .. }
            | Rename { .. }
            | Copy { .. }
            | Restore { .. } => true,
            Clear | ExpireDue { .. } | SetDefaultTtl { .. } | AdvanceClock { .. } => true,
            StringGetDelete { .. }
            | StringGetExpire { .. }
            | StringSet { .. }
            | StringSetAllIfAbsent { .. }
            | StringAppend { .. }
            | StringIncr { .. }
            | StringIncrFloat { .. }
            | StringSetRange { .. } => true,
            HashPut { .. }
            | HashGetDelete { .. }
            | HashGetExpire { .. }
            | HashDelete { .. }
            | HashRangeDelete { .. } => true,
            HashIncr { .. }
            | HashIncrFloat { .. }
            | HashExpire { .. }
            | HashPersist { .. }
            | CheckAndMutate { .. } => true,
            Inspect { .. }
            | Size { .. }
            | Dump { .. }
            | Encoding { .. }
            | Scan { .. }
            | FirstAtOrAfter { .. }
            | Rows
            | Watch { .. } => false,
            Expiring | Sync => false,
            StringGet { .. } | StringGetRange { .. } | StringLen { .. } => false,
            HashGet { .. }
            | HashLen { .. }
            | HashRange { .. }
            | HashRangeCount { .. }
            | HashScan { .. }
            | HashRandom { .. }
            | HashExpiry { .. } => false,
        }
    }

    /// The rows it names, for routing; none for ops on the partition.
    pub fn keys(&self) -> SmallVec<[&Bytes; 2]> {
        match self {
            Op::Rename { from, to, .. } | Op::Copy { from, to, .. } => smallvec![from, to],
            Op::StringSetAllIfAbsent { pairs } => pairs.iter().map(|(key, _)| key).collect(),
            other => other.first_key().into_iter().collect(),
        }
    }

    /// The first row it names; `None` for ops on the partition.
    pub fn first_key(&self) -> Option<&Bytes> {
        use Op::*;
        match self {
            Inspect { key }
            | Size { key, .. }
            | Delete { key }
            | Expire { key, .. }
            | Persist { key }
            | Dump { key }
            | Restore { key, .. }
            | Encoding { key } => Some(key),
            Rename { from, .. } | Copy { from, .. } => Some(from),
            Scan { .. }
            | FirstAtOrAfter { .. }
            | Rows
            | Expiring
            | Clear
            | ExpireDue { .. }
            | SetDefaultTtl { .. }
            | AdvanceClock { .. }
            | Sync => None,
            StringGet { key }
            | StringGetDelete { key }
            | StringGetExpire { key, .. }
            | StringSet { key, .. }
            | StringAppend { key, .. }
            | StringIncr { key, .. } => Some(key),
            StringIncrFloat { key, .. }
            | StringGetRange { key, .. }
            | StringSetRange { key, .. }
            | StringLen { key } => Some(key),
            StringSetAllIfAbsent { pairs } => pairs.first().map(|(key, _)| key),
            HashPut { key, .. }
            | HashGet { key, .. }
            | HashGetDelete { key, .. }
            | HashGetExpire { key, .. } => Some(key),
            HashDelete { key, .. }
            | HashLen { key }
            | HashRange { key, .. }
            | HashRangeCount { key, .. } => Some(key),
            HashRangeDelete { key, .. }
            | HashScan { key, .. }
            | HashIncr { key, .. }
            | HashIncrFloat { key, .. } => Some(key),
            HashRandom { key, .. }
            | HashExpire { key, .. }
            | HashExpiry { key, .. }
            | HashPersist { key, .. } => Some(key),
            CheckAndMutate { key, .. } | Watch { key } => Some(key),
        }
    }

    /// The approximate size of the op's payload, bytes, for bounding batches.
    pub fn bytes(&self) -> usize {
        16 + self.first_key().map_or(0, Bytes::len) + self.payload_size().bytes
    }

    /// The approximate memory it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let payload_size = self.payload_size();
        size_of::<Op>()
            + self.first_key().map_or(0, Bytes::len)
            + payload_size.bytes
            + payload_size.items * ITEM_BYTES
    }

    /// The payload besides the first key.
    fn payload_size(&self) -> PayloadSize {
        use Op::*;
        let pairs = |pairs: &[(Bytes, Bytes)]| PayloadSize {
            bytes: pairs.iter().map(|(a, b)| a.len() + b.len()).sum::<usize>(),
            items: 2 * pairs.len(),
        };
        let words = |words: &[Bytes]| PayloadSize {
            bytes: words.iter().map(Bytes::len).sum::<usize>(),
            items: words.len(),
        };
        let bytes = |bytes: usize| PayloadSize { bytes, items: 0 };
        match self {
            StringSet { value, .. } | StringAppend { value, .. } | StringSetRange { value, .. } => {
                bytes(value.len())
            }
            HashPut { pairs: fields, .. } | StringSetAllIfAbsent { pairs: fields } => pairs(fields),
            HashGet { fields, .. } => words(fields),
            HashGetDelete { fields, .. }
            | HashGetExpire { fields, .. }
            | HashDelete { fields, .. } => words(fields),
            HashExpire { fields, .. } | HashExpiry { fields, .. } | HashPersist { fields, .. } => {
                words(fields)
            }
            HashIncr { field, .. } => bytes(field.len()),
            StringIncrFloat { by, .. } => bytes(by.len()),
            HashIncrFloat { field, by, .. } => bytes(field.len() + by.len()),
            Restore { content, .. } => {
                PayloadSize { bytes: content.bytes(), items: content.items() }
            }
            Rename { to, .. } | Copy { to, .. } => bytes(to.len()),
            CheckAndMutate { check_sortkey, operand, mutations, .. } => PayloadSize {
                bytes: check_sortkey.len()
                    + operand.len()
                    + mutations.iter().map(Mutation::bytes).sum::<usize>(),
                items: 3 * mutations.len(),
            },
            HashRange { range, .. }
            | HashRangeCount { range, .. }
            | HashRangeDelete { range, .. } => bytes(range.bytes()),
            Scan { glob, .. } | HashScan { glob, .. } => bytes(glob.as_ref().map_or(0, Bytes::len)),
            Inspect { .. }
            | Size { .. }
            | Delete { .. }
            | Expire { .. }
            | Persist { .. }
            | Dump { .. }
            | Encoding { .. } => bytes(0),
            FirstAtOrAfter { .. }
            | Rows
            | Expiring
            | Clear
            | SetDefaultTtl { .. }
            | AdvanceClock { .. }
            | Watch { .. }
            | Sync => bytes(0),
            ExpireDue { items } => PayloadSize {
                bytes: items.iter().map(DueItem::bytes).sum(),
                items: items.iter().map(DueItem::size).sum(),
            },
            StringGet { .. }
            | StringGetDelete { .. }
            | StringGetExpire { .. }
            | StringIncr { .. }
            | StringGetRange { .. }
            | StringLen { .. } => bytes(0),
            HashLen { .. } | HashRandom { .. } => bytes(0),
        }
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
    fn bytes(&self) -> usize {
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
    fn items(&self) -> usize {
        match self {
            RowContent::String(_) => 0,
            RowContent::Hash(fields) => 2 * fields.len(),
        }
    }
}
