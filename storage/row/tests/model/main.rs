//! Random ops against a model that is simple enough to be believed, and the invariants of `lib.rs` after every batch.
//!
//! A failing run is shrunk and printed, and its seed is kept in `proptest-regressions/`, from where it is run again first.

mod invariants;
mod model;
mod ops;

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;
use row::memory::Memory;
use row::view::{Fault, Rules};
use row::{Edits, Failed, Family, Op, Stamp, Tx, View, eval};

use crate::model::Model;

/// One batch: how much later than the last it comes, and its ops.
type Batch = (u64, Vec<Op>);

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec((0..40u64, prop::collection::vec(ops::op(), 1..8)), 1..12)
}

/// The partition, and the latest moment that an op took for past.
struct Noted<'a> {
    memory: &'a Memory,
    past_ms: Cell<u64>,
}

impl View for Noted<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.get(family, key)
    }

    fn gist(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.memory.gist(family, key)
    }

    fn range(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        reverse: bool,
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        self.memory.range(family, from, to, reverse, each)
    }

    fn rests_on(&self, past_ms: u64) {
        self.past_ms.set(self.past_ms.get().max(past_ms));
    }
}

/// Ops that name no time of their own: two moments differ for them in what is past, and in nothing else.
fn is_timeless(op: &Op) -> bool {
    use Op::*;
    !matches!(op, HashExpiry { remaining: true, .. })
        && (!op.is_write()
            || matches!(op, Delete { .. } | Persist { .. } | Rename { .. } | Copy { .. } | GetDelete { .. })
            || matches!(op, HashDelete { .. } | HashGetDelete { .. } | HashRangeDelete { .. } | HashPersist { .. }))
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
            let view = Noted { memory: &memory, past_ms: Cell::new(0) };
            let at = |stamp: Stamp, edits: &mut Edits| match eval(&op, &mut Tx { view: &view, edits, stamp, rules }) {
                Ok(answer) => Ok(answer),
                Err(Failed::Refused(refusal)) => Err(refusal),
                Err(Failed::Fault(fault)) => panic!("{op:?}: {fault}"),
            };
            let answer = at(stamp, &mut edits);
            if edits == before && is_timeless(&op) {
                // Nothing else was taken for past: the answer is the same as soon as that is.
                let then = Stamp { now_ms: view.past_ms.get(), ..stamp };
                assert_eq!(at(then, &mut before.clone()), answer, "{op:?} at {now_ms} does not rest on {} alone", then.now_ms);
            }
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
