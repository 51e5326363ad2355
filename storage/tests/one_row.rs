//! Reads of one row without a snapshot: while a writer deletes the row, makes it anew and
//! changes it, every answer is that of a state that the row had while it was asked for,
//! and of one no older than the answer before it.

mod kit;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use cluster::CallPartition;
use engine::log::{Durability, LogOptions};
use kit::DB0;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use row::op::{Answer, Op, Refusal, Request, Response, Ttl, WriteCondition};
use row::{HashOp, RowOp, StringOp};
use smallvec::smallvec;
use storage::{Node, NodeOptions};

const FIELDS: [&str; 2] = ["a", "b"];

/// The state that one request gives the row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Delete,
    /// Deleted first, in the same request.
    SetString,
    /// Deleted first: it gets a new generation.
    NewHash([bool; 2]),
    /// Sets one field, whatever the row was; a string goes first.
    SetField(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::Delete),
        1 => Just(Step::SetString),
        4 => any::<[bool; 2]>().prop_map(Step::NewHash),
        2 => (0..2_usize).prop_map(Step::SetField),
    ];
    prop::collection::vec(step, 30..60)
}

/// The row after some step.
#[derive(Debug, Clone, PartialEq)]
enum State {
    Absent,
    Text(String),
    Hash([Option<String>; 2]),
}

impl State {
    fn after(&self, step: Step, number: usize) -> State {
        let value = number.to_string();
        let hash = |fields: [Option<String>; 2]| {
            if fields == [None, None] { State::Absent } else { State::Hash(fields) }
        };
        match (step, self) {
            (Step::Delete, _) => State::Absent,
            (Step::SetString, _) => State::Text(value),
            (Step::NewHash(fields), _) => hash(fields.map(|is_set| is_set.then(|| value.clone()))),
            (Step::SetField(field), before) => {
                let mut fields =
                    if let State::Hash(fields) = before { fields.clone() } else { [None, None] };
                fields[field] = Some(value);
                hash(fields)
            }
        }
    }

    fn answer(&self, op: &Op) -> Result<Answer, Refusal> {
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        match (op, self) {
            (Op::Hash(HashOp::Get { .. }), State::Text(_))
            | (Op::String(StringOp::Get { .. }), State::Hash(_)) => Err(Refusal::WrongType),
            (Op::Hash(HashOp::Get { .. }), State::Absent) => Ok(Answer::Nil),
            (Op::Hash(HashOp::Get { fields, .. }), State::Hash(held)) => {
                let at = FIELDS.iter().position(|name| fields[0] == name).expect("one of the two");
                Ok(Answer::Values(smallvec![held[at].as_ref().map(bytes)]))
            }
            (Op::String(StringOp::Get { .. }), State::Absent) => Ok(Answer::Nil),
            (Op::String(StringOp::Get { .. }), State::Text(value)) => {
                Ok(Answer::Bytes(bytes(value)))
            }
            _ => unreachable!("no such op is asked"),
        }
    }
}

fn ops(key: &Bytes, step: Step, before: &State, number: usize) -> Vec<Op> {
    let value = Bytes::from(number.to_string());
    let put = |fields: &[usize]| {
        let pairs = fields
            .iter()
            .map(|field| (Bytes::from_static(FIELDS[*field].as_bytes()), value.clone()))
            .collect();
        Op::Hash(HashOp::Put {
            key: key.clone().into(),
            pairs,
            only: WriteCondition::Always,
            ttl: Ttl::Default,
        })
    };
    let delete = Op::Row(RowOp::Delete { key: key.clone().into() });
    let set = Op::String(StringOp::Set {
        key: key.clone().into(),
        value: value.clone(),
        ttl: Ttl::Default,
        only: WriteCondition::Always,
        want_old: false,
    });
    match step {
        Step::Delete => vec![delete],
        Step::SetString => vec![delete, set],
        Step::NewHash(fields) => {
            let fields: Vec<usize> = (0..2).filter(|field| fields[*field]).collect();
            if fields.is_empty() { vec![delete] } else { vec![delete, put(&fields)] }
        }
        Step::SetField(field) if matches!(before, State::Text(_)) => vec![delete, put(&[field])],
        Step::SetField(field) => vec![put(&[field])],
    }
}

async fn open(dir: &Path, row_cache_bytes: usize) -> Arc<Node> {
    let log = LogOptions { durability: Durability::Os, ..kit::log_options(dir) };
    let (node, _) = kit::node(NodeOptions { row_cache_bytes, ..kit::options(dir) }, log);
    node.follow(&[kit::assigned(kit::table())]).await;
    node
}

/// The writer's progress: in `done`, at least, and on its way to `begun`.
#[derive(Default)]
struct Progress {
    begun: AtomicUsize,
    done: AtomicUsize,
    is_over: AtomicBool,
}

/// Reads until the writer is through; the first answer that fits no state, and how often
/// it was answered at once.
fn read(
    node: &Node,
    key: &Bytes,
    states: &[State],
    progress: &Progress,
) -> (Option<String>, usize) {
    let get_field = |field: &'static str| {
        Op::Hash(HashOp::Get {
            key: key.clone().into(),
            fields: smallvec![Bytes::from_static(field.as_bytes())],
        })
    };
    let requests = [
        vec![get_field("a")],
        vec![
            get_field("b"),
            Op::String(StringOp::Get { key: key.clone().into() }),
            get_field("a"),
            get_field("b"),
        ],
    ];
    let mut answered = 0;
    for ops in requests.iter().cycle() {
        if progress.is_over.load(Ordering::Acquire) {
            break;
        }
        let mut least = progress.done.load(Ordering::Acquire);
        let request = Request { ops: ops.clone(), joined: Vec::new(), watched: Vec::new() };
        let Some(Ok(Response::Done(outcomes))) = node.read_now(DB0, &request) else { continue };
        let most = progress.begun.load(Ordering::Acquire);
        answered += 1;
        for (op, outcome) in ops.iter().zip(outcomes) {
            match (least..=most).find(|state| states[*state].answer(op) == outcome) {
                Some(state) => least = state,
                None => {
                    return (
                        Some(format!(
                            "{outcome:?} to {op:?} is of none of {:?}",
                            &states[least..=most]
                        )),
                        answered,
                    );
                }
            }
        }
    }
    (None, answered)
}

async fn try_steps(node: &Arc<Node>, key: Bytes, steps: &[Step]) -> Result<usize, TestCaseError> {
    let mut states = vec![State::Absent];
    for (number, step) in steps.iter().enumerate() {
        states.push(states[number].after(*step, number + 1));
    }
    let (states, progress) = (Arc::new(states), Arc::new(Progress::default()));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (node, key, states, progress) =
                (node.clone(), key.clone(), states.clone(), progress.clone());
            std::thread::spawn(move || read(&node, &key, &states, &progress))
        })
        .collect();
    for (number, step) in steps.iter().enumerate() {
        progress.begun.store(number + 1, Ordering::Release);
        let ops = ops(&key, *step, &states[number], number + 1);
        let joined = (1..ops.len() as u32).collect();
        node.call(DB0, Request { ops, joined, watched: Vec::new() }).await.expect("a healthy node");
        progress.done.store(number + 1, Ordering::Release);
    }
    progress.is_over.store(true, Ordering::Release);
    let mut answered = 0;
    for reader in readers {
        let (wrong, count) = reader.join().expect("readers do not panic");
        prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
        answered += count;
    }
    Ok(answered)
}

#[test]
fn one_cell_is_read_as_of_one_moment() {
    // Without a row cache as well: each read is then one of the store.
    for row_cache_bytes in [0, 8 << 20] {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let node = runtime.block_on(open(dir.path(), row_cache_bytes));
        let (cases, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let tried = TestRunner::new(ProptestConfig::with_cases(40)).run(&steps(), |steps| {
            let key = Bytes::from(format!("row {}", cases.fetch_add(1, Ordering::Relaxed)));
            answered.fetch_add(runtime.block_on(try_steps(&node, key, &steps))?, Ordering::Relaxed);
            Ok(())
        });
        tried.unwrap();
        assert!(answered.into_inner() > 1000, "reads are answered at once");
        runtime.block_on(node.close());
    }
}
