//! What an op tells about itself: its rows, its size, its name.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::op::{Content, Mutation, Op};

impl Op {
    /// Whether it may change something.
    pub fn is_write(&self) -> bool {
        use Op::*;
        match self {
            Delete { .. } | Expire { .. } | Persist { .. } | Rename { .. } | Copy { .. } | Restore { .. } => true,
            Clear | ExpireDue { .. } | Pass { .. } => true,
            GetDelete { .. }
            | GetExpire { .. }
            | Set { .. }
            | SetAllNew { .. }
            | Append { .. }
            | Add { .. }
            | AddFloat { .. }
            | SetRange { .. } => true,
            HashPut { .. } | HashGetDelete { .. } | HashGetExpire { .. } | HashDelete { .. } | HashRangeDelete { .. } => true,
            HashAdd { .. } | HashAddFloat { .. } | HashExpire { .. } | HashPersist { .. } | CheckAndMutate { .. } => true,
            Inspect { .. } | Size { .. } | Dump { .. } | Encoding { .. } | Scan { .. } | Nearest { .. } | Rows | Watch { .. } => false,
            Get { .. } | GetRange { .. } | Length { .. } => false,
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
            Op::SetAllNew { pairs } => pairs.iter().map(|(key, _)| key).collect(),
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
            Scan { .. } | Nearest { .. } | Rows | Clear | ExpireDue { .. } | Pass { .. } => None,
            Get { key } | GetDelete { key } | GetExpire { key, .. } | Set { key, .. } | Append { key, .. } | Add { key, .. } => Some(key),
            AddFloat { key, .. } | GetRange { key, .. } | SetRange { key, .. } | Length { key } => Some(key),
            SetAllNew { pairs } => pairs.first().map(|(key, _)| key),
            HashPut { key, .. } | HashGet { key, .. } | HashGetDelete { key, .. } | HashGetExpire { key, .. } => Some(key),
            HashDelete { key, .. } | HashLen { key } | HashRange { key, .. } | HashRangeCount { key, .. } => Some(key),
            HashRangeDelete { key, .. } | HashScan { key, .. } | HashAdd { key, .. } | HashAddFloat { key, .. } => Some(key),
            HashRandom { key, .. } | HashExpire { key, .. } | HashExpiry { key, .. } | HashPersist { key, .. } => Some(key),
            CheckAndMutate { key, .. } | Watch { key } => Some(key),
        }
    }

    /// About how many bytes it carries, for bounding batches.
    pub fn bytes(&self) -> usize {
        use Op::*;
        let pairs = |pairs: &[(Bytes, Bytes)]| pairs.iter().map(|(a, b)| a.len() + b.len()).sum::<usize>();
        let words = |words: &[Bytes]| words.iter().map(Bytes::len).sum::<usize>();
        let carried = match self {
            Set { value, .. } | Append { value, .. } | SetRange { value, .. } => value.len(),
            HashPut { pairs: fields, .. } | SetAllNew { pairs: fields } => pairs(fields),
            HashGet { fields, .. } => words(fields),
            HashGetDelete { fields, .. } | HashGetExpire { fields, .. } | HashDelete { fields, .. } => words(fields),
            HashExpire { fields, .. } | HashExpiry { fields, .. } | HashPersist { fields, .. } => words(fields),
            HashAdd { field, .. } => field.len(),
            AddFloat { by, .. } => by.len(),
            HashAddFloat { field, by, .. } => field.len() + by.len(),
            Restore { content, .. } => content.bytes(),
            Rename { to, .. } | Copy { to, .. } => to.len(),
            CheckAndMutate { check_sortkey, operand, mutations, .. } => {
                check_sortkey.len() + operand.len() + mutations.iter().map(Mutation::bytes).sum::<usize>()
            }
            _ => 0,
        };
        16 + self.first_key().map_or(0, Bytes::len) + carried
    }

    /// Its name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        use Op::*;
        match self {
            Inspect { .. } => "inspect",
            Size { .. } => "size",
            Delete { .. } => "delete",
            Expire { .. } => "expire",
            Persist { .. } => "persist",
            Rename { .. } => "rename",
            Copy { .. } => "copy",
            Dump { .. } => "dump",
            Restore { .. } => "restore",
            Encoding { .. } => "encoding",
            Scan { .. } => "scan",
            Nearest { .. } => "nearest",
            Rows => "rows",
            Clear => "clear",
            ExpireDue { .. } => "expire_due",
            Pass { .. } => "pass",
            Get { .. } => "get",
            GetDelete { .. } => "get_delete",
            GetExpire { .. } => "get_expire",
            Set { .. } => "set",
            SetAllNew { .. } => "set_all_new",
            Append { .. } => "append",
            Add { .. } => "add",
            AddFloat { .. } => "add_float",
            GetRange { .. } => "get_range",
            SetRange { .. } => "set_range",
            Length { .. } => "length",
            HashPut { .. } => "hash_put",
            HashGet { .. } => "hash_get",
            HashGetDelete { .. } => "hash_get_delete",
            HashGetExpire { .. } => "hash_get_expire",
            HashDelete { .. } => "hash_delete",
            HashLen { .. } => "hash_len",
            HashRange { .. } => "hash_range",
            HashRangeCount { .. } => "hash_range_count",
            HashRangeDelete { .. } => "hash_range_delete",
            HashScan { .. } => "hash_scan",
            HashAdd { .. } => "hash_add",
            HashAddFloat { .. } => "hash_add_float",
            HashRandom { .. } => "hash_random",
            HashExpire { .. } => "hash_expire",
            HashExpiry { .. } => "hash_expiry",
            HashPersist { .. } => "hash_persist",
            CheckAndMutate { .. } => "check_and_mutate",
            Watch { .. } => "watch",
        }
    }
}

impl Mutation {
    /// How many bytes of names and values it carries.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Mutation::Put { sortkey, value, .. } => sortkey.len() + value.len(),
            Mutation::Delete { sortkey } => sortkey.len(),
        }
    }
}

impl Content {
    /// How many bytes of names and values it holds.
    pub fn bytes(&self) -> usize {
        match self {
            Content::String(value) => value.len(),
            Content::Hash(fields) => fields.iter().map(|(name, value, _)| name.len() + value.len()).sum(),
        }
    }
}
