//! A hash memtable: the latest records of some entries, as hash tables over an arena.
//!
//! The arena holds one record per key. A later value that needs no more room is written
//! over the earlier one: a row that is changed a thousand times takes the room of one.
//!
//! # Invariants
//! - The last value of a key is found, by key and in key order
//!   (`a_hash_memtable_is_a_map`).
//! - Overwriting takes no more room (`overwriting_takes_no_more_room`), and all room is
//!   counted (`bytes_are_what_is_held`).
//!
//! # Layout
//! The arena is a list of chunks of up to 256 KiB; a larger record has a chunk of its
//! own. A record begins at a multiple of four bytes:
//! ```text
//! 0          4                8                                  12
//! key length | value room     | value length,                    | key | value, room | padding
//! u32 LE     | u32 LE         | or 0xffff_ffff: deleted, u32 LE  |
//! ```

use std::hash::BuildHasher;
use std::hint::black_box;
use std::sync::OnceLock;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;

use crate::batch::Family;

/// The last value of a key, or `None` if it is deleted.
pub(super) type PointValue<'a> = Option<&'a [u8]>;

const CHUNK_BYTES: usize = 256 << 10;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The bits of an address that hold the offset in the chunk, in units of the alignment.
const OFFSET_BITS: u32 = (CHUNK_BYTES / ALIGNMENT).trailing_zeros();
const HEADER_BYTES: usize = 12;
const TOMBSTONE: u32 = u32::MAX;
/// The room of a value is a multiple of this, up to which it may grow in place.
const ROOM_ALIGNMENT: usize = 8;

/// The address of a record: its chunk and its offset there.
type RecordAddress = u32;

#[derive(Clone, Copy)]
struct TableSlot {
    hash: u32,
    address: RecordAddress,
}

/// The latest records of some entries.
#[derive(Default)]
pub(super) struct HashMemtable {
    tables: [HashTable<TableSlot>; 3],
    hasher: DefaultHashBuilder,
    chunks: Vec<Vec<u8>>,
    chunks_bytes: usize,
    /// The first bytes of each key, and its address, in key order. Made when first
    /// needed, of an immutable memtable.
    sorted: [OnceLock<Vec<(u64, RecordAddress)>>; 3],
}

impl HashMemtable {
    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(HashTable::is_empty)
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.chunks_bytes + self.tables.iter().map(HashTable::allocation_size).sum::<usize>()
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Option<PointValue<'_>> {
        let hash = self.hash(key);
        let entry = self.tables[family as usize]
            .find(spread(hash), |entry| entry.hash == hash && self.key(entry.address) == key)?;
        Some(self.point(entry.address))
    }

    /// Loads the records of these keys, which are about to be put, into the CPU's cache:
    /// all at once rather than one after the other.
    pub(super) fn prefetch<'k>(&self, keys: impl Iterator<Item = (Family, &'k [u8])>) {
        let mut addresses: SmallVec<[RecordAddress; 64]> = SmallVec::new();
        for (family, key) in keys {
            let hash = self.hash(key);
            let entry = self.tables[family as usize].find(spread(hash), |entry| entry.hash == hash);
            addresses.extend(entry.map(|entry| entry.address));
        }
        black_box(
            addresses
                .iter()
                .map(|address| number(self.record(*address), 0))
                .fold(0, usize::wrapping_add),
        );
    }

    pub(super) fn put(&mut self, family: Family, key: &[u8], point: PointValue<'_>) {
        let hash = self.hash(key);
        let mut table = std::mem::take(&mut self.tables[family as usize]);
        match table
            .find_mut(spread(hash), |entry| entry.hash == hash && self.key(entry.address) == key)
        {
            Some(entry) => {
                if !self.overwrite(entry.address, point) {
                    entry.address = self.append(key, point);
                }
            }
            None => {
                let address = self.append(key, point);
                table.insert_unique(spread(hash), TableSlot { hash, address }, |entry| {
                    spread(entry.hash)
                });
            }
        }
        self.tables[family as usize] = table;
    }

    /// The records with `from <= key < to`, in key order or in reverse; an empty `to`
    /// means no upper end.
    pub(super) fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
    ) -> MemtableRange<'_> {
        let sorted = self.sorted[family as usize].get_or_init(|| self.sort(family));
        let upto = |end: &[u8]| sorted.partition_point(|(_, address)| self.key(*address) < end);
        let begin = if from.is_empty() { 0 } else { upto(from) };
        let end = if to.is_empty() { sorted.len() } else { upto(to) };
        MemtableRange {
            memtable: self,
            addresses: sorted.get(begin..end).unwrap_or_default(),
            reverse,
        }
    }

    fn sort(&self, family: Family) -> Vec<(u64, RecordAddress)> {
        let begin = |address| {
            let key = self.key(address);
            key.first_chunk().map_or_else(
                || {
                    let mut begin = [0; 8];
                    begin[..key.len()].copy_from_slice(key);
                    u64::from_be_bytes(begin)
                },
                |begin| u64::from_be_bytes(*begin),
            )
        };
        let mut sorted: Vec<_> = self.tables[family as usize]
            .iter()
            .map(|entry| (begin(entry.address), entry.address))
            .collect();
        sorted.sort_unstable_by(|(a, a_place), (b, b_place)| {
            a.cmp(b).then_with(|| self.key(*a_place).cmp(self.key(*b_place)))
        });
        sorted
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of the hash is enough")]
    fn hash(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn record(&self, address: RecordAddress) -> &[u8] {
        let offset = (address & ((1 << OFFSET_BITS) - 1)) as usize * ALIGNMENT;
        &self.chunks[(address >> OFFSET_BITS) as usize][offset..]
    }

    fn key(&self, address: RecordAddress) -> &[u8] {
        let record = self.record(address);
        &record[HEADER_BYTES..][..number(record, 0)]
    }

    fn point(&self, address: RecordAddress) -> PointValue<'_> {
        let record = self.record(address);
        let length = number(record, 8);
        (length != TOMBSTONE as usize)
            .then(|| &record[HEADER_BYTES + number(record, 0)..][..length])
    }

    /// Overwrites a value in place; `false` if it does not fit.
    fn overwrite(&mut self, address: RecordAddress, point: PointValue<'_>) -> bool {
        let offset = (address & ((1 << OFFSET_BITS) - 1)) as usize * ALIGNMENT;
        let record = &mut self.chunks[(address >> OFFSET_BITS) as usize][offset..];
        let (key_length, room) = (number(record, 0), number(record, 4));
        let value = point.unwrap_or_default();
        if value.len() > room {
            return false;
        }
        record[8..HEADER_BYTES].copy_from_slice(&length(point).to_le_bytes());
        record[HEADER_BYTES + key_length..][..value.len()].copy_from_slice(value);
        true
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a batch is far below 4 GiB, and so many chunks never are"
    )]
    fn append(&mut self, key: &[u8], point: PointValue<'_>) -> RecordAddress {
        let value = point.unwrap_or_default();
        let room = value.len().next_multiple_of(ROOM_ALIGNMENT);
        let size = (HEADER_BYTES + key.len() + room).next_multiple_of(ALIGNMENT);
        if self.chunks.last().is_none_or(|chunk| chunk.len() + size > CHUNK_BYTES) {
            // The first chunk starts small: most memtables of a node with many stores are
            // small.
            let capacity = if self.chunks.is_empty() { size } else { size.max(CHUNK_BYTES) };
            self.chunks_bytes += capacity;
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let (offset, capacity) = (chunk.len(), chunk.capacity());
        chunk.reserve(size);
        for part in [key.len() as u32, room as u32, length(point)] {
            chunk.extend_from_slice(&part.to_le_bytes());
        }
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(value);
        chunk.resize(offset + size, 0);
        self.chunks_bytes += chunk.capacity() - capacity;
        ((number as u32) << OFFSET_BITS) | (offset / ALIGNMENT) as u32
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a batch is far below 4 GiB")]
fn length(point: PointValue<'_>) -> u32 {
    point.map_or(TOMBSTONE, |value| value.len() as u32)
}

fn number(record: &[u8], at: usize) -> usize {
    record[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

/// The hash table uses both ends of a hash.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

/// A range of a memtable, in order.
pub(super) struct MemtableRange<'a> {
    memtable: &'a HashMemtable,
    addresses: &'a [(u64, RecordAddress)],
    reverse: bool,
}

impl<'a> Iterator for MemtableRange<'a> {
    type Item = (&'a [u8], PointValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (_, address) = if self.reverse {
            self.addresses.split_off_last()
        } else {
            self.addresses.split_off_first()
        }?;
        Some((self.memtable.key(*address), self.memtable.point(*address)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn point() -> impl Strategy<Value = Option<Vec<u8>>> {
        prop_oneof![
            1 => Just(None),
            8 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Some),
            1 => (0..3 * CHUNK_BYTES).prop_map(|length| Some(vec![7; length])),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_hash_memtable_is_a_map(
            points in prop::collection::vec(
                (prop::sample::select(&Family::ALL[..]), "[a-d]{0,9}", point()),
                0..300,
            ),
            from in "[a-d]{0,2}", to in "[a-d]{0,2}",
        ) {
            let (mut memtable, mut map) = (HashMemtable::default(), BTreeMap::new());
            for (family, key, point) in &points {
                memtable.put(*family, key.as_bytes(), point.as_deref());
                map.insert((*family, key.as_bytes()), point.as_deref());
                prop_assert_eq!(memtable.get(*family, key.as_bytes()), Some(point.as_deref()));
            }
            for ((family, key), point) in &map {
                prop_assert_eq!(memtable.get(*family, key), Some(*point));
            }
            for family in Family::ALL {
                let (from, to) = (from.as_bytes(), to.as_bytes());
                let within = |key: &[u8]| key >= from && (to.is_empty() || key < to);
                let expected: Vec<_> = map
                    .iter()
                    .filter(|((of, key), _)| *of == family && within(key))
                    .map(|((_, key), point)| (*key, *point))
                    .collect();
                let found: Vec<_> = memtable.range(family, from, to, false).collect();
                prop_assert_eq!(&found, &expected);
                let mut back: Vec<_> = memtable.range(family, from, to, true).collect();
                back.reverse();
                prop_assert_eq!(&back, &expected);
                prop_assert_eq!(memtable.get(family, b"z"), None);
            }
        }
    }

    #[test]
    fn overwriting_takes_no_more_room() {
        let mut memtable = HashMemtable::default();
        memtable.put(Family::Head, b"counter", Some(b"1"));
        let bytes = memtable.bytes();
        for value in 0..1_000_000u32 {
            memtable.put(Family::Head, b"counter", Some(value.to_string().as_bytes()));
        }
        memtable.put(Family::Head, b"counter", None);
        assert_eq!((memtable.bytes(), memtable.get(Family::Head, b"counter")), (bytes, Some(None)));
    }

    #[test]
    fn bytes_are_what_is_held() {
        let mut memtable = HashMemtable::default();
        assert_eq!(memtable.bytes(), 0);
        for key in 0..10_000u32 {
            memtable.put(Family::Cell, &key.to_be_bytes(), Some(&[0; 64]));
        }
        let held = 10_000 * (HEADER_BYTES + 4 + 64);
        assert!((held..held * 2).contains(&memtable.bytes()), "{} of {held}", memtable.bytes());
        memtable.put(Family::Cell, b"large", Some(&vec![0; 1 << 20]));
        assert!(memtable.bytes() > held + (1 << 20));
    }
}
