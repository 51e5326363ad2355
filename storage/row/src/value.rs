//! The values of records: heads, cells, counters and rules as bytes.
//!
//! # Layout
//! ```text
//! header   version and flags u8 | timetag u64 | [expires_at_ms u64]
//!            high nibble: version, 1; bit 0: an expiry follows; bits 1 to 3: zero
//! head     header | form u8 | 1 string: the value
//!                           | 2 hash:   generation u64 | count u64 | expiries
//!            low nibble of the form: the kind; high nibble: 0, the kind's first form
//! expiries expiring u64 | if not 0: floor_ms u64 | soonest_ms u64 (0 = none) | floor_name
//! cell     header | the value
//! counter  u64
//! rule     ttl_ms u64 | since_ms u64 | set_at_ms u64
//! ```
//! All integers are big-endian. Decoding never panics: bytes that are none of these are a
//! [`Fault`] that shows them. Frozen examples: `tests/vectors/values.txt`. The forms of
//! heads are listed in `form.rs`.

mod expiries;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::edits::Family;
use crate::op::RowKind;
use crate::view::Fault;

pub use crate::form::{Body, CollectionHead, CollectionSummary};
pub use crate::hash::Hash;
pub use expiries::{Expiries, MemberExpiry};

const VERSION: u8 = 1 << 4;
const HAS_EXPIRY: u8 = 1;

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
        self.body.kind()
    }

    /// Encodes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Header::BYTES_MAX + 1 + self.body.encoded_len());
        self.header.encode(&mut out);
        self.body.encode(&mut out);
        out.freeze()
    }

    /// Decodes a head; a string's value is a slice of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Head, Fault> {
        Head::decode_keeping(bytes, |part| bytes.slice_ref(part))
    }

    /// Decodes only the parts of a head that a sweep of dead records needs.
    pub fn summary(bytes: &[u8]) -> Result<HeadSummary, Fault> {
        let Head { header, body } = Head::decode_keeping(bytes, |_| Bytes::new())?;
        Ok(HeadSummary {
            generation: body.collection().map(|collection| collection.generation),
            expires_at_ms: header.expires_at_ms,
        })
    }

    fn decode_keeping(bytes: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Result<Head, Fault> {
        let decode = |mut rest: &[u8]| {
            let header = Header::decode(&mut rest)?;
            let (form, rest) = rest.split_first()?;
            Some(Head { header, body: Body::decode(*form, rest, keep)? })
        };
        decode(bytes).ok_or_else(|| fault("head", bytes))
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
        (Family::Head, Some(form)) if Body::is_value(*form) => &bytes[..=header],
        (Family::Head | Family::State, _) => bytes,
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
    Fault::damaged(format!(
        "not a {what} record of a known version: {} bytes, {shown}{more}",
        bytes.len()
    ))
}
