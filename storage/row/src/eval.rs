//! From an op to its answer and its edits.

use crate::op::{Answer, Op, Refusal};
use crate::view::{Fault, Tx};
use crate::{keys, string};

/// Why an op has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// A deterministic "no", which left no edits.
    Refused(Refusal),
    /// The state below cannot be read; the batch must be thrown away and the replica stopped.
    Fault(Fault),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Failed {
        Failed::Refused(refusal)
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Failed {
        Failed::Fault(fault)
    }
}

/// What becomes of an op.
pub type Answered = Result<Answer, Failed>;

/// Evaluates one op: answers, and adds what it changes to the batch's edits; a refused op adds nothing.
pub fn eval(op: &Op, tx: &mut Tx<'_>) -> Answered {
    match op {
        Op::Inspect { key } => keys::inspect(tx, key),
        Op::Delete { key } => keys::delete(tx, key),
        Op::Get { key } => string::get(tx, key),
        Op::Set { key, value, ttl, only, want_old } => string::set(tx, key, value, *ttl, *only, *want_old),
        other => Err(Failed::Fault(Fault(format!("not built yet: {other:?}")))),
    }
}
