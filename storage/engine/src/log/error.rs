//! Failures of the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::FaultKind;

/// Failures of the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system returned an error.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// The failed action.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: Arc<io::Error>,
    },
    /// No space (or quota) left for the log.
    #[error("no space left for the log: {what} {}", path.display())]
    DiskFull {
        /// The failed action.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// Stored bytes are not those that were written. The log refuses to open, since it
    /// may lack acknowledged entries.
    #[error("the log is damaged: {} at byte {offset}: {why}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The offset of the damage.
        offset: u64,
        /// The kind of damage.
        why: &'static str,
    },
    /// Entries are missing, though every record is whole: files are missing, or belong to
    /// another log.
    #[error("the log in {} is incomplete: group {group}: {why}", dir.display())]
    Incomplete {
        /// The log's directory.
        dir: PathBuf,
        /// The group that lacks entries.
        group: u64,
        /// The missing entries.
        why: String,
    },
    /// The bytes are whole, but of a format that this build does not know. Nothing is
    /// changed, so the version that wrote them can go on.
    #[error("{} was written by a newer version: at byte {offset}: {why}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The offset of the unknown bytes.
        offset: u64,
        /// The unknown part.
        why: &'static str,
    },
    /// More bytes wait to be written than the bound allows: the disk is too slow. Nothing
    /// was proposed.
    #[error("the log's disk does not keep up: {bytes} bytes wait for it")]
    Behind {
        /// The bytes that wait.
        bytes: u64,
    },
    /// The directory contains no log although it must
    /// ([`LogOptions::must_exist`](super::LogOptions::must_exist)). The votes and the
    /// entries that stores had not flushed are lost with it.
    #[error(
        "log directory {} is missing its segments although the data directory was written with \
         them; restore them or start with an empty data directory",
        dir.display()
    )]
    Missing {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The log stopped after an earlier failure: the state of the disk is unknown, so
    /// nothing more is written.
    #[error("the log stopped after: {0}")]
    Poisoned(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The caller asked for something that a log cannot do, such as leaving a hole.
    #[error("not a log operation: {0}")]
    InvalidOperation(String),
}

impl LogError {
    /// The kind of the failure.
    pub fn kind(&self) -> FaultKind {
        match self {
            LogError::Io { .. } | LogError::Poisoned(_) | LogError::Closed => FaultKind::Io,
            LogError::DiskFull { .. } => FaultKind::Full,
            LogError::Corrupt { .. } | LogError::Incomplete { .. } | LogError::Missing { .. } => {
                FaultKind::Damaged
            }
            LogError::Behind { .. } => FaultKind::Stalled,
            LogError::Newer { .. } | LogError::InvalidOperation(_) => FaultKind::Internal,
        }
    }

    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> LogError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                LogError::DiskFull { what, path }
            }
            _ => LogError::Io { what, path, source: Arc::new(source) },
        }
    }
}

impl From<LogError> for io::Error {
    fn from(e: LogError) -> io::Error {
        let kind = match &e {
            LogError::Io { source, .. } => source.kind(),
            LogError::DiskFull { .. } => io::ErrorKind::StorageFull,
            LogError::Corrupt { .. } | LogError::Incomplete { .. } | LogError::Missing { .. } => {
                io::ErrorKind::InvalidData
            }
            LogError::Newer { .. } => io::ErrorKind::Unsupported,
            LogError::Behind { .. } => io::ErrorKind::WouldBlock,
            LogError::InvalidOperation(_) => io::ErrorKind::InvalidInput,
            LogError::Poisoned(_) | LogError::Closed => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}
