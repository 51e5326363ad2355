//! Keyspace hits and misses, by Redis's rules.
//!
//! A command that reads a key counts, by key and not by field: HGET of a missing field of
//! an existing hash is a hit, and so is a key of the wrong type. Commands that only write
//! do not count, nor do commands about the server itself (MEMORY USAGE, SCAN, WATCH).

use row::op::{Answer, Op, Refusal};
use row::{HashOp, RowOp, StringOp};

use crate::router::Outcome;
use crate::stats::Stats;

/// `true` for ops that count as a look-up of a key.
pub(crate) fn is_lookup(op: &Op) -> bool {
    match op {
        Op::Row(RowOp::Inspect { .. })
        | Op::Row(RowOp::Encoding { .. })
        | Op::Row(RowOp::Dump { .. })
        | Op::Row(RowOp::Copy { .. }) => true,
        Op::String(StringOp::Get { .. })
        | Op::String(StringOp::GetRange { .. })
        | Op::String(StringOp::Len { .. })
        | Op::String(StringOp::GetDelete { .. })
        | Op::String(StringOp::GetExpire { .. }) => true,
        Op::String(StringOp::Set { want_old, .. }) => *want_old,
        Op::Hash(HashOp::Get { .. })
        | Op::Hash(HashOp::Len { .. })
        | Op::Hash(HashOp::Range { .. })
        | Op::Hash(HashOp::Scan { .. }) => true,
        Op::Hash(HashOp::Random { .. }) | Op::Hash(HashOp::Expiry { .. }) => true,
        _ => false,
    }
}

/// `true` if the key was found.
fn is_hit(outcome: &Outcome) -> bool {
    match outcome {
        // A hash without fields does not exist.
        Ok(
            Answer::Nil | Answer::Row(None) | Answer::Written { old: None, .. } | Answer::Int(0),
        ) => false,
        Ok(_) => true,
        Err(refusal) => *refusal != Refusal::KeyTooLong,
    }
}

/// Counts the outcomes of look-ups.
pub(crate) fn count(stats: &Stats, outcomes: &[Outcome]) {
    let hits = outcomes.iter().filter(|outcome| is_hit(outcome)).count();
    if hits > 0 {
        stats.keyspace_hits.add(hits as u64);
    }
    if hits < outcomes.len() {
        stats.keyspace_misses.add((outcomes.len() - hits) as u64);
    }
}
