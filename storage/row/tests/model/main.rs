//! Random ops against a model that is simple enough to be believed, and the invariants of
//! `lib.rs` after every batch.
//!
//! A failing run is shrunk and printed, and its seed is kept in `proptest-regressions/`,
//! from where it is run again first.

mod invariants;
mod model;
mod ops;

use proptest::prelude::*;
use row::memory::{Memory, Reader};
use row::view::Rules;
use row::{Answer, Edits, EvalError, HashOp, Op, PartitionOp, RowOp, Stamp, StringOp, Tx, eval};

use crate::model::Model;

/// One batch: how much later than the last it comes, and its ops.
type Batch = (u64, Vec<Op>, Cycle);

/// The expiry cycle's part in a batch: the number of states before the present one in
/// which it searched, and the pieces of work after which the writer is spent.
type Cycle = (usize, u64);

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec(
        (0..40u64, prop::collection::vec(ops::op(), 1..8), (0..3usize, 1..5u64)),
        1..12,
    )
}

/// Ops that name no time of their own: two moments differ for them in what is past, and
/// in nothing else.
fn is_timeless(op: &Op) -> bool {
    !matches!(op, Op::Hash(HashOp::Expiry { remaining: true, .. }))
        && (!op.is_write()
            || matches!(
                op,
                Op::Row(
                    RowOp::Delete { .. }
                        | RowOp::Persist { .. }
                        | RowOp::Rename { .. }
                        | RowOp::Copy { .. }
                ) | Op::String(StringOp::GetDelete { .. })
                    | Op::Hash(
                        HashOp::Delete { .. }
                            | HashOp::GetDelete { .. }
                            | HashOp::RangeDelete { .. }
                            | HashOp::Persist { .. }
                    )
            ))
}

fn run(batches: Vec<Batch>, default_ttl_ms: u64) {
    let rules = Rules { default_ttl_ms, ..Rules::default() };
    let (mut memory, mut model) = (Memory::new(), Model::default());
    let mut now_ms = 1_000;
    // The states before, and when they were.
    let mut states = vec![(memory.clone(), now_ms)];
    for (later, batch, (age, pieces)) in batches {
        now_ms += later;
        let stamp = Stamp { now_ms, timetag: now_ms << 16 };
        let mut edits = Edits::default();
        for mut op in batch {
            if let Op::Partition(PartitionOp::ExpireDue { items }) = &mut op {
                // The cycle looks into a state that may have changed by now, by the clock
                // of that time or of this.
                let (state, then_ms) = &states[states.len().saturating_sub(1 + age)];
                let now_ms = if pieces % 2 == 0 { now_ms } else { *then_ms };
                *items = state
                    .due(Stamp { now_ms, ..stamp }, rules)
                    .expect("memory has no faults")
                    .items;
            }
            let before = edits.clone();
            let view = Reader::new(&memory).spent_after(pieces);
            let at = |stamp: Stamp, edits: &mut Edits| match eval(
                &op,
                &mut Tx { view: &view, edits, stamp, rules },
            ) {
                Ok(answer) => Ok(answer),
                Err(EvalError::Refused(refusal)) => Err(refusal),
                Err(EvalError::Fault(fault)) => panic!("{op:?}: {fault}"),
            };
            let answer = at(stamp, &mut edits);
            if edits == before && is_timeless(&op) {
                // Nothing else was taken for past: the answer is the same as soon as that
                // is.
                let then = Stamp { now_ms: view.past_ms(), ..stamp };
                assert_eq!(
                    at(then, &mut before.clone()),
                    answer,
                    "{op:?} at {now_ms} does not rest on {} alone",
                    then.now_ms
                );
            }
            if answer.is_err() || !op.is_write() {
                assert_eq!(edits, before, "{op:?} refused or only read, and left edits");
            }
            if !matches!(op, Op::Partition(PartitionOp::ExpireDue { .. })) {
                assert_eq!(answer, model.eval(&op, now_ms, default_ttl_ms), "{op:?} at {now_ms}");
            }
        }
        memory.apply(edits);
        states.push((memory.clone(), now_ms));
        invariants::check(&memory);
        invariants::same(&memory, &model.rows(now_ms), stamp, rules);
    }
    // Later, the cycle removes all that is past, in steps, and nothing else.
    now_ms += 2_000;
    let stamp = Stamp { now_ms, timetag: now_ms << 16 };
    let seen = model.rows(now_ms);
    for _ in 0..1_000 {
        let items = memory.due(stamp, rules).expect("memory has no faults").items;
        if items.is_empty() {
            break;
        }
        let mut edits = Edits::default();
        let view = Reader::new(&memory).spent_after(1);
        eval(
            &Op::Partition(PartitionOp::ExpireDue { items }),
            &mut Tx { view: &view, edits: &mut edits, stamp, rules },
        )
        .expect("a step is never refused");
        memory.apply(edits);
        invariants::check(&memory);
        invariants::same(&memory, &seen, stamp, rules);
    }
    let rows = eval(
        &Op::Partition(PartitionOp::Rows),
        &mut Tx { view: &memory, edits: &mut Edits::default(), stamp, rules },
    );
    assert_eq!(rows, Ok(Answer::Int(seen.len() as i64)), "what is past is removed");
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
