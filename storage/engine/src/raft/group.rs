//! One Raft group in this process: started over the node's log and a store, led, proposed to, confirmed.
//!
//! Partitions and meta use the same: whoever leads evaluates what is asked on applied state and proposes the finished write batch.
//! No caller needs openraft's own types.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, InitializeError, LinearizableReadError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::impls::ProgressResponder;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::linearizable_read::{Linearizer, LinearizerOption};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::storage::RaftStateMachine;
use openraft::{Config, Raft, SnapshotPolicy};

use super::purge::{Policy, keep_log_short};
use super::types::{LeaderId, Node, Payload, RaftId, Types};
use super::{GroupLog, Machine, Progress};
use crate::store::Store;

/// The leader's lease: no other leader is elected within it. Also the longest election timeout.
pub const LEASE: Duration = Duration::from_millis(1500);

/// How old an acknowledgement by a quorum may be for a read to rely on it: half of the lease, so that the other half is left to read.
pub const CONFIRMED_AGE: Duration = Duration::from_millis(750);

/// How long a group of one may take to elect itself: a few fsyncs, on a disk that may be busy.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Why a group could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Not the leader, or without a quorum. Nothing was proposed.
    #[error("{0}")]
    NotLeader(String),
    /// Proposed, and then lost sight of: it may or may not be committed.
    #[error("{0}")]
    Unknown(String),
    /// The group has stopped for good: a storage error or a bug.
    #[error("{0}")]
    Fatal(String),
}

/// A leadership of this group's replica: what was evaluated under it may be proposed only under it.
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

/// Figures of a group, for INFO, metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Raft's term.
    pub term: u64,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Index of the last entry in the log.
    pub last_log: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Index up to which the log was purged.
    pub purged: u64,
}

/// A running group.
#[derive(Clone)]
pub struct Group {
    raft: Raft<Types, Machine>,
    /// The term of ours in which everything of earlier terms was seen to be applied.
    caught_up_term: Arc<AtomicU64>,
    progress: Progress,
}

impl Group {
    /// Starts a group of one voter, `id`, forming it when log and store are new. Must be called on the runtime that is to run Raft.
    ///
    /// A group of one needs no ticks: it elects itself here, and keeps its lease by itself.
    /// While it runs, its log is kept short ([`keep_log_short`]).
    ///
    /// # Errors
    /// [`GroupError::Fatal`]: log or store can't be read, or the disk doesn't take a vote.
    pub async fn start_alone(id: RaftId, name: String, log: GroupLog, store: Store) -> Result<Group, GroupError> {
        let (machine, progress) = Machine::new(store.clone()).map_err(|fault| GroupError::Fatal(fault.to_string()))?;
        let config = Config {
            cluster_name: name,
            heartbeat_interval: 250,
            election_timeout_min: 1000,
            election_timeout_max: LEASE.as_millis() as u64,
            enable_tick: false,
            enable_pre_vote: Some(true),
            // What a restarted leader had committed it learns by being elected again: `save_committed` is best effort.
            enable_leader_restore: Some(false),
            // Snapshots are flushes here, and the purge driver asks for them.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            ..Config::default()
        };
        let config = config.validate().map_err(|error| GroupError::Fatal(error.to_string()))?;
        let raft = Raft::new(id, Arc::new(config), NoPeers, log, machine).await.map_err(fatal)?;
        let members = BTreeMap::from([(id, Node::default())]);
        match raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => raft.trigger().elect(false).await.map_err(fatal)?,
            Err(error) => return Err(GroupError::Fatal(error.to_string())),
        }
        raft.wait(Some(START_PATIENCE))
            .current_leader(id, "a group of one elects itself")
            .await
            .map_err(|error| GroupError::Fatal(error.to_string()))?;
        let group = Group { raft, caught_up_term: Arc::default(), progress: progress.clone() };
        tokio::spawn(keep_log_short(group.clone(), store, progress, Policy::default()));
        Ok(group)
    }

    /// Waits until this replica leads and has applied everything that is committed; what is evaluated then is evaluated under the result.
    pub async fn establish(&self) -> Result<Leadership, GroupError> {
        // An entry of our own may be under way whose proposer has lost sight of it: all is waited for, unlike in `confirm`.
        self.linearizer().await?.await_ready(&self.raft).await.map_err(fatal)?;
        let leader = self.raft.as_leader().map_err(|forward| GroupError::NotLeader(forward.to_string()))?;
        Ok(Leadership { leader: leader.to_committed_leader_id(), term: leader.leader_id().term })
    }

    /// Makes sure that this replica led, and had applied everything that anybody was told of, at some moment within the last
    /// [`CONFIRMED_AGE`] before the call or later.
    ///
    /// What was committed in earlier terms may have been acknowledged by others, and is waited for. What this leadership commits is
    /// acknowledged by this replica only, after applying it: so there is nothing to wait for, and reads go on while an entry can't be
    /// applied because the disk is full.
    pub async fn confirm(&self) -> Result<(), GroupError> {
        let linearizer = self.linearizer().await?;
        // A leader's read log id is of its own term: it begins with an entry of its own.
        let term = linearizer.read_log_id().committed_leader_id().term;
        if self.caught_up_term.load(Ordering::Acquire) != term {
            linearizer.await_ready(&self.raft).await.map_err(fatal)?;
            self.caught_up_term.store(term, Ordering::Release);
        }
        Ok(())
    }

    async fn linearizer(&self) -> Result<Linearizer<Types>, GroupError> {
        let option = LinearizerOption::new(Some(CONFIRMED_AGE), true);
        self.raft.get_read_linearizer(option).await.map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => GroupError::NotLeader(forward.to_string()),
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(quorum)) => GroupError::NotLeader(quorum.to_string()),
            RaftError::Fatal(error) => fatal(error),
        })
    }

    /// Proposes a write batch under a leadership and waits until it is applied here.
    pub async fn propose(&self, leadership: &Leadership, batch: Bytes) -> Result<(), GroupError> {
        let (responder, result) = ProgressResponder::complete_only();
        self.raft.write(Payload(batch)).with_leader(leadership.leader).responder(responder).await.map_err(fatal)?;
        match result.await {
            Ok(Ok(_applied)) => Ok(()),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(GroupError::NotLeader(forward.to_string())),
            Ok(Err(error)) => Err(GroupError::Unknown(error.to_string())),
            // The responder was dropped: Raft has stopped, and whether the entry had been appended is not known.
            Err(_) => Err(GroupError::Unknown("the Raft group stopped while the write was under way".to_owned())),
        }
    }

    /// Asks for a flush of the store, up to which the log may then be purged.
    pub async fn flush(&self) -> Result<(), GroupError> {
        self.raft.trigger().snapshot().await.map_err(fatal)
    }

    /// Lets go of the log up to an entry that is flushed.
    pub(super) async fn purge(&self, upto: u64) -> Result<(), GroupError> {
        self.raft.trigger().purge_log(upto).await.map_err(fatal)
    }

    /// How far it has applied, as it goes.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Figures as of the last change.
    pub fn figures(&self) -> GroupFigures {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        GroupFigures {
            term: metrics.current_term,
            is_leader: metrics.current_leader == Some(metrics.id),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.as_ref().map_or(0, |id| id.index),
            purged: metrics.purged.as_ref().map_or(0, |id| id.index),
        }
    }

    /// Stops the group; what was proposed and not answered is answered as unknown.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "a Raft group ended in a panic");
        }
    }
}

fn fatal(error: Fatal<Types>) -> GroupError {
    GroupError::Fatal(error.to_string())
}

/// The network of a group of one: there is nobody to reach.
#[derive(Debug, Clone, Copy)]
struct NoPeers;

fn nobody() -> Unreachable<Types> {
    Unreachable::from_string("this group has one member")
}

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = NoPeers;

    async fn new_client(&mut self, _target: RaftId, _node: &Node) -> NoPeers {
        NoPeers
    }
}

impl RaftNetworkV2<Types> for NoPeers {
    type SnapshotData = <Machine as RaftStateMachine<Types>>::SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(nobody().into())
    }

    async fn vote(&mut self, _rpc: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(nobody().into())
    }

    async fn pre_vote(&mut self, _rpc: VoteRequest<Types>, _option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(nobody().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: VoteOf<Types>,
        _snapshot: SnapshotOf<Types, Self::SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(nobody().into())
    }
}
