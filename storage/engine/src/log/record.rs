//! One record of the log: its bytes, and how an intact one is told from a damaged one.
//!
//! # Layout
//! Integers are little-endian.
//!
//! ```text
//!  0        4        8        12     13         21
//!  +--------+--------+--------+------+----------+----------------+
//!  | length | crc32c | synced | kind | group    | body ...       |
//!  +--------+--------+--------+------+----------+----------------+
//!    u32      u32      u32      u8     u64        `length` bytes
//! ```
//!
//! - `crc32c` covers, in this order: the number of the segment (u64), the offset of the
//!   record in it (u32), `length`, and everything from `synced` to the end of the body.
//!   So a record is valid at one position only: bytes that a client stored, an old copy
//!   of a file, or a write that the disk misplaced cannot pass for one.
//! - `synced`: the offset up to which the segment was known to be on disk when this
//!   record was written. It tells a torn tail from damage (`recover.rs`).
//! - `kind`: high nibble 1 (the version), low nibble the kind. It is never zero, so zeros
//!   are never a record. An intact record of an unknown kind was written by a newer
//!   version: it is an error, and never taken for a torn tail.
//!
//! ```text
//!  kind  name              body
//!  0x11  entry             log id, payload tag u8, payload
//!  0x12  relocated entry   as entry: a copy, written so that an old segment can be removed;
//!                          it replaces the entry and never truncates
//!  0x13  vote              term u64, Raft id u64, committed u8
//!  0x14  committed         optional log id
//!  0x15  truncate after    optional index u64: entries behind it (all, if absent) are removed
//!  0x16  purge             log id: entries up to it are removed
//!  0x17  group header      optional vote, optional purged log id, optional committed log id,
//!                          optional index u64 of the first entry
//!  0x18  destroy           empty: the group is removed
//!  0x19  mark              empty, group 0: only carries `synced`
//!  0x1a  suspects          group 0, `Suspects` if this is the last such record: a byte 1 for
//!                          all groups; or a byte 0, their count u32, their ids u64
//! ```
//!
//! A log id is term u64, Raft id u64, index u64. An optional value is a byte 0, or a byte
//! 1 and the value. Payload tags: 0 blank, 1 a batch (its bytes follow), 2 a membership
//! (postcard of `openraft::Membership`).
//!
//! # Invariants
//! - The format is frozen: `tests/vectors/log.txt` holds vectors of each kind, and
//!   `tests/vectors/segments.txt` whole files (`records_are_frozen`,
//!   `segments_are_frozen`).
//! - Decoding any bytes gives a record or a reason, never a panic
//!   (`any_bytes_decode_or_say_why`).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::raft::types::{Entry, EntryPayload, LeaderId, LogId, Membership, Payload, Vote};

/// Bytes before the body.
pub(crate) const HEADER: usize = 21;

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Entry = 0x11,
    Relocated = 0x12,
    Vote = 0x13,
    Committed = 0x14,
    TruncateAfter = 0x15,
    Purge = 0x16,
    GroupHeader = 0x17,
    Destroy = 0x18,
    Mark = 0x19,
    Suspects = 0x1a,
}

impl RecordKind {
    fn of(byte: u8) -> Option<RecordKind> {
        Some(match byte {
            0x11 => RecordKind::Entry,
            0x12 => RecordKind::Relocated,
            0x13 => RecordKind::Vote,
            0x14 => RecordKind::Committed,
            0x15 => RecordKind::TruncateAfter,
            0x16 => RecordKind::Purge,
            0x17 => RecordKind::GroupHeader,
            0x18 => RecordKind::Destroy,
            0x19 => RecordKind::Mark,
            0x1a => RecordKind::Suspects,
            _ => return None,
        })
    }
}

/// The position of a record: valid nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordPosition {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
}

/// A group's state without its entries, repeated at the start of each segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) first: Option<u64>,
}

/// Groups that may have lost acknowledged entries: the log acknowledged before it synced,
/// and was not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Suspects {
    /// Every group that exists.
    All,
    /// These groups.
    These(BTreeSet<u64>),
}

impl Default for Suspects {
    fn default() -> Self {
        Suspects::These(BTreeSet::new())
    }
}

impl Suspects {
    pub(crate) fn has(&self, group: u64) -> bool {
        match self {
            Suspects::All => true,
            Suspects::These(groups) => groups.contains(&group),
        }
    }
}

/// An intact record, its body not yet decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRecord<'a> {
    pub(crate) synced: u32,
    pub(crate) kind: RecordKind,
    pub(crate) group: u64,
    pub(crate) body: &'a [u8],
}

impl RawRecord<'_> {
    /// The record's length, header included.
    pub(crate) fn len(&self) -> u32 {
        (HEADER + self.body.len()) as u32
    }
}

/// Appends a record to `buf` and returns its length; `position` is its place in the file.
pub(crate) fn put(
    buf: &mut Vec<u8>,
    position: RecordPosition,
    synced: u32,
    kind: RecordKind,
    group: u64,
    body: impl FnOnce(&mut Vec<u8>),
) -> u32 {
    let start = buf.len();
    buf.extend_from_slice(&[0; 8]);
    buf.extend_from_slice(&synced.to_le_bytes());
    buf.push(kind as u8);
    buf.extend_from_slice(&group.to_le_bytes());
    body(buf);
    let length =
        u32::try_from(buf.len() - start - HEADER).expect("entries are bounded, far below 4 GiB");
    let crc = checksum(position, length, &buf[start + 8..]);
    buf[start..start + 4].copy_from_slice(&length.to_le_bytes());
    buf[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    length + HEADER as u32
}

/// The reason why bytes are not a record, or not a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// They are not the bytes that were written, or nothing was written.
    Broken(&'static str),
    /// They are intact, but of a format that this build does not know.
    Newer(&'static str),
}

impl FormatError {
    pub(crate) fn why(self) -> &'static str {
        match self {
            FormatError::Broken(why) | FormatError::Newer(why) => why,
        }
    }
}

/// A record's header, as far as it is plausible. Its checksum is not verified yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    /// The length of the body.
    pub(crate) length: u32,
    pub(crate) synced: u32,
    kind: u8,
    crc: u32,
}

impl RecordHeader {
    /// Decodes the header at `position`.
    pub(crate) fn of(bytes: &[u8], position: RecordPosition) -> Result<RecordHeader, &'static str> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err("the file ends inside a record's header");
        };
        let claim = RecordHeader {
            length: u32_at(header, 0),
            synced: u32_at(header, 8),
            kind: header[12],
            crc: u32_at(header, 4),
        };
        if claim.kind == 0 {
            return Err("no such kind of record");
        }
        if rest.len() < claim.length as usize {
            return Err("the file ends inside a record");
        }
        if claim.synced > position.offset {
            return Err("a record claims that it was synced before it was written");
        }
        Ok(claim)
    }

    /// The part of the record that its checksum covers, beside [`seed`].
    pub(crate) fn covered(&self) -> std::ops::Range<usize> {
        8..HEADER + self.length as usize
    }

    /// True if `crc` is the record's checksum.
    pub(crate) fn is_sealed_by(&self, crc: u32) -> bool {
        self.crc == crc
    }
}

/// Decodes the record at the start of `bytes`, which lie at `position` in the log.
pub(crate) fn parse(bytes: &[u8], position: RecordPosition) -> Result<RawRecord<'_>, FormatError> {
    let claim = RecordHeader::of(bytes, position).map_err(FormatError::Broken)?;
    if !claim.is_sealed_by(checksum(position, claim.length, &bytes[claim.covered()])) {
        return Err(FormatError::Broken("checksum mismatch"));
    }
    let kind = RecordKind::of(claim.kind)
        .ok_or(FormatError::Newer("a record of a kind that this build does not know"))?;
    let group = u64::from_le_bytes(bytes[13..21].try_into().expect("13..21 are eight bytes"));
    Ok(RawRecord {
        synced: claim.synced,
        kind,
        group,
        body: &bytes[HEADER..HEADER + claim.length as usize],
    })
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The checksum over what precedes a record's own bytes: its position and its length.
pub(crate) fn seed(position: RecordPosition, length: u32) -> u32 {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&position.segment.to_le_bytes());
    seed[8..12].copy_from_slice(&position.offset.to_le_bytes());
    seed[12..].copy_from_slice(&length.to_le_bytes());
    crc32c::crc32c(&seed)
}

fn checksum(position: RecordPosition, length: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(seed(position, length), rest)
}

// --- encoding of bodies ---

/// An upper bound of the length of an entry's record.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(p) => p.0.len(),
        EntryPayload::Membership(m) => postcard::experimental::serialized_size(m).unwrap_or(0),
    };
    HEADER + 25 + payload
}

pub(crate) fn put_entry(buf: &mut Vec<u8>, entry: &Entry) {
    put_log_id(buf, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => buf.push(0),
        EntryPayload::Normal(payload) => {
            buf.push(1);
            buf.extend_from_slice(&payload.0);
        }
        EntryPayload::Membership(membership) => {
            buf.push(2);
            let bytes = postcard::to_allocvec(membership)
                .expect("a membership is maps and strings, which postcard always encodes");
            buf.extend_from_slice(&bytes);
        }
    }
}

pub(crate) fn put_vote(buf: &mut Vec<u8>, vote: &Vote) {
    buf.extend_from_slice(&vote.leader_id.term.0.to_le_bytes());
    buf.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    buf.push(u8::from(vote.committed));
}

pub(crate) fn put_log_id(buf: &mut Vec<u8>, id: &LogId) {
    buf.extend_from_slice(&id.leader_id.term.0.to_le_bytes());
    buf.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    buf.extend_from_slice(&id.index.to_le_bytes());
}

pub(crate) fn put_index(buf: &mut Vec<u8>, index: &u64) {
    buf.extend_from_slice(&index.to_le_bytes());
}

pub(crate) fn put_optional<T>(
    buf: &mut Vec<u8>,
    thing: Option<&T>,
    put: impl FnOnce(&mut Vec<u8>, &T),
) {
    buf.push(u8::from(thing.is_some()));
    if let Some(thing) = thing {
        put(buf, thing);
    }
}

pub(crate) fn put_group_header(buf: &mut Vec<u8>, state: &GroupHeader) {
    put_optional(buf, state.vote.as_ref(), put_vote);
    put_optional(buf, state.purged.as_ref(), put_log_id);
    put_optional(buf, state.committed.as_ref(), put_log_id);
    put_optional(buf, state.first.as_ref(), put_index);
}

/// The length of a record of suspects.
pub(crate) fn suspects_len(suspects: &Suspects) -> usize {
    HEADER
        + match suspects {
            Suspects::All => 1,
            Suspects::These(groups) => 5 + 8 * groups.len(),
        }
}

pub(crate) fn put_suspects(buf: &mut Vec<u8>, suspects: &Suspects) {
    match suspects {
        Suspects::All => buf.push(1),
        Suspects::These(groups) => {
            buf.push(0);
            buf.extend_from_slice(&(groups.len() as u32).to_le_bytes());
            groups.iter().for_each(|group| put_index(buf, group));
        }
    }
}

// --- decoding of bodies; an error is a flaw of a body whose checksum is right ---

type Read<T> = Result<T, &'static str>;

/// Decodes a body from the front.
pub(crate) struct BodyReader<'a>(pub(crate) &'a [u8]);

impl BodyReader<'_> {
    fn byte(&mut self) -> Read<u8> {
        let (&first, rest) = self.0.split_first().ok_or("a record's body is too short")?;
        self.0 = rest;
        Ok(first)
    }

    pub(crate) fn index(&mut self) -> Read<u64> {
        let (first, rest) =
            self.0.split_first_chunk::<8>().ok_or("a record's body is too short")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*first))
    }

    fn flag(&mut self) -> Read<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    fn leader(&mut self) -> Read<LeaderId> {
        Ok(LeaderId { term: self.index()?.into(), node_id: self.index()? })
    }

    pub(crate) fn log_id(&mut self) -> Read<LogId> {
        Ok(LogId { leader_id: self.leader()?, index: self.index()? })
    }

    pub(crate) fn vote(&mut self) -> Read<Vote> {
        Ok(Vote { leader_id: self.leader()?, committed: self.flag()? })
    }

    pub(crate) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    pub(crate) fn group_header(&mut self) -> Read<GroupHeader> {
        Ok(GroupHeader {
            vote: self.optional(BodyReader::vote)?,
            purged: self.optional(BodyReader::log_id)?,
            committed: self.optional(BodyReader::log_id)?,
            first: self.optional(BodyReader::index)?,
        })
    }

    pub(crate) fn suspects(&mut self) -> Read<Suspects> {
        if self.flag()? {
            return Ok(Suspects::All);
        }
        let (count, rest) =
            self.0.split_first_chunk::<4>().ok_or("a record's body is too short")?;
        self.0 = rest;
        (0..u32::from_le_bytes(*count))
            .map(|_| self.index())
            .collect::<Read<_>>()
            .map(Suspects::These)
    }

    pub(crate) fn end(&self) -> Read<()> {
        if self.0.is_empty() { Ok(()) } else { Err("a record's body is too long") }
    }
}

/// Decodes an entry; a batch's bytes are a slice of `body`, not a copy.
pub(crate) fn entry(body: &Bytes) -> Read<Entry> {
    let mut rest = BodyReader(body);
    let log_id = rest.log_id()?;
    let tag = rest.byte()?;
    let payload = match tag {
        0 => {
            rest.end()?;
            EntryPayload::Blank
        }
        1 => EntryPayload::Normal(Payload(body.slice(body.len() - rest.0.len()..))),
        2 => {
            let (membership, left): (Membership, _) =
                postcard::take_from_bytes(rest.0).map_err(|_| "a membership does not decode")?;
            BodyReader(left).end()?;
            EntryPayload::Membership(membership)
        }
        _ => return Err("no such payload"),
    };
    Ok(Entry { log_id, payload })
}
