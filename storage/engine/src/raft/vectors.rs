//! The bytes that replicas send each other and store of Raft's own, held against
//! `tests/vectors/raft.txt`: lines are added to it with each released encoding, never
//! edited.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::suspect::LogStatus;
use super::transport::{MessageKind, RaftMessage};
use super::types::{
    Entry, EntryPayload, LeaderId, LogId, Membership, Node, Payload, SnapshotMeta,
    StoredMembership, Types, Vote,
};
use super::{machine, members, message, snapshot};

/// An encoding, and its bytes decoded and encoded again.
pub(super) struct Sample {
    name: &'static str,
    bytes: Bytes,
    again: Box<dyn Fn(Bytes) -> Bytes>,
}

impl Sample {
    pub(super) fn new(
        name: &'static str,
        bytes: Bytes,
        again: impl Fn(Bytes) -> Bytes + 'static,
    ) -> Sample {
        Sample { name, bytes, again: Box::new(again) }
    }

    /// The body of a message that is all postcard.
    pub(super) fn body<T: Serialize + DeserializeOwned>(name: &'static str, value: &T) -> Sample {
        let again = |bytes: Bytes| message::encode(&message::decode::<T>(&bytes).unwrap()).unwrap();
        Sample::new(name, message::encode(value).unwrap(), again)
    }
}

pub(super) fn leader() -> LeaderId {
    LeaderId { term: 1_790_000_000_123.into(), node_id: 300 }
}

pub(super) fn log_id(index: u64) -> LogId {
    LogId { leader_id: leader(), index }
}

pub(super) fn vote() -> Vote {
    Vote { leader_id: leader(), committed: true }
}

pub(super) fn snapshot_meta() -> SnapshotMeta {
    let last_membership = StoredMembership::new(Some(log_id(70_000)), membership());
    SnapshotMeta { last_log_id: Some(log_id(70_007)), last_membership }
}

/// Joint: two configurations, and a learner.
fn membership() -> Membership {
    let server = |id: u64| (id, Node { server: 0x0102_0304_0506_0708 + id });
    let nodes: BTreeMap<u64, Node> = [3, 4, 300, 5].map(server).into();
    let voters = vec![BTreeSet::from([3, 4, 300]), BTreeSet::from([3, 4])];
    Membership::new(voters, nodes).unwrap()
}

/// Every kind of message, its header and a body.
fn messages() -> Vec<Sample> {
    let kinds = [
        ("message 1, append", MessageKind::Append),
        ("message 2, vote", MessageKind::Vote),
        ("message 3, pre-vote", MessageKind::PreVote),
        ("message 4, transfer leader", MessageKind::TransferLeader),
        ("message 5, snapshot offer", MessageKind::SnapshotOffer),
        ("message 6, snapshot chunk", MessageKind::SnapshotChunk),
        ("message 7, snapshot install", MessageKind::SnapshotInstall),
        ("message 8, readiness", MessageKind::Readiness),
        ("message 9, ping", MessageKind::Ping),
        ("message 10, snapshot request", MessageKind::SnapshotRequest),
        ("message 11, log status", MessageKind::LogStatus),
    ];
    let message = |(name, kind)| {
        let message = RaftMessage {
            group: 0x0102,
            from: 0x0304_0506,
            target: 0x0708_090a_0b0c_0d0e,
            kind,
            body: Bytes::from_static(b"body"),
            timeout: Duration::ZERO,
        };
        Sample::new(name, message.encode(), |bytes| RaftMessage::decode(bytes).unwrap().encode())
    };
    kinds.into_iter().map(message).collect()
}

fn appends() -> Vec<Sample> {
    let append = |name, prev_log_id, payloads: Vec<EntryPayload>, leader_commit| {
        let entries = payloads.into_iter().zip(8..);
        let entries = entries.map(|(payload, index)| Entry { log_id: log_id(index), payload });
        let entries = entries.collect();
        let request = AppendEntriesRequest { vote: vote(), prev_log_id, entries, leader_commit };
        let again = |bytes: Bytes| message::encode_append(&message::decode_append(&bytes).unwrap());
        Sample::new(name, message::encode_append(&request), again)
    };
    let batch = EntryPayload::Normal(Payload(Bytes::from_static(b"batch")));
    let all = vec![EntryPayload::Blank, batch, EntryPayload::Membership(membership())];
    let response = |name, response: AppendEntriesResponse<Types>| Sample::body(name, &response);
    vec![
        append("append, a heartbeat to an empty log", None, vec![], None),
        append("append, a heartbeat", Some(log_id(7)), vec![], Some(log_id(6))),
        append("append, every payload", Some(log_id(7)), all, Some(log_id(6))),
        response("append reply, success", AppendEntriesResponse::Success),
        response(
            "append reply, partial success",
            AppendEntriesResponse::PartialSuccess(Some(log_id(7))),
        ),
        response("append reply, nothing matches", AppendEntriesResponse::PartialSuccess(None)),
        response("append reply, conflict", AppendEntriesResponse::Conflict),
        response("append reply, higher vote", AppendEntriesResponse::HigherVote(vote())),
    ]
}

fn election_samples() -> Vec<Sample> {
    let candidate = Vote { leader_id: leader(), committed: false };
    let request: VoteRequest<Types> = VoteRequest::new(candidate, Some(log_id(7)));
    let authorised =
        VoteRequest { last_log_id: None, leadership_transfer: true, ..request.clone() };
    let granted: VoteResponse<Types> = VoteResponse::new(candidate, Some(log_id(7)), true);
    let refused: VoteResponse<Types> = VoteResponse::new(vote(), None, false);
    let snapshot: TransferLeaderRequest<Types> =
        TransferLeaderRequest::new(vote(), 301, Some(log_id(7)));
    let transferred = |response: TransferLeaderResponse<Types>| response;
    let vote_changed = TransferLeaderError::VoteChanged { expected: vote(), actual: candidate };
    let not_flushed =
        TransferLeaderError::LogNotFlushed { expected: Some(log_id(7)), actual: None };
    let log_status = |is_suspect, has_leader, last| LogStatus { is_suspect, has_leader, last };
    vec![
        Sample::body("vote", &request),
        Sample::body("vote, by the leader's transfer", &authorised),
        Sample::body("vote reply, granted", &granted),
        Sample::body("vote reply, refused", &refused),
        Sample::body("transfer leader", &snapshot),
        Sample::body("transfer leader reply", &transferred(Ok(()))),
        Sample::body("transfer leader reply, the vote changed", &transferred(Err(vote_changed))),
        Sample::body(
            "transfer leader reply, the log is not flushed",
            &transferred(Err(not_flushed)),
        ),
        Sample::body("log status reply, nothing lost", &log_status(false, true, Some(log_id(7)))),
        Sample::body("log status reply, a suspect", &log_status(true, false, None)),
    ]
}

fn samples() -> Vec<Sample> {
    let installed: SnapshotResponse<Types> = SnapshotResponse::new(vote());
    let mut samples = messages();
    samples.extend(appends());
    samples.extend(election_samples());
    samples.extend(members::samples());
    samples.extend(snapshot::samples());
    samples.push(Sample::body("snapshot install reply", &installed));
    samples.extend(machine::samples());
    samples
}

/// Both ways: no encoding differs from its line, no line is without its encoding, and
/// each decodes to what encodes to it.
#[test]
fn raft_bytes_are_frozen() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let unhex = |hex: &str| {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect::<Bytes>()
    };
    let vectors = include_str!("../../tests/vectors/raft.txt");
    let lines = vectors.lines().filter(|line| !line.starts_with('#'));
    let mut frozen: BTreeMap<&str, &str> =
        lines.map(|line| line.split_once(" | ").expect("a name and bytes")).collect();
    let mut wrong = Vec::new();
    for Sample { name, bytes, again } in samples() {
        match frozen.remove(name) {
            Some(line) if line == hex(&bytes) => {
                assert_eq!(again(unhex(line)), bytes, "{name}, decoded and encoded again");
            }
            _ => wrong.push(format!("{name} | {}", hex(&bytes))),
        }
    }
    assert!(wrong.is_empty(), "the lines of today's encoding:\n{}", wrong.join("\n"));
    assert!(frozen.is_empty(), "lines without an encoding: {frozen:?}");
}
