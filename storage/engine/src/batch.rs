//! A write batch as bytes: the payload of one Raft entry, which every replica applies.
//!
//! The leader's executor writes it once ([`BatchWriter`]). The log, the network and other
//! replicas pass it on unchanged. [`read`] checks it completely before the first record
//! is applied, so a damaged entry changes nothing.
//!
//! # Layout
//! ```text
//! batch       version u8 = 1, record*
//!             version u8 = 2, dependency, record*
//! dependency  term u64, chain u32, position u32, all BE
//! record      1 put           family u8, key length varint, key, value length varint, value
//!             2 delete        family u8, key length varint, key
//!             3 delete range  family u8, from length varint, from, to length varint, to
//!                             (from <= key < to)
//!             4 clear         family u8 (every key of the family)
//! ```
//! A varint is LEB128 in its shortest form, at most 5 bytes (lengths are `u32`). Records
//! take effect in order. Frozen examples: `tests/vectors/batch.txt`.
//!
//! # Invariants
//! - Keys of `Default` that begin with a zero byte are the store's own (applied log id,
//!   membership): a batch that names one is refused (`refuses_the_stores_own_keys`).
//! - No key begins with sixteen 0xff bytes, so that a clear has an upper end
//!   (`refuses_keys_beyond_the_end`).
//! - Any bytes give records or an error, never a panic (`any_bytes_are_read_or_refused`,
//!   and the fuzz target of the same name).

use bytes::Bytes;

/// The version of a batch without a dependency.
const VERSION_INDEPENDENT: u8 = 1;
/// The version of a batch with a dependency.
const VERSION_DEPENDENT: u8 = 2;
/// The length of a dependency.
const DEPENDENCY_BYTES: usize = 16;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const CLEAR: u8 = 4;

/// The end of a clear: above every key.
pub(crate) const END: [u8; 16] = [0xff; 16];

/// A keyspace of a store: one RocksDB column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// The partition's own state. Keys that begin with a zero byte belong to the store.
    Default = 0,
    /// One record per row.
    Head = 1,
    /// Members of collections. Compaction drops the dead records of this family.
    Cell = 2,
}

impl Family {
    /// All families, ordered by their numbers.
    pub const ALL: [Family; 3] = [Family::Default, Family::Head, Family::Cell];

    /// RocksDB's name for the column family.
    pub fn name(self) -> &'static str {
        match self {
            Family::Default => "default",
            Family::Head => "head",
            Family::Cell => "cell",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| *family as u8 == byte)
    }
}

/// One record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// `key` gets `value`.
    Put {
        /// The family of the key.
        family: Family,
        /// The key.
        key: &'a [u8],
        /// The new value.
        value: &'a [u8],
    },
    /// `key` is removed.
    Delete {
        /// The family of the key.
        family: Family,
        /// The key.
        key: &'a [u8],
    },
    /// Every key with `from <= key < to` is removed.
    DeleteRange {
        /// The family of the range.
        family: Family,
        /// The first key of the range.
        from: &'a [u8],
        /// The exclusive end of the range.
        to: &'a [u8],
    },
    /// Every key of the family is removed, and its files may be deleted at once. Not for
    /// `Default`.
    Clear {
        /// The cleared family.
        family: Family,
    },
}

/// The dependency of a batch on the one that it was evaluated on: its position in a chain
/// of such batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchDependency {
    /// The leader's term.
    pub term: u64,
    /// The chain's number in this term, never reused.
    pub chain: u32,
    /// 0 for the first batch, which depends on applied state only.
    pub position: u32,
}

impl BatchDependency {
    /// True if a batch with this dependency may take effect after one with `last`.
    pub(crate) fn follows(self, last: Option<BatchDependency>) -> bool {
        self.position == 0 || last == Some(BatchDependency { position: self.position - 1, ..self })
    }

    pub(crate) fn to_bytes(self) -> [u8; DEPENDENCY_BYTES] {
        (u128::from(self.term) << 64 | u128::from(self.chain) << 32 | u128::from(self.position))
            .to_be_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; DEPENDENCY_BYTES]) -> BatchDependency {
        let all = u128::from_be_bytes(bytes);
        BatchDependency {
            term: (all >> 64) as u64,
            chain: (all >> 32) as u32,
            position: all as u32,
        }
    }
}

/// The dependency of a batch, if it has one.
pub fn dependency(batch: &[u8]) -> Option<BatchDependency> {
    match batch.split_first() {
        Some((&VERSION_DEPENDENT, rest)) => {
            rest.first_chunk().map(|dependency| BatchDependency::from_bytes(*dependency))
        }
        _ => None,
    }
}

/// The reason why bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a damaged or foreign write batch: {what} at byte {at} of {length}")]
pub struct BadBatch {
    /// The flaw.
    pub what: &'static str,
    /// Its offset.
    pub at: usize,
    /// The length of the bytes.
    pub length: usize,
}

/// Builds a batch.
#[derive(Debug, Clone)]
pub struct BatchWriter {
    bytes: Vec<u8>,
    records: usize,
}

impl Default for BatchWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchWriter {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_capacity(256)
    }

    /// An empty batch with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes.max(1));
        buffer.push(VERSION_INDEPENDENT);
        Self { bytes: buffer, records: 0 }
    }

    /// An empty batch with a dependency, and room for `bytes`.
    pub fn with_dependency(dependency: BatchDependency, bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(1 + DEPENDENCY_BYTES + bytes);
        buffer.push(VERSION_DEPENDENT);
        buffer.extend_from_slice(&dependency.to_bytes());
        Self { bytes: buffer, records: 0 }
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        assert_writable(family, key);
        self.record(PUT, family);
        self.slice(key);
        self.slice(value);
    }

    /// Removes `key`.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        assert_writable(family, key);
        self.record(DELETE, family);
        self.slice(key);
    }

    /// Removes every key with `from <= key < to`.
    pub fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        assert_writable(family, from);
        self.record(DELETE_RANGE, family);
        self.slice(from);
        self.slice(to);
    }

    /// Removes every key of `family`, which must not be `Default`.
    pub fn clear(&mut self, family: Family) {
        assert!(
            family != Family::Default,
            "the default family holds the store's own records and is never cleared"
        );
        self.record(CLEAR, family);
    }

    /// The number of records so far.
    pub fn records(&self) -> usize {
        self.records
    }

    /// True if no record was written.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The present size, bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The finished batch.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }

    fn record(&mut self, kind: u8, family: Family) {
        self.bytes.extend_from_slice(&[kind, family as u8]);
        self.records += 1;
    }

    fn slice(&mut self, slice: &[u8]) {
        let mut rest =
            u32::try_from(slice.len()).expect("rows are limited far below 4 GiB where they enter");
        while rest >= 0x80 {
            self.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
        self.bytes.extend_from_slice(slice);
    }
}

/// Keys are made by our own code, so a wrong one is a bug and not bad input.
fn assert_writable(family: Family, key: &[u8]) {
    assert!(refusal(family, key).is_none(), "a batch must not touch the store's own keys");
}

fn refusal(family: Family, key: &[u8]) -> Option<&'static str> {
    if family == Family::Default && key.first().is_none_or(|first| *first == 0) {
        return Some("a key that belongs to the store itself");
    }
    (key >= &END[..]).then_some("a key above the end of keys")
}

/// Reads a batch record by record, until its end or the first error.
pub fn read(batch: &[u8]) -> Result<BatchReader<'_>, BadBatch> {
    let bad = |what| BadBatch { what, at: 0, length: batch.len() };
    match batch.first() {
        Some(&VERSION_INDEPENDENT) => Ok(BatchReader { batch, at: 1 }),
        Some(&VERSION_DEPENDENT) if batch.len() > DEPENDENCY_BYTES => {
            Ok(BatchReader { batch, at: 1 + DEPENDENCY_BYTES })
        }
        Some(&VERSION_DEPENDENT) => Err(bad("an unfinished link")),
        Some(_) => Err(bad("an unknown version")),
        None => Err(bad("no version")),
    }
}

/// Checks a whole batch and returns the number of its records.
pub fn check(batch: &[u8]) -> Result<usize, BadBatch> {
    read(batch)?.try_fold(0, |count, change| change.map(|_| count + 1))
}

/// The records of a batch; returned by [`read`].
#[derive(Debug, Clone)]
pub struct BatchReader<'a> {
    batch: &'a [u8],
    at: usize,
}

impl<'a> BatchReader<'a> {
    fn record(&mut self) -> Result<Change<'a>, BadBatch> {
        let kind = self.byte("no kind of record")?;
        let family = self.byte("no family")?;
        let family = Family::from_byte(family).ok_or_else(|| self.bad("an unknown family"))?;
        match kind {
            PUT => {
                let key = self.key(family)?;
                Ok(Change::Put { family, key, value: self.slice()? })
            }
            DELETE => Ok(Change::Delete { family, key: self.key(family)? }),
            DELETE_RANGE => {
                let from = self.key(family)?;
                Ok(Change::DeleteRange { family, from, to: self.slice()? })
            }
            CLEAR if family != Family::Default => Ok(Change::Clear { family }),
            CLEAR => Err(self.bad("a clear of the store's own family")),
            _ => Err(self.bad("an unknown kind of record")),
        }
    }

    fn key(&mut self, family: Family) -> Result<&'a [u8], BadBatch> {
        let key = self.slice()?;
        refusal(family, key).map_or(Ok(key), |what| Err(self.bad(what)))
    }

    fn slice(&mut self) -> Result<&'a [u8], BadBatch> {
        let length = self.varint()? as usize;
        let slice = self.batch[self.at..]
            .get(..length)
            .ok_or_else(|| self.bad("a length beyond the end"))?;
        self.at += length;
        Ok(slice)
    }

    fn varint(&mut self) -> Result<u32, BadBatch> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte("an unfinished length")?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| shortest)
                    .ok_or_else(|| self.bad("a malformed length"));
            }
        }
        Err(self.bad("a malformed length"))
    }

    fn byte(&mut self, missing: &'static str) -> Result<u8, BadBatch> {
        let byte = *self.batch.get(self.at).ok_or_else(|| self.bad(missing))?;
        self.at += 1;
        Ok(byte)
    }

    fn bad(&self, what: &'static str) -> BadBatch {
        BadBatch { what, at: self.at, length: self.batch.len() }
    }
}

impl<'a> Iterator for BatchReader<'a> {
    type Item = Result<Change<'a>, BadBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.batch.len() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.at = self.batch.len();
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vectors::{assert_frozen, vector};

    fn changes(batch: &[u8]) -> Result<Vec<Change<'_>>, BadBatch> {
        read(batch)?.collect()
    }

    const VECTORS: &str = include_str!("../tests/vectors/batch.txt");

    /// A batch with a record of each kind, of either version.
    fn everything(mut writer: BatchWriter) -> Vec<u8> {
        writer.put(Family::Default, b"rows", &7u64.to_be_bytes());
        writer.put(Family::Head, b"\x00\x01k", b"");
        writer.delete(Family::Cell, b"c");
        writer.delete_range(Family::Default, b"x", b"y");
        writer.clear(Family::Head);
        writer.put(Family::Cell, b"long", &[b'v'; 200]);
        writer.finish().to_vec()
    }

    #[test]
    fn batches_are_frozen() {
        let of = |fill: &dyn Fn(&mut BatchWriter)| {
            let mut writer = BatchWriter::new();
            fill(&mut writer);
            writer.finish().to_vec()
        };
        let with_dependency = |dependency| BatchWriter::with_dependency(dependency, 0);
        let first = BatchDependency { term: 7, chain: 2, position: 0 };
        let large = BatchDependency {
            term: 0x0102_0304_0506_0708,
            chain: 0x090a_0b0c,
            position: 0x0d0e_0f10,
        };
        let now = [
            ("version 1, no records", of(&|_| {})),
            ("put in default", of(&|b| b.put(Family::Default, b"rows", &7u64.to_be_bytes()))),
            ("put in head, empty value", of(&|b| b.put(Family::Head, b"\x00\x01k", b""))),
            ("put in cell, value of 200 bytes", of(&|b| b.put(Family::Cell, b"c", &[b'v'; 200]))),
            ("put of a key of 300 bytes", of(&|b| b.put(Family::Head, &[b'k'; 300], b"v"))),
            ("put of a value of 16384 bytes, begin", {
                of(&|b| b.put(Family::Cell, b"c", &[b'v'; 1 << 14]))[..12].to_vec()
            }),
            ("delete in default", of(&|b| b.delete(Family::Default, b"rows"))),
            ("delete in head", of(&|b| b.delete(Family::Head, b"h"))),
            ("delete in cell", of(&|b| b.delete(Family::Cell, b"c"))),
            ("delete range in default", of(&|b| b.delete_range(Family::Default, b"x", b"y"))),
            ("delete range in head", of(&|b| b.delete_range(Family::Head, b"a", b"b"))),
            ("delete range in cell, empty end", of(&|b| b.delete_range(Family::Cell, b"a", b""))),
            ("clear of head", of(&|b| b.clear(Family::Head))),
            ("clear of cell", of(&|b| b.clear(Family::Cell))),
            ("version 1, six records", everything(BatchWriter::new())),
            ("version 2, no records, first of its chain", with_dependency(first).finish().to_vec()),
            ("version 2, no records, large link", with_dependency(large).finish().to_vec()),
            ("version 2, six records", everything(with_dependency(first))),
        ];
        assert_frozen("batch.txt", VECTORS, &now);
    }

    #[test]
    fn frozen_batches_are_read() {
        for version in [1, 2] {
            let batch = vector(VECTORS, &format!("version {version}, six records"));
            assert_eq!(check(&batch), Ok(6));
            assert_eq!(changes(&batch).unwrap()[4], Change::Clear { family: Family::Head });
            let first = BatchDependency { term: 7, chain: 2, position: 0 };
            assert_eq!(dependency(&batch), (version == 2).then_some(first));
        }
    }

    #[test]
    fn a_batch_follows_only_the_one_it_depends_on() {
        let at = |chain, position| BatchDependency { term: 1, chain, position };
        assert!(at(1, 0).follows(None) && at(1, 0).follows(Some(at(0, 5))));
        assert!(at(1, 2).follows(Some(at(1, 1))));
        for last in [
            None,
            Some(at(1, 0)),
            Some(at(1, 2)),
            Some(at(0, 1)),
            Some(BatchDependency { term: 2, chain: 1, position: 1 }),
        ] {
            assert!(!at(1, 2).follows(last), "{last:?}");
        }
    }

    #[test]
    fn bad_bytes_say_what_and_where() {
        for (bytes, what, at) in [
            (&b""[..], "no version", 0),
            (b"\x03", "an unknown version", 0),
            (b"\x02\x00", "an unfinished link", 0),
            (b"\x01\x01", "no family", 2),
            (b"\x01\x01\x03", "an unknown family", 3),
            (b"\x01\x09\x01", "an unknown kind of record", 3),
            (b"\x01\x02\x01\x05abc", "a length beyond the end", 4),
            (b"\x01\x02\x01\x80", "an unfinished length", 4),
            (b"\x01\x02\x01\x81\x00a", "a malformed length", 5),
            (b"\x01\x02\x01\xff\xff\xff\xff\x1f", "a malformed length", 8),
            (b"\x01\x04\x00", "a clear of the store's own family", 3),
        ] {
            let bad = check(bytes).unwrap_err();
            assert_eq!((bad.what, bad.at, bad.length), (what, at, bytes.len()), "{bytes:?}");
        }
    }

    #[test]
    fn refuses_the_stores_own_keys() {
        assert!(check(b"\x01\x02\x00\x01\x00").is_err());
        assert!(check(b"\x01\x02\x00\x00").is_err(), "an empty key of the default family");
        assert!(
            check(b"\x01\x03\x00\x00\x01z").is_err(),
            "a range that begins below the store's keys"
        );
        assert!(check(b"\x01\x02\x01\x01\x00").is_ok());
    }

    #[test]
    fn refuses_keys_beyond_the_end() {
        let mut batch = b"\x01\x02\x01\x10".to_vec();
        batch.extend_from_slice(&END);
        assert!(check(&batch).is_err());
        *batch.last_mut().unwrap() = 0xfe;
        assert!(check(&batch).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
            let mut versioned = vec![VERSION_INDEPENDENT];
            versioned.extend_from_slice(&bytes);
            let _ = check(&versioned);
        }

        #[test]
        fn written_records_are_read_back(
            records in proptest::collection::vec(
                (0u8..3, 1u8..3, "[a-z]{1,300}", any::<Vec<u8>>()),
                0..20,
            ),
        ) {
            let mut writer = BatchWriter::new();
            for (kind, family, key, value) in &records {
                let family = Family::from_byte(*family).unwrap();
                match kind {
                    0 => writer.put(family, key.as_bytes(), value),
                    1 => writer.delete(family, key.as_bytes()),
                    _ => writer.delete_range(family, key.as_bytes(), value),
                }
            }
            let bytes = writer.finish();
            let read = changes(&bytes).unwrap();
            prop_assert_eq!(read.len(), records.len());
            for (change, (kind, family, key, value)) in read.iter().zip(&records) {
                let family = Family::from_byte(*family).unwrap();
                let expected = match kind {
                    0 => Change::Put { family, key: key.as_bytes(), value },
                    1 => Change::Delete { family, key: key.as_bytes() },
                    _ => Change::DeleteRange { family, from: key.as_bytes(), to: value },
                };
                prop_assert_eq!(*change, expected);
            }
            // Every prefix of a batch is refused, or is itself a shorter batch.
            for cut in 0..bytes.len() {
                if let Ok(count) = check(&bytes[..cut]) {
                    prop_assert!(count <= records.len());
                }
            }
        }
    }
}
