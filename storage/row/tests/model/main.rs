//! Random ops against a model that is simple enough to be believed, and the invariants of `lib.rs` after every batch.
//!
//! A failing run is shrunk and printed, and its seed is kept in `proptest-regressions/`, from where it is run again first.

mod invariants;
mod model;
mod ops;

use proptest::prelude::*;
use row::memory::Memory;
use row::view::Rules;
use row::{Edits, Failed, Op, Stamp, Tx, eval};

use crate::model::Model;

/// One batch: how much later than the last it comes, and its ops.
type Batch = (u64, Vec<Op>);

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec((0..40u64, prop::collection::vec(ops::op(), 1..8)), 1..12)
}

fn run(batches: Vec<Batch>, default_ttl_ms: u64) {
    let rules = Rules { default_ttl_ms, ..Rules::default() };
    let (mut memory, mut model) = (Memory::new(), Model::default());
    let mut now_ms = 1_000;
    for (later, batch) in batches {
        now_ms += later;
        let stamp = Stamp { now_ms, timetag: now_ms << 16 };
        let mut edits = Edits::default();
        for op in batch {
            let before = edits.clone();
            let answer = match eval(&op, &mut Tx { view: &memory, edits: &mut edits, stamp, rules }) {
                Ok(answer) => Ok(answer),
                Err(Failed::Refused(refusal)) => Err(refusal),
                Err(Failed::Fault(fault)) => panic!("{op:?}: {fault}"),
            };
            if answer.is_err() || !op.is_write() {
                assert_eq!(edits, before, "{op:?} refused or only read, and left edits");
            }
            if !matches!(op, Op::ExpireDue { .. }) {
                assert_eq!(answer, model.eval(&op, now_ms, default_ttl_ms), "{op:?} at {now_ms}");
            }
        }
        memory.apply(edits);
        invariants::check(&memory);
        invariants::same(&memory, &model.rows(now_ms), stamp, rules);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_what_the_model_says(batches in batches()) {
        run(batches, 0);
    }

    #[test]
    fn rows_are_what_the_model_says_with_a_default_ttl(batches in batches()) {
        run(batches, 25);
    }
}
