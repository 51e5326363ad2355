//! openraft's network over a [`Wire`].
//!
//! One letter with entries is under way per follower, and what has come in meanwhile goes with the next: fewer and fuller letters than a pipeline would
//! send, for the same throughput and less CPU. Heartbeats don't queue behind entries. What goes in one letter is bounded by what the log gives at once
//! (`log_store.rs`).
//!
//! That something is committed is told to followers with the next entries. openraft would tell it in a letter of its own as soon as a round is over, which the
//! next round's entries would then have to wait for; here such a letter leaves only when no entries have come for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::alias::VoteOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;

use super::machine::StateTransfer;
use super::message;
use super::transfer::{Holds, Transfers};
use super::types::{LeaderId, LogId, Node, RaftId, Types};
use super::wire::{Kind, Letter, Wire, WireError};

/// How long a letter with entries may take, beside the time for its bytes.
const APPEND_PATIENCE: Duration = Duration::from_secs(2);
/// How long followers may be left without the news that something is committed. Nobody waits for it: who is elected applies everything first.
const NEWS_DELAY: Duration = Duration::from_millis(50);
/// How often followers are told with entries what is committed: what they apply at once they write as one, without what was overwritten meanwhile.
const NEWS_PERIOD: Duration = Duration::from_millis(20);
/// The slowest network and disk that are waited for, bytes a second.
const SLOWEST: f64 = 2e6;
/// How long to leave alone a server that can't be reached: doubled from the first to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_millis(400);

/// A replica's way to the other members of its group.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) wire: Arc<dyn Wire>,
    pub(super) group: u64,
    pub(super) id: RaftId,
    pub(super) transfers: Arc<Transfers>,
    pub(super) holds: Arc<Holds>,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftId, node: &Node) -> Peer {
        Peer { peers: self.clone(), target, node: *node, news: None }
    }
}

/// The way to one member.
pub(super) struct Peer {
    pub(super) peers: Peers,
    pub(super) target: RaftId,
    pub(super) node: Node,
    /// What was last said to be committed, and when.
    pub(super) news: Option<(Instant, Option<LogId>)>,
}

impl Peer {
    pub(super) async fn ask(&self, kind: Kind, body: Bytes, timeout: Duration) -> Result<Bytes, WireError> {
        let letter = Letter { group: self.peers.group, from: self.peers.id, target: self.target, kind, body, timeout };
        // The wire keeps to the timeout by itself; a wire that does not must not hold up Raft.
        match tokio::time::timeout(timeout + timeout / 4, self.peers.wire.send(&self.node, letter)).await {
            Ok(reply) => reply,
            Err(_) => Err(WireError::Lost("the time is up".to_owned())),
        }
    }

    /// What is to be said of what is committed: the latest, at most once in [`NEWS_PERIOD`].
    fn committed(&mut self, latest: Option<LogId>, is_all: bool) -> Option<LogId> {
        let now = Instant::now();
        match self.news {
            Some((said, committed)) if !is_all && now < said + NEWS_PERIOD => committed,
            _ => {
                self.news = Some((now, latest));
                latest
            }
        }
    }

    async fn ask_as<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: Result<Bytes, String>,
        timeout: Duration,
    ) -> Result<T, RPCError<Types>> {
        let reply = self.ask(kind, body.map_err(unsaid)?, timeout).await.map_err(rpc)?;
        message::decode(&reply).map_err(unsaid)
    }
}

fn unsaid(why: String) -> RPCError<Types> {
    Unreachable::from_string(why).into()
}

fn rpc(error: WireError) -> RPCError<Types> {
    match error {
        WireError::Lost(why) => NetworkError::from_string(why).into(),
        WireError::NotSent(why) | WireError::Refused(why) => Unreachable::from_string(why).into(),
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = StateTransfer;

    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        rpc.leader_commit = self.committed(rpc.leader_commit, rpc.entries.is_empty());
        let body = message::encode_append(&rpc);
        let timeout = match rpc.entries.is_empty() {
            true => option.hard_ttl(),
            false => APPEND_PATIENCE + Duration::from_secs_f64(body.len() as f64 / SLOWEST),
        };
        self.ask_as(Kind::Append, Ok(body), timeout).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        stream_append_sequential(self, news_with_entries(input), option)
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_as(Kind::Vote, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_as(Kind::PreVote, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask_as(Kind::Transfer, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: Snapshot<LeaderId, u64, Node, StateTransfer>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = super::transfer::send(self, vote, snapshot) => sent,
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::successors(Some(PAUSE_FIRST), |pause| Some((*pause * 2).min(PAUSE_LAST)))))
    }
}

/// The requests without those that bring no entries, as long as others follow within [`NEWS_DELAY`]. A later request says all that an earlier one without entries
/// did, and its answer stands for both.
fn news_with_entries<S>(input: S) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    // Fused: it is asked again after it has ended.
    Box::pin(futures::stream::unfold(input.fuse(), |mut input| async move {
        let mut request = input.next().await?;
        let mut due = None;
        while request.entries.is_empty() {
            let due = *due.get_or_insert_with(|| tokio::time::Instant::now() + NEWS_DELAY);
            match tokio::time::timeout_at(due, input.next()).await {
                Ok(Some(next)) => request = next,
                // The last one, as a heartbeat is; or long enough.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, input))
    }))
}

#[cfg(test)]
mod tests {
    use futures::SinkExt;
    use openraft::vote::RaftLeaderIdExt as _;

    use super::*;
    use crate::raft::types::{Entry, EntryPayload, LogId, Vote};

    fn request(last: u64, entries: bool) -> AppendEntriesRequest<Types> {
        let leader = LeaderId::new_committed(3, 4);
        let id = |index| LogId { leader_id: leader, index };
        let entries = entries.then(|| Entry { log_id: id(last), payload: EntryPayload::Blank });
        let vote = Vote { leader_id: leader, committed: true };
        AppendEntriesRequest {
            vote,
            prev_log_id: Some(id(last - 1)),
            entries: entries.into_iter().collect(),
            leader_commit: Some(id(last - 1)),
        }
    }

    fn said(request: Option<AppendEntriesRequest<Types>>) -> (u64, bool) {
        let request = request.expect("a request");
        (request.leader_commit.expect("the news").index + 1, !request.entries.is_empty())
    }

    #[tokio::test]
    async fn news_travels_with_entries_or_alone_after_a_while() {
        let (mut give, input) = futures::channel::mpsc::channel(8);
        let mut output = news_with_entries(input);
        for (last, entries) in [(5, true), (6, false), (6, true), (7, false)] {
            give.send(request(last, entries)).await.unwrap();
        }
        assert_eq!(said(output.next().await), (5, true));
        assert_eq!(said(output.next().await), (6, true));
        let began = std::time::Instant::now();
        assert_eq!(said(output.next().await), (7, false));
        assert!(began.elapsed() >= NEWS_DELAY);
        // A heartbeat is a stream of one, made by openraft in a way that must not be asked again.
        let once = Box::pin(futures::stream::unfold(Some(8), |last| async move { last.map(|last| (request(last, false), None)) }));
        let mut output = news_with_entries(once);
        let began = std::time::Instant::now();
        assert_eq!(said(output.next().await), (8, false));
        assert!(began.elapsed() < NEWS_DELAY);
        assert!(output.next().await.is_none());
    }
}
