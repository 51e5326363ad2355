//! A store's failures, distinguished by the party that recovers from them.

use std::path::Path;

use rocksdb::ErrorKind;

use crate::FaultKind;
use crate::batch::BadBatch;

/// A store's failure. It is never an answer to a client: reads stop, or writes wait,
/// until it is resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file system has no space left. Reads work; writes wait, and resume
    /// automatically when space returns.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// Stored bytes are not those that were written. The replica is set aside.
    #[error("corrupt data in {file}: {reason}")]
    Corrupt {
        /// The damaged file, or the store's directory when RocksDB names none.
        file: String,
        /// RocksDB's message: the mismatch and its offset.
        reason: String,
    },
    /// The operating system returned an error. The replica is set aside.
    #[error("{doing}: {reason}")]
    Io {
        /// The failed action, with the path.
        doing: String,
        /// The error of the operating system.
        reason: String,
    },
    /// RocksDB is behind with flushes or compactions, so the write would wait. Returned
    /// only with [`OnStall::Fail`](super::OnStall).
    #[error("the store is behind with its flushes")]
    Stalled,
    /// An entry that is not a batch.
    #[error(transparent)]
    BadBatch(#[from] BadBatch),
    /// The store was closed or destroyed while in use.
    #[error("the store is closed")]
    Closed,
    /// Another process has the store open.
    #[error("{0} is in use by another process")]
    InUse(String),
}

impl Fault {
    /// The kind of the failure.
    pub fn kind(&self) -> FaultKind {
        match self {
            Fault::DiskFull(_) => FaultKind::Full,
            Fault::Corrupt { .. } | Fault::BadBatch(_) => FaultKind::Damaged,
            Fault::Stalled => FaultKind::Stalled,
            Fault::Io { .. } | Fault::Closed | Fault::InUse(_) => FaultKind::Io,
        }
    }

    pub(super) fn io(doing: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Fault::Io { doing: doing.into(), reason: reason.to_string() }
    }

    /// Classifies a RocksDB error. RocksDB's C API returns the status as text only, so
    /// the text decides. The phrases are RocksDB's fixed names of status codes
    /// (`util/status.cc`), not free text.
    pub(super) fn from_rocksdb(doing: &str, directory: &Path, error: rocksdb::Error) -> Self {
        let kind = error.kind();
        let text = error.into_string();
        match kind {
            _ if is_no_space(&text) => Fault::DiskFull(text),
            ErrorKind::Incomplete => Fault::Stalled,
            ErrorKind::ShutdownInProgress => Fault::Closed,
            ErrorKind::IOError if text.contains("/LOCK: ") => {
                Fault::InUse(directory.display().to_string())
            }
            _ => Fault::from_text(doing, directory, text),
        }
    }

    /// Classifies the text of a RocksDB status.
    pub(super) fn from_text(doing: &str, directory: &Path, text: String) -> Self {
        if is_no_space(&text) {
            Fault::DiskFull(text)
        } else if text.starts_with("Corruption") || missing_part(&text) {
            Fault::Corrupt {
                file: named_file(&text).unwrap_or_else(|| directory.display().to_string()),
                reason: text,
            }
        } else {
            Fault::io(format!("{doing} {}", directory.display()), text)
        }
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault.kind() {
            FaultKind::Full => std::io::ErrorKind::StorageFull,
            FaultKind::Damaged => std::io::ErrorKind::InvalidData,
            FaultKind::Stalled | FaultKind::Io | FaultKind::Internal => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, fault)
    }
}

/// RocksDB's texts of `Status::SubCode::kNoSpace` and `kSpaceLimit`, and of the system
/// call below it.
pub(super) fn is_no_space(text: &str) -> bool {
    [
        "No space left on device",
        "NoSpace",
        "Max allowed space was reached",
        "Disk quota exceeded",
        "File too large",
    ]
    .iter()
    .any(|phrase| text.contains(phrase))
}

/// True if a file is missing that the manifest names.
fn missing_part(text: &str) -> bool {
    text.contains("No such file or directory") && named_file(text).is_some()
}

/// The file that RocksDB's message names: its first word that looks like a file of a
/// store.
pub(super) fn named_file(text: &str) -> Option<String> {
    let looks_like_one = |word: &&str| {
        let name = word.rsplit('/').next().unwrap_or(word);
        name.ends_with(".sst")
            || name.starts_with("MANIFEST-")
            || name == "CURRENT"
            || name.ends_with(".log")
            || name == "IDENTITY"
            || name.starts_with("OPTIONS-")
    };
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| ",;:()'\"".contains(c)))
        .find(looks_like_one)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_damaged_file_is_found_in_rocksdbs_words() {
        for (text, file) in [
            (
                "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in \
                 /d/db-0/000012.sst offset 0 size 990",
                Some("/d/db-0/000012.sst"),
            ),
            ("Corruption: CURRENT file corrupted", Some("CURRENT")),
            (
                "IO error: No such file or directory: While open a file for random read: \
                 /d/000009.sst: No such file or directory",
                Some("/d/000009.sst"),
            ),
            ("Corruption: VersionEdit: unknown tag", None),
        ] {
            assert_eq!(named_file(text).as_deref(), file, "{text}");
        }
    }

    #[test]
    fn no_space_is_told_from_other_errors() {
        assert!(is_no_space(
            "IO error: No space left on device: While appending to file: /d/000012.sst: No space \
             left on device"
        ));
        assert!(!is_no_space("IO error: Input/output error: While pread"));
    }
}
