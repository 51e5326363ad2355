//! What a replica does with a letter from another member.

use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesResponse, TransferLeaderRequest, VoteRequest};

use super::group::{Group, Inner};
use super::message;
use super::types::Types;
use super::wire::{Kind, Letter};

/// Why a letter was not taken. The sender tries again, here or elsewhere, as Raft does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// It is for another replica: one that is gone, or not here yet.
    #[error("replica {0} is not here")]
    NotHere(u64),
    /// Nobody can read it.
    #[error("{0}")]
    Unreadable(String),
    /// Not now.
    #[error("{0}")]
    NotNow(String),
    /// The group has stopped for good.
    #[error("{0}")]
    Stopped(String),
}

impl Group {
    /// Takes a letter that came over the wire, and gives the reply to send back.
    ///
    /// # Errors
    /// Why there is none: the wire tells the sender ([`WireError::Refused`](super::WireError::Refused)).
    pub fn receive(&self, letter: Letter) -> BoxFuture<'_, Result<Bytes, ReceiveError>> {
        Box::pin(async move {
            let inner = &self.inner;
            if (letter.group, letter.target) != (inner.number, inner.id) {
                return Err(ReceiveError::NotHere(letter.target));
            }
            inner.standing.lock().met(Instant::now());
            match letter.kind {
                Kind::Append => inner.append(letter.body).await,
                Kind::Vote | Kind::PreVote | Kind::Transfer => inner.elections(letter.kind, &letter.body).await,
                Kind::Offer | Kind::Piece | Kind::Install => inner.arrivals(letter.kind, letter.body).await,
                Kind::Ready => inner.ready(),
            }
        })
    }
}

impl Inner {
    async fn append(&self, body: Bytes) -> Result<Bytes, ReceiveError> {
        let received = Instant::now();
        let request = message::decode_append(&body).map_err(ReceiveError::Unreadable)?;
        drop(body);
        let is_busy = !request.entries.is_empty();
        let response = self.raft.append_entries(request).await.map_err(stopped)?;
        // A leader of the past is nobody's leader.
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            let mut standing = self.standing.lock();
            if is_busy { standing.busy(received) } else { standing.heard(received) }
        }
        message::encode(&response).map_err(ReceiveError::Unreadable)
    }

    /// Whether this replica may vote and stand.
    fn ready(&self) -> Result<Bytes, ReceiveError> {
        match Instant::now() < self.guard_until {
            true => Err(ReceiveError::NotNow("this replica has just started and may have promised its vote".to_owned())),
            false => Ok(Bytes::new()),
        }
    }

    async fn elections(&self, kind: Kind, body: &[u8]) -> Result<Bytes, ReceiveError> {
        self.ready()?;
        let reply = match kind {
            Kind::Transfer => {
                let request: TransferLeaderRequest<Types> = message::decode(body).map_err(ReceiveError::Unreadable)?;
                message::encode(&self.raft.handle_transfer_leader(request).await.map_err(|error| ReceiveError::Stopped(error.to_string()))?)
            }
            _ => {
                let mut request: VoteRequest<Types> = message::decode(body).map_err(ReceiveError::Unreadable)?;
                // Authorised by the leader of an earlier term, and so no longer of weight once there is another.
                request.leadership_transfer &= request.vote.leader_id.term > self.role.borrow().term;
                let answer = if kind == Kind::Vote { self.raft.vote(request).await } else { self.raft.pre_vote(request).await };
                message::encode(&answer.map_err(stopped)?)
            }
        };
        reply.map_err(ReceiveError::Unreadable)
    }
}

fn stopped(error: RaftError<Types>) -> ReceiveError {
    ReceiveError::Stopped(error.to_string())
}
