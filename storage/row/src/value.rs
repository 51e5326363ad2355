//! What records hold: heads, cells and counters as bytes.
//!
//! # Layout
//! ```text
//! header   version and flags u8 | timetag u64 | [expires_at_ms u64]
//!            high nibble: version, 1; bit 0: an expiry follows; bits 1 to 3: zero
//! head     header | kind u8 | 1 string: the value
//!                           | 2 hash:   generation u64 | count u64 | first_field_expiry_ms u64 (0 = none)
//! cell     header | the value
//! counter  u64
//! ```
//! All integers are big-endian. Decoding never panics: bytes that are none of these are a [`Fault`] that shows them.
//! Frozen examples: `tests/vectors/values.txt`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::edits::Family;
use crate::op::Kind;
use crate::view::Fault;

const VERSION: u8 = 1 << 4;
const HAS_EXPIRY: u8 = 1;
const STRING: u8 = Kind::String as u8;
const HASH: u8 = Kind::Hash as u8;

/// What every record of a row begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// When and where it was written: 48 bits of ms, 8 of logical time, 8 of cluster tag.
    pub timetag: u64,
    /// Invisible from then on; `None` = never.
    pub expires_at_ms: Option<u64>,
}

impl Header {
    /// The most bytes a header takes.
    pub const BYTES_MAX: usize = 17;

    /// When it was written, ms since the epoch.
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
        let expires_at_ms = if first & HAS_EXPIRY != 0 { Some(bytes.try_get_u64().ok()?) } else { None };
        Some(Header { timetag, expires_at_ms })
    }
}

/// A hash's part of its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashHead {
    /// Which life of the row the cells belong to.
    pub generation: u64,
    /// How many members are stored, expired ones not yet purged included; never 0.
    pub count: u64,
    /// The earliest expiry of a member; 0 = none expires.
    pub first_field_expiry_ms: u64,
}

/// What a row holds, as its head tells.
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
    /// What the row holds.
    pub body: Body,
}

impl Head {
    /// The kind of the row.
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::String(_) => Kind::String,
            Body::Hash(_) => Kind::Hash,
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let room = match &self.body {
            Body::String(value) => value.len(),
            Body::Hash(_) => 24,
        };
        let mut out = BytesMut::with_capacity(Header::BYTES_MAX + 1 + room);
        self.header.encode(&mut out);
        out.put_u8(self.kind() as u8);
        match &self.body {
            Body::String(value) => out.put_slice(value),
            Body::Hash(hash) => {
                out.put_u64(hash.generation);
                out.put_u64(hash.count);
                out.put_u64(hash.first_field_expiry_ms);
            }
        }
        out.freeze()
    }

    /// From bytes; a string's value is a slice of them.
    pub fn decode(bytes: &Bytes) -> Result<Head, Fault> {
        let mut rest = &bytes[..];
        let decode = |rest: &mut &[u8]| {
            let header = Header::decode(rest)?;
            let body = match rest.try_get_u8().ok()? {
                STRING => Body::String(bytes.slice(bytes.len() - rest.len()..)),
                HASH => Body::Hash(hash_head(rest)?),
                _ => return None,
            };
            Some(Head { header, body })
        };
        decode(&mut rest).ok_or_else(|| fault("head", bytes))
    }

    /// Decodes only what a sweep of dead cells needs: the generation of the row's members, `None` for a row without any.
    pub fn generation(bytes: &[u8]) -> Result<Option<u64>, Fault> {
        let mut rest = bytes;
        let decode = |rest: &mut &[u8]| {
            Header::decode(rest)?;
            match rest.try_get_u8().ok()? {
                STRING => Some(None),
                HASH => Some(Some(hash_head(rest)?.generation)),
                _ => None,
            }
        };
        decode(&mut rest).ok_or_else(|| fault("head", bytes))
    }
}

fn hash_head(rest: &mut &[u8]) -> Option<HashHead> {
    let generation = rest.try_get_u64().ok()?;
    let count = rest.try_get_u64().ok()?;
    let first_field_expiry_ms = rest.try_get_u64().ok()?;
    (rest.is_empty() && count > 0).then_some(HashHead { generation, count, first_field_expiry_ms })
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
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(Header::BYTES_MAX + self.value.len());
        self.header.encode(&mut out);
        out.put_slice(&self.value);
        out.freeze()
    }

    /// From bytes; the value is a slice of them.
    pub fn decode(bytes: &Bytes) -> Result<Cell, Fault> {
        let (header, value) = Cell::decode_slice(bytes)?;
        Ok(Cell { header, value: bytes.slice(bytes.len() - value.len()..) })
    }

    /// From bytes, borrowing the value.
    pub fn decode_slice(bytes: &[u8]) -> Result<(Header, &[u8]), Fault> {
        let mut rest = bytes;
        let header = Header::decode(&mut rest).ok_or_else(|| fault("cell", bytes))?;
        Ok((header, rest))
    }
}

/// The first part of a head or cell, which tells all but a value: of a head that of a string, of a cell its own. It decodes as a record with an empty value.
pub fn gist(family: Family, bytes: &[u8]) -> &[u8] {
    let mut rest = bytes;
    // What is no record is told whole, so that whoever decodes it sees what it is.
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

/// A counter as bytes.
pub fn encode_counter(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// A counter from bytes.
pub fn decode_counter(bytes: &[u8]) -> Result<u64, Fault> {
    <[u8; 8]>::try_from(bytes).map(u64::from_be_bytes).map_err(|_| fault("counter", bytes))
}

/// Bytes that are no record of this version.
pub(crate) fn fault(what: &str, bytes: &[u8]) -> Fault {
    let shown: String = bytes.iter().take(32).map(|b| format!("{b:02x}")).collect();
    let more = if bytes.len() > 32 { "..." } else { "" };
    Fault(format!("not a {what} record of a known version: {} bytes, {shown}{more}", bytes.len()))
}
