//! A segment: one file of the log, filled from front to back and then only read.
//!
//! # Layout
//! `<number, 20 decimal digits>.log`, of its full size when it begins (overwriting
//! allocated blocks makes an fdatasync cheaper than growing a file: no journal commit;
//! and the space is there before anything is promised): a file of zeros, or one whose
//! records nobody needs any more. Integers are little-endian.
//!
//! ```text
//!  0          8         12       16         24         28
//!  +----------+---------+--------+----------+----------+------------------------------------------+
//!  | "BRDLLOG\n" | version | crc32c | number   | prev end | records ..., [`TRAILER`] zeros, anything |
//!  +----------+---------+--------+----------+----------+------------------------------------------+
//!    8 bytes    u32 = 1   u32      u64        u32
//! ```
//!
//! Each write ends with zeros, as far as there is room, which the next one overwrites: so
//! the end of the records is told from a torn one though the file held others before.
//! Those cannot pass for records of this segment, whose number is in their checksums.
//!
//! `crc32c` covers the header without itself. `prev end` is where the records of the
//! segment before end (0 when there was none): a segment that has a successor is complete
//! and its end is known exactly. The successor gets its name only after it and its
//! predecessor are on the disk.

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
/// Zeros behind what is written: as many as a record's header has.
pub(crate) const TRAILER: usize = super::record::HEADER;
/// So many zeros are written at a time, each followed by a sync, so that the fsyncs of
/// appends never wait behind many.
const ZERO_CHUNK_BYTES: u32 = 256 << 10;
/// The next segment, without a header of its own yet.
const SPARE: &str = "spare.tmp";

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// How far records may go without growing the file.
    pub(crate) capacity: u32,
    /// Where the records end.
    pub(crate) end: AtomicU32,
    /// Up to where the file is known to be on the disk.
    pub(crate) synced: AtomicU32,
    /// Bytes of entries that some group still needs.
    pub(crate) live: AtomicU64,
    /// Held by who syncs; how it failed, once it has.
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

    /// How large the file is: the full size of a segment unless nothing was allocated
    /// beforehand, or a record was larger.
    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        self.file
            .metadata()
            .map(|file| file.len())
            .map_err(|e| LogError::io("look at", &self.path, e))
    }

    /// Makes everything written so far durable; false: it was already. An error means
    /// that nobody knows what is on the disk: the caller poisons the log.
    ///
    /// Linux tells an error of writing back once for each open file, to whoever syncs
    /// first, and the next sync succeeds although the bytes are not there. So one syncs
    /// at a time, and a failure is everybody's from then on.
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

/// The number in a file name that [`file_name`] made.
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

/// The `prev end` of the segment that `bytes` begin, or what is wrong with them.
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

/// A file of zeros for the next segment, on the disk. `bytes` = its size.
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
            // Half a spare is of no use and holds space that may be short.
            let _ = std::fs::remove_file(&path);
            Err(LogError::io("preallocate", &path, e))
        }
    }
}

/// Makes the next segment's file of one that nobody needs or reads any more.
pub(crate) fn recycle(dir: &Path, segment: Segment) -> Result<(File, PathBuf), LogError> {
    let path = dir.join(SPARE);
    std::fs::rename(&segment.path, &path).map_err(|e| LogError::io("recycle", &segment.path, e))?;
    // Before anything is written: under its old name, the file must be what it was.
    sync_dir(dir)?;
    Ok((segment.file, path))
}

/// Removes a spare that an earlier process left.
pub(crate) fn remove_spare(dir: &Path) -> Result<(), LogError> {
    let path = dir.join(SPARE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LogError::io("remove", &path, e)),
        _ => Ok(()),
    }
}

/// Makes names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| LogError::io("sync", dir, e))
}
