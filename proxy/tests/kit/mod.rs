//! A proxy on rows in memory, and a client that speaks bytes: everything between a socket
//! and `row` without a disk.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test kit: every test file uses some of it, and may fail here"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cluster::{Boxed, CallError, CallPartition, Catalogue, PartitionId, Table, TableId};
use parking_lot::{Mutex, RwLock};
use proxy::host::{Durability, InfoSection, TableStats};
use proxy::{Host, Proxy, ServerInfo, Settings};
use row::edits::Edits;
use row::memory::Memory;
use row::op::{Answer, Op, Refusal, Request, Response};
use row::view::{Rules, Stamp, Tx};
use row::{EvalError, Family, RowOp, StringOp, key};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Beyond this many bytes of answers a request is answered in part.
const ANSWERS_BYTES: usize = 8 << 20;

/// All tables and all rows.
pub struct World {
    tables: Mutex<BTreeMap<String, Arc<Table>>>,
    last_id: AtomicU32,
    version: AtomicU64,
    partitions: u32,
    rows: RwLock<HashMap<PartitionId, Partition>>,
    /// Requests answered, by `read_now` and by `call`.
    pub reads: AtomicUsize,
    pub calls: AtomicUsize,
    /// Errors for the next requests.
    pub errors: Mutex<VecDeque<CallError>>,
    /// Called with every request before it is answered; an error it returns is the
    /// answer.
    pub interposed: Mutex<Option<Interposed>>,
    /// Duration of a `call`.
    pub delay: Mutex<Duration>,
    /// Maximum number of ops of a read answered at a time; 0 = all.
    pub answers_max: AtomicUsize,
    /// A row that another proxy writes just before this one creates a table.
    pub overtakes: Mutex<Option<(&'static str, &'static str)>>,
    /// Existing tables that the proxy does not know yet.
    unheard: Mutex<BTreeSet<String>>,
    /// Number of look-ups of tables, and state of the metas.
    pub finds: AtomicUsize,
    pub metas: Mutex<Metas>,
}

/// Called between a request and its answer.
pub type Interposed = Box<dyn FnMut(&World, PartitionId, &Request) -> Option<CallError> + Send>;

/// State of the metas.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Metas {
    #[default]
    Fine,
    /// They report that they have no leader.
    Leaderless,
    /// They do not answer.
    Frozen,
}

#[derive(Default)]
struct Partition {
    memory: Memory,
    writes: u64,
    /// Watched rows by head key, and the number of the last write that touched them.
    touched: HashMap<Vec<u8>, u64>,
}

impl World {
    pub fn new(partitions: u32) -> Arc<World> {
        Arc::new(World {
            tables: Mutex::default(),
            last_id: AtomicU32::new(0),
            overtakes: Mutex::default(),
            version: AtomicU64::new(1),
            partitions,
            rows: RwLock::default(),
            reads: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            errors: Mutex::default(),
            interposed: Mutex::default(),
            delay: Mutex::default(),
            answers_max: AtomicUsize::new(0),
            unheard: Mutex::default(),
            finds: AtomicUsize::new(0),
            metas: Mutex::default(),
        })
    }

    /// Another proxy creates a table of one partition, with one row.
    pub fn create_elsewhere(&self, name: &str, key: &'static str, value: &'static str) {
        self.unheard.lock().insert(name.to_owned());
        let table = self.create(name);
        self.write(PartitionId { table: table.id, index: 0 }, vec![set(key, value)]);
    }

    /// Another client writes.
    pub fn write(&self, partition: PartitionId, ops: Vec<Op>) {
        let request = Request { ops, joined: Vec::new(), watched: Vec::new() };
        self.rows.write().entry(partition).or_default().answer(&request).unwrap();
    }

    /// A table is dropped.
    pub fn drop_table(&self, name: &str) {
        let table = self.tables.lock().remove(name).expect("it is there");
        self.rows.write().retain(|partition, _| partition.table != table.id);
        self.version.fetch_add(1, Relaxed);
    }

    /// The names of all tables.
    pub fn names(&self) -> Vec<String> {
        self.tables.lock().keys().cloned().collect()
    }

    /// The proxy forgets a table, as if its notification were late.
    pub fn forget_table(&self, name: &str) {
        self.unheard.lock().insert(name.to_owned());
        self.version.fetch_add(1, Relaxed);
    }

    async fn asked(&self) -> Result<(), CallError> {
        self.finds.fetch_add(1, Relaxed);
        let metas = *self.metas.lock();
        match metas {
            Metas::Fine => Ok(()),
            Metas::Leaderless => Err(CallError::NoLeader("no meta leads".into())),
            Metas::Frozen => std::future::pending().await,
        }
    }

    pub fn create(&self, name: &str) -> Arc<Table> {
        let mut tables = self.tables.lock();
        let table = || {
            let id = TableId(self.last_id.fetch_add(1, Relaxed) + 1);
            let number = cluster::database(name).unwrap_or(cluster::DATABASES + id.0);
            let (name, partitions) = (name.to_owned(), self.partitions);
            Table {
                id,
                name,
                number,
                partitions,
                replicas: 1,
                envs: BTreeMap::new(),
                default_ttl_since_ms: 0,
            }
        };
        let table = tables.entry(name.into()).or_insert_with(|| Arc::new(table())).clone();
        self.version.fetch_add(1, Relaxed);
        table
    }
}

/// SET.
pub fn set(key: &'static str, value: &'static str) -> Op {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
    Op::String(StringOp::Set {
        key: key.into(),
        value,
        ttl: row::op::Ttl::Default,
        only: row::op::WriteCondition::Always,
        want_old: false,
    })
}

impl Partition {
    fn read(&self, request: &Request, ops_max: usize) -> Result<Response, CallError> {
        let mut edits = Edits::default();
        let (mut outcomes, mut bytes) = (Vec::new(), 0);
        for (at, op) in request.ops.iter().take(ops_max).enumerate() {
            // As storage does: ops behind large answers are left for another request.
            if bytes > ANSWERS_BYTES && !request.joined.contains(&(at as u32)) {
                break;
            }
            let outcome = self.outcome(op, &mut edits)?;
            bytes += outcome.as_ref().map_or(0, Answer::bytes);
            outcomes.push(outcome);
        }
        assert!(edits.is_empty(), "a read leaves no edits");
        Ok(Response::Done(outcomes))
    }

    fn answer(&mut self, request: &Request) -> Result<Response, CallError> {
        let untouched = |watched: &row::op::WatchToken| match watched.term {
            0 => self.writes == 0,
            _ => self
                .touched
                .get(key::head(&watched.key).as_slice())
                .is_none_or(|touched| *touched <= watched.touched),
        };
        if !request.watched.iter().all(untouched) {
            return Ok(Response::Touched);
        }
        let mut edits = Edits::default();
        let (mut outcomes, mut bytes) = (Vec::with_capacity(request.ops.len()), 0);
        for (at, op) in request.ops.iter().enumerate() {
            if bytes > ANSWERS_BYTES && !request.joined.contains(&(at as u32)) {
                break;
            }
            let mut outcome = self.outcome(op, &mut edits)?;
            if let Ok(Answer::WatchToken(watched)) = &mut outcome {
                (watched.term, watched.touched) = (1, self.writes);
                self.touched.entry(key::head(&watched.key).to_vec()).or_insert(0);
            }
            bytes += outcome.as_ref().map_or(0, Answer::bytes);
            outcomes.push(outcome);
        }
        if !edits.is_empty() {
            self.writes += 1;
            for (head, touched) in &mut self.touched {
                if edits.clear || touches(&edits, head) {
                    *touched = self.writes;
                }
            }
            self.memory.apply(edits);
        }
        Ok(Response::Done(outcomes))
    }

    fn outcome(&self, op: &Op, edits: &mut Edits) -> Result<Result<Answer, Refusal>, CallError> {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        let stamp = Stamp { now_ms, timetag: now_ms << 16 };
        let mut tx = Tx { view: &self.memory, edits, stamp, rules: Rules::default() };
        match row::eval(op, &mut tx) {
            Ok(answer) => Ok(Ok(answer)),
            Err(EvalError::Refused(refusal)) => Ok(Err(refusal)),
            Err(EvalError::Fault(fault)) => {
                Err(CallError::Fault(cluster::Fault::damaged(fault.message)))
            }
        }
    }
}

fn touches(edits: &Edits, head: &[u8]) -> bool {
    edits.iter().any(|(family, record, _)| match family {
        Family::Head => record == head,
        Family::Cell => {
            key::CellKey::parse(record).is_some_and(|cell| cell.head().as_slice() == head)
        }
        Family::State => false,
    })
}

impl CallPartition<Request, Response> for World {
    fn read_now(
        &self,
        partition: PartitionId,
        request: &Request,
    ) -> Option<Result<Response, CallError>> {
        assert!(!request.ops.iter().any(Op::is_write), "only reads are read");
        if request.ops.iter().any(|op| matches!(op, Op::Row(RowOp::Watch { .. }))) {
            return None;
        }
        self.reads.fetch_add(1, Relaxed);
        if let Some(error) = self.errors.lock().pop_front() {
            return Some(Err(error));
        }
        let ops_max =
            Some(self.answers_max.load(Relaxed)).filter(|most| *most > 0).unwrap_or(usize::MAX);
        // Readers share the lock, or a measurement would be one of this lock.
        match self.rows.read().get(&partition) {
            Some(rows) => Some(rows.read(request, ops_max)),
            None => Some(Partition::default().read(request, ops_max)),
        }
    }

    fn call(
        &self,
        partition: PartitionId,
        request: Request,
    ) -> Boxed<'_, Result<Response, CallError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Relaxed);
            let delay = *self.delay.lock();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if let Some(error) = self.errors.lock().pop_front() {
                return Err(error);
            }
            let interposed = self.interposed.lock().take();
            if let Some(mut interposed) = interposed {
                let said = interposed(self, partition, &request);
                *self.interposed.lock() = Some(interposed);
                if let Some(error) = said {
                    return Err(error);
                }
            }
            self.rows.write().entry(partition).or_default().answer(&request)
        })
    }
}

impl Catalogue for World {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        if self.unheard.lock().contains(name) {
            None
        } else {
            self.tables.lock().get(name).cloned()
        }
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        let unheard = self.unheard.lock();
        self.tables
            .lock()
            .values()
            .filter(|table| !unheard.contains(&table.name))
            .cloned()
            .collect()
    }

    fn find(&self, name: &str) -> Boxed<'_, Result<Option<Arc<Table>>, CallError>> {
        let name = name.to_owned();
        Box::pin(async move {
            self.asked().await?;
            // The catalogue's answer goes to this caller only.
            Ok(self.tables.lock().get(&name).cloned())
        })
    }

    fn find_all(&self) -> Boxed<'_, Result<Vec<Arc<Table>>, CallError>> {
        Box::pin(async move {
            self.asked().await?;
            Ok(self.tables.lock().values().cloned().collect())
        })
    }

    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>> {
        let name = name.to_owned();
        Box::pin(async move {
            self.asked().await?;
            if let Some((key, value)) = self.overtakes.lock().take() {
                self.create_elsewhere(&name, key, value);
                self.unheard.lock().remove(&name);
            }
            let known = self.tables.lock().get(&name).cloned();
            Ok(known.unwrap_or_else(|| self.create(&name)))
        })
    }

    fn partitions_of_new(&self) -> Boxed<'_, Result<u32, CallError>> {
        Box::pin(async move {
            self.asked().await?;
            Ok(self.partitions)
        })
    }

    fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }
}

impl Host for World {
    fn sections(&self) -> Vec<InfoSection> {
        Vec::new()
    }

    fn tables(&self) -> Vec<TableStats> {
        Vec::new()
    }

    fn durability(&self) -> Durability {
        Durability::Os
    }

    fn replicas(&self, _: PartitionId) -> u32 {
        0
    }

    fn synced_copies<'a>(
        &'a self,
        _: PartitionId,
        _: u64,
        _: u32,
        _: Boxed<'a, ()>,
    ) -> Boxed<'a, u32> {
        Box::pin(async { 0 })
    }

    fn set_active_expire(&self, _: bool) {}

    fn sync(&self) -> Boxed<'_, Result<(), CallError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A proxy on a world.
pub fn proxy(world: &Arc<World>, settings: Settings) -> Arc<Proxy> {
    let server_info =
        ServerInfo { version: "test".into(), mode: "standalone", ..ServerInfo::default() };
    Proxy::new(
        settings,
        server_info,
        world.clone(),
        world.clone(),
        world.clone(),
        CancellationToken::new(),
    )
}

/// A running server. Dropping it stops it.
pub struct Server {
    pub proxy: Arc<Proxy>,
    pub world: Arc<World>,
    pub port: u16,
    pub serving: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.proxy.shutdown.cancel();
    }
}

impl Server {
    /// One partition per table, default settings.
    pub async fn start() -> Server {
        Server::with(1, |_| {}).await
    }

    pub async fn with(partitions: u32, change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings::default();
        change(&mut settings);
        let world = World::new(partitions);
        let proxy = proxy(&world, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(proxy::serve(proxy.clone(), listener, None));
        Server { proxy, world, port, serving }
    }

    pub async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(("127.0.0.1", self.port)).await.unwrap() }
    }
}

/// A client that speaks bytes.
pub struct Client {
    pub stream: TcpStream,
}

/// Longer than anything here takes.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(20);

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Expects these bytes next.
    #[track_caller]
    pub fn expect<'a>(&'a mut self, expected: &'a str) -> impl Future<Output = ()> + 'a {
        let at = std::panic::Location::caller();
        async move {
            let mut got = vec![0; expected.len()];
            let mut len = 0;
            while len < got.len() {
                match tokio::time::timeout(EXPECT_TIMEOUT, self.stream.read(&mut got[len..])).await
                {
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(read)) => len += read,
                    Err(_) => break,
                }
            }
            assert_eq!(String::from_utf8_lossy(&got[..len]), expected, "expected at {at}");
        }
    }

    /// Sends a line and expects a reply.
    #[track_caller]
    pub fn ask<'a>(
        &'a mut self,
        line: &'a str,
        expected: &'a str,
    ) -> impl Future<Output = ()> + 'a {
        let expecting = std::panic::Location::caller();
        async move {
            self.send(format!("{line}\r\n")).await;
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let mut some = vec![0; expected.len() - got.len()];
                match tokio::time::timeout(EXPECT_TIMEOUT, self.stream.read(&mut some)).await {
                    Ok(Ok(read)) if read > 0 => got.extend_from_slice(&some[..read]),
                    _ => break,
                }
            }
            assert_eq!(String::from_utf8_lossy(&got), expected, "{line}, asked at {expecting}");
        }
    }

    /// Sends a line, if given, and returns the input up to and including `end`.
    pub async fn until(&mut self, line: &str, end: &str) -> String {
        if !line.is_empty() {
            self.send(format!("{line}\r\n")).await;
        }
        let mut got = Vec::new();
        while !got.ends_with(end.as_bytes()) {
            let byte = tokio::time::timeout(EXPECT_TIMEOUT, self.stream.read_u8()).await;
            got.push(byte.expect("in time").expect("before the end"));
        }
        String::from_utf8(got).unwrap()
    }

    /// The value of one field of INFO or CLIENT LIST.
    pub async fn figure(&mut self, line: &str, end: &str, field: &str) -> u64 {
        let text = self.until(line, end).await;
        let found = text
            .split([' ', '\r', '\n'])
            .find_map(|word| word.strip_prefix(field)?.strip_prefix(['=', ':']));
        found.unwrap_or_else(|| panic!("{field} is not in {text}")).parse().expect("a number")
    }

    /// Returns the next `len` bytes.
    pub async fn take(&mut self, len: usize) -> String {
        let mut got = vec![0; len];
        tokio::time::timeout(EXPECT_TIMEOUT, self.stream.read_exact(&mut got))
            .await
            .expect("in time")
            .expect("before the end");
        String::from_utf8(got).unwrap()
    }

    /// Returns the input up to and including `end`.
    pub async fn until_seen(&mut self, end: &str) -> String {
        let mut got = String::new();
        while !got.ends_with(end) {
            got += &self.take(1).await;
        }
        got
    }

    /// Expects the server to close without another byte.
    #[track_caller]
    pub fn expect_end(&mut self) -> impl Future<Output = ()> + '_ {
        let at = std::panic::Location::caller();
        async move {
            let mut rest = Vec::new();
            // A reset is an end as well: the server closed with our bytes unread.
            let read =
                tokio::time::timeout(EXPECT_TIMEOUT, self.stream.read_to_end(&mut rest)).await;
            assert!(read.is_ok(), "still open, expected to end at {at}");
            assert_eq!(String::from_utf8_lossy(&rest), "", "expected to end at {at}");
        }
    }
}

/// The reply when keys are in several partitions and must not be.
pub const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot: they \
                                    are in several partitions, and nothing was done. Keys with a \
                                    common {tag} are in one partition, as are all keys of a table \
                                    with one partition (tables.partitions, bridle admin create \
                                    --partitions)";

/// A command as an array of bulk strings.
pub fn command(argv: &[&str]) -> String {
    let count = argv.len();
    let argv: String = argv.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{count}\r\n{argv}")
}

/// A value of this length.
pub fn value(len: usize) -> Bytes {
    Bytes::from(vec![b'v'; len])
}
