//! Servers in one process over a network in memory that can be cut, slowed and made to
//! lose messages.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::batch::{BatchWriter, Family};
use engine::clocks::{Clocks, SystemClocks};
use engine::log::{Disk, DiskSpace, Durability, Log, LogOptions, OsDisk};
use engine::raft::purge::LogPolicy;
use engine::raft::{
    Group, GroupError, GroupOptions, Leadership, MessageKind, Node, RaftMessage, Ticker, Transport,
    TransportError,
};
use engine::store::{SharedResources, Store, StoreSettings};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

/// The network between all servers.
#[derive(Default)]
pub struct Network {
    groups: Mutex<BTreeMap<(u64, u64), Group>>,
    faults: Mutex<Faults>,
    dice: AtomicU64,
    /// Messages delivered, by kind.
    pub delivered_by_kind: Mutex<BTreeMap<u8, u64>>,
}

type MessageFilter = Box<dyn FnMut(&mut RaftMessage) -> bool + Send>;

#[derive(Default)]
struct Faults {
    /// From, to: connections that are cut, one way.
    cut: BTreeSet<(u64, u64)>,
    delay: Duration,
    loss_percent: u64,
    /// Sees each message first; false loses it.
    filter_messages: Option<MessageFilter>,
}

impl Network {
    pub fn cut(&self, a: u64, b: u64) {
        self.faults.lock().cut.extend([(a, b), (b, a)]);
    }

    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.faults.lock().cut.insert((from, to));
    }

    pub fn isolate(&self, server: u64, others: &[u64]) {
        others.iter().filter(|other| **other != server).for_each(|other| self.cut(server, *other));
    }

    pub fn heal(&self) {
        *self.faults.lock() = Faults::default();
    }

    pub fn slow(&self, delay: Duration, loss_percent: u64) {
        let mut faults = self.faults.lock();
        (faults.delay, faults.loss_percent) = (delay, loss_percent);
    }

    /// Shows each message to `filter_messages`, which may change it, and loses it by
    /// returning false.
    pub fn filter_messages(
        &self,
        filter_messages: impl FnMut(&mut RaftMessage) -> bool + Send + 'static,
    ) {
        self.faults.lock().filter_messages = Some(Box::new(filter_messages));
    }

    fn is_lost(&self) -> bool {
        let percent = self.faults.lock().loss_percent;
        // A fixed sequence: the same for each run.
        let roll =
            self.dice.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        roll % 100 < percent
    }
}

/// One server's end of the network.
struct NetworkEnd {
    server: u64,
    network: Arc<Network>,
}

impl Transport for NetworkEnd {
    fn send(
        &self,
        to: &Node,
        mut message: RaftMessage,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let to = to.server;
        async move {
            let network = &self.network;
            let delay = {
                let mut faults = network.faults.lock();
                if faults
                    .filter_messages
                    .as_mut()
                    .is_some_and(|filter_messages| !filter_messages(&mut message))
                {
                    return Err(TransportError::Lost("mangled".into()));
                }
                faults.delay
            };
            let is_cut = |from, to| network.faults.lock().cut.contains(&(from, to));
            if is_cut(self.server, to) {
                return Err(TransportError::NotSent("cut".into()));
            }
            let timeout = message.timeout;
            if network.is_lost() {
                tokio::time::sleep(timeout).await;
                return Err(TransportError::Lost("lost".into()));
            }
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let group = network.groups.lock().get(&(to, message.group)).cloned();
            let Some(group) = group else {
                return Err(TransportError::Refused("no such group here".into()));
            };
            *network.delivered_by_kind.lock().entry(message.kind as u8).or_default() += 1;
            // Through bytes, as between processes.
            let message = RaftMessage::decode(message.encode()).unwrap();
            // The receiver continues whether the sender waits or not.
            let received = tokio::spawn(async move { group.receive(message).await });
            let reply = tokio::time::timeout(timeout, received).await;
            if is_cut(to, self.server) || network.is_lost() {
                return Err(TransportError::Lost("the reply is lost".into()));
            }
            match reply {
                Ok(Ok(reply)) => reply.map_err(|error| TransportError::Refused(error.to_string())),
                Ok(Err(error)) => Err(TransportError::Lost(error.to_string())),
                Err(_) => Err(TransportError::Lost("too late".into())),
            }
        }
        .boxed()
    }
}

/// A machine's clocks, after it was suspended for a while.
#[derive(Default)]
pub struct JumpingClocks {
    /// The lead of its boot and its wall clock, ms.
    pub boot_ms: AtomicU64,
    pub wall_ms: AtomicU64,
}

impl Clocks for JumpingClocks {
    fn monotonic(&self) -> Duration {
        SystemClocks.monotonic()
    }

    fn boot(&self) -> Duration {
        SystemClocks.boot() + Duration::from_millis(self.boot_ms.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        SystemClocks.wall() + Duration::from_millis(self.wall_ms.load(Ordering::SeqCst))
    }
}

/// A server with some groups: log, stores, ticker.
pub struct Server {
    pub id: u64,
    pub path: PathBuf,
    pub log: Arc<Log>,
    pub shared: SharedResources,
    pub ticker: Arc<Ticker>,
    pub clocks: Arc<JumpingClocks>,
    network: Arc<Network>,
}

/// A replica on a server.
pub struct Replica {
    pub server: u64,
    pub group: Group,
    pub store: Store,
    pub dir: PathBuf,
}

impl Server {
    pub fn start(id: u64, path: &Path, network: &Arc<Network>) -> Server {
        Self::start_with(id, path, network, Durability::Os)
    }

    pub fn start_with(
        id: u64,
        path: &Path,
        network: &Arc<Network>,
        durability: Durability,
    ) -> Server {
        Self::start_on(id, path, network, durability, Arc::new(OsDisk))
    }

    pub fn start_on(
        id: u64,
        path: &Path,
        network: &Arc<Network>,
        durability: Durability,
        disk: Arc<dyn Disk>,
    ) -> Server {
        let clocks = Arc::<JumpingClocks>::default();
        let ticker = Ticker::start_with(clocks.clone());
        let mut options = LogOptions::new(path.join("log"));
        (options.durability, options.disk) = (durability, disk);
        options.segment_bytes = 1 << 20;
        let log = Log::open(options).unwrap();
        let shared = SharedResources::new(StoreSettings::default()).unwrap();
        Server { id, path: path.to_owned(), log, shared, ticker, clocks, network: network.clone() }
    }

    /// Starts a replica of group `number`; its Raft id is the server's id plus 100.
    pub async fn replica(&self, number: u64, initial: Option<&[u64]>) -> Replica {
        self.replica_as(number, raft_id(self.id), initial).await
    }

    pub async fn replica_as(&self, number: u64, id: u64, initial: Option<&[u64]>) -> Replica {
        let (group, store) = self.try_replica_as(number, id, initial).await;
        let (group, dir) = (group.unwrap(), self.dir(number));
        self.network.groups.lock().insert((self.id, number), group.clone());
        Replica { server: self.id, group, store, dir }
    }

    fn dir(&self, number: u64) -> PathBuf {
        self.path.join(format!("store-{number}"))
    }

    /// Opens a replica's store and tries to start it; it is not on the network.
    pub async fn try_replica(
        &self,
        number: u64,
        initial: Option<&[u64]>,
    ) -> (Result<Group, GroupError>, Store) {
        self.try_replica_as(number, raft_id(self.id), initial).await
    }

    async fn try_replica_as(
        &self,
        number: u64,
        id: u64,
        initial: Option<&[u64]>,
    ) -> (Result<Group, GroupError>, Store) {
        let dir = self.dir(number);
        let store = Store::open(&self.shared, dir.clone()).unwrap();
        let initial = initial.map(|servers| {
            servers.iter().map(|server| (raft_id(*server), Node { server: *server })).collect()
        });
        let options = GroupOptions {
            group: number,
            id,
            name: format!("group {number} on {}", self.id),
            log: self.log.group_log(number),
            store: store.clone(),
            transport: Arc::new(NetworkEnd { server: self.id, network: self.network.clone() }),
            initial,
            ticker: self.ticker.clone(),
        };
        (Group::start(options).await, store)
    }

    /// Takes a replica off the network and stops it.
    pub async fn stop(&self, number: u64, replica: Replica) {
        self.network.groups.lock().remove(&(self.id, number));
        replica.group.shutdown().await;
        let store = replica.store.clone();
        drop(replica);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap().unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

pub fn raft_id(server: u64) -> u64 {
    server + 100
}

/// The numbers of the group and the servers that most tests use.
pub const GROUP: u64 = 7;
pub const SERVERS: [u64; 3] = [1, 2, 3];

/// Three servers with one group.
pub struct Three {
    pub network: Arc<Network>,
    pub servers: BTreeMap<u64, Server>,
    pub replicas: BTreeMap<u64, Replica>,
    directory: tempfile::TempDir,
    durability: Durability,
    policy: LogPolicy,
    pub disks: BTreeMap<u64, Arc<TestDisk>>,
}

/// A disk that a test can make slow, full, or fail.
#[derive(Debug, Default)]
pub struct TestDisk {
    /// Duration of each sync, ms.
    pub slow_ms: AtomicU64,
    pub used_percent: AtomicU64,
}

impl Disk for TestDisk {
    fn sync(&self, file: &std::fs::File) -> std::io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        file.sync_data()
    }

    fn space(&self, _dir: &Path) -> Option<DiskSpace> {
        let used = self.used_percent.load(Ordering::Relaxed);
        Some(DiskSpace { used, free: 100 - used })
    }
}

impl Three {
    pub async fn start() -> Three {
        Self::start_with(Durability::Os).await
    }

    pub async fn start_with(durability: Durability) -> Three {
        Self::start_as(durability, LogPolicy::default()).await
    }

    pub async fn start_as(durability: Durability, policy: LogPolicy) -> Three {
        let network = Arc::<Network>::default();
        let directory = tempfile::tempdir().unwrap();
        let disks = SERVERS.into_iter().map(|server| (server, Arc::default())).collect();
        let mut three = Three {
            network,
            servers: BTreeMap::new(),
            replicas: BTreeMap::new(),
            directory,
            durability,
            policy,
            disks,
        };
        for server in SERVERS {
            three.restart(server).await;
        }
        three
    }

    pub fn path(&self, server: u64) -> PathBuf {
        self.directory.path().join(server.to_string())
    }

    /// A server that is not running, without its replica.
    pub fn server(&self, id: u64) -> Server {
        let server = Server::start_on(
            id,
            &self.path(id),
            &self.network,
            self.durability,
            self.disks[&id].clone(),
        );
        server.ticker.set_log_policy(self.policy);
        server
    }

    /// Starts a server that is not running.
    pub async fn restart(&mut self, id: u64) {
        let server = self.server(id);
        self.replicas.insert(id, server.replica(GROUP, Some(&SERVERS)).await);
        self.servers.insert(id, server);
    }

    pub async fn stop(&mut self, id: u64) {
        let (server, replica) =
            (self.servers.remove(&id).unwrap(), self.replicas.remove(&id).unwrap());
        server.stop(GROUP, replica).await;
        server.log.flush().await.unwrap();
        // Raft's tasks drop the log a little after its core has ended; only then may it
        // be opened again.
        wait_for("nobody uses the log", || Arc::strong_count(&server.log) == 1).await;
    }

    /// Copies a server's directory, as a backup would. Data that a running server has not
    /// written yet is not in it.
    pub fn back_up(&self, id: u64) {
        copy(&self.path(id), &self.path(1000 + id));
    }

    /// Replaces the directory of a stopped server by its backup.
    pub fn restore_backup(&self, id: u64) {
        std::fs::remove_dir_all(self.path(id)).unwrap();
        copy(&self.path(1000 + id), &self.path(id));
    }

    pub fn group(&self, server: u64) -> Group {
        self.replicas[&server].group.clone()
    }

    /// Waits for a leader that can lead, and returns its server.
    pub async fn leader(&self) -> u64 {
        self.leader_among(&SERVERS).await
    }

    /// As [`Three::leader`], among `servers`. A leader may first have to send a snapshot
    /// to a member that it needs.
    pub async fn leader_among(&self, servers: &[u64]) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for (id, replica) in self.replicas.iter().filter(|(id, _)| servers.contains(id)) {
                if replica.group.stats().is_leader
                    && acquire_leadership(&replica.group).await.is_ok()
                {
                    return *id;
                }
            }
            assert!(
                Instant::now() < deadline,
                "no leader: {:?}",
                self.replicas.values().map(|r| r.group.stats()).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Writes through the leader.
    pub async fn put(&self, key: u64, value: &[u8]) {
        let leader = self.leader().await;
        put(&self.group(leader), key, value).await.unwrap();
    }

    pub fn get(&self, server: u64, key: u64) -> Option<Bytes> {
        get(&self.replicas[&server].store, key)
    }

    /// Waits until a replica has a value.
    pub async fn until(&self, server: u64, key: u64, value: &[u8]) {
        let is_there = || self.get(server, key).is_some_and(|found| found == value);
        wait_for(&format!("server {server} has key {key}"), is_there).await;
    }
}

pub async fn acquire_leadership(group: &Group) -> Result<Leadership, GroupError> {
    let patience = Duration::from_millis(1500);
    tokio::time::timeout(patience, group.acquire_leadership())
        .await
        .unwrap_or_else(|_| Err(GroupError::Unknown("not established in time".into())))
}

pub async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn put(group: &Group, key: u64, value: &[u8]) -> Result<(), GroupError> {
    let leadership = acquire_leadership(group).await?;
    group.propose(&leadership, batch(key, value)).await
}

pub fn get(store: &Store, key: u64) -> Option<Bytes> {
    store.get(Family::Head, &key.to_be_bytes()).unwrap()
}

pub fn batch(key: u64, value: &[u8]) -> Bytes {
    let mut writer = BatchWriter::new();
    writer.put(Family::Head, &key.to_be_bytes(), value);
    writer.finish()
}

/// Bytes that do not compress.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// The number of messages of a kind that were delivered.
pub fn delivered_messages(network: &Network, kind: MessageKind) -> u64 {
    network.delivered_by_kind.lock().get(&(kind as u8)).copied().unwrap_or(0)
}
