//! A storage node: the replicas that live in this process, following the table catalogue.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use cluster::{Boxed, Call, CallError, PartitionId, Table, TableId};
use engine::log::Log;
use engine::store::Shared;
use row::op::{Op, Request, Response};
use row::view::Rules;

use crate::hot::Heads;
use crate::replica::{Replica, ReplicaOptions};
use crate::{expiry, reads};

/// How often the node looks whether anything has expired.
const EXPIRY_PERIOD: Duration = Duration::from_millis(100);
/// Group 0 of the log is meta's.
const FIRST_GROUP: u64 = 1 << 32;
/// The first placement of every replica of a group of one.
const RAFT_ID: u64 = 1;

/// What a node is opened with.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Where partitions' stores are: one directory each, `<table id>-<index>`.
    pub dir: PathBuf,
    /// The runtime that Raft runs on.
    pub raft_runtime: tokio::runtime::Handle,
    /// The largest value or row that one op may write, bytes.
    pub write_bytes_max: usize,
    /// The largest answer of one op, bytes.
    pub answer_bytes_max: usize,
    /// Memory for rows' heads (a string whole) read or written lately, over all tables, bytes.
    pub row_cache_bytes: usize,
    /// Told apart from other clusters' writes in timetags.
    pub cluster_tag: u8,
}

/// A replica, or why there is none.
type Slot = Result<Arc<Replica>, CallError>;

/// The replicas of this process.
pub struct Node {
    options: NodeOptions,
    log: Arc<Log>,
    shared: Shared,
    heads: Arc<Heads>,
    replicas: ArcSwap<HashMap<PartitionId, Slot>>,
    /// One change of the set at a time.
    changing: tokio::sync::Mutex<()>,
    active_expiry: std::sync::atomic::AtomicBool,
}

/// Figures of one table on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableFigures {
    /// Rows, expired ones not yet reached by the expiry cycle included.
    pub rows: u64,
    /// Rows with an expiry.
    pub expiring: u64,
    /// Bytes of SST files.
    pub disk_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
    /// Entries applied since the group was formed, over all partitions.
    pub applied: u64,
    /// Entries in the log and not yet purged, over all partitions.
    pub log_entries: u64,
    /// Why a partition is not served, by index.
    pub faults: BTreeMap<u32, String>,
}

impl Node {
    /// A node without replicas; [`Node::follow`] opens them. Starts the node's periodic work on the current runtime.
    pub fn open(options: NodeOptions, log: Arc<Log>, shared: Shared) -> Arc<Node> {
        let heads = Arc::new(Heads::new(options.row_cache_bytes));
        let node = Arc::new(Node {
            options,
            log,
            shared,
            heads,
            replicas: ArcSwap::default(),
            changing: tokio::sync::Mutex::default(),
            active_expiry: true.into(),
        });
        tokio::spawn(expiry_cycle(Arc::downgrade(&node)));
        node
    }

    /// Makes the set of replicas that of the catalogue: opens what is missing, closes what is not listed, hands on envs. When it returns, all
    /// of `tables` are open or known not to be openable (then their calls say why). Destroys nothing: see [`Node::destroy`].
    pub async fn follow(&self, tables: &[Arc<Table>]) {
        let _one_at_a_time = self.changing.lock().await;
        let mut replicas = HashMap::clone(&self.replicas.load());
        let wanted: HashMap<PartitionId, &Arc<Table>> = tables
            .iter()
            .flat_map(|table| (0..table.partitions).map(move |index| (PartitionId { table: table.id, index }, table)))
            .collect();
        let unlisted: Vec<PartitionId> = replicas.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        let closing: Vec<Slot> = unlisted.iter().filter_map(|id| replicas.remove(id)).collect();
        for (id, table) in &wanted {
            if let Some(Ok(replica)) = replicas.get(id) {
                replica.set_rules(self.rules(table));
            }
        }
        let missing: Vec<PartitionId> = wanted.keys().filter(|id| !replicas.contains_key(id)).copied().collect();
        let opened = futures::future::join_all(missing.iter().map(|id| self.open_replica(*id, wanted[id]))).await;
        replicas.extend(missing.into_iter().zip(opened));
        self.replicas.store(Arc::new(replicas));
        futures::future::join_all(closing.iter().flatten().map(|replica| replica.close())).await;
    }

    /// Deletes everything of a table that is being dropped. Doing it again, or for a table that was never here, is harmless.
    ///
    /// # Errors
    /// What the file system says; the table's calls are refused from then on all the same.
    pub async fn destroy(&self, table: &Table) -> std::io::Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let ids: Vec<PartitionId> = (0..table.partitions).map(|index| PartitionId { table: table.id, index }).collect();
        let mut replicas = HashMap::clone(&self.replicas.load());
        let closing: Vec<Slot> = ids.iter().filter_map(|id| replicas.remove(id)).collect();
        self.replicas.store(Arc::new(replicas));
        futures::future::join_all(closing.iter().flatten().map(|replica| replica.close())).await;
        drop(closing);
        for id in ids {
            self.log.destroy(group_of(id)).await?;
            let dir = self.dir_of(id);
            match tokio::fs::remove_dir_all(dir).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn open_replica(&self, partition: PartitionId, table: &Table) -> Slot {
        let dir = self.dir_of(partition);
        let options = ReplicaOptions {
            partition,
            raft_id: RAFT_ID,
            group_id: group_of(partition),
            dir: &dir,
            rules: self.rules(table),
            cluster_tag: self.options.cluster_tag,
            raft_runtime: &self.options.raft_runtime,
        };
        let opened = Replica::open(options, &self.log, &self.shared, &self.heads).await;
        if let Err(error) = &opened {
            tracing::error!(table = table.name, index = partition.index, %error, "a partition could not be opened");
        }
        opened
    }

    fn dir_of(&self, partition: PartitionId) -> PathBuf {
        self.options.dir.join(format!("{}-{}", partition.table.0, partition.index))
    }

    fn rules(&self, table: &Table) -> Rules {
        let default_ttl_s: u64 = table.envs.get("default_ttl").and_then(|text| text.parse().ok()).unwrap_or(0);
        Rules {
            default_ttl_ms: default_ttl_s.saturating_mul(1000),
            default_ttl_since_ms: table.default_ttl_since_ms,
            write_bytes_max: self.options.write_bytes_max,
            answer_bytes_max: self.options.answer_bytes_max,
        }
    }

    /// The replica of a partition.
    pub fn replica(&self, partition: PartitionId) -> Result<Arc<Replica>, CallError> {
        self.replicas.load().get(&partition).cloned().unwrap_or(Err(CallError::NoTable))
    }

    /// All replicas that are open.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.load().values().filter_map(|slot| slot.as_ref().ok().cloned()).collect()
    }

    /// Whether the expiry cycle runs (DEBUG SET-ACTIVE-EXPIRE).
    pub fn set_active_expiry(&self, active: bool) {
        self.active_expiry.store(active, std::sync::atomic::Ordering::Relaxed);
    }

    /// Figures of a table's partitions here.
    pub fn table_figures(&self, table: TableId) -> TableFigures {
        let mut sum = TableFigures::default();
        for (id, slot) in self.replicas.load().iter().filter(|(id, _)| id.table == table) {
            match slot {
                Ok(replica) => {
                    replica.add_figures(&mut sum);
                    if let Some(error @ CallError::Fault(_)) = replica.queue.closed() {
                        sum.faults.insert(id.index, error.to_string());
                    }
                }
                Err(error) => drop(sum.faults.insert(id.index, error.to_string())),
            }
        }
        sum
    }

    /// Stops all replicas in good order and flushes their stores.
    pub async fn close(&self) {
        let _one_at_a_time = self.changing.lock().await;
        let replicas = self.replicas.swap(Arc::default());
        let open = replicas.values().filter_map(|slot| slot.as_ref().ok());
        futures::future::join_all(open.map(|replica| replica.close())).await;
    }
}

/// The number of a partition's group in the node's log.
fn group_of(partition: PartitionId) -> u64 {
    FIRST_GROUP + (u64::from(partition.table.0) << 20) + u64::from(partition.index)
}

impl Call<Request, Response> for Node {
    fn read_now(&self, partition: PartitionId, request: &Request) -> Option<Result<Response, CallError>> {
        let replicas = self.replicas.load();
        let replica = match replicas.get(&partition) {
            Some(Ok(replica)) => replica,
            _ => return None,
        };
        if !replica.lease.is_valid() || reads::is_for_executor(request) || request.ops.iter().any(|op| reads::is_long(replica, op)) {
            return None;
        }
        reads::answer(replica, request).transpose()
    }

    fn call(&self, partition: PartitionId, request: Request) -> Boxed<'_, Result<Response, CallError>> {
        let replica = self.replica(partition);
        Box::pin(async move {
            let replica = replica?;
            if !reads::is_for_executor(&request) {
                return replica.read(request).await;
            }
            match replica.queue.push(request)?.await {
                Ok(outcome) => outcome,
                // The executor ended without a word, which only a bug or the end of the process can make it do.
                Err(_) => Err(CallError::Unknown("the partition's executor ended".to_owned())),
            }
        })
    }
}

/// Removes what has expired, a bounded step per partition and period, until the node is gone.
async fn expiry_cycle(node: std::sync::Weak<Node>) {
    let mut tick = tokio::time::interval(EXPIRY_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(node) = node.upgrade() else { return };
        if !node.active_expiry.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let due: Vec<_> = {
            let replicas = node.replicas.load();
            let open = replicas.values().filter_map(|slot| slot.as_ref().ok());
            // By the partition's own clock, which does not step back.
            let due = |replica: &Arc<Replica>| replica.expiry.due(replica.clock.read().now_ms, &replica.rules());
            open.filter_map(|replica| Some((replica.clone(), due(replica)?))).collect()
        };
        for (replica, cursor) in due {
            let step = Request { ops: vec![Op::ExpireDue { max: expiry::STEP_MAX, cursor }], watched: Vec::new() };
            // One step of a partition at a time; a partition that can't be written now is tried again in the next period.
            let done = match replica.queue.push(step) {
                Ok(outcome) => outcome.await.unwrap_or_else(|_| Err(CallError::Unknown("the partition's executor ended".to_owned()))),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::debug!(partition = ?replica.partition(), %error, "an expiry step did not go through");
            }
        }
    }
}
