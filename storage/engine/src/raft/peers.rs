//! openraft's network over a [`Transport`].
//!
//! Heartbeats have a stream of their own, so that they don't queue behind entries
//! (`append.rs`). The size of a message is bounded by one read of the log
//! (`log_store.rs`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::alias::VoteOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;

use super::append;
use super::machine::SnapshotSource;
use super::message;
use super::snapshot::{LogPins, SnapshotThrottle};
use super::thrifty::ThriftyQuorum;
use super::transport::{MessageKind, RaftMessage, Transport, TransportError};
use super::types::{LeaderId, Node, RaftId, Types};

/// Timeout of an AppendEntries with entries, in addition to the time for its bytes.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// The slowest network and disk that a timeout allows for, bytes per second.
const THROUGHPUT_MIN: f64 = 2e6;
/// Backoff after a server was unreachable: doubled from the first to the last.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(400);

/// A replica's connections to the other members of its group.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) group: u64,
    pub(super) id: RaftId,
    pub(super) throttle: Arc<SnapshotThrottle>,
    pub(super) pins: Arc<LogPins>,
    pub(super) quorum: Arc<ThriftyQuorum>,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: RaftId, node: &Node) -> Peer {
        Peer { peers: self.clone(), target, node: *node, is_for_heartbeats: false }
    }

    async fn new_heartbeat_client(&mut self, target: RaftId, node: &Node) -> Peer {
        Peer { peers: self.clone(), target, node: *node, is_for_heartbeats: true }
    }
}

/// The connection to one member.
pub(super) struct Peer {
    pub(super) peers: Peers,
    pub(super) target: RaftId,
    pub(super) node: Node,
    /// True for openraft's heartbeat client: each request is one heartbeat.
    pub(super) is_for_heartbeats: bool,
}

impl Peer {
    pub(super) async fn call(
        &self,
        kind: MessageKind,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, TransportError> {
        let message = RaftMessage {
            group: self.peers.group,
            from: self.peers.id,
            target: self.target,
            kind,
            body,
            timeout,
        };
        // The transport observes the timeout itself. A transport that does not must not
        // block Raft.
        match tokio::time::timeout(
            timeout + timeout / 4,
            self.peers.transport.send(&self.node, message),
        )
        .await
        {
            Ok(reply) => reply,
            Err(_) => Err(TransportError::Lost("timed out".to_owned())),
        }
    }

    pub(super) async fn append(
        &self,
        request: &AppendEntriesRequest<Types>,
        option: &RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let body = message::encode_append(request);
        let timeout = match request.entries.is_empty() {
            true => option.hard_ttl(),
            false => APPEND_TIMEOUT + Duration::from_secs_f64(body.len() as f64 / THROUGHPUT_MIN),
        };
        self.call_as(MessageKind::Append, Ok(body), timeout).await
    }

    async fn call_as<T: serde::de::DeserializeOwned>(
        &self,
        kind: MessageKind,
        body: Result<Bytes, String>,
        timeout: Duration,
    ) -> Result<T, RPCError<Types>> {
        let reply = self.call(kind, body.map_err(to_unreachable)?, timeout).await.map_err(rpc)?;
        message::decode(&reply).map_err(to_unreachable)
    }
}

pub(super) fn to_unreachable(why: String) -> RPCError<Types> {
    Unreachable::from_string(why).into()
}

fn rpc(error: TransportError) -> RPCError<Types> {
    match error {
        TransportError::Lost(why) => NetworkError::from_string(why).into(),
        TransportError::NotSent(why) | TransportError::Refused(why) => {
            Unreachable::from_string(why).into()
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.append(&rpc, &option).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            Ok(match self.is_for_heartbeats {
                true => append::heartbeat(self, input, option).await,
                false => append::stream(self, input, option),
            })
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call_as(MessageKind::Vote, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call_as(MessageKind::PreVote, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call_as(MessageKind::TransferLeader, message::encode(&rpc), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: Snapshot<LeaderId, u64, Node, SnapshotSource>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = super::snapshot::send(self, vote, snapshot) => sent,
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::successors(Some(BACKOFF_MIN), |pause| {
            Some((*pause * 2).min(BACKOFF_MAX))
        })))
    }
}
