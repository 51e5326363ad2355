//! One partition on three nodes of one process, with a wire that can be cut and letters
//! that can be held at the door.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::row_client::LocalReplicas;
use cluster::{CallError, CallPartition, Member, PartitionId, Placement, ServerId, Table, TableId};
use engine::clocks::{Clocks, SystemClocks};
use engine::log::{Disk, DiskSpace, Log, LogOptions};
use engine::raft::{MessageKind, RaftMessage, Ticker, Transport, TransportError};
use engine::store::{SharedResources, StoreSettings};
use engine::time::SlewedClock;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use row::op::{
    Answer, Deadline, ExpireCondition, Op, Range, Refusal, Request, Response, Ttl, WatchToken,
    WriteCondition,
};
use row::{HashOp, RowOp, StringOp};
use storage::{Assignment, Node, NodeOptions, Peers, ReplicaError};
use tokio::sync::watch;

/// Memory for requests and batches of a node.
const REQUEST_MEMORY: usize = 256 << 20;
const UNSURE_AFTER: Duration = Duration::from_secs(3);
const PARTITION: PartitionId = PartitionId { table: TableId(1), index: 0 };

/// Hands letters over in memory, unless sender or receiver is cut off.
#[derive(Default)]
struct Net {
    nodes: OnceLock<Vec<Arc<Node>>>,
    cut: Mutex<Vec<u64>>,
    doors: watch::Sender<Vec<Door>>,
    /// Letters that ask whether a vote would be given: how an election begins that nobody
    /// asked for.
    stood: AtomicU64,
}

/// Behind it a server's heartbeats and entries wait.
#[derive(Debug, Clone, Copy)]
struct Door {
    from: u64,
    /// It shuts once a letter of so many bytes has gone through.
    shuts_after: usize,
    is_shut: bool,
}

/// Larger than any letter but one that is made so.
const LARGE: usize = 64 << 10;

impl Net {
    /// Holds messages of a server back from now on, or from its next large one on.
    fn shut(&self, from: u64, shuts_after: usize) {
        self.doors
            .send_modify(|doors| doors.push(Door { from, shuts_after, is_shut: shuts_after == 0 }));
    }

    fn open_doors(&self) {
        self.doors.send_modify(Vec::clear);
    }

    async fn wait_at_door(&self, from: u64) {
        let is_open =
            |doors: &Vec<Door>| !doors.iter().any(|door| door.from == from && door.is_shut);
        self.doors.subscribe().wait_for(is_open).await.expect("the net is there");
    }

    fn went_through(&self, from: u64, bytes: usize) {
        let shuts = |door: &Door| door.from == from && !door.is_shut && bytes >= door.shuts_after;
        self.doors.send_if_modified(|doors| {
            let mut shut = doors.iter_mut().filter(|door| shuts(door)).peekable();
            let is_any = shut.peek().is_some();
            shut.for_each(|door| door.is_shut = true);
            is_any
        });
    }
}

struct End {
    server: u64,
    net: Arc<Net>,
}

impl Transport for End {
    fn send(
        &self,
        to: &engine::raft::Node,
        message: RaftMessage,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let to = to.server;
        async move {
            let cut = |server| self.net.cut.lock().contains(&server);
            if cut(self.server) || cut(to) {
                tokio::time::sleep(message.timeout).await;
                return Err(TransportError::Lost("cut off".into()));
            }
            let node = self.net.nodes.get().map(|nodes| nodes[to as usize - 1].clone());
            let Some(node) = node else {
                return Err(TransportError::NotSent("not there yet".into()));
            };
            if message.kind == MessageKind::PreVote {
                self.net.stood.fetch_add(1, Ordering::Relaxed);
            }
            if message.kind != MessageKind::Append {
                return node.receive(message).await.map_err(refused);
            }
            if tokio::time::timeout(message.timeout, self.net.wait_at_door(self.server))
                .await
                .is_err()
            {
                return Err(TransportError::Lost("held at the door".into()));
            }
            let bytes = message.body.len();
            let reply = node.receive(message).await.map_err(refused);
            self.net.went_through(self.server, bytes);
            reply
        }
        .boxed()
    }
}

fn refused(error: ReplicaError) -> TransportError {
    TransportError::Refused(error.to_string())
}

/// A disk whose syncs can be made slow.
#[derive(Debug, Default)]
struct Hanging {
    slow_ms: AtomicU64,
}

impl Disk for Hanging {
    fn sync(&self, file: &std::fs::File) -> std::io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        file.sync_data()
    }

    fn space(&self, _dir: &Path) -> Option<DiskSpace> {
        None
    }
}

/// The machine's clocks after it has slept for some ms, the wall clock ahead by some
/// more.
#[derive(Debug, Clone, Default)]
struct Ahead {
    slept_ms: Arc<AtomicU64>,
    ahead_ms: Arc<AtomicU64>,
}

impl Ahead {
    fn set(&self, ms: u64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    fn sleep(&self, ms: u64) {
        self.slept_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clocks for Ahead {
    fn monotonic(&self) -> Duration {
        SystemClocks.monotonic()
    }

    fn boot(&self) -> Duration {
        SystemClocks.boot() + Duration::from_millis(self.slept_ms.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Duration {
        let more_ms = self.slept_ms.load(Ordering::Relaxed) + self.ahead_ms.load(Ordering::Relaxed);
        SystemClocks.wall() + Duration::from_millis(more_ms)
    }
}

struct Three {
    net: Arc<Net>,
    nodes: Vec<Arc<Node>>,
    logs: Vec<Arc<Log>>,
}

fn assigned(envs: &[(&str, &str)], default_ttl_since_ms: u64) -> Assignment {
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let table = Arc::new(Table {
        id: PARTITION.table,
        name: "db0".into(),
        number: 0,
        partitions: 1,
        replicas: 3,
        envs,
        default_ttl_since_ms,
    });
    let members = (1..=3).map(|n| Member { raft_id: n + 10, server: ServerId(n) }).collect();
    Assignment { table, placements: vec![Placement { partition: PARTITION, members, epoch: 1 }] }
}

impl Three {
    async fn open(dir: &Path) -> Three {
        Three::open_by(dir, &Default::default()).await
    }

    async fn open_by(dir: &Path, clocks: &[Ahead; 3]) -> Three {
        Three::open_on(dir, clocks, &Default::default()).await
    }

    /// One of the servers is cut off from the beginning.
    async fn open_without(dir: &Path, cut: Option<usize>) -> Three {
        let net = Arc::new(Net::default());
        net.cut.lock().extend(cut.map(|at| at as u64 + 1));
        Three::open_in(net, dir, &Default::default(), &Default::default()).await
    }

    async fn open_on(dir: &Path, clocks: &[Ahead; 3], disks: &[Arc<Hanging>; 3]) -> Three {
        Three::open_in(Arc::default(), dir, clocks, disks).await
    }

    async fn open_in(
        net: Arc<Net>,
        dir: &Path,
        clocks: &[Ahead; 3],
        disks: &[Arc<Hanging>; 3],
    ) -> Three {
        let ticker = Ticker::start();
        let shared = SharedResources::new(StoreSettings::default()).expect("memory for stores");
        let (mut nodes, mut logs) = (Vec::new(), Vec::new());
        for server in 1..=3 {
            let dir = dir.join(server.to_string());
            let disk = disks[server as usize - 1].clone();
            let log = Log::open(LogOptions { disk, ..LogOptions::new(dir.join("log")) })
                .expect("open the log");
            logs.push(log.clone());
            let options = NodeOptions {
                step_clock: storage::monotonic,
                dir: dir.join("tables"),
                raft_runtime: tokio::runtime::Handle::current(),
                write_bytes_max: 16 << 20,
                answer_bytes_max: 64 << 20,
                row_cache_bytes: 8 << 20,
                request_memory_max: REQUEST_MEMORY,
                cluster_tag: 1,
                clock: SlewedClock::new(clocks[server as usize - 1].clone()),
                unknown_after: UNSURE_AFTER,
                peers: Some(Peers {
                    server: ServerId(server),
                    transport: Arc::new(End { server, net: net.clone() }),
                    ticker: ticker.clone(),
                }),
            };
            nodes.push(Node::open(options, log, shared.clone()));
        }
        assert!(net.nodes.set(nodes.clone()).is_ok(), "set once");
        for node in &nodes {
            node.follow(&[assigned(&[], 0)]).await;
        }
        Three { net, nodes, logs }
    }

    /// The leader among the servers that are not cut off, as soon as there is one.
    async fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for (at, node) in self.nodes.iter().enumerate() {
                let here = node.server();
                if !self.net.cut.lock().contains(&here.0)
                    && node.leader(PARTITION).is_some_and(|leader| leader.server == here)
                {
                    return at;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Tries until the node leads in every respect.
    async fn one(&self, at: usize, op: Op) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.nodes[at]
                .call(
                    PARTITION,
                    Request { ops: vec![op.clone()], joined: Vec::new(), watched: vec![] },
                )
                .await
            {
                Ok(Response::Done(mut outcomes)) => return outcomes.remove(0).expect("no refusal"),
                Err(CallError::NoLeader(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Asks everybody who believes to lead until one does; who it was. As proxies, which
    /// go where they are told, it stays with nobody who does not.
    async fn anywhere(&self, op: Op) -> (usize, Answer) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let believes = |node: &Node| {
                node.leader(PARTITION).is_some_and(|leader| leader.server == node.server())
            };
            for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| believes(node)) {
                match node
                    .call(
                        PARTITION,
                        Request { ops: vec![op.clone()], joined: Vec::new(), watched: vec![] },
                    )
                    .await
                {
                    Ok(Response::Done(mut outcomes)) => {
                        return (at, outcomes.remove(0).expect("no refusal"));
                    }
                    Err(CallError::NoLeader(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The answer to one call of joined ops, at a node that leads.
    async fn together(
        &self,
        at: usize,
        ops: Vec<Op>,
        watched: Vec<WatchToken>,
    ) -> Result<Response, CallError> {
        let joined = (1..ops.len() as u32).collect();
        self.nodes[at].call(PARTITION, Request { ops, joined, watched }).await
    }

    /// Waits until a node believes to lead.
    async fn until_it_leads(&self, at: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.nodes[at]
            .leader(PARTITION)
            .is_none_or(|leader| leader.server != self.nodes[at].server())
        {
            assert!(Instant::now() < deadline, "it does not take over");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn hand_over(&self, from: usize, to: usize) {
        let term = self.nodes[from].leader(PARTITION).expect("it leads").term;
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = self.nodes[from].transfer(PARTITION, term, to as u64 + 11).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.until_it_leads(to).await;
    }

    async fn close(self) {
        for node in &self.nodes {
            node.close().await;
        }
        self.logs.iter().for_each(|log| log.close().expect("close the log"));
    }

    /// Waits until a replica that was set aside is open and has everything.
    async fn until_mended(&self, at: usize, leader: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let applied = self.nodes[leader].replica(PARTITION).expect("it leads").figures().applied;
        while self.nodes[at].replica(PARTITION).map_or(0, |replica| replica.figures().applied)
            < applied
        {
            assert!(Instant::now() < deadline, "{:?}", self.nodes[at].report());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry"))
    {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("its type").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("a copy")),
        }
    }
}

fn set(value: &'static str) -> Op {
    Op::String(StringOp::Set {
        key: Bytes::from_static(b"k").into(),
        value: Bytes::from_static(value.as_bytes()),
        ttl: Ttl::Default,
        only: WriteCondition::Always,
        want_old: false,
    })
}

fn get() -> Op {
    Op::String(StringOp::Get { key: Bytes::from_static(b"k").into() })
}

fn is(answer: &Answer, value: &str) -> bool {
    matches!(answer, Answer::Bytes(bytes) if bytes == value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_comes_back_reads_what_others_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let first = three.leader().await;
    let other = (first + 1) % 3;
    three.one(first, set("first")).await;
    assert!(is(&three.one(first, get()).await, "first"));
    three.hand_over(first, other).await;
    three.one(other, set("other")).await;
    three.hand_over(other, first).await;
    let answer = three.one(first, get()).await;
    assert!(is(&answer, "other"), "{answer:?}");
    three.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_row_that_another_leader_wrote_is_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let first = three.leader().await;
    let other = (first + 1) % 3;
    three.one(first, set("first")).await;
    // Transactions that only read, one that would change something, and one that finds
    // that it need not.
    let expire = Op::Row(RowOp::Expire {
        key: Bytes::from_static(b"none").into(),
        until: Deadline::In(1000),
        only: ExpireCondition::default(),
    });
    for ops in [vec![get()], vec![get(), get()], vec![set("late")], vec![expire, get()]] {
        let Answer::WatchToken(token) =
            three.one(first, Op::Row(RowOp::Watch { key: Bytes::from_static(b"k").into() })).await
        else {
            panic!("a token")
        };
        three.hand_over(first, other).await;
        three.one(other, set("other")).await;
        three.hand_over(other, first).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let outcome = loop {
            match three.together(first, ops.clone(), vec![token.clone()]).await {
                Err(CallError::NoLeader(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                other => break other,
            }
        };
        assert_eq!(outcome, Ok(Response::Touched), "{ops:?}");
    }
    assert!(is(&three.one(first, get()).await, "other"));
    three.close().await;
}

/// A leader comes back that has what others wrote in its log and has not heard that it is
/// committed: what it evaluates is evaluated after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_comes_back_evaluates_on_what_others_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let first = three.leader().await;
    let [other, third] = [(first + 1) % 3, (first + 2) % 3];
    let key = |name: &'static str| Bytes::from_static(name.as_bytes());
    let put = |name, value: Bytes, only| {
        Op::String(StringOp::Set {
            key: key(name).into(),
            value,
            ttl: Ttl::Default,
            only,
            want_old: false,
        })
    };
    let field = |name| {
        Op::Hash(HashOp::Put {
            key: key("h").into(),
            pairs: vec![(key(name), key("v"))],
            only: WriteCondition::Always,
            ttl: Ttl::Default,
        })
    };
    three.one(first, put("gone", key("v"), WriteCondition::Always)).await;
    three.one(first, field("f")).await;
    three.hand_over(first, other).await;
    // Two of three, so that what is acknowledged is in the first one's log; the news that
    // it is committed does not come through.
    three.net.cut.lock().push(third as u64 + 1);
    three.net.shut(other as u64 + 1, LARGE);
    let written = [
        put("k", Bytes::from(vec![b'v'; 2 * LARGE]), WriteCondition::Always),
        Op::Row(RowOp::Delete { key: key("gone").into() }),
        put("e", key("v"), WriteCondition::Always),
        field("g"),
    ];
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = three.together(other, written.to_vec(), vec![]).await {
        assert!(matches!(error, CallError::NoLeader(_)) && Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let transfer = {
        let (node, term) = (
            three.nodes[other].clone(),
            three.nodes[other].leader(PARTITION).expect("it leads").term,
        );
        tokio::spawn(async move { node.transfer(PARTITION, term, first as u64 + 11).await })
    };
    // Elected, and nobody has its first entry yet.
    three.net.shut(first as u64 + 1, 0);
    three.until_it_leads(first).await;
    let ops = [
        (Op::Row(RowOp::Delete { key: key("k").into() }), Answer::Int(1)),
        (
            put("gone", key("w"), WriteCondition::IfAbsent),
            Answer::Written { done: true, old: None },
        ),
        (
            Op::Row(RowOp::Expire {
                key: key("e").into(),
                until: Deadline::In(60_000),
                only: ExpireCondition::default(),
            }),
            Answer::Int(1),
        ),
        (Op::Hash(HashOp::Delete { key: key("h").into(), fields: vec![key("g")] }), Answer::Int(1)),
    ];
    let calls = ops.map(async |(op, done)| assert_eq!(three.one(first, op).await, done));
    let door = async {
        // Time to be evaluated too early, were they.
        tokio::time::sleep(Duration::from_millis(100)).await;
        three.net.open_doors();
    };
    tokio::join!(futures::future::join_all(calls), door);
    transfer.await.expect("no panic").expect("it is handed over");
    three.close().await;
}

/// A reader that finds a row expired looks again once what was under way before has
/// landed: the row may have been given more time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_given_more_time_is_not_said_to_be_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    let (key, soon) = (Bytes::from_static(b"k"), Duration::from_millis(200));
    let more = Deadline::In(60_000);
    for longer in [
        Op::Row(RowOp::Expire {
            key: key.clone().into(),
            until: more,
            only: ExpireCondition::default(),
        }),
        Op::Row(RowOp::Persist { key: key.clone().into() }),
        Op::String(StringOp::GetExpire { key: key.clone().into(), ttl: Ttl::Until(more) }),
    ] {
        let ttl = Ttl::Until(Deadline::In(soon.as_millis() as i64));
        let until = Instant::now() + soon;
        three
            .one(
                leader,
                Op::String(StringOp::Set {
                    key: key.clone().into(),
                    value: key.clone(),
                    ttl,
                    only: WriteCondition::Always,
                    want_old: false,
                }),
            )
            .await;
        assert!(is(&three.one(leader, get()).await, "k"));
        three.net.shut(leader as u64 + 1, 0);
        let given = three.one(leader, longer.clone());
        let read = async {
            tokio::time::sleep_until((until + Duration::from_millis(20)).into()).await;
            three.one(leader, get()).await
        };
        let door = async {
            // Time for the reader to look, and to ask for its word to be written down.
            tokio::time::sleep_until((until + Duration::from_millis(120)).into()).await;
            three.net.open_doors();
        };
        let (given, read, ()) = tokio::join!(given, read, door);
        match given {
            Answer::Int(1) => assert!(
                is(&read, "k"),
                "{longer:?} has given it more time, and a reader said {read:?}"
            ),
            Answer::Bytes(_) => assert!(
                is(&read, "k"),
                "{longer:?} has given it more time, and a reader said {read:?}"
            ),
            // It came too late: the machine is busy.
            _ => assert_eq!(read, Answer::Nil),
        }
    }
    three.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_keeps_the_default_ttl_of_the_last() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let first = three.leader().await;
    let other = (first + 1) % 3;
    three.one(first, set("old")).await;
    three.nodes[first].follow(&[assigned(&[("default_ttl", "1")], 1)]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    three.nodes[first].set_active_expiry(false);
    three.nodes[other].set_active_expiry(false);
    while three.one(first, get()).await != Answer::Nil {
        assert!(Instant::now() < deadline, "it does not expire");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    three.hand_over(first, other).await;
    assert_eq!(
        three.one(other, get()).await,
        Answer::Nil,
        "what a reader was told had expired is back"
    );
    three.one(other, set("new")).await;
    let inspect = Op::Row(RowOp::Inspect { key: Bytes::from_static(b"k").into() });
    let row = three.one(other, inspect).await;
    assert!(matches!(&row, Answer::Row(Some(row)) if row.expires_at_ms.is_some()), "{row:?}");
    three.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_answers_nothing_and_its_write_is_unknown() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let old = three.leader().await;
    three.one(old, set("before")).await;
    three.net.cut.lock().push(old as u64 + 1);
    let began = Instant::now();
    let write = three.nodes[old]
        .call(PARTITION, Request { ops: vec![set("lost")], joined: Vec::new(), watched: vec![] });
    let elected = async {
        let new = three.leader().await;
        three.one(new, set("after")).await;
        // From here on the old one must not answer reads.
        let read = Request { ops: vec![get()], joined: Vec::new(), watched: vec![] };
        assert!(three.nodes[old].read_now(PARTITION, &read).is_none(), "no lease is left");
        let answered = three.nodes[old].call(PARTITION, read).await;
        assert!(matches!(answered, Err(CallError::NoLeader(_))), "{answered:?}");
        new
    };
    let (outcome, new) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(10), write), elected);
    let outcome = outcome.expect("it is told in time");
    assert!(matches!(outcome, Err(CallError::Unknown(_))), "{outcome:?}");
    assert!(
        began.elapsed() >= UNSURE_AFTER - Duration::from_millis(500),
        "there may have been a quorum again"
    );
    three.net.cut.lock().clear();
    assert!(is(&three.one(new, get()).await, "after"));
    three.close().await;
}

/// A byte more at the end of each of the first long strings.
fn appends(count: usize) -> Vec<Op> {
    (0..count)
        .map(|n| {
            Op::String(StringOp::Append {
                key: Bytes::from(format!("long:{n}")).into(),
                value: Bytes::from_static(b"."),
            })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_request_is_replicated_whole_or_refused() {
    const LONG: usize = 5 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    for n in 0..16 {
        let value = Bytes::from(vec![b'v'; LONG]);
        let key = Bytes::from(format!("long:{n}"));
        three
            .one(
                leader,
                Op::String(StringOp::Set {
                    key: key.into(),
                    value,
                    ttl: Ttl::Default,
                    only: WriteCondition::Always,
                    want_old: false,
                }),
            )
            .await;
    }
    let call = |ops: Vec<Op>, joined| {
        three.nodes[leader].call(PARTITION, Request { ops, joined, watched: vec![] })
    };
    // By many clients at once: as many batches as it takes.
    let each = appends(16).into_iter().map(|op| call(vec![op], Vec::new()));
    for response in futures::future::join_all(each).await {
        assert_eq!(response, Ok(Response::Done(vec![Ok(Answer::Int(LONG as i64 + 1))])));
    }
    // In one request: what fits, and nothing of the rest.
    let Ok(Response::Done(outcomes)) = call(appends(16), Vec::new()).await else {
        panic!("it is answered")
    };
    let done =
        outcomes.iter().filter(|outcome| **outcome == Ok(Answer::Int(LONG as i64 + 2))).count();
    assert!((2..=10).contains(&done), "{done}");
    assert!(
        outcomes[done..].iter().all(|outcome| *outcome == Err(Refusal::TooMuch)),
        "{outcomes:?}"
    );
    // As a transaction: all or nothing.
    let joined: Vec<u32> = (1..16).collect();
    let all = call(appends(16), joined.clone()).await;
    assert_eq!(all, Ok(Response::Done(vec![Err(Refusal::TooMuch); 16])));
    let some = call(appends(4), joined[..3].to_vec()).await;
    assert_eq!(some, Ok(Response::Done(vec![Ok(Answer::Int(LONG as i64 + 3)); 4])));
    assert_eq!(
        three
            .one(leader, Op::String(StringOp::Len { key: Bytes::from_static(b"long:15").into() }))
            .await,
        Answer::Int(LONG as i64 + 1)
    );
    three.close().await;
}

fn field(n: u64) -> Bytes {
    Bytes::from(format!("field-{n:05}"))
}

fn fields(from: u64, to: u64) -> Op {
    let pairs = (from..to).map(|n| (field(n), Bytes::from("v".repeat(200)))).collect();
    Op::Hash(HashOp::Put {
        key: Bytes::from_static(b"h").into(),
        pairs,
        only: WriteCondition::Always,
        ttl: Ttl::Default,
    })
}

/// Damages what the table files in a directory hold, under whoever has them open.
fn damage(directory: &Path) {
    use std::os::unix::fs::FileExt;
    for entry in std::fs::read_dir(directory)
        .expect("a store's directory")
        .map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            damage(&entry);
        } else if entry.extension().is_some_and(|extension| extension == "sst") {
            let file = std::fs::File::options().write(true).open(&entry).expect("a table file");
            let third = file.metadata().expect("its length").len() / 3;
            file.write_all_at(&vec![0x5a; third as usize], third / 4).expect("damage a table file");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_is_taken_anew_from_the_leader() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let bad = three.leader().await;
    three.one(bad, fields(0, 2000)).await;
    three.nodes[bad].replica(PARTITION).expect("it is open").store().flush().expect("a flush");
    let tables = dir.path().join((bad + 1).to_string()).join("tables");
    damage(&tables);
    // Whoever asks it is sent to the others, and it gives up what it leads.
    let everything = Op::Hash(HashOp::Range {
        key: Bytes::from_static(b"h").into(),
        range: Range::all(),
        want_values: true,
    });
    let asked = three.nodes[bad]
        .call(
            PARTITION,
            Request { ops: vec![everything.clone()], joined: Vec::new(), watched: vec![] },
        )
        .await;
    assert!(matches!(asked, Err(CallError::NoLeader(_))), "{asked:?}");
    let began = Instant::now();
    let next = loop {
        let leads = |at: &usize| {
            *at != bad
                && three.nodes[*at]
                    .leader(PARTITION)
                    .is_some_and(|leader| leader.server.0 == *at as u64 + 1)
        };
        match (0..3).find(leads) {
            Some(next) => break next,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(
            began.elapsed() < Duration::from_millis(900),
            "leadership is handed over, long before a lease has run out"
        );
    };
    three.one(next, fields(2000, 2100)).await;
    // It comes back with everything, that which was written meanwhile too, and can lead.
    let deadline = Instant::now() + Duration::from_secs(10);
    let applied = three.nodes[next].replica(PARTITION).expect("it leads").figures().applied;
    while three.nodes[bad].replica(PARTITION).map_or(0, |replica| replica.figures().applied)
        < applied
    {
        assert!(Instant::now() < deadline, "{:?}", three.nodes[bad].report());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kept: Vec<String> = std::fs::read_dir(&tables)
        .expect("the stores' directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains('.'))
        .collect();
    assert_eq!(kept, [format!("1-0-{}.damaged", bad + 11)]);
    three.hand_over(next, bad).await;
    assert_eq!(
        three.one(bad, Op::Hash(HashOp::Len { key: Bytes::from_static(b"h").into() })).await,
        Answer::Int(2100)
    );
    assert!(matches!(
        three.one(bad, everything).await,
        Answer::Cells { cells, .. } if cells.len() == 2100
    ));
    three.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_writes_the_group_has_lost_is_taken_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |server: usize| dir.path().join((server + 1).to_string());
    let backup = |server: usize| dir.path().join(format!("backup-{}", server + 1));
    let three = Three::open(dir.path()).await;
    let odd = three.leader().await;
    three.one(odd, set("before")).await;
    three.close().await;
    let others: Vec<usize> = (0..3).filter(|server| *server != odd).collect();
    others.iter().for_each(|server| copy(&at(*server), &backup(*server)));
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    three.one(leader, set("lost")).await;
    three.until_mended(odd, leader).await;
    three.close().await;
    for server in &others {
        std::fs::remove_dir_all(at(*server)).expect("remove a directory");
        copy(&backup(*server), &at(*server));
    }
    let three = Three::open_without(dir.path(), Some(odd)).await;
    let leader = three.leader().await;
    assert!(is(&three.one(leader, get()).await, "before"));
    three.one(leader, fields(0, 10)).await;
    three.net.cut.lock().clear();
    three.until_mended(odd, leader).await;
    three.hand_over(leader, odd).await;
    assert!(is(&three.one(odd, get()).await, "before"), "what the group has lost is not back");
    assert_eq!(
        three.one(odd, Op::Hash(HashOp::Len { key: Bytes::from_static(b"h").into() })).await,
        Answer::Int(10)
    );
    three.close().await;
}

/// Its log begins after what was in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_store_is_gone_is_taken_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    three.one(leader, fields(0, 100)).await;
    let gone = (leader + 1) % 3;
    three.until_mended(gone, leader).await;
    three.close().await;
    // What was flushed as it closed is let go of by the next process.
    let three = Three::open(dir.path()).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while three.nodes[gone].replica(PARTITION).expect("it is open").figures().purged == 0 {
        assert!(Instant::now() < deadline, "the log is not purged");
        let leader = three.leader().await;
        three.one(leader, set("more")).await;
        three.nodes[gone].replica(PARTITION).expect("it is open").store().flush().expect("a flush");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    three.close().await;
    let tables = dir.path().join((gone + 1).to_string()).join("tables");
    std::fs::remove_dir_all(&tables).expect("the stores' directory");
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    assert_ne!(leader, gone, "it can't lead before it has a state");
    three.until_mended(gone, leader).await;
    three.hand_over(leader, gone).await;
    assert_eq!(
        three.one(gone, Op::Hash(HashOp::Len { key: Bytes::from_static(b"h").into() })).await,
        Answer::Int(100)
    );
    three.close().await;
}

/// An operator's copy beside it, or what an earlier placement left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stray_directory_does_not_cost_a_replica_its_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    three.one(leader, set("kept")).await;
    three.close().await;
    // Of all three, so that nobody has it from another; with empty stores, so that only
    // the logs have it.
    for server in 1..=3u64 {
        let tables = dir.path().join(server.to_string()).join("tables");
        let own = tables.join(format!("1-0-{}", server + 10));
        std::fs::remove_dir_all(&own).expect("its store");
        std::fs::create_dir(&own).expect("a directory");
        copy(&own, &tables.join(format!("1-0-{}", server + 5)));
        copy(&own, &tables.join(format!("1-0-{}", server + 90)));
    }
    let three = Three::open(dir.path()).await;
    let leader = three.leader().await;
    assert!(is(&three.one(leader, get()).await, "kept"));
    three.close().await;
    let tables = dir.path().join("1").join("tables");
    assert!(!tables.join("1-0-6").exists(), "an earlier one goes");
    assert!(tables.join("1-0-91").exists(), "a later one is left to the operator");
    // And a replica that has no directory is not opened beside a later one.
    std::fs::remove_dir_all(tables.join("1-0-11")).expect("its store");
    let three = Three::open(dir.path()).await;
    let error = three.nodes[0].replica(PARTITION).err().expect("it is not opened").to_string();
    assert!(error.contains("a later replica"), "{error}");
    three.close().await;
}

const DAY_MS: u64 = 86_400_000;

/// The first leader's clock is ahead by a day for a moment, and the others go on from its
/// stamps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_expire_after_a_leader_whose_clock_was_ahead() {
    let short = |key: &'static str| {
        Op::String(StringOp::Set {
            key: Bytes::from_static(key.as_bytes()).into(),
            value: Bytes::from_static(b"short"),
            ttl: Ttl::Until(Deadline::In(400)),
            only: WriteCondition::Always,
            want_old: false,
        })
    };
    let (dir, clocks) =
        (tempfile::tempdir().expect("a directory"), std::array::from_fn(|_| Ahead::default()));
    clocks.iter().for_each(|clock| clock.set(DAY_MS));
    let three = Three::open_by(dir.path(), &clocks).await;
    let first = three.leader().await;
    three.one(first, set("a day ahead")).await;
    three.close().await;
    clocks.iter().for_each(|clock| clock.set(0));
    let three = Three::open_by(dir.path(), &clocks).await;
    // After a restart, and after every failover from there.
    for key in ["a", "b", "c", "d"] {
        let get = || Op::String(StringOp::Get { key: Bytes::from_static(key.as_bytes()).into() });
        let began = Instant::now();
        let (leader, _) = three.anywhere(short(key)).await;
        assert!(
            is(&three.anywhere(get()).await.1, "short")
                || began.elapsed() > Duration::from_millis(400),
            "{key}"
        );
        three.hand_over(leader, (leader + 1) % 3).await;
        let ahead_ms = loop {
            if let (leader, Answer::Nil) = three.anywhere(get()).await {
                break three.nodes[leader].clock_ahead_ms();
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{key} does not expire");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!((DAY_MS as i64 - 60_000..=DAY_MS as i64).contains(&ahead_ms), "{ahead_ms}");
    }
    three.close().await;
}

/// Nobody writes for an hour, and who leads next learns that it has passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_that_is_ahead_is_not_lost_with_its_leader() {
    const HOUR_MS: u64 = 3_600_000;
    let (dir, clocks) =
        (tempfile::tempdir().expect("a directory"), std::array::from_fn(|_| Ahead::default()));
    clocks.iter().for_each(|clock| clock.set(DAY_MS));
    let three = Three::open_by(dir.path(), &clocks).await;
    let leader = three.leader().await;
    three.one(leader, set("a day ahead")).await;
    clocks.iter().for_each(|clock| clock.set(0));
    // So that it is noticed.
    three.one(leader, get()).await;
    let applied = || three.nodes[leader].replica(PARTITION).expect("it is open").figures().applied;
    let (before, began) = (applied(), Instant::now());
    clocks.iter().for_each(|clock| clock.sleep(HOUR_MS));
    while applied() == before {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it is not committed how far time has come"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    three.close().await;
    let three = Three::open_by(dir.path(), &clocks).await;
    let leader = three.leader().await;
    three.one(leader, get()).await;
    let lost_ms = DAY_MS as i64 - three.nodes[leader].clock_ahead_ms();
    assert!(
        (HOUR_MS as i64 / 10 - 1_000..HOUR_MS as i64 / 10 + 60_000).contains(&lost_ms),
        "{lost_ms}"
    );
    three.close().await;
}

/// A node whose fsyncs take two seconds: it is not cut off, it ceases to lead within a
/// few seconds, and writes hardly notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_hung_disk_hands_over_and_writes_go_on() {
    let (dir, disks) = (
        tempfile::tempdir().expect("a directory"),
        std::array::from_fn(|_| Arc::<Hanging>::default()),
    );
    let three = Three::open_on(dir.path(), &Default::default(), &disks).await;
    let first = three.leader().await;
    three.one(first, set("before")).await;
    let stood = three.net.stood.load(Ordering::Relaxed);
    disks[first].slow_ms.store(2000, Ordering::Relaxed);
    let hangs_since = Instant::now();
    let mut slowest = Duration::ZERO;
    let next = loop {
        let began = Instant::now();
        let (leader, _) = three.anywhere(set("meanwhile")).await;
        slowest = slowest.max(began.elapsed());
        if leader != first {
            break leader;
        }
        assert!(hangs_since.elapsed() < Duration::from_secs(8), "it leads on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(slowest < Duration::from_secs(2), "a write took {slowest:?}");
    // It was handed over, and not lost.
    assert_eq!(
        three.net.stood.load(Ordering::Relaxed),
        stood,
        "somebody stood for election unasked"
    );
    three.anywhere(set("after")).await;
    disks[first].slow_ms.store(0, Ordering::Relaxed);
    // For a minute it is not given back.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let term = three.nodes[next].leader(PARTITION).expect("it leads").term;
        let refused = three.nodes[next]
            .transfer(PARTITION, term, first as u64 + 11)
            .await
            .expect_err("its disk was slow a moment ago");
        if refused.to_string().contains("its disk has a problem") {
            break;
        }
        // Until the last slow fsync is through, nothing is heard of it.
        assert!(Instant::now() < deadline, "{refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    three.close().await;
}
