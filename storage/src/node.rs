//! A storage node: the replicas of this process, which follow meta's assignment.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cluster::row_client::LocalReplicas;
use cluster::{
    Boxed, CallError, CallPartition, Leader, Member, PartitionId, Placement, ServerId, Table,
    TableId, meta_protocol,
};
use engine::log::Log;
use engine::raft::{self, RaftMessage, Rebuild, RebuildOptions, Ticker, Transport};
use engine::store::SharedResources;
use engine::time::SlewedClock;
use row::op::{Request, Response};
use row::view::Rules;
use tokio::sync::watch;

use crate::error::ReplicaError;
use crate::expiry::cycle::ExpiryCycles;
use crate::expiry::{ExpiryWork, NextExpiry};
use crate::fault::IntoFault;
use crate::quota::Quota;
use crate::reads::{ReadOutcome, ReadTime};
use crate::replica::{AnnouncedTtl, Replica, ReplicaFault, ReplicaOptions};
use crate::row_cache::RowCache;
use crate::{dirs, reads, tasks};

/// The interval at which the node checks for expired rows.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time without a check, should an alarm be missed.
const EXPIRY_CHECK_DELAY_MAX_MS: u64 = 10_000;
/// Back-off before a replica that has stopped by a fault, or could not be opened, is
/// opened again: doubled from the first to the last.
const RECOVERY_BACKOFF_MIN: Duration = Duration::from_secs(1);
const RECOVERY_BACKOFF_MAX: Duration = Duration::from_secs(60);
/// After this many requests in a row that no leader answered with a snapshot, a damaged
/// replica is opened as it is: its vote may be the one that the group lacks for a
/// majority.
const UNANSWERED_ASKS_MAX: u32 = 3;
/// The interval at which the node checks its disks.
const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// The first group of a partition in the log; group 0 is meta's.
const FIRST_RAFT_GROUP_ID: u64 = 1 << 32;
/// Bits of a group's number that hold the partition's index.
const INDEX_BITS: u32 = 20;

/// The options of a node.
#[derive(Clone)]
pub struct NodeOptions {
    /// The directory of the partitions' stores: one directory each, `<table
    /// id>-<index>-<raft id>`.
    pub dir: PathBuf,
    /// The runtime that Raft runs on.
    pub raft_runtime: tokio::runtime::Handle,
    /// The largest value or row that one op may write, bytes.
    pub write_bytes_max: usize,
    /// The largest answer of one op, bytes.
    pub answer_bytes_max: usize,
    /// Memory for heads and cells read or written lately, over all tables, bytes.
    pub row_cache_bytes: usize,
    /// Memory for requests that wait for their partition and for batches in flight, edits
    /// and answers, over all partitions, bytes. What does not fit is refused.
    pub request_memory_max: usize,
    /// Distinguishes the writes of this cluster from those of others in timetags.
    pub cluster_tag: u8,
    /// The clock for the time that steps of the expiry cycle hold a partition's executor:
    /// [`monotonic`](crate::monotonic).
    pub step_clock: fn() -> Duration,
    /// The process's clock, by which stamps are given.
    pub clock: Arc<SlewedClock>,
    /// The time for which a write may be without a quorum; by then, half a second before
    /// at the earliest, its client gets an unknown outcome.
    pub unknown_after: Duration,
    /// The other servers; `None`: there are none, and every group has one member.
    pub peers: Option<Peers>,
}

/// The node's connection to the others of its cluster.
#[derive(Clone)]
pub struct Peers {
    /// This server.
    pub server: ServerId,
    /// Carries messages between replicas.
    pub transport: Arc<dyn Transport>,
    /// The process's clock for Raft groups.
    pub ticker: Arc<Ticker>,
}

/// Meta's assignment of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The table.
    pub table: Arc<Table>,
    /// The partitions that have a replica here.
    pub placements: Vec<Placement>,
}

/// A replica, or the fault by which there is none.
type OpenResult = Result<Arc<Replica>, ReplicaFault>;

/// The slot of one replica on this node.
#[derive(Clone)]
struct ReplicaSlot {
    table: Arc<Table>,
    placement: Arc<Placement>,
    raft_id: u64,
    replica: OpenResult,
    /// The time at which the replica was opened, could not be opened, or was found to
    /// have stopped.
    since: Instant,
    /// The back-off while the slot is without a replica.
    pause: Duration,
    /// Installs a snapshot from the leader while the replica is damaged.
    rebuild: Option<Arc<Rebuild>>,
}

/// The replicas of this process.
pub struct Node {
    options: NodeOptions,
    log: Arc<Log>,
    shared: SharedResources,
    row_cache: Arc<RowCache>,
    quota: Arc<Quota>,
    replicas: ArcSwap<HashMap<PartitionId, ReplicaSlot>>,
    /// Held while the set of replicas changes.
    changing: tokio::sync::Mutex<()>,
    cycles: Arc<ExpiryCycles>,
    /// Grows with each change that meta is to know at once.
    changes: Arc<watch::Sender<u64>>,
    /// The time of the expiry cycle's next check.
    next_expiry: Arc<NextExpiry>,
}

/// Figures of one table on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableStats {
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
    /// The faults of partitions that are not served, by index.
    pub faults: BTreeMap<u32, String>,
}

impl Node {
    /// Opens a node without replicas; [`Node::follow`] opens them. Starts the node's
    /// periodic work on the current runtime.
    pub fn open(options: NodeOptions, log: Arc<Log>, shared: SharedResources) -> Arc<Node> {
        let row_cache = Arc::new(RowCache::new(options.row_cache_bytes));
        let quota = Quota::new(options.request_memory_max);
        let node = Arc::new(Node {
            options,
            log,
            shared,
            row_cache,
            quota,
            replicas: ArcSwap::default(),
            changing: tokio::sync::Mutex::default(),
            cycles: Arc::new(ExpiryCycles::new()),
            changes: Arc::default(),
            next_expiry: Arc::default(),
        });
        let me = Arc::downgrade(&node);
        tasks::spawn_restarting("expiry_cycle", move || expiry_cycle(me.clone()));
        // Without peers a stopped replica stays stopped until an operator has examined
        // it: no other server has its data.
        if let Some(peers) = &node.options.peers {
            let (me, changes) = (Arc::downgrade(&node), node.changes());
            tasks::spawn_restarting("recover_failed", move || {
                recover_failed(me.clone(), changes.clone())
            });
            let (me, jumps) = (Arc::downgrade(&node), peers.ticker.clock_jumps());
            tasks::spawn_restarting("revoke_on_jumps", move || {
                revoke_on_jumps(me.clone(), jumps.clone())
            });
            // On Raft's runtime, where no client's command can hold it up.
            let me = Arc::downgrade(&node);
            let _of_raft = node.options.raft_runtime.enter();
            tasks::spawn_restarting("leave_ailing_disk", move || leave_ailing_disk(me.clone()));
        }
        node
    }

    /// Makes the set of replicas that of the assignments: opens those that are missing,
    /// closes those that are not listed, and passes on envs. When it returns, each
    /// replica is open or is known not to be openable (its calls then get the fault). It
    /// destroys nothing that is listed: see [`Node::destroy`].
    pub async fn follow(&self, assignments: &[Assignment]) {
        let _one_at_a_time = self.changing.lock().await;
        let mut replicas = HashMap::clone(&self.replicas.load());
        let mut wanted: HashMap<PartitionId, (&Arc<Table>, &Placement, u64)> = HashMap::new();
        for Assignment { table, placements } in assignments {
            for placement in placements {
                match self.member_here(placement) {
                    Some(me) => {
                        wanted.insert(placement.partition, (table, placement, me.raft_id));
                    }
                    None => tracing::warn!(
                        ?placement,
                        "a partition was assigned that has no replica here"
                    ),
                }
            }
        }
        let is_wanted = |id: &PartitionId, slot: &ReplicaSlot| {
            wanted.get(id).is_some_and(|(_, _, raft_id)| *raft_id == slot.raft_id)
        };
        let unlisted: Vec<PartitionId> =
            replicas.iter().filter(|(id, slot)| !is_wanted(id, slot)).map(|(id, _)| *id).collect();
        let closing: Vec<ReplicaSlot> =
            unlisted.iter().filter_map(|id| replicas.remove(id)).collect();
        if !closing.is_empty() {
            self.replicas.store(Arc::new(replicas.clone()));
            close_all(closing.iter()).await;
            drop(closing);
        }
        for (id, (table, placement, _)) in &wanted {
            if let Some(slot) = replicas.get_mut(id) {
                slot.table = (*table).clone();
                slot.placement = Arc::new((*placement).clone());
                if let Ok(replica) = &slot.replica {
                    replica.on_default_ttl(default_ttl(table));
                }
            }
        }
        let missing: Vec<PartitionId> =
            wanted.keys().filter(|id| !replicas.contains_key(id)).copied().collect();
        let open = |(table, placement, raft_id): (&Arc<Table>, &Placement, u64)| {
            self.open_replica(
                table.clone(),
                Arc::new(placement.clone()),
                raft_id,
                RECOVERY_BACKOFF_MIN,
            )
        };
        let opened = futures::future::join_all(missing.iter().map(|id| open(wanted[id]))).await;
        replicas.extend(missing.into_iter().zip(opened));
        self.replicas.store(Arc::new(replicas));
        self.changes.send_modify(|change| *change += 1);
    }

    /// This node's member of a partition's group.
    fn member_here(&self, placement: &Placement) -> Option<Member> {
        match &self.options.peers {
            Some(peers) => {
                placement.members.iter().find(|member| member.server == peers.server).copied()
            }
            None => placement.members.first().copied(),
        }
    }

    /// Deletes everything of a table that is being dropped. A second call is harmless,
    /// and so is a call for a table that was never here.
    ///
    /// # Errors
    /// The file system's error; the table's calls are refused from then on all the
    /// same.
    pub async fn destroy(&self, table: &Table) -> std::io::Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let mut replicas = HashMap::clone(&self.replicas.load());
        let ids: Vec<PartitionId> =
            replicas.keys().filter(|id| id.table == table.id).copied().collect();
        let closing: Vec<ReplicaSlot> = ids.iter().filter_map(|id| replicas.remove(id)).collect();
        self.replicas.store(Arc::new(replicas));
        close_all(closing.iter()).await;
        drop(closing);
        for found in dirs::list(&self.options.dir)?
            .into_iter()
            .filter(|found| found.partition.table == table.id)
        {
            self.delete_replica(&found).await?;
        }
        Ok(())
    }

    /// Deletes what a replica left: its part of the log first, so that the directory is
    /// still there to find an interrupted deletion by.
    async fn delete_replica(&self, found: &dirs::ReplicaDir) -> std::io::Result<()> {
        self.log.destroy(raft_group_id(found.partition)).await?;
        remove_store(&found.path).await
    }

    /// Deletes, ignores or refuses the partition's directories under other Raft ids
    /// before a replica is opened. Nothing of an earlier placement may be left, as the
    /// group has one log here. But that log belongs to the replica itself once it has a
    /// directory. Raft ids only grow: a larger one is a copy that was made by hand, or
    /// meta's assignment is old.
    async fn delete_other_replicas(
        &self,
        partition: PartitionId,
        raft_id: u64,
    ) -> std::io::Result<()> {
        let own = dirs::path(&self.options.dir, partition, raft_id);
        let has_past = own.exists() || raft::rebuild_dirs(&own).iter().any(|path| path.exists());
        for found in dirs::list(&self.options.dir)?
            .into_iter()
            .filter(|found| found.partition == partition && found.raft_id != raft_id)
        {
            let path = found.path.display();
            match (found.raft_id < raft_id, has_past) {
                (true, false) => self.delete_replica(&found).await?,
                (true, true) => {
                    tracing::warn!(
                        %path,
                        "removed the directory of an earlier replica; the group's log belongs to \
                         its successor"
                    );
                    remove_store(&found.path).await?;
                }
                (false, true) => {
                    tracing::warn!(
                        %path,
                        "ignored the directory of a later replica: the group's log belongs to an \
                         earlier one"
                    )
                }
                (false, false) => {
                    let why = format!(
                        "{path} is of a later replica than {raft_id}, which is to be opened and \
                         has no directory"
                    );
                    return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
                }
            }
        }
        Ok(())
    }

    async fn open_replica(
        &self,
        table: Arc<Table>,
        placement: Arc<Placement>,
        raft_id: u64,
        pause: Duration,
    ) -> ReplicaSlot {
        let replica = self.try_open(&table, &placement, raft_id).await;
        if let Err(error) = &replica {
            tracing::error!(
                table = table.name,
                index = placement.partition.index,
                %error,
                "a partition could not be opened"
            );
        }
        ReplicaSlot {
            table,
            placement,
            raft_id,
            replica,
            since: Instant::now(),
            pause,
            rebuild: None,
        }
    }

    /// Hands over the leaderships of replicas that have stopped by a fault. Opens those
    /// whose back-off is over, or rebuilds them when they are damaged. Returns the time
    /// at which there is more to do.
    async fn recover_failed(&self) -> Option<Instant> {
        let stopped: Vec<Arc<Replica>> =
            self.replicas().into_iter().filter(|replica| replica.stopped().is_some()).collect();
        futures::future::join_all(stopped.iter().map(|replica| replica.step_down())).await;
        let _one_at_a_time = self.changing.lock().await;
        let mut replicas = HashMap::clone(&self.replicas.load());
        let now = Instant::now();
        let mut closing = Vec::new();
        for slot in replicas.values_mut() {
            let Some(stopped) =
                slot.replica.as_ref().ok().and_then(|replica| replica.stopped().cloned())
            else {
                continue;
            };
            // The replica ran for longer than the longest back-off: it had recovered from
            // any earlier fault.
            if now.duration_since(slot.since) > RECOVERY_BACKOFF_MAX {
                slot.pause = RECOVERY_BACKOFF_MIN;
            }
            slot.since = now;
            closing.extend(std::mem::replace(&mut slot.replica, Err(stopped)).ok());
        }
        if !closing.is_empty() {
            self.replicas.store(Arc::new(replicas.clone()));
            futures::future::join_all(closing.iter().map(|replica| replica.close())).await;
            drop(closing);
        }
        let mut due = Vec::new();
        for (id, slot) in &mut replicas {
            let Err(ReplicaFault { is_damaged, .. }) = slot.replica else { continue };
            let is_rebuilt = slot.rebuild.as_ref().is_some_and(|rebuild| rebuild.is_done());
            if !is_rebuilt && now < slot.since + slot.pause {
                continue;
            }
            let is_in_vain = slot
                .rebuild
                .as_ref()
                .is_some_and(|rebuild| rebuild.failed_requests() >= UNANSWERED_ASKS_MAX);
            if !is_damaged || is_rebuilt || is_in_vain {
                if let Some(rebuild) = &slot.rebuild {
                    rebuild.stop().await;
                }
                due.push(*id);
            } else if let Some(peers) = &self.options.peers {
                let rebuild = slot
                    .rebuild
                    .get_or_insert_with(|| {
                        Arc::new(self.rebuild(peers, &slot.placement, slot.raft_id))
                    })
                    .clone();
                tasks::spawn(async move { rebuild.request_snapshot().await }, |why| {
                    tasks::report_panic("rebuild", why)
                });
                (slot.since, slot.pause) = (now, (slot.pause * 2).min(RECOVERY_BACKOFF_MAX));
            }
        }
        let open = |slot: &ReplicaSlot| {
            let pause = (slot.pause * 2).min(RECOVERY_BACKOFF_MAX);
            self.open_replica(slot.table.clone(), slot.placement.clone(), slot.raft_id, pause)
        };
        let opened = futures::future::join_all(due.iter().map(|id| open(&replicas[id]))).await;
        for (id, slot) in due.into_iter().zip(opened) {
            if slot.replica.is_ok() {
                tracing::info!(partition = ?id, "a replica that was set aside is open again");
            }
            replicas.insert(id, slot);
            self.changes.send_modify(|change| *change += 1);
        }
        let next = replicas
            .values()
            .filter(|slot| slot.replica.is_err())
            .map(|slot| slot.since + slot.pause)
            .min();
        self.replicas.store(Arc::new(replicas));
        next
    }

    async fn try_open(&self, table: &Table, placement: &Placement, raft_id: u64) -> OpenResult {
        let partition = placement.partition;
        let unopened =
            |error: std::io::Error| ReplicaFault { fault: error.into_fault(), is_damaged: false };
        self.delete_other_replicas(partition, raft_id).await.map_err(unopened)?;
        let options = ReplicaOptions {
            placement,
            table: &table.name,
            raft_id,
            group_id: raft_group_id(partition),
            dir: &dirs::path(&self.options.dir, partition, raft_id),
            rules: self.limits(),
            default_ttl: default_ttl(table),
            cluster_tag: self.options.cluster_tag,
            clock: &self.options.clock,
            unknown_after: self.options.unknown_after,
            raft_runtime: &self.options.raft_runtime,
            peers: self.options.peers.as_ref(),
            changes: &self.changes,
            quota: &self.quota,
            next_expiry: &self.next_expiry,
            step_clock: self.options.step_clock,
        };
        Replica::open(options, &self.log, &self.shared, &self.row_cache).await
    }

    /// The rules that the server's own configuration sets.
    fn limits(&self) -> Rules {
        let NodeOptions { write_bytes_max, answer_bytes_max, .. } = self.options;
        Rules { write_bytes_max, answer_bytes_max, ..Rules::default() }
    }

    fn rebuild(&self, peers: &Peers, placement: &Placement, raft_id: u64) -> Rebuild {
        Rebuild::new(RebuildOptions {
            id: raft_id,
            log: self.log.group_log(raft_group_id(placement.partition)),
            directory: dirs::path(&self.options.dir, placement.partition, raft_id),
            shared: self.shared.clone(),
            members: placement
                .members
                .iter()
                .map(|member| (member.raft_id, raft::Node { server: member.server.0 }))
                .collect(),
            transport: peers.transport.clone(),
            ticker: peers.ticker.clone(),
        })
    }

    /// The replica of a partition.
    pub fn replica(&self, partition: PartitionId) -> Result<Arc<Replica>, CallError> {
        let replicas = self.replicas.load();
        let slot = replicas.get(&partition).ok_or(CallError::NoTable)?;
        slot.replica.clone().map_err(|fault| fault.to_call_error(self.options.peers.is_some()))
    }

    /// All replicas that are open.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas
            .load()
            .values()
            .filter_map(|slot| slot.replica.as_ref().ok().cloned())
            .collect()
    }

    /// Grows when a leadership or a replica's health changes, which is worth a report to
    /// meta at once.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The partitions that this node leads while it is in touch with a majority of their
    /// replicas.
    pub fn led(&self) -> Vec<PartitionId> {
        let replicas = self.replicas();
        replicas
            .iter()
            .filter(|replica| replica.leads_with_quorum())
            .map(|replica| replica.partition())
            .collect()
    }

    /// The state of all replicas, for meta.
    pub fn report(&self) -> Vec<meta_protocol::Replica> {
        let replicas = self.replicas.load();
        let report = |(partition, slot): (&PartitionId, &ReplicaSlot)| match &slot.replica {
            Ok(replica) => replica.report(),
            Err(error) => meta_protocol::Replica {
                partition: *partition,
                raft_id: slot.raft_id,
                health: if slot.rebuild.is_some() {
                    meta_protocol::ReplicaHealth::Installing
                } else {
                    meta_protocol::ReplicaHealth::Faulty
                },
                fault: Some(error.to_string()),
                term: 0,
                leads: false,
                last_log: 0,
                applied: 0,
                matched: Vec::new(),
                rows: 0,
                expiring: 0,
                disk_bytes: 0,
                memtable_bytes: 0,
            },
        };
        replicas.iter().map(report).collect()
    }

    /// Passes a message from another server to the replica that it is for.
    ///
    /// # Errors
    /// [`ReplicaError::NoPartition`], [`ReplicaError::Unavailable`] or
    /// [`ReplicaError::Receive`].
    pub async fn receive(&self, message: RaftMessage) -> Result<bytes::Bytes, ReplicaError> {
        let partition = partition_of(message.group).ok_or(ReplicaError::NoPartition)?;
        let rebuild = self.replicas.load().get(&partition).and_then(|slot| slot.rebuild.clone());
        let Some(rebuild) = rebuild else {
            return Ok(self.replica(partition)?.receive(message).await?);
        };
        let reply = rebuild.receive(message).await;
        if rebuild.is_done() {
            self.changes.send_modify(|change| *change += 1);
        }
        Ok(reply?)
    }

    /// Waits until the replica here has applied an entry, and then until its log is on
    /// the disk: what was committed up to that entry survives here.
    ///
    /// # Errors
    /// The reason why the entry may not survive here: all of [`ReplicaError`] but those of
    /// messages and of transfers.
    pub async fn sync_copy(&self, partition: PartitionId, index: u64) -> Result<(), ReplicaError> {
        self.replica(partition)?.sync_copy(index, &self.log).await
    }

    /// Hands the leadership of a partition over to another member, if this node leads it
    /// in this term.
    ///
    /// # Errors
    /// [`ReplicaError::Unavailable`], [`ReplicaError::NotLeading`] or
    /// [`ReplicaError::Transfer`].
    pub async fn transfer(
        &self,
        partition: PartitionId,
        term: u64,
        to: u64,
    ) -> Result<(), ReplicaError> {
        let replica = self.replica(partition)?;
        let figures = replica.figures();
        if !figures.is_leader || figures.term != term {
            return Err(ReplicaError::NotLeading(term));
        }
        Ok(replica.transfer(to, "meta has asked for it").await?)
    }

    /// Hands over all leaderships to members that are ready, before this process stops;
    /// gives up after `timeout`.
    pub async fn hand_over(&self, timeout: Duration) {
        let replicas = self.replicas();
        let each = replicas.iter().map(|replica| replica.hand_over("the server is stopping"));
        if tokio::time::timeout(timeout, futures::future::join_all(each)).await.is_err() {
            tracing::warn!("not all leaderships were handed over in time");
        }
    }

    /// Switches the expiry cycle on or off (DEBUG SET-ACTIVE-EXPIRE).
    pub fn set_active_expiry(&self, active: bool) {
        self.cycles.is_active.store(active, Ordering::Relaxed);
        self.next_expiry.wake();
    }

    /// Bytes in the row cache.
    pub fn row_cache_used(&self) -> usize {
        self.row_cache.used()
    }

    /// The numbers of rows, and of fields of other rows, that the expiry cycle of this
    /// process has removed since it began.
    pub fn expired(&self) -> (u64, u64) {
        (self.cycles.rows.load(Ordering::Relaxed), self.cycles.fields.load(Ordering::Relaxed))
    }

    /// The difference between the time of stamps and the wall clock, ms: the process's,
    /// or that of the partition led here that differs most. Positive: it is ahead.
    pub fn clock_ahead_ms(&self) -> i64 {
        let led = self
            .replicas()
            .into_iter()
            .filter(|replica| replica.leads())
            .map(|replica| replica.clock.ahead_ms());
        led.chain([self.options.clock.ahead_ms()])
            .max_by_key(|ahead_ms| ahead_ms.abs())
            .unwrap_or(0)
    }

    /// Figures of a table's partitions here.
    pub fn table_stats(&self, table: TableId) -> TableStats {
        let mut sum = TableStats { faults: self.faults(table), ..TableStats::default() };
        let replicas = self.replicas.load();
        let open = replicas
            .iter()
            .filter(|(id, _)| id.table == table)
            .filter_map(|(_, slot)| slot.replica.as_ref().ok());
        open.for_each(|replica| replica.add_stats(&mut sum));
        sum
    }

    /// The faults of a table's partitions that are not served here, by index. It reads no
    /// store.
    pub fn faults(&self, table: TableId) -> BTreeMap<u32, String> {
        let fault = |(id, slot): (&PartitionId, &ReplicaSlot)| {
            let fault = match &slot.replica {
                Ok(replica) => replica.stopped().map(ReplicaFault::to_string),
                Err(error) => Some(error.to_string()),
            };
            fault.map(|fault| (id.index, fault))
        };
        self.replicas.load().iter().filter(|(id, _)| id.table == table).filter_map(fault).collect()
    }

    /// Closes all replicas in good order and flushes their stores.
    pub async fn close(&self) {
        let _one_at_a_time = self.changing.lock().await;
        let replicas = self.replicas.swap(Arc::default());
        close_all(replicas.values()).await;
    }
}

async fn close_all(slot: impl Iterator<Item = &ReplicaSlot>) {
    let close = |slot: &ReplicaSlot| {
        let (replica, rebuild) = (slot.replica.as_ref().ok().cloned(), slot.rebuild.clone());
        async move {
            if let Some(replica) = replica {
                replica.close().await;
            }
            if let Some(rebuild) = rebuild {
                rebuild.stop().await;
            }
        }
    };
    futures::future::join_all(slot.map(close)).await;
}

/// Meta's value of a table's `default_ttl`.
fn default_ttl(table: &Table) -> AnnouncedTtl {
    let seconds: u64 =
        table.envs.get("default_ttl").and_then(|text| text.parse().ok()).unwrap_or(0);
    AnnouncedTtl { ttl_ms: seconds.saturating_mul(1000), set_at_ms: table.default_ttl_since_ms }
}

/// Removes a replica's directory and what a rebuild has left beside it.
async fn remove_store(path: &Path) -> std::io::Result<()> {
    for path in raft::rebuild_dirs(path).iter().map(PathBuf::as_path).chain([path]) {
        match tokio::fs::remove_dir_all(path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The number of a partition's group in the node's log.
fn raft_group_id(partition: PartitionId) -> u64 {
    FIRST_RAFT_GROUP_ID + (u64::from(partition.table.0) << INDEX_BITS) + u64::from(partition.index)
}

/// The partition of a group's number; `None` for meta's.
fn partition_of(group: u64) -> Option<PartitionId> {
    let place = group.checked_sub(FIRST_RAFT_GROUP_ID)?;
    let table = u32::try_from(place >> INDEX_BITS).ok()?;
    Some(PartitionId { table: TableId(table), index: (place & ((1 << INDEX_BITS) - 1)) as u32 })
}

impl LocalReplicas<Request, Response> for Node {
    fn server(&self) -> ServerId {
        self.options.peers.as_ref().map_or(ServerId(0), |peers| peers.server)
    }

    fn leader(&self, partition: PartitionId) -> Option<Leader> {
        match &self.replicas.load().get(&partition)?.replica {
            Ok(replica) => replica.leader(),
            Err(_) => None,
        }
    }
}

impl CallPartition<Request, Response> for Node {
    fn read_now(
        &self,
        partition: PartitionId,
        request: &Request,
    ) -> Option<Result<Response, CallError>> {
        let replicas = self.replicas.load();
        let Some(ReplicaSlot { replica: Ok(replica), .. }) = replicas.get(&partition) else {
            return None;
        };
        if !replica.lease.is_valid()
            || reads::is_for_executor(request)
            || reads::is_long(replica, request)
        {
            return None;
        }
        match reads::answer(replica, request, reads::LOCAL_READ_CELLS_MAX, ReadTime::Now) {
            Ok(ReadOutcome::Done(response)) => Some(Ok(response)),
            Ok(
                ReadOutcome::ClockNotCommitted(..)
                | ReadOutcome::LeaseExpired
                | ReadOutcome::TooExpensive,
            ) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn call(
        &self,
        partition: PartitionId,
        request: Request,
    ) -> Boxed<'_, Result<Response, CallError>> {
        let replica = self.replica(partition);
        Box::pin(async move {
            let replica = replica?;
            if reads::is_sync(&request) {
                return replica.sync(&self.log).await;
            }
            if !reads::is_for_executor(&request) {
                return replica.read(request).await;
            }
            match replica.queue.push(request)?.await {
                Ok(outcome) => outcome,
                // The executor ended without an outcome. Only a bug or the end of the
                // process does that.
                Err(_) => Err(CallError::Unknown("the partition's executor ended".to_owned())),
            }
        })
    }
}

/// In a cluster: revokes all leases whenever the machine has stood still, until the node
/// is gone.
async fn revoke_on_jumps(node: std::sync::Weak<Node>, mut jumps: watch::Receiver<Option<Instant>>) {
    while jumps.changed().await.is_ok() {
        let Some(node) = node.upgrade() else { return };
        node.replicas().iter().for_each(|replica| replica.lease.revoke());
    }
}

/// In a cluster: moves leaderships to other servers while a disk of this one is slow,
/// full or failed, until the node is gone.
async fn leave_ailing_disk(node: std::sync::Weak<Node>) {
    let mut tick = tokio::time::interval(DISK_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ailed = None;
    loop {
        tick.tick().await;
        let Some(node) = node.upgrade() else { return };
        let ails = node.log.recent_disk_problem().map(|disk_problem| disk_problem.name());
        if ails != ailed {
            ailed = ails;
            node.changes.send_modify(|change| *change += 1);
        }
        let replicas = node.replicas();
        futures::future::join_all(replicas.iter().map(|replica| replica.leave_ailing_disk())).await;
    }
}

/// In a cluster: opens or rebuilds failed replicas until the node is gone.
async fn recover_failed(node: std::sync::Weak<Node>, mut changes: watch::Receiver<u64>) {
    loop {
        changes.borrow_and_update();
        let next = {
            let Some(node) = node.upgrade() else { return };
            node.recover_failed().await
        };
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

/// Removes expired rows and fields, in all partitions side by side, until the node is
/// gone.
async fn expiry_cycle(node: std::sync::Weak<Node>) {
    let mut tick = tokio::time::interval(EXPIRY_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A panic may have ended the loop after the alarm was taken.
    let Some(next_expiry) = node.upgrade().map(|node| node.next_expiry.clone()) else { return };
    next_expiry.wake();
    loop {
        tick.tick().await;
        let Some(node) = node.upgrade() else { return };
        // Not by the wall clock, which may step back: the next check would then be far
        // away.
        let now_ms = node.options.clock.steady_ms();
        if !node.cycles.is_active.load(Ordering::Relaxed) || !node.next_expiry.is_due(now_ms) {
            continue;
        }
        let mut pause_ms = EXPIRY_CHECK_DELAY_MAX_MS;
        for replica in node.replicas().into_iter().filter(|replica| replica.leads()) {
            // The proposal may not have gone through before.
            replica.propose_default_ttl();
            replica.commit_clock_if_ahead();
            // By the partition's own clock, which does not step back.
            match replica.expiry.due(replica.clock.now().now_ms, &replica.rules()) {
                ExpiryWork::Now => {
                    // Work that has begun goes on until nothing is due.
                    if let Some(work) = replica.expiry.start_work() {
                        tasks::spawn(node.cycles.clone().work(replica, work), |why| {
                            tasks::report_panic("expiry_work", why)
                        });
                    }
                }
                ExpiryWork::In(left_ms) => pause_ms = pause_ms.min(left_ms),
            }
        }
        node.next_expiry.schedule(now_ms + pause_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_one_partition() {
        for (table, index) in [(0, 0), (1, 0), (7, 1023), (u32::MAX, (1 << INDEX_BITS) - 1)] {
            let partition = PartitionId { table: TableId(table), index };
            assert_eq!(partition_of(raft_group_id(partition)), Some(partition));
        }
        assert_eq!(partition_of(0), None);
        assert_eq!(partition_of(u64::MAX), None);
    }
}
