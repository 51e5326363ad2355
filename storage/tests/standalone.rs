//! A node over a real log and real stores: writes, reads, restarts, watches, expiry,
//! drops.

mod kit;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{CallError, CallPartition, PartitionId, Placement, Table};
use engine::log::Log;
use kit::{DB0, assigned};
use row::op::{Answer, Deadline, Op, Refusal, Request, Response, Ttl, WatchToken, WriteCondition};
use row::{HashOp, PartitionOp, RowOp, StringOp};
use storage::{Assignment, Node, NodeOptions};

/// Memory for requests and batches of a node.
const REQUEST_MEMORY: usize = 160 << 20;

struct Setup {
    node: Arc<Node>,
    log: Arc<Log>,
}

fn table(envs: &[(&str, &str)], default_ttl_since_ms: u64) -> Table {
    let envs = envs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Table { envs, default_ttl_since_ms, ..kit::table() }
}

async fn open(dir: &Path) -> Setup {
    open_with(dir, storage::monotonic, &assigned(table(&[], 0))).await
}

async fn open_with(dir: &Path, step_clock: fn() -> Duration, assigned: &Assignment) -> Setup {
    let options = NodeOptions {
        step_clock,
        row_cache_bytes: 8 << 20,
        request_memory_max: REQUEST_MEMORY,
        ..kit::options(dir)
    };
    let (node, log) = kit::node(options, kit::log_options(dir));
    node.follow(std::slice::from_ref(assigned)).await;
    Setup { node, log }
}

impl Setup {
    async fn ops(&self, ops: Vec<Op>) -> Result<Response, CallError> {
        self.node.call(DB0, Request { ops, joined: Vec::new(), watched: vec![] }).await
    }

    async fn one(&self, op: Op) -> Answer {
        match self.ops(vec![op]).await {
            Ok(Response::Done(mut outcomes)) => outcomes.remove(0).expect("no refusal"),
            other => panic!("{other:?}"),
        }
    }

    async fn close(self) {
        self.node.close().await;
        drop(self.node);
        self.log.close().expect("close the log");
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn set(key: &str, value: &str, ttl: Ttl) -> Op {
    Op::String(StringOp::Set {
        key: bytes(key).into(),
        value: bytes(value),
        ttl,
        only: WriteCondition::Always,
        want_old: false,
    })
}

fn get(key: &str) -> Op {
    Op::String(StringOp::Get { key: bytes(key).into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn written_rows_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    for n in 0..100 {
        setup.one(set(&format!("key{n}"), &n.to_string(), Ttl::Default)).await;
    }
    assert_eq!(setup.one(get("key7")).await, Answer::Bytes(bytes("7")));
    let read = Request { ops: vec![get("key8"), get("none")], joined: Vec::new(), watched: vec![] };
    match setup.node.read_now(DB0, &read) {
        Some(Ok(Response::Done(outcomes))) => {
            assert_eq!(outcomes, [Ok(Answer::Bytes(bytes("8"))), Ok(Answer::Nil)])
        }
        other => panic!("the lease is fresh: {other:?}"),
    }
    setup.close().await;

    let setup = open(dir.path()).await;
    assert_eq!(setup.one(get("key99")).await, Answer::Bytes(bytes("99")));
    assert_eq!(setup.one(Op::Partition(PartitionOp::Rows)).await, Answer::Int(100));
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observed_expiry_is_committed_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    setup.node.set_active_expiry(false);
    // Figures are told a moment after the answers.
    let applied = async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        setup.node.replica(DB0).expect("it is here").figures().applied
    };
    setup.one(set("staying", "x", Ttl::Until(Deadline::In(60_000)))).await;
    setup.one(set("going", "x", Ttl::Until(Deadline::In(300)))).await;
    let before = applied().await;
    assert_eq!(setup.one(get("going")).await, Answer::Bytes(bytes("x")));
    assert_eq!(applied().await, before, "what lives costs no write");
    let deadline = Instant::now() + Duration::from_secs(10);
    while setup.one(get("going")).await != Answer::Nil {
        assert!(Instant::now() < deadline, "it does not expire");
    }
    assert_eq!(applied().await, before + 1);
    for op in [
        get("going"),
        get("staying"),
        Op::Partition(PartitionOp::Scan { cursor: 0, count: 10, glob: None, kind: None }),
    ] {
        setup.one(op).await;
    }
    // A write that finds nothing to change rests on it as well.
    let change = Op::String(StringOp::Set {
        key: bytes("going").into(),
        value: bytes("y"),
        ttl: Ttl::Default,
        only: WriteCondition::IfPresent,
        want_old: false,
    });
    setup.one(change).await;
    assert_eq!(applied().await, before + 1);
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_together_are_one_batch_and_each_is_atomic() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    let adds = (0..500).map(|_| {
        setup.ops(vec![
            Op::String(StringOp::Incr { key: bytes("n").into(), by: 1 }),
            Op::String(StringOp::Incr { key: bytes("n").into(), by: 1 }),
        ])
    });
    let mut seen: Vec<i64> = Vec::new();
    for response in futures::future::join_all(adds).await {
        let Ok(Response::Done(outcomes)) = response else { panic!("{response:?}") };
        let [Ok(Answer::Int(first)), Ok(Answer::Int(second))] = outcomes[..] else {
            panic!("{outcomes:?}")
        };
        assert_eq!(second, first + 1, "another request came between the two adds of one");
        seen.push(second);
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=500).map(|n| n * 2).collect::<Vec<i64>>());
    setup.close().await;
}

async fn watch(setup: &Setup, key: &str) -> WatchToken {
    match setup.one(Op::Row(RowOp::Watch { key: bytes(key).into() })).await {
        Answer::WatchToken(watched) => watched,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_row_that_was_touched_stops_the_request() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    setup.one(set("a", "1", Ttl::Default)).await;
    let watched = watch(&setup, "a").await;
    setup.one(set("b", "1", Ttl::Default)).await;
    let guarded = |watched: WatchToken| Request {
        ops: vec![set("a", "2", Ttl::Default)],
        joined: Vec::new(),
        watched: vec![watched],
    };
    assert!(matches!(setup.node.call(DB0, guarded(watched.clone())).await, Ok(Response::Done(_))));
    assert!(matches!(setup.node.call(DB0, guarded(watched)).await, Ok(Response::Touched)));
    // A row that has expired since counts as touched.
    setup.one(set("a", "3", Ttl::Until(Deadline::In(30)))).await;
    let watched = watch(&setup, "a").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(matches!(setup.node.call(DB0, guarded(watched)).await, Ok(Response::Touched)));
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_all_rows_touches_those_that_were_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    let guarded = |watched: WatchToken| Request {
        ops: vec![set("other", "2", Ttl::Default)],
        joined: Vec::new(),
        watched: vec![watched],
    };
    let is_touched = async |watched: WatchToken| match setup.node.call(DB0, guarded(watched)).await
    {
        Ok(Response::Touched) => true,
        Ok(Response::Done(_)) => false,
        Err(error) => panic!("{error}"),
    };
    assert!(!is_touched(WatchToken::unwritten(bytes("a"))).await, "nothing has been written yet");
    assert!(is_touched(WatchToken::unwritten(bytes("a"))).await);
    setup.one(set("a", "1", Ttl::Default)).await;
    let (there, not_there, comes) =
        (watch(&setup, "a").await, watch(&setup, "b").await, watch(&setup, "c").await);
    setup.one(set("c", "1", Ttl::Default)).await;
    setup.one(Op::Partition(PartitionOp::Clear)).await;
    assert!(is_touched(there).await);
    assert!(!is_touched(not_there).await);
    assert!(is_touched(comes).await, "it came and went");
    // All of it in one batch, which keeps nothing of what it wrote before it deleted all.
    let watched = watch(&setup, "b").await;
    setup
        .ops(vec![set("b", "1", Ttl::Default), Op::Partition(PartitionOp::Clear)])
        .await
        .expect("it is done");
    assert!(is_touched(watched).await);
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_expiry_cycle_removes_rows_that_nobody_reads() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    for n in 0..3000 {
        setup.one(set(&format!("key{n}"), "v", Ttl::Until(Deadline::In(300)))).await;
    }
    setup.one(set("stays", "v", Ttl::Default)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while setup.one(Op::Partition(PartitionOp::Rows)).await != Answer::Int(1) {
        assert!(Instant::now() < deadline, "expired rows stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while setup.node.expired() != (3000, 0) {
        assert!(Instant::now() < deadline, "{:?} were counted", setup.node.expired());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    setup.close().await;
}

/// Rows, and a hash of which all fields but one go, that are due at one time.
async fn fill(setup: &Setup, rows: u32, cells: u32, until: Ttl) {
    for from in (0..rows).step_by(1000) {
        setup
            .ops(
                (from..rows.min(from + 1000))
                    .map(|n| set(&format!("row{n}"), "v", until))
                    .collect(),
            )
            .await
            .expect("written");
    }
    for from in (0..cells).step_by(1000) {
        setup.one(fields(from..cells.min(from + 1000), until)).await;
    }
    setup.one(fields(cells..cells + 1, Ttl::Never)).await;
}

/// Waits until only the hash is left, with its one field, and so many rows that are
/// written meanwhile; how long that took.
async fn wait_until_all_is_gone(setup: &Setup, others: i64) -> Duration {
    let began = Instant::now();
    let deadline = began + Duration::from_secs(60);
    let inspect = || Op::Row(RowOp::Inspect { key: bytes("h").into() });
    let has_one_field = |answer| matches!(answer, Answer::Row(Some(row)) if row.len == 1);
    let are_gone = |answer| matches!(answer, Answer::Int(rows) if rows <= 1 + others);
    while !has_one_field(setup.one(inspect()).await)
        || !are_gone(setup.one(Op::Partition(PartitionOp::Rows)).await)
    {
        assert!(Instant::now() < deadline, "what has expired stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// A clock that goes on by 0.1 ms whenever somebody looks.
fn looked_at() -> Duration {
    static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    Duration::from_micros(100) * LOOKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn no_expiry_step_exceeds_its_time_on_the_executor() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open_with(dir.path(), looked_at, &assigned(table(&[], 0))).await;
    let until = Deadline::At(now_ms() as i64 + 700);
    fill(&setup, 500, 500, Ttl::Until(until)).await;
    wait_until_all_is_gone(&setup, 0).await;
    let longest = setup.node.replica(DB0).expect("it is here").longest_step();
    assert!(
        longest <= Duration::from_millis(2) && longest > Duration::ZERO,
        "{longest:?} by a clock that counts pieces of work"
    );
    assert_eq!(setup.node.expired(), (500, 500));
    setup.close().await;
}

/// The processor time of a thread: the cost of a step, whatever else the machine does.
fn computed() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::test(flavor = "multi_thread")]
async fn tens_of_thousands_go_a_second_in_short_steps_between_writes() {
    const MANY: u32 = 50_000;
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open_with(dir.path(), computed, &assigned(table(&[], 0))).await;
    setup.node.set_active_expiry(false);
    // Not before all is written: what is past by then goes with a write to its hash.
    let until = now_ms() as i64 + 4000;
    fill(&setup, MANY, MANY, Ttl::Until(Deadline::At(until))).await;
    let left_ms = until - now_ms() as i64;
    assert!(left_ms > 0, "it was not written in time");
    tokio::time::sleep(Duration::from_millis(left_ms as u64 + 5)).await;
    setup.node.set_active_expiry(true);
    let (mut writes, mut longest_write) = (0, Duration::ZERO);
    let mut gone = Box::pin(wait_until_all_is_gone(&setup, 1));
    let took = loop {
        let began = Instant::now();
        tokio::select! {
            took = &mut gone => break took,
            _ = setup.one(set("h2", "v", Ttl::Until(Deadline::In(1)))) => {
                (writes, longest_write) = (writes + 1, longest_write.max(began.elapsed()));
            }
        }
    };
    drop(gone);
    let longest = setup.node.replica(DB0).expect("it is here").longest_step();
    println!(
        "{} in {took:?}, beside {writes} writes of at most {longest_write:?}; the longest step \
         took {longest:?}",
        2 * MANY
    );
    assert!(longest < Duration::from_millis(2), "a step took {longest:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let (rows, fields) = setup.node.expired();
    assert!(
        rows >= u64::from(MANY) && fields == u64::from(MANY),
        "{rows} rows and {fields} fields"
    );
    setup.close().await;
}

/// The clock of steps fails once, and with it the executor that asks.
fn broken_once() -> Duration {
    static IS_BROKEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    assert!(IS_BROKEN.swap(true, std::sync::atomic::Ordering::Relaxed), "meant to fail");
    storage::monotonic()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_stuck_does_not_stop_expiry_in_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let Assignment { table, placements } = assigned(table(&[], 0));
    let placements = (0..4)
        .map(|index| Placement { partition: PartitionId { index, ..DB0 }, ..placements[0].clone() })
        .collect();
    let setup = open_with(dir.path(), broken_once, &Assignment { table, placements }).await;
    let ask = async |index, op| {
        let request = Request { ops: vec![op], joined: Vec::new(), watched: vec![] };
        setup.node.call(PartitionId { index, ..DB0 }, request).await
    };
    for index in 0..4 {
        ask(index, set("going", "v", Ttl::Until(Deadline::In(300)))).await.expect("written");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while setup.node.expired().0 < 3 {
        assert!(Instant::now() < deadline, "{:?} of three have expired", setup.node.expired());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut left = 0;
    for index in 0..4 {
        left += u32::from(
            ask(index, Op::Partition(PartitionOp::Rows)).await
                != Ok(Response::Done(vec![Ok(Answer::Int(0))])),
        );
    }
    assert_eq!(left, 1, "that of the partition whose executor has failed");
}

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as u64
}

fn fields(names: std::ops::Range<u32>, ttl: Ttl) -> Op {
    let pairs = names.map(|n| (bytes(&format!("field{n:05}")), bytes("v"))).collect();
    Op::Hash(HashOp::Put { key: bytes("h").into(), pairs, only: WriteCondition::Always, ttl })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_serves_connections_walks_past_few_records() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    let now = |ops: Vec<Op>| {
        setup.node.read_now(DB0, &Request { ops, joined: Vec::new(), watched: vec![] }).is_some()
    };
    setup.node.set_active_expiry(false);
    setup.one(fields(0..900, Ttl::Never)).await;
    let len = || Op::Hash(HashOp::Len { key: bytes("h").into() });
    let random = |count| {
        Op::Hash(HashOp::Random { key: bytes("h").into(), count, seed: 1, want_values: false })
    };
    let page = |cursor| {
        Op::Hash(HashOp::Scan {
            key: bytes("h").into(),
            cursor,
            count: 10,
            glob: None,
            want_values: true,
        })
    };
    let some = |count: usize| {
        Op::Hash(HashOp::Get {
            key: bytes("h").into(),
            fields: vec![bytes("field00007"); count].into(),
        })
    };
    for ops in [
        vec![len()],
        vec![random(-10)],
        vec![page(0)],
        vec![page(7)],
        vec![some(10)],
        vec![len(); 10],
    ] {
        assert!(now(ops.clone()), "{ops:?} were answered at once");
    }
    let scan = |count, glob: &str| {
        Op::Partition(PartitionOp::Scan { cursor: 0, count, glob: Some(bytes(glob)), kind: None })
    };
    assert!(now(vec![scan(100, "*a")]));
    for n in 0..5 {
        setup.one(set(&format!("{n}{}", "a".repeat(60_000)), "v", Ttl::Default)).await;
    }
    let heavy = [scan(100, &format!("*{}*b", "a".repeat(500))), scan(1000, "*a")];
    for ops in [vec![random(-1000)], vec![some(2000)], vec![get("x"); 2000], vec![some(100); 20]]
        .into_iter()
        .chain(heavy.map(|op| vec![op]))
    {
        assert!(!now(ops.clone()), "{ops:?} were not left to others");
    }
    // Of a hash that is larger, or full of what has expired, only the walk itself tells.
    setup.one(fields(900..4000, Ttl::Until(Deadline::In(1)))).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(!now(vec![len()]));
    assert_eq!(setup.one(len()).await, Answer::Int(900));
    setup.one(fields(900..4000, Ttl::Never)).await;
    assert!(now(vec![len()]) && now(vec![page(0)]));
    assert!(!now(vec![page(7)]), "nobody remembers what this cursor stands for");
    let Answer::CellsPage { cells, .. } = setup.one(page(7)).await else { panic!("no page") };
    assert_eq!(cells.len(), 10);
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_ttl_reaches_rows_written_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    setup.one(set("old", "v", Ttl::Default)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let before = Instant::now();
    setup.node.follow(&[assigned(table(&[("default_ttl", "1")], now_ms()))]).await;
    // Whoever leads writes the rule into the partition's state before any write that
    // comes later, and the second counts from there.
    setup.one(set("new", "v", Ttl::Never)).await;
    let after = Instant::now();
    let found = setup.one(get("old")).await;
    assert!(
        found == Answer::Bytes(bytes("v")) || before.elapsed() >= Duration::from_secs(1),
        "{found:?}"
    );
    tokio::time::sleep_until((after + Duration::from_millis(1010)).into()).await;
    assert_eq!(setup.one(get("old")).await, Answer::Nil);
    let deadline = Instant::now() + Duration::from_secs(20);
    while setup.one(Op::Partition(PartitionOp::Rows)).await != Answer::Int(1) {
        assert!(Instant::now() < deadline, "the row is counted still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn persisted_rows_stay_though_metas_clock_is_ahead() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    setup.one(set("old", "v", Ttl::Default)).await;
    setup.one(set("other", "v", Ttl::Default)).await;
    setup.node.follow(&[assigned(table(&[("default_ttl", "1")], now_ms() + 600))]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while setup.one(Op::Row(RowOp::Persist { key: bytes("old").into() })).await != Answer::Int(1) {
        assert!(Instant::now() < deadline, "the rule does not reach the row");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while setup.one(get("other")).await != Answer::Nil {
        assert!(Instant::now() < deadline, "the other row does not expire");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(setup.one(get("old")).await, Answer::Bytes(bytes("v")));
    // That it is set no more is news as well, but not what was set before.
    setup.node.follow(&[assigned(table(&[], now_ms() + 700))]).await;
    setup.node.follow(&[assigned(table(&[("default_ttl", "1")], 5))]).await;
    setup.one(set("new", "v", Ttl::Default)).await;
    let Answer::Row(Some(new)) =
        setup.one(Op::Row(RowOp::Inspect { key: bytes("new").into() })).await
    else {
        panic!("no row")
    };
    assert_eq!(new.expires_at_ms, None);
    setup.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_answers_nothing_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    setup.one(set("a", "1", Ttl::Default)).await;
    setup.node.follow(&[]).await;
    setup.node.destroy(&table(&[], 0)).await.expect("remove the table");
    assert_eq!(setup.ops(vec![get("a")]).await, Err(CallError::NoTable));
    assert_eq!(
        std::fs::read_dir(dir.path().join("partitions")).expect("the node's directory").count(),
        0
    );
    setup.node.follow(&[assigned(table(&[], 0))]).await;
    assert_eq!(setup.one(get("a")).await, Answer::Nil);
    setup.close().await;
}

/// Evaluation beside writes is bounded as reads are: by a transaction, by a request, and
/// by the node.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_what_also_writes_are_bounded() {
    const LEN: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let setup = open(dir.path()).await;
    let value = "v".repeat(LEN);
    setup.one(set("big", &value, Ttl::Default)).await;
    let ops = |gets: usize| -> Vec<Op> {
        [set("x", "1", Ttl::Default)].into_iter().chain((0..gets).map(|_| get("big"))).collect()
    };
    let together = |gets: usize| {
        let joined = (1..=gets as u32).collect();
        setup.node.call(DB0, Request { ops: ops(gets), joined, watched: vec![] })
    };
    // A transaction: all, or, when that is too large, nothing.
    assert_eq!(together(100).await, Ok(Response::Done(vec![Err(Refusal::AnswerTooLarge); 101])));
    assert_eq!(setup.one(get("x")).await, Answer::Nil);
    let Ok(Response::Done(outcomes)) = together(30).await else { panic!("it is done") };
    assert!(outcomes.len() == 31 && outcomes.iter().all(Result::is_ok), "{}", outcomes.len());
    // Others: as many as fit, at least the first; the rest is left to be asked again.
    let Ok(Response::Done(outcomes)) = setup.ops(ops(30)).await else { panic!("it is done") };
    assert!((9..=10).contains(&outcomes.len()), "{}", outcomes.len());
    // At once: what the node has memory for, and then it has it again.
    let all = futures::future::join_all((0..40).map(|_| together(30))).await;
    let done = all
        .iter()
        .filter(|outcome| matches!(outcome, Ok(Response::Done(outcomes)) if outcomes.len() == 31))
        .count();
    let refused = all.iter().filter(|outcome| **outcome == Err(CallError::OutOfMemory)).count();
    assert!(done > 0 && done + refused == 40, "{done} done, {refused} refused");
    drop(all);
    assert!(together(50).await.is_ok());
    setup.close().await;
}
