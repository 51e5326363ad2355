//! Small hashes in one string: listpack (Redis 7.0 and later), ziplist (2.6 to 6.2),
//! zipmap (2.4).
//!
//! Each reader returns the entries in order and refuses malformed input: wrong sizes, a
//! missing terminator, trailing bytes. Entries are slices of the string, except integers.

use bytes::Bytes;

use super::{Fields, RdbError, decimal};

/// Terminator of a listpack, ziplist or zipmap.
const END: u8 = 0xff;
/// The count when more entries exist than fit 16 bits; they must be counted.
const UNCOUNTED: u16 = u16::MAX;

/// Entries as field, value.
pub(super) fn pairs(entries: Vec<Bytes>) -> Result<Fields, RdbError> {
    let (pairs, []) = entries.as_chunks::<2>() else { return Err(RdbError::Data) };
    let mut fields = Fields::default();
    for [field, value] in pairs {
        fields.push(field.clone(), value.clone(), None)?;
    }
    Ok(fields)
}

/// Entries as field, value, expiry (0 = no expiry).
pub(super) fn triples(entries: Vec<Bytes>) -> Result<Fields, RdbError> {
    let (triples, []) = entries.as_chunks::<3>() else { return Err(RdbError::Data) };
    let mut fields = Fields::default();
    for [field, value, expiry] in triples {
        let expiry = crate::args::unsigned(expiry).ok_or(RdbError::Data)?;
        fields.push(field.clone(), value.clone(), (expiry != 0).then_some(expiry))?;
    }
    Ok(fields)
}

/// Total bytes u32, count u16, entries, terminator. An entry: encoding, data, its own
/// length written backwards.
pub(super) fn listpack(bytes: &Bytes) -> Result<Vec<Bytes>, RdbError> {
    let mut at = Cursor { bytes, at: 0 };
    let total = u32::from_le_bytes(at.array()?);
    let count = u16::from_le_bytes(at.array()?);
    at.check_total(total)?;
    let mut entries = Vec::new();
    while at.peek()? != END {
        let from = at.at;
        entries.push(at.listpack_entry()?);
        at.listpack_back_length(at.at - from)?;
    }
    at.end(count, entries)
}

/// Total bytes u32, offset of the last entry u32, count u16, entries, terminator. An
/// entry: length of the previous one, encoding, data.
pub(super) fn ziplist(bytes: &Bytes) -> Result<Vec<Bytes>, RdbError> {
    let mut at = Cursor { bytes, at: 0 };
    let total = u32::from_le_bytes(at.array()?);
    let last = u32::from_le_bytes(at.array()?) as usize;
    let count = u16::from_le_bytes(at.array()?);
    at.check_total(total)?;
    let (mut entries, mut before) = (Vec::new(), 0);
    let mut last_seen = at.at;
    while at.peek()? != END {
        last_seen = at.at;
        let told = match at.byte()? {
            0xfe => u32::from_le_bytes(at.array()?) as usize,
            len => usize::from(len),
        };
        if told != before {
            return Err(RdbError::Data);
        }
        entries.push(at.ziplist_entry()?);
        before = at.at - last_seen;
    }
    if last != last_seen {
        return Err(RdbError::Data);
    }
    at.end(count, entries)
}

/// Count u8 (254 and more: count the entries), then length, field, length, unused bytes
/// u8, value, unused bytes; terminator.
pub(super) fn zipmap(bytes: &Bytes) -> Result<Vec<Bytes>, RdbError> {
    let mut at = Cursor { bytes, at: 0 };
    let count = match at.byte()? {
        count @ 0..254 => u16::from(count) * 2,
        _ => UNCOUNTED,
    };
    let mut entries = Vec::new();
    while at.peek()? != END {
        let len = at.zipmap_length()?;
        entries.push(at.take(len)?);
        let len = at.zipmap_length()?;
        let unused = usize::from(at.byte()?);
        entries.push(at.take(len)?);
        at.take(unused)?;
    }
    at.end(count, entries)
}

/// A position in the string.
struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Result<Bytes, RdbError> {
        let end = self
            .at
            .checked_add(len)
            .filter(|&end| end <= self.bytes.len())
            .ok_or(RdbError::Data)?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        let (array, _) = self.bytes[self.at..].split_first_chunk::<N>().ok_or(RdbError::Data)?;
        self.at += N;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, RdbError> {
        self.array().map(|[byte]| byte)
    }

    fn peek(&self) -> Result<u8, RdbError> {
        self.bytes.get(self.at).copied().ok_or(RdbError::Data)
    }

    fn check_total(&self, total: u32) -> Result<(), RdbError> {
        if total as usize == self.bytes.len() { Ok(()) } else { Err(RdbError::Data) }
    }

    /// Checks that the terminator is the last byte, and that the header's count is right.
    fn end(mut self, count: u16, entries: Vec<Bytes>) -> Result<Vec<Bytes>, RdbError> {
        let ended = self.byte()? == END && self.at == self.bytes.len();
        let counted = count == UNCOUNTED || usize::from(count) == entries.len();
        if ended && counted { Ok(entries) } else { Err(RdbError::Data) }
    }

    fn listpack_entry(&mut self) -> Result<Bytes, RdbError> {
        let first = self.byte()?;
        let number = match first {
            0x00..=0x7f => i64::from(first),
            0x80..=0xbf => return self.take(usize::from(first & 0x3f)),
            0xc0..=0xdf => {
                let bits = i16::from_be_bytes([first & 0x1f, self.byte()?]);
                i64::from(bits << 3 >> 3)
            }
            0xe0..=0xef => {
                let len = u16::from_be_bytes([first & 0x0f, self.byte()?]);
                return self.take(usize::from(len));
            }
            0xf0 => {
                let len = u32::from_le_bytes(self.array()?);
                return self.take(len as usize);
            }
            0xf1 => i64::from(i16::from_le_bytes(self.array()?)),
            0xf2 => self.int24()?,
            0xf3 => i64::from(i32::from_le_bytes(self.array()?)),
            0xf4 => i64::from_le_bytes(self.array()?),
            _ => return Err(RdbError::Data),
        };
        Ok(decimal(number))
    }

    /// An entry's length in groups of 7 bits, most significant first; all but the first
    /// have the top bit set. (Redis takes a group more than it needs for 16383, 2097151
    /// and 268435455.)
    fn listpack_back_length(&mut self, len: usize) -> Result<(), RdbError> {
        let groups =
            (1..5).find(|&groups| len < (1 << (7 * groups)) - usize::from(groups > 1)).unwrap_or(5);
        for group in (0..groups).rev() {
            let more = if group + 1 == groups { 0 } else { 0x80 };
            if self.byte()? != (len >> (7 * group) & 0x7f) as u8 | more {
                return Err(RdbError::Data);
            }
        }
        Ok(())
    }

    fn ziplist_entry(&mut self) -> Result<Bytes, RdbError> {
        let first = self.byte()?;
        let number = match first {
            0x00..=0x3f => return self.take(usize::from(first)),
            0x40..=0x7f => {
                let len = u16::from_be_bytes([first & 0x3f, self.byte()?]);
                return self.take(usize::from(len));
            }
            0x80 => {
                let len = u32::from_be_bytes(self.array()?);
                return self.take(len as usize);
            }
            0xc0 => i64::from(i16::from_le_bytes(self.array()?)),
            0xd0 => i64::from(i32::from_le_bytes(self.array()?)),
            0xe0 => i64::from_le_bytes(self.array()?),
            0xf0 => self.int24()?,
            0xf1..=0xfd => i64::from(first & 0x0f) - 1,
            0xfe => i64::from(i8::from_le_bytes(self.array()?)),
            _ => return Err(RdbError::Data),
        };
        Ok(decimal(number))
    }

    fn int24(&mut self) -> Result<i64, RdbError> {
        let [a, b, c] = self.array()?;
        Ok(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8))
    }

    fn zipmap_length(&mut self) -> Result<usize, RdbError> {
        match self.byte()? {
            254 => Ok(u32::from_le_bytes(self.array()?) as usize),
            END => Err(RdbError::Data),
            len => Ok(usize::from(len)),
        }
    }
}
