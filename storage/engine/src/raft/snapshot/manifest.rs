//! The list of a snapshot's files, and the messages of its transfer.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::alias::VoteOf;
use serde::{Deserialize, Serialize};

use super::CHUNK_BYTES;
use crate::raft::types::{SnapshotMeta, Types};
#[cfg(test)]
use crate::raft::vectors::{self, Sample};

/// The most files of a snapshot.
const FILES_MAX: usize = 100_000;
/// The longest file name, bytes.
const NAME_BYTES_MAX: usize = 128;
const CHUNK_VERSION: u8 = 1;
/// Bytes of a chunk before its data.
const CHUNK_HEADER: usize = 25;

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) crc: u32,
}

/// A leader's offer of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotOffer {
    /// The transfer's id; chunks carry it.
    pub(super) id: u64,
    /// The leader's vote.
    pub(super) vote: VoteOf<Types>,
    pub(super) files: Vec<SnapshotFile>,
}

/// The bytes that the receiver has of each file, in the offer's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotOfferReply {
    pub(super) bytes: Vec<u64>,
}

/// Sent after all files of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::raft) struct SnapshotInstall {
    pub(super) id: u64,
    pub(in crate::raft) vote: VoteOf<Types>,
    pub(in crate::raft) meta: SnapshotMeta,
}

/// A chunk of a file. As bytes: version u8 = 1, transfer u64, file u32, offset u64,
/// crc32c of the data u32, data; little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotChunk {
    pub(super) id: u64,
    pub(super) file: u32,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

impl SnapshotChunk {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(CHUNK_HEADER + self.data.len());
        bytes.put_u8(CHUNK_VERSION);
        bytes.put_u64_le(self.id);
        bytes.put_u32_le(self.file);
        bytes.put_u64_le(self.offset);
        bytes.put_u32_le(crc32c::crc32c(&self.data));
        bytes.put_slice(&self.data);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<SnapshotChunk, String> {
        if bytes.len() < CHUNK_HEADER || bytes.get_u8() != CHUNK_VERSION {
            return Err("a chunk of an unknown version".to_owned());
        }
        let (id, file, offset, crc) =
            (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u64_le(), bytes.get_u32_le());
        if bytes.len() > CHUNK_BYTES {
            return Err("a chunk is too large".to_owned());
        }
        if crc32c::crc32c(&bytes) != crc {
            return Err("a chunk was damaged in transit: checksum mismatch".to_owned());
        }
        Ok(SnapshotChunk { id, file, offset, data: bytes })
    }
}

/// The files in a directory, read to their ends for their checksums. Blocks.
pub(super) fn list(directory: &Path) -> std::io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| std::io::Error::other("a file name in a checkpoint is not UTF-8"))?;
        let mut file = File::open(entry.path())?;
        let (mut bytes, mut crc) = (0, 0);
        loop {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            bytes += read as u64;
            crc = crc32c::crc32c_append(crc, &chunk[..read]);
        }
        files.push(SnapshotFile { name, bytes, crc });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Fails unless all names stay in their directory and occur once.
pub(super) fn check(files: &[SnapshotFile]) -> Result<(), String> {
    if files.len() > FILES_MAX {
        return Err(format!("{} files are more than {FILES_MAX}", files.len()));
    }
    let is_plain = |name: &str| {
        let is_in_place = !name.starts_with('.') && (1..=NAME_BYTES_MAX).contains(&name.len());
        is_in_place
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if let Some(file) = files.iter().find(|file| !is_plain(&file.name)) {
        return Err(format!("{:?} is not a valid file name", file.name));
    }
    // The names are sorted, so that equal ones are neighbours.
    if files.windows(2).any(|pair| pair[0].name >= pair[1].name) {
        return Err("the files are not sorted by name, or one occurs twice".to_owned());
    }
    files
        .iter()
        .try_fold(0u64, |sum, file| sum.checked_add(file.bytes))
        .map(drop)
        .ok_or_else(|| "the sizes overflow".to_owned())
}

/// Messages of this file, for their frozen bytes.
#[cfg(test)]
pub(in crate::raft) fn samples() -> Vec<Sample> {
    let file = |name: &str, bytes, crc| SnapshotFile { name: name.to_owned(), bytes, crc };
    let files = vec![file("000009.sst", 1 << 33, 0x0102_0304), file("CURRENT", 16, 0xffff_ffff)];
    let chunk = SnapshotChunk {
        id: 0x0102_0304_0506_0708,
        file: 0x0a0b,
        offset: 1 << 32,
        data: Bytes::from_static(b"data"),
    };
    let again = |bytes| SnapshotChunk::decode(bytes).unwrap().encode();
    let install =
        SnapshotInstall { id: 300, vote: vectors::vote(), meta: vectors::snapshot_meta() };
    vec![
        Sample::body("snapshot offer", &SnapshotOffer { id: 300, vote: vectors::vote(), files }),
        Sample::body("snapshot offer reply", &SnapshotOfferReply { bytes: vec![0, 1 << 33] }),
        Sample::new("snapshot chunk", chunk.encode(), again),
        Sample::body("snapshot install", &install),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_names_stay_in_their_directory() {
        let files = |names: &[&str]| {
            names
                .iter()
                .map(|name| SnapshotFile { name: (*name).to_owned(), bytes: 1, crc: 0 })
                .collect::<Vec<_>>()
        };
        assert!(check(&files(&["000009.sst", "CURRENT", "MANIFEST-000004"])).is_ok());
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b"] {
            assert!(check(&files(&[bad])).is_err(), "{bad:?}");
        }
        assert!(check(&files(&["b", "a"])).is_err());
        assert!(check(&files(&["a", "a"])).is_err());
    }

    #[test]
    fn chunk_round_trips_and_damage_is_refused() {
        let chunk = SnapshotChunk { id: 1, file: 2, offset: 3, data: Bytes::from_static(b"data") };
        let bytes = chunk.encode();
        assert_eq!(SnapshotChunk::decode(bytes.clone()).unwrap(), chunk);
        let mut damaged = bytes.to_vec();
        damaged[CHUNK_HEADER] ^= 1;
        assert!(SnapshotChunk::decode(Bytes::from(damaged)).is_err());
        assert!(SnapshotChunk::decode(bytes.slice(..CHUNK_HEADER - 1)).is_err());
    }
}
