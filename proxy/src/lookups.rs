//! Hits and misses: how often clients looked a key up that was there, or was not, by
//! Redis's rules.
//!
//! What reads a key counts, by the key and not by the field: HGET of a missing field of a
//! hash that is there is a hit, and so is a key of the wrong kind. What only writes does
//! not count, nor what is about the server itself (MEMORY USAGE, SCAN, WATCH).

use row::op::{Answer, Op, Refusal};

use crate::router::Outcome;
use crate::stats::Stats;

/// Whether an op looks a key up.
pub(crate) fn is_lookup(op: &Op) -> bool {
    match op {
        Op::Inspect { .. } | Op::Encoding { .. } | Op::Dump { .. } | Op::Copy { .. } => true,
        Op::StringGet { .. }
        | Op::StringGetRange { .. }
        | Op::StringLen { .. }
        | Op::StringGetDelete { .. }
        | Op::StringGetExpire { .. } => true,
        Op::StringSet { want_old, .. } => *want_old,
        Op::HashGet { .. } | Op::HashLen { .. } | Op::HashRange { .. } | Op::HashScan { .. } => {
            true
        }
        Op::HashRandom { .. } | Op::HashExpiry { .. } => true,
        _ => false,
    }
}

/// Whether a key that was looked up was there.
fn is_hit(outcome: &Outcome) -> bool {
    match outcome {
        // A hash without fields is none.
        Ok(
            Answer::Nil | Answer::Row(None) | Answer::Written { old: None, .. } | Answer::Int(0),
        ) => false,
        Ok(_) => true,
        Err(refusal) => *refusal != Refusal::KeyTooLong,
    }
}

/// Counts what became of look-ups.
pub(crate) fn count(stats: &Stats, outcomes: &[Outcome]) {
    let hits = outcomes.iter().filter(|outcome| is_hit(outcome)).count();
    if hits > 0 {
        stats.keyspace_hits.add(hits as u64);
    }
    if hits < outcomes.len() {
        stats.keyspace_misses.add((outcomes.len() - hits) as u64);
    }
}
