//! A segment: one file of the log, filled from front to back and only read afterwards.
//!
//! # Layout
//! `<number, 20 decimal digits>.log`. It has its full size from the start: overwriting
//! allocated blocks makes an fdatasync cheaper than growing a file (no journal commit),
//! and the space exists before anything is acknowledged. The file begins as zeros, or as
//! an obsolete segment. Integers are little-endian.
//!
//! ```text
//!  0             8         12       16       24         28
//!  +-------------+---------+--------+--------+----------+-------------+---------+----------+
//!  | "BRDLLOG\n" | version | crc32c | number | prev end | records ... | TRAILER | anything |
//!  +-------------+---------+--------+--------+----------+-------------+---------+----------+
//!    8 bytes       u32 = 1   u32      u64      u32                      zeros
//! ```
//!
//! Each write ends with [`TRAILER`] zeros, as far as there is room, which the next write
//! overwrites. So the end of the records is told from a torn one although the file
//! contained other records before. Those cannot pass for records of this segment, because
//! its number is part of the checksums.
//!
//! `crc32c` covers the header without itself. `prev end` is the end of the records in the
//! previous segment (0 in the first one): a segment with a successor is complete, and its
//! end is known exactly. The successor gets its name only after it and its predecessor
//! are on disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::record::FormatError;
use super::{Disk, LogError};

/// Bytes before the first record.
pub(crate) const HEADER: u32 = 28;
const MAGIC: &[u8; 8] = b"BRDLLOG\n";
const VERSION: u32 = 1;
/// The number of zeros behind the records: the length of a record's header.
pub(crate) const TRAILER: usize = super::record::HEADER;
/// Zeros are written in chunks of this size with a sync after each, so that the fsyncs of
/// appends never wait behind many.
const ZERO_CHUNK_BYTES: u32 = 256 << 10;
/// The next segment's file, which has no header yet.
const SPARE: &str = "spare.tmp";

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The end up to which records do not grow the file.
    pub(crate) capacity: u32,
    /// The end of the records.
    pub(crate) end: AtomicU32,
    /// The offset up to which the file is known to be on disk.
    pub(crate) synced: AtomicU32,
    /// Bytes of entries that some group still needs.
    pub(crate) live: AtomicU64,
    /// Held during a sync. The error of the first failed sync stays.
    syncing: Mutex<Option<LogError>>,
}

impl Segment {
    pub(crate) fn new(
        number: u64,
        path: PathBuf,
        file: File,
        capacity: u32,
        end: u32,
        synced: u32,
    ) -> Segment {
        let (end, synced, live) = (AtomicU32::new(end), AtomicU32::new(synced), AtomicU64::new(0));
        Segment { number, path, file, capacity, end, synced, live, syncing: Mutex::default() }
    }

    pub(crate) fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn synced(&self) -> u32 {
        self.synced.load(Ordering::Acquire)
    }

    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// The file's size: that of a full segment, unless nothing was preallocated or a
    /// record was larger.
    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        self.file
            .metadata()
            .map(|file| file.len())
            .map_err(|e| LogError::io("look at", &self.path, e))
    }

    /// Makes everything written so far durable; false if it was already. After an error
    /// the state of the disk is unknown, and the caller poisons the log.
    ///
    /// Linux reports a write-back error once for each open file, to the first sync. The
    /// next sync succeeds although the bytes are not on disk. So syncs run one at a time,
    /// and a failure is returned by all later ones.
    pub(crate) fn sync(&self, disk: &dyn Disk) -> Result<bool, LogError> {
        let mut failure = self.syncing.lock();
        if let Some(failure) = &*failure {
            return Err(failure.clone());
        }
        let end = self.end();
        if self.synced() >= end {
            return Ok(false);
        }
        match disk.sync(&self.file) {
            Ok(()) => {
                self.synced.fetch_max(end, Ordering::AcqRel);
                Ok(true)
            }
            Err(error) => Err(failure.insert(LogError::io("sync", &self.path, error)).clone()),
        }
    }
}

/// A segment's file name.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.log")
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

pub(crate) fn header(number: u64, prev_end: u32) -> [u8; HEADER as usize] {
    let mut bytes = [0; HEADER as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..28].copy_from_slice(&prev_end.to_le_bytes());
    let crc = header_checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn header_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER as usize])
}

/// Checks a segment's header, and returns its `prev end`.
pub(crate) fn read_header(bytes: &[u8], number: u64) -> Result<u32, FormatError> {
    let Some(bytes) = bytes.first_chunk::<{ HEADER as usize }>() else {
        return Err(FormatError::Broken("the file is shorter than a segment's header"));
    };
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if &bytes[..8] != MAGIC {
        return Err(FormatError::Broken("not a segment of this log (magic)"));
    }
    if header_checksum(bytes) != word(12) {
        return Err(FormatError::Broken("checksum mismatch in the segment's header"));
    }
    if word(8) != VERSION {
        return Err(FormatError::Newer("a segment of a version that this build does not know"));
    }
    if bytes[16..24] != number.to_le_bytes() {
        return Err(FormatError::Broken("the segment's number is not the one of its file name"));
    }
    Ok(word(24))
}

/// Makes the next segment's file, `bytes` zeros on disk.
pub(crate) fn spare(
    dir: &Path,
    bytes: u32,
    preallocate: bool,
) -> Result<(File, PathBuf), LogError> {
    let path = dir.join(SPARE);
    let made = (|| {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        if preallocate {
            let zeros = vec![0; bytes.min(ZERO_CHUNK_BYTES) as usize];
            let mut at = 0;
            while at < bytes {
                let chunk = (bytes - at).min(zeros.len() as u32);
                file.write_all_at(&zeros[..chunk as usize], u64::from(at))?;
                file.sync_data()?;
                at += chunk;
            }
        }
        file.sync_all()?;
        Ok(file)
    })();
    match made {
        Ok(file) => Ok((file, path)),
        Err(e) => {
            // An incomplete spare is useless, and holds space that may be needed.
            let _ = std::fs::remove_file(&path);
            Err(LogError::io("preallocate", &path, e))
        }
    }
}

/// Turns an obsolete segment, which nothing reads any more, into the next segment's file.
pub(crate) fn recycle(dir: &Path, segment: Segment) -> Result<(File, PathBuf), LogError> {
    let path = dir.join(SPARE);
    std::fs::rename(&segment.path, &path).map_err(|e| LogError::io("recycle", &segment.path, e))?;
    // Synced before anything is written: under its old name, the file must keep its old
    // contents.
    sync_dir(dir)?;
    Ok((segment.file, path))
}

/// Removes the spare of an earlier process.
pub(crate) fn remove_spare(dir: &Path) -> Result<(), LogError> {
    let path = dir.join(SPARE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LogError::io("remove", &path, e)),
        _ => Ok(()),
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| LogError::io("sync", dir, e))
}
