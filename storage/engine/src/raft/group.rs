//! One replica of a Raft group in this process: started over the node's log and a store.
//!
//! Partitions and meta use the same groups: the leader evaluates requests on applied
//! state and proposes the finished write batch. No caller needs openraft's own types.
//! Methods of `Inner` are also in `receive.rs`, `suspect.rs` and `snapshot/receive.rs`,
//! those of `Group` in `start.rs`, `members.rs`, `purge.rs` and `rebuild.rs`.
//!
//! # Invariants
//! - A replica whose leadership is confirmed led within [`QUORUM_ACK_AGE_MAX`] before, by
//!   the monotonic clock, and no other leader can commit anything before the lease is
//!   over (`tests/raft_leases.rs`).
//! - A new replica may vote at once; one with a past keeps its promises from before the
//!   restart (`ticker.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::linearizable_read::{Linearizer, LinearizerOption};
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::fault::GroupFault;
use super::log_store::WeakGroupLog;
use super::machine::AnnouncedIndex;
use super::peers::Peers;
use super::purge::RetainedLog;
use super::snapshot::IncomingSnapshot;
use super::suspect::SuspectState;
use super::ticker::{ElectionTimer, HeartbeatPacer, Ticker};
use super::transport::MESSAGE_BYTES_MAX;
use super::types::{LeaderId, Node, Payload, RaftId, Types};
use super::{Machine, Progress};
use crate::FaultKind;
use crate::log::{DiskProblem, LogError};
use crate::store::Store;

/// The leader's lease: no other leader is elected within it. Also the longest election
/// timeout.
pub const LEADER_LEASE: Duration = Duration::from_millis(1000);

/// The greatest age of a quorum's acknowledgement on which a read may rely, and the time
/// for which it may then rely on it. Twice this is less than the lease, by as much as the
/// clocks of two servers may drift apart in that time.
pub const QUORUM_ACK_AGE_MAX: Duration = Duration::from_millis(475);

/// The largest batch that fits a message.
const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (1 << 20);

/// Reasons why a group could not be started or asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Not the leader, or without a quorum. Nothing was proposed.
    #[error("{why}")]
    NotLeader {
        /// The reason, for people.
        why: String,
        /// The leader as far as this replica knows.
        leader: Option<Leader>,
    },
    /// Proposed, with an unknown outcome: the entry may or may not be committed.
    #[error("{0}")]
    Unknown(String),
    /// The group has stopped: a storage error or a bug.
    #[error(transparent)]
    Fatal(#[from] GroupFault),
}

/// One leadership of this group's replica: a batch that was evaluated under it may be
/// proposed only under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    leader: LeaderId,
    term: u64,
}

impl Leadership {
    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.term
    }
}

/// A member that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The member.
    pub raft_id: RaftId,
    /// The server that holds it ([`Node::server`]).
    pub server: u64,
    /// Raft's term of its leadership.
    pub term: u64,
}

/// The group's leader and this replica's part, as this replica sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Role {
    /// Raft's term.
    pub term: u64,
    /// True when this replica leads. It may have lost the others without knowing it yet:
    /// [`Group::confirm_leadership`] makes sure.
    pub is_leader: bool,
    /// The leader; `None` while none is known.
    pub leader: Option<Leader>,
}

/// Statistics of a group, for INFO, metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Raft's term.
    pub term: u64,
    /// True when this replica leads.
    pub is_leader: bool,
    /// The leader as far as this replica knows.
    pub leader: Option<Leader>,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// Index of the last entry that is known to be committed.
    pub committed: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index up to which the log was purged.
    pub purged: u64,
    /// True when it neither votes nor campaigns, as it may lack acknowledged entries.
    pub abstains: bool,
}

/// Resolves when a proposal is applied here, or with the reason why not.
pub type ProposalFuture = BoxFuture<'static, Result<(), GroupError>>;

/// A running replica of a group.
///
/// Slow methods are boxed: the bodies of `async fn`s, openraft's among them, would be
/// compiled again in every crate that awaits them.
#[derive(Clone)]
pub struct Group {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) raft: Raft<Types, Machine>,
    pub(super) id: RaftId,
    /// The group's number.
    pub(super) number: u64,
    /// The group's name, for people.
    pub(super) name: String,
    pub(super) log: WeakGroupLog,
    /// Bytes of log that it retains for followers.
    pub(super) retained: RetainedLog,
    /// The last attempt to move leadership away because of the disk.
    pub(super) evicted_at: Mutex<Option<Instant>>,
    pub(super) store: Store,
    /// The latest term of our own in which everything of earlier terms is known to be
    /// applied.
    pub(super) caught_up_term: AtomicU64,
    pub(super) progress: Progress,
    pub(super) announced: AnnouncedIndex,
    pub(super) ticker: Option<Arc<Ticker>>,
    /// The end of the restart guard: before it this replica neither votes nor campaigns.
    pub(super) guard_until: Instant,
    pub(super) election_timer: Mutex<ElectionTimer>,
    /// The reason for which leadership was last sought, transferred or given up here,
    /// until it is taken.
    pub(super) cause: Mutex<Option<String>>,
    pub(super) suspect: Mutex<SuspectState>,
    pub(super) heartbeats: HeartbeatPacer,
    pub(super) initial: BTreeMap<RaftId, Node>,
    pub(super) server: WatchReceiverOf<Types, RaftServerMetrics<Types>>,
    pub(super) role: watch::Sender<Role>,
    pub(super) leads_since: Mutex<Option<Instant>>,
    /// The index before the first entry in the log at the start.
    pub(super) purged_at_start: u64,
    /// True during a leadership transfer: no lease of ours may be relied on.
    pub(super) is_transferring: AtomicBool,
    /// Proposals that have seen `is_transferring` as false and are not in Raft's queue
    /// yet.
    pub(super) submitting: AtomicUsize,
    /// True during a leadership transfer once all leases of ours are revoked: any
    /// candidate may have our vote. Held for reading while a vote is given.
    pub(super) leases_revoked: tokio::sync::RwLock<bool>,
    /// Held while a message with entries is taken in.
    pub(super) append_lock: tokio::sync::Mutex<()>,
    /// One change of members or leader at a time.
    pub(super) change_lock: Arc<tokio::sync::Mutex<()>>,
    pub(super) peers: Peers,
    pub(super) incoming: Arc<tokio::sync::Mutex<IncomingSnapshot>>,
    /// The reason why Raft has ended.
    pub(super) ended: watch::Sender<Option<GroupFault>>,
}

/// A proposal on its way into Raft's queue.
struct Submitting<'a>(&'a AtomicUsize);

impl<'a> Submitting<'a> {
    fn new(count: &'a AtomicUsize) -> Submitting<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        Submitting(count)
    }
}

impl Drop for Submitting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Group {
    /// Waits until this replica leads and has applied everything that is committed;
    /// requests may then be evaluated under the result.
    pub fn acquire_leadership(&self) -> BoxFuture<'_, Result<Leadership, GroupError>> {
        Box::pin(async move {
            // An entry of our own may be in flight whose proposer did not wait for its
            // outcome: all entries are waited for, unlike in `confirm_leadership`.
            self.linearizer().await?.await_ready(&self.inner.raft).await.map_err(fatal)?;
            let leader =
                self.inner.raft.as_leader().map_err(|forward| self.inner.not_leader(&forward))?;
            Ok(Leadership {
                leader: leader.to_committed_leader_id(),
                term: leader.leader_id().term.0,
            })
        })
    }

    /// Makes sure that this replica led, and had applied everything that was acknowledged
    /// to any client, at some time within the last [`QUORUM_ACK_AGE_MAX`] before the call
    /// or later. Returns the term of the leadership.
    ///
    /// Entries of earlier terms may have been acknowledged by other leaders, so they are
    /// waited for. Entries of this leadership are acknowledged by this replica only,
    /// after it has applied them, so there is nothing to wait for: reads go on while an
    /// entry can't be applied because the disk is full.
    pub fn confirm_leadership(&self) -> BoxFuture<'_, Result<u64, GroupError>> {
        Box::pin(async move {
            let linearizer = self.linearizer().await?;
            // A leader's read log id is of its own term, which begins with an entry of
            // its own.
            let term = linearizer.read_log_id().committed_leader_id().term.0;
            if self.inner.caught_up_term.load(Ordering::Acquire) != term {
                linearizer.await_ready(&self.inner.raft).await.map_err(fatal)?;
                self.inner.caught_up_term.store(term, Ordering::Release);
            }
            Ok(term)
        })
    }

    /// The leader's commit index: at or beyond everything that was acknowledged before
    /// the call, in this term or an earlier one.
    pub fn read_index(&self) -> BoxFuture<'_, Result<u64, GroupError>> {
        Box::pin(async move { Ok(self.linearizer().await?.read_log_id().index()) })
    }

    /// Waits until this replica, leader or not, has applied the entry of an index.
    pub fn applied(&self, index: u64) -> BoxFuture<'_, Result<(), GroupError>> {
        let mut progress = self.inner.progress.clone();
        Box::pin(async move {
            let applied = progress
                .wait_for(|applied| applied.as_ref().is_some_and(|id| id.index >= index))
                .await;
            applied
                .map(drop)
                .map_err(|_| GroupFault::new(FaultKind::Io, "the group has ended").into())
        })
    }

    async fn linearizer(&self) -> Result<Linearizer<Types>, GroupError> {
        let inner = &self.inner;
        inner.heartbeats.on_request();
        // A removed leader leads for a moment longer, and then transfers without telling
        // the holders of its leases.
        if !inner.is_voter() {
            return Err(GroupError::NotLeader {
                why: "not a voter of the group".to_owned(),
                leader: inner.other_leader(),
            });
        }
        if inner.is_transferring.load(Ordering::SeqCst) {
            return Err(GroupError::NotLeader {
                why: "leadership is being transferred".to_owned(),
                leader: None,
            });
        }
        let is_trusted =
            inner.ticker.as_ref().is_none_or(|ticker| ticker.trusts_acks(Instant::now()));
        let option = LinearizerOption::new(
            Some(if is_trusted { QUORUM_ACK_AGE_MAX } else { Duration::ZERO }),
            true,
        );
        inner.raft.get_read_linearizer(option).await.map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                inner.not_leader(&forward)
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(quorum)) => {
                GroupError::NotLeader { why: quorum.to_string(), leader: None }
            }
            RaftError::Fatal(error) => fatal(error),
        })
    }

    /// Proposes a write batch under a leadership and waits until it is applied here.
    pub fn propose<'a>(
        &'a self,
        leadership: &'a Leadership,
        batch: Bytes,
    ) -> BoxFuture<'a, Result<(), GroupError>> {
        Box::pin(async move { self.submit(leadership, batch).await?.await })
    }

    /// Hands a write batch to Raft, behind those handed over before. The result resolves
    /// when it is applied here, and may be awaited later.
    pub fn submit<'a>(
        &'a self,
        leadership: &'a Leadership,
        batch: Bytes,
    ) -> BoxFuture<'a, Result<ProposalFuture, GroupError>> {
        Box::pin(async move {
            if self.inner.ticker.is_some() && batch.len() > BATCH_BYTES_MAX {
                // In the log it would block everything after it, for ever.
                let why = format!("a batch of {} bytes is too large to be replicated", batch.len());
                return Err(GroupError::NotLeader { why, leader: None });
            }
            self.inner.heartbeats.on_request();
            let (responder, result) = ProgressResponder::complete_only();
            {
                // The order matters: a transfer first sets `is_transferring` and then
                // waits for the proposals that have not seen it. Raft would refuse later
                // ones, but only once this server's vote for the next leader is on its
                // disk; until then their outcome would be unknown.
                let _submitting = Submitting::new(&self.inner.submitting);
                if self.inner.is_transferring.load(Ordering::SeqCst) {
                    return Err(GroupError::NotLeader {
                        why: "leadership is being transferred".to_owned(),
                        leader: None,
                    });
                }
                self.inner
                    .raft
                    .write(Payload(batch))
                    .with_leader(leadership.leader)
                    .responder(responder)
                    .await
                    .map_err(fatal)?;
            }
            let inner = self.inner.clone();
            let verdict: ProposalFuture = Box::pin(async move {
                match result.await {
                    Ok(Ok(_applied)) => Ok(()),
                    Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                        Err(inner.not_leader(&forward))
                    }
                    Ok(Err(error)) => Err(GroupError::Unknown(error.to_string())),
                    // The responder was dropped: Raft has stopped, and may or may not
                    // have appended the entry.
                    Err(_) => Err(GroupError::Unknown(
                        "the Raft group stopped while the write was in flight".to_owned(),
                    )),
                }
            });
            Ok(verdict)
        })
    }

    /// Reports the state on disk to openraft as its snapshot, after a flush if openraft
    /// knows of that state already. The log may then be purged up to it.
    pub fn flush(&self) -> BoxFuture<'_, Result<(), GroupError>> {
        Box::pin(async move { self.inner.raft.trigger().snapshot().await.map_err(fatal) })
    }

    /// Purges the log up to an entry that is flushed.
    pub(super) async fn purge(&self, upto: u64) -> Result<(), GroupError> {
        self.inner.raft.trigger().purge_log(upto).await.map_err(fatal)
    }

    /// A problem of the disk under the log, or of how this group's log gets there:
    /// another member should lead.
    pub fn disk_problem(&self) -> Option<DiskProblem> {
        self.inner.log.disk_problem()
    }

    /// Fails while nothing may be proposed. As
    /// [`GroupLog::writable`](super::GroupLog::writable).
    ///
    /// # Errors
    /// The reason.
    pub fn writable(&self) -> Result<(), LogError> {
        self.inner.log.writable()
    }

    /// This replica's Raft id.
    pub fn id(&self) -> RaftId {
        self.inner.id
    }

    /// The last applied entry, as a channel.
    pub fn progress(&self) -> Progress {
        self.inner.progress.clone()
    }

    /// Statistics as of the last change.
    pub fn stats(&self) -> GroupStats {
        let role = *self.inner.role.borrow();
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        GroupStats {
            term: metrics.current_term.0,
            is_leader: metrics.current_leader == Some(metrics.id),
            leader: role.leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.as_ref().map_or(0, |id| id.index),
            applied: metrics.last_applied.as_ref().map_or(0, |id| id.index),
            purged: metrics.purged.as_ref().map_or(0, |id| id.index),
            abstains: self.inner.abstains(),
        }
    }

    /// The reason why this replica has begun or ceased to lead, for the log; taken once.
    /// `None`: nothing was done here to that end.
    pub fn take_cause(&self) -> Option<String> {
        self.inner.cause.lock().take()
    }

    /// The group's leader, as a channel. For the end of the group see [`Group::ended`].
    pub fn leadership_changes(&self) -> watch::Receiver<Role> {
        self.inner.role.subscribe()
    }

    /// Fails when Raft has ended.
    ///
    /// # Errors
    /// [`GroupError::Fatal`]: the reason. The replica must be closed then; it may be
    /// opened again.
    pub fn running(&self) -> Result<(), GroupError> {
        match &*self.inner.ended.borrow() {
            Some(fault) => Err(GroupError::Fatal(fault.clone())),
            None => Ok(()),
        }
    }

    /// Waits until Raft has ended, and returns the reason.
    pub async fn ended(&self) -> GroupFault {
        let mut ended = self.inner.ended.subscribe();
        let fault = ended.wait_for(Option::is_some).await;
        fault
            .ok()
            .and_then(|fault| fault.clone())
            .unwrap_or_else(|| GroupFault::internal("the reason is unknown"))
    }

    /// Stops the group; proposals without an answer get an unknown outcome.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.inner.raft.shutdown().await {
                tracing::warn!(%error, "a Raft group ended in a panic");
            }
            if let Some(ticker) = &self.inner.ticker {
                ticker.remove(&self.inner);
            }
        })
    }
}

impl Inner {
    /// Does what is due at `now`. Returns when to be visited again if no leader changes
    /// before; `None`: at every heartbeat.
    pub(super) fn tick(self: &Arc<Self>, now: Instant, is_heartbeat: bool) -> Option<Instant> {
        self.expire_incoming(now);
        let (voters, rank, is_formed, term) = {
            let server = self.server.borrow_watched();
            if server.state == ServerState::Leader {
                if is_heartbeat && self.heartbeats.should_send() {
                    // A full queue has more urgent things in it.
                    let _ = self.raft.trigger().heartbeat().now_or_never();
                }
                return None;
            }
            let voters: Vec<RaftId> = server.membership_config.voter_ids().collect();
            // The last known leader is taken for dead: it takes no turn.
            let others = voters.iter().filter(|id| Some(**id) != server.current_leader);
            let rank = voters
                .contains(&self.id)
                .then(|| others.take_while(|id| **id != self.id).count() as u32);
            let is_formed = !voters.is_empty();
            (voters, rank, is_formed, server.vote.leader_id.term.0)
        };
        let mut election_timer = self.election_timer.lock();
        election_timer.on_term(now, term);
        if !is_formed {
            // The member that bootstraps a group campaigns in it: a suspect must wait.
            if self.abstains() {
                return self.may_campaign(now, &voters).err();
            }
            if election_timer.should_bootstrap(now) {
                self.note_cause("the group was bootstrapped".to_owned());
                tokio::spawn(self.clone().bootstrap());
            }
            return election_timer.bootstrap_at();
        }
        // A learner never campaigns; it may become a voter soon, so it is visited at
        // every heartbeat.
        let rank = rank?;
        if let Err(next) = self.may_campaign(now, &voters) {
            return Some(next);
        }
        if let Some(why) = election_timer.should_campaign(now, rank) {
            self.note_cause(why);
            let _ = self.raft.trigger().elect(true).now_or_never();
        }
        Some(election_timer.campaign_at(rank))
    }

    pub(super) fn note_cause(&self, why: String) {
        *self.cause.lock() = Some(why);
    }

    /// Forms the group of its first members. All of them may: their first entries
    /// conflict, and those of the first elected leader win.
    async fn bootstrap(self: Arc<Self>) {
        match self.raft.initialize(self.initial.clone()).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => tracing::error!(group = self.number, %error, "cannot bootstrap a group"),
        }
    }

    /// Publishes the leader as it changes, and finally the reason why Raft ended.
    pub(super) async fn watch_role(self: Arc<Self>) {
        let mut server = self.server.clone();
        loop {
            let role = {
                let server = server.borrow_and_update();
                let term = server.vote.leader_id.term.0;
                let leader = server.current_leader.map(|raft_id| {
                    let node = server.membership_config.membership().get_node(&raft_id);
                    Leader { raft_id, server: node.map_or(0, |node| node.server), term }
                });
                let membership = &server.membership_config;
                let followers = membership.voter_ids().filter(|id| *id != self.id).collect();
                self.peers
                    .quorum
                    .set_voters(followers, membership.membership().get_joint_config().len() == 1);
                Role { term, is_leader: server.state == ServerState::Leader, leader }
            };
            if self.role.send_if_modified(|old| std::mem::replace(old, role) != role) {
                if role.is_leader && self.log.is_suspect() {
                    self.clear_suspicion();
                }
                let mut since = self.leads_since.lock();
                *since = role.is_leader.then(|| since.unwrap_or_else(Instant::now));
                drop(since);
                if let Some(ticker) = &self.ticker {
                    ticker.wake_all();
                }
            }
            if server.changed().await.is_err() {
                break;
            }
        }
        let fault = match self.raft.is_initialized().await {
            Err(error) => GroupFault::from(error),
            Ok(_) => GroupFault::internal("the Raft core has ended"),
        };
        self.role.send_modify(|role| (role.is_leader, role.leader) = (false, None));
        self.end(fault);
    }

    /// Records the reason why Raft has ended or is to end, unless there is one.
    fn end(&self, fault: GroupFault) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(fault);
            is_first
        });
    }

    /// Stops the group for good: the leader's log contradicts what was applied here.
    /// Nothing more may be taken from this replica's state; the store must be rebuilt
    /// from the peers.
    pub(super) async fn mark_diverged(&self, why: String) {
        tracing::error!(
            group = self.number,
            why,
            "this replica has diverged from its group: it stops and must be rebuilt"
        );
        self.store.mark_diverged(&why);
        self.end(GroupFault::new(FaultKind::Damaged, why));
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "a Raft group ended in a panic");
        }
    }

    fn is_voter(&self) -> bool {
        self.server.borrow_watched().membership_config.voter_ids().any(|id| id == self.id)
    }

    /// The time since which this replica leads, if it does.
    pub(super) fn leads_since(&self) -> Option<Instant> {
        *self.leads_since.lock()
    }

    /// The leader, if it is known to be another replica.
    fn other_leader(&self) -> Option<Leader> {
        self.role.borrow().leader.filter(|leader| leader.raft_id != self.id)
    }

    pub(super) fn not_leader(&self, forward: &ForwardToLeader<Types>) -> GroupError {
        let term = self.role.borrow().term;
        let known =
            forward.leader_id.zip(forward.leader_node).filter(|(raft_id, _)| *raft_id != self.id);
        let leader = known.map(|(raft_id, node)| Leader { raft_id, server: node.server, term });
        let why = format!("not the leader: {:?}", forward.reason);
        GroupError::NotLeader { why, leader: leader.or_else(|| self.other_leader()) }
    }
}

pub(super) fn fatal(error: Fatal<Types>) -> GroupError {
    GroupError::Fatal(error.into())
}
