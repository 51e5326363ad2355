//! Evaluation: from an op to its answer and its edits.

use crate::edits::Edits;
use crate::op::{Answer, Op, Refusal};
use crate::registry::{Effect, Look};
use crate::view::{Fault, Tx};

/// The reason why an op has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvalError {
    /// A deterministic "no", which left no edits.
    Refused(Refusal),
    /// The state below cannot be read; the batch must be thrown away and the replica
    /// stopped.
    Fault(Fault),
}

impl From<Refusal> for EvalError {
    fn from(refusal: Refusal) -> EvalError {
        EvalError::Refused(refusal)
    }
}

impl From<Fault> for EvalError {
    fn from(fault: Fault) -> EvalError {
        EvalError::Fault(fault)
    }
}

/// The outcome of an op.
pub type EvalResult = Result<Answer, EvalError>;

/// Evaluates one op: returns its answer and adds its changes to the batch's edits. A
/// refused op adds nothing. An op that would change more than fits one log entry
/// ([`Rules::edits_bytes_max`](crate::view::Rules::edits_bytes_max)) is refused.
pub fn eval(op: &Op, tx: &mut Tx<'_>) -> EvalResult {
    let too_large = match (op.effect(), op.look()) {
        (Effect::Write, Look::Some(_)) => Refusal::TooManyFields,
        (Effect::Write, Look::Row(_)) => Refusal::RowTooLarge,
        (Effect::Write, Look::One) | (Effect::Read | Effect::WritePart | Effect::AskWriter, _) => {
            return op.answer(tx);
        }
    };
    match tx.rules.edits_bytes_max() {
        None => op.answer(tx),
        Some(bytes_max) => eval_bounded(bytes_max, too_large, tx, |tx| op.answer(tx)),
    }
}

/// Runs `run` and takes over its edits as a whole. If they exceed `bytes_max` bytes,
/// nothing is taken over and the refusal is `too_large`.
pub fn eval_bounded<T>(
    bytes_max: usize,
    too_large: Refusal,
    tx: &mut Tx<'_>,
    run: impl FnOnce(&mut Tx<'_>) -> Result<T, EvalError>,
) -> Result<T, EvalError> {
    let mut edits = Edits::bounded(bytes_max);
    let answered =
        run(&mut Tx { view: &tx.state(), edits: &mut edits, stamp: tx.stamp, rules: tx.rules });
    // Its own outcome does not count here: it may have read back edits that were dropped.
    if edits.is_over() {
        return Err(too_large.into());
    }
    if answered.is_ok() {
        tx.edits.merge(edits);
    }
    answered
}
