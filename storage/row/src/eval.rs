//! Evaluation: from an op to its answer and its edits.

use crate::edits::Edits;
use crate::op::{Answer, Op, Refusal};
use crate::view::{Fault, Tx};
use crate::{expire, generic, hash, hash_expiry, hash_range, pegasus, scan, string};

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
    match tx.rules.edits_bytes_max().filter(|_| op.may_change_much()) {
        None => answer(op, tx),
        Some(bytes_max) => {
            let too_large = if matches!(op, Op::Rename { .. } | Op::Copy { .. }) {
                Refusal::RowTooLarge
            } else {
                Refusal::TooManyFields
            };
            eval_bounded(bytes_max, too_large, tx, |tx| answer(op, tx))
        }
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

fn answer(op: &Op, tx: &mut Tx<'_>) -> EvalResult {
    use Op::*;
    match op {
        Inspect { key } => generic::inspect(tx, key),
        Size { key, samples } => generic::size(tx, key, *samples),
        Delete { key } => generic::delete(tx, key),
        Expire { key, until, only } => generic::expire(tx, key, *until, *only),
        Persist { key } => generic::persist(tx, key),
        Rename { from, to, only_new } => generic::rename(tx, from, to, *only_new),
        Copy { from, to, replace } => generic::copy(tx, from, to, *replace),
        Dump { key } => generic::dump(tx, key),
        Restore { key, content, ttl, replace } => {
            generic::restore(tx, key, content, *ttl, *replace)
        }
        Encoding { key } => generic::encoding(tx, key),
        Watch { key } => generic::watch(tx, key),
        // Without a replica there is no log, so nothing is on disk.
        Sync => Ok(Answer::Int(0)),

        Scan { cursor, count, glob, kind } => scan::scan(tx, *cursor, *count, glob.as_ref(), *kind),
        FirstAtOrAfter { cursor } => scan::nearest(tx, *cursor),
        Rows => scan::rows(tx),
        Expiring => scan::expiring(tx),
        Clear => scan::clear(tx),
        ExpireDue { items } => expire::expire_due(tx, items),
        SetDefaultTtl { ttl_ms, set_at_ms } => scan::set_default_ttl(tx, *ttl_ms, *set_at_ms),
        AdvanceClock { at_ms } => {
            tx.is_expired(Some(*at_ms));
            Ok(Answer::Ok)
        }

        StringGet { key } => string::get(tx, key),
        StringGetDelete { key } => string::get_delete(tx, key),
        StringGetExpire { key, ttl } => string::get_expire(tx, key, *ttl),
        StringSet { key, value, ttl, only, want_old } => {
            string::set(tx, key, value, *ttl, *only, *want_old)
        }
        StringSetAllIfAbsent { pairs } => string::set_all_new(tx, pairs),
        StringAppend { key, value } => string::append(tx, key, value),
        StringIncr { key, by } => string::add(tx, key, *by),
        StringIncrFloat { key, by } => string::add_float(tx, key, by),
        StringGetRange { key, start, end } => string::get_range(tx, key, *start, *end),
        StringSetRange { key, offset, value } => string::set_range(tx, key, *offset, value),
        StringLen { key } => string::length(tx, key),

        HashPut { key, pairs, only, ttl } => hash::put(tx, key, pairs, *only, *ttl),
        HashGet { key, fields } => hash::get(tx, key, fields),
        HashGetDelete { key, fields } => hash::get_delete(tx, key, fields),
        HashGetExpire { key, fields, ttl } => hash::get_expire(tx, key, fields, *ttl),
        HashDelete { key, fields } => hash::delete(tx, key, fields),
        HashLen { key } => hash::len(tx, key),
        HashIncr { key, field, by } => hash::add(tx, key, field, *by),
        HashIncrFloat { key, field, by } => hash::add_float(tx, key, field, by),
        HashRandom { key, count, seed, want_values } => {
            hash::random(tx, key, *count, *seed, *want_values)
        }
        HashRange { key, range, want_values } => hash_range::range(tx, key, range, *want_values),
        HashRangeCount { key, range } => hash_range::count(tx, key, range),
        HashRangeDelete { key, range } => hash_range::delete(tx, key, range),
        HashScan { key, cursor, count, glob, want_values } => {
            hash_range::scan(tx, key, *cursor, *count, glob.as_ref(), *want_values)
        }
        HashExpire { key, fields, until, only } => {
            hash_expiry::expire(tx, key, fields, *until, *only)
        }
        HashExpiry { key, fields, remaining } => hash_expiry::expiry(tx, key, fields, *remaining),
        HashPersist { key, fields } => hash_expiry::persist(tx, key, fields),
        CheckAndMutate { key, check_sortkey, check, operand, mutations, want_value } => {
            pegasus::check_and_mutate(
                tx,
                key,
                check_sortkey,
                *check,
                operand,
                mutations,
                *want_value,
            )
        }
    }
}
