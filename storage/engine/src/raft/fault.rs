//! The failure by which a Raft group ends, and its kind on the way through openraft.
//!
//! Stores and logs tell openraft of a failure as an `io::Error`, and openraft keeps it as
//! an [`ErrorCause`] until it is asked why it has ended.

use std::error::Error;
use std::fmt;
use std::io;

use openraft::errors::{ErrorSource, Fatal};
use serde::{Deserialize, Serialize};

use super::types::Types;
use crate::{FaultKind, store};

/// The failure by which a group has ended or could not be started: a storage error or a
/// bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct GroupFault {
    /// The kind of the failure.
    pub kind: FaultKind,
    /// The reason, for the operator.
    pub why: String,
}

impl GroupFault {
    pub(super) fn new(kind: FaultKind, why: impl Into<String>) -> GroupFault {
        GroupFault { kind, why: why.into() }
    }

    /// A bug or a wrong call.
    pub(super) fn internal(why: impl fmt::Display) -> GroupFault {
        GroupFault::new(FaultKind::Internal, why.to_string())
    }
}

impl From<store::Fault> for GroupFault {
    fn from(fault: store::Fault) -> Self {
        GroupFault::new(fault.kind(), fault.to_string())
    }
}

impl From<io::Error> for GroupFault {
    fn from(error: io::Error) -> Self {
        GroupFault::new(FaultKind::of(&error), error.to_string())
    }
}

impl From<Fatal<Types>> for GroupFault {
    fn from(error: Fatal<Types>) -> Self {
        let kind = match &error {
            Fatal::StorageError(error) => FaultKind::of(error),
            Fatal::Panicked => FaultKind::Internal,
            Fatal::Stopped => FaultKind::Io,
        };
        GroupFault::new(kind, error.to_string())
    }
}

/// The cause of an error of openraft: its kind and its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCause {
    kind: FaultKind,
    text: Box<str>,
}

impl fmt::Display for ErrorCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for ErrorCause {}

impl ErrorCause {
    /// The kind of the failure.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }
}

impl ErrorSource for ErrorCause {
    fn from_error<E: Error + 'static>(error: &E) -> Self {
        ErrorCause { kind: FaultKind::of(error), text: error.to_string().into() }
    }

    /// openraft itself says so: nothing on the disk is at fault.
    fn from_string(text: impl ToString) -> Self {
        ErrorCause { kind: FaultKind::Internal, text: text.to_string().into() }
    }
}

#[cfg(test)]
mod tests {
    use openraft::StorageError;

    use super::*;
    use crate::log::LogError;

    #[test]
    fn a_kind_survives_openraft() {
        let corrupt = store::Fault::Corrupt { file: "000012.sst".into(), reason: "x".into() };
        let full = LogError::DiskFull { what: "append to", path: "/log/1".into() };
        let from_disk = io::Error::from_raw_os_error(5);
        for (error, kind) in [
            (io::Error::from(corrupt), FaultKind::Damaged),
            (io::Error::from(full), FaultKind::Full),
            (from_disk, FaultKind::Io),
            (io::Error::other(LogError::Closed), FaultKind::Io),
        ] {
            let text = error.to_string();
            let error = StorageError::<Types>::write(ErrorCause::from_error(&error));
            let fault = GroupFault::from(Fatal::StorageError(error));
            assert_eq!(fault.kind, kind, "{fault}");
            assert!(fault.why.ends_with(&text), "{fault}");
        }
        assert_eq!(GroupFault::from(Fatal::Panicked).kind, FaultKind::Internal);
        assert_eq!(ErrorCause::from_string("no such log").kind, FaultKind::Internal);
    }
}
