//! Members of a group and their progress; leadership transfer; membership changes.
//!
//! # Invariants
//! - From the beginning of a transfer no leadership is confirmed here, and the caller
//!   revokes all leases granted before: the next leader is elected without waiting for
//!   them (`tests/raft_groups.rs`, `leadership_transfer_causes_no_pause`).
//! - A leader is never removed: it transfers its leadership first.
//! - Leadership never moves from a server with a healthy disk to one whose disk was slow,
//!   full or failed within the last minute, unless the first server stops; and because of
//!   a disk only to a server whose own disk is fast (`tests/raft_disks.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use serde::{Deserialize, Serialize};

use super::group::{Group, GroupError, GroupStats, Inner, fatal};
use super::log_store::WeakGroupLog;
use super::message;
use super::peers::Peer;
use super::transport::MessageKind;
use super::types::{Node, RaftId, Types};
#[cfg(test)]
use super::vectors::Sample;
use crate::log::{DiskProblem, HEALTHY_FSYNC_MAX};

/// A member with contact within this time is up: a quiescent group sends a heartbeat
/// every 600 ms.
const CONTACT_AGE_MAX: Duration = Duration::from_millis(1500);
/// The most entries that a member may lack to become leader or voter: about as many as
/// are in flight under load.
const LAG_MAX: u64 = 2000;
/// Timeout of a transfer. A transfer that fails ends in an election.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest wait for proposals to be applied before a transfer because of a disk.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout of the question whether a member is ready to lead.
const READINESS_TIMEOUT: Duration = Duration::from_millis(500);

/// The shortest time between two attempts to move leadership away because of a disk.
const EVICTION_INTERVAL: Duration = Duration::from_secs(2);

/// Reasons for a leadership transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferReason {
    /// An operator or meta requested it.
    Requested,
    /// This replica is about to stop.
    Stopping,
    /// The disk of this server.
    Disk(DiskProblem),
}

impl TransferReason {
    /// The reason as a metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            TransferReason::Requested => "asked",
            TransferReason::Stopping => "stopping",
            TransferReason::Disk(disk_problem) => disk_problem.name(),
        }
    }
}

/// A member's readiness to lead: the state of the disk under its log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Readiness {
    /// Duration of its last fsync.
    last_fsync_ms: u64,
    /// The problem of its disk, now or within the last minute.
    disk_problem: Option<String>,
}

impl Readiness {
    pub(super) fn of(log: &WeakGroupLog) -> Readiness {
        let (disk_problem, last_fsync) = log.recent_disk_state();
        Readiness {
            last_fsync_ms: last_fsync.as_millis() as u64,
            disk_problem: disk_problem.map(|disk_problem| disk_problem.to_string()),
        }
    }

    /// Fails unless such a member may become leader for this reason, given this server's
    /// own readiness.
    fn allows(&self, why: &TransferReason, own: &Readiness) -> Result<(), String> {
        match (&self.disk_problem, why) {
            (Some(_), TransferReason::Stopping) => Ok(()),
            (Some(disk_problem), TransferReason::Disk(_)) => Err(disk_problem.clone()),
            (Some(disk_problem), TransferReason::Requested) if own.disk_problem.is_none() => {
                Err(disk_problem.clone())
            }
            (None, TransferReason::Disk(_))
                if u128::from(self.last_fsync_ms) >= HEALTHY_FSYNC_MAX.as_millis() =>
            {
                Err(format!("its last fsync took {} ms", self.last_fsync_ms))
            }
            (_, _) => Ok(()),
        }
    }
}

/// Another member, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// The member.
    pub raft_id: RaftId,
    /// The server that holds it.
    pub server: u64,
    /// True for a voter, false for a learner.
    pub is_voter: bool,
    /// The last entry that it is known to have; 0 when nothing is known.
    pub matched: u64,
    /// Time since the leader sent the last message that it acknowledged; `None`: nothing
    /// yet.
    pub last_contact: Option<Duration>,
}

/// Statistics and members of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// This replica's statistics.
    pub stats: GroupStats,
    /// All members, this one included: Raft id, server, whether it votes.
    pub members: Vec<(RaftId, u64, bool)>,
    /// True while a membership change is in progress.
    pub is_changing: bool,
    /// The other members as the leader sees them; empty elsewhere.
    pub followers: Vec<Follower>,
}

/// Reasons why leader or members were not changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// The change would do harm now; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Raft's answer. [`GroupError::Unknown`]: it may yet happen; retry.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl Group {
    /// Members and their progress.
    pub fn status(&self) -> GroupStatus {
        let stats = self.stats();
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        let members =
            membership.nodes().map(|(id, node)| (*id, node.server, voters.contains(id))).collect();
        let last_contact = |id: &RaftId| {
            metrics
                .heartbeat
                .as_ref()
                .and_then(|last_contact| last_contact.get(id).copied())
                .flatten()
                .map(|at| at.elapsed())
        };
        let matched = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
        let followers = matched.map(|(id, matched)| Follower {
            raft_id: *id,
            server: membership.get_node(id).map_or(0, |node| node.server),
            is_voter: voters.contains(id),
            matched: matched.as_ref().map_or(0, |id| id.index),
            last_contact: last_contact(id),
        });
        let is_changing = membership.get_joint_config().len() > 1
            || metrics.membership_config != metrics.committed_membership_config;
        GroupStatus { stats, members, is_changing, followers: followers.collect() }
    }

    /// True when this replica leads and had contact with a majority of the voters lately.
    pub fn leads_with_quorum(&self) -> bool {
        let status = self.status();
        if !status.stats.is_leader {
            return false;
        }
        let voters = status.members.iter().filter(|(_, _, is_voter)| *is_voter).count();
        let is_there = |follower: &&Follower| {
            follower.is_voter
                && follower.last_contact.is_some_and(|last_contact| last_contact <= CONTACT_AGE_MAX)
        };
        // The leader itself.
        let there = status.followers.iter().filter(is_there).count() + 1;
        there * 2 > voters
    }

    /// The last entry that each other member is known to have, as the leader sees it;
    /// empty elsewhere.
    pub fn matched(&self) -> Vec<(RaftId, u64)> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
        others.map(|(id, matched)| (*id, matched.as_ref().map_or(0, |id| id.index))).collect()
    }

    /// Transfers leadership to a voter that is up and caught up. `revoke` is called at
    /// the beginning: from then on no leadership is confirmed here, and it must revoke
    /// every lease that rests on an earlier
    /// [`confirm_leadership`](Group::confirm_leadership) or
    /// [`acquire_leadership`](Group::acquire_leadership). Returns when another member
    /// leads. Runs to its end when the caller goes away.
    ///
    /// # Errors
    /// [`ChangeError::Refused`]: `to` can't lead now, or another member leads already;
    /// leadership stays. [`GroupError::Unknown`]: the transfer began, and no leader is
    /// known yet, or this member leads in a later term.
    pub fn transfer_leader(
        &self,
        to: RaftId,
        revoke: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(
            async move { self.transfer_leader_with(to, TransferReason::Requested, revoke).await },
        )
    }

    /// As [`transfer_leader`](Group::transfer_leader), with the reason, which decides the
    /// state that the target's disk must be in.
    pub fn transfer_leader_with(
        &self,
        to: RaftId,
        why: TransferReason,
        revoke: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let group = self.clone();
            let done = tokio::spawn(async move {
                let _one_at_a_time = group.inner.change_lock.lock().await;
                group.run_transfer(to, &why, revoke).await
            });
            done.await.unwrap_or_else(|error| Err(GroupError::Unknown(error.to_string()).into()))
        })
    }

    /// Moves leadership to any member with a fast disk, because this server's has a
    /// problem ([`Group::disk_problem`]); returns that member. `None`: this replica does
    /// not lead, or the last attempt was a moment ago. For `revoke` see
    /// [`transfer_leader`](Group::transfer_leader).
    ///
    /// # Errors
    /// As [`transfer_leader`](Group::transfer_leader): no member is up, or all that are
    /// have a disk problem, too.
    pub fn evict_leader(
        &self,
        disk_problem: DiskProblem,
        revoke: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Result<Option<RaftId>, ChangeError>> {
        Box::pin(async move {
            let status = self.status();
            {
                let (mut evicted_at, now) = (self.inner.evicted_at.lock(), Instant::now());
                let is_early = evicted_at
                    .is_some_and(|at| now.saturating_duration_since(at) < EVICTION_INTERVAL);
                if !status.stats.is_leader || is_early {
                    return Ok(None);
                }
                *evicted_at = Some(now);
            }
            let why = TransferReason::Disk(disk_problem);
            let mut followers: Vec<_> =
                status.followers.iter().filter(|follower| follower.is_voter).collect();
            followers.sort_by_key(|follower| std::cmp::Reverse(follower.matched));
            let mut refusal = "the group has no other voter".to_owned();
            for follower in followers {
                let to = follower.raft_id;
                match self.eligible(to, &why).await {
                    Ok(_) => {
                        return self.transfer_leader_with(to, why, revoke).await.map(|()| Some(to));
                    }
                    Err(error) => refusal = error.to_string(),
                }
            }
            Err(ChangeError::Refused(refusal))
        })
    }

    /// The member `to`, if it could lead now and may become leader for this reason.
    async fn eligible(&self, to: RaftId, why: &TransferReason) -> Result<Follower, ChangeError> {
        let inner = &self.inner;
        let follower = self.follower(to)?;
        if !follower.is_voter {
            return Err(ChangeError::Refused(format!("member {to} is not a voter")));
        }
        let node = Node { server: follower.server };
        let peer = Peer { peers: inner.peers.clone(), target: to, node, is_for_heartbeats: false };
        let refused = |error: &dyn std::fmt::Display| {
            ChangeError::Refused(format!("member {to} is not ready to lead: {error}"))
        };
        let reply = peer
            .call(MessageKind::Readiness, Bytes::new(), READINESS_TIMEOUT)
            .await
            .map_err(|error| refused(&error))?;
        let readiness: Readiness = message::decode(&reply).map_err(|error| refused(&error))?;
        readiness
            .allows(why, &Readiness::of(&inner.log))
            .map_err(|disk_problem| refused(&format!("its disk has a problem: {disk_problem}")))?;
        Ok(follower)
    }

    /// Waits for [`DRAIN_TIMEOUT`] at most until all proposals of this replica are
    /// applied. New ones are refused already. Those still in flight when this replica
    /// votes get their answers only after the vote is on its disk.
    async fn drain_proposals(&self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        loop {
            // Proposals on their way into Raft's queue are not in its statistics yet.
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
            let stats = self.stats();
            let is_drained = self.inner.submitting.load(Ordering::SeqCst) == 0
                && stats.applied >= stats.last_log;
            // The proposals that are left get an unknown outcome.
            if is_drained || Instant::now() >= deadline {
                return;
            }
        }
    }

    async fn run_transfer(
        &self,
        to: RaftId,
        why: &TransferReason,
        revoke: Box<dyn FnOnce() + Send>,
    ) -> Result<(), ChangeError> {
        let inner = &self.inner;
        let node = Node { server: self.eligible(to, why).await?.server };
        let mut roles = self.leadership_changes();
        let term = roles.borrow_and_update().term;
        inner.is_transferring.store(true, Ordering::SeqCst);
        inner.note_cause(format!("leadership is transferred to member {to} on {node}"));
        revoke();
        let timeout = match why {
            TransferReason::Disk(_) => {
                self.drain_proposals().await;
                TRANSFER_TIMEOUT * 3
            }
            _ => TRANSFER_TIMEOUT,
        };
        // Not earlier: a vote lets another leader write, and by then no read may rely on
        // a lease of this one.
        *inner.leases_revoked.write().await = true;
        let outcome = match inner.raft.trigger().transfer_leader(to).await {
            Err(error) => Err(fatal(error)),
            Ok(()) => {
                let next = roles.wait_for(|role| role.term > term && role.leader.is_some());
                match tokio::time::timeout(timeout, next)
                    .await
                    .map(|role| role.map(|role| role.is_leader))
                {
                    Ok(Ok(false)) => Ok(()),
                    Ok(Ok(true)) => Err(GroupError::Unknown(format!(
                        "leadership was transferred to member {to} and came back"
                    ))),
                    _ => Err(GroupError::Unknown(format!(
                        "leadership was transferred to member {to}, and no leader is known since"
                    ))),
                }
            }
        };
        // If no other member leads by now, openraft goes on refusing: it forgets a
        // transfer only with its leadership.
        *inner.leases_revoked.write().await = false;
        inner.is_transferring.store(false, Ordering::SeqCst);
        if outcome.is_err() {
            // If leadership is lost later, the reason is another.
            inner.cause.lock().take();
        }
        // This replica's vote waits for its slow disk, and until then no new leader is
        // visible from here.
        if outcome.is_ok() || matches!(why, TransferReason::Disk(_)) {
            metrics::counter!("bridle_raft_leader_transfers_total", "reason" => why.name())
                .increment(1);
            if let TransferReason::Disk(disk_problem) = why {
                tracing::warn!(
                    group = inner.number,
                    to,
                    %disk_problem,
                    "leadership was transferred: this server's disk has a problem"
                );
            }
        }
        Ok(outcome?)
    }

    /// The member `id`, if it is up and has nearly all of the log.
    fn follower(&self, id: RaftId) -> Result<Follower, ChangeError> {
        let status = self.status();
        if !status.stats.is_leader {
            return Err(GroupError::NotLeader {
                why: "not the leader".to_owned(),
                leader: status.stats.leader,
            }
            .into());
        }
        let follower = status.followers.into_iter().find(|follower| follower.raft_id == id);
        let follower = follower
            .ok_or_else(|| ChangeError::Refused(format!("the group has no other member {id}")))?;
        match follower.last_contact {
            Some(last_contact) if last_contact <= CONTACT_AGE_MAX => {}
            last_contact => {
                return Err(ChangeError::Refused(format!(
                    "no recent contact with member {id} (last: {last_contact:?})"
                )));
            }
        }
        let lag = status.stats.last_log.saturating_sub(follower.matched);
        if lag > LAG_MAX {
            return Err(ChangeError::Refused(format!("member {id} lacks {lag} entries")));
        }
        Ok(follower)
    }

    /// Adds a learner; harmless when it is a member already.
    pub fn add_learner(&self, id: RaftId, node: Node) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let _one_at_a_time = self.inner.change_lock.lock().await;
            if self.status().members.iter().any(|(member, ..)| *member == id) {
                return Ok(());
            }
            self.inner
                .raft
                .add_learner(id, node, false)
                .await
                .map(drop)
                .map_err(|error| self.inner.change_error(error))
        })
    }

    /// Removes a learner; harmless when it is gone.
    pub fn remove_learner(&self, id: RaftId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let _one_at_a_time = self.inner.change_lock.lock().await;
            if !self.status().members.iter().any(|(member, ..)| *member == id) {
                return Ok(());
            }
            let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
            self.inner
                .raft
                .change_membership(change, true)
                .await
                .map(drop)
                .map_err(|error| self.inner.change_error(error))
        })
    }

    /// Makes `voters` the voters, by joint consensus; a replica that votes no longer is
    /// no longer a member. May be called again until it succeeds, also on the next
    /// leader: that completes a change which a lost leader had begun.
    ///
    /// # Errors
    /// [`ChangeError::Refused`]: a new voter is not a member yet, not up or too far
    /// behind; or this replica, the leader, is not among them.
    pub fn change_members<'a>(
        &'a self,
        voters: &'a BTreeSet<RaftId>,
    ) -> BoxFuture<'a, Result<(), ChangeError>> {
        Box::pin(async move {
            let _one_at_a_time = self.inner.change_lock.lock().await;
            let status = self.status();
            let now: BTreeMap<RaftId, bool> =
                status.members.iter().map(|(id, _, votes)| (*id, *votes)).collect();
            if voters.is_empty() {
                return Err(ChangeError::Refused("a group needs voters".to_owned()));
            }
            let is_so = now.iter().filter(|(_, votes)| **votes).map(|(id, _)| id).eq(voters);
            if is_so && !status.is_changing {
                return Ok(());
            }
            if !voters.contains(&self.inner.id) {
                return Err(ChangeError::Refused(
                    "the leader can't be removed: it must transfer leadership first".to_owned(),
                ));
            }
            for id in voters.iter().filter(|id| **id != self.inner.id && now.get(id) != Some(&true))
            {
                self.follower(*id)?;
            }
            self.inner
                .raft
                .change_membership(voters.clone(), false)
                .await
                .map(drop)
                .map_err(|error| self.inner.change_error(error))
        })
    }
}

impl Inner {
    fn change_error(
        self: &Arc<Self>,
        error: RaftError<Types, ClientWriteError<Types>>,
    ) -> ChangeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                self.not_leader(&forward).into()
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward)) => {
                GroupError::Unknown(forward.to_string()).into()
            }
            RaftError::APIError(error) => ChangeError::Refused(error.to_string()),
            RaftError::Fatal(error) => fatal(error).into(),
        }
    }
}

/// Messages of this file, for their frozen bytes.
#[cfg(test)]
pub(super) fn samples() -> Vec<Sample> {
    let ready = |disk_problem: Option<&str>| Readiness {
        last_fsync_ms: 300,
        disk_problem: disk_problem.map(str::to_owned),
    };
    vec![
        Sample::body("readiness reply", &ready(None)),
        Sample::body("readiness reply, of an ailing disk", &ready(Some("slow"))),
    ]
}
