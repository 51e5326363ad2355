//! One replica of a Raft group in this process: started over the node's log and a store,
//! led, proposed to, confirmed.
//!
//! Partitions and meta use the same: whoever leads evaluates what is asked on applied
//! state and proposes the finished write batch. No caller needs openraft's own types.
//!
//! # Invariants
//! - Whoever confirms leadership led within [`QUORUM_ACK_AGE_MAX`] before, by the monotonic
//!   clock, and no other leader can commit anything before the lease is over
//!   (`tests/raft_leases.rs`).
//! - A replica that stood in for nobody yet may vote at once; one with a past keeps the
//!   word of its earlier life (`ticker.rs`).

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
use crate::log::{DiskProblem, LogError};
use crate::store::Store;

/// The leader's lease: no other leader is elected within it. Also the longest election
/// timeout.
pub const LEADER_LEASE: Duration = Duration::from_millis(1000);

/// How old an acknowledgement by a quorum may be for a read to rely on it, and how long
/// it may then rely on it: twice this is less than the lease by as much as the clocks of
/// two servers may run apart in that time.
pub const QUORUM_ACK_AGE_MAX: Duration = Duration::from_millis(475);

/// The largest batch that fits a letter.
const BATCH_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (1 << 20);

/// Why a group could not be started or asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Not the leader, or without a quorum. Nothing was proposed.
    #[error("{why}")]
    NotLeader {
        /// In words.
        why: String,
        /// Who leads, as far as is known here.
        leader: Option<Leader>,
    },
    /// Proposed, and then lost sight of: it may or may not be committed.
    #[error("{0}")]
    Unknown(String),
    /// The group has stopped for good: a storage error or a bug.
    #[error("{0}")]
    Fatal(String),
}

/// A leadership of this group's replica: what was evaluated under it may be proposed only
/// under it.
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
    /// Where it lives ([`Node::server`]).
    pub server: u64,
    /// Raft's term in which this was so.
    pub term: u64,
}

/// Who leads, as this replica sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Role {
    /// Raft's term.
    pub term: u64,
    /// Whether this replica leads. It may have lost the others without knowing it yet:
    /// [`Group::confirm_leadership`] tells.
    pub is_leader: bool,
    /// Who leads; `None` while nobody is known to.
    pub leader: Option<Leader>,
}

/// Figures of a group, for INFO, metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Raft's term.
    pub term: u64,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Who leads, as far as is known here.
    pub leader: Option<Leader>,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// Index of the last entry that is known to be committed.
    pub committed: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index up to which the log was purged.
    pub purged: u64,
    /// Whether it neither votes nor stands, as it may lack what it had acknowledged.
    pub abstains: bool,
}

/// Raft's word on a batch that was handed to it: applied here, or why not.
pub type ProposalFuture = BoxFuture<'static, Result<(), GroupError>>;

/// A running replica of a group.
///
/// What takes time is boxed: the bodies of `async fn`s, openraft's among them, would be
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
    /// For people.
    pub(super) name: String,
    pub(super) log: WeakGroupLog,
    /// What it keeps of its log for others.
    pub(super) retained: RetainedLog,
    /// When leadership was last to be handed over because of the disk.
    pub(super) evicted_at: Mutex<Option<Instant>>,
    pub(super) store: Store,
    /// The term of ours in which everything of earlier terms was seen to be applied.
    pub(super) caught_up_term: AtomicU64,
    pub(super) progress: Progress,
    pub(super) announced: AnnouncedIndex,
    pub(super) ticker: Option<Arc<Ticker>>,
    /// Until when this replica neither votes nor stands.
    pub(super) guard_until: Instant,
    pub(super) election_timer: Mutex<ElectionTimer>,
    /// Why leadership was last sought, given or given up here, until it is asked for.
    pub(super) cause: Mutex<Option<String>>,
    pub(super) suspect: Mutex<SuspectState>,
    pub(super) heartbeats: HeartbeatPacer,
    pub(super) initial: BTreeMap<RaftId, Node>,
    pub(super) server: WatchReceiverOf<Types, RaftServerMetrics<Types>>,
    pub(super) role: watch::Sender<Role>,
    pub(super) leads_since: Mutex<Option<Instant>>,
    /// The index before that of the first entry in the log when it was started.
    pub(super) purged_at_start: u64,
    /// While leadership is being handed over, nobody may rely on a lease of ours.
    pub(super) is_transferring: AtomicBool,
    /// How many proposals have passed the look at `is_transferring` and are not in Raft's
    /// queue yet.
    pub(super) submitting: AtomicUsize,
    /// While leadership is being handed over and all leases of ours are revoked: whoever
    /// stands may have our vote. Held while a vote is given.
    pub(super) leases_revoked: tokio::sync::RwLock<bool>,
    /// Held while a letter with entries is taken in.
    pub(super) append_lock: tokio::sync::Mutex<()>,
    /// One change of members or leader at a time.
    pub(super) change_lock: Arc<tokio::sync::Mutex<()>>,
    pub(super) peers: Peers,
    pub(super) incoming: Arc<tokio::sync::Mutex<IncomingSnapshot>>,
    /// Why Raft has ended.
    pub(super) ended: watch::Sender<Option<String>>,
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
    /// Waits until this replica leads and has applied everything that is committed; what
    /// is evaluated then is evaluated under the result.
    pub fn acquire_leadership(&self) -> BoxFuture<'_, Result<Leadership, GroupError>> {
        Box::pin(async move {
            // An entry of our own may be under way whose proposer has lost sight of it:
            // all is waited for, unlike in `confirm_leadership`.
            self.linearizer().await?.await_ready(&self.inner.raft).await.map_err(fatal)?;
            let leader =
                self.inner.raft.as_leader().map_err(|forward| self.inner.not_leader(&forward))?;
            Ok(Leadership {
                leader: leader.to_committed_leader_id(),
                term: leader.leader_id().term.0,
            })
        })
    }

    /// Makes sure that this replica led, and had applied everything that anybody was told
    /// of, at some moment within the last [`QUORUM_ACK_AGE_MAX`] before the call or later.
    ///
    /// What was committed in earlier terms may have been acknowledged by others, and is
    /// waited for. What this leadership commits is acknowledged by this replica only,
    /// after applying it: so there is nothing to wait for, and reads go on while an entry
    /// can't be applied because the disk is full. The term of the leadership is told.
    pub fn confirm_leadership(&self) -> BoxFuture<'_, Result<u64, GroupError>> {
        Box::pin(async move {
            let linearizer = self.linearizer().await?;
            // A leader's read log id is of its own term: it begins with an entry of its
            // own.
            let term = linearizer.read_log_id().committed_leader_id().term.0;
            if self.inner.caught_up_term.load(Ordering::Acquire) != term {
                linearizer.await_ready(&self.inner.raft).await.map_err(fatal)?;
                self.inner.caught_up_term.store(term, Ordering::Release);
            }
            Ok(term)
        })
    }

    /// The index of the last entry that is committed, from this replica as the one that
    /// leads: whatever was acknowledged before the call, in this term or an earlier one,
    /// is not behind it.
    pub fn read_index(&self) -> BoxFuture<'_, Result<u64, GroupError>> {
        Box::pin(async move { Ok(self.linearizer().await?.read_log_id().index()) })
    }

    /// Waits until this replica, whether it leads or not, has applied the entry of an
    /// index.
    pub fn applied(&self, index: u64) -> BoxFuture<'_, Result<(), GroupError>> {
        let mut progress = self.inner.progress.clone();
        Box::pin(async move {
            let applied = progress
                .wait_for(|applied| applied.as_ref().is_some_and(|id| id.index >= index))
                .await;
            applied.map(drop).map_err(|_| GroupError::Fatal("the group has ended".to_owned()))
        })
    }

    async fn linearizer(&self) -> Result<Linearizer<Types>, GroupError> {
        let inner = &self.inner;
        inner.heartbeats.on_request();
        // A leader that was removed leads on for a moment, and hands over without a word
        // to those who rely on its lease.
        if !inner.is_voter() {
            return Err(GroupError::NotLeader {
                why: "not a voter of the group".to_owned(),
                leader: inner.other_leader(),
            });
        }
        if inner.is_transferring.load(Ordering::SeqCst) {
            return Err(GroupError::NotLeader {
                why: "leadership is being handed over".to_owned(),
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

    /// Hands a write batch to Raft, behind those handed over before; the result tells
    /// when it is applied here, and may be waited for later.
    pub fn submit<'a>(
        &'a self,
        leadership: &'a Leadership,
        batch: Bytes,
    ) -> BoxFuture<'a, Result<ProposalFuture, GroupError>> {
        Box::pin(async move {
            if self.inner.ticker.is_some() && batch.len() > BATCH_BYTES_MAX {
                // In the log it would be in the way of everything after it, for good.
                let why = format!("a batch of {} bytes is too large to be replicated", batch.len());
                return Err(GroupError::NotLeader { why, leader: None });
            }
            self.inner.heartbeats.on_request();
            let (responder, result) = ProgressResponder::complete_only();
            {
                // In this order: a handover says so first, and then waits for those that
                // have not seen it. Raft would refuse what comes later, but only once
                // this server's vote for the next leader is on its disk, and nobody knew
                // until then.
                let _submitting = Submitting::new(&self.inner.submitting);
                if self.inner.is_transferring.load(Ordering::SeqCst) {
                    return Err(GroupError::NotLeader {
                        why: "leadership is being handed over".to_owned(),
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
                    // The responder was dropped: Raft has stopped, and whether the entry
                    // had been appended is not known.
                    Err(_) => Err(GroupError::Unknown(
                        "the Raft group stopped while the write was under way".to_owned(),
                    )),
                }
            });
            Ok(verdict)
        })
    }

    /// Tells openraft up to where the state is on disk, after a flush if it was told of
    /// that before: so far the log may then be purged.
    pub fn flush(&self) -> BoxFuture<'_, Result<(), GroupError>> {
        Box::pin(async move { self.inner.raft.trigger().snapshot().await.map_err(fatal) })
    }

    /// Lets go of the log up to an entry that is flushed.
    pub(super) async fn purge(&self, upto: u64) -> Result<(), GroupError> {
        self.inner.raft.trigger().purge_log(upto).await.map_err(fatal)
    }

    /// What is wrong with the disk under its log, or with how the group's log gets there:
    /// another member should lead.
    pub fn disk_problem(&self) -> Option<DiskProblem> {
        self.inner.log.disk_problem()
    }

    /// May something be proposed? As [`GroupLog::writable`](super::GroupLog::writable).
    ///
    /// # Errors
    /// Why not; nothing is proposed then.
    pub fn writable(&self) -> Result<(), LogError> {
        self.inner.log.writable()
    }

    /// This replica's Raft id.
    pub fn id(&self) -> RaftId {
        self.inner.id
    }

    /// How far it has applied, as it goes.
    pub fn progress(&self) -> Progress {
        self.inner.progress.clone()
    }

    /// Figures as of the last change.
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

    /// Why this replica has begun or ceased to lead, for the log; told once. `None`:
    /// nothing was done here to that end.
    pub fn take_cause(&self) -> Option<String> {
        self.inner.cause.lock().take()
    }

    /// Who leads, as it changes. That the group has ended is told by [`Group::ended`].
    pub fn leadership_changes(&self) -> watch::Receiver<Role> {
        self.inner.role.subscribe()
    }

    /// Whether Raft runs.
    ///
    /// # Errors
    /// [`GroupError::Fatal`]: why not. The replica must be closed then; it may be opened
    /// again.
    pub fn running(&self) -> Result<(), GroupError> {
        match &*self.inner.ended.borrow() {
            Some(why) => Err(GroupError::Fatal(why.clone())),
            None => Ok(()),
        }
    }

    /// Waits until Raft has ended, and says why.
    pub async fn ended(&self) -> String {
        let mut ended = self.inner.ended.subscribe();
        let why = ended.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_else(|| "nothing is known of it".to_owned())
    }

    /// Stops the group; what was proposed and not answered is answered as unknown.
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
    /// Does what is to be done at a moment, and says when to be asked again if no leader
    /// changes before; `None`: at every heartbeat.
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
            if self.abstains() {
                return self.may_campaign(now, &voters).err();
            }
            if election_timer.should_bootstrap(now) {
                self.note_cause("the group was formed".to_owned());
                tokio::spawn(self.clone().bootstrap());
            }
            return election_timer.bootstrap_at();
        }
        // Who does not vote may do so soon.
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
    /// conflict, and the first elected leader's stands.
    async fn bootstrap(self: Arc<Self>) {
        match self.raft.initialize(self.initial.clone()).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => tracing::error!(group = self.number, %error, "a group can't be formed"),
        }
    }

    /// Tells who leads as it changes, and in the end why Raft ended.
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
        let why = match self.raft.is_initialized().await {
            Err(error) => error.to_string(),
            Ok(_) => "its core has gone".to_owned(),
        };
        self.role.send_modify(|role| (role.is_leader, role.leader) = (false, None));
        self.end(why);
    }

    /// Raft has ended, or is to end: why, unless that was said before.
    fn end(&self, why: String) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(why);
            is_first
        });
    }

    /// The leader's log and what was applied here contradict each other: nothing more may
    /// be taken from it, nor given. The store is to be rebuilt from its peers.
    pub(super) async fn mark_diverged(&self, why: String) {
        tracing::error!(group = self.number, why, "a replica's state is not that of its group");
        self.store.mark_diverged(&why);
        self.end(why);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "a Raft group ended in a panic");
        }
    }

    fn is_voter(&self) -> bool {
        self.server.borrow_watched().membership_config.voter_ids().any(|id| id == self.id)
    }

    /// Since when this replica leads, if it does.
    pub(super) fn leads_since(&self) -> Option<Instant> {
        *self.leads_since.lock()
    }

    /// Who leads, if it is known to be another.
    fn other_leader(&self) -> Option<Leader> {
        self.role.borrow().leader.filter(|leader| leader.raft_id != self.id)
    }

    pub(super) fn not_leader(&self, forward: &ForwardToLeader<Types>) -> GroupError {
        let term = self.role.borrow().term;
        let told =
            forward.leader_id.zip(forward.leader_node).filter(|(raft_id, _)| *raft_id != self.id);
        let leader = told.map(|(raft_id, node)| Leader { raft_id, server: node.server, term });
        let why = format!("not the leader: {:?}", forward.reason);
        GroupError::NotLeader { why, leader: leader.or_else(|| self.other_leader()) }
    }
}

pub(super) fn fatal(error: Fatal<Types>) -> GroupError {
    GroupError::Fatal(error.to_string())
}
