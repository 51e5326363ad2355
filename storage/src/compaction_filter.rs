//! Tells the store's compaction which cells are dead and which values are past, without
//! the store knowing rows.

use engine::store::{Liveness, Owner};
use row::value::{Head, HeadSummary};
use row::{Family, key, value};

use crate::clock;

/// Judges cells by the generation in their key and their row's head, and heads by their
/// expiry.
pub(crate) struct RowLiveness;

impl Liveness for RowLiveness {
    fn find_owner(&self, cell: &[u8], head: &mut Vec<u8>) -> Option<u64> {
        let cell = key::CellKey::parse(cell)?;
        head.extend_from_slice(&cell.head());
        Some(cell.generation)
    }

    fn parse_owner(&self, head: &[u8]) -> Owner {
        match Head::summary(head) {
            Ok(HeadSummary { generation: Some(generation), expires_at_ms }) => {
                Owner::Generation(generation, expires_at_ms)
            }
            Ok(HeadSummary { generation: None, .. }) => Owner::Nothing,
            Err(_) => Owner::Unreadable,
        }
    }

    fn kept_len(&self, head: &[u8], stamp_ms: u64) -> Option<usize> {
        let is_past =
            Head::summary(head).ok()?.expires_at_ms.is_some_and(|at_ms| at_ms <= stamp_ms);
        is_past.then(|| value::metadata(Family::Head, head).len())
    }

    fn stamp_key(&self) -> &[u8] {
        clock::STAMP_KEY
    }

    fn stamp_ms(&self, stamp: &[u8]) -> Option<u64> {
        value::decode_counter(stamp).ok()
    }

    fn counter_key(&self) -> &[u8] {
        key::GENERATION
    }

    fn first_unused(&self, counter: &[u8]) -> Option<u64> {
        // The counter holds the last generation given.
        value::decode_counter(counter).ok()?.checked_add(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use engine::batch::BatchDependency;
    use engine::store::{EntryWrite, OnStall, SharedResources, Snapshot, Store, StoreSettings};
    use proptest::prelude::*;
    use row::memory::Memory;
    use row::op::{Answer, Deadline, ExpireCondition, Op, Ttl, WriteCondition};
    use row::view::{Fault, Rules};
    use row::{Edits, EvalError, Stamp, Tx, View, eval};
    use row::{HashOp, Key, PartitionOp, RowOp, StringOp};

    use super::*;
    use crate::batch;

    struct Stored<'a>(&'a Snapshot);

    impl View for Stored<'_> {
        fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Fault> {
            self.0.get(batch::of(family), key).map_err(|fault| crate::fault::of_view(&fault))
        }

        fn range(
            &self,
            family: Family,
            from: &[u8],
            to: &[u8],
            reverse: bool,
            each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        ) -> Result<(), Fault> {
            self.0
                .range(batch::of(family), from, to, reverse, each)
                .map_err(|fault| crate::fault::of_view(&fault))
        }
    }

    fn stamp(now_ms: u64) -> Stamp {
        Stamp { now_ms, timetag: now_ms << 16 }
    }

    fn ask(view: &dyn View, now_ms: u64, op: &Op, edits: &mut Edits) -> Result<Answer, EvalError> {
        eval(op, &mut Tx { view, edits, stamp: stamp(now_ms), rules: Rules::default() })
    }

    /// All rows that are visible at a moment, and how many are counted.
    fn rows(
        view: &dyn View,
        now_ms: u64,
    ) -> (BTreeMap<Bytes, Result<Answer, EvalError>>, Result<Answer, EvalError>) {
        let edits = &mut Edits::default();
        let Ok(Answer::Page { keys, next: 0, .. }) = ask(
            view,
            now_ms,
            &Op::Partition(PartitionOp::Scan { cursor: 0, count: 1000, glob: None, kind: None }),
            edits,
        ) else {
            panic!("few rows come in one page")
        };
        let dump = |key: Bytes| {
            (
                key.clone(),
                ask(view, now_ms, &Op::Row(RowOp::Dump { key: key.into() }), &mut Edits::default()),
            )
        };
        (
            keys.into_iter().map(dump).collect(),
            ask(view, now_ms, &Op::Partition(PartitionOp::Rows), edits),
        )
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A batch, so much later.
        Write(u64, Vec<Op>),
        /// The expiry cycle, so much later.
        Expire(u64),
        Flush,
        Compact,
        /// Somebody begins to read.
        Look,
        /// The oldest reader is done.
        Done,
        /// Loses everything that was not flushed; the log has it again, less this number
        /// of entries.
        Crash(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = || prop::sample::select(vec!["a", "b", "c"]).prop_map(Key::from);
        let ttl = || {
            prop_oneof![
                1 => Just(Ttl::Never),
                4 => (1..40i64).prop_map(|ms| Ttl::Until(Deadline::In(ms))),
            ]
        };
        let pairs = || {
            prop::collection::vec(
                prop::sample::select(vec!["f", "g", "h"])
                    .prop_map(|name| (name.into(), "value".into())),
                1..3,
            )
        };
        let set = |(key, ttl)| StringOp::Set {
            key,
            value: "a longer value".into(),
            ttl,
            only: WriteCondition::Always,
            want_old: false,
        };
        let put = |(key, pairs)| HashOp::Put {
            key,
            pairs,
            only: WriteCondition::Always,
            ttl: Ttl::Default,
        };
        let expire = |(key, ms)| RowOp::Expire {
            key,
            until: Deadline::In(ms),
            only: ExpireCondition::default(),
        };
        let copy = |(from, to)| RowOp::Copy { from, to, replace: true };
        prop_oneof![
            3 => (key(), ttl()).prop_map(set).prop_map(Op::from),
            3 => (key(), pairs()).prop_map(put).prop_map(Op::from),
            4 => (key(), 1..40i64).prop_map(expire).prop_map(Op::from),
            2 => key().prop_map(|key| RowOp::Persist { key }).prop_map(Op::from),
            1 => key().prop_map(|key| RowOp::Delete { key }).prop_map(Op::from),
            1 => (key(), ttl())
                .prop_map(|(key, ttl)| StringOp::GetExpire { key, ttl })
                .prop_map(Op::from),
            1 => (key(), key()).prop_map(copy).prop_map(Op::from),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..15u64, prop::collection::vec(op(), 1..5))
                .prop_map(|(later, ops)| Step::Write(later, ops)),
            1 => (0..15u64).prop_map(Step::Expire),
            3 => Just(Step::Flush),
            4 => Just(Step::Compact),
            2 => Just(Step::Look),
            2 => Just(Step::Done),
            1 => (0..4u64).prop_map(Step::Crash),
        ]
    }

    /// Copies a directory. It fails when the store replaces its files meanwhile.
    fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => copy(&entry.path(), &to.join(entry.file_name()))?,
                false => drop(std::fs::copy(entry.path(), to.join(entry.file_name()))?),
            }
        }
        Ok(())
    }

    /// A partition whose store compacts, and one in memory that does not.
    struct Twins {
        dir: tempfile::TempDir,
        opened: u32,
        store: Store,
        /// All entries, with the state behind each, and its stamp.
        log: Vec<(Bytes, Memory, u64)>,
        now_ms: u64,
        readers: Vec<(Snapshot, Memory, u64)>,
    }

    impl Twins {
        fn new() -> Twins {
            let dir = tempfile::tempdir().expect("a directory");
            let store = open(&dir.path().join("0"));
            Twins { dir, opened: 0, store, log: Vec::new(), now_ms: 1_000, readers: Vec::new() }
        }

        fn memory(&self) -> Memory {
            self.log.last().map_or_else(Memory::new, |(_, memory, _)| memory.clone())
        }

        fn apply(&self, index: usize) {
            let write = EntryWrite {
                index: index as u64 + 1,
                log_id: Bytes::new(),
                batch: self.log[index].0.clone(),
                membership: None,
            };
            self.store.apply(&[write], OnStall::Wait).expect("applied");
        }

        /// Evaluates a batch on both, which must not differ, and applies it.
        fn write(&mut self, ops: &[Op]) {
            let (mut edits, mut of_memory, mut memory) =
                (Edits::default(), Edits::default(), self.memory());
            let snapshot = self.store.snapshot().expect("a state");
            for op in ops {
                let answer = ask(&Stored(&snapshot), self.now_ms, op, &mut edits);
                assert!(!matches!(answer, Err(EvalError::Fault(_))), "{op:?}: {answer:?}");
                assert_eq!(
                    answer,
                    ask(&memory, self.now_ms, op, &mut of_memory),
                    "{op:?} at {}",
                    self.now_ms
                );
            }
            assert_eq!(edits, of_memory, "at {}", self.now_ms);
            memory.apply(of_memory);
            let link = BatchDependency { term: 1, chain: 1, position: self.log.len() as u32 };
            self.log.push((batch::encode(&edits, self.now_ms, link), memory, self.now_ms));
            self.apply(self.log.len() - 1);
        }

        /// Another store, of what this one has on disk.
        fn reopened(&mut self) -> Option<Store> {
            self.opened += 1;
            let to = self.dir.path().join(self.opened.to_string());
            copy(self.store.path(), &to).ok()?;
            try_open(&to).ok()
        }

        fn crash(&mut self, lost: u64) {
            self.readers.clear();
            self.store =
                (0..100).find_map(|_| self.reopened()).expect("the files rest for a moment");
            let applied =
                self.store.flushed().expect("readable").map_or(0, |applied| applied.index) as usize;
            // What is on disk was applied, so it is in the log.
            self.log.truncate(applied.max(self.log.len().saturating_sub(lost as usize)));
            (applied..self.log.len()).for_each(|index| self.apply(index));
            // The clock of whoever leads then may be any; the partition's time is not
            // before its last stamp.
            self.now_ms = self.log.last().map_or(1_000, |(.., stamp_ms)| *stamp_ms);
        }

        fn check(&self) {
            let snapshot = self.store.snapshot().expect("a state");
            for (view, memory, now_ms) in self
                .readers
                .iter()
                .map(|(view, memory, now_ms)| (view, memory, *now_ms))
                .chain([(&snapshot, &self.memory(), self.now_ms)])
            {
                assert_eq!(rows(&Stored(view), now_ms), rows(memory, now_ms), "at {now_ms}");
            }
        }
    }

    fn try_open(path: &Path) -> Result<Store, engine::store::Fault> {
        Store::open_with_filter(
            &SharedResources::new(StoreSettings::default())?,
            path,
            Arc::new(RowLiveness),
        )
    }

    fn open(path: &Path) -> Store {
        try_open(path).expect("a store")
    }

    #[test]
    fn nobody_can_tell_whether_what_is_past_was_dropped() {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(30));
        let tried = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
            let mut twins = Twins::new();
            for step in &steps {
                match step {
                    Step::Write(later, ops) => {
                        twins.now_ms += later;
                        twins.write(ops);
                    }
                    Step::Expire(later) => {
                        twins.now_ms += later;
                        let items = twins
                            .memory()
                            .due(stamp(twins.now_ms), Rules::default())
                            .expect("no faults")
                            .items;
                        twins.write(&[Op::Partition(PartitionOp::ExpireDue { items })]);
                    }
                    Step::Flush => twins.store.flush().expect("room"),
                    Step::Compact => {
                        for family in [Family::Head, Family::Cell] {
                            twins.store.compact_family(batch::of(family)).expect("room");
                        }
                    }
                    Step::Look => {
                        let reader = (
                            twins.store.snapshot().expect("a state"),
                            twins.memory(),
                            twins.now_ms,
                        );
                        twins.readers.push(reader);
                    }
                    Step::Done if !twins.readers.is_empty() => drop(twins.readers.remove(0)),
                    Step::Done => {}
                    Step::Crash(lost) => twins.crash(*lost),
                }
                twins.check();
            }
            Ok(())
        });
        tried.unwrap();
    }

    #[test]
    fn of_what_is_past_heads_stay_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut twins = Twins { store: open(&dir.path().join("0")), ..Twins::new() };
        let soon = Ttl::Until(Deadline::In(10));
        let value = Bytes::from(vec![b'v'; 1000]);
        twins.write(&[
            Op::String(StringOp::Set {
                key: "string".into(),
                value: value.clone(),
                ttl: soon,
                only: WriteCondition::Always,
                want_old: false,
            }),
            Op::Hash(HashOp::Put {
                key: "hash".into(),
                pairs: vec![("f".into(), value)],
                only: WriteCondition::Always,
                ttl: Ttl::Default,
            }),
            Op::Row(RowOp::Expire {
                key: "hash".into(),
                until: Deadline::In(10),
                only: ExpireCondition::default(),
            }),
        ]);
        let sizes = |twins: &Twins| {
            let mut sizes = [0, 0];
            for (size, family) in sizes.iter_mut().zip([Family::Head, Family::Cell]) {
                let each = &mut |_: &[u8], value: &[u8]| {
                    *size += value.len();
                    ControlFlow::Continue(())
                };
                twins.store.range(batch::of(family), b"", b"", false, each).expect("readable");
            }
            sizes
        };
        twins.store.compact().expect("room").wait().expect("compacted");
        let [heads, cells] = sizes(&twins);
        assert!(heads > 1000 && cells > 1000, "nothing is past: {heads}, {cells}");
        twins.now_ms += 10;
        twins.write(&[Op::String(StringOp::Set {
            key: "other".into(),
            value: "v".into(),
            ttl: Ttl::Never,
            only: WriteCondition::Always,
            want_old: false,
        })]);
        twins.store.compact().expect("room").wait().expect("compacted");
        let [heads, cells] = sizes(&twins);
        assert!(heads < 200 && cells == 0, "all is past: {heads}, {cells}");
        twins.check();
        let (_, counted) = rows(&Stored(&twins.store.snapshot().expect("a state")), twins.now_ms);
        assert_eq!(counted, Ok(Answer::Int(3)), "they are counted until the cycle removes them");
    }
}
