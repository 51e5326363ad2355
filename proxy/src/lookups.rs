//! Keyspace hits and misses, by Redis's rules.
//!
//! A command that reads a key counts, by key and not by field: HGET of a missing field of
//! an existing hash is a hit, and so is a key of the wrong type. Commands that only write
//! do not count, nor do commands about the server itself (MEMORY USAGE, SCAN, WATCH). The
//! command table says which ones count ([`commands::table::flags::LOOKUP`]).

use row::op::{Answer, Refusal};

use crate::router::Outcome;
use crate::stats::Stats;

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
