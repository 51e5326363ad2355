//! The values of records: heads, cells, counters and rules as bytes.
//!
//! # Layout
//! ```text
//! header   version and flags u8 | timetag u64 | [expires_at_ms u64]
//!            high nibble: version, 1; bit 0: an expiry follows; bits 1 to 3: zero
//! head     header | kind u8 | 1 string: the value
//!                           | 2 hash:   generation u64 | count u64 | expiries
//! expiries expiring u64 | if not 0: floor_ms u64 | soonest_ms u64 (0 = none) | floor_name
//! cell     header | the value
//! counter  u64
//! rule     ttl_ms u64 | since_ms u64 | set_at_ms u64
//! ```
//! All integers are big-endian. Decoding never panics: bytes that are none of these are a
//! [`Fault`] that shows them. Frozen examples: `tests/vectors/values.txt`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::edits::Family;
use crate::op::RowKind;
use crate::view::Fault;

const VERSION: u8 = 1 << 4;
const HAS_EXPIRY: u8 = 1;
const STRING: u8 = RowKind::String as u8;
const HASH: u8 = RowKind::Hash as u8;

/// The header with which every record of a row begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Time and place of the write: 48 bits of ms, 8 of logical time, 8 of cluster tag.
    pub timetag: u64,
    /// The time from which on the record is invisible; `None` = never.
    pub expires_at_ms: Option<u64>,
}

impl Header {
    /// The size of the longest header.
    pub const BYTES_MAX: usize = 17;

    /// The time of the write, ms since the epoch.
    pub fn written_at_ms(&self) -> u64 {
        self.timetag >> 16
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION | if self.expires_at_ms.is_some() { HAS_EXPIRY } else { 0 });
        out.put_u64(self.timetag);
        if let Some(at) = self.expires_at_ms {
            out.put_u64(at);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Header> {
        let first = bytes.try_get_u8().ok()?;
        if first & !HAS_EXPIRY != VERSION {
            return None;
        }
        let timetag = bytes.try_get_u64().ok()?;
        let expires_at_ms =
            if first & HAS_EXPIRY != 0 { Some(bytes.try_get_u64().ok()?) } else { None };
        Some(Header { timetag, expires_at_ms })
    }
}

/// The expiries of a collection's members, summarised in its head. Every kind with
/// members that expire stores this after its count.
///
/// It answers in one seek the question that every op on a row asks, whether the row is
/// live: a member without an expiry is live, and otherwise one that expires in the
/// future. Removed members leave tombstones below the floor, so walks over expired
/// members begin at the floor.
///
/// # Invariants
/// Held by `tests/model/` after any sequence of ops.
/// - `expiring` is exact; expired members that are not yet removed are counted.
/// - No expiry of a member lies below the floor. Setting an expiry lowers the floor to it
///   if need be; only the expiry cycle raises it.
/// - No expiry that was set since the floor got its value is before `soonest_ms`.
///   Therefore a search that has seen the members of one state with this floor also
///   bounds the expiries of every later state with the same floor, without reading it:
///   this is how the expiry cycle finds the next floor outside the partition's writer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expiries {
    /// The number of stored members that have an expiry.
    pub expiring: u64,
    /// The floor; its time is that of the row's entry in the time index,
    /// [`ExpiryTarget::Field`](crate::key::ExpiryTarget::Field).
    pub floor: MemberExpiry,
    /// The earliest expiry that was set since the floor got its value, ms; 0 = none.
    pub soonest_ms: u64,
}

/// A position among the expiries of a collection's members, which are ordered by time,
/// then by name.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub struct MemberExpiry {
    /// Ms since the epoch.
    pub at_ms: u64,
    /// The first bytes of a member's name, or all of it.
    pub name: Bytes,
}

/// The longest prefix of a name that a floor keeps, bytes. Names that share a longer
/// prefix are walked past one by one.
const FLOOR_NAME_MAX: usize = 256;

impl MemberExpiry {
    /// The first position at a time.
    pub fn at(at_ms: u64) -> MemberExpiry {
        MemberExpiry { at_ms, name: Bytes::new() }
    }

    /// The position of the expiry of the member `name`.
    pub fn of(at_ms: u64, name: &[u8]) -> MemberExpiry {
        MemberExpiry { at_ms, name: Bytes::copy_from_slice(name) }
    }
}

impl Expiries {
    /// The earliest time at which a member may have expired, ms; `None` when none
    /// expires.
    pub fn due_ms(&self) -> Option<u64> {
        (self.expiring > 0).then_some(self.floor.at_ms)
    }

    /// Counts a member that gets an expiry and had none.
    pub(crate) fn add(&mut self, at_ms: u64) {
        self.expiring += 1;
        if self.expiring == 1 || at_ms < self.floor.at_ms {
            (self.floor, self.soonest_ms) = (MemberExpiry::at(at_ms), 0);
        } else {
            self.soonest_ms = if self.soonest_ms == 0 { at_ms } else { at_ms.min(self.soonest_ms) };
        }
    }

    /// Counts a member that loses its expiry.
    pub(crate) fn remove(&mut self) -> Result<(), Fault> {
        self.expiring = self
            .expiring
            .checked_sub(1)
            .ok_or_else(|| Fault("more members of a row expire than its head counts".into()))?;
        if self.expiring == 0 {
            *self = Expiries::default();
        }
        Ok(())
    }

    /// Raises the floor: in a state with the present floor, `next` was the first expiry
    /// of a member that is still stored.
    pub(crate) fn raise(&mut self, next: Option<&MemberExpiry>, now_ms: u64) {
        // A floor in the future has no name: earlier names may still be added at that
        // time.
        let name = |next: &MemberExpiry| {
            next.name
                .slice(..if next.at_ms <= now_ms { next.name.len().min(FLOOR_NAME_MAX) } else { 0 })
        };
        let next = next.map(|next| MemberExpiry { at_ms: next.at_ms, name: name(next) });
        let soonest = (self.soonest_ms > 0).then(|| MemberExpiry::at(self.soonest_ms));
        match next.into_iter().chain(soonest).min() {
            Some(floor) if self.expiring > 0 => (self.floor, self.soonest_ms) = (floor, 0),
            // No expiring member is left, whatever the count says.
            _ => *self = Expiries::default(),
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.expiring);
        if self.expiring > 0 {
            out.put_u64(self.floor.at_ms);
            out.put_u64(self.soonest_ms);
            out.put_slice(&self.floor.name);
        }
    }

    fn decode(rest: &mut &[u8]) -> Option<Expiries> {
        let expiring = rest.try_get_u64().ok()?;
        if expiring == 0 {
            return Some(Expiries::default());
        }
        let (at_ms, soonest_ms) = (rest.try_get_u64().ok()?, rest.try_get_u64().ok()?);
        let floor = MemberExpiry::of(at_ms, std::mem::take(rest));
        Some(Expiries { expiring, floor, soonest_ms })
    }
}

/// A hash's part of its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashHead {
    /// The generation of the row's cells.
    pub generation: u64,
    /// The number of members stored, expired ones not yet purged included; never 0.
    pub count: u64,
    /// The summary of their expiries.
    pub expiries: Expiries,
}

impl HashHead {
    /// The size of the hash's part of a head, bytes.
    fn bytes(&self) -> usize {
        24 + if self.expiries.expiring > 0 { 16 + self.expiries.floor.name.len() } else { 0 }
    }
}

/// The body of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A string, whole.
    String(Bytes),
    /// A hash, whose members are in cells.
    Hash(HashHead),
}

/// A row's first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Write time and expiry.
    pub header: Header,
    /// The row's value, or the summary of its members.
    pub body: Body,
}

impl Head {
    /// The kind of the row.
    pub fn kind(&self) -> RowKind {
        match self.body {
            Body::String(_) => RowKind::String,
            Body::Hash(_) => RowKind::Hash,
        }
    }

    /// Encodes it.
    pub fn encode(&self) -> Bytes {
        let room = match &self.body {
            Body::String(value) => value.len(),
            Body::Hash(hash) => hash.bytes(),
        };
        let mut out = BytesMut::with_capacity(Header::BYTES_MAX + 1 + room);
        self.header.encode(&mut out);
        out.put_u8(self.kind() as u8);
        match &self.body {
            Body::String(value) => out.put_slice(value),
            Body::Hash(hash) => {
                out.put_u64(hash.generation);
                out.put_u64(hash.count);
                hash.expiries.encode(&mut out);
            }
        }
        out.freeze()
    }

    /// Decodes a head; a string's value is a slice of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Head, Fault> {
        let mut rest = &bytes[..];
        let decode = |rest: &mut &[u8]| {
            let header = Header::decode(rest)?;
            let body = match rest.try_get_u8().ok()? {
                STRING => Body::String(bytes.slice(bytes.len() - rest.len()..)),
                HASH => Body::Hash(hash_head(&rest[..])?),
                _ => return None,
            };
            Some(Head { header, body })
        };
        decode(&mut rest).ok_or_else(|| fault("head", bytes))
    }

    /// Decodes only the parts of a head that a sweep of dead records needs.
    pub fn summary(bytes: &[u8]) -> Result<HeadSummary, Fault> {
        let mut rest = bytes;
        let decode = |rest: &mut &[u8]| {
            let expires_at_ms = Header::decode(rest)?.expires_at_ms;
            let generation = match rest.try_get_u8().ok()? {
                STRING => None,
                HASH => Some(hash_head(rest)?.generation),
                _ => return None,
            };
            Some(HeadSummary { generation, expires_at_ms })
        };
        decode(&mut rest).ok_or_else(|| fault("head", bytes))
    }
}

/// The generation and the expiry of a row: enough to tell its live members from dead
/// ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSummary {
    /// The generation of the row's members; `None` for a row that has none.
    pub generation: Option<u64>,
    /// The time from which on the row is invisible; `None` = never.
    pub expires_at_ms: Option<u64>,
}

fn hash_head(mut rest: &[u8]) -> Option<HashHead> {
    let generation = rest.try_get_u64().ok()?;
    let count = rest.try_get_u64().ok()?;
    let expiries = Expiries::decode(&mut rest)?;
    let is_sound = rest.is_empty()
        && count >= expiries.expiring.max(1)
        && expiries.floor.name.len() <= FLOOR_NAME_MAX;
    is_sound.then_some(HashHead { generation, count, expiries })
}

/// One member of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Write time and expiry.
    pub header: Header,
    /// Its value.
    pub value: Bytes,
}

impl Cell {
    /// Encodes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Header::BYTES_MAX + self.value.len());
        self.header.encode(&mut out);
        out.put_slice(&self.value);
        out.freeze()
    }

    /// Decodes a cell; its value is a slice of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Cell, Fault> {
        let (header, value) = Cell::decode_slice(bytes)?;
        Ok(Cell { header, value: bytes.slice(bytes.len() - value.len()..) })
    }

    /// Decodes a cell, borrowing its value.
    pub fn decode_slice(bytes: &[u8]) -> Result<(Header, &[u8]), Fault> {
        let mut rest = bytes;
        let header = Header::decode(&mut rest).ok_or_else(|| fault("cell", bytes))?;
        Ok((header, rest))
    }
}

/// The prefix of a head or cell without the value: a head loses that of a string, a cell
/// its own. It decodes as a record with an empty value.
pub fn metadata(family: Family, bytes: &[u8]) -> &[u8] {
    let mut rest = bytes;
    // Corrupt bytes are returned whole, so that the decoder's fault can show them.
    if Header::decode(&mut rest).is_none() {
        return bytes;
    }
    let header = bytes.len() - rest.len();
    match (family, rest.first()) {
        (Family::Cell, _) => &bytes[..header],
        (Family::Head, Some(&STRING)) => &bytes[..=header],
        _ => bytes,
    }
}

/// Encodes a counter.
pub fn encode_counter(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// Decodes a counter.
pub fn decode_counter(bytes: &[u8]) -> Result<u64, Fault> {
    <[u8; 8]>::try_from(bytes).map(u64::from_be_bytes).map_err(|_| fault("counter", bytes))
}

/// A table's `default_ttl` as a partition applies it. It is part of the partition's
/// state, so that every leader applies the rule that earlier leaders have shown to
/// readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DefaultTtl {
    /// Ms; 0 = none.
    pub ttl_ms: u64,
    /// The time from which on it applies, by the partition's own clock: no other clock
    /// orders it better against the writes before it.
    pub since_ms: u64,
    /// The time at which it was set, by meta's clock: it tells a rule that was set later
    /// from one that arrives later.
    pub set_at_ms: u64,
}

impl DefaultTtl {
    /// Encodes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24);
        [self.ttl_ms, self.since_ms, self.set_at_ms].into_iter().for_each(|n| out.put_u64(n));
        out.freeze()
    }

    /// Decodes it.
    pub fn decode(bytes: &[u8]) -> Result<DefaultTtl, Fault> {
        let mut rest = bytes;
        let mut next = || rest.try_get_u64().ok();
        let read =
            (|| Some(DefaultTtl { ttl_ms: next()?, since_ms: next()?, set_at_ms: next()? }))();
        read.filter(|_| bytes.len() == 24).ok_or_else(|| fault("default_ttl", bytes))
    }
}

/// Bytes that are no record of this version.
pub(crate) fn fault(what: &str, bytes: &[u8]) -> Fault {
    let shown: String = bytes.iter().take(32).map(|b| format!("{b:02x}")).collect();
    let more = if bytes.len() > 32 { "..." } else { "" };
    Fault(format!("not a {what} record of a known version: {} bytes, {shown}{more}", bytes.len()))
}
