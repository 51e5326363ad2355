//! Replication of entries to one follower.
//!
//! At most one AppendEntries with entries is in flight per follower; entries that arrive
//! meanwhile are sent in the next one. That makes fewer and larger messages than a
//! pipeline, and none can overtake another.
//!
//! Leases depend on it, too. openraft's `InflightAppendQueue::drain_acked`
//! (0.10.0-alpha.37) counts an answer for every request handed out so far whose last
//! entry the follower has by now. A request without entries that is still in flight would
//! count as answered together with the one before it, and its later sending time as the
//! follower's promise: the leader's lease would outlive the promise. So the next request
//! is taken only after the answer to the last one was handed on.
//!
//! Lazy followers receive batches at an interval (`thrifty.rs`).
//!
//! The commit index travels with the next entries. openraft would send it in a message of
//! its own after each round; here such a commit notice is sent only when no entries have
//! come for [`COMMIT_NOTICE_DELAY`]. Requests with entries carry a new commit index every
//! [`COMMIT_NOTICE_INTERVAL`] only: a follower writes in one batch whatever it learns to
//! be committed at one time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use openraft::errors::RPCError;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};

use super::peers::{Peer, to_unreachable};
use super::thrifty::{LAZY_INTERVAL, ThriftyQuorum};
use super::types::{LogId, RaftId, Types};

/// AppendEntries with entries in flight to one follower.
const IN_FLIGHT_MAX: usize = 1;
const _: () = assert!(
    IN_FLIGHT_MAX == 1,
    "a second message in flight would extend the leader's lease beyond its followers' promise"
);
/// The longest delay of a commit notice. Nothing waits for it: a new leader applies
/// everything before it serves.
const COMMIT_NOTICE_DELAY: Duration = Duration::from_millis(50);
/// Interval at which requests with entries carry a new commit index.
const COMMIT_NOTICE_INTERVAL: Duration = Duration::from_millis(20);

type AppendAnswer = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// Sends requests and yields their answers in order; ends after the first answer that is
/// not a complete success.
pub(super) fn stream<'s, S>(
    peer: &'s Peer,
    input: S,
    option: RPCOption,
) -> BoxStream<'s, AppendAnswer>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let send = move |request| {
        let option = option.clone();
        async move { send_append(peer, request, &option).await }
    };
    let answers = Box::pin(
        thin_commit_notices(delay_commit_notices(batch_for_lazy_follower(
            input,
            peer.peers.quorum.clone(),
            peer.target,
        )))
        .map(send)
        .buffered(IN_FLIGHT_MAX),
    );
    Box::pin(stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        let (answer, is_whole) = answers.next().await?;
        Some((answer, is_whole.then_some(answers)))
    }))
}

/// Sends the one request that a heartbeat is.
pub(super) async fn heartbeat<'s, S>(
    peer: &'s Peer,
    mut input: S,
    option: RPCOption,
) -> BoxStream<'s, AppendAnswer>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let answer = match input.next().await {
        Some(request) => Some(send_append(peer, request, &option).await.0),
        None => None,
    };
    Box::pin(stream::iter(answer))
}

/// Sends a request; returns its answer, and whether that is a complete success.
async fn send_append(
    peer: &Peer,
    request: AppendEntriesRequest<Types>,
    option: &RPCOption,
) -> (AppendAnswer, bool) {
    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
    let response = match peer.append(&request, option).await {
        Ok(response) => response,
        Err(error) => return (Err(error), false),
    };
    if response.is_success()
        && let Some(last) = last
    {
        peer.peers.quorum.acknowledged(peer.target, last.index, Instant::now());
    }
    let is_whole = match &response {
        AppendEntriesResponse::Success => true,
        AppendEntriesResponse::PartialSuccess(matched) => *matched == last,
        AppendEntriesResponse::Conflict if request.prev_log_id.is_none() => {
            return (
                Err(to_unreachable(
                    "the follower reports a conflict before the first entry".to_owned(),
                )),
                false,
            );
        }
        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
    };
    (Ok(response.into_stream_result(request.prev_log_id, last)), is_whole)
}

/// Passes requests on: at once to a follower of the quorum; to a lazy follower at most
/// one in [`LAZY_INTERVAL`], so that openraft puts all entries of that time into it.
fn batch_for_lazy_follower<S>(
    input: S,
    quorum: Arc<ThriftyQuorum>,
    target: RaftId,
) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    // Fused: it is polled again after it has ended.
    Box::pin(stream::unfold((input.fuse(), None), move |(mut input, last)| {
        let quorum = quorum.clone();
        async move {
            if let Some(last) = last
                && !quorum.is_in_quorum(target)
            {
                tokio::time::sleep_until(last + LAZY_INTERVAL).await;
            }
            let request = input.next().await?;
            Some((request, (input, Some(tokio::time::Instant::now()))))
        }
    }))
}

/// Drops requests without entries as long as others follow within
/// [`COMMIT_NOTICE_DELAY`]. A later request says all that an earlier one without entries
/// did, and its answer stands for both.
fn delay_commit_notices<S>(
    input: S,
) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send + 'static
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    // Fused: it is polled again after it has ended.
    stream::unfold(input.fuse(), |mut input| async move {
        let mut request = input.next().await?;
        let mut due = None;
        while request.entries.is_empty() {
            let due = *due.get_or_insert_with(|| tokio::time::Instant::now() + COMMIT_NOTICE_DELAY);
            match tokio::time::timeout_at(due, input.next()).await {
                Ok(Some(next)) => request = next,
                // The last request, as a heartbeat is; or the delay is over.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, input))
    })
}

/// Leaves the commit index of requests with entries at the last one sent, within
/// [`COMMIT_NOTICE_INTERVAL`] of sending that.
fn thin_commit_notices(
    input: impl Stream<Item = AppendEntriesRequest<Types>>,
) -> impl Stream<Item = AppendEntriesRequest<Types>> {
    let mut last_notice: Option<(Instant, Option<LogId>)> = None;
    input.map(move |mut request| {
        let now = Instant::now();
        match last_notice {
            Some((at, committed))
                if !request.entries.is_empty() && now < at + COMMIT_NOTICE_INTERVAL =>
            {
                request.leader_commit = committed
            }
            _ => last_notice = Some((now, request.leader_commit)),
        }
        request
    })
}

#[cfg(test)]
mod tests {
    use futures::SinkExt;
    use openraft::vote::RaftLeaderIdExt as _;

    use super::*;
    use crate::raft::types::{Entry, EntryPayload, LeaderId, Vote};

    fn request(last: u64, entries: bool) -> AppendEntriesRequest<Types> {
        let leader = LeaderId::new_committed(3.into(), 4);
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

    fn parts(request: Option<AppendEntriesRequest<Types>>) -> (u64, bool) {
        let request = request.expect("a request");
        (request.leader_commit.expect("a commit index").index + 1, !request.entries.is_empty())
    }

    #[tokio::test]
    async fn commit_notice_travels_with_entries_or_after_a_delay() {
        let (mut give, input) = futures::channel::mpsc::channel(8);
        let mut output = Box::pin(delay_commit_notices(input));
        for (last, entries) in [(5, true), (6, false), (6, true), (7, false)] {
            give.send(request(last, entries)).await.unwrap();
        }
        assert_eq!(parts(output.next().await), (5, true));
        assert_eq!(parts(output.next().await), (6, true));
        let began = std::time::Instant::now();
        assert_eq!(parts(output.next().await), (7, false));
        assert!(began.elapsed() >= COMMIT_NOTICE_DELAY);
        // A heartbeat is a stream of one request, and openraft's stream panics when it is
        // polled after its end.
        let once = Box::pin(futures::stream::unfold(Some(8), |last| async move {
            last.map(|last| (request(last, false), None))
        }));
        let mut output = Box::pin(delay_commit_notices(once));
        let began = std::time::Instant::now();
        assert_eq!(parts(output.next().await), (8, false));
        assert!(began.elapsed() < COMMIT_NOTICE_DELAY);
        assert!(output.next().await.is_none());
    }
}
