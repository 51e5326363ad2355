//! The bodies of messages between replicas.
//!
//! Entries travel in the log's own encoding, so that a batch is a slice of the message
//! and not a copy of it; all else is postcard.
//!
//! # Layout
//! Every body begins with a version u8 = 1. Append: vote, optional previous log id,
//! optional committed log id, then entries, each as length u32 LE and the entry as in the
//! log (`log/record.rs`). Everything else is postcard of openraft's or our own types.
//! Frozen examples: `tests/vectors/raft.txt`.
//!
//! # Invariants
//! - Decoding any bytes gives a message or a reason, never a panic:
//!   `any_bytes_decode_to_a_message_or_an_error`.

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Entry, EntryPayload, Payload, Types};
use crate::log::record;

const VERSION: u8 = 1;

/// A batch up to this size is copied out of the message, so that it does not keep the
/// whole message in memory.
const COPIED_BYTES_MAX: usize = 4096;

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Bytes, String> {
    postcard::to_extend(message, vec![VERSION]).map(Bytes::from).map_err(|error| error.to_string())
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    match body.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        _ => Err("a message of an unknown version".to_owned()),
    }
}

pub(super) fn encode_append(request: &AppendEntriesRequest<Types>) -> Bytes {
    let entries: usize = request.entries.iter().map(|entry| 4 + record::entry_len(entry)).sum();
    let mut body = Vec::with_capacity(96 + entries);
    body.push(VERSION);
    record::put_vote(&mut body, &request.vote);
    record::put_optional(&mut body, request.prev_log_id.as_ref(), record::put_log_id);
    record::put_optional(&mut body, request.leader_commit.as_ref(), record::put_log_id);
    for entry in &request.entries {
        let start = body.len();
        body.extend_from_slice(&[0; 4]);
        record::put_entry(&mut body, entry);
        let length = (body.len() - start - 4) as u32;
        body[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
    Bytes::from(body)
}

pub(super) fn decode_append(body: &Bytes) -> Result<AppendEntriesRequest<Types>, String> {
    let Some((&VERSION, rest)) = body.split_first() else {
        return Err("a message of an unknown version".to_owned());
    };
    let mut head = record::BodyReader(rest);
    let vote = head.vote()?;
    let prev_log_id = head.optional(record::BodyReader::log_id)?;
    let leader_commit = head.optional(record::BodyReader::log_id)?;
    let mut rest = body.slice(body.len() - head.0.len()..);
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let Some((length, _)) = rest.split_first_chunk::<4>() else {
            return Err("a message ends inside a length".to_owned());
        };
        let end = 4 + u32::from_le_bytes(*length) as usize;
        if rest.len() < end {
            return Err("a message ends inside an entry".to_owned());
        }
        let entry = record::entry(&rest.slice(4..end))?;
        entries.push(own(entry));
        rest = rest.slice(end..);
    }
    let is_consecutive =
        |pair: &[Entry]| pair[0].log_id.index.checked_add(1) == Some(pair[1].log_id.index);
    let first = entries.first().map(|entry| entry.log_id.index);
    // openraft relies on consecutive entries and does not check them.
    if !entries.windows(2).all(is_consecutive)
        || first.is_some_and(|first| first != prev_log_id.map_or(0, |id| id.index.wrapping_add(1)))
    {
        return Err("a message whose entries are not consecutive".to_owned());
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

fn own(mut entry: Entry) -> Entry {
    if let EntryPayload::Normal(Payload(batch)) = &mut entry.payload
        && batch.len() <= COPIED_BYTES_MAX
    {
        *batch = Bytes::copy_from_slice(batch);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{LeaderId, LogId, Vote};

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 3.into(), node_id: 4 }, index }
    }

    #[test]
    fn append_body_round_trips() {
        for bytes in [0, 10, COPIED_BYTES_MAX + 1] {
            let batch = |fill: u8| EntryPayload::Normal(Payload(Bytes::from(vec![fill; bytes])));
            let entries = vec![
                Entry { log_id: id(8), payload: EntryPayload::Blank },
                Entry { log_id: id(9), payload: batch(1) },
                Entry { log_id: id(10), payload: batch(2) },
            ];
            let vote = Vote { leader_id: LeaderId { term: 3.into(), node_id: 4 }, committed: true };
            let request = AppendEntriesRequest {
                vote,
                prev_log_id: Some(id(7)),
                entries,
                leader_commit: None,
            };
            let body = encode_append(&request);
            let back = decode_append(&body).unwrap();
            assert_eq!(
                (back.vote, back.prev_log_id, back.leader_commit),
                (vote, Some(id(7)), None)
            );
            assert_eq!(back.entries, request.entries);
            assert!(decode_append(&body.slice(..body.len() - 1)).is_err() || bytes == 0);
        }
    }

    #[test]
    fn non_consecutive_entries_are_refused() {
        let vote = Vote { leader_id: LeaderId { term: 3.into(), node_id: 4 }, committed: true };
        let of = |indexes: &[u64]| {
            indexes
                .iter()
                .map(|index| Entry { log_id: id(*index), payload: EntryPayload::Blank })
                .collect()
        };
        for (previous, indexes) in [
            (Some(id(7)), &[9][..]),
            (Some(id(7)), &[8, 10]),
            (None, &[1]),
            (Some(id(u64::MAX)), &[1]),
        ] {
            let request = AppendEntriesRequest {
                vote,
                prev_log_id: previous,
                entries: of(indexes),
                leader_commit: None,
            };
            assert!(decode_append(&encode_append(&request)).is_err(), "{previous:?} {indexes:?}");
        }
    }

    #[test]
    fn any_bytes_decode_to_a_message_or_an_error() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut bytes = bytes.clone();
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode_append(&Bytes::from(bytes));
        });
    }
}
