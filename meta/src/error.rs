//! Why meta did not do what it was asked.

use cluster::{CallError, Fault, FaultKind};
use engine::raft::{GroupError, GroupFault};
use engine::store;

use crate::state::Refusal;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// It makes no sense here; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another meta leads, or none; nothing was changed.
    #[error(
        "this meta does not lead; {}",
        .leader.as_ref().map_or_else(
            || "no leader is known".to_owned(),
            |leader| format!("the leader is {leader}"),
        )
    )]
    NotLeading {
        /// The leader's address, as far as it is known.
        leader: Option<String>,
    },
    /// Not now; nothing was changed.
    #[error("{0}")]
    NotNow(String),
    /// Not while the disk is full; nothing was changed.
    #[error("{0}")]
    DiskFull(String),
    /// It may have been carried out or not.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It was carried out; storage has not followed yet.
    #[error("{0}")]
    NotYet(String),
    /// I/O failure or corruption.
    #[error("meta storage fault: {0}")]
    Fault(Fault),
}

impl From<store::Fault> for MetaError {
    fn from(fault: store::Fault) -> Self {
        MetaError::Fault(Fault::new(kind(fault.kind()), fault.to_string()))
    }
}

impl From<GroupFault> for MetaError {
    fn from(fault: GroupFault) -> Self {
        MetaError::Fault(Fault::new(kind(fault.kind), fault.why))
    }
}

/// A task of meta has panicked.
impl From<tokio::task::JoinError> for MetaError {
    fn from(error: tokio::task::JoinError) -> Self {
        MetaError::Fault(Fault::internal(error.to_string()))
    }
}

fn kind(kind: engine::FaultKind) -> FaultKind {
    match kind {
        engine::FaultKind::Damaged => FaultKind::Damaged,
        engine::FaultKind::Full => FaultKind::Full,
        engine::FaultKind::Stalled => FaultKind::Stalled,
        engine::FaultKind::Io => FaultKind::Io,
        engine::FaultKind::Internal => FaultKind::Internal,
    }
}

impl From<MetaError> for CallError {
    fn from(error: MetaError) -> Self {
        match error {
            // A write that needs a table which can't be: as final as a node without
            // space, and worded by the reason.
            MetaError::Refused(refusal) => CallError::ReadOnly(refusal.to_string()),
            MetaError::DiskFull(why) => CallError::ReadOnly(why),
            MetaError::NotLeading { .. } => CallError::NoLeader(error.to_string()),
            MetaError::NotNow(why) | MetaError::NotYet(why) => CallError::NoLeader(why),
            MetaError::Unknown(why) => CallError::Unknown(why),
            MetaError::Fault(fault) => CallError::Fault(fault),
        }
    }
}

impl From<GroupError> for MetaError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NotLeader { .. } => MetaError::NotLeading { leader: None },
            GroupError::Unknown(why) => MetaError::Unknown(why),
            GroupError::Fatal(fault) => fault.into(),
        }
    }
}
