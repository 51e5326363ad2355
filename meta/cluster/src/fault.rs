//! A fault of storage as callers see it, with its kind.
//!
//! `engine` and `row` have faults of their own; the storage server maps them onto these,
//! so that a full disk, a damaged record and a disk that fails are told apart by every
//! server, whatever the message says.

use serde::{Deserialize, Serialize};

/// An I/O failure, corruption or an error in Bridle itself: nothing is answered, and the
/// replica has been stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Fault {
    /// Its kind, which decides who recovers.
    pub kind: FaultKind,
    /// The failed action and its reason, for the operator.
    pub message: String,
}

/// Kind of a [`Fault`]. Its number is a part of messages between servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// Stored bytes are not those that were written, or contradict each other.
    Damaged,
    /// The file system has no space left.
    Full,
    /// The store is behind with its flushes.
    Stalled,
    /// The operating system returned an error, or the store or the log is closed.
    Io,
    /// An error in Bridle itself, not of a disk: a panic, or an answer that does not fit
    /// its question.
    Internal,
}

impl FaultKind {
    /// One word for logs and status.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Damaged => "damaged",
            FaultKind::Full => "full",
            FaultKind::Stalled => "stalled",
            FaultKind::Io => "io",
            FaultKind::Internal => "internal",
        }
    }
}

impl Fault {
    /// A fault of a kind.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }

    /// Stored bytes that are not those that were written.
    pub fn damaged(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Damaged, message)
    }

    /// An error of the operating system.
    pub fn io(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Io, message)
    }

    /// An error in Bridle itself.
    pub fn internal(message: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Internal, message)
    }
}
