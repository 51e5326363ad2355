//! Kinds of failures of a store, a log or a Raft group.
//!
//! Stores, logs and groups have errors of their own ([of a store](crate::store::Fault),
//! [of a log](crate::log::LogError), [of a group](crate::raft::GroupFault)) that say
//! what failed. Their kind says who recovers: callers react to it and never to a text.

use std::error::Error;
use std::io;

use serde::{Deserialize, Serialize};

use crate::log::LogError;
use crate::raft::ErrorCause;
use crate::store;

/// Kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// Stored bytes are not those that were written: another replica has a copy.
    Damaged,
    /// The file system has no space left: writes come back with the space.
    Full,
    /// The disk is behind with what it is to write: later is better.
    Stalled,
    /// The operating system returned an error, or the store or the log is closed: the
    /// operator looks at the disk.
    Io,
    /// A bug, a wrong call, or bytes of a newer version: nothing on the disk is at fault.
    Internal,
}

impl FaultKind {
    /// The kind of an error that holds one of the engine's, or came from the operating
    /// system. Any other error is [internal](FaultKind::Internal).
    pub fn of(error: &(dyn Error + 'static)) -> FaultKind {
        let mut kind = FaultKind::Internal;
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<store::Fault>() {
                return fault.kind();
            }
            if let Some(error) = error.downcast_ref::<LogError>() {
                return error.kind();
            }
            if let Some(cause) = error.downcast_ref::<ErrorCause>() {
                return cause.kind();
            }
            if error.is::<tokio::task::JoinError>() {
                return FaultKind::Internal;
            }
            // The inner error of an `io::Error` is not among its sources.
            next = match error.downcast_ref::<io::Error>() {
                Some(error) => {
                    kind = match error.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                            FaultKind::Full
                        }
                        io::ErrorKind::InvalidData => FaultKind::Damaged,
                        _ => FaultKind::Io,
                    };
                    error.get_ref().map(|inner| inner as &(dyn Error + 'static))
                }
                None => error.source(),
            };
        }
        kind
    }
}
