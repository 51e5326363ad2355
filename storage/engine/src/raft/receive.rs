//! What a replica does with a letter from another member.

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

/// Why a letter was not taken. The sender tries again, here or elsewhere, as Raft does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It is for another replica: one that is gone, or not here yet.
    #[error("replica {0} is not here")]
    NoSuchReplica(u64),
    /// Nobody can read it.
    #[error("{0}")]
    Malformed(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
    /// The group has stopped for good.
    #[error("{0}")]
    Stopped(String),
}

impl Group {
    /// Takes a letter that came over the wire, and gives the reply to send back.
    ///
    /// # Errors
    /// Why there is none: the wire tells the sender
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
        // A leader has one with entries on its way. More are those that it has given up:
        // while this replica waits for its disk or its store, they would pile up in
        // Raft's queue.
        let _admitted = match is_busy.then(|| self.append_lock.try_lock()) {
            Some(Err(_taken)) => {
                return Err(ReceiveError::Unavailable(
                    "entries that came before are not taken in yet".to_owned(),
                ));
            }
            admitted => admitted,
        };
        let told = request.entries.iter().map(|entry| entry.log_id);
        self.check_consistency(
            &request.vote,
            request.leader_commit,
            told.chain(request.prev_log_id),
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
        // A leader of the past is nobody's leader.
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

    /// Makes sure that a leader of `vote` has what was committed here: openraft would
    /// take its word, or panic.
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

    /// Whether this replica may vote and stand, and how its disk is.
    fn readiness(&self) -> Result<Bytes, ReceiveError> {
        let why = match () {
            () if Instant::now() < self.guard_until => {
                "this replica has just started and may have promised its vote"
            }
            () if self.abstains() => {
                "this replica was not stopped in order and may lack what it had acknowledged"
            }
            () => {
                return message::encode(&Readiness::of(&self.log)).map_err(ReceiveError::Malformed);
            }
        };
        Err(ReceiveError::Unavailable(why.to_owned()))
    }

    /// A leader gives up: the one that it chose leads soon, or this replica stands. Of no
    /// other than the one that is followed here is that taken: openraft does not listen
    /// to others either, and a term that nobody has reached would have this replica stand
    /// for ever.
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
                        "member {} has handed it over",
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
                // A leader that gives up has revoked its leases, and whoever stands next
                // has its word: the one that it chose may be gone. It may lead on, and
                // grant itself new leases, only after such a vote is given.
                let leases_revoked = self.leases_revoked.read().await;
                let is_next_term = request.vote.leader_id.term.0 > self.role.borrow().term;
                let is_released = *leases_revoked && is_next_term;
                let answer = if kind == MessageKind::Vote {
                    // Authorised by the leader of an earlier term, and so no longer of
                    // weight once there is another.
                    request.leadership_transfer =
                        request.leadership_transfer && is_next_term || is_released;
                    self.raft.vote(request).await.map_err(stopped)?
                } else {
                    let last_log_id = request.last_log_id;
                    let mut answer = self.raft.pre_vote(request).await.map_err(stopped)?;
                    // openraft would not let it stand within the lease.
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
