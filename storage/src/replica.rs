//! One copy of one partition on this node: its store, its Raft group, its executor's
//! queue.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cluster::{CallError, Fault, Leader, PartitionId, Placement, ServerId, meta_protocol};
use engine::batch::Family;
use engine::clocks::{Clocks, SystemClocks};
use engine::log::{Log, LogError};
use engine::mutants::{self, Rule};
use engine::raft::{
    self, ChangeError, Group, GroupError, GroupOptions, GroupStats, QUORUM_ACK_AGE_MAX,
    RaftMessage, ReceiveError, Role, TransferReason,
};
use engine::store::{self, SharedResources, Store, StoreHealth, StoreSizes};
use engine::time::SlewedClock;
use parking_lot::Mutex;
use row::op::{Answer, Op, Request, Response};
use row::view::Rules;
use row::{PartitionOp, key, value};
use tokio::sync::watch;

pub(crate) use engine::raft::Leadership;

use crate::clock::{self, Clock};
use crate::compaction_filter::RowLiveness;
use crate::cursors::Cursors;
use crate::error::ReplicaError;
use crate::executor;
use crate::expiry::{Expiry, ExpiryWork, NextExpiry};
use crate::fault::{self, IntoFault};
use crate::lease::{Lease, LeaseRequest};
use crate::node::{Peers, TableStats};
use crate::queue::Queue;
use crate::quota::Quota;
use crate::reads::{self, ReadOutcome, ReadTime};
use crate::row_cache::{CacheScope, RowCache};
use crate::tasks;

/// A replica, running until [`Replica::stop`] or [`Replica::close`].
pub struct Replica {
    partition: PartitionId,
    /// The table's name, for the log.
    table: String,
    /// The reason of a transfer of leadership, for the log.
    transfer_reason: Mutex<&'static str>,
    raft_id: u64,
    pub(crate) store: Store,
    group: Group,
    role: watch::Receiver<Role>,
    /// The last term for which this replica made itself ready to lead.
    ready_term: Mutex<u64>,
    /// The rules in force: the partition's `default_ttl` by the applied state, and the
    /// limits of this server.
    rules: ArcSwap<Rules>,
    /// The time at which the `default_ttl` in force was set, by meta's clock.
    set_at_ms: AtomicU64,
    /// Meta's value of the `default_ttl`. It reaches each server at another time, so it
    /// is in force only once it is in the partition's state.
    announced_ttl: Mutex<AnnouncedTtl>,
    pub(crate) queue: Queue,
    /// The group has other members, which go on without this one.
    has_peers: bool,
    /// The fault by which it has stopped.
    stopped: OnceLock<ReplicaFault>,
    changes: Arc<watch::Sender<u64>>,
    pub(crate) clock: Clock,
    /// The time for which a batch in flight may be without a quorum; by then its clients
    /// get an unknown outcome.
    pub(crate) unknown_after: Duration,
    pub(crate) lease: Lease,
    in_flight: AtomicUsize,
    pub(crate) cursors: Cursors,
    pub(crate) expiry: Arc<Expiry>,
    /// The clock for the time that steps of the expiry cycle hold the executor.
    pub(crate) step_clock: fn() -> Duration,
    pub(crate) row_cache: Arc<RowCache>,
    pub(crate) cache_scope: CacheScope,
    /// The last counts, the time of reading them, and the store's count of changes then.
    counts: Mutex<Option<(Instant, u64, RowCounts)>>,
}

/// A `default_ttl` that meta has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnnouncedTtl {
    pub(crate) ttl_ms: u64,
    /// The time of the change by meta's clock; 0 = never.
    pub(crate) set_at_ms: u64,
}

/// The size of the replica's store.
#[derive(Debug, Clone, Copy)]
struct RowCounts {
    rows: u64,
    expiring: u64,
    sizes: StoreSizes,
}

/// Counts of this age are read again though nothing has changed: readers may have
/// released memory.
const COUNTS_AGE_MAX: Duration = Duration::from_secs(60);

/// The longest wait of one call for a confirmation of leadership; the caller may try
/// again.
const RAFT_TIMEOUT: Duration = Duration::from_millis(400);

/// The longest wait of a replica for an entry that it is to have on its disk; the caller
/// asks again.
const SYNC_COPY_TIMEOUT: Duration = Duration::from_secs(5);

/// With this lead over the wall clock, ms, a partition's time can't be had from the wall
/// clock alone. It is then committed even without writes, at about this age, ms.
const CLOCK_AHEAD_MS: i64 = 1_000;
const COMMITTED_CLOCK_AGE_MS: u64 = 9_000;

/// The delay before a new leader that could not make itself ready tries again.
const NOT_READY_RETRY_DELAY: Duration = Duration::from_millis(20);

/// The time in which a replica that has stopped by a fault tries to hand over its
/// leadership; after that, the others elect.
const STEP_DOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of tries of a read whose lease runs out before it is done.
const READ_TRIES: usize = 5;

/// The fault by which a replica has stopped or is not open.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaFault {
    pub(crate) fault: Fault,
    /// True when its store has found that its data on disk can't be relied on: opening it
    /// again does not help, a copy of the leader's does. Damage that an op finds in a
    /// record is none: the other replicas have applied the same entries.
    pub(crate) is_damaged: bool,
}

impl std::fmt::Display for ReplicaFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "storage fault: {}", self.fault)
    }
}

impl ReplicaFault {
    fn of(fault: impl IntoFault, store: &Store) -> ReplicaFault {
        ReplicaFault { fault: fault.into_fault(), is_damaged: store.damage().is_some() }
    }

    /// The error for callers. With peers it is that this replica does not lead, so that
    /// callers find the leader.
    pub(crate) fn to_call_error(&self, has_peers: bool) -> CallError {
        match has_peers {
            true => CallError::NoLeader(format!("its replica here is set aside: {self}")),
            false => CallError::Fault(self.fault.clone()),
        }
    }
}

/// The reason why a proposal has no result.
pub(crate) enum ProposeError {
    /// It did not get into the log.
    NotProposed(String),
    /// It may be committed or not.
    Unknown(String),
}

impl From<&ProposeError> for CallError {
    fn from(error: &ProposeError) -> CallError {
        match error {
            ProposeError::NotProposed(why) => CallError::NoLeader(why.clone()),
            ProposeError::Unknown(why) => CallError::Unknown(why.clone()),
        }
    }
}

/// The options of a replica.
pub(crate) struct ReplicaOptions<'a> {
    pub(crate) placement: &'a Placement,
    /// The table's name.
    pub(crate) table: &'a str,
    /// The replica's id in its group.
    pub(crate) raft_id: u64,
    /// The group's number in the node's log.
    pub(crate) group_id: u64,
    pub(crate) dir: &'a Path,
    /// The limits of this server.
    pub(crate) rules: Rules,
    pub(crate) default_ttl: AnnouncedTtl,
    pub(crate) cluster_tag: u8,
    pub(crate) clock: &'a Arc<SlewedClock>,
    pub(crate) unknown_after: Duration,
    pub(crate) raft_runtime: &'a tokio::runtime::Handle,
    pub(crate) peers: Option<&'a Peers>,
    /// Grows when leadership or health changes.
    pub(crate) changes: &'a Arc<watch::Sender<u64>>,
    /// Memory for requests and batches of the node.
    pub(crate) quota: &'a Arc<Quota>,
    /// The node's schedule of the expiry cycle.
    pub(crate) next_expiry: &'a Arc<NextExpiry>,
    pub(crate) step_clock: fn() -> Duration,
}

impl ReplicaOptions<'_> {
    fn clocks(&self) -> Arc<dyn Clocks> {
        self.peers.map_or_else(
            || Arc::new(SystemClocks) as Arc<dyn Clocks>,
            |peers| peers.ticker.clocks().clone(),
        )
    }

    async fn start_group(&self, log: &Arc<Log>, store: Store) -> Result<Group, Fault> {
        let partition = self.placement.partition;
        let name = format!("table {} partition {}", partition.table.0, partition.index);
        let (id, log) = (self.raft_id, log.group_log(self.group_id));
        let started = match self.peers {
            None => {
                self.raft_runtime
                    .spawn(async move { Group::start_standalone(id, name, log, store).await })
                    .await
            }
            Some(peers) => {
                let members = self.placement.members.iter();
                let initial = members
                    .map(|member| (member.raft_id, engine::raft::Node { server: member.server.0 }))
                    .collect();
                let options = GroupOptions {
                    group: self.group_id,
                    id,
                    name,
                    log,
                    store,
                    transport: peers.transport.clone(),
                    initial: Some(initial),
                    ticker: peers.ticker.clone(),
                };
                self.raft_runtime.spawn(async move { Group::start(options).await }).await
            }
        };
        started.map_err(IntoFault::into_fault)?.map_err(IntoFault::into_fault)
    }
}

impl Replica {
    /// Opens the store, starts the group and the executor.
    pub(crate) async fn open(
        options: ReplicaOptions<'_>,
        log: &Arc<Log>,
        shared: &SharedResources,
        row_cache: &Arc<RowCache>,
    ) -> Result<Arc<Replica>, ReplicaFault> {
        let unopened = |fault: Fault| ReplicaFault { fault, is_damaged: false };
        raft::finish_rebuild(options.dir, &log.group_log(options.group_id), shared)
            .await
            .map_err(|error| unopened(error.into_fault()))?;
        let store = {
            let (dir, shared) = (options.dir.to_owned(), shared.clone());
            tokio::task::spawn_blocking(move || {
                Store::open_with_filter(&shared, dir, Arc::new(RowLiveness))
            })
            .await
        }
        .map_err(|error| unopened(error.into_fault()))?
        .map_err(|fault| ReplicaFault {
            is_damaged: matches!(fault, store::Fault::Corrupt { .. }),
            fault: fault.into_fault(),
        })?;
        let opened = match last_stamp(&store) {
            Ok(stamp_ms) => {
                options.start_group(log, store.clone()).await.map(|group| (group, stamp_ms))
            }
            Err(fault) => Err(fault),
        };
        let (group, stamp_ms) = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                let fault = ReplicaFault::of(fault, &store);
                close_store(store, options.placement.partition).await;
                return Err(fault);
            }
        };
        let replica = Arc::new(Replica {
            partition: options.placement.partition,
            table: options.table.to_owned(),
            transfer_reason: Mutex::default(),
            raft_id: options.raft_id,
            store,
            role: group.leadership_changes(),
            group,
            ready_term: Mutex::new(0),
            rules: ArcSwap::from_pointee(options.rules),
            set_at_ms: AtomicU64::new(0),
            announced_ttl: Mutex::new(options.default_ttl),
            queue: Queue::new(options.quota.clone()),
            has_peers: options.peers.is_some(),
            stopped: OnceLock::new(),
            changes: options.changes.clone(),
            clock: Clock::new(options.clock.clone(), stamp_ms, options.cluster_tag),
            unknown_after: options.unknown_after,
            lease: Lease::new(options.clocks()),
            in_flight: AtomicUsize::new(0),
            cursors: Cursors::default(),
            expiry: Arc::new(Expiry::new(options.next_expiry.clone())),
            step_clock: options.step_clock,
            cache_scope: row_cache.new_scope(),
            row_cache: row_cache.clone(),
            counts: Mutex::default(),
        });
        replica.run("its executor", executor::run(replica.clone()));
        replica.run("following its role", follow_role(Arc::downgrade(&replica)));
        Ok(replica)
    }

    /// Runs a task that the replica can't work without: its queue would stay open, and it
    /// would go on answering reads. A panic of the task stops the replica; requests under
    /// way then get an unknown outcome.
    fn run(
        self: &Arc<Self>,
        what: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let replica = Arc::downgrade(self);
        tasks::spawn(task, move |why| {
            if let Some(replica) = replica.upgrade() {
                replica.fault(Fault::internal(format!("{what} panicked: {why}")));
            }
        })
    }

    /// The partition that this is a replica of.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The rules in force.
    pub(crate) fn rules(&self) -> Rules {
        **self.rules.load()
    }

    /// Takes the `default_ttl` that meta announces for the table.
    pub(crate) fn on_default_ttl(&self, announced_ttl: AnnouncedTtl) {
        *self.announced_ttl.lock() = announced_ttl;
        self.propose_default_ttl();
    }

    /// Proposes the announced `default_ttl` for the partition's state, if this replica
    /// leads and the value is newer.
    pub(crate) fn propose_default_ttl(&self) {
        let AnnouncedTtl { ttl_ms, set_at_ms } = *self.announced_ttl.lock();
        if !self.leads() || set_at_ms <= self.set_at_ms.load(Ordering::Acquire) {
            return;
        }
        let request = Request {
            ops: vec![Op::Partition(PartitionOp::SetDefaultTtl { ttl_ms, set_at_ms })],
            joined: Vec::new(),
            watched: Vec::new(),
        };
        if let Err(error) = self.queue.push(request) {
            tracing::debug!(
                partition = ?self.partition,
                %error,
                "the table's default_ttl is not proposed yet"
            );
        }
    }

    /// Puts a `default_ttl` into force.
    pub(crate) fn apply_default_ttl(&self, rule: &value::DefaultTtl) {
        let rules = Rules {
            default_ttl_ms: rule.ttl_ms,
            default_ttl_since_ms: rule.since_ms,
            ..self.rules()
        };
        self.rules.store(Arc::new(rules));
        self.set_at_ms.store(rule.set_at_ms, Ordering::Release);
        self.expiry.wake();
    }

    /// Puts the `default_ttl` of the applied state into force: other leaders may have set
    /// it, or the batch that set it here may have failed.
    pub(crate) fn reload_default_ttl(&self) -> Result<(), CallError> {
        let record =
            self.store.get(Family::Default, key::DEFAULT_TTL).map_err(|error| self.fault(error))?;
        let rule = record
            .map(|record| value::DefaultTtl::decode(&record))
            .transpose()
            .map_err(|error| self.fault(error))?;
        self.apply_default_ttl(&rule.unwrap_or_default());
        Ok(())
    }

    /// Waits until this replica leads with everything of earlier terms applied.
    pub(crate) async fn acquire_leadership(&self) -> Result<Leadership, CallError> {
        let request = self.request_lease()?;
        let leadership = match self.with_timeout(self.group.acquire_leadership()).await {
            Ok(leadership) => leadership,
            // Only writes acquire leadership, so a full disk is the better reason.
            Err(error) => return Err(self.writable().err().unwrap_or(error)),
        };
        self.on_new_term(leadership.term())?;
        self.lease.grant(request, QUORUM_ACK_AGE_MAX, leadership.term());
        Ok(leadership)
    }

    /// Renews the lease; returns the term in which this replica leads.
    pub(crate) async fn renew_lease(&self) -> Result<u64, CallError> {
        let request = self.request_lease()?;
        let term = self.with_timeout(self.group.confirm_leadership()).await?;
        self.on_new_term(term)?;
        self.lease.grant(request, QUORUM_ACK_AGE_MAX, term);
        Ok(term)
    }

    /// Notes the lease's request before leadership is confirmed. A replica that has
    /// stopped gets no lease: a stop after this revokes the lease that was requested.
    fn request_lease(&self) -> Result<LeaseRequest, CallError> {
        let request = self.lease.request();
        self.queue.closed().map_or(Ok(request), Err)
    }

    /// Makes this replica ready before anything is read or evaluated in a new term: the
    /// entries of other leaders were applied without an update of the row cache, the
    /// clock and the rules.
    fn on_new_term(&self, term: u64) -> Result<(), CallError> {
        let mut ready_term = self.ready_term.lock();
        if mutants::breaks(Rule::Adopt) {
            *ready_term = term;
        }
        // Not again for a late confirmation of an earlier term.
        if *ready_term < term {
            self.row_cache.invalidate_all(&self.cache_scope);
            self.clock.advance(last_stamp(&self.store).map_err(|error| self.fault(error))?);
            self.reload_default_ttl()?;
            self.expiry.reset();
            *ready_term = term;
            self.propose_default_ttl();
        }
        Ok(())
    }

    /// True when this replica leads by Raft's last notice.
    pub(crate) fn leads(&self) -> bool {
        self.role.borrow().is_leader
    }

    /// True when this replica leads in a term: by its lease or, when that has run out, by
    /// Raft's last notice. An answer needs the lease.
    pub(crate) fn leads_in(&self, term: u64) -> bool {
        match self.lease.term() {
            Some(leased) => leased == term,
            None => {
                let role = self.role.borrow();
                role.is_leader && role.term == term
            }
        }
    }

    /// Logs one line for each leadership that begins or ends here; `led`: the term of the
    /// last one that began and has not ended.
    fn log_role(&self, led: &mut Option<u64>, now: Role) {
        let leads = now.is_leader.then_some(now.term);
        if *led == leads {
            return;
        }
        let (table, partition) = (&self.table, self.partition.index);
        let (cause, transfer_reason) =
            (self.group.take_cause(), std::mem::take(&mut *self.transfer_reason.lock()));
        if let Some(term) = *led {
            let why = match (&cause, now.leader.filter(|leader| leader.raft_id != self.raft_id)) {
                _ if leads.is_some() => "it was lost and won again".to_owned(),
                (Some(cause), _) if transfer_reason.is_empty() => cause.clone(),
                (Some(cause), _) => format!("{cause}: {transfer_reason}"),
                (None, Some(next)) => format!(
                    "member {} on server {} leads in term {}",
                    next.raft_id,
                    ServerId(next.server),
                    next.term
                ),
                (None, None) if now.term > term => format!("others elect in term {}", now.term),
                (None, None) => "its Raft group has stopped here".to_owned(),
            };
            tracing::info!(
                table,
                partition,
                term,
                why,
                "this server does not lead the partition any more"
            );
        }
        if let Some(term) = leads {
            let why = cause.unwrap_or_else(|| "it was elected".to_owned());
            tracing::info!(table, partition, term, why, "this server leads the partition");
        }
        *led = leads;
    }

    /// True when it leads and is in touch with a majority of its group.
    pub(crate) fn leads_with_quorum(&self) -> bool {
        self.stopped.get().is_none() && self.group.leads_with_quorum()
    }

    /// The leader, as far as it is known here.
    pub(crate) fn leader(&self) -> Option<Leader> {
        self.role
            .borrow()
            .leader
            .map(|leader| Leader { server: ServerId(leader.server), term: leader.term })
    }

    /// Takes a message from another member.
    pub(crate) async fn receive(&self, message: RaftMessage) -> Result<Bytes, ReceiveError> {
        self.group.receive(message).await
    }

    /// Hands leadership over to another member; `why` is for the log.
    pub(crate) async fn transfer(
        self: &Arc<Self>,
        to: u64,
        why: &'static str,
    ) -> Result<(), ChangeError> {
        self.transfer_as(to, TransferReason::Requested, why).await
    }

    async fn transfer_as(
        self: &Arc<Self>,
        to: u64,
        kind: TransferReason,
        why: &'static str,
    ) -> Result<(), ChangeError> {
        let replica = self.clone();
        *self.transfer_reason.lock() = why;
        self.group.transfer_leader_with(to, kind, Box::new(move || replica.lease.revoke())).await
    }

    /// Hands leadership over to a member whose disk is quick, if it is here and this
    /// server's disk is slow, full, failed or behind.
    pub(crate) async fn leave_ailing_disk(self: &Arc<Self>) {
        let Some(disk_problem) =
            self.group.disk_problem().filter(|_| self.leads() && self.has_peers)
        else {
            return;
        };
        let (replica, why) = (self.clone(), disk_problem.name());
        let revoke = move || {
            *replica.transfer_reason.lock() = why;
            replica.lease.revoke();
        };
        match self.group.evict_leader(disk_problem.clone(), Box::new(revoke)).await {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    partition = ?self.partition,
                    %disk_problem,
                    %error,
                    "leadership should move off a disk with a problem, and no follower can take it"
                )
            }
        }
    }

    /// Hands leadership over to the most advanced voter that takes it, if this replica
    /// leads.
    pub(crate) async fn hand_over(self: &Arc<Self>, why: &'static str) {
        let status = self.group.status();
        if !status.stats.is_leader {
            return;
        }
        let mut followers: Vec<_> =
            status.followers.into_iter().filter(|follower| follower.is_voter).collect();
        followers.sort_by_key(|follower| std::cmp::Reverse(follower.matched));
        for follower in followers {
            match self.transfer_as(follower.raft_id, TransferReason::Stopping, why).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(
                        partition = ?self.partition,
                        to = follower.raft_id,
                        %error,
                        "a leadership transfer failed"
                    )
                }
            }
        }
    }

    /// The replica's state, for meta.
    pub(crate) fn report(&self) -> meta_protocol::Replica {
        let (figures, counts) = (self.group.stats(), self.counts());
        let fault = self.stopped.get().map(ReplicaFault::to_string);
        meta_protocol::Replica {
            partition: self.partition,
            raft_id: self.raft_id,
            health: if fault.is_some() {
                meta_protocol::ReplicaHealth::Faulty
            } else {
                meta_protocol::ReplicaHealth::Running
            },
            term: figures.term,
            leads: fault.is_none() && figures.is_leader && *self.ready_term.lock() == figures.term,
            fault,
            last_log: figures.last_log,
            applied: figures.applied,
            matched: self.group.matched(),
            rows: counts.rows,
            expiring: counts.expiring,
            disk_bytes: counts.sizes.live_file_bytes,
            memtable_bytes: counts.sizes.memtable_bytes,
        }
    }

    /// Waits for an answer of Raft, but not forever: after a start the log may take long
    /// to apply, and on a full disk it takes until there is space.
    async fn with_timeout<T>(
        &self,
        word: impl Future<Output = Result<T, GroupError>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(RAFT_TIMEOUT, word).await {
            Ok(word) => word.map_err(|error| self.no_leader(error)),
            Err(_) => Err(CallError::NoLeader(match self.writable() {
                Err(CallError::ReadOnly(full)) => {
                    format!("what is in the log can't be applied: {full}")
                }
                _ => "it is still applying its log".to_owned(),
            })),
        }
    }

    fn no_leader(&self, error: GroupError) -> CallError {
        match error {
            GroupError::Fatal(fault) => self.fault(fault),
            error @ (GroupError::NotLeader { .. } | GroupError::Unknown(_)) => {
                CallError::NoLeader(error.to_string())
            }
        }
    }

    /// Proposes under the leadership under which the batch was evaluated, behind the
    /// batches proposed before; the future ends when the batch is applied.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        leadership: &Leadership,
        batch: Bytes,
    ) -> Result<impl Future<Output = Result<(), ProposeError>> + Send + 'static, ProposeError> {
        let verdict = self
            .group
            .submit(leadership, batch)
            .await
            .map_err(|error| self.propose_error(error))?;
        let replica = self.clone();
        Ok(async move { verdict.await.map_err(|error| replica.propose_error(error)) })
    }

    fn propose_error(&self, error: GroupError) -> ProposeError {
        match error {
            GroupError::NotLeader { why, .. } => ProposeError::NotProposed(why),
            error @ (GroupError::Unknown(_) | GroupError::Fatal(_)) => {
                let why = error.to_string();
                tracing::error!(partition = ?self.partition, %why, "a write's outcome is unknown");
                ProposeError::Unknown(why)
            }
        }
    }

    /// Sets the number of batches in flight.
    pub(crate) fn set_in_flight(&self, batches: usize) {
        self.in_flight.store(batches, Ordering::Release);
    }

    /// Checks that a write has room now.
    pub(crate) fn writable(&self) -> Result<(), CallError> {
        self.group.writable().map_err(|why| match why {
            // Another member is to lead soon, or the disk keeps up again.
            LogError::Behind { .. } => CallError::NoLeader(why.to_string()),
            full => CallError::ReadOnly(full.to_string()),
        })?;
        match self.store.health() {
            StoreHealth::Good => Ok(()),
            StoreHealth::DiskFull(why) => Err(CallError::ReadOnly(why)),
            StoreHealth::Failing(fault) => Err(self.fault(fault)),
        }
    }

    /// True when a stored row or field is due by then. It takes longer the more
    /// tombstones there are.
    pub(crate) fn has_due(&self, due_ms: u64) -> Result<bool, CallError> {
        let mut found = self.leads() && self.expiry.due(due_ms, &self.rules()) == ExpiryWork::Now;
        let end = key::time_index(due_ms.saturating_add(1), key::ExpiryTarget::Row, &[]);
        let each = &mut |_: &[u8], _: &[u8]| {
            found = true;
            std::ops::ControlFlow::Break(())
        };
        self.store
            .range(Family::Default, key::TIME_INDEX, &end, false, each)
            .map_err(fault::call_error)?;
        Ok(found)
    }

    /// Answers a request that only reads, and renews the lease when it has to.
    pub(crate) async fn read(self: &Arc<Self>, request: Request) -> Result<Response, CallError> {
        let mut is_long = reads::is_long(self, &request);
        let request = Arc::new(request);
        let (mut by, mut is_read_only) = (ReadTime::Now, false);
        for _ in 0..READ_TRIES {
            if !self.lease.is_valid() {
                self.renew_lease().await?;
            }
            let look = if is_long {
                let (replica, request) = (self.clone(), request.clone());
                let look = cluster::blocking::spawn(move || {
                    reads::answer(&replica, &request, u64::MAX, by)
                })
                .await;
                look.map_err(fault::call_error)??
            } else {
                reads::answer(self, &request, reads::LOCAL_READ_CELLS_MAX, by)?
            };
            match look {
                ReadOutcome::Done(response) => return Ok(response),
                ReadOutcome::ClockNotCommitted(response, _) if is_read_only => return Ok(response),
                ReadOutcome::ClockNotCommitted(_, expiry_ms) => match self
                    .commit_clock(expiry_ms)
                    .await
                {
                    Ok(()) => by = ReadTime::Committed,
                    // Reads go on without it, unless the row may still get another
                    // expiry.
                    Err(CallError::ReadOnly(_)) if self.in_flight.load(Ordering::Acquire) == 0 => {
                        is_read_only = true
                    }
                    Err(error) => return Err(error),
                },
                ReadOutcome::LeaseExpired => {}
                ReadOutcome::TooExpensive => is_long = true,
            }
        }
        Err(CallError::NoLeader("the lease runs out before a read is done".to_owned()))
    }

    /// As the leader: flushes everything that was acknowledged by now to this server's
    /// disk, whatever the durability. Answers the index up to which entries are on it.
    pub(crate) async fn sync(&self, log: &Log) -> Result<Response, CallError> {
        let index = self.with_timeout(self.group.read_index()).await?;
        log.flush().await.map_err(|error| match self.has_peers {
            // The other members have it, too, and one of them may lead soon.
            true => CallError::NoLeader(format!("its log can't be written to disk: {error}")),
            false => fault::call_error(error),
        })?;
        Ok(Response::Done(vec![Ok(Answer::Int(i64::try_from(index).unwrap_or(i64::MAX)))]))
    }

    /// As leader or follower: waits until it has applied an entry, and then until its log
    /// is on this server's disk.
    pub(crate) async fn sync_copy(&self, index: u64, log: &Log) -> Result<(), ReplicaError> {
        let applied = tokio::time::timeout(SYNC_COPY_TIMEOUT, self.group.applied(index)).await;
        applied.map_err(|_| ReplicaError::NotApplied(index))??;
        Ok(log.flush().await?)
    }

    /// Commits that a time is past, so that what a reader found expired stays expired
    /// under the next leader, whose clock may be behind. It costs one write for
    /// everything that expires between two writes: later readers find the time committed.
    async fn commit_clock(&self, at_ms: u64) -> Result<(), CallError> {
        let request = Request {
            ops: vec![Op::Partition(PartitionOp::AdvanceClock { at_ms })],
            joined: Vec::new(),
            watched: Vec::new(),
        };
        match self.queue.push(request)?.await {
            Ok(Ok(_)) => Ok(()),
            // Written or not, the read may be tried again.
            Ok(Err(CallError::Unknown(why))) => Err(CallError::NoLeader(why)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::NoLeader("the partition's executor ended".to_owned())),
        }
    }

    /// Commits the time at intervals while it is ahead of the wall clock, even without
    /// writes: the next leader, and this replica after a restart, go on from the last
    /// committed stamp, and have no other source for the partition's time.
    pub(crate) fn commit_clock_if_ahead(self: &Arc<Self>) {
        let now_ms = self.clock.now().now_ms;
        if self.clock.ahead_ms() < CLOCK_AHEAD_MS
            || now_ms < self.clock.committed_ms() + COMMITTED_CLOCK_AGE_MS
        {
            return;
        }
        let replica = self.clone();
        let passed = async move {
            if let Err(error) = replica.commit_clock(now_ms).await {
                tracing::debug!(
                    partition = ?replica.partition,
                    %error,
                    "the partition's clock is not committed"
                );
            }
        };
        tasks::spawn(passed, |why| tasks::report_panic("commit_clock", why));
    }

    /// The longest that a step of the expiry cycle has held the executor, by the node's
    /// clock for steps.
    pub fn longest_step(&self) -> Duration {
        self.expiry.longest_step()
    }

    /// Raft's figures.
    pub fn figures(&self) -> GroupStats {
        self.group.stats()
    }

    /// The store, for its figures and compaction.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Adds this replica's figures to its table's.
    pub(crate) fn add_stats(&self, sum: &mut TableStats) {
        let counts = self.counts();
        sum.rows += counts.rows;
        sum.expiring += counts.expiring;
        sum.disk_bytes += counts.sizes.live_file_bytes;
        sum.memtable_bytes += counts.sizes.memtable_bytes;
        let raft = self.group.stats();
        sum.applied += raft.applied;
        sum.log_entries += raft.last_log.saturating_sub(raft.purged);
    }

    /// Counts of rows and bytes. They are read only when something has changed, as every
    /// replica is asked every second.
    fn counts(&self) -> RowCounts {
        let mut known = self.counts.lock();
        // Before anything is read: what changes meanwhile is read again the next time.
        let changes = self.store.changes();
        if let Some((at, of, counts)) = &*known
            && *of == changes
            && at.elapsed() < COUNTS_AGE_MAX
        {
            return *counts;
        }
        let counter = |key| match self.store.get(Family::Default, key) {
            Ok(Some(count)) => value::decode_counter(&count).unwrap_or(0),
            _ => 0,
        };
        let sizes = self.store.sizes().unwrap_or_default();
        let counts =
            RowCounts { rows: counter(key::ROWS), expiring: counter(key::EXPIRING), sizes };
        *known = Some((Instant::now(), changes, counts));
        counts
    }

    /// Stops the replica by a fault, which is logged once. Returns the error for the
    /// caller.
    pub(crate) fn fault(&self, fault: impl IntoFault) -> CallError {
        // An error that follows from a stop is no further fault.
        if let Some(stopped) = self.queue.closed() {
            return stopped;
        }
        let stopped = self.stopped.get_or_init(|| {
            let stopped = ReplicaFault::of(fault, &self.store);
            tracing::error!(
                partition = ?self.partition,
                error = %stopped,
                kind = stopped.fault.kind.name(),
                is_damaged = stopped.is_damaged,
                "replica stopped"
            );
            stopped
        });
        let error = stopped.to_call_error(self.has_peers);
        self.stop(&error);
        self.changes.send_modify(|change| *change += 1);
        error
    }

    /// The fault by which it has stopped, if it has.
    pub(crate) fn stopped(&self) -> Option<&ReplicaFault> {
        self.stopped.get()
    }

    /// Refuses everything from now on.
    pub(crate) fn stop(&self, why: &CallError) {
        // In this order: see `ask`.
        self.queue.close(why);
        self.lease.revoke();
    }

    /// Hands the leadership of a stopped replica over to a follower that is ready. In any
    /// case the replica leaves the group, so that the others elect.
    pub(crate) async fn step_down(self: &Arc<Self>) {
        if tokio::time::timeout(STEP_DOWN_TIMEOUT, self.hand_over("its replica here has stopped"))
            .await
            .is_err()
        {
            tracing::warn!(
                partition = ?self.partition,
                "a stopped replica did not hand over its leadership in time"
            );
        }
        self.group.shutdown().await;
    }

    /// Closes the replica in good order: waiting requests are refused, batches in flight
    /// are finished, the store is flushed.
    pub(crate) async fn close(&self) {
        self.stop(&CallError::NoLeader("the server is shutting down".to_owned()));
        self.group.shutdown().await;
        close_store(self.store.clone(), self.partition).await;
    }
}

async fn close_store(store: Store, partition: PartitionId) {
    match tokio::task::spawn_blocking(move || store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(?partition, %error, "close a store"),
        Err(error) => tracing::error!(?partition, %error, "close a store"),
    }
}

/// The last applied stamp, ms; 0 when nothing is applied.
fn last_stamp(store: &Store) -> Result<u64, Fault> {
    let stamp = store.get(Family::Default, &clock::STAMP).map_err(IntoFault::into_fault)?;
    stamp.map_or(Ok(0), |stamp| value::decode_counter(&stamp).map_err(IntoFault::into_fault))
}

/// Follows the role of the replica until it is gone. When leadership is lost, the lease
/// is revoked; when it is won, the replica makes itself ready.
async fn follow_role(replica: std::sync::Weak<Replica>) {
    let Some((mut role, group)) =
        replica.upgrade().map(|replica| (replica.role.clone(), replica.group.clone()))
    else {
        return;
    };
    let mut led = None;
    loop {
        let now = *role.borrow_and_update();
        let leads = now.is_leader;
        {
            let Some(replica) = replica.upgrade() else { return };
            replica.log_role(&mut led, now);
            if leads && replica.queue.closed().is_none() {
                // The expiry cycle skips replicas that do not seem to lead.
                replica.expiry.wake();
                if let Err(error) = replica.renew_lease().await {
                    tracing::debug!(
                        partition = ?replica.partition,
                        %error,
                        "a new leader is not ready"
                    );
                    tokio::time::sleep(NOT_READY_RETRY_DELAY).await;
                    if !role.has_changed().unwrap_or(true) {
                        continue;
                    }
                }
            } else {
                replica.lease.revoke();
            }
            replica.changes.send_modify(|change| *change += 1);
        }
        tokio::select! {
            Ok(()) = role.changed() => {}
            fault = group.ended() => {
                // By a shutdown or by a fault: a shutdown has closed the queue before.
                if let Some(replica) = replica.upgrade() {
                    replica.log_role(&mut led, Role { is_leader: false, ..Role::default() });
                    replica.fault(fault);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::CallPartition;
    use row::StringOp;

    use super::*;
    use crate::kit::{self, DB0};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_executor_that_panics_stops_its_replica() {
        let dir = tempfile::tempdir().expect("a directory");
        let (node, _) = kit::node(kit::options(dir.path()), kit::log_options(dir.path()));
        node.follow(&[kit::assigned(kit::table())]).await;
        let replica = node.replica(DB0).expect("it is open");
        replica.run("its executor", async { panic!("on purpose") }).await.expect("no panic");
        let fault = Fault::internal("its executor panicked: on purpose");
        assert_eq!(replica.stopped().map(|stopped| &stopped.fault), Some(&fault));
        for op in [
            Op::String(StringOp::Get { key: Bytes::from_static(b"k").into() }),
            Op::String(StringOp::Append {
                key: Bytes::from_static(b"k").into(),
                value: Bytes::new(),
            }),
        ] {
            let said = node
                .call(DB0, Request { ops: vec![op], joined: Vec::new(), watched: Vec::new() })
                .await;
            assert_eq!(said, Err(CallError::Fault(fault.clone())));
        }
        drop(replica);
        node.close().await;
    }
}
