//! Tests of the log under crashes, damage and lack of space. This file is their kit.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod disk;
mod format;
mod space;
mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;
use openraft::{RaftLogReader, alias};

use super::{Durability, Log, LogOptions};
use crate::raft::log_store::GroupLog;
use crate::raft::types::{Entry, EntryPayload, Flushed, LeaderId, LogId, Payload, Types, Vote};

pub(super) type Acknowledged = alias::OneshotReceiverOf<Types, Result<(), std::io::Error>>;

pub(super) fn options(dir: &Path, durability: Durability, segment_bytes: u32) -> LogOptions {
    LogOptions { durability, segment_bytes, ..LogOptions::new(dir) }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: term.into(), node_id: 3 }, index }
}

pub(super) fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term: term.into(), node_id: 3 }, committed: true }
}

pub(super) fn entry(term: u64, index: u64, payload: impl Into<Bytes>) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Payload(payload.into())) }
}

/// Appends, and returns the receiver of the acknowledgement.
pub(super) async fn start_append(group: &mut GroupLog, entries: Vec<Entry>) -> Acknowledged {
    let (done, wait) = Types::oneshot();
    group.append(entries, Flushed::signal(done)).await.unwrap();
    wait
}

/// Appends and waits until it is acknowledged.
pub(super) async fn append(group: &mut GroupLog, entries: Vec<Entry>) {
    start_append(group, entries).await.await.unwrap().unwrap();
}

/// A group as a reader sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Image {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) entries: Vec<Entry>,
}

pub(super) async fn image(log: &Arc<Log>, id: u64) -> Image {
    let mut group = log.group_log(id);
    let state = group.get_log_state().await.unwrap();
    let entries = group.try_get_log_entries(..).await.unwrap();
    assert_eq!(state.last_log_id, entries.last().map(|e| e.log_id).or(state.last_purged_log_id));
    Image { vote: group.read_vote().await.unwrap(), purged: state.last_purged_log_id, entries }
}

/// The segments of a log that does not change meanwhile, oldest first.
pub(super) fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    segments.sort();
    segments
}

/// Copies the log from disk as if the process had been killed at this moment. Returns the
/// synced offset and the end of the last segment.
pub(super) fn kill(log: &Log, to: &Path) -> (u32, u32) {
    let shared = &log.shared;
    'again: loop {
        let writer = shared.writer.lock();
        if !shared.queue.lock().ops.is_empty() {
            drop(writer);
            shared.drive_if_inline();
            std::thread::yield_now();
            continue;
        }
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir_all(to).unwrap();
        for segment in segments(&shared.options.dir) {
            // The maintenance thread may be removing segments.
            if std::fs::copy(&segment, to.join(segment.file_name().unwrap())).is_err() {
                continue 'again;
            }
        }
        // Read last: the maintenance thread's removals rest on what it has synced
        // meanwhile.
        return (writer.active.synced(), writer.active.end());
    }
}

/// Random numbers that are repeatable by their seed (xorshift64*).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Bytes {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The seeds to try: one from `BRIDLE_TEST_SEED` to replay a failure, or `count` of them.
pub(super) fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("BRIDLE_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("BRIDLE_TEST_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}
