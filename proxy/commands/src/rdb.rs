//! Redis's serialization of one value: the payload of DUMP and RESTORE.
//!
//! Strings and hashes are read in every encoding of Redis 2.4 to 8.0, so that data can be
//! migrated from Redis. They are written in the plainest encoding, which Redis 7.0 and
//! later read; hashes with expiring fields need Redis 7.4.
//!
//! # Layout
//! | part | bytes |
//! |---|---|
//! | type and encoding of the value | 1, see [`form`] |
//! | the value | by its encoding |
//! | version of the serialization | u16 little-endian |
//! | CRC-64/Jones of everything before it | u64 little-endian |
//!
//! Lengths take 6, 14, 32 or 64 bits; strings are bytes, a small integer, or compressed
//! by LZF. A small hash is a string that holds a zipmap, ziplist or listpack, depending
//! on the version of Redis (`packed`).
//!
//! # Invariants
//! - Reading allocates no more than the payload holds, and 64 MiB for compressed strings
//!   (`bombs_are_refused`).
//! - A written payload is read back (`round_trip`), and payloads of Redis 7.0 are read
//!   (`tests/rdb.rs`, frozen payloads).

mod packed;

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};
use row::op::RowContent;

use crate::Reply;

/// The first byte of a payload, as in Redis's `rdb.h`.
pub mod form {
    /// A string.
    pub const STRING: u8 = 0;
    /// Fields and values, one after another.
    pub const HASH: u8 = 4;
    /// A zipmap in a string (until Redis 2.4).
    pub const HASH_ZIPMAP: u8 = 9;
    /// A ziplist in a string (until Redis 6.2).
    pub const HASH_ZIPLIST: u8 = 13;
    /// A listpack in a string (from Redis 7.0).
    pub const HASH_LISTPACK: u8 = 16;
    /// Expiry, field, value, of Redis 7.4's release candidates: absolute expiries.
    pub const HASH_METADATA_RC: u8 = 22;
    /// A listpack of field, value, expiry, of Redis 7.4's release candidates.
    pub const HASH_LISTPACK_EX_RC: u8 = 23;
    /// The earliest expiry, then expiry, field, value (from Redis 7.4); expiries count
    /// from the earliest, plus 1; 0 = none.
    pub const HASH_METADATA: u8 = 24;
    /// The earliest expiry, then a listpack of field, value, expiry (from Redis 7.4).
    pub const HASH_LISTPACK_EX: u8 = 25;
}

/// The version that is written: Redis 7.0's.
const VERSION: u16 = 10;
/// The version that is written when fields have expiries: Redis 7.4's.
const VERSION_EXPIRING: u16 = 12;
/// The latest version that is read: Redis 7.4's and 8.0's.
const VERSION_MAX: u16 = 12;
/// Version and checksum.
const FOOTER_BYTES: usize = 10;
/// Upper bound of the inflated size of all compressed strings of a payload.
const INFLATED_MAX: usize = 64 << 20;
/// Maximum compression ratio of LZF: three bytes become 264.
const LZF_RATIO_MAX: usize = 88;
/// Redis's latest field expiry, ms: 48 bits.
const EXPIRY_MAX_MS: u64 = (1 << 48) - 2;

/// CRC-64/Jones as Redis computes it.
const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);

/// Reasons to refuse a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RdbError {
    /// The footer is missing, has a later version, or does not match the payload.
    Footer,
    /// The value is malformed.
    Data,
    /// A type of value that Bridle does not support yet; its type byte.
    Kind(u8),
    /// Compressed strings that inflate beyond 64 MiB.
    TooLarge,
}

impl RdbError {
    /// RESTORE's reply.
    pub fn reply(self) -> Reply {
        match self {
            RdbError::Footer => Reply::error("ERR DUMP payload version or checksum are wrong"),
            RdbError::Data => Reply::error("ERR Bad data format"),
            RdbError::Kind(kind) => {
                Reply::error(format!("ERR RESTORE of a {} is not supported yet", kind_name(kind)))
            }
            RdbError::TooLarge => Reply::error(
                "ERR the payload's compressed strings inflate to more than 64 MiB, a fixed limit \
                 of RESTORE",
            ),
        }
    }
}

/// The type of value that a type byte stands for.
fn kind_name(kind: u8) -> &'static str {
    match kind {
        1 | 10 | 14 | 18 => "list",
        2 | 11 | 20 => "set",
        3 | 5 | 12 | 17 => "sorted set",
        15 | 19 | 21 => "stream",
        _ => "module value",
    }
}

/// Serializes a value.
pub fn dump(content: &RowContent) -> Bytes {
    let mut out = BytesMut::new();
    let mut version = VERSION;
    match content {
        RowContent::String(value) => {
            out.put_u8(form::STRING);
            put_string(&mut out, value);
        }
        RowContent::Hash(fields) => {
            match fields.iter().filter_map(|(_, _, expiry)| *expiry).min() {
                None => {
                    out.put_u8(form::HASH);
                    put_size(&mut out, fields.len() as u64);
                    for (field, value, _) in fields {
                        put_string(&mut out, field);
                        put_string(&mut out, value);
                    }
                }
                Some(first) => {
                    version = VERSION_EXPIRING;
                    out.put_u8(form::HASH_METADATA);
                    out.put_u64_le(first);
                    put_size(&mut out, fields.len() as u64);
                    for (field, value, expiry) in fields {
                        put_size(
                            &mut out,
                            expiry.map_or(0, |expiry| (expiry - first).saturating_add(1)),
                        );
                        put_string(&mut out, field);
                        put_string(&mut out, value);
                    }
                }
            }
        }
    }
    out.put_u16_le(version);
    let checksum = CRC.checksum(&out);
    out.put_u64_le(checksum);
    out.freeze()
}

/// Parses a payload.
pub fn parse(payload: &Bytes) -> Result<RowContent, RdbError> {
    let body_bytes = payload.len().checked_sub(FOOTER_BYTES).ok_or(RdbError::Footer)?;
    let mut footer = RdbReader::new(payload.slice(body_bytes..));
    let version = u16::from_le_bytes(footer.array()?);
    let checksum = u64::from_le_bytes(footer.array()?);
    if version > VERSION_MAX || checksum != CRC.checksum(&payload[..body_bytes + 2]) {
        return Err(RdbError::Footer);
    }
    let mut input = RdbReader::new(payload.slice(..body_bytes));
    let content = content(&mut input)?;
    if input.bytes.is_empty() { Ok(content) } else { Err(RdbError::Data) }
}

fn content(input: &mut RdbReader) -> Result<RowContent, RdbError> {
    let fields = match input.byte()? {
        form::STRING => return input.string().map(RowContent::String),
        form::HASH => input.fields(|_| Ok(None))?,
        form::HASH_ZIPMAP => packed::pairs(packed::zipmap(&input.string()?)?)?,
        form::HASH_ZIPLIST => packed::pairs(packed::ziplist(&input.string()?)?)?,
        form::HASH_LISTPACK => packed::pairs(packed::listpack(&input.string()?)?)?,
        form::HASH_METADATA_RC => {
            input.fields(|input| Ok(Some(input.size()?).filter(|&expiry| expiry != 0)))?
        }
        form::HASH_LISTPACK_EX_RC => packed::triples(packed::listpack(&input.string()?)?)?,
        form::HASH_METADATA => {
            let first = u64::from_le_bytes(input.array()?);
            input.fields(|input| match input.size()? {
                0 => Ok(None),
                past => first.checked_add(past - 1).map(Some).ok_or(RdbError::Data),
            })?
        }
        form::HASH_LISTPACK_EX => {
            input.array::<8>()?;
            packed::triples(packed::listpack(&input.string()?)?)?
        }
        kind @ (0..=7 | 9..=25) => return Err(RdbError::Kind(kind)),
        _ => return Err(RdbError::Data),
    };
    if fields.list.is_empty() { Err(RdbError::Data) } else { Ok(RowContent::Hash(fields.list)) }
}

/// A hash's fields while they are read: name, value, expiry. A repeated name is refused
/// immediately.
#[derive(Default)]
struct Fields {
    list: Vec<(Bytes, Bytes, Option<u64>)>,
    names: HashSet<Bytes>,
}

impl Fields {
    fn push(&mut self, name: Bytes, value: Bytes, expiry: Option<u64>) -> Result<(), RdbError> {
        let sound =
            expiry.is_none_or(|expiry| expiry <= EXPIRY_MAX_MS) && self.names.insert(name.clone());
        self.list.push((name, value, expiry));
        if sound { Ok(()) } else { Err(RdbError::Data) }
    }
}

/// The unread rest of a payload.
struct RdbReader {
    bytes: Bytes,
    inflated: usize,
}

/// The length of a string, or the number of a special encoding.
enum Length {
    Bytes(u64),
    Special(u8),
}

impl RdbReader {
    fn new(bytes: Bytes) -> RdbReader {
        RdbReader { bytes, inflated: 0 }
    }

    fn take(&mut self, len: u64) -> Result<Bytes, RdbError> {
        let len = usize::try_from(len)
            .ok()
            .filter(|&len| len <= self.bytes.len())
            .ok_or(RdbError::Data)?;
        Ok(self.bytes.split_to(len))
    }

    fn byte(&mut self) -> Result<u8, RdbError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let bytes = self.take(N as u64)?;
        bytes.as_ref().try_into().map_err(|_| RdbError::Data)
    }

    fn size_or_special(&mut self) -> Result<Length, RdbError> {
        let first = self.byte()?;
        Ok(match first >> 6 {
            0 => Length::Bytes(u64::from(first)),
            1 => Length::Bytes(u64::from(u16::from_be_bytes([first & 0x3f, self.byte()?]))),
            2 if first == 0x80 => Length::Bytes(u64::from(u32::from_be_bytes(self.array()?))),
            2 if first == 0x81 => Length::Bytes(u64::from_be_bytes(self.array()?)),
            3 => Length::Special(first & 0x3f),
            _ => return Err(RdbError::Data),
        })
    }

    fn size(&mut self) -> Result<u64, RdbError> {
        match self.size_or_special()? {
            Length::Bytes(size) => Ok(size),
            Length::Special(_) => Err(RdbError::Data),
        }
    }

    fn string(&mut self) -> Result<Bytes, RdbError> {
        let number = match self.size_or_special()? {
            Length::Bytes(len) => return self.take(len),
            Length::Special(0) => i64::from(i8::from_le_bytes(self.array()?)),
            Length::Special(1) => i64::from(i16::from_le_bytes(self.array()?)),
            Length::Special(2) => i64::from(i32::from_le_bytes(self.array()?)),
            Length::Special(3) => return self.compressed(),
            Length::Special(_) => return Err(RdbError::Data),
        };
        Ok(decimal(number))
    }

    fn compressed(&mut self) -> Result<Bytes, RdbError> {
        let (packed_bytes, bytes) = (self.size()?, self.size()?);
        let packed = self.take(packed_bytes)?;
        let bytes = usize::try_from(bytes).map_err(|_| RdbError::Data)?;
        if bytes > packed.len().saturating_mul(LZF_RATIO_MAX) {
            return Err(RdbError::Data);
        }
        self.inflated = self.inflated.saturating_add(bytes);
        if self.inflated > INFLATED_MAX {
            return Err(RdbError::TooLarge);
        }
        let inflated = lzf::decompress(&packed, bytes).map_err(|_| RdbError::Data)?;
        if inflated.len() == bytes { Ok(inflated.into()) } else { Err(RdbError::Data) }
    }

    /// Reads a count and that many fields; `expiry` reads the expiry before each field.
    fn fields(
        &mut self,
        expiry: impl Fn(&mut RdbReader) -> Result<Option<u64>, RdbError>,
    ) -> Result<Fields, RdbError> {
        let mut fields = Fields::default();
        for _ in 0..self.size()? {
            let expiry = expiry(self)?;
            fields.push(self.string()?, self.string()?, expiry)?;
        }
        Ok(fields)
    }
}

/// Formats a number as a string.
fn decimal(number: i64) -> Bytes {
    Bytes::copy_from_slice(itoa::Buffer::new().format(number).as_bytes())
}

fn put_string(out: &mut BytesMut, string: &[u8]) {
    put_size(out, string.len() as u64);
    out.extend_from_slice(string);
}

fn put_size(out: &mut BytesMut, size: u64) {
    match size {
        0..0x40 => out.put_u8(size as u8),
        0x40..0x4000 => out.put_u16(0x4000 | size as u16),
        0x4000..=0xffff_ffff => {
            out.put_u8(0x80);
            out.put_u32(size as u32);
        }
        _ => {
            out.put_u8(0x81);
            out.put_u64(size);
        }
    }
}

#[cfg(test)]
mod tests;
