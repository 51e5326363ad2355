//! Handling of messages from other members.

use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesResponse, TransferLeaderRequest, VoteRequest};

use super::group::{Group, Inner};
use super::members::Readiness;
use super::message;
use super::transport::{MessageKind, RaftMessage};
use super::types::{LogId, RaftId, Types, Vote};

/// Reasons why a message was not taken. The sender retries as Raft does, here or
/// elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The message is for a replica that was removed, or is not here yet.
    #[error("no such replica here: {0}")]
    NoSuchReplica(u64),
    /// The message does not decode.
    #[error("{0}")]
    Malformed(String),
    /// The replica cannot take the message now.
    #[error("{0}")]
    Unavailable(String),
    /// The group has stopped.
    #[error("{0}")]
    Stopped(String),
}

impl Group {
    /// Handles a message from the transport and returns the reply to send back.
    ///
    /// # Errors
    /// The reason why there is no reply; the transport reports it to the sender
    /// ([`TransportError::Refused`](super::TransportError::Refused)).
    pub fn receive(&self, message: RaftMessage) -> BoxFuture<'_, Result<Bytes, ReceiveError>> {
        Box::pin(async move {
            let inner = &self.inner;
            if (message.group, message.target) != (inner.number, inner.id) {
                return Err(ReceiveError::NoSuchReplica(message.target));
            }
            inner.election_timer.lock().peer_seen(Instant::now());
            match message.kind {
                MessageKind::Append => inner.append(message.body).await,
                MessageKind::Vote | MessageKind::PreVote | MessageKind::TransferLeader => {
                    inner.receive_election(message.kind, message.from, &message.body).await
                }
                MessageKind::SnapshotOffer
                | MessageKind::SnapshotChunk
                | MessageKind::SnapshotInstall => {
                    inner.receive_snapshot(message.kind, message.body).await
                }
                MessageKind::Readiness => inner.readiness(),
                MessageKind::Ping => Ok(Bytes::new()),
                MessageKind::SnapshotRequest => self.send_snapshot(message.from).await,
                MessageKind::LogStatus => {
                    message::encode(&inner.log_status()).map_err(ReceiveError::Malformed)
                }
            }
        })
    }
}

impl Inner {
    async fn append(&self, body: Bytes) -> Result<Bytes, ReceiveError> {
        let received = Instant::now();
        let request = message::decode_append(&body).map_err(ReceiveError::Malformed)?;
        drop(body);
        let (is_busy, term) = (!request.entries.is_empty(), request.vote.leader_id.term.0);
        // A leader has one request with entries in flight. A second one means that the
        // leader has given up the first: while this replica waits for its disk or its
        // store, such requests would pile up in Raft's queue.
        let _admitted = match is_busy.then(|| self.append_lock.try_lock()) {
            Some(Err(_taken)) => {
                return Err(ReceiveError::Unavailable(
                    "the entries before these are still being processed".to_owned(),
                ));
            }
            admitted => admitted,
        };
        let received_ids = request.entries.iter().map(|entry| entry.log_id);
        self.check_consistency(
            &request.vote,
            request.leader_commit,
            received_ids.chain(request.prev_log_id),
        )
        .await?;
        let (vote, committed) = (request.vote, request.leader_commit);
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let response = self.raft.append_entries(request).await.map_err(stopped)?;
        match &response {
            AppendEntriesResponse::Success => self.on_caught_up(&vote, committed, last),
            AppendEntriesResponse::PartialSuccess(matched) => {
                self.on_caught_up(&vote, committed, *matched)
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => {}
        }
        // A follower of this term does not follow the leader of an earlier one.
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            let mut election_timer = self.election_timer.lock();
            if is_busy {
                election_timer.entries_received(received, term)
            } else {
                election_timer.leader_seen(received, term)
            }
        }
        message::encode(&response).map_err(ReceiveError::Malformed)
    }

    /// Fails unless a leader of `vote` has the entries that were committed here: openraft
    /// would truncate them, or panic.
    pub(super) async fn check_consistency(
        &self,
        vote: &Vote,
        committed: Option<LogId>,
        others: impl Iterator<Item = LogId>,
    ) -> Result<(), ReceiveError> {
        match self.log.contradiction(vote, committed, others) {
            None => Ok(()),
            Some(why) => {
                self.mark_diverged(why.clone()).await;
                Err(ReceiveError::Stopped(why))
            }
        }
    }

    /// This replica's readiness to vote and to lead, with the state of its disk.
    fn readiness(&self) -> Result<Bytes, ReceiveError> {
        let why = match () {
            () if Instant::now() < self.guard_until => {
                "this replica has just started and may have promised not to vote"
            }
            () if self.abstains() => {
                "this replica was not shut down properly and may lack acknowledged entries"
            }
            () => {
                return message::encode(&Readiness::of(&self.log)).map_err(ReceiveError::Malformed);
            }
        };
        Err(ReceiveError::Unavailable(why.to_owned()))
    }

    /// The leader is transferring its leadership: its target leads soon, or this replica
    /// campaigns. Only the leader that this replica follows is believed. openraft ignores
    /// others as well, and a message of a term that nobody has reached would make this
    /// replica campaign for ever.
    fn leader_stepped_down(&self, leader: &Vote, from: RaftId) {
        if self.log.vote() == Some(*leader) && leader.committed && leader.leader_id.node_id == from
        {
            self.election_timer.lock().leader_stepped_down(Instant::now(), leader.leader_id.term.0);
            if let Some(ticker) = &self.ticker {
                ticker.wake_all();
            }
        }
    }

    async fn receive_election(
        &self,
        kind: MessageKind,
        from: RaftId,
        body: &[u8],
    ) -> Result<Bytes, ReceiveError> {
        self.readiness()?;
        let reply = match kind {
            MessageKind::TransferLeader => {
                let request: TransferLeaderRequest<Types> =
                    message::decode(body).map_err(ReceiveError::Malformed)?;
                self.leader_stepped_down(request.from_leader(), from);
                if *request.to_node_id() == self.id {
                    self.note_cause(format!(
                        "member {} transferred leadership to this replica",
                        request.from_leader().leader_id.node_id
                    ));
                }
                message::encode(
                    &self
                        .raft
                        .handle_transfer_leader(request)
                        .await
                        .map_err(|error| ReceiveError::Stopped(error.to_string()))?,
                )
            }
            _ => {
                let mut request: VoteRequest<Types> =
                    message::decode(body).map_err(ReceiveError::Malformed)?;
                // A leader that is transferring has revoked its leases and releases this
                // replica's promise to it: the transfer's target may be dead. The lock is
                // held until the vote is given, since afterwards the leader may stay
                // leader and grant itself new leases.
                let leases_revoked = self.leases_revoked.read().await;
                let is_next_term = request.vote.leader_id.term.0 > self.role.borrow().term;
                let is_released = *leases_revoked && is_next_term;
                let answer = if kind == MessageKind::Vote {
                    // The leader of an earlier term authorised it; that has no weight
                    // once there is another leader.
                    request.leadership_transfer =
                        request.leadership_transfer && is_next_term || is_released;
                    self.raft.vote(request).await.map_err(stopped)?
                } else {
                    let last_log_id = request.last_log_id;
                    let mut answer = self.raft.pre_vote(request).await.map_err(stopped)?;
                    // openraft does not grant a pre-vote within the lease.
                    answer.vote_granted |= is_released && last_log_id >= answer.last_log_id;
                    answer
                };
                message::encode(&answer)
            }
        };
        reply.map_err(ReceiveError::Malformed)
    }
}

fn stopped(error: RaftError<Types>) -> ReceiveError {
    ReceiveError::Stopped(error.to_string())
}
