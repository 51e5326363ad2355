//! The start of a replica: its options, openraft's configuration, and the restart guard
//! of a replica with a past.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::errors::{InitializeError, RaftError};
use openraft::metrics::WaitError;
use openraft::storage::RaftLogStorage;
use openraft::{Config, Raft, RaftLogReader, SnapshotPolicy, StepDownPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::fault::GroupFault;
use super::group::{Group, GroupError, Inner, LEADER_LEASE, fatal};
use super::peers::Peers;
use super::purge::{LogPolicy, RetainedLog, run_log_compaction};
use super::snapshot::{self, LogPins};
use super::suspect::SuspectState;
use super::ticker::{ElectionTimer, HEARTBEAT_INTERVAL, HeartbeatPacer, Ticker};
use super::transport::{RaftMessage, Transport, TransportError};
use super::types::{Node, RaftId};
use super::{GroupLog, Machine};
use crate::store::Store;
use crate::{FaultKind, mutants};

/// Timeout of the election of a group of one: a few fsyncs, on a disk that may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a replica of a group of any size.
pub struct GroupOptions {
    /// The group's number, the same on all members; that of `log`.
    pub group: u64,
    /// This replica's Raft id, never used before in this group.
    pub id: RaftId,
    /// The group's name, for people.
    pub name: String,
    /// The group's part of the node's log.
    pub log: GroupLog,
    /// The replica's state.
    pub store: Store,
    /// The transport to the other members.
    pub transport: Arc<dyn Transport>,
    /// The members of a new group, the same list on all of them. The first bootstraps the
    /// group at once, the others if it does not. Ignored by a replica with a past.
    /// `None`: the replica waits until another member adds it.
    pub initial: Option<Vec<(RaftId, Node)>>,
    /// The process's ticker.
    pub ticker: Arc<Ticker>,
}

/// The common parts of both ways to start.
struct GroupBuilder {
    id: RaftId,
    name: String,
    log: GroupLog,
    store: Store,
    transport: Arc<dyn Transport>,
    initial: BTreeMap<RaftId, Node>,
    ticker: Option<Arc<Ticker>>,
    guard_until: Instant,
    election_timer: ElectionTimer,
    suspect: SuspectState,
}

impl Group {
    /// Starts a group of one voter, `id`, and bootstraps it when log and store are new.
    /// Must be called on the runtime that is to run Raft.
    ///
    /// A group of one needs no ticks: it elects itself here and renews its own lease.
    /// While it runs, its log is compacted ([`run_log_compaction`]).
    ///
    /// # Errors
    /// [`GroupError::Fatal`]: log or store can't be read, or the disk doesn't take a
    /// vote.
    pub fn start_standalone(
        id: RaftId,
        name: String,
        log: GroupLog,
        store: Store,
    ) -> BoxFuture<'static, Result<Group, GroupError>> {
        Box::pin(async move {
            let initial = BTreeMap::from([(id, Node::default())]);
            let now = Instant::now();
            let election_timer = ElectionTimer::new(now, None);
            let (transport, ticker, guard_until) = (Arc::new(NoTransport), None, now);
            // No other member has more than it.
            log.watch().clear();
            let (members, suspect) = (initial.clone(), SuspectState::new(false, now, now));
            let start = GroupBuilder {
                id,
                name,
                log,
                store,
                transport,
                initial: members,
                ticker,
                guard_until,
                election_timer,
                suspect,
            };
            let group = Self::build(start).await?;
            let raft = &group.inner.raft;
            group.inner.note_cause("this replica is the only member".to_owned());
            let elected = async {
                match raft.initialize(initial).await {
                    Ok(()) => {}
                    Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                        raft.trigger().elect(false).await.map_err(fatal)?
                    }
                    Err(RaftError::APIError(error)) => {
                        return Err(GroupFault::internal(error).into());
                    }
                    Err(RaftError::Fatal(error)) => return Err(fatal(error)),
                }
                let elected = raft
                    .wait(Some(START_TIMEOUT))
                    .current_leader(id, "a group of one elects itself")
                    .await;
                elected.map(drop).map_err(not_elected)
            };
            match elected.await {
                Ok(()) => Ok(group),
                Err(error) => {
                    group.shutdown().await;
                    Err(error)
                }
            }
        })
    }

    /// Starts a replica of a group of any size. Must be called on the runtime that is to
    /// run Raft. Returns as soon as Raft runs; the leader is published by
    /// [`leadership_changes`](Group::leadership_changes). While it runs, its log is
    /// compacted ([`run_log_compaction`]).
    ///
    /// # Errors
    /// [`GroupError::Fatal`]: log or store can't be read.
    pub fn start(options: GroupOptions) -> BoxFuture<'static, Result<Group, GroupError>> {
        Box::pin(async move {
            let GroupOptions {
                group: number,
                id,
                name,
                mut log,
                store,
                transport,
                initial,
                ticker,
            } = options;
            if number != log.id() {
                let why = format!("group {number} was started with the log of group {}", log.id());
                return Err(GroupFault::internal(why).into());
            }
            let has_past = log.read_vote().await.map_err(GroupFault::from)?.is_some()
                || log.get_log_state().await.map_err(GroupFault::from)?.last_log_id.is_some()
                || store.applied().map_err(GroupFault::from)?.is_some();
            let now = Instant::now();
            let guard_until = if has_past { ticker.guard_until(number) } else { now };
            let first_bootstrap = initial.as_ref().filter(|_| !has_past).map(|members| {
                let is_first = members.first().is_some_and(|(first, _)| *first == id);
                ElectionTimer::first_bootstrap(now, is_first)
            });
            let election_timer = ElectionTimer::new(guard_until, first_bootstrap);
            if !has_past {
                log.watch().clear();
            }
            let suspect = SuspectState::new(log.watch().is_suspect(), ticker.started(), now);
            let initial = initial.unwrap_or_default().into_iter().collect();
            let with_ticker = Some(ticker.clone());
            let group = Self::build(GroupBuilder {
                id,
                name,
                log,
                store,
                transport,
                initial,
                ticker: with_ticker,
                guard_until,
                election_timer,
                suspect,
            })
            .await?;
            ticker.add(&group.inner);
            // A new group does not wait for the next tick.
            group.inner.tick(now, false);
            Ok(group)
        })
    }

    async fn build(start: GroupBuilder) -> Result<Group, GroupError> {
        let GroupBuilder {
            id,
            name,
            log,
            store,
            transport,
            initial,
            ticker,
            guard_until,
            election_timer,
            suspect,
        } = start;
        let (machine, progress) = Machine::new(store.clone()).map_err(GroupFault::from)?;
        let applied = *progress.borrow();
        if let Some(why) = log.mismatch(applied) {
            store.mark_diverged(&why);
            return Err(GroupFault::new(FaultKind::Damaged, why).into());
        }
        log.note_applied(applied);
        let announced = machine.announced();
        let lease_ms = LEADER_LEASE.as_millis() as u64;
        let config = Config {
            cluster_name: name.clone(),
            // The ticker sends heartbeats; this is the timeout of one.
            heartbeat_interval: (HEARTBEAT_INTERVAL + HEARTBEAT_INTERVAL / 2).as_millis() as u64,
            // A follower that has just acknowledged entries needs no heartbeat.
            heartbeat_min_interval: Some(HEARTBEAT_INTERVAL.as_millis() as u64 / 2),
            // Timeouts of a vote. The ticker decides when to campaign.
            election_timeout_min: lease_ms - 100,
            election_timeout_max: lease_ms,
            enable_tick: false,
            enable_pre_vote: Some(true),
            // A leader that stays sends the entries again to a follower that has lost its
            // log's tail; entries that a majority had acknowledged stay committed.
            allow_log_reversion: Some(true),
            // A restarted leader learns its commit index by being elected again:
            // `save_committed` is best effort.
            enable_leader_restore: Some(false),
            // Longer than any lease: a removed leader's transfer must find none in use.
            removed_leader_step_down: StepDownPolicy::After(lease_ms),
            max_payload_entries: 1024,
            // Snapshots are flushes here, and `purge.rs` triggers them.
            snapshot_policy: SnapshotPolicy::Never,
            // `purge.rs` also decides how far to purge.
            max_in_snapshot_log_to_keep: u64::MAX,
            purge_batch_size: 1,
            ..Config::default()
        };
        let config = config.validate().map_err(GroupFault::internal)?;
        let (number, purged_at_start) = (log.id(), log.range().start.saturating_sub(1));
        let watch = log.watch();
        let throttle =
            ticker.as_ref().map_or_else(Arc::default, |ticker| ticker.throttle().clone());
        let peers = Peers {
            transport,
            group: number,
            id,
            throttle,
            pins: Arc::<LogPins>::default(),
            quorum: Arc::default(),
        };
        let directory = store.path().to_owned();
        let cleaned =
            tokio::task::spawn_blocking(move || snapshot::remove_leftovers(&directory)).await;
        cleaned.map_err(GroupFault::internal)?.map_err(GroupFault::from)?;
        let policy = match ticker.as_ref() {
            Some(_) if mutants::SHORT_LOGS => LogPolicy {
                entries_max: 100,
                age_max: Duration::from_secs(1),
                retention_entries: 200,
                ..LogPolicy::default()
            },
            Some(ticker) => ticker.log_policy(),
            None => LogPolicy::default(),
        };
        let raft = {
            // openraft applies the entries again that the store had not flushed, and
            // reads them for that. The permit bounds the memory for them, whatever the
            // number of groups.
            let applied =
                store.applied().map_err(GroupFault::from)?.map_or(0, |applied| applied.index);
            let turns = log.clone();
            let _turn = turns.replay_permit(applied).await;
            Raft::new(id, Arc::new(config), peers.clone(), log, machine).await.map_err(fatal)?
        };
        let inner = Arc::new(Inner {
            server: raft.server_metrics(),
            raft,
            id,
            number,
            log: watch,
            retained: RetainedLog::new(
                ticker.as_ref().map_or_else(Arc::default, |ticker| ticker.retained()),
            ),
            evicted_at: Mutex::default(),
            store: store.clone(),
            caught_up_term: AtomicU64::default(),
            progress: progress.clone(),
            announced,
            ticker,
            guard_until,
            election_timer: Mutex::new(election_timer),
            cause: Mutex::default(),
            suspect: Mutex::new(suspect),
            name,
            heartbeats: HeartbeatPacer::default(),
            initial,
            role: watch::Sender::default(),
            leads_since: Mutex::default(),
            purged_at_start,
            is_transferring: AtomicBool::default(),
            submitting: AtomicUsize::default(),
            leases_revoked: tokio::sync::RwLock::default(),
            append_lock: tokio::sync::Mutex::default(),
            change_lock: Arc::default(),
            peers,
            incoming: Arc::default(),
            ended: watch::Sender::default(),
        });
        let group = Group { inner };
        tokio::spawn(group.inner.clone().watch_role());
        tokio::spawn(run_log_compaction(group.clone(), store, progress, policy));
        Ok(group)
    }
}

/// The error of a group of one that has not elected itself.
fn not_elected(error: WaitError) -> GroupError {
    let kind = match &error {
        WaitError::Timeout(..) => FaultKind::Stalled,
        WaitError::ShuttingDown => FaultKind::Io,
    };
    GroupFault::new(kind, error.to_string()).into()
}

/// The transport of a group of one: there is no other member.
struct NoTransport;

impl Transport for NoTransport {
    fn send(
        &self,
        _to: &Node,
        _letter: RaftMessage,
    ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        std::future::ready(Err(TransportError::NotSent(
            "this group has no other member".to_owned(),
        )))
        .boxed()
    }
}
