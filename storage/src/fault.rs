//! Faults of the crates below as the fault of a call: one enum each, told apart by kind.
//!
//! `engine`, `row` and `cluster` do not know each other, so each has kinds of its own;
//! they meet here.

use cluster::{CallError, Fault, FaultKind};
use engine::log::LogError;
use engine::raft::{GroupError, GroupFault};
use engine::store;

/// Conversion of an error from below into the fault of a call.
pub(crate) trait IntoFault {
    /// The fault, with its kind.
    fn into_fault(self) -> Fault;
}

impl IntoFault for Fault {
    fn into_fault(self) -> Fault {
        self
    }
}

impl IntoFault for store::Fault {
    fn into_fault(self) -> Fault {
        Fault::new(of_engine(self.kind()), self.to_string())
    }
}

impl IntoFault for LogError {
    fn into_fault(self) -> Fault {
        log_fault(&self)
    }
}

impl IntoFault for GroupFault {
    fn into_fault(self) -> Fault {
        Fault::new(of_engine(self.kind), self.why)
    }
}

/// A group that could not be started, or does not work as it should.
impl IntoFault for GroupError {
    fn into_fault(self) -> Fault {
        match self {
            GroupError::Fatal(fault) => fault.into_fault(),
            error @ (GroupError::NotLeader { .. } | GroupError::Unknown(_)) => {
                Fault::internal(error.to_string())
            }
        }
    }
}

impl IntoFault for row::Fault {
    fn into_fault(self) -> Fault {
        let kind = match self.kind {
            row::FaultKind::Damaged => FaultKind::Damaged,
            row::FaultKind::Full => FaultKind::Full,
            row::FaultKind::Stalled => FaultKind::Stalled,
            row::FaultKind::Io => FaultKind::Io,
            row::FaultKind::Internal => FaultKind::Internal,
        };
        Fault::new(kind, self.message)
    }
}

impl IntoFault for std::io::Error {
    fn into_fault(self) -> Fault {
        Fault::new(of_engine(engine::FaultKind::of(&self)), self.to_string())
    }
}

/// A task that has panicked.
impl IntoFault for tokio::task::JoinError {
    fn into_fault(self) -> Fault {
        Fault::internal(self.to_string())
    }
}

/// A failure of the node's log as the fault of a call.
pub fn log_fault(error: &LogError) -> Fault {
    Fault::new(of_engine(error.kind()), error.to_string())
}

/// A failure of a store as the views of `row` report it.
pub(crate) fn of_view(fault: &store::Fault) -> row::Fault {
    let kind = match fault.kind() {
        engine::FaultKind::Damaged => row::FaultKind::Damaged,
        engine::FaultKind::Full => row::FaultKind::Full,
        engine::FaultKind::Stalled => row::FaultKind::Stalled,
        engine::FaultKind::Io => row::FaultKind::Io,
        engine::FaultKind::Internal => row::FaultKind::Internal,
    };
    row::Fault::new(kind, fault.to_string())
}

/// The error of a call that ends in a fault; the replica goes on.
pub(crate) fn call_error(error: impl IntoFault) -> CallError {
    CallError::Fault(error.into_fault())
}

fn of_engine(kind: engine::FaultKind) -> FaultKind {
    match kind {
        engine::FaultKind::Damaged => FaultKind::Damaged,
        engine::FaultKind::Full => FaultKind::Full,
        engine::FaultKind::Stalled => FaultKind::Stalled,
        engine::FaultKind::Io => FaultKind::Io,
        engine::FaultKind::Internal => FaultKind::Internal,
    }
}
