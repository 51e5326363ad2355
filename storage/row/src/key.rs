//! Keys: the slot of a row, its position in hash order, and the bytes of every record's
//! key.
//!
//! Rows are stored in hash order on purpose. The first eight bytes of a head key, read as
//! a number, are the row's *position*: its slot and 48 bits of hash. The upper 53 bits of
//! it, the slot and 39 bits of hash, are a SCAN *cursor*: a plain integer that needs no
//! memory on the server, survives failover, restart and split, and is held exactly by a
//! double, in which many clients keep it. Rows that share a cursor come in one page.
//!
//! # Layout
//! ```text
//! head         slot u16 | hash48 | hashkey
//! cell         slot u16 | hash48 | hashkey length u16 | hashkey
//!                | generation u64 | space u8 | sortkey            (see [`KeySpace`])
//! time index   'x' | expires_at_ms u64 | target u8 | head key     (value: empty)
//! counters     "rows", "expiring", "generation"                   (value: u64)
//! rule         "default_ttl"                                      (value: see `value.rs`)
//! ```
//! All integers are big-endian. Frozen examples: `tests/vectors/keys.txt`.

use bytes::Bytes;
use crc::{CRC_16_XMODEM, Crc, Table};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// The longest hashkey, bytes: its length is a u16 in cell keys.
pub const HASHKEY_BYTES_MAX: usize = u16::MAX as usize;

/// The number of slots, as in Redis Cluster.
pub const SLOTS: u16 = 16384;

/// State key of the number of heads stored.
pub const ROWS: &[u8] = b"rows";

/// State key of the number of rows with an expiry of their own.
pub const EXPIRING: &[u8] = b"expiring";

/// State key of the last generation that was allocated.
pub const GENERATION: &[u8] = b"generation";

/// State key of the table's `default_ttl` as the partition applies it.
pub const DEFAULT_TTL: &[u8] = b"default_ttl";

/// The end of all heads and cells, exclusive: one more than the last slot.
pub const END: &[u8] = &SLOTS.to_be_bytes();

/// The first byte of every key of the time index.
pub const TIME_INDEX: &[u8] = b"x";

/// The end of the time index, exclusive.
pub const TIME_INDEX_END: &[u8] = b"y";

static CRC16: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);

/// A key built for a look-up; most fit without an allocation.
pub type KeyBuf = SmallVec<[u8; 128]>;

/// The hash tag of a key, from which its slot is computed: the bytes between the first
/// `{` and the next `}`, or the whole key if there are none.
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else { return key };
    let rest = &key[open + 1..];
    match rest.iter().position(|&b| b == b'}') {
        None | Some(0) => key,
        Some(close) => &rest[..close],
    }
}

/// The slot of a key, exactly as Redis Cluster's `CLUSTER KEYSLOT`.
pub fn slot(key: &[u8]) -> u16 {
    CRC16.checksum(hash_tag(key)) & (SLOTS - 1)
}

/// 48 bits that order the rows of a slot.
pub fn hash48(key: &[u8]) -> u64 {
    xxh3_64(key) >> 16
}

/// The position of a row in hash order: `slot << 48 | hash48`, below 2^62.
pub fn position(key: &[u8]) -> u64 {
    u64::from(slot(key)) << 48 | hash48(key)
}

/// The number of low bits of a position that a SCAN cursor leaves out.
const CURSOR_SHIFT: u32 = 9;

/// The number of hash bits in a SCAN cursor.
pub const CURSOR_HASH_BITS: u32 = 48 - CURSOR_SHIFT;

/// The SCAN cursor of the rows at a position, below 2^53.
pub fn cursor(position: u64) -> u64 {
    position >> CURSOR_SHIFT
}

/// The SCAN cursor of a slot's first rows.
pub fn slot_cursor(slot: u16) -> u64 {
    u64::from(slot) << CURSOR_HASH_BITS
}

/// The slot of a SCAN cursor; `None` when it is behind the last slot.
pub fn cursor_slot(cursor: u64) -> Option<u16> {
    u16::try_from(cursor >> CURSOR_HASH_BITS).ok().filter(|slot| *slot < SLOTS)
}

/// The first position that has a SCAN cursor; `None` when it is behind the last slot.
pub fn cursor_position(cursor: u64) -> Option<u64> {
    cursor_slot(cursor).map(|_| cursor << CURSOR_SHIFT)
}

/// The position of a head key, which is its first eight bytes.
pub fn head_position(head_key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*head_key.first_chunk()?))
}

/// The key of a row's head.
pub fn head(key: &[u8]) -> KeyBuf {
    let mut out = KeyBuf::with_capacity(8 + key.len());
    out.extend_from_slice(&position(key).to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The hashkey in a head key; `None` if the key is too short to be a head's.
pub fn head_hashkey(head_key: &[u8]) -> Option<&[u8]> {
    head_key.get(8..)
}

/// A space of a row's cells: the kinds that have it, the sortkeys, and the values.
/// Numbers are given once; those of kinds to come are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum KeySpace {
    /// Hash: a field's name. The field's value.
    Members = 0,
    /// Hash, for fields that expire: expires_at_ms u64, name. Empty.
    Expiries = 1,
    /// Set, sorted set: hash32 u32 of the member, the member. Empty; the score f64.
    Hashed = 2,
    /// Sorted set: the score in byte order u64, the member.
    Order = 3,
    /// Index: a node's number u32. The first key of each child.
    Fences = 4,
    /// Index: a node's number u32. The count of each child.
    Counts = 5,
    /// List: a leaf's number u32. Elements.
    Leaves = 6,
    /// List: a node's number u32. Its children.
    Nodes = 7,
    /// Stream: 16 bytes of the first entry's id. Entries.
    Entries = 8,
    /// Stream: a group's name.
    Groups = 9,
    /// Stream: a group's number u32, a consumer's name.
    Consumers = 10,
    /// Stream: a group's number u32, 16 bytes of an entry's id.
    Pending = 11,
    /// Long string: a fragment's number u32. At most 512 bytes.
    Fragments = 12,
}

impl KeySpace {
    /// All, by number.
    const ALL: [KeySpace; 13] = [
        KeySpace::Members,
        KeySpace::Expiries,
        KeySpace::Hashed,
        KeySpace::Order,
        KeySpace::Fences,
        KeySpace::Counts,
        KeySpace::Leaves,
        KeySpace::Nodes,
        KeySpace::Entries,
        KeySpace::Groups,
        KeySpace::Consumers,
        KeySpace::Pending,
        KeySpace::Fragments,
    ];

    /// The space with a number; `None` if there is none.
    fn of(number: u8) -> Option<KeySpace> {
        KeySpace::ALL.get(usize::from(number)).copied()
    }
}

const _: () = {
    let mut number = 0;
    while number < KeySpace::ALL.len() {
        assert!(KeySpace::ALL[number] as usize == number, "the table is in order of numbers");
        number += 1;
    }
};

/// The prefix of all cells of one space of one generation of a row. The hashkey must not
/// be longer than [`HASHKEY_BYTES_MAX`].
pub fn cells(key: &[u8], generation: u64, space: KeySpace) -> KeyBuf {
    let len = u16::try_from(key.len()).expect("ops refuse hashkeys longer than a u16");
    let mut out = KeyBuf::with_capacity(8 + 2 + key.len() + 9 + 64);
    out.extend_from_slice(&position(key).to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&generation.to_be_bytes());
    out.push(space as u8);
    out
}

/// A parsed cell key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellKey<'a> {
    /// `slot << 48 | hash48`
    pub position: u64,
    /// The row that the cell belongs to.
    pub hashkey: &'a [u8],
    /// The generation of the row that the cell belongs to.
    pub generation: u64,
    /// The space of the row's cells that it is in.
    pub space: KeySpace,
    /// The rest, as the space has it.
    pub sortkey: &'a [u8],
}

impl<'a> CellKey<'a> {
    /// Parses a key of the cell family; `None` if it is not a cell key, or of a space
    /// that this version does not know. Compaction keeps such cells.
    pub fn parse(key: &'a [u8]) -> Option<CellKey<'a>> {
        let (position, rest) = key.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (hashkey, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (&space, sortkey) = rest.split_first()?;
        Some(CellKey {
            position: u64::from_be_bytes(*position),
            hashkey,
            generation: u64::from_be_bytes(*generation),
            space: KeySpace::of(space)?,
            sortkey,
        })
    }

    /// The key of the cell's head, which decides whether the cell is live.
    pub fn head(&self) -> KeyBuf {
        let mut out = KeyBuf::with_capacity(8 + self.hashkey.len());
        out.extend_from_slice(&self.position.to_be_bytes());
        out.extend_from_slice(self.hashkey);
        out
    }
}

/// The part of a row that an entry of the time index is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExpiryTarget {
    /// The row itself expires then.
    Row = 0,
    /// The first of its fields expires then.
    Field = 1,
}

/// The time index entry of a row.
pub fn time_index(expires_at_ms: u64, due: ExpiryTarget, head_key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(10 + head_key.len());
    out.extend_from_slice(TIME_INDEX);
    out.extend_from_slice(&expires_at_ms.to_be_bytes());
    out.push(due as u8);
    out.extend_from_slice(head_key);
    Bytes::from(out)
}

/// Parses a key of the time index into its time, target and head key.
pub fn parse_time_index(key: &[u8]) -> Option<(u64, ExpiryTarget, &[u8])> {
    let (at, rest) = key.strip_prefix(TIME_INDEX)?.split_first_chunk()?;
    let (due, head_key) = rest.split_first()?;
    let due = match due {
        0 => ExpiryTarget::Row,
        1 => ExpiryTarget::Field,
        _ => return None,
    };
    Some((u64::from_be_bytes(*at), due, head_key))
}

/// The smallest key that is greater than all that begin with `prefix`: the end of a range
/// over a prefix. `prefix` must hold a byte below 0xff, as every key here does (slots are
/// below 0x4000).
pub fn after_prefix(prefix: &[u8]) -> KeyBuf {
    let mut out = KeyBuf::from_slice(prefix);
    while out.last() == Some(&u8::MAX) {
        out.pop();
    }
    *out.last_mut().expect("a slot's first byte is below 0xff") += 1;
    out
}
